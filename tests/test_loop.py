"""The loop: poll, log, save, tell, wait."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import Clock, Start
from fake_bmw import Portal, Recorder, car, says
from fake_cardata import CarData, Client, saved

import i3charge
from i3charge import CannotGoOn, Memory, Message, News, Observation, Reading, Report, Trouble

Log = pytest.LogCaptureFixture
BreakAt = Callable[[str], None]
MINUTE_S = 60.0
HOUR_S = 60 * MINUTE_S
INTERVAL_S = 40 * MINUTE_S


@dataclass(frozen=True)
class Car:
    """What BMW says of the car, stamped with the time of the poll; None is left out."""

    status: str = "CHARGINGACTIVE"
    percent: float | None = 60.0
    predicted: float | None = None
    full_at_s: float | None = None
    ahead_s: float = 0.0  # the car's clock

    def report(self, now_s: float) -> Report:
        said_s = now_s + self.ahead_s
        said = [
            Observation(said_s, "status", self.status),
            Observation(said_s, "percent", self.percent),
            Observation(0.0, "predicted", self.predicted),
            Observation(said_s, "full_at", self.full_at_s),
        ]
        return Report(now_s, now_s, [each for each in said if each.value is not None])


IDLE = Car("NOCHARGING")
CHARGING = Car("CHARGINGACTIVE")
RISING = [Car("CHARGINGACTIVE", percent) for percent in range(60, 98, 6)]
FAILED = Trouble("BMW has failed")
SIGN_IN = Trouble("sign in", wait_s=300.0, needs_sign_in=True)
CODE = Trouble("", wait_s=5, needs_sign_in=True)  # whether the owner has confirmed it
BROKEN = Trouble("broken", news=News("error", "have a look"))


class Door:
    """Does what a test says, one item a poll; the last one stays.

    An item is a Car, an exception to raise, or a function that returns one of them. A poll
    takes a second.
    """

    name = "a door"

    def __init__(self, clock: Clock, *does: Any) -> None:
        self.clock = clock
        self.does = list(does)
        self.began_s = clock.now_s
        self.polls_s: list[int] = []  # since the start
        self.slept_s: list[float] = []  # in naps until each poll

    def poll(self) -> Report:
        self.polls_s.append(round(self.clock.now_s - self.began_s))
        self.slept_s.append(self.clock.monotonic())
        self.clock.now_s += 1
        item = self.does.pop(0) if len(self.does) > 1 else self.does[0]
        if callable(item):
            item = item()
        if isinstance(item, Exception):
            raise item
        assert isinstance(item, Car)
        return item.report(self.clock.now_s)


class Told:
    """In the place of the log and the desktop."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.began_s = clock.now_s
        self.works, self.is_unread = True, False
        self.status: int | None = None  # the exit status
        self.titles: list[str] = []
        self.told: list[str] = []
        self.hours: list[float] = []  # since the start, when it was told

    def write(self, reading: Reading) -> None:
        self.titles.append(f"i3 {reading.percent} {reading.status}")

    def set_title(self, text: str) -> None:
        self.titles.append(text)

    def show(self, news: News) -> None:
        self.told.append(news.message)
        self.hours.append((self.clock.now_s - self.began_s) / HOUR_S)


def run(
    door: Any,
    hours: float = 10,
    *,
    told: Any = None,
    memory: Memory | None = None,
    save: Callable[[], bool] = saved,
    ntfy: Recorder | None = None,
    once: bool = False,
) -> Told:
    """Let the loop run for so long."""
    told = told or Told(door.clock)
    memory = memory or Memory()
    settings = i3charge.Settings(ntfy_url=ntfy.url + "secret-topic" if ntfy else "")
    store = i3charge.Store(memory, save)
    outbox = i3charge.Outbox(settings, store, "BMW i3")
    watch = i3charge.ChargeWatch(memory, 0, INTERVAL_S)
    notifier = i3charge.Notifier(store, told, outbox)
    loop = i3charge.Loop(door, INTERVAL_S, store, watch, told, notifier, outbox, once)
    door.clock.ends_s = door.began_s + hours * HOUR_S
    with suppress(Clock.Over):
        told.status = loop.run()
    return told  # type: ignore[no-any-return]


