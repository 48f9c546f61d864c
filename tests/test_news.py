"""What is news in a row of readings, and when the next poll is due; see test_charge.py, too."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import i3charge
from i3charge import Memory, News, Reading

START_S = datetime(2026, 8, 18, 18, 0, tzinfo=timezone.utc).timestamp()  # 20:00 in Amsterdam
VIN = "WBY00000000000000"


class Night:
    """Readings that come one after the other, at minutes since the start.

    The car itself says each charge, but where another `source` is given.
    """

    def __init__(self, notify_at: float = 0, interval_s: float = 2400) -> None:
        self.memory = Memory("client", VIN)
        self.notify_at = notify_at
        self.interval_s = interval_s
        self.minute = 0.0
        self.start()

    def start(self) -> None:
        self.watch = i3charge.ChargeWatch(self.memory, self.notify_at, self.interval_s)

    def restart(self, folder: Path) -> None:
        """The program ends, and starts again."""
        self.memory.path = folder / ".i3charge.json"
        assert self.memory.save()
        self.memory = i3charge.load_memory(self.memory.path, "client", VIN)
        self.start()

    @property
    def now_s(self) -> float:
        return START_S + self.minute * 60

    def take(
        self, minute: float, charge: float, status: Any = "charging", **more: Any
    ) -> list[str]:
        """The kinds of news, and their messages, in a reading."""
        self.minute = minute
        left = more.pop("left", None)
        if left is not None:
            more["full_at_s"] = self.now_s + left * 60
        if status == "unplugged":
            more.setdefault("plugged", False)
        if "source" not in more:
            more = {"car_said": charge, "car_said_s": self.now_s, **more}
        reading = Reading(charge, self.now_s, status, **more)
        self.watch.forget(self.now_s)
        self.reading = i3charge.held(reading, self.memory.last, self.memory.session)
        return [f"{n.kind}: {n.message}" for n in self.watch.take(self.reading)]

    def next_poll_in(self) -> float:
        """In minutes, after a poll that took ten seconds."""
        began_s = self.now_s - 10
        return (self.watch.plan_next_poll(self.reading, began_s) - began_s) / 60


@pytest.fixture
def night() -> Night:
    """The car is plugged in, at 41 %."""
    night = Night()
    assert night.take(0, 41, "plugged in", plugged=True) == []
    return night


# --- started --------------------------------------------------------------------------


def test_started_is_told_with_the_charge_at_which_it_began(night: Night) -> None:
    assert night.take(10, 44, left=90) == ["started: Charging from 41%, full about 21:40"]
    assert night.take(20, 45) == []


def test_first_reading_of_all_is_no_start() -> None:
    night = Night()
    assert night.take(0, 41) == []
    assert night.take(10, 43) == []


def test_pause_is_no_end_and_what_follows_no_start(night: Night) -> None:
    night.take(10, 42)
    assert night.take(20, 43, "waiting") == ["paused: Charging paused at 43%"]
    assert night.take(30, 43, "waiting") == []
    assert night.take(40, 44) == []
    assert night.take(50, 44, "waiting") == ["paused: Charging paused at 44%"]  # each time


# --- step -----------------------------------------------------------------------------


def test_step_is_told_at_every_5_percent_since_the_last_news(night: Night) -> None:
    night.take(10, 42)
    assert night.take(20, 46.9) == []
    assert night.take(30, 47, left=60) == ["step: 47% charged, full about 21:30"]
    assert night.take(40, 51) == []
    assert night.take(50, 60) == ["step: 60% charged"]


def test_step_counts_from_the_lowest_charge(night: Night) -> None:
    night.take(10, 42)
    night.take(20, 41)
    assert night.take(30, 46) == ["step: 46% charged"]


# --- reached --------------------------------------------------------------------------


def test_goal_is_told_when_it_is_passed() -> None:
    night = Night(notify_at=50)
    night.take(0, 48)
    assert night.take(10, 51) == ["reached: 50% reached"]
    assert night.take(20, 49) == []
    assert night.take(30, 51) == []
    assert night.take(40, 49, "unplugged") == ["stopped: Charging stopped at 49% (unplugged)"]
    assert night.take(50, 51, "unplugged") == []


def test_goal_that_is_raised_within_a_charge_is_told_again(tmp_path: Path) -> None:
    night = Night(notify_at=50)
    night.take(0, 48)
    night.take(10, 51)
    night.notify_at = 80
    night.restart(tmp_path)
    night.take(20, 55)
    assert night.take(30, 81) == ["reached: 80% reached"]


def test_goal_is_not_told_of_a_charge_that_is_above_it_from_the_start() -> None:
    night = Night(notify_at=50)
    assert night.take(0, 60) == []
    assert night.take(10, 61) == []


# --- soon -----------------------------------------------------------------------------


def test_soon_is_told_ten_minutes_before_full_once(night: Night) -> None:
    night.take(10, 95, left=11)
    assert night.take(11, 96, left=10) == ["soon: Full in about 10 min, at 20:21"]
    assert night.take(12, 97, left=9) == []


def test_soon_is_news_in_the_first_reading_too() -> None:
    assert Night().take(0, 97, left=4) == ["soon: Full in about 4 min, at 20:04"]


def test_soon_is_not_told_of_a_time_that_has_passed(night: Night) -> None:
    assert night.take(10, 97, left=-2) == ["started: Charging from 41%"]


# --- overdue --------------------------------------------------------------------------


def test_overdue_is_told_half_an_hour_after_it_should_have_been_full(night: Night) -> None:
    night.take(10, 90, left=20)
    assert night.take(59, 99) == ["step: 99% charged"]
    expected = "BMW expected it full at 20:30, and has not confirmed it. Have a look."
    assert night.take(60, 99) == [f"overdue: {expected}"]
    assert night.take(70, 99) == []


def test_overdue_is_told_20_hours_after_it_began(night: Night) -> None:
    night.take(10, 41)
    assert night.take(10 + 20 * 60 - 1, 41) == []
    message = "Charging for 20 h now, says BMW. Have a look."
    assert night.take(10 + 20 * 60, 41) == [f"overdue: {message}"]


def test_time_that_was_expected_before_a_pause_is_not_waited_for(night: Night) -> None:
    night.take(10, 80, left=40)
    night.take(40, 85, "waiting")
    assert night.take(200, 85) == []


# --- full -----------------------------------------------------------------------------

FREE = "The charging station can be freed."


def test_full_is_told_once_with_what_was_charged(night: Night, tmp_path: Path) -> None:
    night.take(10, 41)
    assert night.take(150, 100, "full", plugged=True) == [
        f"full: Fully charged: 41 → 100% in 2 h 20 min. {FREE}"
    ]
    night.restart(tmp_path)
    assert night.take(160, 100, "full", plugged=True) == []


def test_full_in_the_first_reading_is_no_news() -> None:
    night = Night()
    assert night.take(0, 100, "full", plugged=True) == []
    assert night.take(10, 100, "full", plugged=True) == []


def test_car_that_is_full_and_unplugged_frees_no_station(night: Night) -> None:
    night.take(10, 90)
    told = night.take(20, 100, "full", plugged=False)
    assert told == ["full: Fully charged: 41 → 100% in 10 min."]
    assert night.take(30, 100, "full", plugged=False) == []


def test_charge_that_came_between_two_readings_has_no_summary(night: Night) -> None:
    night.take(10, 42)
    night.take(20, 100, "full", plugged=True)
    night.take(30, 60, "unplugged")
    assert night.take(70, 100, "full", plugged=True) == [f"full: Fully charged. {FREE}"]


def test_summary_needs_a_beginning_that_was_seen() -> None:
    night = Night()
    night.take(0, 90)
    assert night.take(10, 100, "full", plugged=True) == [f"full: Fully charged. {FREE}"]


@pytest.mark.parametrize(("hours", "told"), [(24.98, 1), (25.1, 1), (35.9, 1), (36.1, 0)])
def test_charge_is_forgotten_after_a_day_and_a_half(night: Night, hours: float, told: int) -> None:
    night.take(10, 90)
    assert len(night.take(10 + hours * 60, 100, "full")) == told


# --- stopped --------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["plugged in", "unplugged", "error"])
def test_stopped_is_told_with_the_status(night: Night, status: str) -> None:
    night.take(10, 42)
    assert night.take(70, 62, status) == [
        f"stopped: Charging stopped at 62% ({status}), 41 → 62% in 1 h"
    ]
    assert night.take(80, 62, status) == []


@pytest.mark.parametrize(
    ("said_before_min", "why"), [(5, "the station lost power"), (61, "plugged in")]
)
def test_stopped_has_the_cars_reason_if_it_is_of_this_charge(
    night: Night, said_before_min: float, why: str
) -> None:
    night.take(10, 42)
    said_s = START_S + (70 - said_before_min) * 60
    (told,) = night.take(
        70, 62, "plugged in", end_reason="the station lost power", end_reason_s=said_s
    )
    assert f"({why})" in told


def test_reason_without_a_stamp_is_of_no_charge(night: Night) -> None:
    night.take(10, 42)
    (told,) = night.take(70, 62, "plugged in", end_reason="the station failed")
    assert "(plugged in)" in told


def test_end_of_which_the_car_says_nothing_new_is_of_now(night: Night) -> None:
    night.take(10, 42)
    said_s = START_S + 600
    (told,) = night.take(70, 42, "plugged in", car_said_s=said_s)
    assert told.endswith("41 → 42% in 1 h")


def test_moments_are_those_that_the_car_has_told(night: Night) -> None:
    night.take(10, 42, status_s=START_S + 120)
    (told,) = night.take(70, 62, "plugged in", status_s=START_S + 62 * 60, car_said_s=0)
    assert told.endswith("in 1 h")


# --- still ----------------------------------------------------------------------------


def test_still_is_told_an_hour_after_full_once(night: Night, tmp_path: Path) -> None:
    night.take(10, 90)
    night.take(20, 100, "full", plugged=True)
    assert night.take(79, 100, "full", plugged=True) == []
    assert night.take(80, 100, "full", plugged=True) == [
        "still: Full since 20:20, and still plugged in"
    ]
    night.restart(tmp_path)
    assert night.take(140, 100, "full", plugged=True) == []


def test_still_is_told_after_full_where_the_end_shows_late(night: Night) -> None:
    night.take(10, 90)
    late: Any = {"plugged": True, "status_s": night.now_s + 600}
    for minute, kind in ((90, "full"), (130, "still")):
        (news,) = night.take(minute, 100, "full", **late)
        assert news.startswith(f"{kind}:")


@pytest.mark.parametrize("plugged", [None, False])
def test_still_is_told_only_where_the_plug_is_known_to_be_in(night: Night, plugged: Any) -> None:
    night.take(10, 90)
    night.take(20, 100, "full", plugged=True)
    assert night.take(90, 100, "full", plugged=plugged) == []


def test_still_is_not_told_of_a_car_that_was_away_in_between(night: Night) -> None:
    night.take(10, 90)
    night.take(20, 100, "full", plugged=True)
    night.take(60, 100, "full", plugged=False)
    assert night.take(200, 100, "full", plugged=True) == []


# --- What is not known ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("minutes", "is_told"), [(79, False), (80, True), (24 * 60, True), (24 * 60 + 1, False)]
)
def test_silence_in_a_charge_is_news_for_a_day(night: Night, minutes: float, is_told: bool) -> None:
    night.take(10, 62, source="BMW")
    news = night.watch.silence_news(START_S + (10 + minutes) * 60)
    message = "No word from BMW since 20:10 (~62%, charging)"
    assert news == (News("error", message) if is_told else None)


def test_silence_outside_of_a_charge_is_no_news(night: Night) -> None:
    night.take(10, 62, "waiting")
    assert night.watch.silence_news(START_S + 5 * 3600) is None


# --- The pace -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("charge", "left", "notify_at", "minutes"),
    [
        (60, None, 0, 40),  # nothing is known
        (60, 400, 0, 40),  # 5 % take longer than the interval
        (60, 160, 0, 20.6),  # 5 %, and a little for the rounding
        (60, 160, 64, 16.6),  # the owner's own goal comes first
        (60, 40, 0, 10.2),  # ten minutes between two polls are the least
        (97, 34, 0, 24.2),  # ten minutes before full
        (97, 9, 0, 11.2),  # two minutes after it
        (97, 3, 0, 10.2),
        (97, -5, 0, 10.2),  # it should be full by now
        (99, 55, 0, 45.2),  # a regular poll waits for the one before full
    ],
)
def test_poll_is_made_at_the_moment_when_news_is_due(
    charge: float, left: float | None, notify_at: float, minutes: float
) -> None:
    night = Night(notify_at=notify_at)
    night.take(0, charge, left=left)
    assert night.next_poll_in() == pytest.approx(minutes, abs=0.1)


def test_step_makes_room_for_the_poll_before_full() -> None:
    night = Night()
    night.take(0, 85, left=25)  # 5 % in 8 minutes, full soon in 15
    assert night.next_poll_in() == pytest.approx(15.2, abs=0.1)


@pytest.mark.parametrize("interval_s", [60, 599])
def test_shorter_interval_is_kept_to(interval_s: float) -> None:
    night = Night(interval_s=interval_s)
    night.take(0, 97, left=9)
    assert night.next_poll_in() == interval_s / 60


def paces(night: Night, *readings: tuple[float, float, str]) -> list[float]:
    """The minutes to the next poll after each: minute, charge, source; full at 200."""
    found: list[float] = []
    for minute, charge, source in readings:
        night.take(minute, charge, left=200 - minute, source=source)
        found.append(round(night.next_poll_in()))
    return found


def test_state_that_sticks_goes_back_to_the_interval() -> None:
    sticking = [(minute, 60.0, "the car") for minute in (0, 25, 50, 90)]
    assert paces(Night(), *sticking) == [26, 22, 40, 40]


def test_poll_that_brought_something_was_not_in_vain() -> None:
    rising = [(minute, 60 + minute / 5, "BMW") for minute in (0, 26, 52, 78)]
    assert all(minutes < 40 for minutes in paces(Night(), *rising))


def test_interpolated_charge_is_nothing_new_but_a_step_is() -> None:
    creeping = [(minute, 60 + minute / 100, "interpolated") for minute in (0, 25, 50, 75)]
    assert paces(Night(), *creeping)[2:] == [40, 40]
    rising = [(minute, 60 + minute / 5, "interpolated") for minute in (0, 26, 52, 78)]
    assert all(minutes < 40 for minutes in paces(Night(), *rising))


def test_polls_around_full_are_made_after_others_in_vain() -> None:
    sticking = [(minute, 60.0, "the car") for minute in (0, 25, 50, 170, 190)]
    assert paces(Night(), *sticking)[2:] == [40, 20, 12]


@pytest.mark.parametrize(("spent", "minutes"), [(10, 20.6), (11, 40)])
def test_step_is_not_sought_where_it_would_cost_a_regular_poll_later(
    spent: int, minutes: float
) -> None:
    """48 are allowed in 24 hours. 36 are regular, and two are kept for the end of the charge."""
    night = Night()
    night.memory.requests_s = [START_S - 1] * spent
    night.take(0, 60, left=160)
    assert night.next_poll_in() == pytest.approx(minutes, abs=0.1)


def test_of_two_cars_each_has_half_of_the_requests_to_spare() -> None:
    night = Night(interval_s=4800)
    night.memory.requests_s = [START_S - 1] * 5  # 24 are allowed, 18 are regular
    night.take(0, 60, left=320)
    assert night.next_poll_in() == pytest.approx(80, abs=0.1)


def test_creeping_estimate_does_not_drain_the_quota() -> None:
    night = Night()
    found = []
    for minute in range(0, 200, 10):
        night.take(minute, 98, left=5)
        found.append(round(night.next_poll_in()))
    assert found.count(10) <= 5


# --- Any night ------------------------------------------------------------------------

STATUSES = ["charging", "full", "waiting", "plugged in", "unplugged", "unknown"]
READINGS = st.lists(
    st.tuples(
        st.floats(1, 300),
        st.integers(0, 100),
        st.sampled_from(STATUSES),
        st.none() | st.floats(-60, 300),
        st.sampled_from([True, False, None]),
    )
)


@hypothesis.given(READINGS)
def test_in_any_night_news_is_told_once_a_charge_and_polls_keep_their_distance(
    readings: list[tuple[float, float, str, float | None, bool | None]],
) -> None:
    night = Night(notify_at=80)
    told: list[str] = []
    highest = 0.0
    minute = 0.0
    for gap, charge, status, left, plugged in readings:
        minute += gap
        is_plugged = False if status == "unplugged" else plugged
        if charge <= highest - 3 or is_plugged is False:
            told, highest = [], charge  # it may be another charge
        highest = max(highest, charge)
        left = left if status == "charging" else None
        news = night.take(minute, charge, status, left=left, plugged=is_plugged)
        once = [n for n in news if n.split(":")[0] in i3charge.TOLD_ONCE_A_SESSION]
        assert not set(once) & set(told)
        told += once
        assert 10 <= night.next_poll_in() + 0.01 and night.next_poll_in() <= 50.01
