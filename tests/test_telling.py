"""How news is told: on the desktop, by ntfy and by a webhook."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import os
import re
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock, Notifier, Start, closing
from fake_bmw import Answer, Handler, Portal, Recorder, car, full_car
from fake_cardata import CarData, saved
from simulation import Owner

import i3charge
from i3charge import Memory, MemoryFile, Message, News, Observation, Reading, Report, Settings

FULL = News("full", "Fully charged.", while_plugged="The charging station can be freed.")
NEXT = News("error", "the next")
DAY_S = 24 * 3600
MIDNIGHT_S = datetime(2026, 11, 12, 23, tzinfo=timezone.utc).timestamp()  # to Friday, there


def at(clock_face: str) -> float:
    """A time of that Friday; "24:10" is on Saturday."""
    hours, minutes = clock_face.split(":")
    return MIDNIGHT_S + int(hours) * 3600 + int(minutes) * 60


def says(status: int, body: Any = b"", **headers: str) -> Answer:
    return lambda handler: handler.reply(status, body, **headers)


def charging(charge: object = "62.0", minutes: float = 140) -> dict[str, Any]:
    return car(charge, chargingTimeRemaining=str(minutes))


class Sender:
    """An outbox in this process."""

    def __init__(self, memory: Memory, **urls: Any) -> None:
        self.memory = memory
        self.outbox = i3charge.Outbox(Settings(**urls), memory, saved, "BMW i3")

    def tell(self, *news: News, reading: Reading | None = None) -> None:
        for one in news:
            self.outbox.add(one, reading)
        self.outbox.deliver()

    def wait(self, clock: Clock, minutes: int) -> None:
        """As the loop does: it looks once a minute."""
        for _ in range(minutes):
            clock.sleep(60)
            self.outbox.deliver()


@pytest.fixture
def clock(clock: Clock) -> Clock:
    clock.now_s = at("18:00")
    return clock


@pytest.fixture
def sender(ntfy: Recorder) -> Sender:
    return Sender(Memory(), ntfy_url=ntfy.url + "secret-topic")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[MemoryFile]:
    file = MemoryFile(tmp_path / "memory.json")
    yield file
    if file._lock:
        file._lock.close()


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
    assert i3charge.DELIVERIES[kind].is_loud == sound


def test_ntfy_gets_the_message_and_an_address_to_open(sender: Sender, ntfy: Recorder) -> None:
    sender.tell(News("sign-in", "Sign in: 5 min, überall", click="https://bmw.example/link"))
    (request,) = ntfy.accepted
    assert request.path == "/secret-topic"
    assert request.body.decode() == "Sign in: 5 min, überall"
    assert request.headers["Title"] == "BMW i3"
    assert request.headers["Click"] == "https://bmw.example/link"


def test_webhook_gets_all_fields(webhook: Recorder) -> None:
    sender = Sender(Memory(), webhook_url=webhook.url + "secret-hook")
    sender.tell(FULL, News("error", "hello"))
    sender.tell(FULL, reading=Reading(99.5, status="full", predicted=True))
    first, second, third = [json.loads(request.body) for request in webhook.accepted]
    text = f"BMW i3: {FULL.text}"
    assert first.pop("time") and first == {
        "event": "full",
        "title": "BMW i3",
        "message": FULL.text,
        "body": FULL.text,
        "text": text,
        "content": text,
        "charge": None,
        "predicted": None,
        "status": None,
    }
    assert second["event"] == "error"
    assert (third["charge"], third["predicted"], third["status"]) == (99.5, True, "full")


CREDENTIALS = {
    "me:secret": "me:secret",
    "me:pasłword": "me:pasłword",
    "me:pas%C5%82word": "me:pasłword",
    "Оля:пароль": "Оля:пароль",
    "me:%D0%BF%D0%B0%D1%80%D0%BE%D0%BB%D1%8C": "me:пароль",
    "me:wörd": "me:wörd",  # not as Latin-1
    "me:%23%2F%3F%5B%40%3A%25": "me:#/?[@:%",
    "me:one:two": "me:one:two",
    "me%40example.com:secret": "me@example.com:secret",
    ":tk_secret": ":tk_secret",
    "me": "me:",
}


@pytest.mark.parametrize("userinfo", CREDENTIALS)
def test_password_in_an_address_is_sent_as_utf_8(ntfy: Recorder, userinfo: str) -> None:
    url = ntfy.url.replace("//", f"//{userinfo}@") + "secret-topic"
    settings = i3charge.load_settings({"NTFY_URL": url}, "demo", "")
    Sender(Memory(), ntfy_url=settings.ntfy_url).tell(FULL)
    (request,) = ntfy.accepted
    scheme, encoded = request.headers["Authorization"].split(" ")
    assert (scheme, base64.b64decode(encoded).decode()) == ("Basic", CREDENTIALS[userinfo])
    assert request.path == "/secret-topic"
    assert request.headers["Host"] == f"127.0.0.1:{ntfy.server_port}"


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


def keep_silent_in_the_body(handler: Handler) -> None:
    handler.reply(200, b'{"id": "q9bBu', **{"Content-Length": "1000"})
    keep_silent(handler)


# When a message is tried in the first two hours, in minutes.
TAKEN = [0]
THREE_TIMES = [0, 5, 60]
FOR_A_DAY = [0, 1, 2, 4, 8, 16, 32, 64]  # after as long as it has waited
PAGE = "<html>Sign in</html>"
GOOGLE = "https://script.googleusercontent.com/macros/echo?user_content_key=secret"
NO_NTFY = "the address does not answer as ntfy; is there a login before it?"

# By the address and what it answers: when the message is tried, and what the log says.
ANSWERS: dict[str, tuple[Answer, list[int], str]] = {
    "ntfy: id": (says(200, {"id": "q9bBuFZXdtmL"}), TAKEN, ""),
    "ntfy: numeric id": (says(200, {"id": 42}), TAKEN, ""),
    "ntfy: nothing": (says(200), THREE_TIMES, NO_NTFY),
    "ntfy: no content": (says(204), THREE_TIMES, NO_NTFY),
    "ntfy: ok": (says(200, "ok"), THREE_TIMES, NO_NTFY),
    "ntfy: no id": (says(200, {"id": None}), THREE_TIMES, NO_NTFY),
    "ntfy: empty id": (says(200, {"id": ""}), THREE_TIMES, NO_NTFY),
    "ntfy: breaks off": (break_off, THREE_TIMES, NO_NTFY),
    "ntfy: hangs up": (hang_up, THREE_TIMES, "no answer from 127.0.0.1"),
    "ntfy: time-out": (keep_silent, THREE_TIMES, "no answer from 127.0.0.1"),
    "ntfy: time-out in the body": (keep_silent_in_the_body, THREE_TIMES, "127.0.0.1"),
    "ntfy: 500": (says(500), THREE_TIMES, "(HTTP 500)"),
    "ntfy: 504": (says(504, PAGE), THREE_TIMES, "(HTTP 504)"),
    "ntfy: login page": (says(200, f"\n{PAGE}"), FOR_A_DAY, NO_NTFY),
    "ntfy: page by its type": (
        says(200, "Sign in", Content_Type="text/html; charset=utf-8"),
        FOR_A_DAY,
        NO_NTFY,
    ),
    "ntfy: redirect to a login": (
        says(302, Location="https://auth.example/?rd=secret"),
        FOR_A_DAY,
        "leads to auth.example, as to a login",
    ),
    "ntfy: redirect to a path": (
        says(302, Location="/login?secret"),
        FOR_A_DAY,
        "the address leads to another page, as to a login",
    ),
    "ntfy: redirect to Google": (
        says(302, Location=GOOGLE),
        FOR_A_DAY,
        "leads to script.googleusercontent.com, as",
    ),
    "ntfy: redirect with an id": (
        says(307, {"id": "q9bBuFZXdtmL"}, Location="https://ntfy.example/"),
        FOR_A_DAY,
        "leads to ntfy.example, as to a login",
    ),
    "ntfy: 429": (says(429), FOR_A_DAY, "(HTTP 429)"),
    "ntfy: 502": (says(502, PAGE), FOR_A_DAY, "(HTTP 502)"),
    "ntfy: 503": (says(503), FOR_A_DAY, "(HTTP 503)"),
    "ntfy: 404": (says(404, {"error": "page not found"}), FOR_A_DAY, "page not found"),
    "webhook: page": (says(200, PAGE), TAKEN, ""),
    "webhook: no content": (says(204), TAKEN, ""),
    "webhook: breaks off": (break_off, TAKEN, ""),
    "webhook: redirect to Google": (says(302, Location=GOOGLE), TAKEN, ""),
    "webhook: redirect to its domain": (
        says(303, Location="https://googleusercontent.com/"),
        TAKEN,
        "",
    ),
    "webhook: redirect of the message to Google": (
        says(307, Location=GOOGLE),
        FOR_A_DAY,
        "leads to script.googleusercontent.com, as",
    ),
    "webhook: redirect to a look-alike": (
        says(302, Location="https://evil-googleusercontent.com/"),
        FOR_A_DAY,
        "leads to evil-googleusercontent.com, as",
    ),
    "webhook: redirect to no host": (
        says(302, Location="https://secret_.example/"),
        FOR_A_DAY,
        "leads to another page, as to a login",
    ),
    "webhook: malformed redirect": (
        says(302, Location="https://[secret/"),
        THREE_TIMES,
        "no answer from 127.0.0.1",
    ),
    "webhook: redirect to a path": (
        says(303, Location="/login"),
        FOR_A_DAY,
        "the address leads to another page, as to a login",
    ),
    "webhook: hangs up": (hang_up, THREE_TIMES, "no answer from 127.0.0.1"),
    "webhook: time-out": (keep_silent, THREE_TIMES, "no answer from 127.0.0.1"),
    "webhook: 500": (says(500), THREE_TIMES, "(HTTP 500)"),
    "webhook: 504": (says(504), THREE_TIMES, "(HTTP 504)"),
    "webhook: 503": (says(503), FOR_A_DAY, "(HTTP 503)"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answer_decides_how_often_a_message_is_tried(
    ntfy: Recorder,
    clock: Clock,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    answer, expected, words = ANSWERS[case]
    address = case.partition(":")[0]
    sender = Sender(Memory(), **{f"{address}_url": ntfy.url + "secret-topic"})
    if "time-out" in case:
        monkeypatch.setattr(i3charge, "TELLING_LIMIT_S", 0.2)
    tries: list[int] = []

    def recorded(handler: Handler) -> None:
        tries.append(round((clock.now_s - at("18:00")) / 60))
        answer(handler)

    ntfy.answers = [recorded] * 100
    sender.tell(FULL)
    sender.wait(clock, 120)
    assert tries == expected
    assert bool(sender.memory.outbox) == (expected == FOR_A_DAY)
    assert words in log.messages[0]
    last = f"127.0.0.1 may not have been told: {FULL.text}"
    assert log.messages[-1].startswith(last) == (expected == THREE_TIMES)
    assert "secret" not in log.text and log.messages[0].isprintable()


class ResettingServer(Recorder):
    """Resets each connection in the TLS handshake."""

    resets = 0

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.resets += 1
        request.recv(1)
        request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.close()


@pytest.fixture
def resetting_server() -> Iterator[ResettingServer]:
    yield from closing(ResettingServer())


def test_message_is_tried_for_a_day_if_the_connection_is_reset_in_the_tls_handshake(
    resetting_server: ResettingServer, clock: Clock
) -> None:
    url = resetting_server.url.replace("http://", "https://")
    sender = Sender(Memory(), webhook_url=url)
    sender.tell(FULL)
    sender.wait(clock, 120)
    assert resetting_server.resets == len(FOR_A_DAY)
    assert [message.unanswered for message in sender.memory.outbox] == [0]


def test_message_is_given_up_after_a_day(
    sender: Sender, ntfy: Recorder, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    tries_s: list[float] = []

    def refuse(handler: Handler) -> None:
        tries_s.append(clock.now_s - at("18:00"))
        handler.reply(503)

    ntfy.answers = [refuse] * 100
    sender.tell(FULL)
    sender.wait(clock, 30 * 60)
    pauses_s = [later - earlier for earlier, later in zip(tries_s, tries_s[1:])]
    assert set(pauses_s[7:]) == {3600.0}
    assert DAY_S - 3600 <= tries_s[-1] <= DAY_S
    assert sender.memory.outbox == []
    first, last = log.messages  # not at every try
    assert first == "127.0.0.1 did not accept a notification (HTTP 503); it will be tried again"
    assert last == f"after a day, no more tries to tell: {FULL.text}"


def test_log_says_what_is_wrong_and_when_it_has_passed(
    sender: Sender, ntfy: Recorder, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    ntfy.answers = [says(503), says(503), says(429)]
    sender.tell(FULL)
    sender.wait(clock, 10)
    assert ntfy.messages() == [FULL.text]
    assert log.messages == [
        "127.0.0.1 did not accept a notification (HTTP 503); it will be tried again",
        "127.0.0.1 did not accept a notification (HTTP 429); it will be tried again",
        "127.0.0.1 was told: Fully charged. The charging station can…",
    ]


def test_three_tries_are_counted_across_restarts(
    file: MemoryFile, ntfy: Recorder, clock: Clock
) -> None:
    ntfy.answers = [hang_up] * 10
    memory = Memory()
    Sender(memory, ntfy_url=ntfy.url).tell(FULL)
    for _ in range(180):
        assert file.save(memory)
        memory = file.load("", "")
        Sender(memory, ntfy_url=ntfy.url).wait(clock, 1)
    assert len(ntfy.requests) == 3


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": "topic is reserved"}, ": topic is reserved"),
        ({"error": {"message": "Invalid JSON payload"}}, ": Invalid JSON payload"),
        ({"message": "unknown webhook"}, ": unknown webhook"),
        ({"description": "chat not found"}, ": chat not found"),
        ({"error": "\033[2J\007no"}, ": ?[2J?no"),
        ({"error": "no /secret-topic here"}, ": no /*** here"),
        ({"error": "many words " * 1000}, ": " + ("many words " * 6)[:60]),
        ({"error": ["no text"]}, ""),
        ("<html><h1>Bad Gateway</h1>", ""),
        (b"\xff\xfe", ""),
        ("", ""),
    ],
)
def test_reason_of_a_refusal_is_said_in_harmless_words(
    sender: Sender, ntfy: Recorder, body: Any, reason: str, log: pytest.LogCaptureFixture
) -> None:
    ntfy.answers = [says(400, body)]
    sender.tell(FULL)
    start = "127.0.0.1 did not accept a notification (HTTP 400)"
    assert log.messages == [f"{start}{reason}; it will be tried again"]


def test_address_is_not_shown_if_a_refusal_repeats_it_in_other_letters(
    ntfy: Recorder, log: pytest.LogCaptureFixture
) -> None:
    error = "topic /secret-w%C3%B6rter is unknown, owner:пароль"
    ntfy.answers = [says(404, {"error": error})]
    url = ntfy.url.replace("//", "//owner:%D0%BF%D0%B0%D1%80%D0%BE%D0%BB%D1%8C@")
    Sender(Memory(), ntfy_url=url + "secret-wörter").tell(FULL)
    assert "topic /*** is unknown, ***:***" in log.messages[0]


# --- The order of messages ------------------------------------------------------------

HOLDING: dict[str, Answer] = {
    "no answer": hang_up,
    "login page": says(200, PAGE),
    **{str(status): says(status) for status in (429, 500, 502, 503, 504)},
}


@pytest.mark.parametrize("case", HOLDING)
def test_message_that_may_be_taken_later_holds_up_those_behind_it(
    sender: Sender, ntfy: Recorder, clock: Clock, case: str
) -> None:
    ntfy.answers = [HOLDING[case]]
    sender.tell(FULL, NEXT)
    assert len(ntfy.requests) == 1
    sender.wait(clock, 30)
    assert ntfy.messages() == [FULL.text, NEXT.text]


def test_address_that_is_not_reached_is_told_all_in_order(
    sender: Sender, ntfy: Recorder, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    ntfy.stop_listening()
    sender.tell(FULL, NEXT)
    sender.wait(clock, 15)
    ntfy.listen_again()
    sender.wait(clock, 15)
    assert ntfy.messages() == [FULL.text, NEXT.text]
    assert len(log.messages) == 3  # that it is not reached, and that it was told


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_message_that_is_refused_for_good_lets_others_pass(
    sender: Sender, ntfy: Recorder, clock: Clock, status: int
) -> None:
    ntfy.answers = [says(status)]
    sender.tell(FULL, NEXT)
    assert ntfy.messages() == [NEXT.text]
    assert [message.news for message in sender.memory.outbox] == [FULL]
    sender.wait(clock, 1)
    assert ntfy.messages() == [NEXT.text, FULL.text]


def test_message_that_may_have_been_taken_twice_lets_others_pass(
    sender: Sender, ntfy: Recorder, clock: Clock
) -> None:
    ntfy.answers = [hang_up] * 2
    sender.tell(FULL, NEXT)
    sender.wait(clock, 4)
    assert ntfy.messages() == []
    sender.wait(clock, 1)
    assert ntfy.messages() == [NEXT.text]
    sender.wait(clock, 54)
    assert len(ntfy.messages()) == 1
    sender.wait(clock, 1)
    assert len(ntfy.messages()) == 2


def test_each_address_is_told_by_itself(ntfy: Recorder, webhook: Recorder) -> None:
    sender = Sender(Memory(), ntfy_url=ntfy.url + "secret", webhook_url=webhook.url)
    ntfy.answers = [says(503)]
    sender.tell(FULL, NEXT)
    assert (ntfy.messages(), webhook.messages()) == ([], [FULL.text, NEXT.text])
    assert [message.address for message in sender.memory.outbox] == ["NTFY_URL"] * 2


def test_new_news_lets_a_held_message_be_tried_at_once(
    sender: Sender, ntfy: Recorder, clock: Clock
) -> None:
    ntfy.answers = [says(503)] * 9  # until the pause is an hour
    sender.tell(FULL)
    sender.wait(clock, 130)
    assert not ntfy.answers and not ntfy.messages()
    sender.tell(NEXT)
    assert ntfy.messages() == [FULL.text, NEXT.text]


def test_new_news_does_not_hasten_a_message_that_may_have_been_delivered(
    sender: Sender, ntfy: Recorder, clock: Clock
) -> None:
    ntfy.answers = [hang_up]
    sender.tell(FULL)
    sender.wait(clock, 2)
    sender.tell(NEXT)
    sender.wait(clock, 2)
    assert len(ntfy.requests) == 1
    sender.wait(clock, 1)
    assert ntfy.messages() == [FULL.text, NEXT.text]


def test_message_without_an_address_waits(sender: Sender, ntfy: Recorder) -> None:
    waiting = Message("WEBHOOK_URL", News("full", "hello"), made_s=time.time())
    sender.memory.outbox = [waiting]
    sender.tell(FULL)
    assert ntfy.messages() == [FULL.text]
    assert sender.memory.outbox == [waiting]


def test_clock_that_is_set_back_does_not_hold_up_a_message(
    sender: Sender, ntfy: Recorder, clock: Clock
) -> None:
    ntfy.answers = [says(503)]
    sender.tell(FULL)
    clock.now_s -= 5 * 3600
    sender.wait(clock, 1)
    assert ntfy.messages() == [FULL.text]


# --- What is told late is still true --------------------------------------------------

ARRIVED = [
    Observation(at("16:00"), "plug", "DISCONNECTED"),
    Observation(at("16:00"), "percent", 41.0),
    Observation(at("16:00"), "status", "NOCHARGING"),
]
BEGUN = [
    Observation(at("17:20"), "plug", "CONNECTED"),
    Observation(at("17:30"), "percent", 41.0),
    Observation(at("17:30"), "status", "CHARGINGACTIVE"),
    Observation(at("17:30"), "full_at", at("21:30")),
]
FILLED = [
    Observation(at("21:30"), "percent", 100.0),
    Observation(at("21:30"), "status", "CHARGINGENDED"),
    Observation(at("21:30"), "reason", "CHARGING_GOAL_REACHED"),
]
UNPLUGGED = [
    Observation(at("23:00"), "plug", "DISCONNECTED"),
    Observation(at("23:00"), "status", "NOCHARGING"),
]


def report_at(now_s: float, observations: list[Observation]) -> Report:
    """The latest on each topic, as BMW has it then."""
    latest = {each.topic: each for each in observations if each.at_s <= now_s}
    return Report(now_s, now_s, list(latest.values()))


class Evening:
    """The loop on an evening on which the car is charged, full at 21:30, and unplugged at 23:00.

    It starts anew, with what was kept on disk, for each part of the evening, or it goes on.
    """

    name = "BMW"  # it is its own door

    def __init__(self, clock: Clock, file: MemoryFile, url: str, *, restarts: bool) -> None:
        self.clock = clock
        self.file = file
        self.settings = Settings(ntfy_url=url, notify_at=80.0, interval_s=2400.0)
        self.restarts = restarts
        self.owner = Owner(clock)
        self.is_offline = False
        self.loop = self.new_loop()
        clock.now_s = at("17:00")

    def new_loop(self) -> i3charge.Loop:
        memory = self.file.load("", "")
        owner: Any = self.owner

        def save() -> bool:
            return self.file.save(memory)

        return i3charge.Loop(
            door=self,
            interval_s=self.settings.interval_s,
            memory=memory,
            save=save,
            watch=i3charge.ChargeWatch(memory, self.settings.notify_at, self.settings.interval_s),
            log=owner,
            desktop=owner,
            outbox=i3charge.Outbox(self.settings, memory, save, "BMW i3"),
        )

    def poll(self) -> Report:
        if self.is_offline:
            raise i3charge.Trouble("no answer", was_sent=False)
        return report_at(self.clock.now_s, ARRIVED + BEGUN + FILLED + UNPLUGGED)

    def go_on_until(self, end: str) -> None:
        self.clock.ends_s = at(end)
        if self.restarts:
            self.loop = self.new_loop()
        with suppress(Clock.Over):
            self.loop.wait()
            self.loop.run()


@pytest.fixture
def verbose_log(log: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with log.at_level(logging.DEBUG, logger="i3charge"):
        yield log


def dropped_in(log: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """The lines on news that is over, with their levels."""
    start = "no longer true, and not told: "
    return [
        (record.levelno, record.getMessage()[len(start) :])
        for record in log.records
        if record.getMessage().startswith(start)
    ]


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("outage", ["429", "not reached"])
def test_phone_that_was_out_of_reach_for_an_evening_hears_what_is_still_true_in_order(
    ntfy: Recorder,
    clock: Clock,
    file: MemoryFile,
    verbose_log: pytest.LogCaptureFixture,
    outage: str,
    restarts: bool,
) -> None:
    evening = Evening(clock, file, ntfy.url + "secret-topic", restarts=restarts)
    evening.go_on_until("18:00")
    assert ntfy.messages() == ["Charging from 41%, full about 21:30"]
    ntfy.accepted.clear()

    if outage == "429":
        ntfy.answers = [says(429)] * 1000
    else:
        ntfy.stop_listening()
    for end in ("20:30", "21:25", "22:00", "22:55", "24:10"):
        evening.go_on_until(end)
    kinds = [told.kind for told in evening.owner.told if told.kind != "step"]
    assert kinds == ["started", "reached", "soon", "full", "still"]
    assert ntfy.messages() == []

    if outage == "429":
        ntfy.answers.clear()
    else:
        ntfy.listen_again()
    evening.go_on_until("25:10")
    reached, full = ntfy.messages()
    assert re.fullmatch("Fri 20:[01][0-9]: 80% reached", reached)
    assert full == "Fri 21:30: Fully charged: 41 → 100% in 4 h."
    assert dropped_in(verbose_log) == [
        (logging.DEBUG, "Full in about 10 min, at 21:30"),
        (logging.DEBUG, "Full since 21:30, and still plugged in"),
    ]


@pytest.mark.parametrize("restarts", [False, True])
def test_program_that_was_offline_for_an_evening_tells_what_is_still_true(
    ntfy: Recorder,
    clock: Clock,
    file: MemoryFile,
    verbose_log: pytest.LogCaptureFixture,
    restarts: bool,
) -> None:
    evening = Evening(clock, file, ntfy.url + "secret-topic", restarts=restarts)
    evening.go_on_until("18:00")
    ntfy.accepted.clear()

    evening.is_offline = True
    ntfy.stop_listening()
    evening.go_on_until("24:10")
    assert [told.kind for told in evening.owner.told][-1] == "error"

    evening.is_offline = False
    ntfy.listen_again()
    evening.go_on_until("25:10")
    assert ntfy.messages() == ["Fully charged: 41 → 100% in 4 h."]
    silence = (logging.DEBUG, "No word from BMW since 17:40 (~43%, charging)")
    assert dropped_in(verbose_log) == [silence]


def test_trouble_is_told_late_if_no_reading_has_followed(
    ntfy: Recorder, clock: Clock, file: MemoryFile
) -> None:
    evening = Evening(clock, file, ntfy.url + "secret-topic", restarts=False)
    evening.go_on_until("18:00")
    ntfy.accepted.clear()

    evening.is_offline = True
    ntfy.answers = [says(429)] * 1000
    evening.go_on_until("21:00")
    ntfy.answers.clear()
    evening.go_on_until("22:05")
    (told,) = ntfy.messages()
    text = re.escape("No word from BMW since 17:40 (~43%, charging)")
    assert re.fullmatch(f"19:[0-9]{{2}}: {text}", told)


AT_ANOTHER_PLUG = [  # after a drive, and nobody has seen it without a plug
    Observation(at("23:29"), "percent", 85.0),
    Observation(at("23:30"), "plug", "CONNECTED"),
]
CHARGING_AGAIN = [*AT_ANOTHER_PLUG, Observation(at("23:31"), "status", "CHARGINGACTIVE")]
PAUSED = [Observation(at("19:00"), "status", "CHARGINGPAUSED")]

# By the news: when it was made, what the car says after that, and what is told at 23:45.
LATE: dict[str, tuple[News, str, list[Observation], str]] = {
    "started, and it charges": (News("started", "it"), "18:00", [], "it"),
    "started, and paused": (News("started", "it"), "18:00", PAUSED, "it"),
    "started, and full": (News("started", "it"), "18:00", FILLED, ""),
    "started, and another charge goes on": (
        News("started", "it"),
        "18:00",
        FILLED + UNPLUGGED + CHARGING_AGAIN,
        "",
    ),
    "soon, and it charges": (News("soon", "it"), "21:20", [], "it"),
    "soon, and full": (News("soon", "it"), "21:20", FILLED, ""),
    "overdue, and it charges": (News("overdue", "it"), "21:20", [], "it"),
    "overdue, and full": (News("overdue", "it"), "21:20", FILLED, ""),
    "reached, and gone": (News("reached", "it"), "20:00", FILLED + UNPLUGGED, "it"),
    "stopped, and gone": (News("stopped", "it"), "20:00", FILLED + UNPLUGGED, "it"),
    "full, and in": (FULL, "21:31", FILLED, FULL.text),
    "full, and gone": (FULL, "21:31", FILLED + UNPLUGGED, "Fully charged."),
    "full, and at another plug": (
        FULL,
        "21:31",
        FILLED + UNPLUGGED + AT_ANOTHER_PLUG,
        "Fully charged.",
    ),
    "still, and in": (News("still", "it"), "22:40", FILLED, "it"),
    "still, and gone": (News("still", "it"), "22:40", FILLED + UNPLUGGED, ""),
    "still, and at another plug": (
        News("still", "it"),
        "22:40",
        FILLED + UNPLUGGED + AT_ANOTHER_PLUG,
        "",
    ),
    "trouble, and a reading": (News("error", "it"), "22:00", [], ""),
    "sign-in, and a reading": (News("sign-in", "it"), "22:00", [], ""),
    "fault of our own, and a reading": (
        News("error", "a fault in i3charge itself: it"),
        "22:00",
        [],
        "a fault in i3charge itself: it",
    ),
}


@pytest.mark.parametrize("case", LATE)
def test_news_is_told_only_while_it_is_true(
    sender: Sender, ntfy: Recorder, clock: Clock, verbose_log: pytest.LogCaptureFixture, case: str
) -> None:
    news, made, later, told = LATE[case]
    watch = i3charge.ChargeWatch(sender.memory, 0.0, 2400.0)
    clock.now_s = at(made)
    begun = ARRIVED + BEGUN + [each for each in later if each.at_s <= clock.now_s]
    watch.observe(report_at(clock.now_s, begun))
    sender.outbox.add(news, None)

    clock.now_s = at("23:45")
    watch.observe(report_at(clock.now_s, begun + later))
    assert dropped_in(verbose_log) == ([] if told else [(logging.DEBUG, news.text)])
    sender.outbox.deliver()
    assert ntfy.messages() == ([told] if told else [])
    assert sender.memory.outbox == []


def test_code_that_has_expired_is_not_told(
    sender: Sender, ntfy: Recorder, clock: Clock, verbose_log: pytest.LogCaptureFixture
) -> None:
    ntfy.answers = [says(503)] * 4  # in the first five minutes
    sender.tell(News("sign-in", "Sign in:\nopen", good_until_s=clock.now_s + 300), FULL)
    sender.wait(clock, 8)
    assert ntfy.answers == []
    assert ntfy.messages() == [FULL.text]
    assert dropped_in(verbose_log) == [(logging.DEBUG, "Sign in: open")]


@pytest.mark.parametrize(
    ("tells_of", "minutes", "start"),
    [
        ("17:50", 0, ""),
        ("17:50", 10, ""),
        ("17:50", 11, "17:50: "),
        ("17:50", 7 * 60, "Fri 17:50: "),
        ("", 11, ""),
    ],
)
def test_late_message_begins_with_the_time_that_it_tells_of(
    ntfy: Recorder, webhook: Recorder, clock: Clock, tells_of: str, minutes: int, start: str
) -> None:
    sender = Sender(Memory(), ntfy_url=ntfy.url, webhook_url=webhook.url)
    sender.outbox.add(dataclasses.replace(FULL, at_s=at(tells_of) if tells_of else 0.0), None)
    clock.now_s += 60 * minutes
    sender.outbox.deliver()
    assert ntfy.messages() == [f"{start}{FULL.text}"]
    (body,) = [json.loads(request.body) for request in webhook.accepted]
    assert (body["message"], body["body"]) == (f"{start}{FULL.text}",) * 2
    assert (body["text"], body["content"]) == (f"BMW i3: {start}{FULL.text}",) * 2


def test_message_says_what_was_so_when_it_was_made(webhook: Recorder, clock: Clock) -> None:
    sender = Sender(Memory(), webhook_url=webhook.url)
    webhook.answers = [says(503)]
    sender.tell(FULL, reading=Reading(100, status="full"))
    sender.wait(clock, 1)
    (body,) = [json.loads(request.body) for request in webhook.accepted]
    kept = (body["time"], body["charge"], body["status"])
    assert kept == ("2026-11-13T18:00:00+01:00", 100, "full")


def test_message_of_version_3_1_0_is_told_as_it_is(
    ntfy: Recorder, clock: Clock, file: MemoryFile, tmp_path: Path
) -> None:
    text = "Fully charged: 41 → 100% in 4 h. The charging station can be freed."
    message = {
        "address": "NTFY_URL",
        "news": {"kind": "full", "message": text, "click": "", "good_until_s": 0.0},
        "made_s": at("21:31"),
        "charge": None,
        "predicted": None,
        "status": None,
        "next_try_s": at("22:31"),
        "unanswered": 0,
    }
    (tmp_path / "memory.json").write_text(json.dumps({"outbox": [message]}))
    memory = file.load("", "")
    clock.now_s = at("23:45")
    watch = i3charge.ChargeWatch(memory, 0.0, 2400.0)
    watch.observe(report_at(clock.now_s, ARRIVED + BEGUN + FILLED + UNPLUGGED))
    Sender(memory, ntfy_url=ntfy.url).outbox.deliver()
    assert ntfy.messages() == [text]


def test_what_is_left_is_said_at_the_end(
    portal: Portal, ntfy: Recorder, start: Start, kept: Path
) -> None:
    portal.readings = [charging(), full_car()]
    ntfy.answers = [says(503)] * 10
    settings = {**portal.settings(), "NTFY_URL": ntfy.url + "secret-topic"}
    script = start(settings=settings)
    script.wait_for_stderr("did not accept")
    assert script.interrupt() == 130
    left = "127.0.0.1 has not been told: Fully charged"
    assert left in script.stderr[-1]

    ntfy.answers = []
    memory = json.loads(kept.read_text())
    for message in memory["outbox"]:
        message["next_try_s"] = 0.0
    kept.write_text(json.dumps(memory))
    assert start("--once", settings=settings).end() == 0
    (told,) = ntfy.messages()
    assert told.startswith("Fully charged") and script.stderr[-1].endswith(told)


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
    (told,) = ntfy.messages()
    assert told.startswith("Fully charged") and webhook.messages() == [told]


# --- On the desktop -------------------------------------------------------------------


def options_of(call: list[str]) -> dict[str, str]:
    return dict(zip(call[::2], call[1::2]))


@pytest.fixture
def night(portal: Portal) -> Portal:
    """It starts to charge, is soon full, and then it is; a second passes in between."""
    now_s = time.time()
    stamps = [
        f"{datetime.fromtimestamp(now_s - ago_s, timezone.utc):%d.%m.%Y %H:%M:%S} UTC"
        for ago_s in (3, 2, 1, 0)
    ]
    at_rest = {"chargingHVStatus": "NOT_CHARGING", "charging_status": "NOCHARGING"}
    portal.readings = [
        car("41.0", updateTime=stamps[0], **at_rest),
        car("41.0", updateTime=stamps[1]),
        car("97.0", updateTime=stamps[2], chargingTimeRemaining="9"),
        full_car(updateTime=stamps[3]),
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
    assert ended[3].endswith('sound name "Glass"') and ended[7:] == ["BMW i3"]


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
    del night.readings[0]  # the first reading tells nothing, the next two do
    limit = {"TELLING_LIMIT_S": 2.0}  # ample for osascript on a slow machine
    script = start(settings=night.settings(), macos="14.5", constants=limit)
    osascript.wait_for_calls(2)
    script.interrupt()
    assert len(terminal_notifier.calls()) == len(osascript.calls()) == 2
