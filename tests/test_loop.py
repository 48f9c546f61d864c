"""The loop: poll, log, save, tell, wait."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock, Start
from fake_bmw import Portal, Recorder, car

import i3charge
from i3charge import Memory, Message, News, NoReading, Reading, Settings, SignInRefused

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


def run(door: Door, minutes: float = 600, interval_s: float = 2400, **more: Any) -> Told:
    """Let the loop run for so long."""
    told: Any = Told()
    memory = more.pop("memory", Memory())
    settings = Settings(ntfy_url=more.pop("ntfy_url", ""))
    loop = i3charge.Loop(
        door=door,
        interval_s=interval_s,
        memory=memory,
        watch=i3charge.ChargeWatch(memory, 0, interval_s),
        log=told,
        desktop=told,
        outbox=i3charge.Outbox(settings, i3charge.Http(), memory, ""),
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


def test_failures_wait_longer_and_longer_and_a_reading_ends_that(clock: Clock) -> None:
    unsent = NoReading("no network", was_sent=False)
    door = Door(clock, unsent, unsent, unsent, IDLE, unsent, IDLE)
    run(door, minutes=120)
    assert gaps(door)[:5] == [61, 121, 241, 2400, 61]


def test_wait_that_a_problem_names_is_kept(clock: Clock) -> None:
    door = Door(clock, NoReading("a pause", wait_s=7.0), IDLE)
    run(door, minutes=1)
    assert gaps(door) == [8]


@pytest.mark.parametrize("first", [IDLE, NoReading("BMW has failed")])
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
    assert log.messages == ["BMW has failed; next try in 40 min"]
    assert told.titles == ["i3: no reading"]


def test_waiting_for_the_owner_is_no_failure(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    told = run(Door(clock, i3charge.WaitingForOwner("Sign in", wait_s=90.0)), minutes=1)
    assert told.titles == ["i3: waiting for you"]
    assert [(record.levelname, record.message) for record in log.records] == [
        ("WARNING", "Sign in")
    ]


def test_fault_of_our_own_does_not_end_it(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    log.set_level(logging.DEBUG, logger="i3charge")

    def fail() -> None:
        secret = {"a secret": 1}
        secret["another secret"]

    told = run(Door(clock, fail, IDLE), minutes=60)
    assert told.lines == 1
    *frames, said = log.messages
    assert "a fault in i3charge itself: KeyError in test_loop.py, line " in said
    assert frames[-1].endswith("in fail") and "in poll" in frames[0]
    assert "secret" not in log.text


def test_refused_sign_in_is_told_and_ends_it(clock: Clock) -> None:
    told: Any = run(Door(clock, SignInRefused("BMW refuses the sign-in")))
    assert (told.told, told.status) == (["BMW refuses the sign-in"], 1)


def test_news_of_a_problem_is_told(clock: Clock) -> None:
    news = News("error", "have a look")
    assert run(Door(clock, NoReading("", news=news)), minutes=1).told == ["have a look"]


def test_silence_is_told_while_waiting_but_not_at_waking(clock: Clock) -> None:
    sent = NoReading("BMW has failed")
    door = Door(clock, CHARGING, sent)
    told = run(door, minutes=90)
    assert [message[:22] for message in told.told] == ["No word from BMW since"]


@pytest.mark.parametrize("wakes_to", [CHARGING, NoReading("no network", was_sent=False)])
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
    unsent = NoReading("no network", was_sent=False)
    told = run(Door(clock, CHARGING, unsent), interval_s=60, minutes=70)
    assert len(told.told) == 1


def test_phone_is_tried_again_while_waiting(clock: Clock, ntfy: Recorder) -> None:
    waiting = Message("NTFY_URL", "hello", "hello", made_s=clock.now_s)
    waiting.next_try_s = clock.now_s + 300
    memory = Memory(outbox=[waiting])
    door = Door(clock, IDLE)
    run(door, minutes=7, memory=memory, ntfy_url=ntfy.url + "secret-topic")
    assert ntfy.messages() == ["hello"] and len(door.polls_s) == 1


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


# --- How it ends ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("does", "status"), [(IDLE, 0), (NoReading("BMW has failed"), 1), (SignInRefused("no"), 1)]
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
