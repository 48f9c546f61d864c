"""What the owner is told of a charge, on the Mac and on the phone, and what if that fails."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable

import fake_cardata
import pytest
from conftest import Notifier, Script, Start, closing, write_settings
from fake_bmw import Answer, Handler, Portal, Recorder, car, full_car

import i3charge

FULL = "Fully charged. The charging station can be freed."
STOPPED = "Charging stopped at 62% (plugged in)"
REPORTED = datetime.now(timezone.utc) - timedelta(minutes=10)
TIME_STAMP = f"{REPORTED:%d.%m.%Y %H:%M:%S} UTC"
TIME_ZONE = "CET-1"

Watch = Callable[..., Script]


def full_clock(minutes: float = 140) -> str:
    return f"{REPORTED + timedelta(minutes=minutes + 60):%H:%M}"  # in TIME_ZONE


def charging(charge: object = "62.0", minutes: float = 140) -> dict[str, Any]:
    return car(charge, updateTime=TIME_STAMP, chargingTimeRemaining=str(minutes))


def not_charging(
    charge: object = "62.0", word: str = "NOT_CHARGING", plug: str = "CONNECTED"
) -> dict[str, Any]:
    return car(
        charge,
        chargingHVStatus=word,
        charging_status=None,
        chargingSystemStatus=None,
        connectorStatus=plug,
        chargingTimeRemaining=None,
        updateTime=TIME_STAMP,
    )


def full() -> dict[str, Any]:
    return full_car(updateTime=TIME_STAMP)


def refuse(handler: Handler) -> None:
    handler.reply(401, {"error": "ungültig"})


def fail(handler: Handler) -> None:
    handler.reply(500)


def step(percent: int) -> str:
    return f"{percent}% charged, full about {full_clock()}"


@pytest.fixture(autouse=True)
def time_zone(env: dict[str, str]) -> None:
    env["TZ"] = TIME_ZONE


@pytest.fixture
def watch(portal: Portal, start: Start) -> Watch:
    """Starts the script, and waits until it has done with these readings."""

    def watch(
        *readings: dict[str, Any] | Answer, more: dict[str, str] | None = None, **options: Any
    ) -> Script:
        portal.readings = list(readings)
        script = start(settings={**portal.settings(), **(more or {})}, **options)
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


def events(webhook: Recorder) -> list[str]:
    return [json.loads(request.body)["event"] for request in webhook.accepted]


# --- What is told ---------------------------------------------------------------------------


def test_a_night_is_told_on_the_mac_and_its_ends_on_the_phone_too(
    watch: Watch,
    terminal_notifier: Notifier,
    webhook: Recorder,
    ntfy: Recorder,
    addresses: dict[str, str],
) -> None:
    due = 8 + int((datetime.now(timezone.utc) - REPORTED).total_seconds() / 60)
    script = watch(
        *(not_charging("61.0"), charging("61.0"), charging("65.9"), charging("66.0")),
        *(not_charging("70.0", "CHARGINGPAUSED"), charging("70.0"), charging("75.0")),
        *(charging("81.0"), charging("95.0", due), charging("96.0", due - 1)),
        *(full(), full(), not_charging("61.0", plug="DISCONNECTED"), charging("61.0")),
        *(not_charging("62.0"), not_charging("62.0")),
        more={**addresses, "NOTIFY_AT": "80"},
        mac=True,
    )
    calls = [options_of(call) for call in terminal_notifier.calls()]
    soon = calls[4]["-message"]
    assert soon.startswith("Full in about ")
    assert soon.endswith(full_clock(due))
    expected = {
        step(66): False,
        "Charging paused at 70%": False,
        step(75): False,
        "80% reached": True,
        soon: True,
        FULL: True,
        STOPPED: True,
    }
    assert {call["-message"]: "-sound" in call for call in calls} == expected
    assert len(calls) == len(expected)
    assert {call["-title"] for call in calls} == {"BMW i3"}
    assert {call["-group"] for call in calls} == {"i3charge"}
    on_the_phone = ["80% reached", soon, FULL, STOPPED]
    assert webhook.messages() == ntfy.messages() == on_the_phone
    assert events(webhook) == ["reached", "soon", "full", "stopped"]
    assert script.stderr_with("% charged") == 0
    assert all(script.stderr_with(f"  {message}") == 1 for message in [*on_the_phone, "Charging p"])
    assert script.stderr_with("127.0.0.1 was told: Fully charged") == 2


def test_refused_login_is_told_everywhere_and_without_a_sound(
    portal: Portal,
    start: Start,
    terminal_notifier: Notifier,
    webhook: Recorder,
    ntfy: Recorder,
    addresses: dict[str, str],
) -> None:
    portal.logins = [refuse]
    script = start(settings={**portal.settings(), **addresses}, mac=True)
    assert script.end() == 1
    (call,) = terminal_notifier.calls()
    message = options_of(call)["-message"]
    assert "BMW refuses the login (ungültig)" in message
    assert "-sound" not in call
    assert webhook.messages() == ntfy.messages() == [message]
    fields = json.loads(webhook.accepted[0].body)
    assert fields["event"] == "error"
    assert fields["charge"] is fields["predicted"] is fields["status"] is None


@pytest.fixture
def cardata() -> Iterator[fake_cardata.CarData]:
    yield from closing(fake_cardata.CarData())


def test_a_sign_in_can_be_opened_from_the_notification(
    cardata: fake_cardata.CarData,
    start: Start,
    terminal_notifier: Notifier,
    ntfy: Recorder,
    addresses: dict[str, str],
) -> None:
    cardata.pending = 1_000_000
    start(settings={**cardata.settings(), "NTFY_URL": addresses["NTFY_URL"]}, mac=True)
    ntfy.wait_for(lambda: ntfy.accepted, "the notification")
    click = ntfy.accepted[0].headers["Click"]
    assert click.startswith("https://")
    assert click in ntfy.messages()[0]
    assert [options_of(call)["-open"] for call in terminal_notifier.calls()] == [click]


# --- On the Mac -----------------------------------------------------------------------------


def other_pync(folder: Path, source: str) -> dict[str, str]:
    """The environment in which `import pync` runs this source."""
    (folder / "pync.py").write_text(source)
    return {"PYTHONPATH": str(folder)}


def test_pync_is_used_whatever_the_platform_and_imported_when_it_is_due(
    portal: Portal, watch: Watch, tmp_path: Path, env: dict[str, str], osascript: Notifier
) -> None:
    shown = Notifier(tmp_path, "shown", env)
    imported = tmp_path / "imported"
    before: list[bool] = []
    source = f"""
