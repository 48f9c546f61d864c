"""The car's stays: what is shown and told of what BMW shows, however late or out of order.

Each test is a story of one or more polls; see story.py.
"""

from __future__ import annotations

import pytest
from story import Bmw, Words, begin, end, kinds, rest, seen

import i3charge


def parked(percent: int = 60, notify_at: float = 0, /, **words: str) -> Bmw:
    """A car away from any plug, which was polled at 00:10."""
    return seen("00:10", notify_at, **{**rest("00:00", percent, "DISCONNECTED"), **words})


def charging(percent: int = 41, notify_at: float = 0, /, **words: str) -> Bmw:
    """A car that charges since 10:00, which was polled at 10:10."""
    bmw = parked(percent, notify_at)
    assert kinds(bmw.polled("10:10", **{**begin("10:00"), "header": f"{percent}@10:00", **words}))
    return bmw


FULL_AT_TWO: Words = {"plug": "CONNECTED@00:30", **end("02:00", 100)}


@pytest.fixture
def full() -> Bmw:
    """It was full at 02:00, which was told, and is still plugged in."""
    bmw = parked()
    bmw.polled("00:40", **begin("00:30"))
    assert kinds(bmw.polled("02:05", **FULL_AT_TWO)) == ["full"]
    return bmw


# --- Full -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["CHARGINGACTIVE@10:00", "CHARGINGENDED@14:10"])
def test_goal_makes_the_car_full_before_its_percentage_arrives(status: str) -> None:
    bmw = charging(minutes="250@10:00")
    assert kinds(bmw.polled("14:03")) == ["soon"]
    (full,) = bmw.polled("14:11", status=status, reason="CHARGING_GOAL_REACHED@14:10")
    assert full.startswith("full: Fully charged: 41 → 100% in 4 h 10 min.")
    assert bmw.at("14:51") == "~99% full"
    assert bmw.at("15:24", header="100@14:10") == "still, 100% full"


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("CHARGING_GOAL_REACHED@12:00", "full: Fully charged: 41 → 99% in 2 h."),
        ("POWERGRID_FAILED@12:00", "stopped: Charging stopped at 99% (the station lost power)"),
    ],
)
def test_at_99_percent_the_reason_decides(reason: str, told: str) -> None:
    bmw = charging()
    assert bmw.polled("12:05", **end("12:00", 99)) == []
    (news,) = bmw.polled("12:45", reason=reason)
    assert news.startswith(told)


def test_at_99_percent_without_a_reason_the_charge_has_stopped() -> None:
    bmw = charging()
    assert bmw.polled("12:05", **end("12:00", 99)) == bmw.polled("13:29") == []
    assert kinds(bmw.polled("13:31")) == ["stopped"]


@pytest.mark.parametrize(
    ("header", "news"), [("97@11:52", []), ("82@11:52", ["stopped"]), ("97@12:00", ["stopped"])]
)
def test_stop_waits_if_the_last_percentage_leaves_open_that_the_car_is_full(
    header: str, news: list[str]
) -> None:
    bmw = charging()
    assert kinds(bmw.polled("12:05", status="CHARGINGENDED@12:00", header=header)) == news
    if not news:
        assert kinds(bmw.polled("12:45", header="100@12:00")) == ["full"]


@pytest.mark.parametrize(
    ("words", "news"),
    [
        ({**end("12:00", 80), "reason": "CHARGING_GOAL_REACHED@12:00"}, "stopped"),
        ({"header": "100@12:00", "hv_status": "FINISHED_FULLY_CHARGED"}, "full"),
    ],
)
def test_goal_is_full_at_100_percent_and_not_below_99(words: Words, news: str) -> None:
    bmw = charging(hv_status="CHARGING")
    assert kinds(bmw.polled("12:05", **words)) == [news]


def test_100_percent_holds_after_half_an_hour_if_the_status_sticks() -> None:
    bmw = charging(90)
    assert kinds(bmw.polled("13:50", header="100@13:49")) == ["step"]
    assert bmw.at("14:18") == "100% charging"
    assert bmw.at("14:20") == "full, 100% full"
    assert kinds(bmw.polled("17:00", header="98@16:59", minutes="16@16:59")) == ["still"]
    assert bmw.polled("17:20", plug="DISCONNECTED@17:15") == []
    assert bmw.polled("17:40", status="NOCHARGING@17:15") == []


@pytest.mark.parametrize("predicted", ["", "100"])
def test_bmws_own_words_alone_make_nothing_full(predicted: str) -> None:
    bmw = charging(90, hv_status="FINISHED_FULLY_CHARGED", predicted="90")
    news = bmw.polled("12:05", predicted=predicted) + bmw.polled("12:45")
    assert "full" not in kinds(news)


def test_status_that_goes_on_for_hours_at_100_percent_hides_nothing() -> None:
    bmw = charging()
    news = []
    for hour in range(12, 18):
        news += bmw.polled(f"{hour}:05", status=f"CHARGINGACTIVE@{hour}:04", header="100@11:50")
    assert kinds(news) == ["step", "full", "still"]
    assert bmw.line == "100% full"


def test_100_percent_of_before_the_plug_went_in_is_not_full() -> None:
    bmw = parked(100)
    assert bmw.at("12:05", plug="CONNECTED@12:00", header="100@12:02") == "100% plugged in"


