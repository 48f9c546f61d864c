"""The script as its owner sees it: the demo, the log, the terminal, the options, the exit."""

from __future__ import annotations

import ast
import dataclasses
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from conftest import ENDINGS, ROOT, SCRIPT, Notifier, Script, Start
from fake_bmw import VIN, Handler, Portal, Recorder, car, full_car
from fake_cardata import HEADER, HV_STATUS, PREDICTED, CarData, telematic

import i3charge
from i3charge import Reading


def unavailable(handler: Handler) -> None:
    handler.reply(503, "<html>Sorry</html>")


def minutes_ago(minutes: float) -> str:
    """Return an `updateTime` of the portal."""
    moment = datetime.now(timezone.utc) - timedelta(minutes=minutes)
    return f"{moment:%d.%m.%Y %H:%M:%S} UTC"


# --- The demo -------------------------------------------------------------------------


def test_demo_charges_to_full(
    start: Start, terminal_notifier: Notifier, webhook: Recorder, tmp_path: Path
) -> None:
    own = {"WEBHOOK_URL": webhook.url, "NOTIFY_AT": "80", "CARDATA_CLIENT_ID": "secret"}
    script = start("--demo", settings=own, macos="14.5")
    assert script.end(60) == 0

    lines = [re.split("  +", line) for line in script.stdout]
    assert lines[0][1:] == ["61%", "plugged in", "97 km"]
    assert lines[-1][1:] == ["100%", "full", "160 km"]
    assert {line[2] for line in lines[1:-1]} == {"charging"}
    charges = [int(line[1].rstrip("%")) for line in lines]
    assert charges == sorted(charges) and len(lines) == 28

    clocks = [line[4] for line in lines if len(line) > 4]
    assert len(set(clocks[:-2])) == 1  # until ten minutes are left in the story

    assert script.stderr[-1].endswith('That was a simulation. Next: README.md, "Your own car".')
    said = [line.split("  ", 1)[1].split(" ")[0] for line in script.stderr]
    expected = ["simulated", "Charging", "80%", "Full", "Fully", "That"]
    assert [word for word in said if not word.startswith("127")] == expected
    assert any("Full in about 10 min" in line for line in script.stderr)
    events = [json.loads(request.body)["event"] for request in webhook.accepted]
    assert events == ["started", "reached", "soon", "full"]
    assert json.loads(webhook.accepted[0].body)["title"] == "BMW i3 (demo)"
    messages = terminal_notifier.messages()
    assert sum(" charged" in message for message in messages) >= 5
    assert sorted(path.name for path in tmp_path.glob(".i3charge*")) == []


def test_demo_checks_the_settings_that_it_uses(start: Start) -> None:
    script = start("--demo", settings={"NTFY_ULR": "secret", "NOTIFY_AT": "many"})
    assert script.end() == 2
    assert script.stderr_with("NTFY_ULR is not a setting; did you mean NTFY_URL?") == 1
    assert script.stderr_with("NOTIFY_AT should be a whole number") == 1


def test_demo_needs_no_file_but_the_script(tmp_path: Path, env: dict[str, str]) -> None:
    copy = shutil.copy(SCRIPT, tmp_path)
    script = Script([sys.executable, str(copy), "--demo"], env, cwd=tmp_path)
    script.wait_for_readings(2)
    assert script.interrupt() == 130


# --- The log in a pipe ----------------------------------------------------------------


def test_line_in_a_pipe(portal: Portal, start: Start) -> None:
    portal.readings = [car(updateTime=minutes_ago(25))]
    script = start("--once", settings=portal.settings())
    assert script.end() == 0
    assert len(script.stdout) == len(portal.polls_seen()) == 1
    line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d   62%  charging    101 km  full \d\d:\d\d"
    assert re.fullmatch(line + "  car: 25 min ago", script.stdout[0])
    assert script.stderr == []