def move_clock(clock: Clock, after_naps: int, by_s: float) -> None:
    """Move the clock after so many naps: a closed lid does, and so does a correction."""
    sleep = clock.sleep

    def sleep_and_move(seconds: float) -> None:
        sleep(seconds)
        if len(clock.naps) == after_naps:
            clock.now_s += by_s

    clock.sleep = sleep_and_move  # type: ignore[method-assign]


@pytest.fixture
def clock(clock: Clock) -> Clock:
    clock.now_s = datetime(2026, 1, 9, 18).timestamp()  # a Friday
    return clock


def gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in zip(times, times[1:])]


def soon_after(hours: float) -> Any:
    """Told in a nap: of a minute, after a poll or two of a second."""
    return pytest.approx(hours + 1 / 60, abs=1 / 59)


# --- When it polls --------------------------------------------------------------------


def test_polls_keep_their_interval_and_naps_last_a_minute_at_most(clock: Clock) -> None:
    door = Door(clock, IDLE)
    run(door, hours=3.4)
    assert gaps(door.polls_s) == [2400] * 5
    assert max(clock.naps) == 60


def test_early_poll_comes_at_its_moment(clock: Clock) -> None:
    door = Door(clock, Car(percent=97, full_at_s=clock.now_s + 30 * MINUTE_S))
    told = run(door, hours=0.6)
    assert door.polls_s[1:3] == [20 * MINUTE_S, 32 * MINUTE_S]
    assert told.told == ["Full in about 10 min, at 18:30"]


@pytest.mark.parametrize("failure", [FAILED, KeyError("a fault of ours")])
def test_failures_wait_longer_and_longer_until_a_reading(clock: Clock, failure: Exception) -> None:
    door = Door(clock, *[failure] * 8, IDLE, failure, IDLE)
    run(door, hours=5)
    minutes = [round(gap / MINUTE_S) for gap in gaps(door.polls_s)]
    assert minutes[:10] == [1, 2, 4, 8, 16, 32, 40, 40, 40, 1]


def test_failures_at_a_short_interval_wait_for_five_minutes_at_most() -> None:
    found = [i3charge.growing_pause_s(failures, 60) for failures in (1, 2, 3, 4, 5, 2000)]
    assert found == [60, 120, 240, 300, 300, 300]


def test_wait_that_a_trouble_names_is_kept(clock: Clock) -> None:
    door = Door(clock, Trouble("a pause", wait_s=7.0), IDLE)
    run(door, hours=0.1)
    assert gaps(door.polls_s) == [8]


def test_poll_that_fell_due_in_sleep_is_made_after_waking(clock: Clock) -> None:
    door = Door(clock, IDLE)
    move_clock(clock, after_naps=3, by_s=8 * HOUR_S)
    run(door, hours=9)
    assert door.polls_s[1] == pytest.approx(8 * HOUR_S + 180, abs=61)
    assert gaps(door.polls_s)[1] == 2400


def test_clock_that_is_set_back_does_not_stretch_a_wait(clock: Clock) -> None:
    door = Door(clock, IDLE)
    move_clock(clock, after_naps=3, by_s=-5 * HOUR_S)
    run(door, hours=1)
    assert door.slept_s[1] == pytest.approx(2400, abs=61)


def test_clock_that_was_ahead_until_a_poll_delays_no_other(clock: Clock) -> None:
    def put_right() -> Car:
        clock.now_s -= 2 * HOUR_S
        return IDLE

    door = Door(clock, IDLE, put_right, IDLE)
    move_clock(clock, after_naps=40, by_s=2 * HOUR_S)
    run(door, hours=6)
    assert len(door.polls_s) > 4 and max(gaps(door.slept_s)) < 2400 + 61


# --- What it says ---------------------------------------------------------------------


@pytest.mark.parametrize(("once", "more"), [(False, "; next try in 60 s"), (True, "")])
def test_failure_is_said_with_the_next_try_if_there_is_one(
    clock: Clock, log: Log, once: bool, more: str
) -> None:
    told = run(Door(clock, FAILED), hours=0.01, once=once)
    assert log.messages == [f"BMW has failed{more}"]
    assert (told.titles, told.told) == (["i3: no reading"], [])