def test_100_percent_that_a_new_charge_has_not_reached_is_not_full() -> None:
    bmw = parked(100)
    again: Words = {"plug": "CONNECTED@12:00", "header": "100@12:02"}
    assert kinds(bmw.polled("12:05", **again, status="CHARGINGACTIVE@12:03")) == ["started"]
    assert bmw.polled("12:45") == []


def test_full_is_told_at_the_end_of_a_charge_that_nobody_saw() -> None:
    (full,) = parked().polled("02:40", plug="CONNECTED@01:00", **end("02:30", 100))
    assert full == "full: Fully charged. You can move the car now."


def test_car_that_has_left_before_its_end_was_shown_was_full() -> None:
    bmw = charging(80)
    bmw.polled("11:40", header="100@11:30")
    away: Words = {"plug": "DISCONNECTED@11:50", "status": "NOCHARGING@11:50"}
    told = bmw.polled("12:20", **away, header="86@12:15")
    assert told == ["full: Fully charged: 80 → 100% in 1 h 30 min."]


GOAL = "CHARGING_GOAL_REACHED"


@pytest.mark.parametrize(
    ("plug", "status"), [("DISCONNECTED@2 07:00", "unplugged"), ("", "not charging")]
)
def test_car_that_was_driven_since_its_goal_is_not_full_at_the_first_poll(
    plug: str, status: str
) -> None:
    bmw = Bmw(status="NOCHARGING@2 08:00", header="60@2 08:00", reason=f"{GOAL}@02:00", plug=plug)
    assert bmw.at("2 08:10") == f"60% {status}"
    charge = {**begin("2 18:00"), "header": "58@2 18:00"}
    assert bmw.at("2 18:10", **charge) == "started, 58% charging"
    assert bmw.at("3 00:10", **end("3 00:00", 100)) == "full, 100% full"


def test_computer_that_slept_until_after_the_drive_tells_full_and_shows_the_drive() -> None:
    bmw = seen("17:10", **rest("17:00", 60, "DISCONNECTED"))
    bmw.polled("18:10", **begin("18:00"), header="60@18:00", minutes="480@18:00")
    away = {**rest("2 08:30", 85), "plug": "DISCONNECTED@2 07:30", "reason": f"{GOAL}@2 02:00"}
    assert bmw.at("2 09:00", **away) == "full, 85% unplugged"


@pytest.mark.parametrize(
    "again",
    [
        {"reason": f"{GOAL}@18:00"},
        {"reason": f"{GOAL}@18:00", "header": "60@18:00"},
        {"status": "CHARGINGENDED@18:00", "header": "60@18:00"},
    ],
)
def test_old_end_that_is_said_anew_with_the_plug_is_no_charge(again: Words) -> None:
    old = {"status": "CHARGINGENDED@02:00", "reason": f"{GOAL}@02:00"}
    bmw = seen("17:10", plug="DISCONNECTED@07:00", header="60@17:00", **old)
    assert bmw.polled("18:05", plug="CONNECTED@18:00", **again) + bmw.polled("19:45") == []
    assert bmw.line == "60% plugged in"


def test_old_goal_that_is_said_anew_as_the_charge_begins_does_not_fill_the_car() -> None:
    bmw = parked(reason=f"{GOAL}@00:00")
    again = {**begin("18:00"), "header": "60@18:00", "reason": f"{GOAL}@18:00"}
    assert bmw.at("18:05", **again) == "started, 60% charging"


@pytest.mark.parametrize(
    "again",
    [
        {"status": "CHARGINGENDED@08:00", "header": "100@08:00"},
        {"status": "CHARGINGENDED@08:00"},
        {"reason": f"{GOAL}@08:00"},
        {"minutes": "0@08:00"},
    ],
)
def test_full_car_that_says_everything_anew_with_the_plug_is_told_once(
    full: Bmw, again: Words
) -> None:
    assert kinds(full.polled("03:10")) == ["still"]
    assert full.polled("08:05", plug="CONNECTED@08:00", **again) + full.polled("09:45") == []
    assert full.line == "100% full"


def test_full_is_told_after_a_gap_of_two_days() -> None:
    bmw = charging(minutes="300@10:00")
    assert kinds(bmw.polled("2 23:00", **end("15:00", 100))) == ["full"]
    assert bmw.polled("2 23:40") == ["still: Full since Tue 15:00, and still plugged in"]


def test_what_is_older_than_a_day_and_a_half_is_no_news() -> None:
    bmw = charging()
    assert bmw.at("3 04:00", **end("15:00", 100)) == "still, 100% full"
    assert bmw.polled("3 04:40") == []


def test_car_that_is_parked_full_for_five_days_is_full_once(full: Bmw) -> None:
    news = []
    for day in range(1, 6):
        for hour in range(3, 24):
            news += full.polled(f"{day} {hour}:10", header=f"100@{day} 3:00")
    assert kinds(news) == ["still"]
    assert full.line == "100% full"


# --- Full, and another charge -----------------------------------------------------------


