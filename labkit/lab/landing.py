"""The page that JupyterLab opens first: where to start, which way to take, how far the learner is. Markdown."""

from collections.abc import Callable, Sequence
from pathlib import Path

from labkit.lab.notebook_file import card, number_of, read, title

# What a class can do in the time it has: a name, and the notebooks in their order; no numbers: all there are.
PICTURE = (
    "![A program and a broker, joined by one connection; between them the bench, which shows what passes and breaks it]"
    "(images/bench.svg)"
)
ADVICE = """- Run the cells from top to bottom with Shift+Enter. Answer a prediction before you run the next cell.
- Stuck in the middle? Choose the cell where you are, then *Run > Run All Above Selected Cell*.
- These files are yours: a new version of the course never overwrites what you changed. In a terminal, `labkit reset 03`
  gives a fresh copy of notebook 03 and keeps yours as `03.mine.ipynb`.
- This page is brought up to date each time the lab starts."""
PATHS = (
    ("90 minutes", ("00", "03")),
    ("one day", ("00", "01", "03", "06", "07", "09")),
    ("two days", ()),
)


def landing_page(references: Sequence[Path], progress: Callable[[Path], object | None]) -> str:
    """Return the page.

    Args:
        references: The notebooks, in order.
        progress: What to say of how far a notebook was done; None for one that was not begun.
    """
    lines = {}
    for path in references:
        notebook = read(path)
        about = card(notebook)
        minutes = about.minutes_to_read + about.minutes_to_do
        lines[number_of(path)] = (
            f"[{title(notebook) or path.stem}]({path.name})",
            about.question,
            minutes,
            progress(path),
        )
    rows = [
        f"| {link} | {question} | {minutes or ''} | {done or 'not started'} |"
        for link, question, minutes, done in lines.values()
    ]
    done = sum(str(progress) == "done" for _, _, _, progress in lines.values())
    parts = [
        "# labkit: a lab bench for RabbitMQ connections",
        PICTURE,
        "See what a connection is, break it on purpose, and prove that your code survives.",
    ]
    if lines:
        first = next((link for link, _, _, progress in lines.values() if str(progress) != "done"), None)
        parts.append(f"**Start here:** {first}" if first else "**All done.** Which one would you teach to a colleague?")
    parts += [
        "## The notebooks",
        f"Done: {done} of {len(lines)}.",
        "\n".join(["| notebook | question | minutes | done? |", "| --- | --- | ---: | --- |", *rows]),
    ]
    ways = [_way(name, numbers, lines) for name, numbers in PATHS]
    if all(ways):
        parts += [
            "## Which way to take",
            "\n".join(["| you have | notebooks | minutes |", "| --- | --- | ---: |", *ways]),
        ]
    parts += [
        "## Good to know",
        ADVICE,
    ]
    return "\n\n".join(parts) + "\n"


def _way(name: str, numbers: Sequence[str], lines: dict[str, tuple[str, str, int, object | None]]) -> str:
    chosen = numbers or tuple(lines)
    if not set(chosen) <= lines.keys():
        return ""
    return f"| {name} | {', '.join(chosen)} | {sum(lines[each][2] for each in chosen)} |"
