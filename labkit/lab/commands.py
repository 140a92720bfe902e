"""The verbs of the ``labkit`` command. Each one reads its arguments, calls a function, and says what came of it.

What takes longer to import than the rest, and only one verb needs, is imported by that verb.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from labkit import brokers
from labkit.brokers import images
from labkit.brokers.discovery import VARIABLE, known
from labkit.brokers.zero import reset as reset_broker
from labkit.errors import BrokerError
from labkit.lab import (
    atlas_commands,
    audit_commands,
    certificate_commands,
    copies,
    doctor,
    explain_commands,
    lesson,
    refreshing,
)
from labkit.printable import printable

app = typer.Typer(
    help="A lab bench for RabbitMQ connections.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # main() turns our errors into one line
)

app.add_typer(certificate_commands.app, name="certs")
app.command()(audit_commands.audit)
app.command()(explain_commands.explain)
app.command()(atlas_commands.atlas)

Home = Annotated[Path | None, typer.Option(help="Bench directory; by default the project's .lab.")]


def say(text: str) -> None:
    """Tell the user what is going on; stdout is for answers."""
    typer.echo(printable(text, keep="\n\t"), err=True)


def answer(text: str) -> None:
    """Print an answer. What a broker, its log or its clients said may be part of it."""
    typer.echo(printable(text, keep="\n\t"))


@app.command()
def up(
    kind: Annotated[
        str, typer.Option(help="auto, compose, local, or an AMQP URL; one with a password into LABKIT_BROKER.")
    ] = "auto",
    home: Home = None,
) -> None:
    """Find the bench's broker or start one; it stays when this command ends."""
    broker = brokers.up(kind, home, say)
    answer(f"RabbitMQ {_version(broker)} ({broker.backend}) at {broker.settings().to_url()}")
    if "tls" in broker.capabilities:
        answer(f"with TLS: {broker.settings(tls=True).to_url()}")
    answer(f"management page: {broker.management_url}")


@app.command()
def down(home: Home = None) -> None:
    """End the bench's broker and remove its data."""
    answer("the broker is gone, with its data" if brokers.down(home) else "there was no broker to end")


@app.command()
def status(
    home: Home = None,
    show_password: Annotated[bool, typer.Option("--show-password", help="Show the password in the URL.")] = False,
) -> None:
    """Say which broker there is, and how it is; exit code 1 when none runs."""
    broker = known(home)
    state = "paused" if broker.is_paused else "running" if broker.is_running else "stopped"
    answer(f"{broker.backend}: {state}")
    answer(f"AMQP: {broker.settings().to_url(mask=not show_password)}")
    if "tls" in broker.capabilities:
        answer(f"AMQP over TLS: {broker.settings(tls=True).to_url(mask=not show_password)}")
    answer(f"management page: {broker.management_url}")
    if state == "running":
        answer(f"RabbitMQ {_version(broker)}")
    raise typer.Exit(1 if state == "stopped" else 0)


@app.command()
def logs(
    home: Home = None, lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines.")] = 50
) -> None:
    """Show the end of the broker's log."""
    answer(known(home).logs(lines))


@app.command()
def image(
    rootfs: Annotated[bool, typer.Option("--rootfs", help="A root directory instead: no Docker needed.")] = False,
    suite: Annotated[str | None, typer.Option(help="Debian suite; by default the newest that works.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if a current one is there.")] = False,
) -> None:
    """Build RabbitMQ from Debian packages, where no container registry can be reached (root, Debian)."""
    answer(images.build(rootfs=rootfs, suite=suite, force=force))


@app.command()
def reset(
    notebooks: Annotated[list[str] | None, typer.Argument(help="Notebook numbers, such as 03.")] = None,
    broker: Annotated[bool, typer.Option("--broker", help="Virtual hosts, alarms and processes.")] = False,
    home: Home = None,
) -> None:
    """Bring notebooks or the bench's broker back to zero; your old notebook is kept as NN.mine.ipynb."""
    if not broker and not notebooks:
        raise typer.BadParameter("say what to reset: a notebook's number, or --broker")
    for number in notebooks or []:
        copy = copies.reset(number)
        kept = f"; yours is kept as {copy.mine.name}" if copy.mine else ""
        answer(f"{copy.path.name} is fresh{kept}")
    if broker:
        reset_broker(known(home), say)


@app.command(name="doctor")
def doctor_command(home: Home = None) -> None:
    """Say what is here, what is missing and how to fix it; exit code 1 when something needed is missing."""
    report = doctor.examine(home)
    answer(report.table())
    raise typer.Exit(0 if report.ok else 1)


@app.command(name="demo")
def demo_command(home: Home = None) -> None:
    """Have a connection manager publish and consume on a queue of its own, and cut the line meanwhile."""
    from labkit.lab import demo

    broker = brokers.up("auto", home, say)
    answer(f"RabbitMQ {_version(broker)} ({broker.backend})")
    demo.demonstrate(broker.settings(), answer)


@app.command(name="run")
def run_command(
    notebooks: Annotated[list[str] | None, typer.Argument(help="Notebook numbers; by default all.")] = None,
) -> None:
    """Execute notebooks headless, print a table, write HTML into .lab/html; exit code 1 when one fails."""
    from labkit.lab import running

    broker = _for_kernels()
    raise typer.Exit(running.run(notebooks or (), capabilities=broker.capabilities).exit_code)


@app.command(name="refresh")
def refresh_command(
    notebooks: Annotated[list[str], typer.Argument(help="Notebook numbers, such as 03.")],
) -> None:
    """For authors: execute notebooks, compare them twice, save them if nothing differs."""
    _for_kernels()
    for number in notebooks:
        refreshing.refresh(number, say=say)


@app.command(name="lab")
def lab_command(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="JupyterLab's port; by default 8888 or a free one.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the address in a browser.")] = True,
) -> None:
    """Start the broker, bring work/ up to date, and serve it in JupyterLab until Ctrl-C."""
    lesson.hold(port=port, open_browser=browser, say=answer)


def _for_kernels() -> brokers.Broker:
    """Have a broker running, and name it to the kernels that this process starts, wherever they start."""
    broker = brokers.up("auto", None, say)
    if broker.home is not None:
        os.environ[VARIABLE] = str(broker.home)
    return broker


def _version(broker: brokers.Broker) -> str:
    try:
        return broker.version
    except BrokerError:
        return "(its version is known to administrators only)"