def test_waiting_for_the_owner_is_no_error(clock: Clock, log: Log) -> None:
    code = News("sign-in", "Sign in", click="https://bmw.example")
    door = Door(clock, Trouble("Sign in", wait_s=90.0, news=code, needs_sign_in=True))
    assert run(door, hours=0.01).titles == ["i3: waiting for you"]
    assert [(each.levelname, each.message) for each in log.records] == [("WARNING", "Sign in")]


# --- Trouble is told once a day -------------------------------------------------------


def test_each_trouble_is_told_for_itself_until_a_reading_ends_it(clock: Clock) -> None:
    disk, client = [Trouble(words, news=News("error", words)) for words in ("disk", "client")]
    door = Door(clock, disk, client, disk, client, IDLE, disk)
    assert run(door, hours=2).told == ["disk", "client", "disk"]


def test_restart_does_not_tell_a_trouble_again(clock: Clock) -> None:
    memory = Memory()
    found = [run(Door(clock, BROKEN), once=True, memory=memory).told for _ in range(2)]
    assert found == [["have a look"], []]


def test_each_code_for_a_sign_in_is_told(cardata: CarData, clock: Clock) -> None:
    cardata.pending, cardata.interval_s = 100_000, 60
    memory = cardata.signed_in(expires_s=0.0, refresh_token="another")
    door: Any = Client(cardata, memory).door
    door.clock, door.began_s = clock, clock.now_s
    told = run(door, 8, memory=memory)
    assert told.hours == pytest.approx([0, 1, 7], abs=0.1)
    assert len(set(told.told)) == 3


def test_phone_hears_of_a_car_whose_clock_is_ahead(clock: Clock, ntfy: Recorder) -> None:
    run(Door(clock, IDLE, Car(ahead_s=HOUR_S)), hours=1, ntfy=ntfy)
    assert ntfy.messages() == ["Charging from 60%"]


# --- Silence in a charge --------------------------------------------------------------


def test_silence_in_a_charge_is_told_with_the_last_reading(clock: Clock, ntfy: Recorder) -> None:
    ntfy.answers = [says(503)] * 5  # for a quarter of an hour, so that it says since when
    door = Door(clock, CHARGING, Car(percent=None, predicted=62), FAILED)
    told = run(door, hours=20, ntfy=ntfy)
    assert told.hours == [soon_after(2)]  # two intervals after the last reading
    (message,) = ntfy.messages()
    assert re.fullmatch(r"20:0[0-2]: No word from BMW since 18:40 \(~62%, charging\)", message)


def test_silence_of_a_sleeping_computer_is_no_news(clock: Clock) -> None:
    move_clock(clock, after_naps=3, by_s=8 * HOUR_S)
    assert run(Door(clock, CHARGING, FAILED, CHARGING), hours=9).told == []


# --- No readings for hours ------------------------------------------------------------


def test_polls_that_fail_for_six_hours_are_told_with_the_latest_reason(
    clock: Clock, ntfy: Recorder, log: Log
) -> None:
    told = run(Door(clock, IDLE, *[FAILED] * 3, Trouble("No (CU-104)")), hours=8, ntfy=ntfy)
    assert told.hours == [soon_after(6 + 40 / 60)]
    message = "No readings since Fri 18:00: No (CU-104); README.md says what to do"
    assert ntfy.messages() == told.told == [message]
    assert log.messages.count(message) == 1


def test_polls_that_never_gave_a_reading_are_told_once_a_day(clock: Clock) -> None:
    told = run(Door(clock, FAILED), hours=56)
    assert {text[:39] for text in told.told} == {"No readings since the start: BMW has fa"}
    assert told.hours[0] == soon_after(6) and gaps(told.hours) == [soon_after(24)] * 2


def test_two_failed_polls_are_too_few_for_no_readings(clock: Clock) -> None:
    told = run(Door(clock, Trouble("a pause", wait_s=5 * HOUR_S)), hours=14)
    assert told.hours == [soon_after(10)]


def test_sign_in_that_is_asked_for_is_told_instead_of_no_readings(clock: Clock) -> None:
    assert run(Door(clock, IDLE, *[FAILED] * 3, SIGN_IN), hours=30).told == []


def test_hours_under_a_closed_lid_are_no_hours_without_readings(clock: Clock) -> None:
    move_clock(clock, after_naps=10, by_s=8 * HOUR_S)
    assert run(Door(clock, FAILED), hours=15).hours == [soon_after(8 + 6)]


