"""Names: what to say when one does not exist, and how one becomes a file's."""

import difflib
import re


def unknown(kind: str, name: str, valid: tuple[str, ...]) -> str:
    """The message for a name that does not exist: the nearest match, then all that do."""
    near = difflib.get_close_matches(name.lower(), valid, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {kind} {name!r}.{hint} Valid names: {', '.join(valid)}."


def file_name(text: str) -> str:
    """The text with a hyphen for what not every file system takes; it may say "ReLU/sigmoid"."""
    return re.sub(r"[^\w.+=-]+", "-", text)