import subprocess
open({str(imported)!r}, "w").close()
class Notifier:
    @staticmethod
    def notify(message, **options):
        return subprocess.Popen([{str(shown.folder / shown.name)!r}, "-message", message])
"""

    def rise(handler: Handler) -> None:
        before.append(imported.exists())
        handler.reply(200, charging("67.0"))

    watch(charging(), charging(), rise, charging("67.0"), extra_env=other_pync(tmp_path, source))
    assert before == [False]
    assert shown.messages() == [step(67)]
    assert osascript.calls() == []


@pytest.mark.parametrize("program", ["#!/bin/sh\nexit 1\n", "an Intel program"])
def test_osascript_shows_what_terminal_notifier_does_not(
    watch: Watch, terminal_notifier: Notifier, osascript: Notifier, program: str
) -> None:
    (terminal_notifier.folder / terminal_notifier.name).write_text(program)
    watch(charging("62.0"), charging("67.0"), full(), mac=True)
    first, second = osascript.calls()
    assert step(67) in first
    assert FULL in second
    assert "BMW i3" in first
    sounds = ["sound name" in " ".join(call) for call in (first, second)]
    assert sounds == [False, True]
    assert second[-1] == "Glass"


MISSING = "raise ImportError('no module named pync')"


@pytest.mark.parametrize(
    "source", [MISSING, "raise Exception('only on Mac OS X')"], ids=["missing", "elsewhere"]
)
@pytest.mark.usefixtures("no_programs")
def test_osascript_gets_the_text_as_an_argument_only(
    portal: Portal, start: Start, tmp_path: Path, osascript: Notifier, source: str
) -> None:
    evil = 'no" & (do shell script "id") & "'
    portal.logins = [lambda handler: handler.reply(401, {"error": evil})]
    extra_env = other_pync(tmp_path, source)
    assert start(settings=portal.settings(), extra_env=extra_env).end() == 1
    (call,) = osascript.calls()
    (position,) = (index for index, text in enumerate(call) if "do shell script" in text)
    assert evil in call[position]
    last_script = max(index for index, text in enumerate(call) if text == "-e") + 1
    assert position > last_script
    assert any("item" in text and "argv" in text for text in call[:position])


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "fails"])
@pytest.mark.usefixtures("no_programs")
def test_notify_send_stands_in_for_osascript(
    watch: Watch, tmp_path: Path, env: dict[str, str], notify_send: Notifier, broken: bool
) -> None:
    if broken:
        Notifier(tmp_path, "osascript", env).does("sys.exit(1)")
    extra_env = other_pync(tmp_path, MISSING)
    watch(charging("62.0"), charging("67.0"), extra_env=extra_env)
    assert notify_send.calls() == [["BMW i3", step(67)]]


NO_NOTIFICATIONS = "this machine shows no notifications"


@pytest.mark.usefixtures("no_programs")
def test_a_machine_that_shows_no_notifications_is_said_once_and_the_phone_rings(
    watch: Watch, tmp_path: Path, webhook: Recorder, addresses: dict[str, str]
) -> None:
    readings = [charging("62.0"), charging("67.0"), charging("72.0"), full()]
    script = watch(*readings, more=addresses, extra_env=other_pync(tmp_path, MISSING))
    assert script.stderr_with(NO_NOTIFICATIONS) == 1
    assert webhook.messages() == [FULL]


def hang(notifier: Notifier) -> None:
    """Let it record its call and its process, ignore a polite end and sleep."""
    path = notifier.folder / notifier.name
    path.write_text(f"{path.read_text()}echo $$ > '{path}.pid'\ntrap '' TERM\nexec sleep 60\n")


def wait_until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, f"waited in vain for {what}"
        time.sleep(0.01)


def has_begun(notifier: Notifier) -> bool:
    file = notifier.folder / f"{notifier.name}.pid"
    return file.exists() and bool(file.read_text().strip())


def wait_until_gone(notifier: Notifier) -> None:
    def gone() -> bool:
        try:
            os.kill(int((notifier.folder / f"{notifier.name}.pid").read_text()), 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(gone, f"the end of {notifier.name}")


def test_programs_that_hang_are_ended_and_not_started_again(
    watch: Watch, terminal_notifier: Notifier, osascript: Notifier, notify_send: Notifier
) -> None:
    hang(terminal_notifier)
    hang(osascript)
    notify_send.does("sys.exit(1)")
    readings = [charging("62.0"), charging("67.0"), charging("72.0")]
    script = watch(*readings, mac=True, constants={"NOTIFICATION_LIMIT_S": 1})
    wait_until_gone(terminal_notifier)
    wait_until_gone(osascript)
    counts = [len(program.calls()) for program in (terminal_notifier, osascript, notify_send)]
    assert counts == [1, 1, 2]
    assert script.stderr_with(NO_NOTIFICATIONS) == 1


def test_notification_programs_and_addresses_have_ten_seconds() -> None:
    assert i3charge.NOTIFICATION_LIMIT_S == 10


def test_interrupt_ends_a_program_that_hangs(
    osascript: Notifier, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hang(osascript)
    monkeypatch.setenv("PATH", env["PATH"])
    wait, waited_for = subprocess.Popen.wait, []

    def interrupted(process: Any, timeout: float | None = None) -> int:
        if timeout == i3charge.NOTIFICATION_LIMIT_S:
            waited_for.append(process)
            raise KeyboardInterrupt
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        i3charge.Desktop("BMW i3").show("67% charged", sound=False)
    (process,) = waited_for
    assert process.args[0] == "osascript"
    assert process.returncode == -signal.SIGKILL


# --- On the phone ---------------------------------------------------------------------------


NOT_KEPT = i3charge.Store(None)


def phone_for(more: dict[str, str]) -> i3charge.Phone:
    return i3charge.Phone(i3charge.Settings(more), i3charge.Http(), "BMW i3")


def tell(phone: i3charge.Phone, kind: i3charge.Kind = "full", message: str = FULL) -> None:
    reading = i3charge.Reading(62.5, "charging", predicted=True)
    phone.tell(kind, message, reading, "")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log, as with --verbose; nothing of an address is in it."""
    caplog.set_level(logging.DEBUG, "i3charge")
    yield caplog
    assert "secret" not in caplog.text


