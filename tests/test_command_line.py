"""The script as its owner sees it: the log, the loop, the options, how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
import types
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from conftest import LOG_LINE, SCRIPT, Notifier, Script, Start
from fake_bmw import Handler, Portal, car, full_car

import i3charge


def ago(**span: float) -> str:
    return f"{datetime.now(timezone.utc) - timedelta(**span):%d.%m.%Y %H:%M:%S} UTC"


def unavailable(handler: Handler) -> None:
    handler.reply(503, "<html>Sorry</html>")


# The log


def test_line_is_plain_in_a_pipe(portal: Portal, start: Start) -> None:
    script = start("--once", settings=portal.settings())
    assert script.end() == 0
    pattern = LOG_LINE.pattern + r"  101 km  full about \d\d:\d\d"
    assert re.fullmatch(pattern, script.stdout[0])
    assert script.stdout[0][21:].startswith("62%  charging")
    assert script.stderr == []


def test_old_report_is_said(portal: Portal, start: Start) -> None:
    portal.readings = [car(updateTime=ago(minutes=25))]
    script = start("--once", settings=portal.settings())
    assert script.end() == 0
    assert script.stdout[0].endswith("(car last reported 25 min ago)")


def test_json_has_every_field(portal: Portal, start: Start) -> None:
    portal.readings = [car(updateTime="22.11.2026 18:19:03 UTC")]
    script = start("--once", "--json", settings=portal.settings())
    assert script.end() == 0
    found = json.loads(script.stdout[0])
    assert datetime.fromisoformat(found.pop("time")).utcoffset() in (
        timedelta(hours=1),
        timedelta(hours=2),
    )
    assert list(found.items()) == [
        ("charge", 62.0),
        ("status", "charging"),
        ("range", 101.0),
        ("range_unit", "km"),
        ("minutes_to_full", 140.0),
        ("reported", "2026-11-22T18:19:03+00:00"),
    ]


def test_json_is_null_where_the_car_says_nothing(portal: Portal, start: Start) -> None:
    portal.readings = [lambda h: h.reply(200, {"attributesMap": {"chargingLevelHv": "62.0"}})]
    script = start("--once", "--json", settings=portal.settings())
    assert script.end() == 0
    found = json.loads(script.stdout[0])
    assert found["status"] == "unknown"
    empty = ("range", "range_unit", "minutes_to_full", "reported")
    assert [found[name] for name in empty] == [None] * 4


def on_a_terminal(start: Start, *arguments: str, **options: object) -> str:
    """What a run that ends by itself writes to a terminal."""
    ours, theirs = pty.openpty()
    script = start(*arguments, stdout=theirs, **options)
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 4096):
            written += chunk
    except OSError:  # Linux says so when the other side is closed
        pass
    os.close(ours)
    assert script.end() == 0
    return written.decode("utf-8")


def test_terminal_gets_a_bar_a_colour_and_a_title(portal: Portal, start: Start) -> None:
    written = on_a_terminal(start, "--once", settings=portal.settings())
    assert "  62%  \033[32m" + "█" * 12 + "░" * 8 + "\033[0m  charging" in written
    assert written.startswith("\033]2;i3 62% charging\007")
    assert written.endswith("\033]2;\007")


def test_colour_goes_by_status(portal: Portal, start: Start) -> None:
    portal.readings = [full_car()]
    written = on_a_terminal(start, "--once", settings=portal.settings())
    assert "\033[36m" + "█" * 20 in written


def test_no_color_is_kept_to(portal: Portal, start: Start) -> None:
    written = on_a_terminal(
        start, "--once", settings=portal.settings(), extra_env={"NO_COLOR": "1"}
    )
    assert "█" in written
    assert "\033[" not in written


def test_dumb_terminal_gets_the_plain_line(portal: Portal, start: Start) -> None:
    dumb = {"TERM": "dumb"}
    written = on_a_terminal(start, "--once", settings=portal.settings(), extra_env=dumb)
    assert "\033" not in written
    assert "█" not in written


def test_ascii_terminal_gets_an_ascii_bar(portal: Portal, start: Start) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii:strict"}
    written = on_a_terminal(start, "--once", settings=portal.settings(), extra_env=ascii_only)
    assert "############--------" in written


def test_json_on_a_terminal_is_json_alone(portal: Portal, start: Start) -> None:
    written = on_a_terminal(start, "--once", "--json", settings=portal.settings())
    assert json.loads(written)["charge"] == 62.0


# The loop


def test_polls_keep_the_rhythm_of_the_first(portal: Portal, start: Start) -> None:
    portal.settings()
    script = start(settings={**portal.settings(), "LOG_INTERVAL": "100"})
    script.wait_for_readings(12)
    starts = [poll.time for poll in portal.polls_seen()[1:12]]
    # Between the ends of a row of ticks lies a whole number of intervals, whatever one poll took.
    ticks = (starts[-1] - starts[0]) / 0.1
    assert abs(ticks - round(ticks)) < 0.4
    assert round(ticks) >= 10


def test_slow_poll_skips_the_ticks_it_missed(portal: Portal, start: Start) -> None:
    def slow(handler: Handler) -> None:
        portal.closing.wait(0.55)
        handler.reply(200, car())

    portal.readings = [car(), slow, car()]
    script = start(settings={**portal.settings(), "LOG_INTERVAL": "200"})
    script.wait_for_readings(4)
    _, slow_poll, third, fourth = (poll.time for poll in portal.polls_seen()[:4])
    # With ticks made up for, the third and the fourth would follow one another at once.
    assert third - slow_poll > 0.5
    assert fourth - third > 0.1


def test_failures_wait_longer_and_longer_and_a_reading_ends_that(
    portal: Portal, start: Start
) -> None:
    portal.readings = [
        car(),
        unavailable,
        unavailable,
        unavailable,
        car("63.0"),
        unavailable,
        car(),
    ]
    script = start(settings={**portal.settings(), "LOG_INTERVAL": "100"})
    script.wait_for_readings(3)
    times = [poll.time for poll in portal.polls_seen()]
    assert times[3] - times[2] > 0.2
    assert times[4] - times[3] > 0.4
    assert times[6] - times[5] < 0.4
    assert len(script.stderr) == 4


def test_longer_retry_after_is_kept_to(portal: Portal, start: Start) -> None:
    portal.readings = [lambda h: h.reply(429, Retry_After="1"), car()]
    script = start(settings=portal.settings())
    script.wait_for_readings(1)
    first, second = (poll.time for poll in portal.polls_seen()[:2])
    assert second - first >= 1
    assert script.stderr_with("next try in 1 s") == 1


def test_failure_says_when_the_next_try_is(portal: Portal, start: Start) -> None:
    portal.readings = [unavailable]
    script = start(settings={**portal.settings(), "LOG_INTERVAL": "60000"})
    script.wait_for_stderr("127.0.0.1 is out of order when asked for the car's status (HTTP 503)")
    assert script.stderr[0].endswith("; next try in 60 s")


@pytest.mark.parametrize("status", [403, 404])
def test_car_that_is_not_shown_names_the_vin(portal: Portal, start: Start, status: int) -> None:
    portal.readings = [lambda h: h.reply(status)]
    script = start("--once", settings=portal.settings())
    assert script.end() == 1
    assert script.stderr_with("check VEHICLE_IDENTIFICATION_NUMBER") == 1


def test_one_connection_is_kept(portal: Portal, start: Start) -> None:
    portal.readings = [car(), unavailable, car()]
    start(settings=portal.settings()).wait_for_readings(10)
    assert len({request.connection for request in portal.requests}) == 1


# The command line


def test_once_takes_one_reading(portal: Portal, start: Start) -> None:
    script = start("--once", settings=portal.settings())
    assert script.end() == 0
    assert len(script.stdout) == 1
    assert len(portal.polls_seen()) == 1


def test_once_without_a_reading_is_status_1(portal: Portal, start: Start) -> None:
    portal.readings = [unavailable]
    script = start("--once", settings=portal.settings())
    assert script.end() == 1
    assert "next try" not in script.output


def test_verbose_says_what_is_asked(portal: Portal, start: Start) -> None:
    script = start("--once", "--verbose", settings=portal.settings())
    assert script.end() == 0
    assert script.stderr_with("asked 127.0.0.1 for the login: HTTP 302") == 1
    assert script.stderr_with("asked 127.0.0.1 for the car's status: HTTP 200") == 1
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in script.stderr)


def test_help_has_examples_and_every_option(start: Start) -> None:
    script = start("--help")
    assert script.end() == 0
    for text in ("--once", "--json", "--demo", "--env-file PATH", "--verbose", "examples:"):
        assert text in script.output


def test_version(start: Start) -> None:
    script = start("--version")
    assert script.end() == 0
    assert re.fullmatch(r"i3charge \d+\.\d+\.\d+", script.stdout[0])


def test_settings_file_lies_beside_the_script(
    portal: Portal, tmp_path: Path, env: dict[str, str]
) -> None:
    copy = tmp_path / "i3charge.py"
    copy.write_bytes(SCRIPT.read_bytes())
    lines = [f"{name}='{value}'" for name, value in portal.settings().items()]
    (tmp_path / ".env").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / ".env").chmod(0o600)
    script = Script([sys.executable, str(copy), "--once"], env, cwd="/")
    assert script.end() == 0
    assert len(script.stdout) == 1


# How it ends


def test_ctrl_c_while_waiting(portal: Portal, start: Start) -> None:
    script = start(settings={**portal.settings(), "LOG_INTERVAL": "60000"})
    script.wait_for_readings(1)
    assert script.interrupt() == 130
    assert script.stderr == []


def test_ctrl_c_while_bmw_is_asked(portal: Portal, start: Start) -> None:
    portal.readings = [lambda h: portal.closing.wait(60) and None]
    script = start(settings=portal.settings())
    portal.wait_for(portal.polls_seen, "a poll")
    assert script.interrupt() == 130
    assert script.output == ""


def test_ctrl_c_while_it_is_still_importing(tmp_path: Path, start: Start) -> None:
    here = tmp_path / "importing"
    (tmp_path / "requests.py").write_text(
        f"import pathlib, time; pathlib.Path({str(here)!r}).touch(); time.sleep(60)"
    )
    script = start("--demo", extra_env={"PYTHONPATH": str(tmp_path)})
    while not here.exists():
        assert script.process.poll() is None
    assert script.interrupt() == 130
    assert script.output == ""


def is_gone(pid: int, seconds: float = 10) -> bool:
    """Whether the process ends within the time; one that nobody has reaped yet has ended."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        ps = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False)
        if ps.stdout.strip()[:1] in (b"", b"Z"):
            return True
        time.sleep(0.02)
    return False