def test_errand_between_two_polls_makes_nothing_full_by_its_old_100_percent(full: Bmw) -> None:
    full.polled("03:10")  # still
    errand: Words = {"plug": "CONNECTED@22:44", **end("22:51", 98)}
    assert "full" not in kinds(full.polled("23:10", **errand))
    assert full.at("2 00:30") == "98% plugged in"


def test_plug_and_100_percent_that_are_said_anew_for_days_tell_nothing_and_fill_no_journal(
    full: Bmw,
) -> None:
    news, sizes = [], []
    for day in range(1, 12):
        for hour in range(3, 24):
            clock = f"{day} {hour}:00"
            again: Words = {"plug": f"CONNECTED@{clock}", "header": f"100@{clock}"}
            news += full.polled(f"{day} {hour}:20", **again)
            assert full.line == "100% full"
        sizes.append(len(full.memory.journal))
    assert kinds(news) == ["still"]
    assert sizes[-1] == sizes[-2] == sizes[5]


def test_plug_that_is_said_anew_is_another_stay_if_a_charge_follows(full: Bmw) -> None:
    full.polled("03:10")  # still
    assert kinds(full.polled("08:20", **begin("08:10"), header="98@08:10")) == ["started"]
    assert kinds(full.polled("09:00", **end("08:40", 100))) == ["full"]


def test_plug_that_is_said_anew_at_once_has_not_moved() -> None:
    bmw = parked(98)
    bmw.polled("01:05", **begin("01:00"), header="98@01:00")
    assert kinds(bmw.polled("01:15", **end("01:10", 100))) == ["full"]
    bmw.polled("01:25", plug="CONNECTED@01:20")
    bmw.polled("02:25")  # still
    top_up: Words = {"status": "CHARGINGACTIVE@07:00", "header": "98@07:00", "minutes": "5@07:00"}
    assert bmw.polled("07:05", **top_up) == []


@pytest.mark.parametrize("minutes", ["35@11:31", ""])
def test_car_without_a_plugs_word_charges_anew_if_it_is_at_91_percent(minutes: str) -> None:
    bmw = seen("00:10", status="NOCHARGING@00:00", header="100@00:00")
    again: Words = {"status": "CHARGINGACTIVE@11:31", "header": "91@11:31", "minutes": minutes}
    (started,) = bmw.polled("11:40", **again)
    assert started.startswith("started: Charging from 91%")
    if minutes:
        assert kinds(bmw.polled("11:58")) == ["soon"]
    assert kinds(bmw.polled("12:08", **end("12:06", 100))) == ["full"]


@pytest.mark.parametrize("status", ["CHARGINGENDED@02:00", "CHARGINGACTIVE@00:30"])
def test_full_car_that_expects_to_charge_for_long_has_been_away(status: str) -> None:
    bmw = seen("00:10", status="NOCHARGING@00:00", header="60@00:00")
    bmw.polled("00:40", status="CHARGINGACTIVE@00:30")
    assert kinds(bmw.polled("02:40", header="100@02:00", status=status)) == ["full"]
    again: Words = {"status": "CHARGINGACTIVE@18:00", "minutes": "150@18:00"}
    assert kinds(bmw.polled("18:10", **again)) == ["started"]
    assert kinds(bmw.polled("20:40", **end("20:30", 100))) == ["full"]


def test_minutes_that_come_later_tell_that_it_is_no_top_up() -> None:
    bmw = seen("02:10", **end("02:00", 100))
    assert bmw.polled("18:10", status="CHARGINGACTIVE@18:00") == []
    assert kinds(bmw.polled("18:50", minutes="150@18:05")) == ["started"]


def test_top_up_of_a_full_car_tells_nothing(full: Bmw) -> None:
    full.polled("03:10")  # still
    assert full.polled("06:22", header="99@06:20", status="CHARGINGACTIVE@06:20") == []
    assert full.polled("06:30", **end("06:28", 100)) == []
    assert full.polled("06:40", header="99@06:35", status="CHARGINGACTIVE@06:35") == []
    assert full.polled("07:10", plug="DISCONNECTED@07:00", status="NOCHARGING@07:00") == []


def test_top_up_whose_end_no_status_tells_hides_nothing(full: Bmw) -> None:
    full.polled("02:55", status="CHARGINGACTIVE@02:40", header="98@02:40")
    full.polled("03:05", header="100@03:00")
    assert full.at("03:45") == "still, 100% full"
    assert full.at("20:00") == "100% full"


def test_percentage_of_a_full_car_may_flicker(full: Bmw) -> None:
    full.polled("03:10")  # still
    for hour, header in enumerate(["99", "100", "98", "100"], start=4):
        assert full.polled(f"{hour}:10", header=f"{header}@{hour}:00") == []
    assert full.polled("09:10", plug="DISCONNECTED@09:00") == []
    assert full.polled("10:10", header="99@10:00") == []
    assert full.polled("11:10", header="100@11:00") == []


def test_car_that_was_full_at_the_first_report_tells_nothing_of_it() -> None:
    bmw = seen("03:10", **FULL_AT_TWO)
    assert bmw.polled("04:10", header="99@04:00") == []
    assert bmw.polled("05:10", header="100@05:00") == []


# --- How a charge begins ----------------------------------------------------------------


