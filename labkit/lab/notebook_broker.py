"""The broker that notebooks are compared against: found or started before the first kernel, named in LABKIT_BROKER.

Not the learner's: tests kill theirs. It lives in ``.lab/test`` unless ``LABKIT_BROKER`` says where one runs already.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "LABKIT_BROKER"
BENCH = Path(".lab") / "test"
KINDS = ("", "auto", "compose", "local")


def provide(project: Path, say: Callable[[str], None]) -> Path | None:
    """Have a broker running and name it in ``LABKIT_BROKER``, which kernels inherit.

    A ``LABKIT_BROKER`` that is an AMQP URL, or the bench of a running broker, is taken as it is.

    Returns:
        The bench to pass to :func:`release` when a broker was started here, else None.

    Raises:
        BrokerError: there is none to be had.
    """
    wanted = os.environ.get(VARIABLE, "")
    if "://" in wanted:
        return None
    # Here: whoever only wants the names above must not import every backend.
    from labkit import brokers

    bench = project / BENCH if wanted in KINDS else Path(wanted)
    started = brokers.find(bench) is None
    if started:
        brokers.up(kind=wanted if wanted in KINDS and wanted else "auto", home=bench, say=say)
    os.environ[VARIABLE] = str(bench)
    return bench if started else None


def release(bench: Path | None) -> None:
    """End the broker that :func:`provide` started; nothing when it only found one."""
    if bench is not None:
        from labkit import brokers

        brokers.down(bench)


@contextmanager
def notebook_broker(project: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Have a broker for the notebooks inside the block, as nbval runs do; leave everything as it was.

    Raises:
        BrokerError: there is none to be had.
    """
    before = os.environ.get(VARIABLE)
    started = provide(project, say)
    try:
        yield
    finally:
        release(started)
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def capabilities() -> frozenset[str]:
    """Return what the broker named by ``LABKIT_BROKER`` can do; nothing when there is none."""
    from labkit import brokers

    wanted = os.environ.get(VARIABLE, "")
    broker = brokers.find(Path(wanted) if "://" not in wanted and wanted not in KINDS else None)
    return frozenset() if broker is None else broker.capabilities
