"""The messages, what is told by time alone, and when the next poll is due."""

from __future__ import annotations

from datetime import datetime

import pytest
from story import Bmw, Words, end, kinds, rest, seen

import i3charge
from i3charge import News

FULL_AT_TEN: Words = end("22:00", 100)


@pytest.fixture
def night() -> Bmw:
    """The car is plugged in, at 41 %, and was polled at 20:00."""
    return seen("20:00", **rest("19:50", 41))


def charging(
    percent: int = 60, left: int = 160, notify_at: float = 0, interval_s: float = 2400
) -> Bmw:
    """It charges since 20:00, when it said how many minutes are left; just polled."""
    bmw = Bmw(notify_at, interval_s, **rest("19:00", 40))
    bmw.polled("19:10")
    begin: Words = {"status": "CHARGINGACTIVE@20:00", "header": f"{percent}@20:00"}
    bmw.polled("20:00", **begin, minutes=f"{left}@20:00")
    return bmw


# --- Messages ---------------------------------------------------------------------------


def test_a_whole_charge_is_told(night: Bmw) -> None:
    begin = {"status": "CHARGINGACTIVE@20:02", "header": "41@20:02", "minutes": "118@20:02"}
    full = "full: Fully charged: 41 → 100% in 1 h 58 min. You can move the car now."
    story: list[tuple[str, Words, list[str]]] = [
        ("20:05", {"predicted": "41"}, []),
        ("20:10", begin, ["started: Charging from 41%, full about 22:00"]),
        ("20:30", {"predicted": "45"}, []),
        ("20:40", {"predicted": "46"}, ["step: ~46% charged, full about 22:00"]),
        ("21:20", {"predicted": "60"}, ["step: ~60% charged, full about 22:00"]),
        ("21:50", {"predicted": "64"}, ["soon: Full in about 10 min, at 22:00"]),
        ("21:55", {"predicted": "68"}, []),
        ("22:02", FULL_AT_TEN, [full]),
        ("22:59", {}, []),
        ("23:01", {}, ["still: Full since 22:00, and still plugged in"]),
        ("23:41", {}, []),
    ]
    for clock, words, told in story:
        assert night.polled(clock, **words) == told


def test_unplugged_car_frees_no_station(night: Bmw) -> None:
    night.polled("20:10", status="CHARGINGACTIVE@20:02", header="41@20:02")
    told = night.polled("22:10", **FULL_AT_TEN, plug="DISCONNECTED@22:05")
    assert told == ["full: Fully charged: 41 → 100% in 1 h 58 min."]
    assert night.polled("23:10") == []  # nor is it still there


@pytest.mark.parametrize("plug", ["", "DISCONNECTED@22:30"])
def test_still_is_told_only_if_the_plug_is_known_to_be_in(plug: str) -> None:
    bmw = seen("20:00", status="NOCHARGING@19:50", header="41@19:50")
    bmw.polled("20:10", status="CHARGINGACTIVE@20:02", header="41@20:02")
    assert kinds(bmw.polled("22:10", **FULL_AT_TEN)) == ["full"]
    assert bmw.polled("23:10", plug=plug) == []


def test_step_counts_from_the_lowest_percentage_since_the_last_news(night: Bmw) -> None:
    night.polled("20:10", status="CHARGINGACTIVE@20:02", predicted="43")
    night.polled("20:30", header="42@20:29")
    assert night.polled("20:40", predicted="46") == []
    assert night.polled("20:50", predicted="47") == ["step: ~47% charged"]


def test_soon_is_told_at_a_first_report() -> None:
    bmw = Bmw(status="CHARGINGACTIVE@10:00", minutes="120@10:00")
    assert bmw.polled("11:55", header="96@11:50") == ["soon: Full in about 5 min, at 12:00"]


def test_soon_is_not_told_of_a_time_that_has_passed() -> None:
    assert charging(97, left=2).polled("20:20") == []


def test_overdue_is_told_half_an_hour_after_it_should_have_been_full() -> None:
    bmw = charging(90, left=30)
    assert "overdue" not in kinds(bmw.polled("20:59"))
    message = "Expected full at 20:30, but BMW has not confirmed it. Please check the car."
    assert bmw.polled("21:00") == [f"overdue: {message}"]
    assert bmw.polled("21:40") == []


def test_overdue_is_told_20_hours_after_it_began() -> None:
    bmw = seen("19:10", **rest("19:00", 40))
    bmw.polled("20:00", status="CHARGINGACTIVE@20:00")
    assert bmw.polled("2 15:59") == []
    assert bmw.polled("2 16:00") == ["overdue: BMW reports 20 h of charging. Please check the car."]


def test_estimate_that_is_older_than_a_day_is_not_waited_for() -> None:
    told = charging(40, left=60).polled("4 20:00")
    assert told == ["overdue: BMW reports 3 days of charging. Please check the car."]


def test_pauses_do_not_count_for_the_20_hours() -> None:
    bmw = charging(40, left=60)
    bmw.polled("20:20", status="CHARGINGPAUSED@20:20")
    assert kinds(bmw.polled("2 18:00", status="CHARGINGACTIVE@2 17:50")) == []


def test_estimate_of_before_a_pause_is_not_waited_for() -> None:
    bmw = charging(80, left=40)
    bmw.polled("20:20", status="CHARGINGPAUSED@20:20")
    assert "overdue" not in kinds(bmw.polled("23:20", status="CHARGINGACTIVE@23:10"))


