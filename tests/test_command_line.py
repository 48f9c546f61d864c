"""The script as its owner sees it: the demo, the log, the terminal, the options, the exit."""

from __future__ import annotations

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
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from conftest import ENDINGS, ROOT, SCRIPT, Notifier, Script, Start
from fake_bmw import VIN, Portal, Recorder, car, full_car, says
from fake_cardata import HEADER, HV_STATUS, PREDICTED, CarData, telematic

import i3charge
from i3charge import Reading

UNAVAILABLE = says(503, "<html>Sorry</html>")


def minutes_ago(minutes: float) -> str:
    """Return an `updateTime` of the portal."""
    moment = datetime.now(timezone.utc) - timedelta(minutes=minutes)
    return f"{moment:%d.%m.%Y %H:%M:%S} UTC"


# --- The demo -------------------------------------------------------------------------


def test_demo_charges_to_full(
    start: Start, terminal_notifier: Notifier, webhook: Recorder, tmp_path: Path
) -> None:
    own = {"WEBHOOK_URL": webhook.url, "NOTIFY_AT": "80", "CARDATA_CLIENT_ID": "secret"}
    script = start("--demo", settings=own, constants={"Pace.default_s": 0.02}, macos="14.5")
    assert script.end() == 0

    lines = [re.split("  +", line) for line in script.stdout]
    assert lines[0][1:] == ["61%", "plugged in", "97 km"]
    assert lines[-1][1:] == ["100%", "full", "160 km"]
    assert {line[2] for line in lines[1:-1]} == {"charging"}
    charges = [int(line[1].rstrip("%")) for line in lines]
    assert charges == sorted(charges) and len(lines) == 28
    clocks = [line[4] for line in lines if len(line) > 4]
    assert len(set(clocks[:-2])) == 1  # until ten minutes are left in the story

    assert "simulated" in script.stderr[0]
    assert script.stderr[-1].endswith('That was a simulation. Next: README.md, "Your own car".')
    bodies = [json.loads(request.body) for request in webhook.accepted]
    assert [body["event"] for body in bodies] == ["started", "reached", "soon", "full"]
    assert bodies[0]["title"] == "BMW i3 (demo)"
    assert sum(" charged" in message for message in terminal_notifier.messages()) >= 5
    assert not list(tmp_path.glob(".i3charge*"))


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


NOW_S = time.time()
READING = Reading(62.0, NOW_S, "charging", range=101.0, range_unit="km", full_at_s=NOW_S + 2 * 3600)
NEARLY_FULL = dataclasses.replace(READING, percent=99.9)
FULL_READING = dataclasses.replace(READING, percent=100, status="full")


def test_disk_that_takes_only_a_part_of_a_line_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda to, data: write(to, data[:5]))
        i3charge.ChargeLog(as_json=False).write(READING)
    assert capfd.readouterr().out == i3charge.text_line(READING, i3charge.DATE_IN_FILE) + "\n"


def test_line_after_a_full_disk_stands_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write = os.write
    left = [5]

    def write_what_fits(to: int, data: bytes) -> int:
        if not left:
            raise OSError(28, "No space left on device")
        return write(to, data[: left.pop()])

    log = i3charge.ChargeLog(as_json=False)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write_what_fits)
        log.write(READING)
    log.write(READING)
    line = i3charge.text_line(READING, i3charge.DATE_IN_FILE)
    assert capfd.readouterr().out == f"{line[:5]}\n{line}\n"


# --- The log on a terminal ------------------------------------------------------------


