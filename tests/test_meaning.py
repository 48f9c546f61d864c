"""What an answer of CarData means."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any, get_args

import hypothesis
import pytest
from fake_cardata import telematic
from hypothesis import strategies as st

import i3charge
from i3charge import Reading, TelematicData

NOW = datetime(2026, 8, 18, 18, 0, tzinfo=timezone.utc)  # 20:00 in Amsterdam
NOW_S = NOW.timestamp()
MINUTE_S = 60


def find_reading(**entries: Any) -> Reading | None:
    """As `telematic` has it: a value, or a pair of it and its age in minutes."""
    values = telematic(NOW, **entries)["telematicData"]
    return i3charge.reading_in(TelematicData(values, NOW_S))


def reading(**entries: Any) -> Reading:
    """As it is shown, where there was none before."""
    found = find_reading(**entries)
    assert found
    return i3charge.held(found, None, i3charge.ChargingSession())


def bare(**entries: Any) -> Reading:
    """Of an i3 that has no prediction and no hvStatus."""
    return reading(**{"predicted": None, "hv_status": None, **entries})


FULL_WORD = "FINISHED_FULLY_CHARGED"
ACTIVE = ("CHARGINGACTIVE", 60)

# What is not named is as `telematic` has it: the charge was 52 % by the car and began an
# hour ago, BMW predicts 62 %, and 140 minutes are left.
ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "charging, with BMW's prediction": ({}, "~62% charging, in, full 22:20"),
    "charging, the car's word is higher": ({"header": ("64", 1)}, "64% charging, in, full 22:20"),
    "charging, the car's word is lower": ({"header": ("52", 0)}, "~62% charging, in, full 22:20"),
    "paused": ({"status": ("CHARGINGPAUSED", 5)}, "~62% waiting, in"),
    "hvStatus lags": ({"hv_status": "NOT_CHARGING"}, "~62% charging, in, full 22:20"),
    "hvStatus says full in mid-charge": ({"hv_status": FULL_WORD}, "~62% charging, in, full 22:20"),
    "sticks, and BMW predicts the end": (
        {"hv_status": FULL_WORD, "predicted": "99.4"},
        "~99% charging, in, full 22:20",
    ),
    "sticks, and the car has said the end": (
        {"hv_status": FULL_WORD, "predicted": "98", "header": ("99", 20)},
        "99% full, in",
    ),
    "sticks, and the car has said so from the beginning": (
        {"hv_status": FULL_WORD, "header": ("99", 52)},
        "99% charging, in, full 22:20",
    ),
    "at 100 % for five minutes": ({"header": ("100", 5)}, "100% charging, in, full 22:20"),
    "at 100 % for half an hour": ({"header": ("100", 31)}, "100% full, in"),
    "at 100 % since before it began": ({"header": ("100", 61)}, "100% charging, in, full 22:20"),
    "ended at a goal of 80 %": (
        {"hv_status": FULL_WORD, "status": ("CHARGINGENDED", 1), "header": ("80", 1)},
        "80% plugged in, in",
    ),
    "ended at 99 %": (
        {"hv_status": FULL_WORD, "status": ("CHARGINGENDED", 1), "header": ("99", 1)},
        "99% full, in",
    ),
    "ended, with the car's word on it": (
        {"status": ("CHARGINGENDED", 1), "header": ("60", 1)},
        "60% plugged in, in",
    ),
    "ended, the car's word came before": (
        {"status": ("CHARGINGENDED", 1), "header": ("60", 10)},
        "60% plugged in, in",
    ),
    "ended, the car's word is of the beginning": (
        {"status": ("CHARGINGENDED", 1), "header": ("52", 60)},
        "~62% plugged in, in",
    ),
    "ended, an old word that is higher": (
        {"status": ("CHARGINGENDED", 1), "header": ("70", 60)},
        "70% plugged in, in",
    ),
    "does not charge, plugged in": (
        {"status": ("NOCHARGING", 5), "hv_status": "INVALID", "header": ("52", 5)},
        "52% plugged in, in",
    ),
    "does not charge, hvStatus outlasts": (
        {"status": ("NOCHARGING", 5), "hv_status": FULL_WORD, "header": ("80", 34 * 60)},
        "80% plugged in, in",
    ),
    "does not charge, waits for its timer": (
        {"status": ("NOCHARGING", 5), "hv_status": "WAITING_FOR_CHARGING", "predicted": None},
        "52% waiting, in",
    ),
    "does not charge, has a fault": (
        {"status": ("NOCHARGING", 5), "hv_status": "ERROR", "header": ("52", 5)},
        "52% error, in",
    ),
    "does not charge, no word on the plug": (
        {"status": ("NOCHARGING", 5), "header": ("52", 5), "plug": None},
        "52% not charging",
    ),
    "does not charge, full, no word on the plug": (
        {"status": ("NOCHARGING", 5), "header": ("100", 5), "plug": None},
        "100% full",
    ),
    "does not charge, full, unplugged": (
        {"status": ("NOCHARGING", 5), "header": ("100", 5), "plug": ("DISCONNECTED", 5)},
        "100% full, out",
    ),
    "no status, hvStatus speaks": ({"status": None}, "~62% charging, in, full 22:20"),
    "no status at all": ({"status": None, "hv_status": None}, "52% unknown, in"),
    "no status at all, at 100 %": (
        {"status": ("UNKNOWN", 5), "hv_status": "INVALID", "header": ("100", 90)},
        "100% unknown, in",
    ),
    "unplugged while the status sticks": ({"plug": ("DISCONNECTED", 50)}, "52% unplugged, out"),
    "unplugged as the status was said": ({"plug": ("DISCONNECTED", 60)}, "52% unplugged, out"),
    "unplugged, which ended it": (
        {"status": ("CHARGINGENDED", 5), "header": ("60", 5), "plug": ("DISCONNECTED", 6)},
        "60% unplugged, out",
    ),
    "unplugged before it charged": ({"plug": ("DISCONNECTED", 61)}, "~62% charging, full 22:20"),
    "unplugged, then driven": (
        {"status": ("NOCHARGING", 5), "header": ("40", 5), "plug": ("DISCONNECTED", 50)},
        "40% unplugged, out",
    ),
    "unplugged at an unknown time": ({"plug": ("DISCONNECTED", None)}, "52% unplugged, out"),
    "bare i3, at the beginning": (
        {
            "predicted": None,
            "hv_status": None,
            "header": ("41", 0),
            "status": ACTIVE,
            "minutes": 59,
        },
        "41% charging, in, full 20:59",
    ),
    "bare i3, in the middle": (
        {"predicted": None, "hv_status": None, "header": ("40", 60), "minutes": ("120", 60)},
        "~70% charging, in, full 21:00",
    ),
    "bare i3, past its time": (
        {"predicted": None, "hv_status": None, "header": ("40", 60), "minutes": ("50", 60)},
        "~99% charging, in",
    ),
    "bare i3, paused": (
        {"predicted": None, "hv_status": None, "status": ("CHARGINGPAUSED", 5)},
        "52% waiting, in",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_whole_answers(name: str) -> None:
    entries, expected = ANSWERS[name]
    found = reading(**entries)

    plug = {True: ", in", False: ", out", None: ""}[found.plugged]
    full = f", full {found.full_clock}" if found.full_clock else ""
    assert f"{found.percent} {found.status}{plug}{full}" == expected


def test_reading_has_every_field() -> None:
    found = reading(reason=("POWERGRID_FAILED", 30), header=("52", 20))
    assert found == Reading(
        charge=62.0,
        taken_s=NOW_S,
        status="charging",
        status_s=NOW_S - 60 * MINUTE_S,
        source="BMW",
        plugged=True,
        plugged_s=NOW_S - 60 * MINUTE_S,
        range=101.0,
        range_unit="km",
        full_at_s=NOW_S + 140 * MINUTE_S,
        last_word_s=NOW_S,
        car_said=52.0,
        car_said_s=NOW_S - 20 * MINUTE_S,
        end_reason="the station lost power",
        end_reason_s=NOW_S - 30 * MINUTE_S,
    )


def test_full_is_as_old_as_the_cars_word_that_makes_it_so() -> None:
    assert reading(plug=("DISCONNECTED", 9)).status_s == NOW_S - 9 * MINUTE_S
    ended = reading(status=("CHARGINGENDED", 5), header=("100", 7))
    assert (ended.status_s, ended.end_said_s) == (NOW_S - 7 * MINUTE_S, NOW_S - 5 * MINUTE_S)


def test_recorded_answer_of_a_car_that_does_not_charge() -> None:
    """Ten minutes after a drive; published by its owner (bmw-cardata-ha, issue 377)."""
    engine = "vehicle.drivetrain.electricEngine.charging."
    fetched = "2026-04-28T15:11:36.618Z"
    values = {
        engine + "status": {
            "timestamp": "2026-04-28T15:01:00.000Z",
            "unit": None,
            "value": "NOCHARGING",
        },
        engine + "timeToFullyCharged": {"timestamp": None, "unit": "min", "value": None},
        engine + "hvStatus": {"timestamp": fetched, "unit": None, "value": "INVALID"},
        engine + "level": {"timestamp": fetched, "unit": "%", "value": "63"},
    }
    now = datetime(2026, 4, 28, 15, 11, 37, tzinfo=timezone.utc)
    found = i3charge.reading_in(TelematicData(values, now.timestamp()))
    assert found
    assert (found.percent, found.status, found.plugged) == ("~63%", "not charging", None)
    assert i3charge.text_line(found, "%H:%M", "").endswith("car: 11 min ago")


# --- Without a prediction -------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "began", "minutes", "charge"),
    [
        (("40", 60), 60, ("120", 60), 70.0),  # half of the way
        (("40", 500), 60, ("120", 60), 70.0),  # an old word held when the charge began
        (("60", 30), 60, ("90", 30), 73.3),  # a word in mid-charge is the new beginning
        (("40", 60), 60, ("120", 0), 60.0),  # minutes that are said anew
        (("40", -30), 60, ("120", 60), 40.0),  # a stamp from the future is one of now
    ],
)
def test_charge_rises_evenly_from_the_cars_word_to_the_time_when_it_is_full(
    header: Any, began: float, minutes: Any, charge: float
) -> None:
    found = bare(header=header, status=("CHARGINGACTIVE", began), minutes=minutes)
    assert found.charge == charge
    assert found.source == ("the car" if charge == 40 else "interpolated")


def test_interpolated_charge_is_99_percent_until_the_car_confirms() -> None:
    assert bare(header=("40", 60), minutes=("61", 60)).charge == 99
    assert (
        bare(header=("40", 600), minutes=("61", 600), status=("CHARGINGACTIVE", 600)).charge == 99
    )
    assert bare(header=("100", 1), minutes=("61", 60)).percent == "100%"


@pytest.mark.parametrize("minutes", [None, "INVALID", ("140", 61), ("200", 0, "min")])
def test_without_minutes_the_cars_own_word_stands(minutes: Any) -> None:
    if minutes == ("200", 0, "min"):  # which means 200 or more
        found = bare(minutes=None, remaining=minutes)
    else:
        found = bare(minutes=minutes)
    assert (found.percent, found.full_at_s) == ("52%", 0)


# --- Which word counts ----------------------------------------------------------------

STATUS_WORDS = {
    "CHARGINGACTIVE": "charging",
    "CHARGINGPAUSED": "waiting",
    "CHARGINGINTERRUPTED": "waiting",
    "CHARGINGDISRUPTED": "waiting",
    "INITIALIZATION": "waiting",
    "CHARGINGERROR": "error",
    "CHARGINGENDED": "plugged in",
    "NOCHARGING": "plugged in",
}
HV_WORDS = {
    "CHARGING": "charging",
    "WAITING_FOR_CHARGING": "waiting",
    "ERROR": "error",
    "NOT_CHARGING": "plugged in",
    "FINISHED_NOT_FULL": "plugged in",
    FULL_WORD: "plugged in",
    "INVALID": "unknown",
    "a new word": "unknown",
}


@pytest.mark.parametrize("word", STATUS_WORDS)
def test_charging_status_wins_over_hv_status(word: str) -> None:
    for hv_word in ("CHARGING", "NOT_CHARGING", FULL_WORD):
        assert reading(status=(word, 5), hv_status=hv_word).status == STATUS_WORDS[word]


@pytest.mark.parametrize("word", [None, "INVALID", "UNKNOWN", "-NA-"])
def test_hv_status_speaks_where_the_status_says_nothing(word: Any) -> None:
    for hv_word, status in HV_WORDS.items():
        assert reading(status=word, hv_status=hv_word, header=("52", 5)).status == status


def test_newest_word_of_the_car_on_its_charge_counts() -> None:
    ended: dict[str, Any] = {"status": ("CHARGINGENDED", 5), "predicted": None}
    assert reading(header=("52", 9), displayed=("61", 3), **ended).charge == 61
    assert reading(header=("52", 3), displayed=("61", 9), **ended).charge == 52
    assert reading(header=("INVALID", 0), displayed=("61", 9), **ended).charge == 61
    assert reading(header=("52", None), displayed=("61", None), **ended).charge == 52


@pytest.mark.parametrize("nothing", ["INVALID", "-NA-", None])
def test_fresh_word_that_says_nothing_hides_no_good_one(nothing: Any) -> None:
    found = reading(plug=(nothing, 0), plug2=("DISCONNECTED", 9), status=("NOCHARGING", 20))
    assert found.status == "unplugged"
    found = reading(minutes=(nothing, 0), remaining=("30", 5))
    assert found.full_clock == "20:25"


@pytest.mark.parametrize(
    ("minutes", "remaining", "clock"),
    [
        (("140", 0), None, "22:20"),
        (("140", 5), ("30", 0), "20:30"),
        (("140", 0), ("30", 5), "22:20"),
        (("140", 5), ("200", 0), "22:15"),  # it says 200 for "200 or more"
        (("140", 61), ("30", 61), ""),  # of the charge before
        (("140", -9), None, "22:20"),  # a stamp from the future is one of now
        (("65500", 0), None, ""),
    ],
)
def test_newer_minutes_count_if_they_are_of_this_charge(
    minutes: Any, remaining: Any, clock: str
) -> None:
    assert reading(minutes=minutes, remaining=remaining).full_clock == clock


def test_minutes_without_a_stamp_count_from_the_cars_last_word() -> None:
    found = reading(minutes=("140", None), plug=("CONNECTED", 10))
    assert found.full_clock == "22:10"


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("POWERGRID_FAILED", "the station lost power"),
        ("CONNECTOR_REMOVED", "the plug was pulled"),
        ("CHARGING_STATION_FAILURE", "the station failed"),
        ("END_REQUESTED_BY_DRIVER", "stopped by hand"),
        ("HV_SYSTEM_FAILURE", "a fault in the car"),
        ("CHARGING_GOAL_REACHED", ""),
        ("UNKNOWN", ""),
        (None, ""),
    ],
)
def test_reason_for_the_end_is_in_plain_words(word: Any, reason: str) -> None:
    assert reading(reason=(word, 5)).end_reason == reason


AGES: dict[str, Any] = {
    "header": ("52", 90),
    "status": ("CHARGINGACTIVE", 70),
    "plug": ("CONNECTED", 80),
}


@pytest.mark.parametrize(
    ("entries", "age"),
    [
        ({**AGES, "minutes": None}, 70),
        ({**AGES, "header": ("52", 65), "minutes": None}, 65),
        ({**AGES, "plug": ("CONNECTED", 9), "minutes": None}, 9),
        ({**AGES, "minutes": ("140", 5)}, 5),
        ({**AGES, "minutes": ("INVALID", 5)}, 70),
        ({**AGES, "minutes": ("140", 5), "predicted": "40"}, 90),  # the car's own is shown
        ({**AGES, "predicted": None, "minutes": None}, 90),
        ({"header": None, "displayed": ("65", 7), "status": None, "plug": None}, 7),
        ({"header": ("52", None), "status": None, "plug": None, "minutes": None}, None),
    ],
)
def test_report_is_as_old_as_the_charge_or_where_that_is_predicted_as_the_last_word(
    entries: dict[str, Any], age: float | None
) -> None:
    # BMW's own, the prediction and hvStatus, are always of now.
    expected = 0 if age is None else NOW_S - age * MINUTE_S
    assert reading(**entries).reported_s == expected


# --- Single values --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        ("101", None, "101 km"),
        ("101", "km", "101 km"),
        ("63", "miles", "63 mi"),
        ("63", "mls", "63 mi"),
        ("63", "mi", "63 mi"),
        ("63", "furlongs", ""),
        ("INVALID", "km", ""),
        ("9999", "km", ""),
        (None, None, ""),
    ],
)
def test_range_is_in_the_unit_that_bmw_names(value: Any, unit: Any, shown: str) -> None:
    assert i3charge.distance_words(reading(range=(value, 0, unit))) == shown


NO_CHARGES: list[Any] = [None, "", "INVALID", "101", "-1", "1e2", "٣", [], True, "9" * 5000]


@pytest.mark.parametrize("value", NO_CHARGES, ids=range(len(NO_CHARGES)))
def test_what_is_no_percentage_is_no_charge(value: Any) -> None:
    assert find_reading(header=(value, 0), predicted=None) is None
    assert reading(header=(value, 0)).charge == 62


@pytest.mark.parametrize(("value", "charge"), [("0", 0), ("100.0", 100), (62.5, 62.5)])
def test_a_number_from_0_to_100_is_a_charge(value: Any, charge: float) -> None:
    assert reading(header=(value, 0), predicted=None, status=None).charge == charge


@pytest.mark.parametrize(
    ("value", "after_noon_s"),
    [
        ("2026-08-18T12:16:36.000Z", 996),
        ("2026-08-18T12:16:36Z", 996),
        ("2026-08-18T12:16:36.5Z", 996.5),
        ("2026-08-18T12:16:36.1234567Z", 996.123456),
        ("2026-08-18T14:16:36+02:00", 996),
        ("2026-08-18T12:16:36", 996),
        ("0001-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("yesterday", None),
        (None, None),
        ([1], None),
    ],
)
def test_time_stamps(value: Any, after_noon_s: float | None) -> None:
    noon_s = datetime(2026, 8, 18, 12, tzinfo=timezone.utc).timestamp()
    expected = 0.0 if after_noon_s is None else noon_s + after_noon_s
    assert i3charge.moment_s(value) == pytest.approx(expected, abs=1e-6)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
WORDS = st.sampled_from([*i3charge.STATUS_OF_WORD, "NOCHARGING", "DISCONNECTED", "62", "100"])
STAMPS = st.sampled_from(["2026-08-18T17:00:00.000Z", "2026-08-18T19:00:00Z", "0001-01-01", None])
ENTRIES = JSON | st.fixed_dictionaries(
    {"value": JSON | WORDS, "timestamp": JSON | STAMPS, "unit": JSON}
)
DATA = st.dictionaries(st.sampled_from(i3charge.DESCRIPTORS[i3charge.FULL_SET]), ENTRIES)


@hypothesis.given(DATA)
def test_any_answer_is_a_sane_reading_or_none(values: dict[str, Any]) -> None:
    found = i3charge.reading_in(TelematicData(values, NOW_S))
    if found:
        assert 0 <= found.charge <= 100
        assert found.status in get_args(i3charge.Status)
        assert found.source != "interpolated" or found.charge <= 99
        assert i3charge.text_line(found, "%H:%M", "").isprintable()
        json.loads(i3charge.json_line(found))
