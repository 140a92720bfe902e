"""Find the line of a broker's log that says most. No I/O."""

WINDOW = 40  # lines from the end


def last_clue(lines: list[str]) -> str:
    """Return the last line that speaks of an error, else the last one that says anything."""
    told = [line.strip() for line in lines[-WINDOW:] if len(line.split()) > 2]
    errors = [line for line in told if "error" in line.lower()]
    return (errors or told or ["(the log is empty)"])[-1]
