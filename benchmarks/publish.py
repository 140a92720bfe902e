"""How many messages a second each client publishes, confirmed and not: numbers and ratios from one run.

    LABKIT_URL=... python benchmarks/publish.py [--quick] [--rounds N] [--write]

Every client publishes the same bodies to the same durable queue of one broker, persistent and transient, from 1 and
from 8 threads; ``publishers.py`` has the code of each. The clock runs from the first publish to the last confirm;
without confirms, to the answer to a question that was asked after the last publish. Each way is measured in turn,
several times, and the medians are compared, for a machine has moods. A turn whose messages are not all in the queue
afterwards is an error. A client that is not installed is left out (benchmarks/requirements.txt has them). ``--write``
puts the tables into docs/measured.md and the picture into docs/images/publish.svg.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Iterator
from itertools import product

from publishers import BARE, CONFIRMED, LIMIT, QUEUE, UNCONFIRMED, WAITS_FOR_EACH, Load, Send, Way, installed
from report import DOCS, bars, write_block

from labkit import BrokerSettings, Channel, Connection, Queue

SIZES = {100: "100 B", 1024: "1 KiB", 65536: "64 KiB"}
THREADS = (1, 8)
OF_LIMIT = {True: 0.85, False: 0.75}  # what labkit aims at, by whether messages are persistent
ROUNDS = 5
COUNTS = {100: 16_000, 1024: 16_000, 65536: 800}  # messages in a turn: seconds, and no memory alarm
COUNTS_ONE_BY_ONE = {100: 400, 1024: 400, 65536: 160}  # of who waits for each confirm
PATIENCE = 5.0  # seconds for a queue to have what its client says was sent
OURS = "labkit Publisher"

Rates = dict[str, float]  # messages a second, by way


def turn(settings: BrokerSettings, way: Way, load: Load, count: int) -> float:
    """Publish *count* messages in all, and return how many a second that was."""
    with Connection(settings) as connection, connection.channel() as channel:
        channel.delete(Queue(QUEUE))
        channel.declare(Queue(QUEUE))
        with way(settings, load) as sends:
            for each in sends:
                each(1)  # what is paid once
            seconds = timed(sends, count // load.threads)
            published = count // load.threads * load.threads
            there = arrived(channel, published + load.threads)
        channel.delete(Queue(QUEUE))
    if there != published + load.threads:
        raise RuntimeError(f"{there} messages are in the queue, not {published + load.threads}")
    return published / seconds


def arrived(channel: Channel, expected: int) -> int:
    """Return how many messages are in the queue: as many as *expected*, or after PATIENCE what there is."""
    ends = time.monotonic() + PATIENCE
    while (there := channel.declare(Queue(QUEUE), passive=True).messages) < expected and time.monotonic() < ends:
        time.sleep(0.01)
    return there


def timed(sends: list[Send], share: int) -> float:
    """Return the seconds until every thread has sent its *share*."""
    errors: list[Exception] = []
    start = threading.Barrier(len(sends) + 1)

    def work(send: Send) -> None:
        start.wait()
        try:
            send(share)
        except Exception as exc:  # noqa: BLE001 - told by the thread that waits
            errors.append(exc)

    workers = [threading.Thread(target=work, args=(each,)) for each in sends]
    for each in workers:
        each.start()
    start.wait()
    began = time.perf_counter()
    for each in workers:
        each.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - began


def measure(settings: BrokerSettings, ways: dict[str, Way], load: Load, rounds: int, counts: dict[str, int]) -> Rates:
    """Return the median rate of each way; *counts* says how many messages each publishes in a turn."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            try:
                rate = turn(settings, way, load, max(load.threads, counts[name]))
            except RuntimeError as exc:
                raise RuntimeError(f"{name}, {name_of(load)}: {exc}") from exc
            rates[name].append(rate)
    return {name: statistics.median(each) for name, each in rates.items()}


def name_of(load: Load) -> str:
    """Say a load in words."""
    kept = "persistent" if load.is_persistent else "transient"
    return f"{kept}, {SIZES[len(load.body)]}, {load.threads} thread{'s' * (load.threads > 1)}"


