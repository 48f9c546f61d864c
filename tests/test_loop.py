"""The loop: poll, log, save, tell, wait."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock, Start
from fake_bmw import VIN, Portal, Recorder, car
from fake_cardata import CarData, Client, says

import i3charge
from i3charge import (
    Memory,
    Message,
    News,
    NoAnswer,
    NoReading,
    Reading,
    Settings,
    SignInRefused,
    WaitingForOwner,
)

MINUTE_S = 60
IDLE = Reading(60, status="plugged in")
CHARGING = Reading(60, status="charging")


class Door:
    """Does what a test says, one item a poll: a reading, or what is raised; the last stays.

    A poll takes a second.
    """

    name = "a door"

    def __init__(self, clock: Clock, *does: Any) -> None:
        self.clock = clock
        self.does = list(does)
        self.polls_s: list[float] = []  # since the start
        self.began_s = clock.now_s

    def poll(self) -> Reading:
        self.polls_s.append(round(self.clock.now_s - self.began_s, 3))
        self.clock.now_s += 1
        item = self.does.pop(0) if len(self.does) > 1 else self.does[0]
        if callable(item):
            item = item()
        if isinstance(item, Exception):
            raise item
        assert isinstance(item, Reading)
        return dataclasses.replace(item, taken_s=self.clock.now_s)


class Told:
    """In the place of the log and the desktop."""

    def __init__(self) -> None:
        self.works, self.is_unread = True, False
        self.titles: list[str] = []
        self.told: list[str] = []
        self.lines = 0

    def write(self, reading: Reading) -> None:
        self.lines += 1
        self.titles.append(f"i3 {reading.percent} {reading.status}")

    def set_title(self, text: str) -> None:
        self.titles.append(text)

    def show(self, news: News) -> None:
        self.told.append(news.message)


def run(door: Any, minutes: float = 600, interval_s: float = 2400, **more: Any) -> Told:
    """Let the loop run for so long."""
    told: Any = more.pop("told", None) or Told()
    memory = more.pop("memory", Memory())
    settings = Settings(ntfy_url=more.pop("ntfy_url", ""))
    outbox = i3charge.Outbox(settings, memory, "", tries_again=True)
    loop = i3charge.Loop(
        door=door,
        interval_s=interval_s,
        memory=memory,
        watch=i3charge.ChargeWatch(memory, 0, interval_s),
        log=told,
        desktop=told,
        outbox=outbox,
        **more,
    )
    door.clock.ends_s = door.began_s + minutes * MINUTE_S
    try:
        told.status = loop.run()
    except Clock.Over:
        told.status = None
    return told  # type: ignore[no-any-return]


def gaps(door: Door) -> list[float]:
    return [later - earlier for earlier, later in zip(door.polls_s, door.polls_s[1:])]


# --- When it polls --------------------------------------------------------------------


def test_polls_keep_their_interval_however_long_they_take(clock: Clock) -> None:
    door = Door(clock, IDLE)
    run(door, minutes=200)
    assert gaps(door) == [2400] * 4


def test_poll_that_is_brought_forward_comes_at_its_moment(clock: Clock) -> None:
    full_at_s = clock.now_s + 30 * MINUTE_S
    charging = Reading(97, status="charging", full_at_s=full_at_s, source="BMW")
    door = Door(clock, charging)
    told = run(door, minutes=35)
    assert door.polls_s[1:3] == [20 * MINUTE_S, 32 * MINUTE_S]
    assert told.told == [f"Full in about 10 min, at {i3charge.clock_at(full_at_s)}"]


UNSENT = NoAnswer("no network", was_sent=False)
FAILED = NoReading("BMW has failed")


@pytest.mark.parametrize("failure", [UNSENT, NoAnswer("no answer", was_sent=True), FAILED])
def test_failures_wait_longer_and_longer_and_a_reading_ends_that(
    clock: Clock, failure: Exception
) -> None:
    door = Door(clock, *[failure] * 8, IDLE, failure, IDLE)
    run(door, minutes=300)
    minutes = [round(gap / MINUTE_S) for gap in gaps(door)]
    assert minutes[:10] == [1, 2, 4, 8, 16, 32, 40, 40, 40, 1]


def test_failures_at_a_short_interval_wait_for_five_minutes_at_most() -> None:
    found = [i3charge.growing_pause_s(failures, 60) for failures in (1, 2, 3, 4, 5, 2000)]
    assert found == [60, 120, 240, 300, 300, 300]


def test_wait_that_a_problem_names_is_kept(clock: Clock) -> None:
    door = Door(clock, NoReading("a pause", wait_s=7.0), IDLE)
    run(door, minutes=1)
    assert gaps(door) == [8]


@pytest.mark.parametrize("first", [IDLE, NoReading("a pause", wait_s=2400.0)])
def test_poll_that_fell_due_in_sleep_is_made_after_waking(clock: Clock, first: Any) -> None:
    door = Door(clock, first, IDLE)
    sleep = clock.sleep

    def close_the_lid(seconds: float) -> None:
        sleep(seconds)
        if len(door.polls_s) == 1 and len(clock.naps) == 3:
            clock.now_s += 8 * 3600

    clock.sleep = close_the_lid  # type: ignore[method-assign]
    run(door, minutes=9 * 60)
    assert door.polls_s[1] == pytest.approx(8 * 3600 + 180, abs=61)
    assert gaps(door)[1] == 2400


def test_clock_that_is_set_back_does_not_stretch_a_wait(clock: Clock) -> None:
    slept_s: list[float] = []

    def note() -> Reading:
        slept_s.append(sum(clock.naps))
        return IDLE

    sleep = clock.sleep

    def set_back(seconds: float) -> None:
        sleep(seconds)
        if len(clock.naps) == 3:
            clock.now_s -= 5 * 3600

    clock.sleep = set_back  # type: ignore[method-assign]
    run(Door(clock, note), minutes=50)
    assert slept_s[1] == pytest.approx(2400, abs=61)


def test_nap_is_a_minute_at_most(clock: Clock) -> None:
    run(Door(clock, IDLE), minutes=100)
    assert max(clock.naps) == 60


# --- What it says ---------------------------------------------------------------------


def test_failure_is_said_with_the_next_try(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    told = run(Door(clock, NoReading("BMW has failed")), minutes=1)
    assert log.messages == ["BMW has failed; next try in 60 s"]
    assert told.titles == ["i3: no reading"]


def test_waiting_for_the_owner_is_no_failure(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    told = run(Door(clock, i3charge.WaitingForOwner("Sign in", wait_s=90.0)), minutes=1)
    assert told.titles == ["i3: waiting for you"]
    assert [(record.levelname, record.message) for record in log.records] == [
        ("WARNING", "Sign in")
    ]


def test_refused_sign_in_is_told_and_ends_it(clock: Clock) -> None:
    told: Any = run(Door(clock, SignInRefused("BMW refuses the sign-in")))
    assert (told.told, told.status) == (["BMW refuses the sign-in"], 1)


def test_signal_whose_exception_python_has_dropped_ends_it_before_it_waits(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[int] = []
    monkeypatch.setattr(i3charge, "SIGNALS", signals)

    def interrupted() -> Reading:
        signals.append(signal.SIGTERM)
        return IDLE

    with pytest.raises(SystemExit, match="143"):
        run(Door(clock, interrupted))
    assert clock.naps == []


# --- Trouble is told once a day -------------------------------------------------------


def test_trouble_that_goes_on_is_told_once_a_day(clock: Clock) -> None:
    door = Door(clock, NoReading("broken", news=News("error", "have a look")))
    assert run(door, minutes=2.5 * 24 * 60).told == ["have a look"] * 3


def test_each_trouble_is_told_for_itself(clock: Clock) -> None:
    broken = [NoReading(words, news=News("error", words)) for words in ("no disk", "no client")]
    door = Door(clock, *broken, *broken)
    assert run(door, minutes=120).told == ["no disk", "no client"]


def test_trouble_that_a_reading_has_ended_is_told_anew(clock: Clock) -> None:
    broken = NoReading("broken", news=News("error", "have a look"))
    door = Door(clock, broken, broken, IDLE, broken)
    assert run(door, minutes=120).told == ["have a look"] * 2


def test_restart_does_not_tell_a_trouble_again(clock: Clock, tmp_path: Path) -> None:
    broken = NoReading("broken", news=News("error", "have a look"))
    for expected in (["have a look"], []):
        memory = i3charge.load_memory(tmp_path / ".i3charge.json", "", "")
        assert run(Door(clock, broken), once=True, memory=memory).told == expected


class Owner:
    """Signs in, or tries to, with the whole script in the clock's time."""

    def __init__(self, cardata: CarData, clock: Clock, hours: float, **sign_in: Any) -> None:
        memory = cardata.signed_in(expires_s=0.0, **sign_in)
        began_s = clock.now_s
        cardata.interval_s = 5
        client = Client(cardata, memory)
        self.hours: list[float] = []  # of each sign-in that is told

        def show(news: News) -> None:
            if news.kind == "sign-in":
                self.hours.append((clock.now_s - began_s) / 3600)

        door: Any = client.door
        door.clock, door.began_s = clock, began_s
        told = Told()
        told.show = show  # type: ignore[method-assign]
        run(door, minutes=hours * 60, memory=memory, told=told)


