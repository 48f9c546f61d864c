"""What the owner is told of a charge, on the Mac and on the phone, and what if that fails."""

from __future__ import annotations

import fcntl
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import Notifier, Script, Start
from fake_bmw import Answer, Handler, Portal, Recorder, car, full_car

import i3charge

FULL = "Fully charged. The charging station can be freed."
STOPPED = "Charging stopped at 62% (plugged in)"
REPORTED = datetime.now(timezone.utc) - timedelta(minutes=10)
FULL_ABOUT = f"full about {REPORTED + timedelta(minutes=140 + 60):%H:%M}"  # in TIME_ZONE
TIME_ZONE = "CET-1"

Watch = Callable[..., Script]


def charging(charge: object = "62.0") -> dict[str, Any]:
    reported = f"{REPORTED:%d.%m.%Y %H:%M:%S} UTC"
    return car(charge, updateTime=reported, chargingTimeRemaining="140.0")


def not_charging(
    charge: object = "62.0", word: str = "NOT_CHARGING", plug: str | None = "CONNECTED"
) -> dict[str, Any]:
    return car(
        charge,
        chargingHVStatus=word,
        charging_status=None,
        chargingSystemStatus=None,
        connectorStatus=plug,
        chargingTimeRemaining=None,
    )


def unknown(charge: object = "62.0") -> dict[str, Any]:
    return not_charging(charge, "DREAMING_OF_SHEEP", plug=None)


def refuse(handler: Handler) -> None:
    handler.reply(401, {"error": "invalid_client"})


def step(percent: int) -> str:
    return f"{percent}% charged, {FULL_ABOUT}"


@pytest.fixture(autouse=True)
def time_zone(env: dict[str, str]) -> None:
    env["TZ"] = TIME_ZONE


@pytest.fixture
def watch(portal: Portal, start: Start) -> Watch:
    """Starts the script, and waits until it has done with these readings."""

    def watch(
        *readings: dict[str, Any] | Answer,
        arguments: tuple[str, ...] = (),
        addresses: dict[str, str] | None = None,
        **options: Any,
    ) -> Script:
        portal.readings = list(readings)
        settings = {**portal.settings(), **(addresses or {})}
        script = start(*arguments, settings=settings, **options)
        # What is due for a reading has been tried when the next reading is there.
        script.wait_for_readings(sum(isinstance(r, dict) for r in readings) + 1)
        return script

    return watch


@pytest.fixture
def addresses(webhook: Recorder, ntfy: Recorder) -> dict[str, str]:
    return {"WEBHOOK_URL": webhook.url + "secret-hook", "NTFY_URL": ntfy.url + "secret-topic"}


@pytest.fixture
def no_programs(tmp_path: Path, env: dict[str, str]) -> None:
    """Nothing on the PATH but what a test puts there."""
    env["PATH"] = str(tmp_path / "empty")


@pytest.fixture
def osascript(tmp_path: Path, env: dict[str, str], terminal_notifier: Notifier) -> Notifier:
    return Notifier(tmp_path, "osascript", env)


@pytest.fixture
def notify_send(tmp_path: Path, env: dict[str, str], terminal_notifier: Notifier) -> Notifier:
    return Notifier(tmp_path, "notify-send", env)


def options_of(call: list[str]) -> dict[str, str]:
    return dict(zip(call[::2], call[1::2]))


def other_pync(folder: Path, source: str) -> dict[str, str]:
    """The environment in which `import pync` runs this source."""
    (folder / "pync.py").write_text(source)
    return {"PYTHONPATH": str(folder)}


MISSING = "raise ImportError('no module named pync')"


# --- What is told ---------------------------------------------------------------------------


def test_whole_charge(
    portal: Portal,
    watch: Watch,
    terminal_notifier: Notifier,
    webhook: Recorder,
    ntfy: Recorder,
    addresses: dict[str, str],
) -> None:
    readings = [charging(f"{percent}.0") for percent in range(52, 101)]
    faster = {**addresses, "LOG_INTERVAL": "20"}
    script = watch(*readings, full_car(), addresses=faster, mac=True)
    script.wait_for_readings(60)
    steps = [step(percent) for percent in range(57, 98, 5)]
    assert terminal_notifier.messages() == [*steps, FULL]
    assert webhook.messages() == ntfy.messages() == [FULL]
    assert len(portal.logins_seen()) == 1
    assert script.stderr == []