def test_ctrl_c_while_a_notification_hangs(
    portal: Portal, start: Start, terminal_notifier: Notifier
) -> None:
    write_pid = "with open(sys.argv[0] + '.pid', 'w') as file: file.write(str(os.getpid()))"
    terminal_notifier.does(f"{write_pid}\ntime.sleep(60)")
    portal.readings = [car("60.0"), car("65.0")]
    script = start(settings=portal.settings(), mac=True)
    pid_file = terminal_notifier.folder / "terminal-notifier.pid"
    while not (pid_file.exists() and pid_file.read_text()):
        assert script.process.poll() is None
    assert script.interrupt() == 130
    assert script.stderr == []
    assert is_gone(int(pid_file.read_text()))


def test_closed_pipe_ends_it_quietly(portal: Portal, start: Start) -> None:
    read_end, write_end = os.pipe()
    script = start(settings=portal.settings(), stdout=write_end)
    os.close(write_end)
    with open(read_end) as reader:
        assert LOG_LINE.match(reader.readline())
    assert script.end() == 0
    assert script.output == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_keep_their_default_action(
    portal: Portal, start: Start, number: signal.Signals
) -> None:
    script = start(settings={**portal.settings(), "LOG_INTERVAL": "60000"})
    script.wait_for_readings(1)
    script.process.send_signal(number)
    assert script.end() == -number
    assert script.stderr == []