def test_first_report_in_the_middle_of_a_charge_is_no_start() -> None:
    bmw = seen("11:00", **begin("10:00"), header="41@10:00", minutes="120@10:00")
    assert kinds(bmw.polled("11:51")) == ["soon"]
    assert kinds(bmw.polled("12:02", **end("12:00", 100))) == ["full"]


@pytest.mark.parametrize(
    ("header", "plug", "message"),
    [
        ("60@17:55", "CONNECTED@18:00", "Charging from 60%"),
        ("60@12:00", "CONNECTED@18:00", "Charging has begun"),  # it may have been driven since
        ("60@12:00", "", "Charging from 60%"),
    ],
)
def test_start_names_the_percentage_only_if_it_is_of_this_stay(
    header: str, plug: str, message: str
) -> None:
    bmw = seen("17:58", status="NOCHARGING@11:00", header=header)
    active: Words = {"plug": plug, "status": "CHARGINGACTIVE@18:00", "minutes": "160@18:00"}
    assert bmw.polled("18:10", **active) == [f"started: {message}, full about 20:40"]


def test_percentage_that_arrives_late_is_that_of_the_beginning() -> None:
    bmw = parked(90)
    assert bmw.polled("18:02", **begin("18:00")) == ["started: Charging has begun"]
    assert bmw.at("18:40", header="40@18:04") == "40% charging"
    (full,) = bmw.polled("21:10", **end("21:00", 100))
    assert full.startswith("full: Fully charged: 40 → 100% in 3 h.")


def test_status_of_before_the_departure_begins_nothing_at_the_next_plug() -> None:
    bmw = seen("05:30", plug="DISCONNECTED@05:20", status="NOCHARGING@05:00", header="60@05:00")
    news = bmw.polled("09:40", plug="CONNECTED@09:30", status="CHARGINGACTIVE@05:19")
    assert "started" not in kinds(news)
    assert bmw.line == "60% plugged in"
    assert kinds(bmw.polled("11:10", status="CHARGINGACTIVE@11:00")) == ["started"]


def test_charge_begins_although_the_plug_is_still_said_to_be_out() -> None:
    bmw = parked()
    assert kinds(bmw.polled("09:40", status="CHARGINGACTIVE@09:30")) == ["started"]
    assert bmw.at("10:20", plug="CONNECTED@09:29") == "60% charging"


def test_plug_with_a_new_time_in_a_charge_changes_nothing() -> None:
    bmw = charging(predicted="41", minutes="250@10:00")
    for clock in ("10:11", "11:00"):
        assert bmw.polled(clock, plug=f"CONNECTED@{clock}") == []
    assert bmw.polled("11:10", minutes="180@11:10") == []
    assert bmw.reading.status == "charging"
    assert kinds(bmw.polled("14:03")) == ["soon"]


def test_charge_from_less_goes_on_as_another_one() -> None:
    """The station stopped at once, unnoticed, and goes on hours later."""
    bmw = charging(53, minutes="95@10:00")
    bmw.polled("12:10")  # overdue
    (started,) = bmw.polled("18:05", header="50@18:00", minutes="95@18:00")
    assert started == "started: Charging from 50%, full about 19:35"
    (full,) = bmw.polled("19:36", **end("19:35", 100))
    assert full.startswith("full: Fully charged: 50 → 100% in 1 h 35 min.")


def test_charge_takes_its_beginning_along_if_the_percentage_falls_just_after_it() -> None:
    bmw = seen("00:10", status="NOCHARGING@00:00", header="90@00:00")
    active: Words = {"status": "CHARGINGACTIVE@10:00", "minutes": "240@10:00", "header": "40@10:04"}
    assert bmw.polled("10:10", **active) == ["started: Charging from 40%, full about 14:00"]


def test_drive_with_a_status_that_sticks_is_no_charge() -> None:
    bmw = charging()
    assert bmw.at("12:10", status="NOCHARGING@12:00", header="30@12:00") == "30% plugged in"
    assert bmw.polled("14:10") == []


@pytest.mark.parametrize("plug", ["CONNECTED@12:00", ""])
def test_car_that_was_warmed_is_as_it_was(plug: str) -> None:
    bmw = seen("12:10", plug=plug, status="NOCHARGING@12:00", header="90@12:00")
    before = bmw.reading.status
    assert bmw.polled("13:10", header="86@13:00") == []
    assert bmw.reading.status == before


