"""How news is told: on the desktop, by ntfy and by a webhook."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import Clock, Notifier, Start
from fake_bmw import Answer, Handler, Portal, Recorder, car, full_car, says
from fake_cardata import saved
from simulation import Owner

import i3charge
from i3charge import DELIVERIES, Memory, Message, News, Observation, Outbox, Reading, Report

Log = pytest.LogCaptureFixture
FULL = News("full", "Fully charged: 61 → 100% in 2 h.", while_plugged="You can move the car now.")
NEXT = News("error", "the next")
DAY_S = 24 * 3600
MIDNIGHT_S = datetime(2026, 11, 12, 23, tzinfo=timezone.utc).timestamp()  # to Friday, there


def at(clock_face: str) -> float:
    """A time of that Friday; "24:10" is on Saturday."""
    hours, minutes = clock_face.split(":")
    return MIDNIGHT_S + int(hours) * 3600 + int(minutes) * 60


class Sender:
    """An outbox in this process, which sends to `ntfy` at 18:00."""

    def __init__(self, clock: Clock, ntfy: Recorder) -> None:
        self.clock, self.ntfy, self.memory = clock, ntfy, Memory()
        clock.now_s = at("18:00")
        self.send_to(ntfy_url=ntfy.url + "secret-topic")

    def send_to(self, **urls: Any) -> None:
        self.store = i3charge.Store(self.memory, saved)
        self.outbox = Outbox(i3charge.Settings(**urls), self.store, "BMW i3")

    def tell(self, *news: News, reading: Reading | None = None) -> None:
        for one in news:
            self.outbox.add(one, reading)
        self.outbox.deliver()

    def wait(self, minutes: int) -> None:
        """As the loop does: it looks once a minute."""
        for _ in range(minutes):
            self.clock.sleep(60)
            self.outbox.deliver()


@pytest.fixture
def sender(clock: Clock, ntfy: Recorder) -> Sender:
    return Sender(clock, ntfy)


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


def test_each_kind_of_news_has_its_ways(sender: Sender) -> None:
    sender.tell(*[News(kind, "hello") for kind in WAYS])
    told = [(r.headers["Priority"], r.headers["Tags"]) for r in sender.ntfy.accepted]
    assert told == [(priority, tag) for _, priority, tag in WAYS.values() if priority]
    loud = {kind for kind, (is_loud, _, _) in WAYS.items() if is_loud}
    assert {kind for kind, way in DELIVERIES.items() if way.is_loud} == loud


def test_ntfy_gets_the_message_and_an_address_to_open(sender: Sender) -> None:
    sender.tell(News("sign-in", "Sign in: 5 min, überall", click="https://bmw.example/link"))
    (request,) = sender.ntfy.accepted
    assert (request.path, request.body.decode()) == ("/secret-topic", "Sign in: 5 min, überall")
    assert request.headers["Title"] == "BMW i3"
    assert request.headers["Click"] == "https://bmw.example/link"


def test_webhook_gets_what_was_so_when_the_news_came(sender: Sender, webhook: Recorder) -> None:
    sender.send_to(webhook_url=webhook.url)
    webhook.answers = [says(503)]
    sender.tell(FULL, reading=Reading(99.5, status="full", predicted=True))
    sender.wait(1)
    sender.tell(FULL)
    first, second = [json.loads(request.body) for request in webhook.accepted]
    assert first == {
        "event": "full",
        "title": "BMW i3",
        **dict.fromkeys(["message", "body"], FULL.text),
        **dict.fromkeys(["text", "content"], f"BMW i3: {FULL.text}"),
        "charge": 99.5,
        "predicted": True,
        "status": "full",
        "time": "2026-11-13T18:00:00+01:00",
    }
    assert [second[name] for name in ("charge", "predicted", "status")] == [None] * 3


CREDENTIALS = {
    "me:wörd": "me:wörd",  # not as Latin-1
    "Оля:пароль": "Оля:пароль",
    "me%40example.com:%23%2F%3F%5B%40%3A%25": "me@example.com:#/?[@:%",
    ":tk:secret": ":tk:secret",
    "me": "me:",
}


@pytest.mark.parametrize("userinfo", CREDENTIALS)
def test_password_in_an_address_is_sent_as_utf_8(sender: Sender, userinfo: str) -> None:
    url = sender.ntfy.url.replace("//", f"//{userinfo}@") + "secret-topic"
    settings = i3charge.load_settings({"NTFY_URL": url}, "demo", "")
    sender.send_to(ntfy_url=settings.ntfy_url)
    sender.tell(FULL)
    (request,) = sender.ntfy.accepted
    scheme, encoded = request.headers["Authorization"].split(" ")
    assert (scheme, base64.b64decode(encoded).decode()) == ("Basic", CREDENTIALS[userinfo])
    assert request.path == "/secret-topic"
    assert request.headers["Host"] == f"127.0.0.1:{sender.ntfy.server_port}"


# --- What an address does with a message ----------------------------------------------


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def break_off(handler: Handler) -> None:
    handler.reply(200, b'{"id": "q9bBu', **{"Content-Length": "1000"})
    handler.close_connection = True


def keep_silent(handler: Handler) -> None:
    handler.server.closing.wait(60)
    handler.close_connection = True


def leads_to(location: str, status: int = 302) -> Answer:
    return says(status, Location=location)


Tries = tuple[list[int], list[int]]  # of a message and of one behind it, after so many minutes
TAKEN: Tries = ([0], [0])
MAY_BE_TAKEN: Tries = ([0, 5, 60], [5])
LATER: Tries = ([0, 1, 2, 4, 8, 16, 32, 64], [])  # after as long as it has waited
REFUSED: Tries = (LATER[0], [0])
PAGE = "<html>Sign in</html>"
HTML = says(200, "Sign in", Content_Type="text/html; charset=utf-8")
GOOGLE = "https://script.googleusercontent.com/macros/echo?user_content_key=secret"
LOOK_ALIKE = "https://evil-googleusercontent.com/?secret"
NO_NTFY = "the answer is not from ntfy; is there a login page?"
TO_GOOGLE = "redirects to script.googleusercontent.com; is there a login page?"
TO_LOOK_ALIKE = "redirects to evil-googleusercontent.com; is there a login page?"
TO_A_PAGE = "the address redirects to another page; is there a login page?"
NO_ANSWER = "no answer from 127.0.0.1"

# By the address and what it answers: the tries in two hours, and what the log says.
ANSWERS: dict[str, tuple[Answer, Tries, str]] = {
    "ntfy: numeric id": (says(200, {"id": 42}), TAKEN, ""),
    "ntfy: empty id": (says(200, {"id": ""}), MAY_BE_TAKEN, NO_NTFY),
    "ntfy: breaks off": (break_off, MAY_BE_TAKEN, NO_NTFY),
    "ntfy: hangs up": (hang_up, MAY_BE_TAKEN, NO_ANSWER),
    "ntfy: 500": (says(500), MAY_BE_TAKEN, "(HTTP 500)"),
    "ntfy: login page": (says(200, f"\n{PAGE}"), LATER, NO_NTFY),
    "ntfy: page by its type": (HTML, LATER, NO_NTFY),
    "ntfy: to Google": (leads_to(GOOGLE), LATER, TO_GOOGLE),
    "ntfy: 429": (says(429), LATER, "(HTTP 429)"),
    "ntfy: 400": (says(400, {"error": "a reason"}), REFUSED, "(HTTP 400): a reason;"),
    "webhook: page": (says(200, PAGE), TAKEN, ""),
    "webhook: no content": (says(204), TAKEN, ""),
    "webhook: to Google": (leads_to(GOOGLE), TAKEN, ""),
    "webhook: to Google's domain": (leads_to("https://googleusercontent.com/", 303), TAKEN, ""),
    "webhook: again to Google": (leads_to(GOOGLE, 307), LATER, TO_GOOGLE),
    "webhook: to a look-alike": (leads_to(LOOK_ALIKE), LATER, TO_LOOK_ALIKE),
    "webhook: to no host": (leads_to("https://secret_.example/"), LATER, TO_A_PAGE),
    "webhook: to a path": (leads_to("/login?secret", 303), LATER, TO_A_PAGE),
    "webhook: to no address": (leads_to("https://[secret/"), MAY_BE_TAKEN, NO_ANSWER),
    "webhook: time-out": (keep_silent, MAY_BE_TAKEN, NO_ANSWER),
    "webhook: 502": (says(502), LATER, "(HTTP 502)"),
    "webhook: 422": (says(422), REFUSED, "(HTTP 422)"),
    "webhook: 504": (says(504), MAY_BE_TAKEN, "(HTTP 504)"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answer_decides_how_often_a_message_is_tried_and_whether_it_holds_up_others(
    sender: Sender, log: Log, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    answer, expected, words = ANSWERS[case]
    sender.send_to(**{f"{case.partition(':')[0]}_url": sender.ntfy.url + "secret-topic"})
    if answer is keep_silent:
        monkeypatch.setattr(i3charge, "TELLING_LIMIT_S", 0.1)
    tries: Tries = ([], [])

    def recorded(handler: Handler) -> None:
        is_next = NEXT.text in handler.body.decode()
        tries[is_next].append(round((sender.clock.now_s - at("18:00")) / 60))
        (says(200, {"id": "q9bBu"}) if is_next else answer)(handler)

    sender.ntfy.answers = [recorded] * 100
    sender.tell(FULL, NEXT)
    sender.wait(120)
    assert tries == expected
    assert bool(sender.memory.outbox) == (expected in (LATER, REFUSED))
    assert words in log.messages[0]
    last = f"127.0.0.1 may not have received: {FULL.text}"
    assert log.messages[-1].startswith(last) == (expected == MAY_BE_TAKEN)
    assert "secret" not in log.text and log.messages[0].isprintable()


def test_message_is_given_up_after_a_day_and_the_log_says_so(sender: Sender, log: Log) -> None:
    tries_s: list[float] = []

    def refuse(handler: Handler) -> None:
        tries_s.append(sender.clock.now_s - at("18:00"))
        handler.reply(503 if len(tries_s) < 5 else 429)

    sender.ntfy.answers = [refuse] * 100
    sender.tell(FULL)
    sender.wait(30 * 60)
    pauses_s = [later - earlier for earlier, later in zip(tries_s, tries_s[1:])]
    assert set(pauses_s[7:]) == {3600.0}
    assert DAY_S - 3600 <= tries_s[-1] <= DAY_S
    assert sender.memory.outbox == []
    assert log.messages == [
        "127.0.0.1 did not accept a notification (HTTP 503); it will be tried again",
        f"given up after a day: {FULL.text}",
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": {"message": "Invalid JSON payload"}}, ": Invalid JSON payload"),
        ({"message": "unknown webhook"}, ": unknown webhook"),
        ({"description": "chat not found"}, ": chat not found"),
        ({"error": "\033[2J\007no"}, ": ?[2J?no"),
        ({"error": "many words " * 1000}, ": " + ("many words " * 6)[:60]),
        ({"error": ["no text"]}, ""),
        ({"error": "/secret-wörter (secret-w%C3%B6rter) owner:пароль"}, ": /*** (***) ***:***"),
    ],
)
def test_reason_of_a_refusal_is_said_in_harmless_words(
    sender: Sender, log: Log, body: Any, reason: str
) -> None:
    sender.ntfy.answers = [says(400, body)]
    url = sender.ntfy.url.replace("//", "//owner:%D0%BF%D0%B0%D1%80%D0%BE%D0%BB%D1%8C@")
    sender.send_to(ntfy_url=url + "secret-wörter")
    sender.tell(FULL)
    start = "127.0.0.1 did not accept a notification (HTTP 400)"
    assert log.messages == [f"{start}{reason}; it will be tried again"]


# --- The order of messages ------------------------------------------------------------


def test_each_address_is_told_by_itself(sender: Sender, webhook: Recorder, log: Log) -> None:
    sender.send_to(ntfy_url=sender.ntfy.url + "secret", webhook_url=webhook.url)
    sender.ntfy.answers = [says(503)]
    sender.tell(FULL, NEXT)
    assert (sender.ntfy.messages(), webhook.messages()) == ([], [FULL.text, NEXT.text])
    assert [message.address for message in sender.memory.outbox] == ["NTFY_URL"] * 2
    assert log.messages[1] == "sent to 127.0.0.1: Fully charged: 61 → 100% in 2 h. You ca…"


def test_new_news_lets_a_held_message_be_tried_at_once(sender: Sender) -> None:
    sender.ntfy.answers = [says(503)] * 9  # until the pause is an hour
    sender.tell(FULL)
    sender.wait(130)
    assert not sender.ntfy.answers and not sender.ntfy.messages()
    sender.tell(NEXT)
    assert sender.ntfy.messages() == [FULL.text, NEXT.text]


def test_address_that_is_not_reached_gets_its_messages_in_order(sender: Sender) -> None:
    sender.ntfy.stop_listening()
    sender.tell(FULL)
    sender.wait(10)  # now the first message waits for longer than the second one would
    sender.tell(NEXT)
    sender.ntfy.listen_again()
    sender.wait(15)
    assert sender.ntfy.messages() == [FULL.text, NEXT.text]


def test_new_news_does_not_hasten_a_message_that_may_have_been_delivered(sender: Sender) -> None:
    sender.ntfy.answers = [hang_up]
    sender.tell(FULL)
    sender.wait(2)
    sender.tell(NEXT)
    sender.wait(2)
    assert len(sender.ntfy.requests) == 1
    sender.wait(1)
    assert sender.ntfy.messages() == [FULL.text, NEXT.text]


def test_message_for_an_address_that_is_not_set_waits(sender: Sender) -> None:
    waiting = Message("WEBHOOK_URL", FULL, made_s=at("18:00"))
    sender.memory.outbox = [waiting]
    sender.tell(NEXT)
    assert sender.ntfy.messages() == [NEXT.text]
    assert sender.memory.outbox == [waiting]


def test_clock_that_is_set_back_does_not_hold_up_a_message(sender: Sender) -> None:
    sender.ntfy.answers = [says(503)]
    sender.tell(FULL)
    sender.clock.now_s -= 5 * 3600
    sender.wait(1)
    assert sender.ntfy.messages() == [FULL.text]


# --- What is told late is still true --------------------------------------------------


def said(clock_face: str, **values: Any) -> list[Observation]:
    return [Observation(at(clock_face), cast(Any, topic), value) for topic, value in values.items()]


ARRIVED = said("16:00", plug="DISCONNECTED", percent=41.0, status="NOCHARGING")
BEGUN = said("17:20", plug="CONNECTED")
BEGUN += said("17:30", percent=41.0, status="CHARGINGACTIVE", full_at=at("21:30"))
FILLED = said("21:30", percent=100.0, status="CHARGINGENDED", reason="CHARGING_GOAL_REACHED")
GONE = FILLED + said("23:00", plug="DISCONNECTED", status="NOCHARGING")
# After a drive, and nobody has seen it without a plug.
AT_ANOTHER_PLUG = GONE + said("23:29", percent=85.0) + said("23:30", plug="CONNECTED")
CHARGING_AGAIN = AT_ANOTHER_PLUG + said("23:31", status="CHARGINGACTIVE")
PAUSED = said("19:00", status="CHARGINGPAUSED")


def report_at(now_s: float, observations: list[Observation]) -> Report:
    """The latest on each topic, as BMW has it then."""
    latest = {each.topic: each for each in observations if each.at_s <= now_s}
    return Report(now_s, now_s, list(latest.values()))


def test_phone_that_was_out_of_reach_for_an_evening_hears_what_is_still_true_in_order(
    sender: Sender, clock: Clock
) -> None:
    owner: Any = Owner(clock)
    story = ARRIVED + BEGUN + GONE
    door: Any = SimpleNamespace(name="BMW", poll=lambda: report_at(clock.now_s, story))
    watch = i3charge.ChargeWatch(sender.memory, 80.0, 2400.0)
    notifier = i3charge.Notifier(sender.store, owner, sender.outbox)
    loop = i3charge.Loop(door, 2400.0, sender.store, watch, owner, notifier, sender.outbox)

    def go_on_until(end: str) -> None:
        clock.ends_s = at(end)
        with suppress(Clock.Over):
            loop.run()

    clock.now_s = at("17:00")
    go_on_until("18:00")
    sender.ntfy.stop_listening()
    go_on_until("24:10")
    kinds = [told.kind for told in owner.told if told.kind != "step"]
    assert kinds == ["started", "reached", "soon", "full", "still"]

    kept = json.loads(json.dumps(dataclasses.asdict(sender.memory)))  # as over a restart
    sender.memory.outbox = list(i3charge.messages_in(kept["outbox"]))
    sender.ntfy.listen_again()
    go_on_until("25:10")
    started, reached, full = sender.ntfy.messages()
    assert started == "Charging from 41%, full about 21:30"
    assert re.fullmatch("Fri 20:[01][0-9]: 80% reached", reached)
    assert full == "Fri 21:30: Fully charged: 41 → 100% in 4 h."


FAULT = "a fault in i3charge itself: it"

# By the news: when it was made, what the car says after that, and what is told at 23:45.
LATE: dict[str, tuple[News, str, list[Observation], str]] = {
    "started, and paused": (News("started", "it"), "18:00", PAUSED, "it"),
    "started, and full": (News("started", "it"), "18:00", FILLED, ""),
    "started, and another charge": (News("started", "it"), "18:00", CHARGING_AGAIN, ""),
    "soon, and full": (News("soon", "it"), "21:20", FILLED, ""),
    "overdue, and full": (News("overdue", "it"), "21:20", FILLED, ""),
    "stopped, and gone": (News("stopped", "it"), "20:00", GONE, "it"),
    "full, and in": (FULL, "21:31", FILLED, FULL.text),
    "full, and gone": (FULL, "21:31", GONE, FULL.message),
    "full, and at another plug": (FULL, "21:31", AT_ANOTHER_PLUG, FULL.message),
    "still, and in": (News("still", "it"), "22:40", FILLED, "it"),
    "still, and gone": (News("still", "it"), "22:40", GONE, ""),
    "trouble, and a reading": (News("error", "it"), "22:00", [], ""),
    "sign-in, and a reading": (News("sign-in", "it"), "22:00", [], ""),
    "fault of our own, and a reading": (News("error", FAULT), "22:00", [], FAULT),
}


@pytest.mark.parametrize("case", LATE)
def test_news_is_told_only_while_it_is_true(sender: Sender, log: Log, case: str) -> None:
    news, made, later, told = LATE[case]
    log.set_level(logging.DEBUG, logger="i3charge")
    watch = i3charge.ChargeWatch(sender.memory, 0.0, 2400.0)
    now_s = sender.clock.now_s = at(made)
    begun = ARRIVED + BEGUN + [each for each in later if each.at_s <= now_s]
    watch.observe(report_at(now_s, begun))
    sender.outbox.add(news, None)

    now_s = sender.clock.now_s = at("23:45")
    stay, _, _ = watch.observe(report_at(now_s, begun + later))
    sender.outbox.drop_outdated(stay, now_s)
    sender.outbox.deliver()
    assert sender.ntfy.messages() == ([told] if told else [])
    assert sender.memory.outbox == []
    assert (f"outdated, so not sent: {news.text}" in log.messages) == (not told)


def test_code_that_has_expired_is_not_told(sender: Sender, log: Log) -> None:
    sender.ntfy.answers = [says(503)] * 4  # in the first five minutes
    sender.tell(News("sign-in", "Sign in:\nopen", good_until_s=sender.clock.now_s + 300), FULL)
    sender.wait(8)
    assert sender.ntfy.answers == []
    assert sender.ntfy.messages() == [FULL.text]
    assert "no more tries" not in log.text and "\n" not in log.messages[0]


@pytest.mark.parametrize(
    ("tells_of_s", "minutes", "start"),
    [(at("17:50"), 10, ""), (at("17:50"), 11, "17:50: "), (0.0, 11, "")],  # 0 is of version 3.1.0
)
def test_late_message_begins_with_the_time_that_it_tells_of(
    sender: Sender, webhook: Recorder, tells_of_s: float, minutes: int, start: str
) -> None:
    sender.send_to(ntfy_url=sender.ntfy.url, webhook_url=webhook.url)
    sender.outbox.add(dataclasses.replace(FULL, at_s=tells_of_s), None)
    sender.clock.now_s += 60 * minutes
    sender.outbox.deliver()
    text = start + FULL.text
    assert sender.ntfy.messages() == [text]
    body = json.loads(webhook.accepted[0].body)
    assert [body[name] for name in ("message", "body")] == [text] * 2
    assert [body[name] for name in ("text", "content")] == [f"BMW i3: {text}"] * 2


def test_full_car_is_told_on_the_desktop_and_what_is_left_at_the_end(
    portal: Portal, ntfy: Recorder, start: Start, terminal_notifier: Notifier
) -> None:
    portal.readings = [car(), full_car()]
    ntfy.answers = [says(503)] * 10
    settings = {**portal.settings(), "NTFY_URL": ntfy.url + "secret-topic"}
    script = start(settings=settings, macos="26.1")
    terminal_notifier.wait_for_calls(1)
    script.wait_for_stderr("did not accept")
    assert script.interrupt() == 130
    assert script.stderr_with("  Fully charged") == 1
    assert "not sent to 127.0.0.1: Fully charged" in script.stderr[-1]


def test_program_that_is_killed_between_two_addresses_tells_the_second_at_its_next_start(
    portal: Portal, ntfy: Recorder, webhook: Recorder, start: Start
) -> None:
    portal.readings = [car(), full_car()]
    urls = {"NTFY_URL": ntfy.url + "secret-topic", "WEBHOOK_URL": webhook.url}
    script = start(settings={**portal.settings(), **urls})
    webhook.answers = [lambda _: script.process.kill()]
    assert script.end() == -signal.SIGKILL
    assert start("--once", settings={**portal.settings(), **urls}).end() == 0
    (told,) = ntfy.messages()
    assert told.startswith("Fully charged") and webhook.messages() == [told]


# --- On the desktop -------------------------------------------------------------------

STARTED = News("started", "Charging")
SIGN_IN = News("sign-in", "Sign in", click="https://bmw.example/link")


class Computer:
    """This one, with no program that shows notifications but those that a test installs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = monkeypatch
        self.env = {"PATH": str(folder)}
        self.patch.setenv("PATH", str(folder))
        for name in ("pync", "pync.TerminalNotifier"):  # it looks for a program at its import
            self.patch.delitem(sys.modules, name, raising=False)
        self.desktop = i3charge.Desktop("BMW i3")

    def shows(self, *news: News) -> None:
        for one in news:
            self.desktop.show(one)

    def install(self, name: str) -> Notifier:
        program = Notifier(self.folder, name, self.env)
        self.patch.setenv("PATH", self.env["PATH"])
        return program

    def is_mac(self, version: str = "14.5") -> None:
        """So it seems to pync, which looks for a program with `which`."""
        self.patch.setattr(platform, "system", lambda: "Darwin")
        self.patch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
        self.patch.setenv("PATH", f"{self.env['PATH']}:/usr/bin:/bin")


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Computer:
    return Computer(tmp_path, monkeypatch)