# The demo


def test_demo_charges_to_full_without_settings(
    start: Start, terminal_notifier: Notifier, webhook: object, ntfy: object
) -> None:
    addresses = {"WEBHOOK_URL": webhook.url, "NTFY_URL": ntfy.url}  # type: ignore[attr-defined]
    script = start("--demo", mac=True, extra_env=addresses)
    assert script.end() == 0
    assert script.stderr == []
    charges = [int(line.split()[2].rstrip("%")) for line in script.stdout]
    assert charges == sorted(charges)
    assert (charges[0], charges[-1]) == (61, 100)
    statuses = Counter(line.split()[3] for line in script.stdout)
    assert statuses["full"] == 1
    assert statuses["charging"] == len(charges) - 1
    full = "Fully charged. The charging station can be freed."
    messages = terminal_notifier.messages()
    assert messages[-1] == full
    assert [m.split("%")[0] for m in messages[:-1]] == ["67", "73", "79", "85", "91", "97"]
    assert webhook.messages() == ntfy.messages() == [full]  # type: ignore[attr-defined]


def test_demo_leaves_the_owners_car_alone(portal: Portal, start: Start) -> None:
    script = start("--demo", settings=portal.settings())
    script.wait_for_readings(1)
    assert portal.requests == []


def test_demo_runs_where_the_script_is_copied_alone(tmp_path: Path, env: dict[str, str]) -> None:
    copy = tmp_path / "i3charge.py"
    copy.write_bytes(SCRIPT.read_bytes())
    script = Script([sys.executable, str(copy), "--demo"], env, cwd=tmp_path)
    script.wait_for_readings(2)
    assert script.interrupt() == 130


