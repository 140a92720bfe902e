"""The verb ``labkit atlas``: every failure that the bench knows, to look up, to write as a page, or to run."""

from pathlib import Path
from typing import Annotated

import typer

from labkit.brokers.home import is_checkout, project
from labkit.errors import ConfigurationError
from labkit.lab.atlas import Atlas, Seen
from labkit.lab.atlas.rows import RECORD, as_json, merged, recorded
from labkit.printable import printable

DIFFERS = 1  # exit code
PAGE = Path("docs") / "atlas.md"


def atlas(
    words: Annotated[list[str] | None, typer.Argument(help="Only rows that hold each of these words.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with a filter box into this file.")] = None,
    run: Annotated[bool, typer.Option("--run", help="Run all of it on a private broker: two minutes.")] = False,
    record: Annotated[bool, typer.Option("--record", help="For authors: run, and keep what came of it.")] = False,
) -> None:
    """Look a failure up: what happens, what the program gets, who closed, why, what to do.

    With --run, exit code 1 when something differs from what is recorded.
    """
    if run or record:
        _run(keep=record)
        return
    rows = Atlas().find(" ".join(words or ()))
    if html is not None:
        html.write_text(rows.as_page(), encoding="utf-8")
        typer.echo(f"{len(rows)} rows in {html}")
        return
    typer.echo(printable(repr(rows), keep="\n"))


def _run(*, keep: bool) -> None:
    from labkit.lab.atlas.running import on_a_broker  # it makes what the other verbs need not wait for

    if keep and not is_checkout():
        raise ConfigurationError("--record: allowed in a checkout of labkit", field="record", allowed="in a checkout")
    known = {row.name: row for row in recorded()}
    came: dict[str, tuple[str, str, Seen]] = {}
    version, others = "", 0
    for version, trigger, seen in on_a_broker(lambda text: typer.echo(printable(text), err=True)):
        came[trigger.name] = trigger.group, trigger.when, seen
        before = known[trigger.name].on(version) if trigger.name in known else None
        if before == seen:
            continue
        others += 1
        typer.echo(f"{trigger.when}: {seen.raised}, {seen.diagnosis or 'nothing to say'}")
        typer.echo(f"  recorded: {f'{before.raised}, {before.diagnosis}' if before else f'nothing for {version}'}")
    typer.echo(f"RabbitMQ {version}: {len(came)} failures run, {others} not as recorded")
    if keep:
        RECORD.write_text(as_json(merged(known.values(), version, came)), encoding="utf-8")
        (project() / PAGE).write_text(Atlas().as_markdown(), encoding="utf-8")
    elif others:
        raise typer.Exit(DIFFERS)