# --- How a charge ends ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("silent", "clock", "words", "percent"),
    [("18:06", "18:40", {"header": "62@18:25"}, "62%"), ("19:29", "19:30", {}, "~60%")],
)
def test_stop_waits_for_the_percentage_of_the_end_for_an_hour_and_a_half(
    silent: str, clock: str, words: Words, percent: str
) -> None:
    bmw = charging(predicted="41")
    bmw.polled("17:00", predicted="60")
    assert bmw.at("18:05", status="CHARGINGENDED@18:00") == "~60% plugged in"
    assert bmw.polled(silent) == []
    (stopped,) = bmw.polled(clock, **words)
    assert stopped == f"stopped: Charging stopped at {percent} (plugged in), 41 → {percent} in 8 h"
    assert bmw.line == f"{percent} plugged in"
    assert bmw.polled("20:10", header="62@18:25") == []


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ({"predicted": "85"}, "Charging stopped at ~85% (unplugged), 41 → ~85% in 3 h"),
        ({}, "Charging stopped (unplugged)"),
    ],
)
def test_stop_of_a_car_that_has_left_names_only_what_was_shown(shown: Words, message: str) -> None:
    bmw = charging()
    bmw.polled("12:55", **shown)
    away: Words = {"plug": "DISCONNECTED@13:00", "header": "60@14:20", "status": "NOCHARGING@14:20"}
    bmw.polled("14:25", **away, predicted="")
    assert bmw.polled("14:45") == [f"stopped: {message}"]
    assert bmw.line == "60% unplugged"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"reason": "POWERGRID_FAILED@12:00"}, "the station lost power"),
        ({"reason": "CHARGING_STATION_FAILURE@12:01"}, "the station failed"),
        ({"reason": "CONNECTOR_REMOVED@12:00"}, "the plug was pulled"),
        ({"reason": "END_REQUESTED_BY_DRIVER@12:00"}, "stopped by hand"),
        ({"reason": "HV_SYSTEM_FAILURE@12:00"}, "a fault in the car"),
        ({"reason": "POWERGRID_FAILED@08:00"}, "plugged in"),  # of an earlier charge
        ({"reason": "UNKNOWN@12:00"}, "plugged in"),
        ({"plug": "DISCONNECTED@12:00", "status": "CHARGINGENDED@12:01"}, "unplugged"),
        ({"plug": "DISCONNECTED@12:00", "status": "CHARGINGACTIVE@10:00"}, "unplugged"),
        ({"status": "NOCHARGING@12:00"}, "plugged in"),
        ({"status": "CHARGINGERROR@12:00"}, "error"),
    ],
)
def test_stop_is_told_with_the_cars_reason_or_by_the_plug_or_the_status(
    words: Words, why: str
) -> None:
    (stopped,) = charging().polled("12:05", **{**end("12:00", 62), **words})
    assert stopped == f"stopped: Charging stopped at 62% ({why}), 41 → 62% in 2 h"


def test_stop_that_is_said_anew_with_the_plug_is_told_once() -> None:
    bmw = parked()
    bmw.polled("08:05", **begin("08:00"), header="60@08:00")
    by_hand = "END_REQUESTED_BY_DRIVER"
    assert kinds(bmw.polled("09:05", **end("09:00", 70), reason=f"{by_hand}@09:00")) == ["stopped"]
    again = {"plug": "CONNECTED@12:00", "reason": f"{by_hand}@12:00"}
    assert bmw.polled("12:05", **again, status="CHARGINGENDED@12:00") + bmw.polled("13:45") == []


def test_stop_is_told_without_the_percentage_of_the_next_charge_and_before_it() -> None:
    bmw = charging()
    bmw.polled("12:05", status="CHARGINGENDED@12:00")
    told = bmw.polled("12:45", status="CHARGINGACTIVE@12:30")
    assert told[0] == "stopped: Charging stopped (plugged in)"
    assert kinds(told) == ["stopped", "started"]
    assert kinds(bmw.polled("13:35", **end("13:30", 75))) == ["stopped"]


def test_each_stop_of_a_stay_is_told() -> None:
    bmw = charging()
    assert kinds(bmw.polled("12:05", **end("12:00", 62))) == ["stopped"]
    assert kinds(bmw.polled("13:05", status="CHARGINGACTIVE@13:00")) == ["started"]
    assert kinds(bmw.polled("14:05", **end("14:00", 70))) == ["stopped"]


@pytest.mark.parametrize(
    ("words", "news"),
    [
        ({"status": "NOCHARGING@18:00", "header": "63@18:00"}, ["stopped"]),
        ({"status": "NOCHARGING@18:00", "header": "62@18:00"}, []),
        ({"plug": "DISCONNECTED@18:00", "header": "68@18:00"}, ["stopped"]),
        ({"plug": "DISCONNECTED@18:00", "header": "62@18:00"}, []),
        ({"plug": "DISCONNECTED@18:00", "header": "68@18:20"}, []),  # it may be of another plug
    ],
)
def test_rise_of_a_car_that_does_not_charge_is_a_charge_that_nobody_saw(
    words: Words, news: list[str]
) -> None:
    bmw = seen("17:10", **rest("17:00", 60))
    assert kinds(bmw.polled("18:30", **words)) == news


def test_reason_tells_of_a_charge_that_nobody_saw() -> None:
    bmw = seen("17:10", **rest("17:00", 60))
    (stopped,) = bmw.polled("18:10", reason="POWERGRID_FAILED@18:00", header="62@18:00")
    assert stopped == "stopped: Charging stopped at 62% (the station lost power)"


def test_repeated_plug_does_not_end_a_wait_for_the_timer() -> None:
    bmw = seen("17:02", plug="CONNECTED@17:00", status="INITIALIZATION@17:01", header="60@17:00")
    assert bmw.at("17:42", plug="CONNECTED@17:05") == "60% waiting"


def test_percentages_that_rise_while_the_status_is_missing_are_no_stop() -> None:
    bmw = seen("10:10", plug="CONNECTED@10:00", header="40@10:00")
    news = bmw.polled("11:10", header="52@11:00") + bmw.polled("12:10", header="64@12:00")
    assert "stopped" not in kinds(news)


