"""The loop: poll, log, save, tell, wait."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import Clock, Start
from fake_bmw import VIN, Portal, Recorder, car
from fake_cardata import CarData, Client, saved, says

import i3charge
from i3charge import (
    CannotGoOn,
    Memory,
    MemoryFile,
    Message,
    News,
    Observation,
    Reading,
    Report,
    Settings,
    Trouble,
)

MINUTE_S = 60.0
HOUR_S = 60 * MINUTE_S


@dataclass(frozen=True)
class Car:
    """What BMW says of the car, stamped with the time of the poll; None is left out."""

    status: str = "CHARGINGACTIVE"
    percent: float | None = 60.0
    predicted: float | None = None
    full_at_s: float | None = None

    def report(self, now_s: float) -> Report:
        said = [
            Observation(now_s, "status", self.status),
            Observation(now_s, "percent", self.percent),
            Observation(0.0, "predicted", self.predicted),
            Observation(now_s, "full_at", self.full_at_s),
        ]
        return Report(now_s, now_s, [each for each in said if each.value is not None])


IDLE = Car("NOCHARGING")
CHARGING = Car("CHARGINGACTIVE")
RISING = [Car("CHARGINGACTIVE", percent) for percent in range(60, 98, 6)]
UNSENT = Trouble("no network", was_sent=False)
FAILED = Trouble("BMW has failed")
SIGN_IN = Trouble("sign in", wait_s=300.0, is_for_owner=True)


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
        self.lines = 0

    def write(self, reading: Reading) -> None:
        self.lines += 1
        self.titles.append(f"i3 {reading.percent} {reading.status}")

    def set_title(self, text: str) -> None:
        self.titles.append(text)

    def show(self, news: News) -> None:
        self.told.append(news.message)
        self.hours.append((self.clock.now_s - self.began_s) / HOUR_S)


def run(
    door: Any,
    hours: float = 10,
    interval_s: float = 2400,
    *,
    told: Any = None,
    memory: Memory | None = None,
    save: i3charge.Save = saved,
    ntfy: Recorder | None = None,
    once: bool = False,
) -> Told:
    """Let the loop run for so long."""
    told = told or Told(door.clock)
    memory = memory or Memory()
    settings = Settings(ntfy_url=ntfy.url + "secret-topic" if ntfy else "")
    loop = i3charge.Loop(
        door=door,
        interval_s=interval_s,
        memory=memory,
        save=save,
        watch=i3charge.ChargeWatch(memory, 0, interval_s),
        log=told,
        desktop=told,
        outbox=i3charge.Outbox(settings, memory, save, "BMW i3"),
        once=once,
    )
    door.clock.ends_s = door.began_s + hours * HOUR_S
    try:
        told.status = loop.run()
    except Clock.Over:
        told.status = None
    return told  # type: ignore[no-any-return]


def move_clock(clock: Clock, after_naps: int, by_s: float) -> None:
    """Move the clock after so many naps: a closed lid does, and so does a correction."""
    sleep = clock.sleep

    def sleep_and_move(seconds: float) -> None:
        sleep(seconds)
        if len(clock.naps) == after_naps:
            clock.now_s += by_s

    clock.sleep = sleep_and_move  # type: ignore[method-assign]


def set_clock(clock: Clock, hour: int, minute: int = 0) -> None:
    """Begin on a Friday."""
    clock.now_s = datetime(2026, 1, 9, hour, minute).timestamp()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[MemoryFile]:
    file = MemoryFile(tmp_path / ".i3charge.json")
    yield file
    assert file._lock
    file._lock.close()


def gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in zip(times, times[1:])]


# --- When it polls --------------------------------------------------------------------


def test_polls_keep_their_interval_however_long_they_take(clock: Clock) -> None:
    door = Door(clock, IDLE)
    run(door, hours=3.4)
    assert gaps(door.polls_s) == [2400] * 5


def test_early_poll_comes_at_its_moment(clock: Clock) -> None:
    full_at_s = clock.now_s + 30 * MINUTE_S
    door = Door(clock, Car(percent=97, full_at_s=full_at_s))
    told = run(door, hours=0.6)
    assert door.polls_s[1:3] == [20 * MINUTE_S, 32 * MINUTE_S]
    full_clock = i3charge.clock_at(full_at_s, clock.now_s)
    assert told.told == [f"Full in about 10 min, at {full_clock}"]


@pytest.mark.parametrize("failure", [UNSENT, FAILED, KeyError("a fault of ours")])
def test_failures_wait_longer_and_longer_and_a_reading_ends_that(
    clock: Clock, failure: Exception
) -> None:
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


@pytest.mark.parametrize("first", [IDLE, Trouble("a pause", wait_s=2400.0)])
def test_poll_that_fell_due_in_sleep_is_made_after_waking(clock: Clock, first: Any) -> None:
    door = Door(clock, first, IDLE)
    move_clock(clock, after_naps=3, by_s=8 * HOUR_S)
    run(door, hours=9)
    assert door.polls_s[1] == pytest.approx(8 * HOUR_S + 180, abs=61)
    assert gaps(door.polls_s)[1] == 2400


@pytest.mark.parametrize("by_hours", [-5, -0.3])
@pytest.mark.parametrize("first", [IDLE, Trouble("a pause", wait_s=2400.0)])
def test_clock_that_is_set_back_does_not_stretch_a_wait(
    clock: Clock, first: Any, by_hours: float
) -> None:
    door = Door(clock, first, IDLE)
    move_clock(clock, after_naps=3, by_s=by_hours * HOUR_S)
    run(door, hours=1)
    assert door.slept_s[1] == pytest.approx(2400, abs=61)


@pytest.mark.parametrize("is_right_again", ["while it polls", "while it waits"])
@pytest.mark.parametrize("by_hours", [2, -2])
def test_clock_that_was_wrong_for_one_poll_delays_no_other(
    clock: Clock, by_hours: float, is_right_again: str
) -> None:
    wrong_s = by_hours * HOUR_S
    move_clock(clock, after_naps=40, by_s=wrong_s)

    def put_right() -> Car:
        clock.now_s -= wrong_s
        return IDLE

    door = Door(clock, IDLE, IDLE, IDLE)
    if is_right_again == "while it polls":
        door.does[1] = put_right
    else:
        move_clock(clock, after_naps=41, by_s=-wrong_s)
    run(door, hours=6)
    assert door.slept_s[1] == pytest.approx(2400, abs=61) and len(door.polls_s) > 4

    assert max(gaps(door.slept_s)) < 2400 + 61


def test_nap_is_a_minute_at_most(clock: Clock) -> None:
    run(Door(clock, IDLE), hours=2)
    assert max(clock.naps) == 60


# --- What it says ---------------------------------------------------------------------


def test_failure_is_said_with_the_next_try(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    told = run(Door(clock, FAILED), hours=0.01)
    assert log.messages == ["BMW has failed; next try in 60 s"]
    assert told.titles == ["i3: no reading"]


def test_failure_with_once_is_said_without_a_next_try(
    clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    run(Door(clock, FAILED), once=True)
    assert log.messages == ["BMW has failed"]


def test_waiting_for_the_owner_is_no_error(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    code = News("sign-in", "Sign in", click="https://bmw.example")
    door = Door(clock, Trouble("Sign in", wait_s=90.0, news=code, is_for_owner=True))
    told = run(door, hours=0.01)
    assert told.titles == ["i3: waiting for you"]
    assert [(record.levelname, record.message) for record in log.records] == [
        ("WARNING", "Sign in")
    ]


# --- Trouble is told once a day -------------------------------------------------------

BROKEN = Trouble("broken", news=News("error", "have a look"))


def test_trouble_that_goes_on_is_told_once_a_day(clock: Clock) -> None:
    told = run(Door(clock, BROKEN), hours=60)
    assert told.told.count("have a look") == 3


def test_each_trouble_is_told_for_itself(clock: Clock) -> None:
    broken = [Trouble(words, news=News("error", words)) for words in ("no disk", "no client")]
    door = Door(clock, *broken, *broken)
    assert run(door, hours=2).told == ["no disk", "no client"]


def test_trouble_that_a_reading_has_ended_is_told_anew(clock: Clock) -> None:
    door = Door(clock, BROKEN, BROKEN, IDLE, BROKEN)
    assert run(door, hours=2).told == ["have a look"] * 2


def test_restart_does_not_tell_a_trouble_again(clock: Clock, file: MemoryFile) -> None:
    for expected in (["have a look"], []):
        memory = file.load("", "")

        def save(memory: Memory = memory) -> bool:
            return file.save(memory)

        assert run(Door(clock, BROKEN), once=True, memory=memory, save=save).told == expected


class Owner:
    """Signs in, or tries to, with the whole script in the clock's time."""

    def __init__(self, cardata: CarData, clock: Clock, hours: float, **sign_in: Any) -> None:
        memory = cardata.signed_in(expires_s=0.0, **sign_in)
        cardata.interval_s = 5
        door: Any = Client(cardata, memory).door
        door.clock, door.began_s = clock, clock.now_s
        told = run(door, hours, memory=memory)
        pairs = zip(told.told, told.hours)
        self.hours = [hour for text, hour in pairs if text.startswith("Sign in at BMW")]