# Streams that do not work


def shell(command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command], env=env, capture_output=True, encoding="utf-8", timeout=60
    )


@pytest.fixture
def command(portal: Portal, tmp_path: Path) -> str:
    from conftest import write_settings

    file = write_settings(tmp_path / "settings.env", portal.settings())
    return f"'{sys.executable}' '{SCRIPT}' --env-file '{file}'"


def test_closed_stdout_and_stderr_do_not_matter(
    portal: Portal, command: str, env: dict[str, str]
) -> None:
    portal.readings = [unavailable, car(), unavailable]
    for closed in (">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        before = len(portal.polls_seen())
        portal.readings = [car()]
        done = shell(f"{command} --once {closed}", env)
        assert done.returncode == 0
        assert done.stderr == ""
        assert len(portal.polls_seen()) == before + 1


def test_full_disk_under_the_log_is_said_once(
    portal: Portal, start: Start, terminal_notifier: Notifier
) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    portal.readings = [car("60.0"), car("66.0"), car("72.0"), car("78.0")]
    with open("/dev/full", "w") as full:
        script = start(settings=portal.settings(), mac=True, stdout=full)
        terminal_notifier.wait_for_calls(3)
        assert script.interrupt() == 130
    assert len(script.stderr) == 1
    assert "No space left on device" in script.stderr[0]


def test_closed_stderr_pipe_does_not_end_it(portal: Portal, start: Start) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    portal.readings = [car(), unavailable, unavailable, car()]
    script = start(settings=portal.settings(), stderr=write_end)
    os.close(write_end)
    script.wait_for_readings(3)
    assert script.interrupt() == 130


def test_refused_connection_is_survived(portal: Portal, start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        settings = {**portal.settings(), "AUTH_BASE_URL": nobody}
        script = start(settings=settings)
        script.wait_for_stderr("no connection to 127.0.0.1", count=2)


def test_missing_package_is_said_in_one_line(tmp_path: Path, start: Start) -> None:
    (tmp_path / "requests.py").write_text("raise ModuleNotFoundError(name='requests')")
    script = start("--demo", extra_env={"PYTHONPATH": str(tmp_path)})
    assert script.end() == 1
    assert script.stderr == [
        "i3charge: this Python has no requests; README.md says how to install it"
    ]


def test_fault_of_our_own_does_not_end_the_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Door:
        interval_s = gap_s = 60.0
        polls = 0

        def read(self) -> i3charge.Reading:
            self.polls += 1
            if self.polls == 3:
                raise KeyboardInterrupt
            raise ZeroDivisionError("secret")

    clock = types.SimpleNamespace(monotonic=time.monotonic, time=time.time, sleep=None)
    monkeypatch.setattr(i3charge, "time", clock)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.monotonic = lambda: time.monotonic() + sum(slept)

    clock.sleep = sleep
    with pytest.raises(KeyboardInterrupt):
        i3charge.run(Door(), i3charge.ChargeLog(as_json=False), i3charge.Desktop(), [])
    assert len(caplog.messages) == 2
    assert "ZeroDivisionError in test_command_line.py" in caplog.messages[0]
    assert "next try in 60 s" in caplog.messages[0]
    assert "secret" not in caplog.text
