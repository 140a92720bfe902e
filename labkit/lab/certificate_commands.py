"""The verbs of ``labkit certs``: make the lab's certificates, show them, give a running broker a new one."""

from pathlib import Path
from typing import Annotated

import typer

from labkit.brokers.certificates import Issued, LabCertificates
from labkit.brokers.discovery import known, place_of
from labkit.brokers.home import claim
from labkit.errors import BrokerError

app = typer.Typer(help="The lab's certificate authority and what it has signed.", no_args_is_help=True)

Home = Annotated[Path | None, typer.Option(help="Bench directory; by default the project's .lab.")]


@app.command()
def make(
    home: Home = None,
    client: Annotated[
        list[str] | None, typer.Option(help="A user's name, for a client certificate; repeatable.")
    ] = None,
) -> None:
    """Make what is missing or about to expire: authority, server, flawed ones, and a certificate for each --client."""
    certificates = LabCertificates(claim(place_of(home)))
    certificates.make()
    for name in client or []:
        certificates.client(name)
    _print(certificates)


@app.command()
def show(home: Home = None) -> None:
    """List the certificates that are there: subject, days to expiry, file; exit code 1 when there is none."""
    certificates = LabCertificates(place_of(home))
    if not certificates.issued():
        raise BrokerError("there are no certificates here yet: `labkit certs make` makes them, and so does `labkit up`")
    _print(certificates)


@app.command()
def rotate(home: Home = None) -> None:
    """Give the running broker a new certificate; connections that are open stay as they are."""
    known(home).rotate_certificate()
    typer.echo("the broker shows a new certificate to new connections")


def _print(certificates: LabCertificates) -> None:
    rows = [(each.subject, _validity(each), _shown(each.path)) for each in certificates.issued()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for subject, validity, path in rows:
        typer.echo(f"{subject:<{widths[0]}}  {validity:<{widths[1]}}  {path}")


def _validity(issued: Issued) -> str:
    return f"{issued.days_left} days left" if issued.days_left >= 0 else f"expired {-issued.days_left} days ago"


def _shown(path: Path) -> str:
    """Return *path* from here, or, where the bench is elsewhere, from the bench."""
    here = Path.cwd()
    resolved = path.resolve()
    return (resolved.relative_to(here if resolved.is_relative_to(here) else path.parent.parent.resolve())).as_posix()