def test_sign_in_is_told_at_once_after_an_hour_and_every_six(
    cardata: CarData, clock: Clock
) -> None:
    cardata.pending = 100_000
    owner = Owner(cardata, clock, 26, refresh_token="another")
    assert owner.hours == pytest.approx([0, 1, 7, 13, 19, 25], abs=0.1)


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
    to_second, *others = gaps(owner.hours)
    assert to_second < 0.1
    assert others and min(others) >= 1


# --- Silence in a charge --------------------------------------------------------------


def test_silence_in_a_charge_names_the_last_reading(clock: Clock, ntfy: Recorder) -> None:
    set_clock(clock, 19, 30)
    door = Door(clock, CHARGING, Car(percent=None, predicted=62), FAILED)
    run(door, hours=3, ntfy=ntfy)
    assert ntfy.messages() == ["No word from BMW since 20:10 (~62%, charging)"]
    assert ntfy.requests[0].headers["Priority"] == "high"


@pytest.mark.parametrize(("interval_s", "after_hours"), [(60, 1), (2400, 4 / 3), (27 * HOUR_S, 54)])
def test_silence_in_a_charge_is_told_after_two_intervals_and_an_hour_at_least(
    clock: Clock, interval_s: float, after_hours: float
) -> None:
    told = run(Door(clock, CHARGING, FAILED), after_hours + 20, interval_s)
    hours = [hour for text, hour in zip(told.told, told.hours) if text.startswith("No word")]
    assert hours == [pytest.approx(after_hours + 1 / 60, abs=1 / 59)]


