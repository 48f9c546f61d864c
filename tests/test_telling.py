"""How news is told: on the desktop, by ntfy and by a webhook."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock, Notifier, Start
from fake_bmw import Answer, Handler, Portal, Recorder, car, full_car
from fake_cardata import CarData

import i3charge
from i3charge import Memory, Message, News, Reading, Settings

FULL = News("full", "Fully charged. The charging station can be freed.")
DAY_S = 24 * 3600


def says(status: int, body: Any = b"", **headers: str) -> Answer:
    return lambda handler: handler.reply(status, body, **headers)


def charging(charge: object = "62.0", minutes: float = 140) -> dict[str, Any]:
    return car(charge, chargingTimeRemaining=str(minutes))


class Sender:
    """An outbox in this process."""

    def __init__(self, memory: Memory, **urls: Any) -> None:
        self.memory = memory
        self.outbox = i3charge.Outbox(Settings(**urls), memory, "BMW i3", tries_again=True)

    def tell(self, *news: News, reading: Reading | None = None) -> None:
        for one in news:
            self.outbox.add(one, reading)
        self.outbox.deliver()

    def wait(self, clock: Clock, hours: float) -> None:
        """As the loop does: it looks once a minute."""
        for _ in range(int(hours * 60)):
            clock.sleep(60)
            self.outbox.deliver()


@pytest.fixture
def sender(ntfy: Recorder) -> Sender:
    return Sender(Memory(), ntfy_url=ntfy.url + "secret-topic")


# --- What each kind of news does ------------------------------------------------------

WAYS: dict[i3charge.Kind, tuple[bool, str, str]] = {  # sound, ntfy's priority, ntfy's tag
    "started": (False, "low", "zap"),
    "step": (False, "", ""),
    "reached": (True, "high", "dart"),
    "soon": (True, "high", "hourglass"),
    "overdue": (True, "high", "hourglass"),
    "full": (True, "high", "battery"),
    "stopped": (True, "high", "warning"),
    "paused": (False, "", ""),
    "still": (False, "default", "electric_plug"),
    "sign-in": (False, "high", "rotating_light"),
    "error": (False, "high", "rotating_light"),
}


@pytest.mark.parametrize("kind", WAYS)
def test_each_kind_of_news_has_its_ways(
    sender: Sender, ntfy: Recorder, kind: i3charge.Kind
) -> None:
    sound, priority, tag = WAYS[kind]
    sender.tell(News(kind, "hello"))
    told = [(r.headers["Priority"], r.headers["Tags"]) for r in ntfy.accepted]
    assert told == ([(priority, tag)] if priority else [])
    assert i3charge.WAYS[kind].sound == sound


def test_ntfy_gets_the_message_and_an_address_to_open(sender: Sender, ntfy: Recorder) -> None:
    sender.tell(News("sign-in", "Sign in: 5 min, überall", click="https://bmw.example/link"))
    (request,) = ntfy.accepted
    assert request.path == "/secret-topic"
    assert request.body.decode() == "Sign in: 5 min, überall"
    assert request.headers["Title"] == "BMW i3"
    assert request.headers["Click"] == "https://bmw.example/link"


def test_webhook_gets_all_fields(webhook: Recorder) -> None:
    sender = Sender(Memory(), webhook_url=webhook.url + "secret-hook")
    reading = Reading(99.5, status="full", source="BMW")
    sender.tell(FULL, News("error", "hello"))
    sender.tell(FULL, reading=reading)
    first, second, third = [json.loads(request.body) for request in webhook.accepted]
    text = f"BMW i3: {FULL.message}"
    assert first.pop("time") and first == {
        "event": "full",
        "title": "BMW i3",
        "message": FULL.message,
        "body": FULL.message,
        "text": text,
        "content": text,
        "charge": None,
        "predicted": None,
        "status": None,
    }
    assert second["event"] == "error"
    assert (third["charge"], third["predicted"], third["status"]) == (99.5, True, "full")


# --- What an address does not take ----------------------------------------------------


def test_message_that_is_refused_for_good_holds_up_no_other(
    sender: Sender, ntfy: Recorder, clock: Clock
) -> None:
    ntfy.answers = [says(422)]
    sender.tell(FULL, News("error", "the next"))
    assert ntfy.messages() == ["the next"]
    assert [message.news for message in sender.memory.outbox] == [FULL]


def test_refused_message_is_tried_again_for_a_day_at_growing_pauses(
    sender: Sender, ntfy: Recorder, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    began_s = clock.now_s
    tries: list[float] = []

    def refuse(handler: Handler) -> None:
        tries.append(clock.now_s - began_s)
        handler.reply(503)

    ntfy.answers = [refuse] * 100
    sender.tell(FULL)
    sender.wait(clock, 30)
    minutes = [round((later - earlier) / 60) for earlier, later in zip(tries, tries[1:])]
    assert minutes[:7] == [1, 1, 2, 4, 8, 16, 32]  # as long as it has waited
    assert set(minutes[7:]) == {60} and tries[-1] <= DAY_S
    assert sender.memory.outbox == []
    first, last = log.messages  # not at every try
    assert "HTTP 503" in first and last.startswith("after a day, no more tries to tell: Fully")


def test_refused_message_is_taken_when_the_address_is_there_again(
    sender: Sender, ntfy: Recorder, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    ntfy.answers = [says(500), says(429)]
    sender.tell(FULL)
    sender.wait(clock, 1)
    assert ntfy.messages() == [FULL.message]
    assert log.messages == [
        "127.0.0.1 did not accept a notification (HTTP 500): no reason given;"
        " it will be tried again",
        "127.0.0.1 did not accept a notification (HTTP 429): no reason given;"
        " it will be tried again",
        "127.0.0.1 was told: Fully charged. The charging station can…",
    ]


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def test_message_that_may_have_been_taken_is_tried_twice_more(
    sender: Sender, ntfy: Recorder, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    ntfy.answers = [hang_up] * 10
    sender.tell(FULL)
    sender.wait(clock, 3)
    assert len(ntfy.requests) == 3
    assert log.messages[-1].startswith("127.0.0.1 may not have been told: Fully charged.")
    assert sender.memory.outbox == []


def test_address_that_is_not_reached_is_told_after_as_long_as_it_was_not(
    sender: Sender, ntfy: Recorder, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    ntfy.stop_listening()
    sender.tell(FULL)
    sender.wait(clock, 0.25)
    ntfy.listen_again()
    sender.wait(clock, 0.25)
    assert ntfy.messages() == [FULL.message]
    assert len(log.messages) == 2  # that it is not reached, and that it was told


# What an address answers: its status, its body, and where it leads to.
PAGE = "<html>Sign in</html>"
NTFY_ID: Any = {"id": "q9bBuFZXdtmL"}
GOOGLE = "https://script.googleusercontent.com/macros/echo?user_content_key=secret"
ANSWERS: list[tuple[str, tuple[int, Any, str], str]] = [
    ("ntfy", (200, NTFY_ID, ""), ""),
    ("ntfy", (200, PAGE, ""), "the address does not answer as ntfy, but with a web page"),
    ("ntfy", (200, {"id": None}, ""), "the address does not answer as ntfy, but with a web page"),
    ("ntfy", (302, "", "https://auth.example/?rd=secret"), "leads to auth.example, as to a login"),
    ("ntfy", (302, "", "/login?secret"), "the address leads to another page, as to a login"),
    ("ntfy", (302, "", GOOGLE), "leads to script.googleusercontent.com, as to a login"),
    ("ntfy", (307, NTFY_ID, "https://ntfy.example/"), "leads to ntfy.example, as to a login"),
    ("ntfy", (404, {"error": "page not found"}, ""), "page not found"),
    ("webhook", (200, PAGE, ""), ""),
    ("webhook", (204, "", ""), ""),
    ("webhook", (302, "", GOOGLE), ""),
    ("webhook", (303, "", "https://googleusercontent.com/"), ""),
    ("webhook", (307, "", GOOGLE), "leads to script.googleusercontent.com, as to a login"),
    ("webhook", (302, "", "https://evil-googleusercontent.com/"), "evil-googleusercontent.com, as"),
    ("webhook", (302, "", "https://secret_.example/"), "leads to another page, as to a login"),
    ("webhook", (302, "", "https://[secret/"), "no answer from 127.0.0.1"),
    ("webhook", (303, "", "/login"), "the address leads to another page, as to a login"),
    ("webhook", (500, "", ""), "no reason given"),
]


@pytest.mark.parametrize(("address", "answer", "refusal"), ANSWERS)
def test_message_is_taken_only_by_what_takes_messages(
    ntfy: Recorder,
    log: pytest.LogCaptureFixture,
    address: str,
    answer: tuple[int, Any, str],
    refusal: str,
) -> None:
    sender = Sender(Memory(), **{f"{address}_url": ntfy.url + "secret-topic"})
    status, body, location = answer
    ntfy.answers = [says(status, body, **({"Location": location} if location else {}))]
    sender.tell(FULL)
    assert len(ntfy.requests) == 1
    assert len(sender.memory.outbox) == bool(refusal)
    assert "secret" not in log.text and log.messages[0].isprintable()
    assert refusal in log.messages[0]


def test_address_that_does_not_answer_is_tried_once_in_a_pass(
    sender: Sender, ntfy: Recorder, clock: Clock
) -> None:
    ntfy.answers = [hang_up]
    sender.tell(*[News("error", f"message {number}") for number in range(5)])
    assert len(ntfy.requests) == 1
    sender.wait(clock, 0.1)
    assert sorted(ntfy.messages()) == [f"message {number}" for number in range(5)]


def test_code_that_has_run_out_is_not_told_any_more(
    sender: Sender, ntfy: Recorder, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    ntfy.answers = [says(500)] * 8  # in the first five minutes
    sender.tell(News("sign-in", "Sign in", good_until_s=clock.now_s + 300), FULL)
    sender.wait(clock, 0.2)
    assert ntfy.answers == []
    assert ntfy.messages() == [FULL.message]
    assert sender.memory.outbox == []
    assert not any("Sign in" in message for message in log.messages)


def test_message_says_what_was_so_when_it_was_made(webhook: Recorder, clock: Clock) -> None:
    sender = Sender(Memory(), webhook_url=webhook.url)
    webhook.answers = [says(500)]
    made = i3charge.iso_local(clock.now_s)
    sender.tell(FULL, reading=Reading(100, status="full"))
    sender.wait(clock, 0.1)
    (body,) = [json.loads(request.body) for request in webhook.accepted]
    assert (body["time"], body["charge"], body["status"]) == (made, 100, "full")


def test_each_address_is_told_by_itself(ntfy: Recorder, webhook: Recorder) -> None:
    sender = Sender(Memory(), ntfy_url=ntfy.url + "secret", webhook_url=webhook.url)
    ntfy.answers = [says(500)]
    sender.tell(FULL)
    assert (ntfy.messages(), webhook.messages()) == ([], [FULL.message])
    assert [message.address for message in sender.memory.outbox] == ["NTFY_URL"]


def test_what_has_no_address_waits(sender: Sender, ntfy: Recorder) -> None:
    waiting = Message("WEBHOOK_URL", News("full", "hello"), made_s=time.time())
    sender.memory.outbox = [waiting]
    sender.tell(FULL)
    assert sender.memory.outbox == [waiting]


def test_clock_that_is_set_back_does_not_hold_up_a_message(
    sender: Sender, ntfy: Recorder, clock: Clock
) -> None:
    ntfy.answers = [says(500)]
    sender.tell(FULL)
    clock.now_s -= 5 * 3600
    sender.wait(clock, 0.1)
    assert ntfy.messages() == [FULL.message]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": "topic is reserved"}, "topic is reserved"),
        ({"error": {"message": "Invalid JSON payload"}}, "Invalid JSON payload"),
        ({"message": "unknown webhook"}, "unknown webhook"),
        ({"description": "chat not found"}, "chat not found"),
        ("<html><h1>Bad Gateway</h1>", "Bad Gateway"),
        ("\033[2J\007no", "?[2J?no"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("no /secret-topic here", "no /*** here"),
        ("", "no reason given"),
    ],
)
def test_reason_of_a_refusal_is_said_in_harmless_words(
    sender: Sender, ntfy: Recorder, body: Any, reason: str, log: pytest.LogCaptureFixture
) -> None:
    ntfy.answers = [says(400, body)]
    sender.tell(FULL)
    start = "127.0.0.1 did not accept a notification (HTTP 400): "
    assert log.messages == [f"{start}{reason}; it will be tried again"]


def test_address_is_not_shown_where_a_refusal_repeats_it_in_other_letters(
    ntfy: Recorder, log: pytest.LogCaptureFixture
) -> None:
    ntfy.answers = [says(404, {"error": "topic /secret-w%C3%B6rter is unknown"})]
    Sender(Memory(), ntfy_url=ntfy.url + "secret-wörter").tell(FULL)
    assert "topic /*** is unknown" in log.messages[0]


def test_password_in_an_own_address_is_used(ntfy: Recorder) -> None:
    url = ntfy.url.replace("//", "//me:secret@") + "secret-topic"
    Sender(Memory(), ntfy_url=url).tell(FULL)
    assert ntfy.accepted[0].headers["Authorization"].startswith("Basic ")


def test_what_is_left_is_said_at_the_end(
    portal: Portal, ntfy: Recorder, start: Start, tmp_path: Path
) -> None:
    portal.readings = [charging(), full_car()]
    ntfy.answers = [says(500)] * 10
    settings = {**portal.settings(), "NTFY_URL": ntfy.url + "secret-topic"}
    script = start(settings=settings)
    script.wait_for_stderr("did not accept")
    assert script.interrupt() == 130
    left = "127.0.0.1 has not been told: Fully charged. The charging station can be freed."
    assert script.stderr[-1].endswith(f"{left} (the next start tries again)")

    ntfy.answers = []
    file = tmp_path / ".i3charge-i3.env.json"
    kept = json.loads(file.read_text())
    for message in kept["outbox"]:
        message["next_try_s"] = 0.0
    file.write_text(json.dumps(kept))
    assert start("--once", settings=settings).end() == 0
    assert ntfy.messages() == ["Fully charged. The charging station can be freed."]


def test_program_that_is_killed_between_two_addresses_tells_the_second_at_its_next_start(
    portal: Portal, ntfy: Recorder, webhook: Recorder, start: Start
) -> None:
    portal.readings = [charging(), full_car()]
    urls = {"NTFY_URL": ntfy.url + "secret-topic", "WEBHOOK_URL": webhook.url}
    script = start(settings={**portal.settings(), **urls})

    def kill(_: Handler) -> None:
        script.process.send_signal(signal.SIGKILL)

    webhook.answers = [kill]
    assert script.end() == -signal.SIGKILL
    assert start("--once", settings={**portal.settings(), **urls}).end() == 0
    assert ntfy.messages() == webhook.messages() == [FULL.message]


# --- On the desktop -------------------------------------------------------------------


def options_of(call: list[str]) -> dict[str, str]:
    return dict(zip(call[::2], call[1::2]))


@pytest.fixture
def night(portal: Portal) -> Portal:
    """It starts to charge, is soon full, and then it is."""
    portal.readings = [
        car("41.0", chargingHVStatus="NOT_CHARGING", charging_status="NOCHARGING"),
        charging("41.0"),
        charging("97.0", 9),
        full_car(),
    ]
    return portal


@pytest.mark.parametrize("macos", ["14.5", "16.0", "26.1"])
def test_terminal_notifier_on_the_path_shows_each_kind_in_a_group_of_its_own(
    night: Portal, start: Start, terminal_notifier: Notifier, macos: str
) -> None:
    script = start(settings=night.settings(), macos=macos)
    terminal_notifier.wait_for_calls(3)
    script.interrupt()
    calls = [options_of(call) for call in terminal_notifier.calls()]
    groups = ["i3charge-started", "i3charge-soon", "i3charge-full"]
    assert [call["-group"] for call in calls] == groups
    assert [call.get("-sound") for call in calls] == [None, "Glass", "Glass"]
    assert {call["-title"] for call in calls} == {"BMW i3"}
    assert calls[0]["-message"].startswith("Charging from 41%, full about ")


def test_sign_in_can_be_opened_from_the_notification(
    cardata: CarData, start: Start, terminal_notifier: Notifier
) -> None:
    script = start(settings=cardata.settings(), macos="14.5")
    terminal_notifier.wait_for_calls(1)
    script.interrupt()
    call = options_of(terminal_notifier.calls()[0])
    assert call["-open"] == "https://customer.bmwgroup.com/oneid/link?user_code=CODE-1"
    assert call["-group"] == "i3charge-sign-in"


@pytest.fixture
def own_notifier(tmp_path: Path, env: dict[str, str]) -> Iterator[Path]:
    """A pync that brings a terminal-notifier, which says 0 and records that it was used."""
    package = tmp_path / "packages" / "pync"
    package.mkdir(parents=True)
    used = tmp_path / "used"
    (package / "__init__.py").write_text(f"""
