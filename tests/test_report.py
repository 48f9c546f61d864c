"""What an answer of CarData says, and what the owner sees of a first one."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any, get_args

import hypothesis
import pytest
from conftest import ANYTHING
from fake_cardata import telematic
from hypothesis import strategies as st

import i3charge
from i3charge import ChargeWatch, Memory, Observation, Reading, Report, Topic

NOW = datetime(2026, 8, 18, 18, 0, tzinfo=timezone.utc)  # 20:00 in Amsterdam
NOW_S = NOW.timestamp()


def report(**entries: Any) -> Report:
    """As `telematic` has it: a value, or a pair of it and its age in minutes."""
    return i3charge.report_in(telematic(NOW, **entries)["telematicData"], NOW_S)


def reading(**entries: Any) -> Reading:
    """What is shown, if it is the first answer."""
    _, found, _ = ChargeWatch(Memory(), 0, 2400).observe(report(**entries))
    return found


def said(topic: Topic, **entries: Any) -> list[Observation]:
    return [each for each in report(**entries).observations if each.topic == topic]


# --- A first answer ---------------------------------------------------------------------

# What is not named is as `telematic` has it: the percentage was 52 an hour ago, when the charge
# began, BMW predicts 62, and 140 minutes are left.
ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "charging, with BMW's prediction": ({}, "~62% charging, in, full 22:20"),
    "charging, the car's own is higher": ({"header": ("64", 1)}, "64% charging, in, full 22:20"),
    "charging, the car's own is of now": ({"header": ("52", 0)}, "52% charging, in, full 22:20"),
    "charging, no prediction": ({"predicted": None}, "~66% charging, in, full 22:20"),
    "charging, only a prediction": ({"header": None}, "~62% charging, in, full 22:20"),
    "at 100 % for five minutes": ({"header": ("100", 5)}, "100% charging, in, full 22:20"),
    "at 100 % for half an hour": ({"header": ("100", 31), "minutes": None}, "100% full, in"),
    "at 100 % since before it began": ({"header": ("100", 61)}, "100% charging, in, full 22:20"),
    "no word on the plug": ({"status": ("NOCHARGING", 5), "plug": None}, "52% not charging"),
    "no status at all": ({"status": None, "hv_status": None}, "52% plugged in, in"),
    "unplugged while the status sticks": ({"plug": ("DISCONNECTED", 50)}, "52% unplugged, out"),
    "unplugged at an unknown time": ({"plug": ("DISCONNECTED", None)}, "52% unplugged, out"),
    "unplugged before it charged": (
        {"plug": ("DISCONNECTED", 61)},
        "~62% charging, in, full 22:20",
    ),
    "unplugged and full": (
        {"status": ("NOCHARGING", 5), "header": ("100", 5), "plug": ("DISCONNECTED", 5)},
        "100% full, out",
    ),
}


@pytest.mark.parametrize(("entries", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_first_answer(entries: dict[str, Any], expected: str) -> None:
    found = reading(**entries)
    plug = {True: ", in", False: ", out", None: ""}[found.plugged]
    full = f", full {found.full_clock}" if found.full_clock else ""
    assert f"{found.percent_text} {found.status}{plug}{full}" == expected


def test_recorded_answer_of_a_car_that_does_not_charge() -> None:
    """Ten minutes after a drive; published by its owner (bmw-cardata-ha, issue 377)."""
    engine = "vehicle.drivetrain.electricEngine.charging."
    fetched, driven = "2026-04-28T15:11:36.618Z", "2026-04-28T15:01:00.000Z"
    values = {
        engine + "status": {"timestamp": driven, "unit": None, "value": "NOCHARGING"},
        engine + "timeToFullyCharged": {"timestamp": None, "unit": "min", "value": None},
        engine + "hvStatus": {"timestamp": fetched, "unit": None, "value": "INVALID"},
        engine + "level": {"timestamp": fetched, "unit": "%", "value": "63"},
    }
    now_s = datetime(2026, 4, 28, 15, 11, 37, tzinfo=timezone.utc).timestamp()
    _, found, _ = ChargeWatch(Memory(), 0, 2400).observe(i3charge.report_in(values, now_s))
    line = i3charge.text_line(found, "%H:%M")
    assert re.split("  +", line) == ["17:11", "~63%", "not charging", "car: 11 min ago"]


# --- What counts of several values ------------------------------------------------------

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
    "FINISHED_FULLY_CHARGED": "plugged in",
}


@pytest.mark.parametrize(("word", "status"), STATUS_WORDS.items())
def test_charging_status_wins_over_hv_status(word: str, status: str) -> None:
    for hv_word in HV_WORDS:
        assert reading(status=(word, 5), hv_status=hv_word).status == status


@pytest.mark.parametrize("word", [None, "INVALID", "UNKNOWN", "-NA-", "a new word"])
def test_hv_status_counts_if_the_status_says_nothing(word: Any) -> None:
    for hv_word, status in HV_WORDS.items():
        assert reading(status=word, hv_status=hv_word, header=("52", 5)).status == status


@pytest.mark.parametrize(
    ("entries", "shown"),
    [
        ({"header": ("52", 9), "displayed": ("61", 3)}, "61%"),
        ({"header": ("52", 3), "displayed": ("61", 9)}, "52%"),
        ({"header": ("INVALID", 0), "displayed": ("61", 9)}, "61%"),
        ({"header": None, "displayed": ("61", 9)}, "61%"),
        ({"plug": ("CONNECTED", 9), "plug2": ("DISCONNECTED", 3)}, "unplugged"),
        ({"plug": ("CONNECTED", 3), "plug2": ("DISCONNECTED", 9)}, "plugged in"),
        ({"plug": ("-NA-", 0), "plug2": ("DISCONNECTED", 9)}, "unplugged"),
        ({"plug": None, "plug2": ("DISCONNECTED", 9)}, "unplugged"),
    ],
)
def test_newest_percentage_of_the_car_and_newest_word_on_the_plug_count(
    entries: dict[str, Any], shown: str
) -> None:
    found = reading(status=("NOCHARGING", 20), **entries)
    assert shown in (found.percent_text, found.status)


@pytest.mark.parametrize(
    ("minutes", "remaining", "clock"),
    [
        (("140", 0), None, "22:20"),
        (("140", 5), ("30", 0), "20:30"),
        (("140", 0), ("30", 5), "22:20"),
        (("INVALID", 0), ("30", 5), "20:25"),
        (("140", 5), ("200", 0), "22:15"),  # it says 200 for "200 or more"
        (("140", 62), ("30", 62), ""),  # of the charge before
        (("140", None), None, "22:20"),
        (("140", -2 * 24 * 60), None, "22:20"),  # a time in two days is none
        (("65500", 0), None, ""),
        (None, None, ""),
    ],
)
def test_newest_minutes_count_if_they_are_of_this_charge(
    minutes: Any, remaining: Any, clock: str
) -> None:
    assert reading(minutes=minutes, remaining=remaining).full_clock == clock


# --- The range --------------------------------------------------------------------------


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
    line = i3charge.text_line(reading(range=(value, 0, unit)), "")
    assert ("km" in line or "mi" in line) == bool(shown)
    assert shown in line


def test_range_without_a_unit_is_in_the_last_one_that_bmw_has_named() -> None:
    watch = ChargeWatch(Memory(), 0, 2400)
    units = []
    for value, unit in (("101", None), ("61", "miles"), ("61", None), ("98", "km"), ("98", None)):
        _, found, _ = watch.observe(report(range=(value, 0, unit)))
        units.append(found.range_unit)
    assert units == ["km", "mi", "mi", "km", "km"]


# --- Bad values -------------------------------------------------------------------------

NO_PERCENTAGES: list[Any] = [None, "", "INVALID", "101", "-1", "1e2", "٣", [], {}, True, "9" * 5000]


@pytest.mark.parametrize("value", NO_PERCENTAGES, ids=range(len(NO_PERCENTAGES)))
def test_what_is_no_percentage_is_left_out(value: Any) -> None:
    assert said("percent", header=(value, 0)) == []
    assert said("predicted", predicted=value) == []
    assert reading(header=(value, 0)).percent == 62


@pytest.mark.parametrize(("value", "percent"), [("0", 0), ("100.0", 100), (62.5, 62.5)])
def test_a_number_from_0_to_100_is_a_percentage(value: Any, percent: float) -> None:
    assert said("percent", header=(value, None)) == [Observation(0, "percent", percent)]


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
        ("2026-08-20T12:00:00Z", None),  # in two days
        ("yesterday", None),
        (None, None),
        ([1], None),
    ],
)
def test_timestamps(value: Any, after_noon_s: float | None) -> None:
    noon_s = datetime(2026, 8, 18, 12, tzinfo=timezone.utc).timestamp()
    expected = 0.0 if after_noon_s is None else noon_s + after_noon_s
    assert i3charge.timestamp_s(value, NOW_S) == pytest.approx(expected, abs=1e-6)


WORDS = st.sampled_from([*i3charge.STATUS_OF_WORD, *i3charge.REASON_OF_WORD, "DISCONNECTED"])
PERCENTS = st.sampled_from(["0", "62", "98", "100"])
STAMPS = st.datetimes(datetime(2026, 8, 18), datetime(2026, 8, 19)).map(lambda at: f"{at}Z")
STAMPS |= st.sampled_from(["0001-01-01", "2999-01-01T00:00:00Z"])
ENTRIES = ANYTHING | st.fixed_dictionaries(
    {"value": ANYTHING | WORDS | PERCENTS, "timestamp": ANYTHING | STAMPS, "unit": ANYTHING}
)
ANSWER = st.dictionaries(st.sampled_from(i3charge.DESCRIPTORS[i3charge.FULL_SET]), ENTRIES)


@hypothesis.given(st.lists(ANSWER, max_size=4))
def test_any_answers_give_sane_readings(answers: list[dict[str, Any]]) -> None:
    memory = Memory()
    watch = ChargeWatch(memory, 80, 2400)
    for number, values in enumerate(answers):
        report = i3charge.report_in(values, NOW_S + number * 2400)
        try:
            _, found, news = watch.observe(report)
        except i3charge.Trouble:
            continue
        assert 0 <= found.percent <= 100
        assert found.status in get_args(i3charge.Status)
        assert i3charge.text_line(found, "%H:%M").isprintable()
        assert all(one.text.replace("→", "").isascii() for one in news)
        json.loads(i3charge.json_line(found))
        assert watch.next_poll_s(found, found.taken_s) > found.taken_s
        kept = json.loads(json.dumps(memory.journal))
        assert list(i3charge.observations_in(kept)) == memory.journal