@pytest.mark.parametrize("wakes_to", [CHARGING, UNSENT])
def test_silence_of_a_sleeping_computer_is_no_news(clock: Clock, wakes_to: Any) -> None:
    move_clock(clock, after_naps=3, by_s=8 * HOUR_S)
    assert run(Door(clock, CHARGING, wakes_to, CHARGING), hours=9).told == []


# --- No readings for hours ------------------------------------------------------------


def no_readings(told: Told) -> list[float]:
    """The hours at which it was told that there are none."""
    return [hour for text, hour in zip(told.told, told.hours) if text.startswith("No readings")]


def soon_after(hours: float) -> Any:
    """Told in a nap: of a minute, after a poll or two of a second."""
    return pytest.approx(hours + 1 / 60, abs=1 / 59)


@pytest.mark.parametrize("status", ["NOCHARGING", "CHARGINGPAUSED", "CHARGINGENDED"])
def test_polls_that_fail_for_six_hours_are_told_with_the_latest_reason(
    clock: Clock, ntfy: Recorder, log: pytest.LogCaptureFixture, status: str
) -> None:
    set_clock(clock, 18)
    no_permission = Trouble("CarData says: No permission (CU-104)")
    door = Door(clock, Car(status), *[UNSENT] * 3, no_permission)
    told = run(door, hours=8, ntfy=ntfy)
    assert no_readings(told) == [soon_after(6 + 40 / 60)]
    message = (
        "No readings since Fri 18:00: CarData says: No permission (CU-104);"
        " README.md says what to do"
    )
    assert ntfy.messages() == told.told == [message]
    assert ntfy.requests[0].headers["Priority"] == "high"
    assert log.messages.count(message) == 1