def test_first_reading_notifies_nothing(
    watch: Watch, terminal_notifier: Notifier, webhook: Recorder, addresses: dict[str, str]
) -> None:
    watch(charging(), addresses=addresses, mac=True)
    assert terminal_notifier.calls() == []
    assert webhook.requests == []


def test_steps_count_from_the_last_one_or_the_lowest_charge_since(
    watch: Watch, terminal_notifier: Notifier
) -> None:
    charges = ("62.0", "66.9", "67.0", "71.9", "88.5", "60.0", "58.0", "62.9", "63.0", "67.9")
    watch(*map(charging, charges), mac=True)
    assert terminal_notifier.messages() == [step(67), step(88), step(63)]


def test_step_without_a_known_end(watch: Watch, terminal_notifier: Notifier) -> None:
    watch(not_charging("62.0"), not_charging("67.0"), mac=True)
    assert terminal_notifier.messages() == ["67% charged"]


def test_full_stands_instead_of_a_step(
    watch: Watch, terminal_notifier: Notifier, webhook: Recorder, addresses: dict[str, str]
) -> None:
    watch(charging("62.0"), full_car(), full_car(), addresses=addresses, mac=True)
    assert terminal_notifier.messages() == webhook.messages() == [FULL]


def test_still_charging_at_100_is_not_full(watch: Watch, terminal_notifier: Notifier) -> None:
    watch(charging("99.0"), charging("100.0"), mac=True)
    assert terminal_notifier.messages() == []


def test_full_at_the_first_reading_is_told_only_after_it_was_not_full(
    watch: Watch, terminal_notifier: Notifier, webhook: Recorder, addresses: dict[str, str]
) -> None:
    told_before: list[str] = []

    def drive(handler: Handler) -> None:
        told_before.extend(terminal_notifier.messages())
        handler.reply(200, not_charging("91.0", "INVALID", "DISCONNECTED"))

    readings = [full_car(), full_car(), drive, charging("92.0"), full_car(), full_car()]
    watch(*readings, addresses=addresses, mac=True)
    assert told_before == []
    assert terminal_notifier.messages() == [FULL]
    assert webhook.messages() == [FULL]


def test_full_is_told_again_after_another_charge(
    watch: Watch, terminal_notifier: Notifier, webhook: Recorder, addresses: dict[str, str]
) -> None:
    charge = (charging("96.0"), full_car(), full_car())
    watch(*charge, *charge, addresses=addresses, mac=True)
    assert terminal_notifier.messages() == webhook.messages() == [FULL, FULL]


def test_stopped_is_told_with_its_status(
    watch: Watch, terminal_notifier: Notifier, webhook: Recorder, addresses: dict[str, str]
) -> None:
    ends = [
        not_charging("83.7"),
        not_charging("83.7", "WAITING_FOR_CHARGING"),
        not_charging("83.7", "ERROR"),
        not_charging("83.7", "INVALID", "DISCONNECTED"),
    ]
    again = [reading for end in ends for reading in (charging("83.7"), end, end)]
    watch(*again, addresses=addresses, mac=True)
    told = [
        f"Charging stopped at 83% ({status})"
        for status in ("plugged in", "waiting", "error", "unplugged")
    ]
    assert terminal_notifier.messages() == webhook.messages() == told


def test_plugged_in_without_charging_has_not_stopped(
    watch: Watch, terminal_notifier: Notifier
) -> None:
    watch(not_charging(plug="DISCONNECTED"), not_charging(), not_charging(word="ERROR"), mac=True)
    assert terminal_notifier.messages() == []


@pytest.mark.parametrize(
    ("readings", "told"),
    [
        ([charging(), unknown(), charging()], []),
        ([charging(), unknown(), not_charging(), unknown(), not_charging()], [STOPPED]),
        ([charging("99.0"), unknown("99.0"), full_car()], [FULL]),
        ([full_car(), unknown("100.0"), full_car()], []),
        ([not_charging(), unknown(), not_charging()], []),
    ],
    ids=["still-charging", "stopped", "became-full", "still-full", "never-charged"],
)
def test_unknown_status_changes_nothing(
    watch: Watch, terminal_notifier: Notifier, readings: list[dict[str, Any]], told: list[str]
) -> None:
    watch(*readings, mac=True)
    assert terminal_notifier.messages() == told