def test_sign_in_is_told_again_at_most_every_six_hours(cardata: CarData, clock: Clock) -> None:
    cardata.pending = 100_000
    owner = Owner(cardata, clock, 26, refresh_token="another")
    gaps = [later - earlier for earlier, later in zip(owner.hours, owner.hours[1:])]
    assert len(gaps) == 4 and all(5.999 <= gap <= 6.8 for gap in gaps)


def test_code_that_bmw_has_refused_is_followed_by_one_that_is_told(
    cardata: CarData, clock: Clock
) -> None:
    cardata.pending, cardata.codes_that_fail = 3, 1
    owner = Owner(cardata, clock, 1, refresh_token="another")
    assert len(owner.hours) == 2 and cardata.sign_ins == 1


def test_night_in_which_bmw_refuses_every_code_rings_once_an_hour_at_most(
    cardata: CarData, clock: Clock
) -> None:
    cardata.pending, cardata.codes_that_fail = 0, 100_000
    owner = Owner(cardata, clock, 10, refresh_token="another")
    first, second, *others = owner.hours
    assert second - first < 0.1
    gaps = [later - earlier for earlier, later in zip(owner.hours[1:], others)]
    assert others and min(gaps) >= 1


@pytest.mark.parametrize(("hours", "rings"), [(0.9, 0), (1.1, 1), (6.9, 1), (7.1, 2)])
def test_code_after_a_second_refused_one_is_told_an_hour_after_the_last_that_was(
    clock: Clock, hours: float, rings: int
) -> None:
    now_s = clock.now_s
    told_s = {i3charge.CODE_REFUSED: now_s - 10, "sign-in": now_s - 5}
    memory = Memory("", "", told_s={**told_s, i3charge.CODE_REFUSED: now_s})
    code = WaitingForOwner("", wait_s=300, news=News("sign-in", "confirm"))
    assert len(run(Door(clock, code), minutes=hours * 60, memory=memory).told) == rings


