"""How an answer to an exercise is judged: run with a limit, compared, and spoken of."""