class Terminal:
    """A terminal of the script: `written` is its output, `text` the same without titles."""

    def __init__(self, start: Start) -> None:
        self.start_script = start
        self.ours, self.theirs = pty.openpty()
        size = struct.pack("HHHH", 24, 80, 0, 0)
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, size)
        self.written = ""

    def read_until(self, text: str = "") -> None:
        """Read until there is the text, or without one until all have closed it."""
        while not text or text not in self.written:
            ready = select.select([self.ours], [], [], 30)[0]
            assert ready, f"waited in vain for {text!r}: {self.written!r}"
            chunk = b""
            with suppress(OSError):  # as Linux says at the end
                chunk = os.read(self.ours, 65536)
            if not chunk:
                return
            self.written += chunk.decode()

    def start(self, *arguments: str, **options: Any) -> Script:
        """Start the script with both its outputs here."""
        script = self.start_script(*arguments, stdout=self.theirs, stderr=self.theirs, **options)
        os.close(self.theirs)
        return script

    def run(self, *arguments: str, **options: Any) -> int:
        """Start the script and read until it has ended; returns the exit status."""
        script = self.start(*arguments, **options)
        self.read_until()
        return script.end()

    @property
    def text(self) -> str:
        return re.sub("\033]2;[^\a]*\a|\033\\[2[23];2t", "", self.written)


@pytest.fixture
def terminal(start: Start) -> Iterator[Terminal]:
    terminal = Terminal(start)
    yield terminal
    os.close(terminal.ours)


COLOUR = re.compile("\033\\[[0-9]*m")
RED, DIM = "\033[31m", "\033[2m"
GREEN_BAR = "\033[32m██████▎░░░\033[0m  "
FULL_BAR = f"\033[36m{'█' * 10}\033[0m  "


NO_COLOR = {"NO_COLOR": "1"}
LINES = {  # the environment, the encoding, the reading, and its bar
    "wide": ({}, "utf-8", READING, GREEN_BAR),
    "full": ({}, "utf-8", FULL_READING, FULL_BAR),
    "narrow": ({"COLUMNS": "60"}, "utf-8", READING, ""),
    "no colour": (NO_COLOR, "utf-8", NEARLY_FULL, "█████████▉  "),
    "ASCII": (NO_COLOR, "ascii", READING, "######----  "),
}


@pytest.mark.parametrize("case", LINES)
def test_line_suits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: Terminal, case: str
) -> None:
    environment, encoding, reading, bar = LINES[case]
    stdout = os.fdopen(terminal.theirs, "w", encoding=encoding)
    with monkeypatch.context() as patched, stdout:
        patched.setattr(os, "environ", {"TERM": "xterm", "COLUMNS": "80", **environment})
        patched.setattr(sys, "stdout", stdout)
        i3charge.ChargeLog(as_json=False).write(reading)
        terminal.read_until("\n")
    start = rf"\w{{3}} \d\d:\d\d  {reading.percent_text:>4}  {re.escape(bar)}"
    line = rf"{start}{reading.status:<10}  101 km  full \d\d:\d\d\r\n"
    assert re.fullmatch(line, terminal.text), terminal.text


def test_terminal_at_night(portal: Portal, terminal_notifier: Notifier, terminal: Terminal) -> None:
    """A charge stops, goes on to full, and then BMW refuses the sign-in."""
    portal.readings = [
        car(updateTime=minutes_ago(180)),
        UNAVAILABLE,
        car("63.0", charging_status="CHARGINGENDED", updateTime=minutes_ago(120)),
        full_car(updateTime=minutes_ago(60)),
        portal.expire_token,
    ]
    portal.logins = [None, says(401, {"error": "invalid_client"})]
    constants = {"MIN_LONGEST_PAUSE_S": 0}
    assert terminal.run(settings=portal.settings(), constants=constants, macos="14.5") == 1
    colours = {
        "when news is due": DIM,
        "failed when asked": RED,
        "refuses the login": RED,
        "Charging stopped": "",
        "Fully charged": "",
    }
    for text, colour in colours.items():
        line = rf"^\a?{re.escape(colour)}[^\033\n]*{text}"
        assert re.search(line, terminal.text, re.MULTILINE), text
    assert GREEN_BAR in terminal.text
    assert terminal.text.count("\a") == 3  # stopped, full, refused
    titles = ["i3 62% charging", "i3: no reading", "i3 63% plugged in", "i3 100% full"]
    assert re.findall("\033]2;([^\a]+)\a", terminal.written)[:4] == titles