# --- On the Mac -----------------------------------------------------------------------------


def test_terminal_notifier_arguments(watch: Watch, terminal_notifier: Notifier) -> None:
    watch(charging("62.0"), charging("67.0"), not_charging("67.0"), full_car(), mac=True)
    calls = [options_of(call) for call in terminal_notifier.calls()]
    stopped = "Charging stopped at 67% (plugged in)"
    assert [call["-message"] for call in calls] == [step(67), stopped, FULL]
    assert {call["-title"] for call in calls} == {"BMW i3"}
    assert len({call["-group"] for call in calls}) == 1
    assert [bool(call.get("-sound")) for call in calls] == [False, True, True]


def test_pync_is_used_whatever_the_platform(
    watch: Watch, tmp_path: Path, env: dict[str, str], osascript: Notifier, no_programs: None
) -> None:
    shown = Notifier(tmp_path, "shown", env)
    source = f"""
import subprocess
class Notifier:
    @staticmethod
    def notify(message, **options):
        return subprocess.Popen([{str(shown.folder / shown.name)!r}, "-message", message])
"""
    watch(charging("62.0"), charging("67.0"), extra_env=other_pync(tmp_path, source))
    assert shown.messages() == [step(67)]
    assert osascript.calls() == []


def test_pync_is_imported_when_the_first_notification_is_due(
    portal: Portal, start: Start, tmp_path: Path, no_programs: None
) -> None:
    imported = tmp_path / "imported"
    due = threading.Event()

    def rise(handler: Handler) -> None:
        due.wait(30)
        handler.reply(200, charging("70.0"))

    portal.readings = [charging(), charging(), rise, charging("70.0")]
    source = f"open({str(imported)!r}, 'w').close()\n{MISSING}"
    script = start(settings=portal.settings(), extra_env=other_pync(tmp_path, source))
    script.wait_for_readings(2)
    portal.wait_for(lambda: len(portal.polls_seen()) == 3, "the third poll")
    assert not imported.exists()
    due.set()
    script.wait_for_readings(4)
    assert imported.exists()


BROKEN = {
    "fails": f"#!{sys.executable}\nraise SystemExit(1)",
    "dies": f"#!{sys.executable}\nimport os\nos.kill(os.getpid(), 9)",
    "cannot-start": "an Intel program",
}


@pytest.mark.parametrize("program", BROKEN.values(), ids=BROKEN.keys())
def test_osascript_shows_what_terminal_notifier_does_not(
    watch: Watch, terminal_notifier: Notifier, osascript: Notifier, program: str
) -> None:
    (terminal_notifier.folder / "terminal-notifier").write_text(program)
    script = watch(charging("62.0"), charging("67.0"), charging("72.0"), mac=True)
    for call, message in zip(osascript.calls(), (step(67), step(72))):
        assert message in call
        assert "BMW i3" in call
    assert len(osascript.calls()) == 2
    assert script.stderr == []


@pytest.mark.parametrize(
    "source", [MISSING, "raise Exception('only on Mac OS X')"], ids=["missing", "elsewhere"]
)
def test_osascript_stands_in_for_pync(
    watch: Watch, tmp_path: Path, no_programs: None, osascript: Notifier, source: str
) -> None:
    extra_env = other_pync(tmp_path, source)
    script = watch(charging("62.0"), charging("67.0"), full_car(), extra_env=extra_env)
    first, second = osascript.calls()
    assert step(67) in first
    assert FULL in second
    assert script.stderr == []