# --- Silence --------------------------------------------------------------------------


def test_silence_is_told_while_waiting_but_not_at_waking(clock: Clock) -> None:
    door = Door(clock, CHARGING, FAILED)
    told = run(door, minutes=90)
    assert [message[:22] for message in told.told] == ["No word from BMW since"]


@pytest.mark.parametrize("wakes_to", [CHARGING, UNSENT])
def test_silence_of_a_sleeping_computer_is_no_news(clock: Clock, wakes_to: Any) -> None:
    door = Door(clock, CHARGING, wakes_to, CHARGING)
    sleep = clock.sleep

    def close_the_lid(seconds: float) -> None:
        sleep(seconds)
        if len(clock.naps) == 3:
            clock.now_s += 8 * 3600

    clock.sleep = close_the_lid  # type: ignore[method-assign]
    assert run(door, minutes=9 * 60).told == []


def test_silence_is_told_where_every_wait_is_short(clock: Clock) -> None:
    told = run(Door(clock, CHARGING, UNSENT), interval_s=60, minutes=70)
    assert len(told.told) == 1


def test_phone_is_tried_again_while_waiting(clock: Clock, ntfy: Recorder) -> None:
    waiting = Message("NTFY_URL", News("full", "hello"), made_s=clock.now_s)
    waiting.next_try_s = clock.now_s + 300
    memory = Memory(outbox=[waiting])
    door = Door(clock, IDLE)
    run(door, minutes=7, memory=memory, ntfy_url=ntfy.url + "secret-topic")
    assert ntfy.messages() == ["hello"] and len(door.polls_s) == 1