def failures_in(log: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in log.records if r.levelno == logging.ERROR]


def test_webhook_gets_all_fields_and_the_text_that_chats_show(
    addresses: dict[str, str], webhook: Recorder
) -> None:
    phone = phone_for(addresses)
    tell(phone, "stopped", STOPPED)
    phone.deliver(NOT_KEPT, again=True)
    (request,) = webhook.accepted
    assert (request.method, request.path) == ("POST", "/secret-hook")
    assert request.headers["Content-Type"] == "application/json"
    fields = json.loads(request.body)
    moment = datetime.fromisoformat(fields.pop("time"))
    assert abs(datetime.now(timezone.utc) - moment) < timedelta(minutes=1)
    assert fields == {
        "event": "stopped",
        "title": "BMW i3",
        "message": STOPPED,
        "text": f"BMW i3: {STOPPED}",
        "content": f"BMW i3: {STOPPED}",
        "charge": 62.5,
        "predicted": True,
        "status": "charging",
    }


def test_ntfy_gets_the_message_and_its_headers(addresses: dict[str, str], ntfy: Recorder) -> None:
    phone = phone_for(addresses)
    tell(phone, message="61 → 100%")
    phone.tell("error", "sign in", None, "https://example.com/link?code=1")
    phone.deliver(NOT_KEPT, again=True)
    for request in ntfy.accepted:
        assert (request.method, request.path) == ("POST", "/secret-topic")
        assert request.headers["Title"] == "BMW i3"
        assert request.headers["Priority"] == "high"
        assert request.headers["Tags"].strip()
    assert ntfy.messages() == ["61 → 100%", "sign in"]
    clicks = [request.headers.get("Click") for request in ntfy.accepted]
    assert clicks == [None, "https://example.com/link?code=1"]


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def say_no_http(handler: Handler) -> None:
    handler.wfile.write(b"secret\r\n\r\n")
    hang_up(handler)