@pytest.mark.parametrize(
    ("environment", "absent"), [(NO_COLOR, COLOUR.pattern), ({"TERM": "dumb"}, "\033")]
)
def test_terminal_may_want_no_colours_or_no_escapes_at_all(
    portal: Portal, terminal: Terminal, environment: dict[str, str], absent: str
) -> None:
    portal.readings = [UNAVAILABLE]
    assert terminal.run("--once", settings=portal.settings(), extra_env=environment) == 1
    assert "failed when asked" in terminal.text
    assert not re.search(absent, terminal.written)


def test_sign_in_on_a_terminal_does_not_look_like_an_error(
    cardata: CarData, terminal_notifier: Notifier, terminal: Terminal
) -> None:
    cardata.pending = 10**6
    script = terminal.start(settings=cardata.settings(), macos="14.5")
    terminal.read_until("It is valid until ")
    terminal.read_until("i3: waiting for you")
    terminal_notifier.wait_for_calls(1)
    assert script.interrupt() == 130
    terminal.read_until()
    address = "https://customer.bmwgroup.com/oneid/link?user_code=CODE-1"
    ways = f"\n{address}\nand confirm the code\nCODE-1\nIt is valid until "
    assert ways in COLOUR.sub("", terminal.text).replace("\r", "")
    assert RED not in terminal.text


def test_json_has_all_fields_and_is_alone_on_a_terminal(portal: Portal, terminal: Terminal) -> None:
    reported = datetime.now(timezone.utc).replace(microsecond=0)
    portal.readings = [car(updateTime=f"{reported:%d.%m.%Y %X} UTC", chargingTimeRemaining=None)]
    assert terminal.run("--once", "--json", settings=portal.settings()) == 0
    found = json.loads(terminal.written)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+0[12]:00", found.pop("time"))
    assert found == {
        "charge": 62.0,
        "predicted": False,
        "status": "charging",
        "plugged": True,
        "range": 101.0,
        "range_unit": "km",
        "minutes_to_full": None,
        "full_at": None,
        "reported": reported.isoformat(),
    }


# --- What --verbose shows -------------------------------------------------------------


def test_verbose_shows_requests_and_answers_without_the_vin_and_the_position(
    portal: Portal, cardata: CarData, start: Start, kept: Path
) -> None:
    cardata.keep(kept)
    vin = f"of {VIN.lower()}"
    data = telematic(header=(vin, 60))
    data["telematicData"]["vehicle.cabin.navigation.latitude"] = {"value": "52.37"}
    cardata.readings = [says(200, data)]
    portal.readings = [car(updateTime=vin, gps_lat="52.37")]
    of_cardata = [HEADER, f"{PREDICTED}.*62", f"{HV_STATUS}.*CHARGING"]
    of_portal = ["chargingLevelHv.*62.0", "chargingHVStatus.*CHARGING", "updateTime"]
    for door, shown in ((cardata, of_cardata), (portal, of_portal)):
        script = start("--once", "--verbose", settings=door.settings())
        assert script.end() == 0
        for text in ["asked 127.0.0.1 for the car's status: HTTP 200", *shown]:
            assert re.search(text, script.output), text
        assert VIN.lower() not in script.output
        assert "52.37" not in script.output


# --- One file that runs by itself -----------------------------------------------------


def test_script_declares_the_same_packages_as_the_requirements() -> None:
    """The script has them in a block that PEP 723 defines."""
    wanted = (ROOT / "requirements.txt").read_text().replace('"', "'").splitlines()
    packages = "".join(f'#   "{each}",\n' for each in wanted)
    block = f'# requires-python = ">=3.9"\n# dependencies = [\n{packages}# ]\n'
    assert f"\n# /// script\n{block}# ///\n" in SCRIPT.read_text(encoding="utf-8")