def test_stop_that_a_full_charge_has_followed_is_no_news() -> None:
    bmw = charging()
    bmw.polled("12:05", status="CHARGINGENDED@12:00")  # its percentage is awaited
    bmw.polled("12:45", plug="DISCONNECTED@12:10", status="NOCHARGING@12:10")
    assert kinds(bmw.polled("13:25", plug="CONNECTED@12:50", **end("13:20", 100))) == ["full"]
    assert "stopped" not in kinds(bmw.polled("14:05"))


# --- Pauses -----------------------------------------------------------------------------


def test_pause_that_is_said_anew_is_told_once() -> None:
    bmw = charging()
    news = []
    for minute in (0, 20, 40):
        news += bmw.polled(f"11:{minute + 5}", status=f"CHARGINGPAUSED@11:{minute:02}")
    assert news == ["paused: Charging paused at 41%"]


def test_pause_is_no_end_and_what_follows_no_start() -> None:
    bmw = charging()
    assert kinds(bmw.polled("11:05", status="CHARGINGPAUSED@11:00")) == ["paused"]
    assert bmw.polled("12:05", status="CHARGINGACTIVE@12:00") == []
    assert kinds(bmw.polled("13:05", status="CHARGINGPAUSED@13:00")) == ["paused"]


# --- The owner's own percentage ---------------------------------------------------------


def test_goal_is_told_once_if_the_charge_began_below_it() -> None:
    bmw = charging(41, 80, predicted="41")
    assert "reached" not in kinds(bmw.polled("12:00", predicted="79"))
    assert bmw.polled("12:40", predicted="81") == ["reached: 80% reached"]
    assert bmw.polled("13:20", predicted="82") == []


def test_goal_is_not_told_of_a_car_that_was_parked_above_it() -> None:
    bmw = parked(85, 80)
    assert kinds(bmw.polled("10:10", **begin("10:00"), minutes="60@10:00")) == ["started"]
    assert kinds(bmw.polled("10:51")) == ["soon"]


def test_goal_is_not_told_by_a_percentage_from_before_a_drive() -> None:
    bmw = seen("00:10", 80, **rest("00:00", 78))
    bmw.polled("08:10", plug="DISCONNECTED@08:00")
    assert bmw.at("10:10", **begin("10:00"), minutes="100@10:00") == "started, 78% charging"
    assert bmw.at("10:50") == "78% charging"
    assert bmw.at("11:10", header="40@10:00") == "reached, ~82% charging"


def test_goal_is_told_if_the_charge_was_seen_below_it() -> None:
    bmw = seen("00:10", 80, **rest("00:00", 78))
    bmw.polled("08:10", plug="DISCONNECTED@08:00")
    bmw.polled("10:10", **begin("10:00"))
    assert bmw.at("11:10", header="60@11:00") == "60% charging"
    assert bmw.at("12:10", header="84@12:00") == "reached, 84% charging"


def test_goal_is_told_after_a_drive_that_the_computer_slept_through() -> None:
    bmw = parked(90, 80)
    news = bmw.polled("14:00", **begin("10:00"), header="40@10:00", predicted="85")
    assert news == ["started: Charging from 40%", "reached: 80% reached"]


def test_goal_is_not_told_without_a_charge() -> None:
    bmw = seen("08:10", 80, **rest("08:00", 79))
    assert bmw.polled("09:10", header="80@09:00") == []


# --- The percentage that is shown -------------------------------------------------------


def test_prediction_is_shown_in_a_charge_and_does_not_fall() -> None:
    bmw = charging()
    assert bmw.at("11:00", predicted="62") == "step, ~62% charging"
    assert bmw.at("11:01", predicted="") == "~62% charging"
    assert bmw.at("11:02", predicted="72") == "step, ~72% charging"
    assert bmw.at("11:03", predicted="6") == "~72% charging"
    assert bmw.at("11:04", predicted="84") == "step, ~84% charging"


def test_prediction_from_the_departure_is_not_shown_until_it_is_possible() -> None:
    bmw = parked(99, 80, predicted="99")
    begun = bmw.at("18:01", **begin("18:00"), header="40@18:00", minutes="300@18:00")
    assert begun == "started, ~40% charging"
    assert bmw.at("18:10", predicted="99") == "~42% charging"
    assert bmw.at("18:12", predicted="42") == "~42% charging"
    assert bmw.at("18:20", predicted="45") == "~45% charging"


@pytest.mark.parametrize("predicted", ["62", "63", "55", "50", ""])
def test_cars_own_newer_percentage_replaces_what_was_predicted(predicted: str) -> None:
    bmw = charging(predicted="41")
    bmw.polled("11:00", predicted="62")
    assert bmw.at("11:30", header="55@11:29") == "55% charging"
    assert bmw.at("11:31", predicted=predicted) == "55% charging"


def test_without_a_prediction_the_charge_rises_evenly_until_it_is_full() -> None:
    bmw = charging(40, minutes="120@10:00")
    assert bmw.at("11:00") == "step, ~70% charging"
    assert bmw.at("11:59") == "soon, ~99% charging"
    assert bmw.at("12:30") == "overdue, ~99% charging"