def test_polls_that_never_gave_a_reading_are_told_as_failing_since_the_start(clock: Clock) -> None:
    told = run(Door(clock, FAILED), hours=7)
    assert [text[:39] for text in told.told] == ["No readings since the start: BMW has fa"]
    assert no_readings(told) == [soon_after(6)]


def test_two_failed_polls_are_too_few_for_no_readings(clock: Clock) -> None:
    told = run(Door(clock, Trouble("a pause", wait_s=5 * HOUR_S)), hours=14)
    assert no_readings(told) == [soon_after(10)]


def test_sign_in_that_is_asked_for_is_told_instead_of_no_readings(clock: Clock) -> None:
    assert run(Door(clock, IDLE, *[FAILED] * 3, SIGN_IN), hours=30).told == []


def test_hours_under_a_closed_lid_are_no_hours_without_readings(clock: Clock) -> None:
    move_clock(clock, after_naps=10, by_s=8 * HOUR_S)
    assert no_readings(run(Door(clock, FAILED), hours=15)) == [soon_after(8 + 6)]


def test_no_readings_are_told_once_a_day_while_that_lasts(clock: Clock) -> None:
    hours = no_readings(run(Door(clock, FAILED), hours=80))
    assert hours[0] == soon_after(6) and gaps(hours) == [soon_after(24)] * 3


def test_no_readings_are_told_a_day_after_the_silence_in_a_charge(clock: Clock) -> None:
    told = run(Door(clock, CHARGING, FAILED), hours=60)
    assert [text[:11] for text in told.told] == ["No word fro", "No readings", "No readings"]
    assert told.hours[0] == soon_after(4 / 3) and gaps(told.hours) == [soon_after(24)] * 2


def test_no_readings_are_told_anew_after_a_reading_has_ended_that(clock: Clock) -> None:
    began_s = clock.now_s

    def fails_but_in_the_eighth_hour() -> Any:
        return IDLE if 7 <= (clock.now_s - began_s) / HOUR_S < 8 else FAILED

    first, second = no_readings(run(Door(clock, fails_but_in_the_eighth_hour), hours=16))
    assert first == soon_after(6)
    assert 8 + 6 <= second <= 8 + 6 + 41 / 60


ONCE = [
    (None, 0.0, ""),
    ("plugged in", 5.9, ""),
    ("plugged in", 6.0, "No readings"),
    ("full", 500.0, "No readings"),
    ("charging", 1.3, ""),
    ("charging", 1.4, "No word fro"),
    ("charging", 26.0, "No readings"),
]


@pytest.mark.parametrize(("status", "age_hours", "message"), ONCE)
def test_once_counts_from_the_last_reading_in_the_memory(
    clock: Clock, status: Any, age_hours: float, message: str
) -> None:
    memory = Memory()
    if status:
        taken_s = clock.now_s - age_hours * HOUR_S
        memory.last = Reading(60, taken_s=taken_s, status=status)
    told = run(Door(clock, FAILED), once=True, memory=memory)
    assert [text[:11] for text in told.told] == ([message] if message else [])


def test_once_every_half_hour_tells_of_no_readings_once_a_day(clock: Clock) -> None:
    memory = Memory(last=Reading(60, taken_s=clock.now_s, status="plugged in"))
    told = Told(clock)
    for _ in range(80):
        run(Door(clock, FAILED), once=True, memory=memory, told=told)
        clock.now_s += HOUR_S / 2 - 1
    assert no_readings(told) == pytest.approx([6, 30], abs=0.51)


# --- The phone and the memory ---------------------------------------------------------


def test_phone_is_tried_again_while_waiting(clock: Clock, ntfy: Recorder) -> None:
    waiting = Message("NTFY_URL", News("full", "hello"), made_s=clock.now_s)
    waiting.next_try_s = clock.now_s + 300
    door = Door(clock, IDLE)
    run(door, hours=0.12, memory=Memory(outbox=[waiting]), ntfy=ntfy)
    assert ntfy.messages() == ["hello"] and len(door.polls_s) == 1


