"""Find the line of a broker's log that says most. No I/O."""

import re

STAMP = re.compile(r"^\S*\d{4}-\d\d-\d\d \S+ \[(?P<level>\w+)\] <[\d.]+> ?")
SHORTEST = 3  # words; less is a rule, a bracket, or an empty entry


def clue(lines: list[str]) -> str:
    """Return the first line that speaks of an error, else the last one that says anything.

    The first, because a RabbitMQ that cannot start says why once, and then reports for two pages that
    its parts have ended.

    Args:
        lines: The log since the broker was started.
    """
    told: list[tuple[str, str]] = []
    for line in lines:
        stamp = STAMP.match(line)
        text = (line[stamp.end() :] if stamp else line).strip()
        if len(text.split()) >= SHORTEST:
            told.append((stamp["level"] if stamp else "", text))
    for position, (level, text) in enumerate(told):
        if level in {"error", "critical"} or "error" in text.lower():
            # "Feature flags: error while running:" says what is wrong in the lines after it.
            return " ".join(each for _, each in told[position : position + 3]) if text.endswith(":") else text
    return told[-1][1] if told else "(the log is empty)"