def test_json_has_every_field(portal: Portal, start: Start) -> None:
    portal.readings = [car(updateTime="22.11.2026 18:19:03 UTC", chargingTimeRemaining=None)]
    script = start("--once", "--json", settings=portal.settings())
    assert script.end() == 0
    found = json.loads(script.stdout[0])
    offset = datetime.fromisoformat(found.pop("time")).utcoffset()
    assert offset in (timedelta(hours=1), timedelta(hours=2))
    assert found == {
        "charge": 62.0,
        "predicted": False,
        "status": "charging",
        "plugged": True,
        "range": 101.0,
        "range_unit": "km",
        "minutes_to_full": None,
        "full_at": None,
        "reported": "2026-11-22T18:19:03+00:00",
    }


def test_duration_is_rounded_as_people_say_it() -> None:
    said = {0.4: "0 s", 119: "119 s", 120: "2 min", 3599: "1 h", 3600: "1 h", 8400: "2 h 20 min"}
    said |= {36_000: "10 h", 86_400: "24 h", 345_600: "4 days"}
    assert {seconds: i3charge.duration(seconds) for seconds in said} == said


NOW_S = time.time()
READING = Reading(62.0, NOW_S, "charging", range=101.0, range_unit="km", full_at_s=NOW_S + 2 * 3600)
PREDICTED_READING = dataclasses.replace(READING, predicted=True)
FULL_READING = dataclasses.replace(READING, percent=100, status="full")


