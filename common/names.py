"""What to say when a name does not exist."""

import difflib


def unknown(kind: str, name: str, valid: tuple[str, ...]) -> str:
    """The message for a name that does not exist: the nearest match, then all that do."""
    near = difflib.get_close_matches(name.lower(), valid, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {kind} {name!r}.{hint} Valid names: {', '.join(valid)}."