VERSION = f"i3charge {i3charge.__version__}\n"
BESIDE_PYTHON = str(Path(sys.executable).parent)


def test_script_runs_in_an_activated_environment(env: dict[str, str]) -> None:
    env["PATH"] = os.pathsep.join([BESIDE_PYTHON, env["PATH"]])
    command = ["./i3charge.py", "--version"]
    assert subprocess.check_output(command, cwd=ROOT, env=env, text=True) == VERSION


def test_script_runs_with_uv(tmp_path: Path) -> None:
    uv = shutil.which("uv", path=BESIDE_PYTHON)
    if not uv:
        pytest.skip("no uv here")
    env = {**os.environ, "UV_CACHE_DIR": str(tmp_path), "UV_HTTP_TIMEOUT": "10"}
    run = [uv, "run", "--quiet", "--python", sys.executable, "--script", str(SCRIPT), "--version"]
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=120)
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
def test_signal_ends_the_wait_without_another_word_but_the_title_put_back(
    portal: Portal, terminal: Terminal, number: signal.Signals, status: int
) -> None:
    script = terminal.start(settings={**portal.settings(), "LOG_INTERVAL": "60000"})
    terminal.read_until("i3 62% charging\a")
    script.process.send_signal(number)
    assert script.end() == status
    terminal.read_until()
    armed, reading = terminal.text.splitlines()
    assert "ConnectedDrive portal, every 60 s and when news is due. Phone: none" in armed
    assert "62%" in reading
    assert terminal.written.count("\033[22;2t") == 1
    assert terminal.written.endswith("i3 62% charging\a\033]2;\a\033[23;2t")


def test_ctrl_c_ends_a_request_to_bmw(portal: Portal, start: Start) -> None:
    portal.readings = [lambda _: portal.closing.wait(60)]
    script = start(settings=portal.settings())
    portal.wait_for(portal.polls_seen, "a poll")
    assert script.interrupt() == 130
    assert script.stdout == script.news == []


def test_ctrl_c_ends_the_imports(tmp_path: Path, start: Start) -> None:
    (tmp_path / "requests.py").write_text("import time; print(1, flush=True); time.sleep(60)")
    script = start("--demo", extra_env={"PYTHONPATH": str(tmp_path)})
    script.wait_for_readings(1)
    assert script.interrupt() == -signal.SIGINT
    assert script.output == "1"


def test_ctrl_c_ends_a_notification_that_hangs(
    portal: Portal, start: Start, terminal_notifier: Notifier
) -> None:
    terminal_notifier.does("time.sleep(60)")
    portal.readings = [car("60.0"), car("65.0")]
    script = start(settings=portal.settings(), macos="14.5")
    terminal_notifier.wait_for_calls(1)
    assert script.interrupt() == 130
    assert script.news == []


def test_signals_that_the_parent_ignores_stay_ignored(portal: Portal, start: Start) -> None:
    """nohup ignores SIGHUP, and a script SIGINT for what it runs in the background."""
    ignored = (signal.SIGHUP, signal.SIGINT)

    def ignore() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    script = start(settings=portal.settings(), preexec_fn=ignore)
    script.wait_for_readings(1)
    for number in ignored:
        script.process.send_signal(number)
    script.wait_for_readings(len(script.stdout) + 3)
    script.process.send_signal(signal.SIGTERM)
    assert script.end() == 143


@pytest.mark.parametrize("closed", [(1, 2), (0, 3)])
def test_closed_stream_is_no_obstacle(
    portal: Portal, start: Start, closed: tuple[int, int], kept: Path
) -> None:
    script = start("--once", settings=portal.settings(), preexec_fn=lambda: os.closerange(*closed))
    assert script.end() == 0
    assert (portal.served, script.stdout, script.stderr) == (1, [], [])
    assert json.loads(kept.read_text())["last"]["percent"] == 62  # and no line of the log
