"""What a maintainer or an instructor runs: `python -m tools.NAME`."""

import sys
from collections.abc import Callable

from common.machine import exit_code


def start(main: Callable[..., int | None], name: str) -> None:
    """Run a tool's `main` with the words of the command line, and leave with its exit code."""
    import tyro  # here, not above: notebooks use tools too, and Colab has no tyro

    prog = f"python -m {name}"
    sys.exit(exit_code(lambda: tyro.cli(main, prog=prog), name))