def test_osascript_gets_the_text_as_an_argument_only(
    portal: Portal, start: Start, tmp_path: Path, no_programs: None, osascript: Notifier
) -> None:
    evil = 'no" & (do shell script "id") & "'
    portal.logins = [lambda handler: handler.reply(401, {"error": evil})]
    extra_env = other_pync(tmp_path, MISSING)
    assert start(settings=portal.settings(), extra_env=extra_env).end() == 1
    (call,) = osascript.calls()
    (position,) = (index for index, text in enumerate(call) if "do shell script" in text)
    assert evil in call[position]
    assert call[position - 1] != "-e"
    last_script = max(index for index, text in enumerate(call) if text == "-e") + 1
    assert position > last_script
    assert any("item" in text and "argv" in text for text in call[:position])


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "fails"])
def test_notify_send_stands_in_for_osascript(
    watch: Watch,
    tmp_path: Path,
    env: dict[str, str],
    no_programs: None,
    notify_send: Notifier,
    broken: bool,
) -> None:
    if broken:
        Notifier(tmp_path, "osascript", env).does("sys.exit(1)")
    extra_env = other_pync(tmp_path, MISSING)
    script = watch(charging("62.0"), charging("67.0"), extra_env=extra_env)
    assert notify_send.calls() == [["BMW i3", step(67)]]
    assert script.stderr == []


def test_a_machine_that_shows_no_notifications_is_said_once(
    watch: Watch,
    tmp_path: Path,
    no_programs: None,
    webhook: Recorder,
    addresses: dict[str, str],
) -> None:
    readings = [charging("62.0"), charging("67.0"), charging("72.0"), charging("77.0"), full_car()]
    extra_env = other_pync(tmp_path, MISSING)
    script = watch(*readings, addresses=addresses, extra_env=extra_env)
    (line,) = script.stderr
    assert "this machine shows no notifications" in line
    assert webhook.messages() == [FULL]


