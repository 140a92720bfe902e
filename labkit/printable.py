"""Text that is safe to print, whoever it came from: a broker, a client, a learner's code; and words for it. No I/O."""

VOWELS = (*"aeioAEIO", "Un", "RPC")  # as they are spoken


def printable(text: str, *, keep: str = "") -> str:
    """Return *text* with what would steer a terminal, or hide or forge a line, shown as an escape such as ``\\x1b``.

    That is what ``str.isprintable()`` refuses: control characters, directional marks, unusual spaces, half characters.

    Args:
        text: From a broker's reply, a connection's name, a log.
        keep: Characters that stay as they are, such as ``"\\n"`` where lines are wanted.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode("ascii") for each in text
    )


def a_type(value: object) -> str:
    """Return the name of *value*'s type with its article: "an int", "a list"."""
    name = type(value).__name__
    return f"{'an' if name.startswith(VOWELS) else 'a'} {name}"