def test_terminal_notifier_on_the_path_groups_news_by_their_kind(computer: Computer) -> None:
    terminal_notifier = computer.install("terminal-notifier")
    computer.is_mac("26.1")
    computer.shows(STARTED, FULL, SIGN_IN)
    calls = [dict(zip(call[::2], call[1::2])) for call in terminal_notifier.calls()]
    started, full, sign_in = calls
    assert started == {"-message": STARTED.text, "-title": "BMW i3", "-group": "i3charge-started"}
    assert (full["-group"], full["-sound"]) == ("i3charge-full", "Glass")
    assert (sign_in["-group"], sign_in["-open"]) == ("i3charge-sign-in", SIGN_IN.click)


@pytest.mark.parametrize(("macos", "is_used"), [("15.6", True), ("16.0", False)])
def test_terminal_notifier_of_pync_is_not_used_where_it_shows_nothing(
    computer: Computer, macos: str, is_used: bool
) -> None:
    used: list[str] = []

    def notify(message: str, **_: str) -> subprocess.Popen[bytes]:
        used.append(message)
        return subprocess.Popen(["/usr/bin/true"])

    own = SimpleNamespace(app_path="vendor/terminal-notifier.app", notify=notify)
    computer.patch.setitem(sys.modules, "pync", SimpleNamespace(Notifier=own))
    osascript = computer.install("osascript")
    computer.is_mac(macos)
    computer.shows(STARTED)
    assert (len(used), len(osascript.calls())) == ((1, 0) if is_used else (0, 1))