def hang(notifier: Notifier) -> Path:
    """Let it ignore a polite end and sleep, with a file locked for as long as it lives."""
    file = notifier.folder / "alive"
    notifier.does(
        "import fcntl, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"file = open({str(file) + '.new'!r}, 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        f"os.rename(file.name, {str(file)!r})\ntime.sleep(60)"
    )
    return file


def wait_until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit, f"waited in vain for {what}"
        time.sleep(0.01)


def wait_until_gone(file: Path) -> None:
    def unlocked() -> bool:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    with file.open() as stream:
        wait_until(unlocked, f"the end of the program that locked {file}")


def test_notification_programs_and_addresses_have_ten_seconds() -> None:
    assert i3charge.NOTIFICATION_LIMIT_S == 10


def test_terminal_notifier_that_hangs_is_ended(
    portal: Portal, watch: Watch, terminal_notifier: Notifier, osascript: Notifier
) -> None:
    file = hang(terminal_notifier)
    readings = [charging("62.0"), charging("67.0"), charging("67.0")]
    script = watch(*readings, mac=True, constants={"NOTIFICATION_LIMIT_S": 1})
    wait_until_gone(file)
    (call,) = osascript.calls()
    assert step(67) in call
    _, rise, after = (poll.time for poll in portal.polls_seen()[:3])
    assert 0.9 < after - rise < 5
    assert script.stderr == []


def test_everything_hangs_and_polling_goes_on(
    watch: Watch, terminal_notifier: Notifier, osascript: Notifier, notify_send: Notifier
) -> None:
    files = [hang(notifier) for notifier in (terminal_notifier, osascript, notify_send)]
    readings = [charging("62.0"), charging("67.0"), charging("72.0")]
    script = watch(*readings, mac=True, constants={"NOTIFICATION_LIMIT_S": 1})
    for file in files:
        wait_until_gone(file)
    (line,) = script.stderr
    assert "this machine shows no notifications" in line


def test_interrupt_ends_a_terminal_notifier_that_hangs(
    portal: Portal, start: Start, terminal_notifier: Notifier
) -> None:
    file = hang(terminal_notifier)
    portal.readings = [charging("62.0"), charging("67.0")]
    script = start(settings=portal.settings(), mac=True)
    wait_until(file.exists, "the first notification")
    assert script.interrupt() == 130
    assert script.stderr == []
    wait_until_gone(file)


# --- On the phone ---------------------------------------------------------------------------


def test_webhook_gets_all_fields(
    watch: Watch, terminal_notifier: Notifier, webhook: Recorder, addresses: dict[str, str]
) -> None:
    watch(charging(), not_charging("62.5"), full_car(), addresses=addresses, mac=True)
    for request in webhook.accepted:
        assert (request.method, request.path) == ("POST", "/secret-hook")
        assert request.headers["Content-Type"] == "application/json"
    stopped, full = (json.loads(request.body) for request in webhook.accepted)
    for moment in (datetime.fromisoformat(fields.pop("time")) for fields in (stopped, full)):
        assert moment.utcoffset() == timedelta(hours=1)
        assert abs(datetime.now(timezone.utc) - moment) < timedelta(minutes=1)
    assert stopped == {
        "event": "stopped",
        "title": "BMW i3",
        "message": STOPPED,
        "charge": 62.5,
        "status": "plugged in",
    }
    assert full == {
        "event": "full",
        "title": "BMW i3",
        "message": FULL,
        "charge": 100,
        "status": "full",
    }


def test_ntfy_gets_the_message_and_its_headers(
    watch: Watch, terminal_notifier: Notifier, ntfy: Recorder, addresses: dict[str, str]
) -> None:
    watch(charging(), not_charging(), full_car(), addresses=addresses, mac=True)
    for request in ntfy.accepted:
        assert (request.method, request.path) == ("POST", "/secret-topic")
        assert request.headers["Title"] == "BMW i3"
        assert request.headers["Priority"] == "high"
        assert request.headers["Tags"].strip()
    assert [request.body.decode() for request in ntfy.accepted] == [STOPPED, FULL]


def test_steps_are_not_sent_to_the_phone(
    watch: Watch,
    terminal_notifier: Notifier,
    webhook: Recorder,
    ntfy: Recorder,
    addresses: dict[str, str],
) -> None:
    watch(charging("62.0"), charging("67.0"), addresses=addresses, mac=True)
    assert terminal_notifier.messages() == [step(67)]
    assert webhook.requests == ntfy.requests == []


def silent(handler: Handler) -> None:
    handler.server.closing.wait(30)
    handler.close_connection = True


def slow(handler: Handler) -> None:
    """A byte at a time, and never done."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.server.closing.wait(0.1):
        handler.wfile.write(b"z")
        handler.wfile.flush()
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


FAILURES: dict[str, Answer] = {
    "500": lambda handler: handler.reply(500),
    "404": lambda handler: handler.reply(404, "no such secret-hook"),
    "302": lambda handler: handler.reply(302, Location="/secret-new-address"),
    "307": lambda handler: handler.reply(307, Location="/secret-new-address"),
    "304": lambda handler: handler.reply(304),
    "hangs-up": hang_up,
    "says-no-http": lambda handler: handler.wfile.write(b"secret\r\n\r\n") and hang_up(handler),
    "silent": silent,
    "slow": slow,
}


def lines_about(address: str, script: Script) -> list[str]:
    return [line for line in script.stderr if address in line]


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_failed_delivery_is_logged_and_made_up_for(
    watch: Watch,
    terminal_notifier: Notifier,
    webhook: Recorder,
    ntfy: Recorder,
    addresses: dict[str, str],
    failure: Answer,
) -> None:
    webhook.answers = [failure]
    limit = {"NOTIFICATION_LIMIT_S": 1} if failure in (silent, slow) else None
    readings = [charging(), full_car(), full_car(), full_car()]
    script = watch(*readings, addresses=addresses, mac=True, constants=limit)
    (line,) = lines_about("127.0.0.1", script)
    assert str(webhook.server_port) not in line
    assert "/" not in line
    assert webhook.messages() == ntfy.messages() == [FULL]
    assert [request.path for request in webhook.requests] == ["/secret-hook"] * 2


class LateRecorder(Recorder):
    """Listens on a socket that was bound before, and refused connections until now."""

    def __init__(self, bound: socket.socket) -> None:
        self.bound = bound
        super().__init__()

    def server_bind(self) -> None:
        self.socket.close()
        self.socket = self.bound
        self.server_address = self.bound.getsockname()
        self.server_name, self.server_port = self.server_address


@pytest.fixture
def closed_port() -> Iterator[socket.socket]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


def test_address_that_was_closed_is_told_when_it_opens(
    watch: Watch, terminal_notifier: Notifier, ntfy: Recorder, closed_port: socket.socket
) -> None:
    addresses = {
        "WEBHOOK_URL": f"http://127.0.0.1:{closed_port.getsockname()[1]}/secret-hook",
        "NTFY_URL": ntfy.url + "secret-topic",
    }
    script = watch(charging(), not_charging(), full_car(), addresses=addresses, mac=True)
    assert ntfy.messages() == [STOPPED, FULL]
    assert lines_about("127.0.0.1", script)
    webhook = LateRecorder(closed_port)
    try:
        webhook.wait_for(lambda: len(webhook.accepted) == 2, "both messages")
        script.wait_for_readings(len(script.stdout) + 3)
        assert webhook.messages() == [STOPPED, FULL]
    finally:
        webhook.close()


@pytest.mark.parametrize("failing", ["webhook", "ntfy"])
def test_failing_address_is_told_in_order_and_does_not_hold_up_the_other(
    watch: Watch,
    terminal_notifier: Notifier,
    webhook: Recorder,
    ntfy: Recorder,
    addresses: dict[str, str],
    failing: str,
) -> None:
    late, prompt = (webhook, ntfy) if failing == "webhook" else (ntfy, webhook)
    late.answers = [FAILURES["500"]] * 8
    readings = [charging(), not_charging(), charging("61.0"), full_car()]
    script = watch(*readings, addresses=addresses, mac=True)
    late.wait_for(lambda: len(late.accepted) == 2, "both messages")
    script.wait_for_readings(len(script.stdout) + 3)
    assert late.messages() == prompt.messages() == [STOPPED, FULL]
    assert prompt.accepted[1].time < late.accepted[0].time


def test_delivery_is_tried_at_every_poll(
    portal: Portal,
    watch: Watch,
    terminal_notifier: Notifier,
    webhook: Recorder,
    addresses: dict[str, str],
) -> None:
    polls: list[int] = []

    def note_and_fail(handler: Handler) -> None:
        polls.append(len(portal.polls_seen()))
        handler.reply(503)

    def broken_poll(handler: Handler) -> None:
        handler.reply(500)

    webhook.answers = [note_and_fail] * 4
    readings = [charging(), full_car(), full_car(), broken_poll, full_car(), full_car()]
    watch(*readings, addresses=addresses, mac=True)
    assert polls == [2, 3, 4, 5]
    assert webhook.messages() == [FULL]


def test_plain_http_is_allowed_and_only_the_host_is_named(
    watch: Watch, terminal_notifier: Notifier, webhook: Recorder
) -> None:
    webhook.answers = [FAILURES["500"]]
    script = watch(
        *(charging(), full_car(), full_car()),
        addresses={"WEBHOOK_URL": "http://home.example:8123/secret-hook?key=secret"},
        extra_env={"http_proxy": webhook.url},
        mac=True,
    )
    assert [r.path for r in webhook.requests] == [
        "http://home.example:8123/secret-hook?key=secret"
    ] * 2
    assert webhook.messages() == [FULL]
    (line,) = script.stderr
    assert "home.example" in line
    assert "8123" not in line


def test_verbose_names_no_address(
    watch: Watch,
    terminal_notifier: Notifier,
    webhook: Recorder,
    ntfy: Recorder,
    addresses: dict[str, str],
) -> None:
    webhook.answers = [FAILURES["404"], FAILURES["307"], hang_up]
    readings = [charging(), full_car(), full_car(), full_car(), full_car()]
    script = watch(*readings, addresses=addresses, mac=True, arguments=("-v",))
    assert webhook.messages() == ntfy.messages() == [FULL]
    assert lines_about("127.0.0.1", script)
    assert "-hook" not in script.output
    assert "-topic" not in script.output


# --- The refused login ----------------------------------------------------------------------


def test_refused_first_login_is_told_everywhere(
    portal: Portal,
    start: Start,
    terminal_notifier: Notifier,
    webhook: Recorder,
    ntfy: Recorder,
    addresses: dict[str, str],
) -> None:
    portal.logins = [lambda handler: handler.reply(401, {"error": "ungültig"})]
    script = start(settings={**portal.settings(), **addresses}, mac=True)
    assert script.end() == 1
    assert len(portal.requests) == 1
    (message,) = terminal_notifier.messages()
    assert "BMW refuses the login (ungültig)" in message
    (sent,) = webhook.accepted
    fields = json.loads(sent.body)
    assert datetime.fromisoformat(fields.pop("time")).utcoffset() == timedelta(hours=1)
    assert fields == {
        "event": "error",
        "title": "BMW i3",
        "message": message,
        "charge": None,
        "status": None,
    }
    (sent,) = ntfy.accepted
    assert sent.body.decode("utf-8") == message
    assert sent.headers["Title"] == "BMW i3"
    assert sent.headers["Priority"] == "high"
    assert sent.headers["Tags"].strip()


def test_third_refusal_in_a_row_ends_a_run_and_is_told(
    portal: Portal,
    start: Start,
    terminal_notifier: Notifier,
    webhook: Recorder,
    ntfy: Recorder,
    addresses: dict[str, str],
) -> None:
    portal.logins = [None, refuse]
    portal.readings = [charging("62.0"), charging("64.0"), portal.expire_token, charging("64.0")]
    script = start(settings={**portal.settings(), **addresses}, mac=True)
    assert script.end() == 1
    assert len(portal.logins_seen()) == 4
    (message,) = terminal_notifier.messages()
    assert "BMW refuses the login" in message
    assert webhook.messages() == ntfy.messages() == [message]
    fields = json.loads(webhook.accepted[0].body)
    assert (fields["event"], fields["charge"], fields["status"]) == ("error", 64, "charging")


def test_two_refusals_in_a_row_are_not_told(
    portal: Portal,
    watch: Watch,
    terminal_notifier: Notifier,
    webhook: Recorder,
    addresses: dict[str, str],
) -> None:
    portal.logins = [None, refuse, refuse, None, refuse, refuse, None]
    readings = [charging(), portal.expire_token, charging(), portal.expire_token, charging()]
    script = watch(*readings, addresses=addresses, mac=True)
    assert len(portal.logins_seen()) == 7
    assert script.process.poll() is None
    assert terminal_notifier.calls() == []
    assert webhook.requests == []


def test_news_that_is_not_delivered_at_the_end_is_said(
    portal: Portal, start: Start, webhook: Recorder, addresses: dict[str, str]
) -> None:
    portal.logins = [refuse]
    webhook.answers = [lambda handler: handler.reply(500)] * 5
    script = start(settings={**portal.settings(), **addresses})
    assert script.end() == 1
    assert script.stderr_with("127.0.0.1 has not been told: BMW refuses the login") == 1


def test_refused_login_has_no_sound(
    portal: Portal, start: Start, terminal_notifier: Notifier
) -> None:
    portal.logins = [refuse]
    assert start(settings=portal.settings(), mac=True).end() == 1
    (call,) = terminal_notifier.calls()
    assert "-sound" not in call


def big(handler: Handler) -> None:
    handler.reply(200, b"x" * 2_000_000)


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"1\r\nx\r\n")
    handler.wfile.flush()
    handler.server.closing.wait(60)


@pytest.mark.parametrize("body", [big, endless])
def test_accepted_is_accepted_whatever_the_body(
    watch: Watch, webhook: Recorder, addresses: dict[str, str], body: Answer
) -> None:
    webhook.answers = [body]
    script = watch(charging(), full_car(), full_car(), full_car(), addresses=addresses)
    assert len(webhook.requests) == 1
    assert script.stderr_with("127.0.0.1 ") == 0


def test_long_wait_for_the_next_poll_does_not_hold_up_the_phone(
    portal: Portal, start: Start, webhook: Recorder, addresses: dict[str, str]
) -> None:
    portal.readings = [charging("60.0"), full_car()]
    webhook.answers = [lambda handler: handler.reply(500)] * 2
    settings = {**portal.settings(), **addresses, "LOG_INTERVAL": "3000"}
    script = start(settings=settings, constants={"REDELIVERY_S": 0.1})
    webhook.wait_for(lambda: webhook.accepted, "the webhook")
    assert len(script.stdout) == 2