class PartialDisk:
    """Stands in for `os.write`: each call takes only a few bytes."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, _: int, data: bytes) -> int:
        self.written += data[:5]
        return min(len(data), 5)


@pytest.mark.parametrize("as_json", [False, True])
def test_disk_that_takes_only_a_part_of_a_line_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_json: bool
) -> None:
    disk = PartialDisk()
    with open(tmp_path / "charge.log", "w") as stdout, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stdout)
        patched.setattr(os, "write", disk.write)
        log = i3charge.ChargeLog(as_json=as_json)
        log.write(READING)
        log.write(FULL_READING)
    lines = disk.written.decode().splitlines()
    if as_json:
        assert [json.loads(line)["charge"] for line in lines] == [62, 100]
    else:
        expected = [
            i3charge.text_line(each, i3charge.DATE_IN_FILE) for each in (READING, FULL_READING)
        ]
        assert lines == expected
    assert disk.written.endswith(b"\n") and log.works


# --- The log on a terminal ------------------------------------------------------------


class Terminal:
    """A terminal of the script: `written` is its output, `text` the same without titles."""

    def __init__(self, columns: int = 80) -> None:
        self.ours, self.theirs = pty.openpty()
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, size)
        self.written = ""

    def read_until(self, text: str = "", seconds: float = 30) -> None:
        """Read until there is the text, or without one until all have closed it."""
        limit = time.monotonic() + seconds
        while not text or text not in self.written:
            left = limit - time.monotonic()
            ready = select.select([self.ours], [], [], max(0, left))[0]
            assert ready, f"waited in vain for {text!r}: {self.written!r}"
            try:
                chunk = os.read(self.ours, 65536)
            except OSError:  # Linux says so at the end
                chunk = b""
            if not chunk:
                assert not text, f"ended without {text!r}: {self.written!r}"
                return
            self.written += chunk.decode()

    def start(self, start: Start, *arguments: str, **options: Any) -> Script:
        """Start the script with both its outputs here."""
        script = start(*arguments, stdout=self.theirs, stderr=self.theirs, **options)
        os.close(self.theirs)
        return script

    @property
    def text(self) -> str:
        return re.sub("\033]2;[^\a]*\a|\033\\[2[23];2t", "", self.written)

    @property
    def titles(self) -> list[str]:
        return re.findall("\033]2;([^\a]*)\a", self.written)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    os.close(terminal.ours)


COLOUR = re.compile("\033\\[[0-9]*m")
RED, DIM = "\033[31m", "\033[2m"
GREEN_BAR = "\033[32m██████▎░░░\033[0m  "
FULL_BAR = f"\033[36m{'█' * 10}\033[0m  "

LINES: dict[str, tuple[dict[str, str], int, str, Reading, str]] = {
    "80 columns": ({}, 80, "utf-8", READING, GREEN_BAR),
    "60 columns": ({}, 60, "utf-8", READING, ""),
    "NO_COLOR": ({"NO_COLOR": "1"}, 80, "utf-8", READING, "██████▎░░░  "),
    "ASCII": ({"NO_COLOR": "1"}, 80, "ascii", READING, "######----  "),
    "predicted": ({}, 80, "utf-8", PREDICTED_READING, GREEN_BAR),
    "full": ({}, 80, "utf-8", FULL_READING, FULL_BAR),
}


@pytest.mark.parametrize("name", LINES)
def test_line_suits_the_terminal(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    environment, columns, encoding, reading, bar = LINES[name]
    terminal = Terminal(columns)
    columns_of = {"COLUMNS": str(columns)}  # else of the terminal that runs the tests
    stdout = os.fdopen(terminal.theirs, "w", encoding=encoding)
    with monkeypatch.context() as patched, stdout:
        patched.setattr(os, "environ", {"TERM": "xterm", **columns_of, **environment})
        patched.setattr(sys, "stdout", stdout)
        i3charge.ChargeLog(as_json=False).write(reading)
        terminal.read_until("\n")
    os.close(terminal.ours)
    start = rf"\w{{3}} \d\d:\d\d  {reading.percent_text:>4}  "
    line = rf"{start}{re.escape(bar)}{reading.status:<10}  101 km  full \d\d:\d\d\r\n"
    assert re.fullmatch(line, terminal.text), terminal.text
    assert len(COLOUR.sub("", terminal.text).rstrip()) < columns


@pytest.mark.parametrize(
    ("percent", "bar"), [(55, "█████▌░░░░"), (99.9, "█████████▉"), (100, "█" * 10)]
)
def test_bar_is_full_only_at_100_percent(percent: float, bar: str) -> None:
    assert i3charge.bar_of(percent, "░▏▎▍▌▋▊▉█") == bar


def colour_of(terminal: Terminal, text: str) -> str:
    """Of the line that holds the text."""
    lines = [line.lstrip("\a") for line in terminal.text.splitlines() if text in line]
    assert lines, terminal.text
    found = COLOUR.match(lines[0])
    return found[0] if found else ""


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_night_on_a_terminal(
    portal: Portal,
    start: Start,
    terminal_notifier: Notifier,
    terminal: Terminal,
    environment: dict[str, str],
) -> None:
    """A charge stops, goes on to full, and then BMW refuses the sign-in."""
    portal.readings = [
        car(updateTime=minutes_ago(180)),
        unavailable,
        car("63.0", charging_status="CHARGINGENDED", updateTime=minutes_ago(120)),
        full_car(updateTime=minutes_ago(60)),
        portal.expire_token,
    ]
    portal.logins = [None, lambda handler: handler.reply(401, {"error": "invalid_client"})]
    script = terminal.start(
        start,
        settings=portal.settings(),
        constants={"LEAST_LONGEST_PAUSE_S": 0},
        macos="14.5",
        extra_env=environment,
    )
    terminal.read_until()
    assert script.end() == 1
    texts = ["when news is due", "is out of order", "refuses the login", "Charging stopped"]
    found = [colour_of(terminal, text) for text in [*texts, "Fully charged"]]
    if environment:
        assert found == [""] * 5
        assert not COLOUR.search(terminal.written)
    else:
        assert found[:3] == [DIM, RED, RED]
        assert not {RED, DIM} & set(found[3:])
        assert GREEN_BAR in terminal.text
    assert terminal.text.count("\a") == 3  # stopped, full, refused
    if "TERM" in environment:
        assert "\033" not in terminal.written
        return
    put_aside, put_back = "\033[22;2t", "\033[23;2t"
    assert terminal.titles[:4] == [
        "i3 62% charging",
        "i3: no reading",
        "i3 63% plugged in",
        "i3 100% full",
    ]
    assert terminal.titles[-1] == ""
    assert terminal.written.count(put_aside) == terminal.written.count(put_back) == 1
    assert "\n" not in terminal.written.partition(put_back)[2]


def test_sign_in_on_a_terminal_does_not_look_like_an_error(
    cardata: CarData, start: Start, terminal_notifier: Notifier, terminal: Terminal
) -> None:
    cardata.pending = 10**6
    script = terminal.start(start, settings=cardata.settings(), macos="14.5")
    terminal.read_until("It is good until ")
    terminal.read_until("i3: waiting for you")
    terminal_notifier.wait_for_calls(1)
    assert script.interrupt() == 130
    terminal.read_until()
    lines = [COLOUR.sub("", line) for line in terminal.text.splitlines()]
    first = next(n for n, line in enumerate(lines) if "Sign in at BMW: open" in line)
    assert lines[first + 1 : first + 4] == [
        "https://customer.bmwgroup.com/oneid/link?user_code=CODE-1",
        "and confirm the code",
        "CODE-1",
    ]
    assert lines[first + 4].startswith("It is good until ")
    assert RED not in terminal.text


@pytest.mark.parametrize(("number", "status"), ENDINGS)
def test_signal_ends_it_with_the_title_put_back(
    portal: Portal, start: Start, terminal: Terminal, number: signal.Signals, status: int
) -> None:
    settings = {**portal.settings(), "LOG_INTERVAL": "60000"}
    script = terminal.start(start, settings=settings)
    terminal.read_until("i3 62% charging")
    script.process.send_signal(number)
    assert script.end() == status
    terminal.read_until()
    assert terminal.written.endswith("\033]2;\a\033[23;2t")
    assert "Traceback" not in terminal.written


def test_json_on_a_terminal_is_json_alone(portal: Portal, start: Start, terminal: Terminal) -> None:
    script = terminal.start(start, "--once", "--json", settings=portal.settings())
    terminal.read_until()
    assert script.end() == 0
    assert json.loads(terminal.written)["charge"] == 62.0


# --- The options ----------------------------------------------------------------------


def test_once_without_a_reading_is_status_1(portal: Portal, start: Start) -> None:
    portal.readings = [unavailable]
    script = start("--once", settings=portal.settings())
    assert script.end() == 1
    (line,) = script.stderr
    assert line.endswith("is out of order when asked for the car's status (HTTP 503)")


def test_verbose_shows_what_the_portal_answered(portal: Portal, start: Start) -> None:
    portal.readings = [car(updateTime=f"of {VIN.lower()}", gps_lat="52.37")]
    script = start("--once", "--verbose", settings=portal.settings())
    assert script.end() == 0
    assert script.stderr_with("asked 127.0.0.1 for the login: HTTP 302") == 1
    assert script.stderr_with("asked 127.0.0.1 for the car's status: HTTP 200") == 1
    shown = {"chargingLevelHv": "62.0", "chargingHVStatus": "CHARGING", "updateTime": ""}
    for name, value in shown.items():
        assert re.search(f"{name}.*{value}", script.output)
    assert VIN.lower() not in script.output
    assert "52.37" not in script.output


def test_verbose_shows_what_cardata_answered(cardata: CarData, start: Start, kept: Path) -> None:
    cardata.keep(kept)
    position = "vehicle.cabin.infotainment.navigation.currentLocation.latitude"
    data = telematic(header=(f"of {VIN.lower()}", 60))
    data["telematicData"][position] = {"value": "52.37"}
    cardata.readings = [lambda handler: handler.reply(200, data)]
    script = start("--once", "--verbose", settings=cardata.settings())
    assert script.end() == 0
    for name, value in {HEADER: "", PREDICTED: "62", HV_STATUS: "CHARGING"}.items():
        assert re.search(f"{name}.*{value}", script.output)
    assert VIN.lower() not in script.output
    assert "52.37" not in script.output


# --- One file that runs by itself -----------------------------------------------------


def test_script_declares_the_same_packages_as_the_requirements() -> None:
    """The script has them in a block that PEP 723 defines."""
    block = r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    (found,) = re.finditer(block, SCRIPT.read_text(encoding="utf-8"))
    toml = "".join(line[2:] for line in found["content"].splitlines(keepends=True))
    # Texts in double quotes, and lists of them, are the same in TOML and Python.
    pairs = re.findall(r'(?ms)^([a-z-]+) = ("[^"]*"|\[.*?^\])$', toml)
    values = {name: ast.literal_eval(value) for name, value in pairs}
    wanted = (ROOT / "requirements.txt").read_text().replace('"', "'").splitlines()
    assert values == {"requires-python": ">=3.9", "dependencies": wanted}


VERSION = f"i3charge {i3charge.__version__}\n"
BESIDE_PYTHON = str(Path(sys.executable).parent)


def test_script_runs_in_an_activated_environment(env: dict[str, str]) -> None:
    env["PATH"] = os.pathsep.join([BESIDE_PYTHON, env["PATH"]])
    command = ["./i3charge.py", "--version"]
    assert subprocess.check_output(command, cwd=ROOT, env=env, text=True) == VERSION


def test_script_runs_with_uv(tmp_path: Path) -> None:
    uv = shutil.which("uv", path=BESIDE_PYTHON) or shutil.which("uv")
    if not uv:
        pytest.skip("no uv here")
    env = {**os.environ, "UV_CACHE_DIR": str(tmp_path), "UV_HTTP_TIMEOUT": "10"}
    run = [uv, "run", "--quiet", "--python", sys.executable, "--script", "i3charge.py"]
    done = subprocess.run(
        [*run, "--version"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    if done.returncode and re.search("(?i)network|connect|dns|offline|fetch", done.stderr):
        pytest.skip("no package registry answers")
    assert done.stdout == VERSION, done.stderr


def test_missing_package_is_reported_in_one_line(tmp_path: Path, start: Start) -> None:
    (tmp_path / "requests.py").write_text("raise ImportError('No module named requests')")
    script = start("--demo", extra_env={"PYTHONPATH": str(tmp_path)})
    assert script.end() == 1
    (line,) = script.stderr
    assert line.startswith("i3charge: No module named requests; README.md")


# --- The exit -------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), ENDINGS)
def test_signal_ends_the_wait_without_another_word(
    portal: Portal, start: Start, number: signal.Signals, status: int
) -> None:
    script = start(settings={**portal.settings(), "LOG_INTERVAL": "60000"})
    script.wait_for_readings(1)
    script.process.send_signal(number)
    assert script.end() == status
    armed = "ConnectedDrive portal, every 60 s and when news is due. Phone: none"
    assert [line[21:] for line in script.stderr] == [armed]


@pytest.mark.parametrize(("number", "status"), ENDINGS)
def test_signal_ends_a_request_to_bmw(
    portal: Portal, start: Start, number: signal.Signals, status: int
) -> None:
    portal.readings = [lambda _: portal.closing.wait(60)]
    script = start(settings=portal.settings())
    portal.wait_for(portal.polls_seen, "a poll")
    script.process.send_signal(number)
    assert script.end() == status
    assert script.stdout == script.news == []


def test_ctrl_c_ends_the_imports(tmp_path: Path, start: Start) -> None:
    here = tmp_path / "importing"
    (tmp_path / "requests.py").write_text(
        f"import pathlib, time; pathlib.Path({str(here)!r}).touch(); time.sleep(60)"
    )
    script = start("--demo", extra_env={"PYTHONPATH": str(tmp_path)})
    limit = time.monotonic() + 30
    while not here.exists():
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert script.interrupt() == -signal.SIGINT
    assert script.output == ""


def test_ctrl_c_ends_a_notification_that_hangs(
    portal: Portal, start: Start, terminal_notifier: Notifier
) -> None:
    terminal_notifier.does("time.sleep(60)")
    portal.readings = [car("60.0"), car("65.0")]
    script = start(settings=portal.settings(), macos="14.5")
    terminal_notifier.wait_for_calls(1)
    assert script.interrupt() == 130
    assert script.news == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_signal_that_the_parent_ignores_stays_ignored(
    portal: Portal, start: Start, number: signal.Signals
) -> None:
    """nohup ignores SIGHUP, and a script SIGINT for what it runs in the background."""

    def ignore() -> None:
        signal.signal(number, signal.SIG_IGN)

    script = start(settings=portal.settings(), preexec_fn=ignore)
    script.wait_for_readings(1)
    script.process.send_signal(number)
    script.wait_for_readings(len(script.stdout) + 3)
    script.process.send_signal(signal.SIGTERM)
    assert script.end() == 143


@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2), (0, 1, 2)])
def test_closed_stream_is_no_obstacle(
    portal: Portal, start: Start, closed: tuple[int, ...], kept: Path
) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    script = start("--once", settings=portal.settings(), preexec_fn=close)
    assert script.end() == 0
    assert (portal.served, script.stderr) == (1, [])
    assert len(script.stdout) == (1 not in closed)
    assert json.loads(kept.read_text())["last"]["percent"] == 62  # and no line of the log