# --- Clock times ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        ("2026-11-27 18:00", "18:00"),
        ("2026-11-27 21:00", "21:00"),
        ("2026-11-28 07:59", "07:59"),  # within twelve hours
        ("2026-11-28 08:01", "Sat 08:01"),
        ("2026-11-26 23:59", "Thu 23:59"),
        ("2026-11-21 20:01", "Sat 20:01"),
        ("2026-11-21 19:59", "21 Nov 19:59"),
    ],
)
def test_clock_time_that_could_be_misread_has_its_day(at: str, shown: str) -> None:
    now_s = datetime(2026, 11, 27, 20, 0).timestamp()
    at_s = datetime.fromisoformat(at).timestamp()
    assert i3charge.clock_at(at_s, now_s) == shown


def test_message_names_the_day_of_a_time_of_another_day(night: Bmw) -> None:
    night.polled("20:10", status="CHARGINGACTIVE@20:02", header="41@20:02", minutes="1300@20:02")
    assert night.reading.full_clock == "Wed 17:42"
    night.polled("22:10", **FULL_AT_TEN)
    assert night.polled("2 19:00") == ["still: Full since Tue 22:00, and still plugged in"]


def test_durations_are_said_as_one_says_them() -> None:
    said = {0.4: "0 s", 119: "119 s", 120: "2 min", 3599: "1 h", 3600: "1 h", 8400: "2 h 20 min"}
    said |= {36_000: "10 h", 86_400: "24 h", 345_600: "4 days"}
    assert {seconds: i3charge.duration(seconds) for seconds in said} == said


# --- Silence in a charge ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval_s", "minutes", "is_told"),
    [
        (2400, 79, False),
        (2400, 80, True),
        (2400, 24 * 60, True),
        (2400, 3 * 24 * 60, False),
        (60, 59, False),
        (60, 60, True),
        (99_999, 3333, False),  # an interval of 27 hours
        (99_999, 3334, True),
    ],
)
def test_silence_in_a_charge_is_news_after_two_intervals_and_an_hour(
    interval_s: float, minutes: float, is_told: bool
) -> None:
    bmw = charging(60, 900, interval_s=interval_s)
    at_s = bmw.reading.taken_s + minutes * 60
    since = "Tue 20:00" if minutes > 239 else "20:00"
    news = News("error", f"No word from BMW since {since} (60%, charging)")
    assert i3charge.silence_news(bmw.reading, interval_s, at_s) == (news if is_told else None)


def test_silence_outside_of_a_charge_is_no_news(night: Bmw) -> None:
    assert i3charge.silence_news(night.reading, 2400, night.reading.taken_s + 5 * 3600) is None


# --- The next poll ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percent", "left", "settings", "minutes"),
    [
        (60, 400, {}, 40),  # 5 % take longer than the interval
        (60, 160, {}, 20.6),  # 5 %, and a little for the rounding
        (60, 160, {"notify_at": 64}, 16.6),  # the owner's own percentage comes first
        (60, 40, {}, 10.2),  # ten minutes between two polls at the least
        (97, 34, {}, 24.2),  # ten minutes before full
        (97, 9, {}, 11.2),  # two minutes after it
        (97, 9, {"interval_s": 60}, 1),  # a short interval is kept
        (97, 9, {"interval_s": 599}, 599 / 60),
        (97, 3, {}, 10.2),
        (99, 55, {}, 45.2),  # a regular poll waits for the one before full
        (85, 25, {}, 15.2),  # 5 % in 8 minutes, and full soon in 15
    ],
)
def test_poll_is_made_when_news_is_due(
    percent: int, left: int, settings: dict[str, float], minutes: float
) -> None:
    assert charging(percent, left, **settings).next_poll_min == pytest.approx(minutes, abs=0.1)


def test_car_that_should_be_full_by_now_is_asked_again_soon() -> None:
    bmw = charging(97, left=5)
    bmw.polled("20:10")
    assert bmw.next_poll_min == pytest.approx(10.2, abs=0.1)


def test_without_an_estimate_the_interval_counts(night: Bmw) -> None:
    night.polled("20:40", status="CHARGINGACTIVE@20:30")
    assert night.next_poll_min == 40


def test_early_polls_without_anything_new_are_limited() -> None:
    """The car says again and again that five minutes are left."""
    bmw = charging(97, left=60)
    pauses = []
    for minute in range(1, 59, 2):
        bmw.polled(f"20:{minute}", minutes=f"5@20:{minute}")
        pauses.append(round(bmw.next_poll_min))
    assert sum(pause < 40 for pause in pauses) <= 1 + i3charge.MAX_EARLY_POLLS


@pytest.mark.parametrize(("sent", "minutes"), [(10, 20.6), (11, 40)])
def test_step_is_not_sought_if_it_would_cost_a_regular_poll_later(
    sent: int, minutes: float
) -> None:
    """48 are allowed in 24 hours. 36 are regular, and two are kept for the end of the charge."""
    bmw = charging()
    bmw.memory.requests_s = [bmw.reading.taken_s - 1] * sent
    assert bmw.next_poll_min == pytest.approx(minutes, abs=0.1)


def test_each_of_two_cars_has_half_of_the_requests_to_spare() -> None:
    bmw = charging(60, 320, interval_s=4800)
    bmw.memory.requests_s = [bmw.reading.taken_s - 1] * 5  # 24 are allowed, 18 are regular
    assert bmw.next_poll_min == pytest.approx(80, abs=0.1)