@pytest.mark.parametrize(("sent", "line"), [("9:59", "~70% charging"), ("9:58", "40% charging")])
def test_estimate_that_came_just_before_a_charge_is_of_it(sent: str, line: str) -> None:
    bmw = parked(40)
    bmw.polled("10:01", **begin("10:00"), header="40@10:00", minutes=f"121@{sent}")
    assert bmw.at("11:00").endswith(line)


def test_even_rise_begins_anew_with_each_word_of_the_car() -> None:
    bmw = charging(40, minutes="120@10:00")
    assert bmw.at("11:00", header="60@10:30") == "step, ~73% charging"
    bmw.polled("11:00", minutes="180@11:00")
    assert bmw.at("12:00") == "~77% charging"


def test_what_was_computed_outlasts_a_pause_and_the_end() -> None:
    bmw = charging(40, minutes="120@10:00")
    bmw.polled("11:00")
    assert bmw.at("11:20", status="CHARGINGPAUSED@11:00") == "paused, ~70% waiting"
    assert bmw.at("11:40", status="CHARGINGENDED@11:30") == "~70% plugged in"
    assert bmw.at("12:20", header="66@11:30") == "stopped, 66% plugged in"


def test_even_rise_stands_still_in_a_pause_and_goes_on_from_there() -> None:
    bmw = charging(40, minutes="120@10:00")
    assert bmw.at("10:40", status="CHARGINGPAUSED@10:20") == "paused, ~50% waiting"
    assert bmw.at("12:00", minutes="100@11:00") == "~50% waiting"
    assert (
        bmw.at("15:10", status="CHARGINGACTIVE@15:00", minutes="100@15:00") == "step, ~55% charging"
    )
    assert bmw.at("15:50") == "step, ~75% charging"


def test_nothing_is_interpolated_from_a_percentage_before_a_drive() -> None:
    bmw = seen("00:10", **rest("00:00", 78))
    bmw.polled("08:10", plug="DISCONNECTED@08:00")
    bmw.polled("10:10", **begin("10:00"), minutes="300@10:00")
    assert bmw.at("10:35", status="CHARGINGPAUSED@10:30") == "paused, 78% waiting"
    bmw.polled("11:05", status="CHARGINGACTIVE@11:00", minutes="280@11:00")
    assert bmw.at("13:00") == "78% charging"


def test_nothing_is_interpolated_for_more_than_a_day() -> None:
    bmw = charging(40, minutes="600@10:00")
    assert bmw.at("2 09:50") == "overdue, ~99% charging"
    assert bmw.at("2 10:10") == "40% charging"


def test_car_that_sends_no_percentage_is_shown_by_bmws() -> None:
    bmw = seen("18:10", status="NOCHARGING@18:00", predicted="80")
    line = bmw.at("20:10", status="NOCHARGING@20:00", predicted="60")
    assert line == "~60% not charging"


def test_header_and_displayed_percentage_that_are_sent_again_end_no_prediction() -> None:
    bmw = charging(41, displayed="40@10:00")
    assert bmw.at("11:00", predicted="55") == "step, ~55% charging"
    assert bmw.at("11:10", header="41@11:05", displayed="40@11:05") == "~55% charging"


def test_header_and_displayed_percentage_may_differ() -> None:
    bmw = seen("10:10", **rest("10:00", 62))
    for hour in range(11, 17, 2):
        assert bmw.at(f"{hour}:10", displayed=f"59@{hour}:00") == "59% plugged in"
        assert bmw.at(f"{hour + 1}:10", header=f"62@{hour + 1}:00") == "62% plugged in"


@pytest.mark.parametrize(
    ("clock", "words", "age"),
    [
        ("20:00", {"status": "CHARGINGACTIVE@20:00"}, "2 h ago"),  # the car's own percentage
        ("20:01", {"status": "CHARGINGACTIVE@18:00", "minutes": "140@20:00"}, ""),
        ("20:01", {"status": "CHARGINGACTIVE@18:00", "predicted": "70"}, "2 h 1 min ago"),
        ("20:01", {"status": "CHARGINGACTIVE@19:00", "predicted": "70"}, "1 h 1 min ago"),
    ],
)
def test_line_says_how_old_it_is(clock: str, words: Words, age: str) -> None:
    """The car's own percentage by its time, what is computed by the car's last word."""
    bmw = seen(clock, plug="CONNECTED@18:00", header="52@18:00", **words)
    assert i3charge.text_line(bmw.reading, "").partition("car: ")[2] == age


# --- hvStatus ---------------------------------------------------------------------------


def test_hv_status_is_ignored_if_the_car_has_ever_sent_a_status() -> None:
    bmw = seen("10:10", status="NOCHARGING@10:00", header="60@10:00", hv_status="NOT_CHARGING")
    assert bmw.at("10:50", status="", hv_status="CHARGING") == "60% not charging"
    assert bmw.polled("11:30", status="NOCHARGING@10:00") == []


def test_car_that_never_sends_a_status_is_followed_by_hv_status() -> None:
    bmw = seen("10:10", header="60@10:00", hv_status="NOT_CHARGING")
    for clock, hv_status, header, news in (
        ("10:50", "CHARGING", "60@10:00", "started"),
        ("11:30", "FINISHED_NOT_FULL", "75@11:25", "stopped"),
        ("12:10", "CHARGING", "75@11:25", "started"),
        ("12:50", "FINISHED_FULLY_CHARGED", "100@12:45", "full"),
    ):
        assert kinds(bmw.polled(clock, hv_status=hv_status, header=header)) == [news]