import subprocess
class Notifier:
    app_path = "vendor/terminal-notifier.app"
    def notify(self, message, **options):
        return subprocess.Popen(["/usr/bin/touch", {str(used)!r}])
Notifier = Notifier()
""")
    env["PYTHONPATH"] = str(package.parent)
    yield used


@pytest.mark.parametrize(("macos", "is_used"), [("15.6", True), ("16.0", False), ("26.1", False)])
def test_terminal_notifier_of_pync_is_not_used_where_it_shows_nothing(
    night: Portal,
    start: Start,
    own_notifier: Path,
    tmp_path: Path,
    env: dict[str, str],
    macos: str,
    is_used: bool,
) -> None:
    osascript = Notifier(tmp_path, "osascript", env)
    script = start(settings=night.settings(), macos=macos)
    script.wait_for_stderr("  Fully charged")
    if not is_used:
        osascript.wait_for_calls(3)
    script.interrupt()
    assert own_notifier.exists() == is_used
    assert bool(osascript.calls()) != is_used


@pytest.fixture
def no_pync(tmp_path: Path, env: dict[str, str]) -> None:
    """No program but those that a test brings; pync raises, as it does on Linux."""
    folder = tmp_path / "nothing"
    folder.mkdir()
    env["PATH"] = str(folder)


@pytest.mark.usefixtures("no_pync")
def test_osascript_gets_the_texts_as_arguments_only(
    night: Portal, start: Start, tmp_path: Path, env: dict[str, str]
) -> None:
    osascript = Notifier(tmp_path, "osascript", {**env, "PATH": ""})
    env["PATH"] = f"{osascript.folder}{os.pathsep}{env['PATH']}"
    script = start(settings=night.settings())
    osascript.wait_for_calls(3)
    script.interrupt()
    lines = ["on run argv", "display notification", "end run"]
    started, _, ended = osascript.calls()
    assert [text.split(" (")[0] for text in started[1:6:2]] == lines
    assert started[6].startswith("Charging from 41%") and started[7:] == ["BMW i3"]
    assert "sound name (item 3 of argv)" in ended[3] and ended[7:] == ["BMW i3", "Glass"]


@pytest.mark.usefixtures("no_pync")
def test_notify_send_stands_in_for_osascript(
    night: Portal, start: Start, tmp_path: Path, env: dict[str, str]
) -> None:
    notify_send = Notifier(tmp_path, "notify-send", env)
    script = start(settings=night.settings())
    notify_send.wait_for_calls(3)
    script.interrupt()
    assert [call[0] for call in notify_send.calls()] == ["BMW i3"] * 3


@pytest.mark.usefixtures("no_pync")
def test_machine_that_shows_nothing_is_said_once_and_the_phone_rings(
    night: Portal, start: Start, ntfy: Recorder
) -> None:
    script = start(settings={**night.settings(), "NTFY_URL": ntfy.url + "secret-topic"})
    script.wait_for_stderr("was told: Fully")
    script.interrupt()
    assert script.stderr_with("this machine shows no notifications") == 1
    assert [message.split(" ")[0] for message in ntfy.messages()] == ["Charging", "Full", "Fully"]


def test_program_that_hangs_is_ended_and_tried_again_at_the_next_news(
    night: Portal, start: Start, terminal_notifier: Notifier, tmp_path: Path, env: dict[str, str]
) -> None:
    osascript = Notifier(tmp_path, "osascript", env)
    terminal_notifier.does("time.sleep(60)")
    limit = {"NOTIFICATION_LIMIT_S": 0.3}
    script = start(settings=night.settings(), macos="14.5", constants=limit)
    osascript.wait_for_calls(3)
    script.interrupt()
    assert len(terminal_notifier.calls()) == len(osascript.calls()) == 3