def test_osascript_gets_the_texts_as_arguments_only(computer: Computer) -> None:
    osascript = computer.install("osascript")
    computer.shows(STARTED, FULL)
    show = "display notification (item 1 of argv) with title (item 2 of argv)"
    assert osascript.calls() == [
        ["-e", "on run argv", "-e", line, "-e", "end run", text, "BMW i3"]
        for line, text in ((show, STARTED.text), (f'{show} sound name "Glass"', FULL.text))
    ]


def test_notify_send_stands_in_for_osascript(computer: Computer) -> None:
    notify_send = computer.install("notify-send")
    computer.shows(STARTED)
    assert notify_send.calls() == [["BMW i3", STARTED.text]]


def test_machine_that_shows_nothing_is_said_once(computer: Computer, log: Log) -> None:
    computer.shows(STARTED, FULL)
    assert log.messages == ["no notifications on this computer; README.md has advice"]


def test_program_that_hangs_is_ended_and_tried_again_at_the_next_news(computer: Computer) -> None:
    computer.patch.setattr(i3charge, "TELLING_LIMIT_S", 1.0)
    terminal_notifier = computer.install("terminal-notifier")
    terminal_notifier.does("time.sleep(60)")
    osascript = computer.install("osascript")
    computer.is_mac()
    began_s = time.monotonic()
    computer.shows(STARTED, FULL)
    assert time.monotonic() - began_s < 30
    assert len(terminal_notifier.calls()) == len(osascript.calls()) == 2
