"""What the logger costs, as ratios measured in one run, and how late it tells its news.

By hand: python tests/benchmark.py, or only the news, at once: python tests/nights.py
"""

from __future__ import annotations

import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import nights
from conftest import SCRIPT, write_settings
from fake_bmw import Portal

START_RUNS = 15
CPU_RUNS = 5
CPU_POLLS = 1000
IMPORTS = "import sys, requests, dotenv; print('imported', flush=True); sys.stdin.read()"
BARE_LOOP = """
import sys, requests
session = requests.Session()
for _ in range(int(sys.argv[2])):
    session.get(sys.argv[1], headers={"Authorization": sys.argv[3]}).json()
"""


class Run:
    """A process that is measured; `served` counts what `portal` has answered to it."""

    def __init__(self, portal: Portal, command: Sequence[str]) -> None:
        self._portal = portal
        self._served_before = portal.served
        self._requests_before = len(portal.requests)
        self.started = time.perf_counter()
        environment = {"PATH": os.environ["PATH"], "HOME": tempfile.gettempdir()}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        # Else a full pipe would hold the script back.
        self._first_line = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for _ in self.process.stdout:
            self._line_seconds = time.perf_counter() - self.started
            break
        self._first_line.set()
        for _ in self.process.stdout:
            pass

    def seconds_to_first_line(self) -> float:
        assert self._first_line.wait(60)
        return self._line_seconds

    def wait_for_polls(self, count: int) -> None:
        wanted = self._served_before + count
        self._portal.wait_for(lambda: self._portal.served >= wanted, f"{count} polls", 600)

    def peak_kib(self) -> int:
        """Where the kernel does not tell the peak, what is used now."""
        status = Path(f"/proc/{self.process.pid}/status")
        if status.exists():
            return int(status.read_text().split("VmHWM:")[1].split()[0])
        return self.rss_kib()

    def rss_kib(self) -> int:
        ps = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
        return int(subprocess.run(ps, capture_output=True, check=True).stdout)

    def requests(self) -> list[object]:
        return list(self._portal.requests[self._requests_before :])

    def end(self, number: int = 0) -> float:
        """The CPU seconds of the ended process; `number` is a signal to send first."""
        if number:
            self.process.send_signal(number)
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_utime + usage.ru_stime


def row(what: str, measured: str, aim: str) -> None:
    print(f"| {what} | {measured} | {aim} |", flush=True)


def main() -> None:
    portal = Portal()
    with tempfile.TemporaryDirectory() as folder:

        def script(interval_ms: int, *options: str) -> Run:
            settings = {**portal.settings(), "LOG_INTERVAL": str(interval_ms)}
            file = write_settings(Path(folder, "settings.env"), settings)
            return Run(portal, [str(SCRIPT), "--env-file", str(file), *options])

        packages = ", ".join(f"{name} {version(name)}" for name in ("requests", "python-dotenv"))
        print(
            f"{platform.python_implementation()} {platform.python_version()}, {packages},"
            f" {platform.system()} {platform.machine()}, {os.cpu_count()} cores\n"
        )
        row("what", "measured", "aim")
        row("---", "---", "---")

        times, peaks = [], []
        for _ in range(START_RUNS):
            ours = script(60_000)
            our_time, our_peak = ours.seconds_to_first_line(), ours.peak_kib()
            ours.end(signal.SIGKILL)
            theirs = Run(portal, ["-c", IMPORTS])
            their_time, their_peak = theirs.seconds_to_first_line(), theirs.peak_kib()
            theirs.end(signal.SIGKILL)
            times.append(our_time / their_time)
            peaks.append(our_peak / their_peak)
        label = "over merely importing `requests` and `dotenv`"
        row(f"start to first reading, {label}", f"{statistics.median(times):.2f}", "1.22")
        row(f"peak memory, {label}", f"{statistics.median(peaks):.2f}", "1.15")

        run = script(2)
        run.wait_for_polls(1000)
        seen = run.requests()
        polls = [r for r in seen if r.method == "GET"][:1000]  # type: ignore[attr-defined]
        logins = [r for r in seen if r.method == "POST"]  # type: ignore[attr-defined]
        ports = {r.connection for r in seen}  # type: ignore[attr-defined]
        run.end(signal.SIGINT)
        row("requests a reading, 1,000 polls", f"{len(polls) / 1000:g}", "1")
        row("connections, 1,000 polls", str(len(ports)), "1")
        row("logins, 1,000 polls", str(len(logins)), "1")

        ratios = []
        for _ in range(CPU_RUNS):
            run = script(1, "--once")
            run.wait_for_polls(1)
            once = run.end()
            run = script(1)
            run.wait_for_polls(CPU_POLLS)
            many = run.end(signal.SIGINT)
            served = len([r for r in run.requests() if r.method == "GET"])  # type: ignore[attr-defined]
            address = portal.polls_seen()[-1].path.lstrip("/")
            bare = []
            for count in (1, CPU_POLLS):
                bearer = f"Bearer {portal.tokens[-1]}"
                command = ["-c", BARE_LOOP, portal.url + address, str(count), bearer]
                bare.append(Run(portal, command).end())
            ours_each = (many - once) / (served - 1)
            ratios.append(ours_each / ((bare[1] - bare[0]) / (CPU_POLLS - 1)))
        label = "CPU a poll, over a bare loop of `requests.Session().get().json()`"
        row(label, f"{statistics.median(ratios):.2f}", "1.45")

        run = script(1)
        run.wait_for_polls(1000)
        before = run.rss_kib()
        run.wait_for_polls(20_000)
        growth = run.rss_kib() - before
        run.end(signal.SIGINT)
        row("growth of memory from poll 1,000 to 20,000", f"{growth} KiB", "1024 KiB")

        run = script(50)
        run.wait_for_polls(1000)
        starts = [r.time for r in run.requests() if r.method == "GET"]  # type: ignore[attr-defined]
        run.end(signal.SIGINT)
        lateness = [start - 0.05 * n for n, start in enumerate(starts[:1000])]
        late_ms = (lateness[-1] - min(lateness)) * 1000
        row("poll 1,000 at 50 ms starts after its tick", f"{late_ms:.1f} ms", "10 ms")
    portal.close()
    print("\nHow late the news is told at CarData: minutes, median / worst, of simulated nights\n")
    nights.table()


if __name__ == "__main__":
    main()
