"""The script as its owner sees it: the log, the terminal, the options, how it ends."""

from __future__ import annotations

import ast
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
from conftest import ROOT, SCRIPT, Notifier, Script, Start, closing, write_settings
from fake_bmw import VIN, Handler, Portal, Recorder, car, full_car
from fake_cardata import CLIENT_ID, HEADER, HV_STATUS, PREDICTED, CarData, telematic

import i3charge
from i3charge import Reading


def unavailable(handler: Handler) -> None:
    handler.reply(503, "<html>Sorry</html>")


def idle_car(charge: str) -> dict[str, Any]:
    words = dict.fromkeys(("charging_status", "chargingSystemStatus", "chargingTimeRemaining"))
    return car(charge, chargingHVStatus="NOT_CHARGING", **words)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Where the script keeps what it must remember: beside the settings file."""
    return tmp_path / ".i3charge.json"


@pytest.fixture
def cardata() -> Iterator[CarData]:
    yield from closing(CarData())


# The demo


def test_demo_charges_to_full(
    portal: Portal,
    start: Start,
    terminal_notifier: Notifier,
    webhook: Recorder,
    ntfy: Recorder,
    kept: Path,
) -> None:
    """It tells the owner's phone, and leaves the owner's car alone."""
    environment = {"WEBHOOK_URL": webhook.url, "http_proxy": "http://127.0.0.1:9/"}
    settings = {**portal.settings(), "NTFY_URL": f"{ntfy.url}secret", "NOTIFY_AT": "80"}
    script = start("--demo", settings=settings, mac=True, extra_env=environment)
    assert script.end(120) == 0
    charges = [int(line.split()[2].rstrip("%")) for line in script.stdout]
    assert charges == sorted(charges)
    assert (charges[0], charges[-1]) == (61, 100)
    statuses = list(dict.fromkeys(line.split()[3] for line in script.stdout))
    assert statuses == ["plugged", "charging", "full"]
    soon = r"Full in about \d+ min, at \d\d:\d\d"
    full = r"Fully charged: 61 → 100% in \d+ s\. The charging station can be freed\."
    hosts = r"127\.0\.0\.1, 127\.0\.0\.1"
    armed = rf"simulated i3, every 1 s and when news is due\. Phone: {hosts}"
    told = r"127\.0\.0\.1 was told: .*"
    said = [line[21:] for line in script.stderr]
    reached = "80% reached"
    for pattern, line in zip(
        (armed, reached, told, told, soon, told, told, full, told, told), said
    ):
        assert re.fullmatch(pattern, line), said
    assert len(said) == 10
    shown = terminal_notifier.messages()
    assert [m.split("%")[0] for m in shown[:-2]] == ["67", "73", "79", "80", "86", "92"]
    for messages in (webhook.messages(), ntfy.messages(), [reached, *shown[-2:]]):
        assert re.fullmatch(f"{reached}\n{soon}\n{full}", "\n".join(messages))
    assert all("BMW i3 (demo)" in call for call in terminal_notifier.calls())
    assert portal.requests == []
    assert not kept.exists()


def test_demo_checks_the_settings_that_it_uses(start: Start) -> None:
    script = start("--demo", settings={"NTFY_ULR": "secret", "NOTIFY_AT": "many"})
    assert script.end() == 2
    assert script.stderr_with("NTFY_ULR is not a setting; did you mean NTFY_URL?") == 1
    assert script.stderr_with("NOTIFY_AT should be a whole number") == 1


def test_demo_runs_where_the_script_is_copied_alone(tmp_path: Path, env: dict[str, str]) -> None:
    copy = shutil.copy(SCRIPT, tmp_path)
    script = Script([sys.executable, str(copy), "--demo"], env, cwd=tmp_path)
    script.wait_for_readings(2)
    assert script.interrupt() == 130


# The log in a pipe


def test_plain_line_in_a_pipe(portal: Portal, start: Start) -> None:
    old = f"{datetime.now(timezone.utc) - timedelta(minutes=25):%d.%m.%Y %T} UTC"
    portal.readings = [car(updateTime=old)]
    script = start("--once", settings=portal.settings())
    assert script.end() == 0
    assert len(script.stdout) == len(portal.polls_seen()) == 1
    line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  62%  charging  101 km  full about \d\d:\d\d"
    assert re.fullmatch(line + r"  \(car last reported 25 min ago\)", script.stdout[0])
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
        "range": 101.0,
        "range_unit": "km",
        "minutes_to_full": None,
        "full_at": None,
        "reported": "2026-11-22T18:19:03+00:00",
    }


# The log on a terminal


class Terminal:
    """What is written to it is in `written`, without its titles in `text`."""

    def __init__(self, columns: int) -> None:
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

    @property
    def text(self) -> str:
        return re.sub("\033]2;[^\a]*\a|\033\\[2[23];2t", "", self.written)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        os.close(terminal.ours)


COLOUR = re.compile("\033\\[[0-9]*m")
FULL_BAR = f"\033[36m{'█' * 10}\033[0m  "
GREEN_BAR = "\033[32m██████▎░░░\033[0m  "
READING = Reading(62.0, "charging", 101.0, "km", datetime.now(timezone.utc) + timedelta(hours=2))

LINES: dict[str, tuple[dict[str, str], int, str, Reading, str]] = {
    "80 columns": ({}, 80, "utf-8", READING, GREEN_BAR),
    "70 columns": ({}, 70, "utf-8", READING, GREEN_BAR),
    "69 columns": ({}, 69, "utf-8", READING, ""),
    "NO_COLOR": ({"NO_COLOR": "1"}, 80, "utf-8", READING, "██████▎░░░  "),
    "ASCII": ({"NO_COLOR": "1"}, 80, "ascii", READING, "######----  "),
    "full": ({}, 80, "utf-8", READING._replace(charge=100, status="full"), FULL_BAR),
}


@pytest.mark.parametrize("name", LINES)
def test_line_suits_the_terminal(
    terminals: list[Terminal], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    environment, columns, encoding, reading, bar = LINES[name]
    terminals.append(Terminal(columns))
    with (
        monkeypatch.context() as patched,
        os.fdopen(terminals[0].theirs, "w", encoding=encoding) as stdout,
    ):
        columns_of = {"COLUMNS": str(columns)}  # else of the terminal that runs the tests
        patched.setattr(os, "environ", {"TERM": "xterm", **columns_of, **environment})
        patched.setattr(sys, "stdout", stdout)
        i3charge.ChargeLog(as_json=False).write(reading, i3charge.local_time())
        terminals[0].read_until("\n")
    start = rf"\w{{3}} \d\d:\d\d  {reading.percent:>4}  "
    line = rf"{start}{re.escape(bar)}{reading.status:<10}  101 km  full \d\d:\d\d\r\n"
    assert re.fullmatch(line, terminals[0].text), terminals[0].text
    assert len(COLOUR.sub("", terminals[0].text).rstrip()) < columns


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
    terminals: list[Terminal],
    environment: dict[str, str],
) -> None:
    """A charge that stops and goes on to full, then a sign-in that is refused."""
    portal.readings = [car(), unavailable, idle_car("63.0"), full_car(), portal.expire_token]
    portal.logins = [None, lambda handler: handler.reply(401, {"error": "invalid_client"})]
    night = Terminal(80)
    terminals.append(night)
    script = start(
        settings=portal.settings(),
        constants={"LONGEST_BACKOFF_S": 0},
        mac=True,
        extra_env=environment,
        stdout=night.theirs,
        stderr=night.theirs,
    )
    os.close(night.theirs)
    night.read_until()
    assert script.end() == 1
    armed, failed, refused = "every 0 s and when", "is out of order", "refuses the login"
    stopped, full = "Charging stopped at 63% (plugged in)", "Fully charged"
    found = [colour_of(night, text) for text in (armed, failed, refused, stopped, full)]
    if environment:
        assert found == [""] * 5
        assert not COLOUR.search(night.written)
    else:
        red, dim = "\033[31m", "\033[2m"
        assert found[:3] == [dim, red, red]
        assert not {red, dim} & set(found[3:])
        assert GREEN_BAR in night.text
    assert night.text.count("\a") == 3  # stopped, full, refused
    for text in (stopped, full):  # at once, not with the next line
        assert re.search(re.escape(text) + r".*\n\a", night.written)
    if "TERM" in environment:
        assert "\033" not in night.written
        return
    put_aside, no_reading, put_back = "\033[22;2t", "i3: no reading", "\033[23;2t"
    titles = re.findall("\033]2;([^\a]*)\a", night.written)
    readings = ["i3 62% charging", no_reading, "i3 63% plugged in", "i3 100% full"]
    assert titles == [*readings, no_reading, no_reading, ""]
    assert night.written.count(put_aside) == night.written.count(put_back) == 1
    assert night.written.index(put_aside) < night.written.index("\033]2;")
    assert "\n" not in night.written.partition(put_back)[2]


def test_sign_in_on_a_terminal(
    cardata: CarData,
    start: Start,
    terminal_notifier: Notifier,
    webhook: Recorder,
    terminals: list[Terminal],
) -> None:
    cardata.pending = 10**6
    errors = Terminal(60)
    terminals.append(errors)
    settings = {**cardata.settings(), "LOG_INTERVAL": "2400000", "WEBHOOK_URL": webhook.url}
    script = start(settings=settings, mac=True, stderr=errors.theirs)
    os.close(errors.theirs)
    errors.read_until("\a")
    errors.read_until("was told")
    assert "CarData, every 40 min and when news is due. Phone: 127.0.0.1" in errors.text
    lines = [COLOUR.sub("", line) for line in errors.text.splitlines()]
    assert "https://customer.bmwgroup.com/oneid/link?user_code=CODE-1" in lines
    assert "CODE-1" in lines
    assert script.interrupt() == 130


def test_json_on_a_terminal_is_json_alone(
    portal: Portal, start: Start, terminals: list[Terminal]
) -> None:
    terminal = Terminal(80)
    terminals.append(terminal)
    script = start("--once", "--json", settings=portal.settings(), stdout=terminal.theirs)
    os.close(terminal.theirs)
    terminal.read_until()
    assert script.end() == 0
    assert json.loads(terminal.written)["charge"] == 62.0


# The options


def test_once_without_a_reading_is_status_1(portal: Portal, start: Start) -> None:
    portal.readings = [unavailable]
    script = start("--once", settings=portal.settings())
    assert script.end() == 1
    assert len(script.stderr) == 1
    assert "127.0.0.1 is out of order" in script.stderr[0]
    assert "next try" not in script.output


on_a_full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")


@on_a_full_disk
def test_once_whose_reading_cannot_be_written_is_status_1(portal: Portal, start: Start) -> None:
    with open("/dev/full", "w") as full:
        script = start("--once", settings=portal.settings(), stdout=full)
    assert script.end() == 1
    assert script.stderr_with("No space left on device") == len(script.stderr) == 1


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
    kept.write_text(json.dumps({f"CarData {CLIENT_ID}": cardata.sign_in()}))
    position = "vehicle.cabin.infotainment.navigation.currentLocation.latitude"
    cardata.readings = [telematic(header=(f"of {VIN.lower()}", 60))]
    cardata.readings[0]["telematicData"][position] = {"value": "52.37"}
    script = start("--once", "--verbose", settings=cardata.settings())
    assert script.end() == 0
    assert script.stderr_with("asked 127.0.0.1 for the car's status: HTTP 200") == 1
    for name, value in {HEADER: "", PREDICTED: "62", HV_STATUS: "CHARGING"}.items():
        assert re.search(f"{name}.*{value}", script.output)
    assert VIN.lower() not in script.output
    assert "52.37" not in script.output


def test_help_has_examples_and_every_option(start: Start) -> None:
    script = start("--help")
    assert script.end() == 0
    for text in ("--once", "--json", "--demo", "--env-file PATH", "--verbose", "For example: "):
        assert text in script.output


def test_settings_file_lies_beside_the_script(
    portal: Portal, tmp_path: Path, env: dict[str, str]
) -> None:
    copy = shutil.copy(SCRIPT, tmp_path)
    write_settings(tmp_path / ".env", portal.settings())
    script = Script([sys.executable, str(copy), "--once"], env, cwd="/")
    assert script.end() == 0
    assert len(script.stdout) == 1


# One file that runs by itself


def metadata() -> str:
    """The TOML in the script, found as PEP 723 says."""
    block = r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    found = list(re.finditer(block, SCRIPT.read_text(encoding="utf-8")))
    assert len(found) == 1
    return "".join(line[2:] for line in found[0]["content"].splitlines(keepends=True))


def test_script_says_what_it_needs() -> None:
    # Texts in double quotes, and lists of them, are the same in TOML and Python.
    pairs = re.findall(r'(?ms)^([a-z-]+) = ("[^"]*"|\[.*?^\])$', metadata())
    found = {name: ast.literal_eval(value) for name, value in pairs}
    wanted = (ROOT / "requirements.txt").read_text().replace('"', "'").splitlines()
    assert found == {"requires-python": ">=3.9", "dependencies": wanted}


def version_of(*command: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [*command, "--version"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


VERSION = f"i3charge {i3charge.__version__}\n"
BESIDE_PYTHON = str(Path(sys.executable).parent)


def test_script_runs_in_an_activated_environment(env: dict[str, str]) -> None:
    env["PATH"] = os.pathsep.join([BESIDE_PYTHON, env["PATH"]])
    assert version_of("./i3charge.py", env=env) == VERSION


def test_script_runs_with_uv(tmp_path: Path) -> None:
    uv = shutil.which("uv", path=BESIDE_PYTHON) or shutil.which("uv")
    if not uv:
        pytest.skip("no uv here")
    env = {**os.environ, "UV_CACHE_DIR": str(tmp_path)}
    run = (uv, "run", "--quiet", "--python", sys.executable, "--script", "i3charge.py")
    assert version_of(*run, env=env) == VERSION


# How it ends


def test_ctrl_c_while_waiting(portal: Portal, start: Start) -> None:
    script = start(settings={**portal.settings(), "LOG_INTERVAL": "60000"})
    script.wait_for_readings(1)
    assert script.interrupt() == 130
    armed = "ConnectedDrive portal, every 60 s and when news is due. Phone: none"
    assert [line[21:] for line in script.stderr] == [armed]


def test_ctrl_c_while_bmw_is_asked(portal: Portal, start: Start) -> None:
    portal.readings = [lambda h: portal.closing.wait(60) and None]
    script = start(settings=portal.settings())
    portal.wait_for(portal.polls_seen, "a poll")
    assert script.interrupt() == 130
    assert script.stdout == script.news == []


def test_ctrl_c_that_meets_a_finalizer(env: dict[str, str]) -> None:
    """What is raised in one, Python swallows."""
    source = """
