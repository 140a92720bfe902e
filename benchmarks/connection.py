"""What one I/O thread for all connections costs, compared with a thread each: numbers and ratios from one run.

    LABKIT_URL=... python benchmarks/connection.py [--quick] [--write]

A thread each is raw Pika: a ``SelectConnection`` on an ``IOLoop`` of its own. Every count of connections is measured
in a process of its own, for memory that was given back is not always given back to the system. ``--write`` puts
the table into docs/measured.md.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pika
from pika.adapters.select_connection import IOLoop
from report import write_block

from labkit import BrokerSettings, Connection
from labkit.connection.io_thread import SHARED

COUNTS = (1, 10, 100)
IDLE = 20.0  # seconds; the heartbeat is 2 s, so each connection says and hears something twenty times
HOPS = 2000
CONNECTS = 30


def memory() -> int:
    """Bytes in use by this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not say how much memory a process uses")


def cpu() -> float:
    """Processor seconds used by this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def open_shared(settings: BrokerSettings, count: int) -> list[Connection]:
    return [Connection(settings).open() for _ in range(count)]


def open_a_thread_each(settings: BrokerSettings, count: int) -> list[threading.Thread]:
    threads = []
    for _ in range(count):
        is_open = threading.Event()
        loop = IOLoop()
        connection = pika.SelectConnection(
            settings.to_pika()[0], on_open_callback=lambda _, e=is_open: e.set(), custom_ioloop=loop
        )
        thread = threading.Thread(target=loop.start, daemon=True)
        thread.connection = connection  # type: ignore[attr-defined]
        thread.start()
        if not is_open.wait(30):
            raise TimeoutError("not open within 30 s")
        threads.append(thread)
    return threads


def measure_idle(settings: BrokerSettings, way: str, count: int, idle: float) -> dict[str, float]:
    """Memory per connection, and processor seconds per connection and minute, while nothing is asked of it."""
    opener = open_shared if way == "one loop" else open_a_thread_each
    warm = opener(settings, 1)  # what is paid once
    before, threads = memory(), threading.active_count()
    held = opener(settings, count)
    per_connection = (memory() - before) / count
    began, used = time.monotonic(), cpu()
    time.sleep(idle)
    minutes = (time.monotonic() - began) / 60
    result = {
        "bytes": per_connection,
        "cpu": (cpu() - used) / minutes / (count + 1),
        "threads": threading.active_count() - threads,
    }
    del warm, held
    return result


def measure_in_a_process(settings: BrokerSettings, way: str, count: int, idle: float) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", way, str(count), str(idle)],
        input=settings.to_url(mask=False),  # not an argument: those are for everybody to read
        capture_output=True, text=True, timeout=idle + 300, check=True,
    )  # fmt: skip
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure_speed(settings: BrokerSettings, hops: int, connects: int) -> dict[str, float]:
    """Medians in seconds: caller to loop to caller; connect and one channel, ours and BlockingConnection's."""
    ours, blocking = [], []
    with Connection(settings):
        times = []
        for _ in range(hops):
            began = time.perf_counter()
            SHARED.call(lambda: None, timeout=10)
            times.append(time.perf_counter() - began)
        for _ in range(connects):  # in turn, for a machine has moods
            began = time.perf_counter()
            connection = Connection(settings).open()
            connection.channel()
            ours.append(time.perf_counter() - began)
            connection.close()
            began = time.perf_counter()
            raw = pika.BlockingConnection(settings.to_pika())
            raw.channel()
            blocking.append(time.perf_counter() - began)
            raw.close()
    return {
        "hop": statistics.median(times),
        "connect": statistics.median(ours),
        "blocking": statistics.median(blocking),
    }


def rows(settings: BrokerSettings, quick: bool) -> list[list[str]]:
    speed = measure_speed(settings, 200 if quick else HOPS, 3 if quick else CONNECTS)
    table = [
        ["caller to loop to caller, median", f"{speed['hop'] * 1e6:.0f} µs", "", ""],
        [
            "connect and open a channel, median",
            f"{speed['connect'] * 1e3:.1f} ms",
            f"{speed['blocking'] * 1e3:.1f} ms (BlockingConnection)",
            f"{speed['connect'] / speed['blocking']:.2f}",
        ],
    ]
    for count in (1, 5) if quick else COUNTS:
        one, each = (
            measure_in_a_process(settings, way, count, 2.0 if quick else IDLE) for way in ("one loop", "a thread each")
        )
        table += [
            [f"{count} idle: memory a connection", *pair(one["bytes"] / 1024, each["bytes"] / 1024, "KiB", 0)],
            [
                f"{count} idle: processor ms a connection and minute",
                *pair(one["cpu"] * 1e3, each["cpu"] * 1e3, "ms", 1),
            ],
            [f"{count} idle: threads added", f"{one['threads']:.0f}", f"{each['threads']:.0f}", ""],
        ]
    return table


def pair(one: float, each: float, unit: str, digits: int) -> list[str]:
    ratio = f"{one / each:.2f}" if each > 0 else ""
    return [f"{one:.{digits}f} {unit}", f"{each:.{digits}f} {unit}", ratio]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small counts: does it run?")
    parser.add_argument("--write", action="store_true", help="put the table into docs/measured.md")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = BrokerSettings.from_url(sys.stdin.read()) if options.child else BrokerSettings.from_env()
    settings = settings.replace(heartbeat=2)
    if options.child:
        way, count, idle = options.child
        print(json.dumps(measure_idle(settings, way, int(count), float(idle))))
        return
    lines = ["| what | one loop | a thread each | ratio |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows(settings, options.quick)]
    print("\n".join(lines))
    if options.write:
        write_block("connection", lines)


if __name__ == "__main__":
    main()