def test_no_readings_are_told_a_day_after_the_silence_in_a_charge(clock: Clock) -> None:
    told = run(Door(clock, CHARGING, FAILED), hours=60)
    assert [text[:11] for text in told.told] == ["No word fro", "No readings", "No readings"]
    assert told.hours[0] == soon_after(4 / 3) and gaps(told.hours) == [soon_after(24)] * 2


def test_no_readings_are_told_anew_after_a_reading_has_ended_that(clock: Clock) -> None:
    def fails_but_after_seven_hours() -> Any:
        return IDLE if 1 <= datetime.fromtimestamp(clock.now_s).hour < 2 else FAILED

    first, second = run(Door(clock, fails_but_after_seven_hours), hours=16).hours
    assert first == soon_after(6)
    assert 8 + 6 <= second <= 8 + 6 + 41 / 60


@pytest.mark.parametrize(
    ("status", "age_hours", "told"),
    [("plugged in", 5.9, ""), ("plugged in", 6, "No readings"), ("charging", 1.4, "No word")],
)
def test_once_counts_from_the_last_reading_in_the_memory(
    clock: Clock, status: Any, age_hours: float, told: str
) -> None:
    last = Reading(60, taken_s=clock.now_s - age_hours * HOUR_S, status=status)
    found = run(Door(clock, FAILED), once=True, memory=Memory(last=last)).told
    assert "".join(found).startswith(told) and len(found) == bool(told)


def test_silence_in_a_charge_is_told_although_no_readings_were_told(clock: Clock) -> None:
    memory = Memory()
    last = Reading(60, taken_s=clock.now_s - 7 * HOUR_S, status="plugged in")
    for memory.last in (last, dataclasses.replace(last, status="charging")):
        assert len(run(Door(clock, FAILED), once=True, memory=memory).told) == 1


# --- The phone and the memory ---------------------------------------------------------


def test_phone_is_tried_again_while_waiting(clock: Clock, ntfy: Recorder) -> None:
    waiting = Message("NTFY_URL", News("full", "hello"), made_s=clock.now_s)
    waiting.next_try_s = clock.now_s + 300
    door = Door(clock, IDLE)
    run(door, hours=0.12, memory=Memory(outbox=[waiting]), ntfy=ntfy)
    assert ntfy.messages() == ["hello"] and len(door.polls_s) == 1


def test_news_is_kept_before_anybody_hears_of_it(clock: Clock, ntfy: Recorder) -> None:
    memory, kept = Memory(), [Memory()]
    seen = []

    def save() -> bool:
        kept.append(copy.deepcopy(memory))
        return True

    def look(heard: Any) -> None:
        seen.append(("started" in kept[-1].news_told_s, [m.summary for m in kept[-1].outbox]))
        if not isinstance(heard, News):
            heard.reply(200, {"id": "taken"})

    told: Any = Told(clock)
    told.show = look
    ntfy.answers = [look]
    run(Door(clock, IDLE, CHARGING), 1, told=told, memory=memory, save=save, ntfy=ntfy)
    assert seen == [(True, ["Charging from 60%"])] * 2


# --- A fault of our own ---------------------------------------------------------------


def fail(*_: Any) -> None:
    """With a secret in its hands."""
    secret = {"a secret": 1}
    secret["another secret"]


@pytest.fixture
def break_at(monkeypatch: pytest.MonkeyPatch) -> BreakAt:
    """Lets a step of the script fail, or of `Told`."""

    def break_at(where: str) -> None:
        owner, name = where.split(".")
        monkeypatch.setattr({**vars(i3charge), "Told": Told}[owner], name, fail)

    return break_at


def faults(messages: list[str]) -> int:
    return sum(message.startswith("a fault in") for message in messages)


def test_fault_is_said_with_its_place_and_without_its_text(clock: Clock, log: Log) -> None:
    log.set_level(logging.DEBUG, logger="i3charge")
    run(Door(clock, fail), hours=0.01)
    *frames, said = log.messages
    assert said.startswith("a fault in i3charge itself: KeyError in test_loop.py, line ")
    assert "in poll" in frames[0] and frames[-1].endswith("in fail")
    assert "secret" not in log.text