import signal, sys
import i3charge
class Interrupts:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
i3charge.Portal.poll = lambda self: [Interrupts()].clear()
sys.argv = ["i3charge.py", "--demo"]
i3charge.main()
"""
    script = Script([sys.executable, "-c", source], {**env, "PYTHONPATH": str(ROOT)})
    assert script.end() == 130
    assert script.stdout == script.news == []


def test_ctrl_c_while_it_is_still_importing(tmp_path: Path, start: Start) -> None:
    here = tmp_path / "importing"
    (tmp_path / "requests.py").write_text(
        f"import pathlib, time; pathlib.Path({str(here)!r}).touch(); time.sleep(60)"
    )
    script = start("--demo", extra_env={"PYTHONPATH": str(tmp_path)})
    while not here.exists():
        assert script.process.poll() is None
        time.sleep(0.01)
    assert script.interrupt() == -signal.SIGINT
    assert script.output == ""


def test_ctrl_c_while_a_notification_hangs(
    portal: Portal, start: Start, terminal_notifier: Notifier
) -> None:
    terminal_notifier.does("time.sleep(60)")
    portal.readings = [car("60.0"), car("65.0")]
    script = start(settings=portal.settings(), mac=True)
    terminal_notifier.wait_for_calls(1)
    assert script.interrupt() == 130
    assert script.news == []


def test_closed_pipe_ends_it_quietly(portal: Portal, start: Start) -> None:
    read_end, write_end = os.pipe()
    script = start(settings=portal.settings(), stdout=write_end)
    os.close(write_end)
    with open(read_end) as reader:
        assert "62%" in reader.readline()
    assert script.end() == 0
    assert script.news == []


@on_a_full_disk
def test_log_that_cannot_be_written_is_said_once(
    portal: Portal, start: Start, terminal_notifier: Notifier
) -> None:
    portal.readings = [car("60.0"), car("66.0"), car("72.0"), car("78.0")]
    with open("/dev/full", "w") as full:
        script = start(settings=portal.settings(), mac=True, stdout=full)
    terminal_notifier.wait_for_calls(3)
    assert script.interrupt() == 130
    assert script.stderr_with("No space left on device") == len(script.news) == 1


def test_missing_package_is_said_in_one_line(tmp_path: Path, start: Start) -> None:
    (tmp_path / "requests.py").write_text("raise ModuleNotFoundError(name='requests')")
    script = start("--demo", extra_env={"PYTHONPATH": str(tmp_path)})
    assert script.end() == 1
    assert script.stderr_with("this Python has no requests") == len(script.stderr) == 1
