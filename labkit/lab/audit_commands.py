"""The verb ``labkit audit``: good practice, looked for in code, in settings and on a broker."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from labkit.audit import Finding, as_json, as_sarif, as_table, audit_broker, audit_code, audit_settings
from labkit.brokers.discovery import known
from labkit.errors import ConfigurationError, LabkitError
from labkit.printable import printable
from labkit.settings.settings import BrokerSettings


class Format(enum.StrEnum):
    """How the findings are printed."""

    TABLE = "table"
    JSON = "json"
    SARIF = "sarif"


WRITERS = {Format.TABLE: as_table, Format.JSON: as_json, Format.SARIF: as_sarif}
FOUND, BAD_INPUT = 1, 2  # exit codes


def audit(
    paths: Annotated[list[Path] | None, typer.Argument(help="Python files, notebooks, folders with such.")] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--for", help="Only what matters with these versions, such as rabbitmq-4.3,pika-1.5."),
    ] = None,
    settings: Annotated[
        bool, typer.Option("--settings", help="The settings in LABKIT_URL or LABKIT_HOST, ... .")
    ] = False,
    broker: Annotated[bool, typer.Option("--broker", help="The bench's broker, or LABKIT_BROKER's.")] = False,
    form: Annotated[Format, typer.Option("--format", help="For people, programs, or code hosts.")] = Format.TABLE,
) -> None:
    """Look for good practice that is not kept. Exit code 0: nothing found, 1: something, 2: bad input."""
    wanted = [each.strip() for given in targets or [] for each in given.split(",")]
    try:
        if not (paths or settings or broker):
            raise ConfigurationError("audit: nothing was given to look at; allowed: a path, --settings, --broker")
        found: list[Finding] = audit_code(paths or [], wanted)
        if settings:
            found += audit_settings(BrokerSettings.from_env(), wanted)
        if broker:
            found += audit_broker(known(), wanted)
    except LabkitError as error:
        typer.echo(f"labkit: {printable(str(error))}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    typer.echo(printable(WRITERS[form](found), keep="\n"))
    raise typer.Exit(FOUND if found else 0)
