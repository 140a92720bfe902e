"""The verb ``labkit explain``: what a traceback, a log line or a broker's log means."""

import codecs
import sys
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from labkit.diagnosis.reading import LONGEST, as_json, as_text, explain_text
from labkit.printable import printable

NOT_KNOWN, BAD_INPUT = 1, 2  # exit codes


def explain(
    file: Annotated[Path | None, typer.Argument(help="A log or a traceback; without it, standard input.")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what an error text means, who closed, and what to do. Exit code 0: known, 1: not known, 2: bad input."""
    try:
        if file is None:
            if sys.stdin.isatty():
                typer.echo("labkit: paste the text, then a line with Ctrl-D (Windows: Ctrl-Z, Enter)", err=True)
            read = _read(sys.stdin.buffer)
        else:
            with file.open("rb") as opened:
                read = _read(opened)
    except OSError as error:
        typer.echo(f"labkit: {printable(str(error))}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    if len(read) > LONGEST:
        typer.echo(f"labkit: only the first {LONGEST:,} bytes are read", err=True)
    findings = explain_text(_decoded(read[:LONGEST]))
    typer.echo(as_json(findings) if json else printable(as_text(findings), keep="\n"))
    raise typer.Exit(0 if findings else NOT_KNOWN)


def _read(source: BinaryIO) -> bytes:
    """At most one byte more than is looked at."""
    return source.read(LONGEST + 1)


def _decoded(read: bytes) -> str:
    wide = read.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what PowerShell writes
    return read.decode("utf-16" if wide else "utf-8", errors="replace")