def test_phone_is_tried_again_while_bmw_is_asked_for_a_confirmed_code(
    clock: Clock, ntfy: Recorder
) -> None:
    news = News("sign-in", "confirm", good_until_s=clock.now_s + 300)
    door = Door(clock, WaitingForOwner("", wait_s=5, news=news))
    ntfy.answers = [says(503)]
    run(door, minutes=3, ntfy_url=ntfy.url + "secret-topic")
    assert len(ntfy.requests) == 2 and ntfy.messages() == ["confirm"]


def test_news_is_on_disk_before_anybody_hears_of_it(
    clock: Clock, ntfy: Recorder, tmp_path: Path
) -> None:
    memory = Memory("", "", path=tmp_path / ".i3charge.json")
    seen = []

    def look(handler: Any) -> None:
        kept = i3charge.load_memory(tmp_path / ".i3charge.json", "", "")
        seen.append((kept.session.is_on, [message.summary for message in kept.outbox]))
        handler.reply(200)

    ntfy.answers = [look]
    url = ntfy.url + "secret-topic"
    run(Door(clock, IDLE, CHARGING), minutes=60, memory=memory, ntfy_url=url)
    assert seen == [(True, ["Charging from 60%"])]


# --- A fault of our own ---------------------------------------------------------------


def fail(*_: Any) -> None:
    """With a secret in its hands."""
    secret = {"a secret": 1}
    secret["another secret"]


RISING = [Reading(40 + step, status="charging", source="BMW") for step in range(0, 60, 6)]


