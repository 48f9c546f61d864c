"""What the logger costs, and how late it tells its news. By hand: python tests/benchmark.py

The ratios are to a Python that merely imports `requests` and `dotenv`, measured in turns on
the same machine: their medians, and the least and most.
"""

from __future__ import annotations

import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nights
from conftest import SCRIPT, write_settings
from fake_bmw import Portal

RUNS = 15
POLLS = 2000
IMPORTS = "import sys, requests, dotenv; print('imported', flush=True); sys.stdin.read()"


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {"PATH": os.environ["PATH"], "HOME": tempfile.gettempdir()}
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    process.send_signal(number)
    process.communicate()


def first_line(command: Sequence[str]) -> tuple[float, int]:
    """The seconds to a program's first line, and its memory then, in KiB."""
    began_s = time.perf_counter()
    process = start(command)
    assert process.stdout and process.stdout.readline()
    seconds = time.perf_counter() - began_s
    memory = memory_kib(process)
    end(process, signal.SIGKILL)
    return seconds, memory


def memory_kib(process: subprocess.Popen[bytes]) -> int:
    ps = ["ps", "-o", "rss=", "-p", str(process.pid)]
    return int(subprocess.run(ps, capture_output=True, check=True).stdout)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    ratios = [our / their for our, their in zip(ours, theirs)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def row(what: str, measured: str, aim: str) -> None:
    print(f"| {what} | {measured} | {aim} |", flush=True)


def main() -> None:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores\n")
    row("what", "measured", "aim")
    row("---", "---", "---")
    portal = Portal()
    with tempfile.TemporaryDirectory() as folder:
        settings = {**portal.settings(), "LOG_INTERVAL": "60000"}
        file = write_settings(Path(folder, "i3.env"), settings)
        script = [str(SCRIPT), "--env-file", str(file)]

        ours, theirs = [], []
        for _ in range(RUNS):
            ours.append(first_line(script))
            theirs.append(first_line(["-c", IMPORTS]))
        seconds = ratio([run[0] for run in ours], [run[0] for run in theirs])
        memory = ratio([run[1] for run in ours], [run[1] for run in theirs])
        row("a start to the first reading", seconds, "at most 1.45")
        row("memory then", memory, "at most 1.3")

        write_settings(file, {**settings, "LOG_INTERVAL": "1"})
        before = len(portal.requests)
        served = portal.served
        with open(os.devnull, "wb") as nowhere:
            process = subprocess.Popen(
                [sys.executable, *script], stdout=nowhere, stderr=nowhere, env={"HOME": folder}
            )
            portal.wait_for(lambda: portal.served >= served + POLLS, "polls", 300)
            at_first = memory_kib(process)  # until here Python fills its pools
            portal.wait_for(lambda: portal.served >= served + 2 * POLLS, "polls", 300)
            growth = memory_kib(process) - at_first
            end(process, signal.SIGINT)
        seen = portal.requests[before:]
        polls = [request for request in seen if request.method == "GET"]
        row(f"logins, {2 * POLLS} readings", str(len(seen) - len(polls)), "1")
        requests_a_reading = len(polls) / (portal.served - served)
        row("requests a reading", f"{requests_a_reading:.3f}", "1")
        row(f"growth of memory, the last {POLLS} readings", f"{growth} KiB", "none")
    portal.close()

    print("\nHow late the news is told at CarData: minutes, median / worst, of simulated nights\n")
    nights.table()


if __name__ == "__main__":
    main()