def silent(handler: Handler) -> None:
    handler.server.closing.wait(30)
    hang_up(handler)


def slow(handler: Handler) -> None:
    """A byte at a time, and never done."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.server.closing.wait(0.1):
        handler.wfile.write(b"z")
        handler.wfile.flush()
    hang_up(handler)


def says(status: int, body: bytes | str | dict[str, Any] = b"", **headers: str) -> Answer:
    return lambda handler: handler.reply(status, body, **headers)


@pytest.mark.parametrize(
    "failure",
    [
        *[says(500), says(304), says(404, "no such secret-hook")],
        *[says(302, Location="/secret-new"), says(307, Location="/secret-new")],
        *[hang_up, say_no_http, silent, slow],
    ],
)
def test_failed_delivery_is_said_once_and_made_up_for(
    addresses: dict[str, str],
    webhook: Recorder,
    ntfy: Recorder,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    failure: Answer,
) -> None:
    if failure in (silent, slow):
        monkeypatch.setattr(i3charge, "NOTIFICATION_LIMIT_S", 0.5)
    webhook.answers = [failure] * 2
    phone = phone_for(addresses)
    tell(phone)
    for _ in range(4):
        phone.deliver(NOT_KEPT, again=True)
    (line,) = failures_in(log)
    assert "127.0.0.1 " in line
    assert str(webhook.server_port) not in log.text
    assert line.endswith("; it will be tried again")
    assert webhook.messages() == ntfy.messages() == [FULL]
    assert [request.path for request in webhook.requests] == ["/secret-hook"] * 3
    assert webhook.requests[1].time - webhook.requests[0].time < 10
    assert log.text.count("127.0.0.1 was told: Fully charged") == 2
    assert phone.waiting == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says(403, {"code": 40301, "error": "forbidden", "link": "x"}), "(HTTP 403): forbidden"),
        (says(400, {"message": "Cannot send an empty message"}), ": Cannot send an empty message"),
        (says(400, {"ok": False, "description": "chat not found"}), ": chat not found"),
        (says(404, "no_service"), ": no_service"),
        (says(502, "<html><h1>Bad Gateway</h1></html>"), ": Bad Gateway"),
        (says(400, "\x1b[31mred\nand\x07 two lines"), ": ?[31mred and? two lines"),
        (says(400, "x" * 5000), "(HTTP 400): " + "x" * 60),
        (says(400, b"\xff\xfe\x00"), "(HTTP 400): "),
        (says(400, {"error": ["secret"]}), ": no reason given"),
        (says(500), ": no reason given"),
    ],
)
def test_the_reason_of_a_refusal_is_said_in_harmless_words(
    webhook: Recorder, log: pytest.LogCaptureFixture, answer: Answer, said: str
) -> None:
    webhook.answers = [answer]
    phone = phone_for({"WEBHOOK_URL": f"{webhook.url}secret-hook"})
    tell(phone)
    phone.deliver(NOT_KEPT, again=False)
    (line,) = failures_in(log)
    assert said in line
    assert line.isprintable()
    assert len(line) < 150
    assert "tried again" not in line


@pytest.mark.parametrize("part", ["anna", "secret-hook", "bot42:secret", "secret%20key", "to 7"])
def test_the_reason_of_a_refusal_holds_nothing_of_the_address(
    webhook: Recorder, log: pytest.LogCaptureFixture, part: str
) -> None:
    said = part.replace("%20", " ")
    webhook.answers = [says(400, f"no {said} here ({said.upper()})")]
    hook = "bot42:secret/secret-hook?key=secret%20key&to=to%207"
    phone = phone_for({"WEBHOOK_URL": webhook.url.replace("//", "//anna:secret-word@") + hook})
    tell(phone)
    phone.deliver(NOT_KEPT, again=True)
    (line,) = failures_in(log)
    assert "400" in line
    assert said.lower() not in line.lower()


def test_an_address_that_fails_is_told_in_order_and_does_not_hold_up_the_other(
    addresses: dict[str, str], webhook: Recorder, ntfy: Recorder
) -> None:
    for late, prompt in ((webhook, ntfy), (ntfy, webhook)):
        late.accepted, prompt.accepted = [], []
        late.answers = [fail, fail]
        phone = phone_for(addresses)
        tell(phone, message="first")
        tell(phone, message="second")
        phone.deliver(NOT_KEPT, again=True)
        assert (late.messages(), prompt.messages()) == ([], ["first", "second"])
        tell(phone, message="third")
        phone.deliver(NOT_KEPT, again=True)
        assert late.messages() == []
        phone.deliver(NOT_KEPT, again=True)
        assert late.messages() == prompt.messages() == ["first", "second", "third"]


def test_what_is_older_than_a_day_is_forgotten_and_what_has_no_address_waits(
    addresses: dict[str, str], webhook: Recorder, ntfy: Recorder
) -> None:
    phone = phone_for(addresses)
    tell(phone, message="long ago")
    for request in phone.waiting:
        request["at_s"] -= 24 * 60 * 60 + 1
    tell(phone, message="now")
    after_restart = phone_for({"WEBHOOK_URL": addresses["WEBHOOK_URL"]})
    after_restart.waiting = json.loads(json.dumps(phone.waiting))
    after_restart.deliver(NOT_KEPT, again=True)
    assert webhook.messages() == ["now"]
    assert ntfy.requests == []
    assert [request["to"] for request in after_restart.waiting] == ["NTFY_URL"]


def test_a_closed_port_is_an_ordinary_failure(log: pytest.LogCaptureFixture) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        phone = phone_for({"WEBHOOK_URL": f"http://127.0.0.1:{bound.getsockname()[1]}/secret"})
        tell(phone)
        phone.deliver(NOT_KEPT, again=True)
    assert "127.0.0.1" in failures_in(log)[0]
    assert len(phone.waiting) == 1


def test_plain_http_is_allowed_and_only_the_host_is_named(
    webhook: Recorder, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", webhook.url)
    url = "http://home.example:8123/secret-hook?key=secret"
    phone = phone_for({"WEBHOOK_URL": url})
    webhook.answers = [fail]
    tell(phone)
    phone.deliver(NOT_KEPT, again=True)
    phone.deliver(NOT_KEPT, again=True)
    assert [request.path for request in webhook.requests] == [url] * 2
    assert "home.example" in log.text
    assert "8123" not in log.text


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"1\r\nx\r\n")
    handler.wfile.flush()
    handler.server.closing.wait(60)


@pytest.mark.parametrize("body", [says(200, b"x" * 2_000_000), endless])
def test_accepted_is_accepted_whatever_the_body(
    webhook: Recorder,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    body: Answer,
) -> None:
    monkeypatch.setattr(i3charge, "NOTIFICATION_LIMIT_S", 0.5)
    webhook.answers = [body]
    phone = phone_for({"WEBHOOK_URL": webhook.url})
    tell(phone)
    phone.deliver(NOT_KEPT, again=True)
    assert phone.waiting == failures_in(log) == []


# --- Over a restart -------------------------------------------------------------------------


def test_once_after_once_tells_steps_and_full_and_makes_up_for_what_was_not_delivered(
    portal: Portal,
    start: Start,
    tmp_path: Path,
    terminal_notifier: Notifier,
    webhook: Recorder,
    ntfy: Recorder,
    addresses: dict[str, str],
) -> None:
    def once(reading: dict[str, Any]) -> list[str]:
        portal.readings = [reading]
        settings = {**portal.settings(), **addresses}
        script = start("--once", settings=settings, mac=True)
        assert script.end() == 0
        return script.stderr

    assert once(not_charging("61.0")) == []
    assert once(charging("61.0")) == []
    once(charging("67.0"))
    assert terminal_notifier.messages() == [step(67)]
    file = tmp_path / ".i3charge.json"
    kept = json.loads(file.read_text())
    (watched,) = (thing for name, thing in kept.items() if name.startswith("car "))
    watched["began_s"] = REPORTED.timestamp() - 140 * 60
    file.write_text(json.dumps(kept))
    webhook.answers = [fail]
    log = "\n".join(once(full()))
    told = "Fully charged: 61 → 100% in 2 h 20 min. The charging station can be freed."
    assert told in log
    assert "has not been told: Fully charged" in log
    assert "the next start tries again" in log
    assert "will be tried again" not in log
    assert (ntfy.messages(), webhook.messages()) == ([told], [])
    assert any("127.0.0.1 was told" in line for line in once(full()))
    assert once(full()) == []
    assert terminal_notifier.messages() == [step(67), told]
    assert ntfy.messages() == webhook.messages() == [told]


def test_a_restart_at_95_percent_tells_of_full_and_of_what_was_left_over(
    watch: Watch,
    terminal_notifier: Notifier,
    webhook: Recorder,
    ntfy: Recorder,
    addresses: dict[str, str],
) -> None:
    webhook.answers = [fail] * 1000
    readings = [charging(), not_charging(), charging("95.0")]
    script = watch(*readings, more=addresses, mac=True)
    assert script.interrupt() == 130
    assert script.stderr_with(f"127.0.0.1 has not been told: {STOPPED} (the next start") == 1
    assert script.stderr_with("will be tried again") == 1
    webhook.answers.clear()
    assert watch(full(), full(), more=addresses, mac=True).interrupt() == 130
    assert ntfy.messages() == webhook.messages() == [STOPPED, FULL]
    assert terminal_notifier.messages()[-1] == FULL


def test_news_is_told_once_even_if_the_program_is_killed_over_it(
    watch: Watch,
    portal: Portal,
    start: Start,
    terminal_notifier: Notifier,
    webhook: Recorder,
    addresses: dict[str, str],
) -> None:
    terminal_notifier.does("time.sleep(60)")
    portal.readings = [charging("95.0"), full()]
    more = {"WEBHOOK_URL": addresses["WEBHOOK_URL"]}
    script = start(settings={**portal.settings(), **more}, mac=True)
    terminal_notifier.wait_for_calls(1)
    script.process.kill()
    assert script.end() == -signal.SIGKILL
    assert webhook.requests == []
    terminal_notifier.does("")
    assert watch(full(), full(), more=more, mac=True).interrupt() == 130
    assert terminal_notifier.messages() == webhook.messages() == [FULL]


def test_what_one_address_has_taken_is_on_disk_before_the_next_is_told(
    watch: Watch,
    portal: Portal,
    start: Start,
    webhook: Recorder,
    ntfy: Recorder,
    addresses: dict[str, str],
) -> None:
    webhook.answers = [silent]
    portal.readings = [charging("95.0"), full()]
    script = start(settings={**portal.settings(), **addresses})
    webhook.wait_for(lambda: webhook.requests, "the webhook")
    assert script.interrupt() == 130
    assert watch(full(), full(), more=addresses).interrupt() == 130
    assert ntfy.messages() == webhook.messages() == [FULL]


def test_news_of_one_settings_file_is_not_sent_to_the_addresses_of_another(
    portal: Portal,
    start: Start,
    tmp_path: Path,
    webhook: Recorder,
    addresses: dict[str, str],
) -> None:
    portal.logins = [refuse, None]
    webhook.answers = [fail]
    settings = {**portal.settings(), "WEBHOOK_URL": addresses["WEBHOOK_URL"]}
    other = ("--once", "--env-file", str(write_settings(tmp_path / "other.env", settings)))
    assert start(*other).end() == 1
    assert start("--once", settings=settings).end() == 0
    assert webhook.accepted == []
    assert start(*other).end() == 0
    assert events(webhook) == ["error"]


def test_a_closed_pipe_loses_no_news(
    portal: Portal, start: Start, webhook: Recorder, addresses: dict[str, str]
) -> None:
    portal.readings = [charging("95.0"), full()]
    read_end, write_end = os.pipe()
    more = {"WEBHOOK_URL": addresses["WEBHOOK_URL"], "LOG_INTERVAL": "1000"}
    script = start(settings={**portal.settings(), **more}, stdout=write_end)
    os.close(write_end)
    with open(read_end) as reader:
        assert "95%" in reader.readline()
    assert script.end() == 0
    assert webhook.messages() == [FULL]


def test_a_refused_login_that_was_not_told_is_told_by_the_next_start(
    portal: Portal, start: Start, webhook: Recorder, addresses: dict[str, str]
) -> None:
    portal.logins = [refuse]
    webhook.answers = [fail]
    settings = {**portal.settings(), "WEBHOOK_URL": addresses["WEBHOOK_URL"]}
    script = start(settings=settings)
    assert script.end() == 1
    assert script.stderr_with("127.0.0.1 has not been told: BMW refuses the login") == 1
    assert script.stderr_with("tried again") == 0
    portal.logins = [None]
    assert start("--once", settings=settings).end() == 0
    assert events(webhook) == ["error"]


# --- Over hours -----------------------------------------------------------------------------


class Hours:
    """A clock that only sleeping moves, and that ends the program when the hours are over."""

    def __init__(self, hours: float) -> None:
        self.began_s = time.time() // 60 * 60
        self.passed_s = 0.0
        self.limit_s = hours * 60 * 60

    def time(self) -> float:
        return self.began_s + self.passed_s

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.passed_s += seconds
        if self.passed_s > self.limit_s:
            raise KeyboardInterrupt


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notifier:
    """The only program here that shows notifications, for what runs in this process."""
    env = {"PATH": "/usr/bin:/bin"}
    notifier = Notifier(tmp_path, "notify-send", env)
    monkeypatch.setitem(sys.modules, "pync", None)
    monkeypatch.setenv("PATH", env["PATH"])
    return notifier


def run_for(hours: Hours, settings: dict[str, str], path: Path) -> None:
    arguments = argparse.Namespace(once=False, demo=False, json=False)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(i3charge, "time", hours)
        i3charge.start(arguments, i3charge.Settings(settings), path / ".env")


@pytest.mark.usefixtures("shown", "capfd")
def test_a_long_wait_for_the_next_poll_does_not_hold_up_the_phone(
    portal: Portal, webhook: Recorder, tmp_path: Path
) -> None:
    hours, tried_s = Hours(3), []

    def note_and_fail(handler: Handler) -> None:
        tried_s.append(hours.passed_s)
        fail(handler)

    def note(handler: Handler) -> None:
        tried_s.append(hours.passed_s)
        handler.reply(200)

    portal.readings = [not_charging("99.0"), full()]
    webhook.answers = [note_and_fail, note_and_fail, note]
    settings = {**portal.settings(), "LOG_INTERVAL": "2400000", "WEBHOOK_URL": webhook.url}
    run_for(hours, settings, tmp_path)
    first_s, *later_s = tried_s
    assert first_s == 2400
    assert [at_s - first_s for at_s in later_s] == [60, 120]
    assert webhook.accepted == []


@pytest.mark.usefixtures("capfd")
def test_a_blind_night_is_told_once_when_it_is_an_hour_old(
    portal: Portal, webhook: Recorder, shown: Notifier, tmp_path: Path
) -> None:
    hours = Hours(8)
    told_s: list[float] = []

    def note(handler: Handler) -> None:
        told_s.append(hours.passed_s)
        webhook.accepted.append(webhook.requests[-1])
        handler.reply(200)

    reading = car("60.0", updateTime=None, chargingTimeRemaining="200")  # news in 25 minutes
    portal.readings = [reading, fail]
    webhook.answers = [note, note]
    settings = {**portal.settings(), "LOG_INTERVAL": "2400000", "WEBHOOK_URL": webhook.url}
    run_for(hours, settings, tmp_path)
    assert told_s == [80 * 60]
    assert events(webhook) == ["error"]
    assert "No word from BMW" in webhook.messages()[0]
    assert len(shown.calls()) == 1


# --- The demo -------------------------------------------------------------------------------


def test_the_demo_says_that_it_is_one_and_remembers_nothing(
    tmp_path: Path,
    shown: Notifier,
    webhook: Recorder,
    ntfy: Recorder,
    addresses: dict[str, str],
    log: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    webhook.answers = [fail] * 100
    folder = tmp_path / "demo"
    folder.mkdir()
    arguments = argparse.Namespace(once=False, demo=True, json=False)
    with i3charge.simulated_bmw() as simulated:
        settings = i3charge.Settings({**simulated, **addresses, "LOG_INTERVAL": "1"})
        assert i3charge.start(arguments, settings, folder / ".env") == 0
    assert "100%  full" in capfd.readouterr().out
    assert {call[0] for call in shown.calls()} == {"BMW i3 (demo)"}
    assert {request.headers["Title"] for request in ntfy.accepted} == {"BMW i3 (demo)"}
    assert ntfy.messages()[-1].startswith("Fully charged")
    sent = json.loads(webhook.requests[0].body)
    assert sent["title"] == "BMW i3 (demo)"
    assert sent["text"].startswith("BMW i3 (demo): ")
    assert any("has not been told" in line for line in failures_in(log))
    assert "the next start" not in log.text
    assert list(folder.iterdir()) == []
