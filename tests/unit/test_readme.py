"""README tells of the commands and the notebooks that there are, and of no others."""

import re
from pathlib import Path

import typer

from labkit.lab.commands import app
from labkit.lab.notebook_file import card, notebooks, read, title

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table in a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_commands_names_every_command_and_no_other() -> None:
    named = set()
    for first, *_ in rows("The `labkit` command"):
        named |= {word.removeprefix("labkit ").split()[0] for word in re.findall(r"`([^`]+)`", first)}
    assert named == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_every_command_says_in_its_help_what_it_does() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert commands
    assert [name for name, command in commands.items() if not (command.help or "").strip().endswith(".")] == []


def test_options_that_readme_and_docs_name_exist() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    texts = [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))]
    named = [found for text in texts for found in re.findall(r"labkit (\w+)[^`\n|]*? (--[a-z-]+)", text)]
    assert ("reset", "--broker") in named
    for command, option in named:
        known = {
            each for parameter in commands[command].params for each in (*parameter.opts, *parameter.secondary_opts)
        }
        assert option in known, f"labkit {command} {option}"


def test_the_table_of_notebooks_is_what_their_cards_say() -> None:
    written = [tuple(row) for row in rows("The notebooks")]
    real = []
    for path in notebooks(ROOT):
        known = card(read(path))
        minutes = known.minutes_to_read + known.minutes_to_do
        real.append((f"[{title(read(path))}](notebooks/{path.name})", known.question, str(minutes)))
    assert real
    assert written == real


def test_every_file_that_readme_links_to_exists() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_pythons_promised_are_the_pythons_of_the_package() -> None:
    promised = re.search(r"\| Python \| ([\d., ]+) \|", README)
    assert promised
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert promised[1].split(", ") == classifiers
