"""Run part of the test suite in a clean clone, perhaps with another Python environment, and count what came out."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

# Three at a time, each with a broker of its own; a notebook stays in one process.
SIDE_BY_SIDE = {"broker": ("-n3", "--dist=load", "--maxschedchunk=1"), "notebooks": ("-n2", "--dist=loadfile")}
RUN_TIMEOUT = 2400  # seconds for one stage on one version
CLOSING = re.compile(r"(\d+) (passed|failed|skipped|deselected|warnings?|errors?)")


def run_tests(
    clone: Path, what: str, arguments: list[str], *, python: str = sys.executable, **environment: str
) -> tuple[dict[str, int], float, str]:
    """Run pytest in *clone* and return its counts, the seconds it took, and the end of what it printed.

    The output goes to a file beside the clone as it comes, so that a long run can be watched.
    """
    began = time.monotonic()
    log = clone.parent / f"{what}.log"
    beside = SIDE_BY_SIDE.get(what.split()[0].rstrip(","), ())
    with log.open("w") as output:
        subprocess.run(
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *beside, *arguments],
            cwd=clone, env={**os.environ, "PYTHONPATH": str(clone), "LABKIT_REQUIRE": "", **environment},
            stdout=output, stderr=subprocess.STDOUT, timeout=RUN_TIMEOUT, check=False,
        )  # fmt: skip
    printed = log.read_text(errors="replace")
    closing = printed.strip().splitlines()[-1] if printed.strip() else ""
    counts = {word: int(number) for number, word in CLOSING.findall(closing)}
    return counts, time.monotonic() - began, printed[-8000:]