def test_fault_is_said_with_its_place_and_without_its_text(
    clock: Clock, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.set_level(logging.DEBUG, logger="i3charge")
    monkeypatch.setattr(i3charge.ChargeWatch, "take", fail)
    run(Door(clock, IDLE), minutes=1)
    *frames, said = log.messages
    assert said.startswith("a fault in i3charge itself: KeyError in test_loop.py, line ")
    assert "in guard" in frames[0] and frames[-1].endswith("in fail")
    assert "secret" not in log.text


@pytest.mark.parametrize("where", ["ChargeWatch.take", "Outbox._post", "held"])
def test_fault_anywhere_in_the_round_is_told_once_and_the_next_poll_comes(
    clock: Clock, ntfy: Recorder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(f"i3charge.{where}", fail)
    door = Door(clock, IDLE, *RISING)
    told = run(door, minutes=20 * 60, ntfy_url=ntfy.url + "secret-topic")
    assert len(door.polls_s) > 25
    assert sum(message.startswith("a fault in") for message in told.told) == 1


@pytest.mark.parametrize("where", ["write", "show"])
def test_fault_in_the_log_or_on_the_desktop_is_told_once_on_the_phone(
    clock: Clock, ntfy: Recorder, where: str
) -> None:
    told: Any = Told()
    setattr(told, where, fail)
    door = Door(clock, IDLE, *RISING)
    run(door, minutes=20 * 60, ntfy_url=ntfy.url + "secret-topic", told=told)
    assert len(door.polls_s) > 25
    assert sum(message.startswith("a fault in") for message in ntfy.messages()) == 1


def test_fault_in_telling_does_not_delay_the_question_whether_a_code_was_confirmed(
    cardata: CarData, clock: Clock
) -> None:
    told: Any = Told()
    told.show = fail
    cardata.pending, cardata.interval_s = 3, 5
    memory = Memory(cardata.client_id, VIN)
    door: Any = Client(cardata, memory).door
    door.clock, door.began_s = clock, clock.now_s
    run(door, minutes=0.5, memory=memory, told=told)
    assert cardata.sign_ins == 1 and told.lines == 1


def test_fault_on_the_desktop_does_not_keep_a_code_from_the_phone(
    clock: Clock, ntfy: Recorder
) -> None:
    told: Any = Told()
    told.show = fail
    door = Door(clock, WaitingForOwner("", wait_s=5, news=News("sign-in", "confirm")))
    run(door, minutes=1, ntfy_url=ntfy.url + "secret-topic", told=told)
    assert ntfy.messages()[0] == "confirm"


def test_fault_that_stays_fills_no_log(
    clock: Clock, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, ntfy: Recorder
) -> None:
    monkeypatch.setattr(i3charge.Outbox, "_post", fail)
    run(Door(clock, IDLE, CHARGING), minutes=10 * 60, ntfy_url=ntfy.url + "secret-topic")
    assert 1 <= sum("a fault in" in message for message in log.messages) < 40


@pytest.mark.parametrize("wait_s", [5, 60, None])
def test_fault_that_comes_at_every_short_pause_is_said_at_the_growing_one(
    clock: Clock, log: pytest.LogCaptureFixture, wait_s: float | None
) -> None:
    told: Any = Told()
    told.set_title = fail
    run(Door(clock, WaitingForOwner("", wait_s=wait_s)), minutes=5 * 60, told=told)
    assert 6 <= sum("a fault in" in message for message in log.messages) <= 14


def test_fault_in_planning_is_followed_by_the_growing_pause(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(i3charge.ChargeWatch, "plan_next_poll", fail)
    door = Door(clock, IDLE)
    run(door, minutes=60)
    assert gaps(door) == [61, 121, 241, 481, 961]


# --- How it ends ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("does", "status"), [(IDLE, 0), (FAILED, 1), (UNSENT, 1), (SignInRefused("no"), 1)]
)
def test_once_ends_with_its_poll(clock: Clock, does: Any, status: int) -> None:
    door = Door(clock, does)
    told: Any = run(door, once=True)
    assert (told.status, len(door.polls_s)) == (status, 1)


def test_closed_pipe_ends_it_quietly_and_loses_no_news(
    portal: Portal, start: Start, ntfy: Recorder
) -> None:
    portal.readings = [car("61.0"), car("70.0"), car("97.0", chargingTimeRemaining="5.0")]
    reader, writer = os.pipe()
    settings = {**portal.settings(), "NTFY_URL": ntfy.url + "secret-topic"}
    script = start(settings=settings, stdout=writer)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    assert script.end() == 0
    assert script.stderr_with("Traceback") == script.stderr_with("Broken") == 0


def test_nobody_reads_the_log_any_more_and_the_memory_cannot_be_written(clock: Clock) -> None:
    told: Any = Told()
    told.is_unread = True
    memory = Memory(path=Path("/nowhere/.i3charge.json"))
    assert run(Door(clock, IDLE), told=told, memory=memory).status == 0  # type: ignore[attr-defined]


def test_log_that_cannot_be_written_is_said_once(portal: Portal, start: Start) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no full device")
    with open("/dev/full", "w") as full:
        script = start(settings=portal.settings(), stdout=full)
        portal.wait_for(lambda: portal.served > 4, "polls that go on")
        script.interrupt()
        once = start("--once", settings=portal.settings(), stdout=full)
        assert once.end() == 1
    assert script.stderr_with("the log cannot be written") == 1