@pytest.mark.parametrize("where", ["ChargeWatch.observe", "ChargeWatch.next_poll_s"])
def test_fault_in_the_poll_is_told_once_a_day_and_the_next_polls_come(
    clock: Clock, log: Log, break_at: BreakAt, ntfy: Recorder, where: str
) -> None:
    break_at(where)
    door = Door(clock, IDLE, *RISING)
    told = run(door, hours=20, ntfy=ntfy)
    assert len(door.polls_s) > 25
    assert faults(told.told) == faults(ntfy.messages()) == 1
    assert faults(log.messages) < 40


ELSEWHERE = ["Loop.tell_silence", "Notifier.forget_troubles", "Outbox.deliver", "Outbox._post"]
ELSEWHERE += ["Told.write", "Told.show", "Told.set_title"]


@pytest.mark.parametrize("where", ELSEWHERE)
def test_fault_elsewhere_is_told_once_delays_no_poll_and_keeps_no_news_from_the_phone(
    clock: Clock, log: Log, break_at: BreakAt, ntfy: Recorder, where: str
) -> None:
    # A code is asked for, BMW fails for hours, and a charge ends that.
    codes = [CODE] * 20
    does = [IDLE, *codes, BROKEN, *RISING[:3], *[FAILED] * 8, *RISING[3:], *codes, FAILED, IDLE]
    undisturbed = Door(clock, *does)
    run(undisturbed, hours=20, ntfy=ntfy)
    expected = ntfy.messages()
    ntfy.accepted.clear()
    log.clear()

    break_at(where)
    clock.now_s = undisturbed.began_s
    door = Door(clock, *does)
    told = run(door, hours=20, ntfy=ntfy)
    assert door.polls_s == undisturbed.polls_s and len(door.polls_s) > 60
    assert faults(log.messages) == 1
    assert max(faults(told.told), faults(ntfy.messages())) == 1
    if where.startswith("Told"):
        assert [text for text in ntfy.messages() if not faults([text])] == expected


def test_fault_is_told_again_after_a_day_but_not_after_a_reading(clock: Clock) -> None:
    door = Door(clock, *[fail, IDLE] * 3, IDLE)
    memory = Memory()
    assert faults(run(door, hours=23, memory=memory).told) == 1
    door = Door(clock, fail, IDLE)
    clock.now_s += 2 * HOUR_S
    assert faults(run(door, hours=3, memory=memory).told) == 1


# --- How it ends ----------------------------------------------------------------------


def test_refused_sign_in_is_said_and_told_and_ends_it(clock: Clock, log: Log) -> None:
    told = run(Door(clock, CannotGoOn("BMW refuses the sign-in", exit_status=3)))
    assert (told.told, told.status) == (["BMW refuses the sign-in"], 3)
    assert log.messages == ["BMW refuses the sign-in"]


@pytest.mark.parametrize(("does", "status"), [(IDLE, 0), (FAILED, 1), (fail, 1)])
def test_once_ends_with_its_poll(clock: Clock, does: Any, status: int) -> None:
    door = Door(clock, does)
    assert run(door, once=True).status == status
    assert len(door.polls_s) == 1


@pytest.mark.parametrize("where", ["Told.write", "Outbox.deliver", "Notifier.forget_troubles"])
def test_once_fails_by_a_fault_of_ours(clock: Clock, break_at: BreakAt, where: str) -> None:
    break_at(where)
    assert run(Door(clock, IDLE), once=True).status == 1


def test_once_fails_if_its_reading_is_not_logged_or_not_kept(clock: Clock) -> None:
    told = Told(clock)
    told.works = False
    assert run(Door(clock, IDLE), once=True, told=told).status == 1
    assert run(Door(clock, IDLE), once=True, save=lambda: False).status == 1


def test_closed_pipe_ends_it_quietly_and_loses_no_news(
    portal: Portal, start: Start, ntfy: Recorder
) -> None:
    portal.readings = [car("61.0"), car("97.0", chargingTimeRemaining="5.0")]
    reader, writer = os.pipe()
    settings = {**portal.settings(), "NTFY_URL": ntfy.url + "secret-topic"}
    script = start(settings=settings, stdout=writer)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    assert script.end() == 0
    assert [text[:15] for text in ntfy.messages()] == ["Full in about 5"]
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