def test_phone_is_tried_again_while_bmw_is_asked_for_a_confirmed_code(
    clock: Clock, ntfy: Recorder
) -> None:
    news = News("sign-in", "confirm", good_until_s=clock.now_s + 300)
    door = Door(clock, Trouble("", wait_s=5, news=news, is_for_owner=True))
    ntfy.answers = [says(503)]
    run(door, hours=0.05, ntfy=ntfy)
    assert len(ntfy.requests) == 2 and ntfy.messages() == ["confirm"]


def test_news_is_on_disk_before_anybody_hears_of_it(
    clock: Clock, ntfy: Recorder, file: MemoryFile
) -> None:
    memory = file.load("", "")
    seen = []

    def look(heard: Any) -> None:
        kept = file.load("", "")
        seen.append(("started" in kept.news_told_s, [each.summary for each in kept.outbox]))
        if not isinstance(heard, News):
            heard.reply(200, {"id": "taken"})

    told: Any = Told(clock)
    told.show = look
    ntfy.answers = [look]
    door = Door(clock, IDLE, CHARGING)
    run(door, 1, told=told, memory=memory, save=lambda: file.save(memory), ntfy=ntfy)
    assert seen == [(True, ["Charging from 60%"])] * 2


# --- A fault of our own ---------------------------------------------------------------


def fail(*_: Any) -> None:
    """With a secret in its hands."""
    secret = {"a secret": 1}
    secret["another secret"]


def faults(messages: list[str]) -> int:
    return sum(message.startswith("a fault in") for message in messages)


