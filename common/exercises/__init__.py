"""One module a notebook: each exercise with its statement, check, hints, solution and wrong answers."""