# --- The journal ------------------------------------------------------------------------

BEGUN: Words = {
    **begin("18:00"),
    "header": "40@18:00",
    "minutes": "180@18:00",
    "displayed": "40@18:00",
}


@pytest.mark.parametrize("late", ["", *BEGUN])
def test_order_of_arrival_does_not_matter(late: str) -> None:
    """One word of the beginning is shown later than the others."""
    bmw = parked(50)
    news = bmw.polled("18:10", **{name: word for name, word in BEGUN.items() if name != late})
    news += bmw.polled("18:50", **BEGUN)
    news += bmw.polled("21:02", **end("21:00", 100), displayed="100@21:00")
    assert [kind for kind in kinds(news) if kind != "step"] == ["started", "full"]
    assert "40 → 100% in 3 h" in news[-1]


def test_of_two_values_with_one_time_the_one_that_arrived_last_counts() -> None:
    bmw = Bmw(status="NOCHARGING@18:00")
    for minute, header in enumerate(["62", "64", "62", "64"]):
        line = bmw.at(f"18:1{minute}", header=f"{header}@18:00")
        assert line == f"{header}% not charging"


def test_journal_keeps_three_days_and_the_present_stay() -> None:
    bmw = parked()
    sizes = []
    for day in range(1, 12):
        bmw.polled(f"{day} 18:10", **begin(f"{day} 18:00"), header=f"40@{day} 18:00")
        bmw.polled(f"{day} 21:10", **end(f"{day} 21:00", 100))
        sizes.append(len(bmw.memory.journal))
    assert sizes[-1] == sizes[-2] == sizes[5]


def test_charge_is_told_after_many_days_in_one_stay() -> None:
    """The journal still knows that the car was driven, and is not full since day one."""
    bmw = seen("00:10", status="NOCHARGING@00:00", header="60@00:00")
    bmw.polled("00:40", status="CHARGINGACTIVE@00:30")
    assert kinds(bmw.polled("02:05", **end("02:00", 100))) == ["full"]
    for day in range(2, 8):
        bmw.polled(f"{day} 13:00", status="NOCHARGING@2 12:00", header="70@2 12:00")
    assert kinds(bmw.polled("8 10:10", status="CHARGINGACTIVE@8 10:00")) == ["started"]
    assert kinds(bmw.polled("8 12:10", **end("8 12:00", 100))) == ["full"]


def test_restart_changes_nothing() -> None:
    bmw = charging(minutes="250@10:00")
    bmw.restart()
    assert bmw.polled("10:15") == []
    assert kinds(bmw.polled("14:03")) == ["soon"]
    bmw.restart()
    assert bmw.polled("14:04") == []
    (full,) = bmw.polled("14:12", **end("14:10", 100))
    assert full.startswith("full: Fully charged: 41 → 100% in 4 h 10 min.")
    bmw.restart()
    assert bmw.polled("14:52") == []


# --- Clocks -----------------------------------------------------------------------------


@pytest.mark.parametrize("ahead_h", [2, -2])
@pytest.mark.parametrize("wrong_at", ["10:50", "12:10", "14:12"])
def test_clock_that_is_wrong_for_one_poll_spoils_nothing(ahead_h: float, wrong_at: str) -> None:
    bmw = parked(41, predicted="41")
    story: dict[str, Words] = {
        "10:10": {**begin("10:00"), "header": "41@10:00", "predicted": "42"},
        "10:50": {"predicted": "50"},
        "12:10": {"predicted": "70"},
        "14:12": {**end("14:10", 100), "predicted": "100"},
        "14:52": {},
        "16:12": {},
    }
    news = []
    for clock, words in story.items():
        news += bmw.polled(clock, ahead_h if clock == wrong_at else 0, **words)
        if clock != wrong_at:
            assert bmw.next_poll_min <= 40
    once = [kind for kind in kinds(news) if kind not in ("step", "overdue")]
    assert once == ["started", "full", "still"]
    assert bmw.line == "100% full"


def test_car_whose_clock_is_an_hour_ahead_is_told_once() -> None:
    """The computer's clock is an hour behind the car's, in all answers."""
    bmw = Bmw(**rest("08:00", 41, "DISCONNECTED"))
    news = bmw.polled("09:00", -1)
    for clock in ("10:01", "10:41", "11:21", "12:01"):
        news += bmw.polled(clock, -1, **begin("10:00"), header="41@10:00")
    for clock in ("14:11", "14:51", "15:15"):
        news += bmw.polled(clock, -1, **end("14:10", 100))
    assert kinds(news) == ["started", "full"]


def test_time_in_the_future_counts_until_the_car_sends_another_value() -> None:
    bmw = charging(status="CHARGINGACTIVE@15:00")
    assert bmw.at("12:05", **end("12:00", 62)) == "stopped, 62% plugged in"


def test_time_far_in_the_future_counts_as_now() -> None:
    bmw = parked()
    assert bmw.at("10:10", header="70@900 10:00") == "70% unplugged"
    assert bmw.at("10:50", header="71@10:40") == "71% unplugged"