def table(measured: dict[Load, Rates], base: str) -> Iterator[str]:
    """Yield a row for each load: the rates, and the ratios to *base*."""
    names = list(next(iter(measured.values())))
    yield f"| messages a second | {' | '.join(names)} |"
    yield "| --- |" + " --- |" * len(names)
    for load, rates in measured.items():
        cells = [f"{rate:,.0f} ({rate / rates[base]:.2f})" for rate in rates.values()]
        yield f"| {name_of(load)} | {' | '.join(cells)} |"


def ratios(confirmed: dict[Load, Rates], unconfirmed: dict[Load, Rates]) -> Iterator[str]:
    """Yield what labkit's confirmed rate is of others': least and most, and how often that is what it aims at."""
    peers = [name for name in next(iter(confirmed.values())) if name not in (OURS, BARE, LIMIT)]
    limit = {load: rates[LIMIT] for load, rates in confirmed.items()}
    compared = {"Pika's limit": (limit, OF_LIMIT), f"the same, {BARE}": (limit, OF_LIMIT)}
    if peers:
        best = {load: max(rates[each] for each in peers) for load, rates in confirmed.items()}
        compared["the best other client's confirmed rate"] = (best, dict.fromkeys((True, False), 2.5))
    for name in ("kombu", "BlockingConnection"):
        if name in next(iter(unconfirmed.values())):
            others = {load: rates[name] for load, rates in unconfirmed.items()}
            compared[f"{name} without confirms"] = (others, dict.fromkeys((True, False), 1.0))
    yield "| labkit Publisher, confirmed, compared with | persistent | transient |"
    yield "| --- | --- | --- |"
    for name, (others, aims) in compared.items():
        cells = []
        for kept in (True, False):
            ours = BARE if BARE in name else OURS
            found = [confirmed[load][ours] / rate for load, rate in others.items() if load.is_persistent is kept]
            met = sum(1 for ratio in found if ratio >= aims[kept])
            cells.append(f"{min(found):.2f} to {max(found):.2f}; {met} of {len(found)} at {aims[kept]:g} or more")
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small counts: does it run?")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each way (default {ROUNDS})")
    parser.add_argument("--write", action="store_true", help="tables into docs/measured.md, picture into docs/images")
    options = parser.parse_args()
    settings = BrokerSettings.from_env()
    rounds, share = (1, 0.01) if options.quick else (options.rounds, 1.0)
    confirmed_ways, unconfirmed_ways = installed(CONFIRMED, settings), installed(UNCONFIRMED, settings)
    confirmed: dict[Load, Rates] = {}
    unconfirmed: dict[Load, Rates] = {}
    for is_persistent, size, threads in product((True, False), SIZES, THREADS):
        load = Load(bytes(size), is_persistent, threads)
        many, few = round(share * COUNTS[size]), round(share * COUNTS_ONE_BY_ONE[size])
        counts = {name: few if name in WAITS_FOR_EACH else many for name in confirmed_ways}
        confirmed[load] = measure(settings, confirmed_ways, load, rounds, counts)
        unconfirmed[load] = measure(settings, unconfirmed_ways, load, rounds, dict.fromkeys(unconfirmed_ways, many))
        print(f"measured: {name_of(load)}", flush=True)
    lines = ["Confirmed; in brackets the part of Pika's limit:", "", *table(confirmed, LIMIT), ""]
    lines += ["Not confirmed; in brackets the part of raw Pika:", "", *table(unconfirmed, "SelectConnection"), ""]
    lines += [*ratios(confirmed, unconfirmed)]
    print("\n".join(lines))
    if options.write:
        write_block("publish", lines)
        shown = {name_of(load): rates for load, rates in confirmed.items() if load.is_persistent}
        (DOCS / "images" / "publish.svg").write_text(bars(shown, lambda rate: f"{rate:,.0f} messages/s"))


if __name__ == "__main__":
    main()