def test_fault_is_said_with_its_place_and_without_its_text(
    clock: Clock, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.set_level(logging.DEBUG, logger="i3charge")
    monkeypatch.setattr(i3charge.ChargeWatch, "observe", fail)
    run(Door(clock, IDLE), hours=0.01)
    *frames, said = log.messages
    assert said.startswith("a fault in i3charge itself: KeyError in test_loop.py, line ")
    assert "in poll" in frames[0] and frames[-1].endswith("in fail")
    assert "secret" not in log.text


@pytest.mark.parametrize("where", ["observe", "next_poll_s"])
def test_fault_in_the_poll_is_told_once_a_day_and_the_next_polls_come(
    clock: Clock,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    ntfy: Recorder,
    where: str,
) -> None:
    monkeypatch.setattr(i3charge.ChargeWatch, where, fail)
    door = Door(clock, IDLE, *RISING)
    told = run(door, hours=20, ntfy=ntfy)
    assert len(door.polls_s) > 25
    assert faults(told.told) == faults(ntfy.messages()) == 1
    assert faults(log.messages) < 40


# Steps of the loop beside the poll itself; `Told` is the log and the desktop.
ELSEWHERE = [
    "Loop.log_trouble",
    "Loop.tell_silence",
    "Loop.is_failing_for_long",
    "Loop.forget_troubles",
    "ChargeWatch.silence_news",
    "Outbox.deliver",
    "Outbox._deliver_to",
    "Outbox._post",
    "Told.write",
    "Told.show",
    "Told.set_title",
]


@pytest.mark.parametrize("where", ELSEWHERE)
def test_fault_elsewhere_is_said_and_told_once_and_changes_no_schedule(
    clock: Clock,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    ntfy: Recorder,
    where: str,
) -> None:
    # A code is asked for every five seconds, BMW fails for hours, and a charge ends that.
    asks = [Trouble("", wait_s=5, is_for_owner=True)] * 20
    does = [
        IDLE,
        *asks,
        BROKEN,
        *RISING[:3],
        *[FAILED] * 8,
        *RISING[3:],
        *asks,
        FAILED,
        FAILED,
        IDLE,
    ]
    undisturbed = Door(clock, *does)
    run(undisturbed, hours=20)
    log.clear()

    owner, name = where.split(".")
    monkeypatch.setattr({**vars(i3charge), "Told": Told}[owner], name, fail)
    door = Door(clock, *does)
    told = run(door, hours=20, ntfy=ntfy)
    assert door.polls_s == undisturbed.polls_s and len(door.polls_s) > 60
    assert faults(log.messages) == 1
    assert max(faults(told.told), faults(ntfy.messages())) == 1


def test_fault_is_told_again_after_a_day_but_not_after_a_reading(clock: Clock) -> None:
    door = Door(clock, *[fail, IDLE] * 3, IDLE)
    memory = Memory()
    assert faults(run(door, hours=23, memory=memory).told) == 1
    door = Door(clock, fail, IDLE)
    clock.now_s += 2 * HOUR_S
    assert faults(run(door, hours=3, memory=memory).told) == 1


def test_fault_in_telling_does_not_delay_the_question_whether_a_code_was_confirmed(
    cardata: CarData, clock: Clock
) -> None:
    told: Any = Told(clock)
    told.show = fail
    cardata.pending, cardata.interval_s = 3, 5
    memory = Memory(client_id=cardata.client_id, vin=VIN)
    door: Any = Client(cardata, memory).door
    door.clock, door.began_s = clock, clock.now_s
    run(door, hours=0.01, memory=memory, told=told)
    assert cardata.sign_ins == 1 and told.lines == 1


CODE = Trouble("", wait_s=5, news=News("sign-in", "confirm"), is_for_owner=True)


@pytest.mark.parametrize(
    ("where", "does", "message"),
    [
        ("write", [IDLE, CHARGING], "Charging from 60%"),
        ("show", [IDLE, CHARGING], "Charging from 60%"),
        ("show", [CODE], "confirm"),
        ("set_title", [BROKEN], "have a look"),
    ],
)
def test_fault_in_the_log_or_on_the_desktop_keeps_no_news_from_the_phone(
    clock: Clock, ntfy: Recorder, where: str, does: list[Any], message: str
) -> None:
    told: Any = Told(clock)
    setattr(told, where, fail)
    run(Door(clock, *does), hours=1, told=told, ntfy=ntfy)
    assert message in ntfy.messages()


# --- How it ends ----------------------------------------------------------------------

REFUSED = CannotGoOn("BMW refuses the sign-in", exit_status=1)


def test_refused_sign_in_is_said_and_told_and_ends_it(
    clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    told = run(Door(clock, REFUSED))
    assert (told.told, told.status) == (["BMW refuses the sign-in"], 1)
    assert log.messages == ["BMW refuses the sign-in"]


@pytest.mark.parametrize(
    ("does", "status"), [(IDLE, 0), (FAILED, 1), (UNSENT, 1), (SIGN_IN, 1), (REFUSED, 1), (fail, 1)]
)
def test_once_ends_with_its_poll(clock: Clock, does: Any, status: int) -> None:
    door = Door(clock, does)
    told = run(door, once=True)
    assert (told.status, len(door.polls_s)) == (status, 1)


@pytest.mark.parametrize(
    "where", ["Told.write", "Told.show", "Loop.forget_troubles", "Outbox.deliver"]
)
def test_once_fails_with_its_poll_by_a_fault_of_ours(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    memory = Memory()
    run(Door(clock, IDLE), once=True, memory=memory)
    owner, name = where.split(".")
    monkeypatch.setattr({**vars(i3charge), "Told": Told}[owner], name, fail)
    clock.now_s += HOUR_S
    door = Door(clock, CHARGING)
    told = run(door, once=True, memory=memory)

    assert (told.status, len(door.polls_s)) == (1, 1)


def cannot_save() -> bool:
    return False


@pytest.mark.parametrize(
    ("works", "save", "status"), [(True, saved, 0), (False, saved, 1), (True, cannot_save, 1)]
)
def test_once_fails_if_its_reading_is_not_logged_and_kept(
    clock: Clock, works: bool, save: Callable[[], bool], status: int
) -> None:
    told = Told(clock)
    told.works = works
    assert run(Door(clock, IDLE), once=True, told=told, save=save).status == status


def test_log_that_nobody_reads_any_more_ends_it_well(clock: Clock) -> None:
    told = Told(clock)
    told.is_unread = True
    assert run(Door(clock, IDLE), told=told, save=cannot_save).status == 0


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
