"""What is decided without any network: readings, news, words and waiting times."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import i3charge
from i3charge import Answer, ChargeWatch, Portal, Reading, TryAgain

CET = timezone(timedelta(hours=1))
NOW = datetime(2026, 11, 22, 19, 20, 11, tzinfo=CET)
STATUSES = ["charging", "full", "waiting", "error", "plugged in", "unplugged", "unknown"]


@pytest.fixture
def amsterdam() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Europe/Amsterdam")
        time.tzset()
        yield
    time.tzset()


def after(minutes: float) -> datetime:
    return NOW + timedelta(minutes=minutes)


# --- One reading ----------------------------------------------------------------------------


def reading(charge: object = "62.0", **attributes: object) -> Reading:
    return Portal.reading_in({"chargingLevelHv": charge, **attributes}, NOW)


def answer_of(body: bytes, **headers: str) -> Answer:
    return Answer("the status", "host", 429, headers, body)


def reading_of(body: bytes) -> Reading:
    car = answer_of(body).json().get("attributesMap")
    return Portal.reading_in(car if isinstance(car, dict) else {}, NOW)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        *[("62.0", 62), ("62", 62), ("0", 0), ("0.0", 0), ("100.0", 100), ("100", 100)],
        *[(" 62.0 ", 62), ("099.5", 99.5), (62, 62), (62.5, 62.5), ("57.099999999999994", 57.1)],
        ("3.3000000000000003", 3.3),
    ],
)
def test_a_number_from_0_to_100_is_a_charge(value: object, found: float) -> None:
    assert i3charge.number(value, most=100) == pytest.approx(found)
    assert reading(value).charge == pytest.approx(found)


@pytest.mark.parametrize(
    "value",
    [
        *["-1", "-0.1", "100.1", "101", "1e999", "-1e999", "NaN", "nan", "inf", "Infinity", ""],
        *["62 %", "62,0", "6 2", "0x10", "6_2", "\u0666\u0662", "\u00b2", "unknown", "9" * 400],
        *[None, True, False, [], ["62.0"], {}, {"value": "62.0"}, -1, 101, 1e300],
    ],
)
def test_anything_else_is_no_charge(value: object) -> None:
    assert i3charge.number(value, most=100) is None
    with pytest.raises(TryAgain, match="charge"):
        reading(value)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_what_is_no_number_in_json_is_no_charge(literal: str) -> None:
    with pytest.raises(TryAgain):
        reading_of(f'{{"attributesMap": {{"chargingLevelHv": {literal}}}}}'.encode())


@given(st.decimals(0, 100, places=2))
def test_every_percentage_is_a_charge(charge: object) -> None:
    assert reading(str(charge)).charge == float(str(charge))


@given(st.floats() | st.integers() | st.text() | st.booleans(), st.floats(0, 10_000))
def test_a_number_is_within_its_limits_or_none(value: object, most: float) -> None:
    found = i3charge.number(value, most)
    assert found is None or 0 <= found <= most


def test_a_missing_charge_is_no_reading() -> None:
    for body in (b"{}", b'{"attributesMap": {}}', b'{"attributesMap": null}'):
        with pytest.raises(TryAgain):
            reading_of(body)


def test_the_cell_level_charge_is_not_used() -> None:
    assert reading("100.0", soc_hv_percent="95.1").charge == 100
    with pytest.raises(TryAgain):
        reading(None, soc_hv_percent="95.1")


def status(charge: float = 62, plug: str = "CONNECTED", *words: str) -> str:
    return i3charge.status_of(charge, words, plug)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("CHARGING", "charging"),
        ("CHARGINGACTIVE", "charging"),
        ("FINISHED_FULLY_CHARGED", "full"),
        ("WAITING_FOR_CHARGING", "waiting"),
        ("INITIALIZATION", "waiting"),
        ("CHARGINGPAUSED", "waiting"),
        ("CHARGINGINTERRUPTED", "waiting"),
        ("CHARGINGDISRUPTED", "waiting"),
        ("ERROR", "error"),
        ("CHARGINGERROR", "error"),
        ("NOT_CHARGING", "plugged in"),
        ("FINISHED_NOT_FULL", "plugged in"),
        ("CHARGINGENDED", "plugged in"),
        ("INVALID", "plugged in"),
        ("NOCHARGING", "plugged in"),
        ("A_WORD_OF_TOMORROW", "unknown"),
        ("", "unknown"),
    ],
)
@pytest.mark.parametrize("field", ["chargingHVStatus", "charging_status"])
def test_each_word_while_plugged_in(word: str, expected: str, field: str) -> None:
    assert status(62, "CONNECTED", word) == expected
    assert reading("62.0", connectorStatus="CONNECTED", **{field: word}).status == expected
    at_100 = expected if expected in ("charging", "unknown") else "full"
    assert status(100, "CONNECTED", word) == at_100


@pytest.mark.parametrize("word", ["INVALID", "NOCHARGING", "NOT_CHARGING", "CHARGINGENDED", "NEW"])
def test_an_unplugged_car(word: str) -> None:
    assert status(62, "DISCONNECTED", word) == "unplugged"
    assert status(99.5, "DISCONNECTED", word) == "unplugged"
    assert status(100, "DISCONNECTED", word) == "full"


@pytest.mark.parametrize("word", ["NEW", ""])
def test_without_a_word_nothing_is_known(word: str) -> None:
    for plug in ("", "NEW", "CONNECTED"):
        assert status(62, plug, word) == "unknown"
        assert status(100, plug, word) == "unknown"


@pytest.mark.parametrize("word", ["INVALID", "NOCHARGING"])
def test_car_that_does_not_charge_may_be_plugged_in_or_not(word: str) -> None:
    assert status(62, "", word) == "unknown"
    assert status(62, "CONNECTED", word) == "plugged in"
    assert status(62, "DISCONNECTED", word) == "unplugged"
    assert status(100, "", word) == "full"


def test_a_car_at_100_percent_that_says_it_is_not_charging_is_full() -> None:
    assert reading("100.0", charging_status="NOCHARGING").status == "full"


def test_the_first_word_that_is_known_counts() -> None:
    assert status(62, "CONNECTED", "INVALID", "CHARGINGACTIVE") == "charging"
    assert status(62, "CONNECTED", "NEW", "INVALID", "CHARGINGPAUSED") == "waiting"
    assert status(62, "CONNECTED", "ERROR", "CHARGINGACTIVE") == "error"
    fields = {"chargingHVStatus": "WAITING_FOR_CHARGING", "charging_status": "CHARGINGACTIVE"}
    assert reading(**fields).status == "waiting"


def test_a_finished_full_charge_is_full_below_100_percent() -> None:
    assert status(96, "CONNECTED", "FINISHED_FULLY_CHARGED", "CHARGINGENDED") == "full"
    assert status(96, "", "FINISHED_FULLY_CHARGED") == "full"


@pytest.mark.parametrize("nonsense", [None, 7, True, [], ["CHARGING"], {}, "", "charging", "\x1b"])
def test_nonsense_breaks_no_reading(nonsense: object) -> None:
    names = [
        *["chargingHVStatus", "charging_status", "chargingSystemStatus", "connectorStatus"],
        *["unitOfLength", "updateTime"],
    ]
    assert reading("62.0", **dict.fromkeys(names, nonsense)) == Reading(62, "unknown")


def test_a_bare_charge_is_a_reading() -> None:
    assert reading("62.0") == Reading(62, "unknown", None, None, None, None, False)


def test_the_recorded_car_that_charges_at_100_percent() -> None:
    car = {
        "soc_hv_percent": "93.8",
        "chargingHVStatus": "CHARGING",
        "charging_status": "CHARGINGACTIVE",
        "chargingSystemStatus": "CHARGINGACTIVE",
        "connectorStatus": "CONNECTED",
        "chargingTimeRemaining": "10.0",
        "beRemainingRangeElectric": "32.0",
        "unitOfLength": "km",
        "updateTime": "26.02.2018 07:19:59 UTC",
    }
    reported = datetime(2018, 2, 26, 7, 19, 59, tzinfo=timezone.utc)
    full_at = reported + timedelta(minutes=10)
    assert reading("100.0", **car) == Reading(100, "charging", 32, "km", full_at, reported)


def test_the_recorded_car_that_is_unplugged_and_full() -> None:
    car = {
        "soc_hv_percent": "95.1",
        "chargingHVStatus": "INVALID",
        "charging_status": "NOCHARGING",
        "chargingSystemStatus": "NOCHARGING",
        "connectorStatus": "DISCONNECTED",
        "beRemainingRangeElectric": "127.0",
        "unitOfLength": "km",
        "updateTime": "27.02.2018 19:59:03 UTC",
    }
    reported = datetime(2018, 2, 27, 19, 59, 3, tzinfo=timezone.utc)
    assert reading("100.0", **car) == Reading(100, "full", 127, "km", None, reported)
    assert reading("80.0", **car).status == "unplugged"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (("101.0", "km"), (101, "km")),
        (("63.0", "mls"), (63, "mi")),
        (("63.0", None), (63, "km")),
        (("63.0", "furlongs"), (None, None)),
        (("0.0", "km"), (0, "km")),
        *[((value, "km"), (None, None)) for value in ("-1", "NaN", "many", "1001", ["62.0"], None)],
    ],
)
def test_range(said: tuple[object, object], expected: tuple[object, object]) -> None:
    found = reading(beRemainingRangeElectric=said[0], unitOfLength=said[1])
    assert (found.range, found.range_unit) == expected


@pytest.mark.parametrize(
    "value",
    [
        *["", "yesterday", "27.02.2018 19:59:03", "27.02.2018 19:59:03 CET", "31.02.2018 10:00:00"],
        *["27.02.2018 25:00:00 UTC", "00.00.0000 00:00:00 UTC", 1519761543],
        *["27.02.20188 19:59:03 UTC", None, [], {}, "9" * 5000],
    ],
)
def test_a_time_stamp_that_is_none(value: object) -> None:
    assert reading(updateTime=value).reported is None


@pytest.mark.parametrize("word", ["CHARGING", "WAITING_FOR_CHARGING", "FINISHED_FULLY_CHARGED", ""])
def test_minutes_are_of_use_only_while_charging(word: str) -> None:
    found = reading(chargingHVStatus=word, chargingTimeRemaining="140.0").full_at
    assert found == (after(140) if word == "CHARGING" else None)


@pytest.mark.parametrize(
    ("reported", "minutes"),
    [("18:20:11", 140), ("18:00:11", 120), ("18:40:11", 140), ("14:00:11", -120), (None, 140)],
)
def test_minutes_count_from_the_report_but_not_from_the_future(
    reported: str | None, minutes: float
) -> None:
    time_stamp = f"22.11.2026 {reported} UTC"
    car = {"chargingHVStatus": "CHARGING", "chargingTimeRemaining": "140.0"}
    assert reading(updateTime=time_stamp, **car).full_at == after(minutes)


@pytest.mark.parametrize(
    "value", [None, "", "-5", "NaN", "1e999", "soon", "1441", [], {}, True, "9" * 99]
)
def test_minutes_that_are_nonsense(value: object) -> None:
    found = reading(chargingHVStatus="CHARGING", chargingTimeRemaining=value)
    assert found == Reading(62, "charging")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = [
    *["chargingLevelHv", "chargingHVStatus", "charging_status", "chargingSystemStatus"],
    *["connectorStatus", "chargingTimeRemaining", "beRemainingRangeElectric", "unitOfLength"],
    *["beRemainingRangeElectricKm", "beRemainingRangeElectricMile", "updateTime"],
]
VALUES = JSON | st.sampled_from(
    [
        *["62.0", "100.0", "CHARGING", "NOCHARGING", "CONNECTED", "km", "mls", "9" * 400],
        *["01.01.0001 00:00:00 UTC", "31.12.9999 23:59:59 UTC", "27.02.2018 19:59:03 UTC"],
    ]
)
CARS = st.dictionaries(st.sampled_from(FIELDS), VALUES)


def check_reading(found: Reading) -> None:
    assert 0 <= found.charge <= 100
    assert found.status in STATUSES
    assert (found.range is None) == (found.range_unit is None)
    assert found.full_at is None or found.status == "charging"
    for line in (i3charge.plain_line(found, NOW), i3charge.terminal_line(found, NOW, "")):
        assert line.isprintable()
    fields = json.loads(i3charge.json_line(found, NOW))
    assert (fields["charge"], fields["status"]) == (found.charge, found.status)


@given(CARS)
def test_any_car_with_a_charge_is_a_reading_that_can_be_logged(car: dict[str, object]) -> None:
    check_reading(reading("62.0", **{k: v for k, v in car.items() if k != "chargingLevelHv"}))


@given(JSON | st.fixed_dictionaries({"attributesMap": JSON | CARS}))
def test_any_json_is_a_reading_or_an_ordinary_failure(answer: object) -> None:
    try:
        found = reading_of(json.dumps(answer).encode())
    except TryAgain:
        return
    check_reading(found)


@given(st.binary())
@example(b"[" * 100_000)
@example(b'{"attributesMap":' * 100_000)
@example(b'{"attributesMap": {"chargingLevelHv": %s}}' % (b"9" * 5000))
@example(b'{"attributesMap": {"chargingLevelHv": %s}}' % (b"9" * 4300))
@example(b'{"attributesMap": {"chargingLevelHv": "\\ud800"}}')
@example(b"\xff\xfe{\x00")
@example(b"<html>Please log in</html>")
@example(b"")
def test_bytes_that_are_no_status_are_an_ordinary_failure(body: bytes) -> None:
    with pytest.raises(TryAgain):
        reading_of(body)


# --- In words -------------------------------------------------------------------------------


LONG_AGO = Reading(62, "charging", 101, "km", after(140), after(-25))


@pytest.mark.parametrize(
    ("car", "line"),
    [
        (LONG_AGO, "62%  charging  101 km  full about 21:40  (car last reported 25 min ago)"),
        (
            LONG_AGO._replace(predicted=True, reported=None),
            "~62%  charging  101 km  full about 21:40",
        ),
        (Reading(62.9, "waiting", 63.9, "mi"), "62%  waiting  63 mi"),
        (Reading(99.99, "plugged in"), "99%  plugged in"),
        (Reading(100, "full", 0, "km"), "100%  full  0 km"),
        (Reading(0, "unplugged"), "0%  unplugged"),
        (Reading(5, "error", reported=after(-5)), "5%  error"),
        (Reading(5, "error", reported=after(-5.02)), "5%  error  (car last reported 5 min ago)"),
        (Reading(5, "unknown", reported=after(30)), "5%  unknown"),
    ],
)
@pytest.mark.usefixtures("amsterdam")
def test_the_plain_line(car: Reading, line: str) -> None:
    assert i3charge.plain_line(car, NOW) == f"2026-11-22 19:20:11  {line}"


@pytest.mark.parametrize(
    ("car", "line"),
    [
        (
            LONG_AGO._replace(reported=None),
            "Sun 19:20   62%  <bar>  charging    101 km  full 21:40",
        ),
        (
            LONG_AGO._replace(charge=73.9, predicted=True),
            "Sun 19:20  ~73%  <bar>  charging    101 km  full 21:40  car: 25 min ago",
        ),
        (Reading(100, "full", 162, "km"), "Sun 19:20  100%  <bar>  full        162 km"),
        (Reading(7, "plugged in", 9, "mi"), "Sun 19:20    7%  <bar>  plugged in    9 mi"),
        (Reading(7, "unknown"), "Sun 19:20    7%  <bar>  unknown"),
    ],
)
@pytest.mark.usefixtures("amsterdam")
def test_the_lines_of_a_terminal_are_aligned(car: Reading, line: str) -> None:
    assert i3charge.terminal_line(car, NOW, "<bar>") == line
    assert i3charge.terminal_line(car, NOW, "") == line.replace("<bar>  ", "")


@given(
    st.floats(0, 100),
    st.sampled_from(STATUSES),
    st.none() | st.floats(0, 999),
    st.none() | st.integers(0, 1440).map(after),
    st.none() | st.integers(0, 599).map(lambda minutes: after(-minutes)),
)
@example(100, "plugged in", 400, after(140), after(-599))
def test_a_line_fits_80_columns_with_every_part_in_it(
    charge: float, word: Any, distance: Any, full_at: Any, reported: Any
) -> None:
    car = Reading(charge, word, distance, "km", full_at, reported, predicted=True)
    bar = i3charge.bar_of(charge, BLOCKS)
    line = i3charge.terminal_line(car, NOW, bar)
    assert len(line) <= 80
    assert line.index(bar) == 17
    assert line.index(f"  {word}") == 27
    assert ("full " in line[41:]) == (full_at is not None)


BLOCKS = "░▏▎▍▌▋▊▉█"


@pytest.mark.parametrize(
    ("charge", "bar", "ascii_bar"),
    [
        (0, "░░░░░░░░░░", "----------"),
        (1.3, "▏░░░░░░░░░", "----------"),
        (50, "█████░░░░░", "#####-----"),
        (62, "██████▎░░░", "######----"),
        (73, "███████▎░░", "#######---"),
        (99.9, "█████████▉", "#########-"),
        (100, "██████████", "##########"),
    ],
)
def test_the_bar(charge: float, bar: str, ascii_bar: str) -> None:
    assert i3charge.bar_of(charge, BLOCKS) == bar
    assert i3charge.bar_of(charge, "-#") == ascii_bar


@given(st.floats(0, 100), st.floats(0, 100), st.sampled_from([BLOCKS, "-#"]))
def test_a_bar_has_ten_cells_and_grows_with_the_charge(a: float, b: float, blocks: str) -> None:
    less, more = (i3charge.bar_of(charge, blocks) for charge in sorted((a, b)))
    assert len(less) == len(more) == 10
    assert [blocks.index(cell) for cell in less] <= [blocks.index(cell) for cell in more]
    assert (more == blocks[-1] * 10) == (max(a, b) == 100)


def test_the_line_in_json() -> None:
    car = Reading(62.0, "charging", 101.0, "km", after(140), after(-25), predicted=True)
    fields = json.loads(i3charge.json_line(car, NOW))
    assert datetime.fromisoformat(fields.pop("full_at")) == after(140)
    assert datetime.fromisoformat(fields.pop("reported")) == after(-25)
    assert fields == {
        "time": "2026-11-22T19:20:11+01:00",
        "charge": 62.0,
        "predicted": True,
        "status": "charging",
        "range": 101.0,
        "range_unit": "km",
        "minutes_to_full": 140.0,
    }
    bare = json.loads(i3charge.json_line(Reading(62.5, "unknown"), NOW))
    assert bare == {
        "time": "2026-11-22T19:20:11+01:00",
        "charge": 62.5,
        "predicted": False,
        "status": "unknown",
        **dict.fromkeys(["range", "range_unit", "minutes_to_full", "full_at", "reported"]),
    }


@pytest.mark.parametrize(
    ("left", "clock", "minutes"),
    [
        (140, "21:40", 140),
        (139.96, "21:40", 140),
        (0, "19:20", 0),
        (-0.9, "19:19", 0),
        (-1.1, "", None),
        (-60 * 24 * 365, "", None),
        (300, "00:20", 300),
    ],
)
@pytest.mark.usefixtures("amsterdam")
def test_when_it_will_be_full_counts_from_now_until_it_has_passed(
    left: float, clock: str, minutes: float | None
) -> None:
    car = Reading(62, "charging", full_at=after(left))
    assert car.full_clock(NOW) == clock
    assert car.minutes_to_full(NOW) == minutes
    fields = json.loads(i3charge.json_line(car, NOW))
    assert fields["minutes_to_full"] == minutes
    assert (fields["full_at"] is None) == (minutes is None)


@pytest.mark.usefixtures("amsterdam")
def test_when_it_will_be_full_where_the_clock_is_put_back_before() -> None:
    now = datetime(2026, 10, 25, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    car = Reading(62, "charging", full_at=now + timedelta(hours=2))
    assert car.full_clock(now) == "02:30"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *[(0, "0 s"), (0.05, "0 s"), (60, "60 s"), (119, "119 s"), (120, "2 min")],
        *[(301, "5 min"), (25 * 60, "25 min"), (3599, "1 h"), (3600, "1 h"), (8400, "2 h 20 min")],
        *[(7199, "2 h"), (7200, "2 h"), (47 * 3600, "47 h"), (48 * 3600, "2 days")],
        *[(48 * 3600 - 1, "2 days"), (4 * 86400, "4 days")],
    ],
)
def test_a_duration(seconds: float, words: str) -> None:
    assert i3charge.duration(seconds) == words


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("access_denied", "access_denied"),
        ("two\r\nlines\tand   blanks ", "two lines and blanks"),
        ("\x1b[31mred\x07", "?[31mred?"),
        ("\x9b31mred\x85", "?31mred"),
        ("\u202eevil\u2066\u200f", "?evil??"),
        ("nul\0 del\x7f", "nul? del?"),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ("Zugang verweigert: ungültig", "Zugang verweigert: ungültig"),
        ("x" * 1000, "x" * 200),
        *[(nothing, "no reason given") for nothing in ("", " \n", None, 7, [], {})],
    ],
)
def test_what_bmw_said(sent: object, shown: str) -> None:
    assert i3charge.printable(sent, ["", "hidden"]) == shown


@pytest.mark.parametrize(
    ("sent", "hidden", "shown"),
    [
        ("no Owner@Example.COM here", ["owner@example.com"], "no *** here"),
        ("a.c abc", ["a.c"], "*** abc"),
        ("pa$$ (wörd PA$$ (WÖRD", ["pa$$ (wörd"], "*** ***"),
        ("x" * 195 + "sesame", ["sesame"], "x" * 195 + "***"),
    ],
)
def test_what_bmw_said_is_shown_without_secrets(sent: str, hidden: list[str], shown: str) -> None:
    assert i3charge.printable(sent, hidden) == shown


def test_a_secret_that_begins_with_another_is_hidden_whole() -> None:
    for hidden in (["anna", "anna2020"], ["anna2020", "anna"]):
        assert "2020" not in i3charge.printable("wrong: anna / anna2020", hidden)


@pytest.mark.parametrize("password", ["open  sesame", " sesame ", "open\tsesame"])
def test_a_secret_with_blanks_is_hidden(password: str) -> None:
    assert "sesame" not in i3charge.printable(f"wrong: '{password}'", [password])


@given(
    st.text(max_size=300),
    st.from_regex(r"[A-Za-z0-9]{8,20}", fullmatch=True),
    st.text(max_size=300),
)
def test_whatever_is_said_is_one_harmless_line(before: str, secret: str, after: str) -> None:
    shown = i3charge.printable(before + secret.swapcase() + after, [secret])
    assert shown.isprintable()
    assert 0 < len(shown) <= 200
    assert secret.lower() not in shown.lower()


# --- What is news ---------------------------------------------------------------------------


def news(*readings: tuple[float, str], watch: ChargeWatch | None = None) -> dict[int, str]:
    """The kinds of news by the number of the reading that brought them."""
    watch = watch or ChargeWatch()
    told = [watch.news(Reading(*reading), NOW) for reading in readings]  # type: ignore[arg-type]
    return {n: " ".join(kind for kind, _ in of_one) for n, of_one in enumerate(told) if of_one}


def news_while_charging(*charges: float, notify_at: float = 0) -> dict[int, str]:
    readings = [(charge, "charging") for charge in charges]
    return news(*readings, watch=ChargeWatch(notify_at))


@pytest.mark.parametrize("word", STATUSES)
@pytest.mark.parametrize("charge", [0, 62, 100])
def test_the_first_reading_is_no_news(charge: float, word: str) -> None:
    assert news((charge, word), (charge, word)) == {}


def test_a_rise_of_5_is_a_step() -> None:
    assert news_while_charging(62, 66.9, 67, 71.9, 72) == {2: "step", 4: "step"}
    assert news_while_charging(62, 66.999) == {}
    assert news_while_charging(0.1, 5.1, 10.1, 15.1) == {1: "step", 2: "step", 3: "step"}
    assert news_while_charging(3.2, 8.2) == {1: "step"}
    assert news_while_charging(52, 90, 94.9, 95) == {1: "step", 3: "step"}


def test_a_fall_lowers_the_baseline() -> None:
    assert news_while_charging(62, 60, 64.9, 65) == {3: "step"}
    assert news_while_charging(62, 67, 40, 44, 43, 45) == {1: "step", 5: "step"}
    assert news((80, "unplugged"), (30, "unplugged"), (35, "charging")) == {2: "step"}


FULL = [(99, "charging"), (100, "full"), (100, "full")]
CHARGES_THAT_END: dict[str, tuple[list[tuple[float, str]], dict[int, str]]] = {
    "charging-at-100": ([(99, "charging"), (100, "charging"), (100, "full")], {2: "full"}),
    "instead-of-a-step": ([(90, "charging"), (100, "full"), (100, "full")], {1: "full"}),
    "then-steps-from-there": (
        [(90, "charging"), (94, "full"), (94, "plugged in"), (98.9, "plugged in")],
        {1: "full"},
    ),
    "topped-up": ([*FULL, (95.1, "charging"), (100, "full")], {1: "full"}),
    "5-lower": ([*FULL, (95, "waiting"), (96, "charging"), (100, "full")], {1: "full", 5: "full"}),
    "unplugged": ([*FULL, (99, "unplugged"), (100, "full")], {1: "full", 4: "full"}),
    "unknown-between": ([*FULL, (100, "unknown"), (100, "full")], {1: "full"}),
    "full-at-the-start": ([(100, "full"), (100, "full"), (98, "charging"), (100, "full")], {}),
    "again-after-the-start": ([(100, "full"), (94, "charging"), (100, "full")], {2: "full"}),
    **{
        f"stopped-{word}": (
            [(80, "charging"), (89, word), (89, word), (89, "charging"), (89, word)],
            {1: "stopped", 4: "stopped"},
        )
        for word in ("error", "plugged in", "unplugged")
    },
    "paused": (
        [(80, "charging"), (83, "waiting"), (83, "waiting"), (84, "charging"), (84, "waiting")],
        {1: "paused", 4: "paused"},
    ),
    "stopped-in-a-pause": (
        [(80, "charging"), (83, "waiting"), (83, "unknown"), (83, "unplugged"), (83, "waiting")],
        {1: "paused", 3: "stopped"},
    ),
    "full-in-a-pause": (
        [(80, "charging"), (83, "waiting"), (83, "full")],
        {1: "paused", 2: "full"},
    ),
    "never-charged": ([(80, "plugged in"), (80, "waiting"), (80, "unplugged")], {}),
    "unknown-is-no-evidence": (
        [(80, "charging"), (81, "unknown"), (81, "charging"), (81, "unknown"), (81, "error")],
        {4: "stopped"},
    ),
}


@pytest.mark.parametrize(("readings", "told"), CHARGES_THAT_END.values(), ids=CHARGES_THAT_END)
def test_how_a_charge_ends(readings: list[tuple[float, str]], told: dict[int, str]) -> None:
    assert news(*readings) == told


def test_a_charge_of_ones_own_is_told_when_it_is_crossed_once_a_charge() -> None:
    assert news_while_charging(76, 79.9, 80, 81, notify_at=80) == {2: "reached"}
    assert news_while_charging(76, 85, 89.9, 90, notify_at=80) == {1: "reached", 3: "step"}
    assert news_while_charging(80, 81, 84, notify_at=80) == {}
    assert news_while_charging(79, 80, 79, 80, 77, 80, notify_at=80) == {1: "reached"}
    assert news_while_charging(79, 80, 75, 80, notify_at=80) == {1: "reached", 3: "reached"}
    assert news((79, "charging"), (100, "full"), watch=ChargeWatch(80)) == {1: "full"}
    stopped = ((79, "charging"), (80, "plugged in"))
    assert news(*stopped, watch=ChargeWatch(80)) == {1: "reached stopped"}


def test_an_answer_without_words_in_a_charge_is_no_evidence_of_anything() -> None:
    """Its charge is then the car's own, which is as old as the start of the charge."""
    readings = [(79, "charging"), (82, "charging"), (52, "unknown"), (86, "charging")]
    told = {1: "reached"}
    assert news(*readings, watch=ChargeWatch(80)) == told  # type: ignore[arg-type]
    assert news(*readings, (87, "charging"), watch=ChargeWatch(80)) == {**told, 4: "step"}


def charging(charge: float, minutes_to_full: float | None, at: float = 0) -> Reading:
    full_at = None if minutes_to_full is None else after(at + minutes_to_full)
    return Reading(charge, "charging", full_at=full_at, reported=after(at))


def test_full_soon_is_told_once_a_charge_and_instead_of_a_step() -> None:
    def kinds(*readings: Reading) -> list[list[str]]:
        watch = ChargeWatch()
        return [[kind for kind, _ in watch.news(reading, NOW)] for reading in readings]

    early, late = charging(90, 10.2), charging(95, 10)
    assert kinds(early, late, charging(96, 8), charging(99.9, 1)) == [[], ["soon"], [], []]
    assert kinds(late, late) == [["soon"], []]
    assert kinds(early, charging(94, -2)) == [[], []]
    assert kinds(early, charging(94, None)) == [[], []]
    unplugged = Reading(96, "unplugged")
    assert kinds(late, unplugged, late) == [["soon"], ["stopped"], ["soon"]]
    assert kinds(late, charging(89, 20), late) == [["soon"], [], ["soon"]]


def messages(*readings: tuple[float, Reading], notify_at: float = 0) -> list[str]:
    """The messages of a night: each reading with the minute at which it is made."""
    watch = ChargeWatch(notify_at)
    return [text for at, reading in readings for _, text in watch.news(reading, after(at))]


def at(minute: float, charge: float, word: str, **details: Any) -> tuple[float, Reading]:
    reading = Reading(charge, word, reported=after(minute), **details)  # type: ignore[arg-type]
    return minute, reading


BEGINNING = [at(-30, 61, "plugged in"), at(0, 61, "charging")]


@pytest.mark.parametrize(
    ("readings", "told"),
    [
        ([at(0, 62, "charging"), (5, charging(67.5, 140, 5))], "67% charged, full about 21:45"),
        ([at(0, 62, "plugged in"), at(5, 67, "plugged in")], "67% charged"),
        ([at(0, 62, "charging"), at(5, 67, "charging", predicted=True)], "~67% charged"),
        ([(0, charging(95, 9.6))], "Full in about 10 min, at 19:29"),
        ([(0, charging(99, 0.2))], "Full in about 1 min, at 19:20"),
        ([at(0, 80, "charging"), at(9, 83.9, "waiting")], "Charging paused at 83%"),
        (
            [at(0, 80, "charging"), at(9, 83.9, "waiting", predicted=True)],
            "Charging paused at ~83%",
        ),
        ([at(0, 80, "charging"), at(9, 83, "error")], "Charging stopped at 83% (error)"),
        (
            [*BEGINNING, at(70, 83, "unplugged")],
            "Charging stopped at 83% (unplugged), 61 → 83% in 1 h 10 min",
        ),
        (
            [*BEGINNING, at(70, 70, "plugged in", predicted=True)],
            "Charging stopped at ~70% (plugged in), 61 → ~70% in 1 h 10 min",
        ),
        (
            [at(0, 80, "charging"), at(140, 100, "full")],
            "Fully charged. The charging station can be freed.",
        ),
        (
            [*BEGINNING, at(140, 100, "full")],
            "Fully charged: 61 → 100% in 2 h 20 min. The charging station can be freed.",
        ),
        (
            [*BEGINNING, (170, Reading(100, "full", reported=after(140)))],
            "Fully charged: 61 → 100% in 2 h 20 min. The charging station can be freed.",
        ),
    ],
)
@pytest.mark.usefixtures("amsterdam")
def test_the_words_of_the_news(readings: list[tuple[float, Reading]], told: str) -> None:
    assert messages(*readings)[-1] == told


def test_a_pause_belongs_to_the_charge_and_a_stop_ends_it() -> None:
    pause = [at(30, 70, "waiting"), at(90, 70, "charging")]
    *_, told = messages(*BEGINNING, *pause, at(140, 100, "full"))
    assert "61 → 100% in 2 h 20 min" in told
    stop = [at(30, 70, "plugged in"), at(90, 70, "charging")]
    *_, told = messages(*BEGINNING, *stop, at(140, 100, "full"))
    assert "70 → 100% in 50 min" in told


def test_an_ending_counts_only_what_was_seen() -> None:
    stuck = Reading(61, "charging", reported=after(-300))
    *_, told = messages(BEGINNING[0], (0, stuck), at(140, 100, "full"))
    assert "61 → 100% in 2 h 50 min" in told
    stopped = at(70, 83, "plugged in")
    *_, told = messages(*BEGINNING, stopped, at(140, 100, "full"))
    assert "Fully charged. " in told


def test_the_message_of_a_charge_of_ones_own() -> None:
    assert messages(at(0, 79, "charging"), at(5, 81, "charging"), notify_at=80) == ["80% reached"]


def test_what_is_older_than_a_day_is_forgotten_but_not_for_a_run_a_day() -> None:
    assert len(messages(at(0, 62, "charging"), at(24 * 60 + 5, 100, "full"))) == 1
    assert messages(at(0, 62, "charging"), at(25 * 60 + 2, 100, "full")) == []
    watch = ChargeWatch()
    watch.news(charging(62, 140), NOW)
    assert watch.blind_since(after(26 * 60), 60) == ""


def test_a_charge_that_is_not_heard_of_is_told_once() -> None:
    watch = ChargeWatch()
    hour, interval_s = 60, 40 * 60
    assert watch.blind_since(NOW, interval_s) == ""
    watch.news(charging(62, 140), NOW)
    assert watch.blind_since(after(79), interval_s) == ""
    assert "(62%, charging)" in watch.blind_since(after(80), interval_s)
    assert watch.blind_since(after(500), interval_s) == ""
    watch.news(charging(62, 140), after(600))
    assert watch.blind_since(after(600 + hour - 1), 60) == ""
    assert watch.blind_since(after(600 + hour), 60)
    watch.news(Reading(62, "waiting"), after(700))
    assert watch.blind_since(after(1000), 60) == ""


@pytest.mark.usefixtures("amsterdam")
def test_the_words_of_a_blind_night() -> None:
    watch = ChargeWatch()
    watch.news(charging(62.9, 140), NOW)
    assert watch.blind_since(after(60), 60) == "No word from BMW since 19:20 (62%, charging)"


@pytest.mark.parametrize(("notify_at", "minutes"), [(0, 20), (63, 12), (80, 20)])
def test_there_is_news_at_the_next_step_and_at_the_charge_of_ones_own(
    notify_at: float, minutes: float
) -> None:
    watch = ChargeWatch(notify_at)
    for charge in (62, 60, 60):
        watch.news(reading := charging(charge, 160), NOW)
    assert watch.next_poll_s(reading, NOW, INTERVAL_S) == minutes * MINUTE


TENTHS = st.integers(0, 1000) | st.sampled_from([600, 649, 650, 651, 700, 799, 800, 950, 1000])
MINUTES = st.none() | st.sampled_from([9, 10, 11])
HISTORIES = st.lists(st.tuples(TENTHS, st.sampled_from(STATUSES), MINUTES), min_size=1, max_size=30)
NOTIFY_AT = 80


def history_news(history: list[tuple[int, str, Any]]) -> list[list[str]]:
    watch = ChargeWatch(NOTIFY_AT)
    readings = [
        Reading(tenths / 10, word, full_at=minutes and after(minutes))  # type: ignore[arg-type]
        for tenths, word, minutes in history
    ]
    return [[kind for kind, _ in watch.news(reading, NOW)] for reading in readings]


def naive_news(history: list[tuple[int, str, Any]]) -> list[list[str]]:
    """The rules as they are written down, looked up in the whole history every time."""
    history = list(history)
    told: list[list[str]] = []
    noted: dict[str, list[int]] = {"soon": [], "reached": [], "full": []}
    words: list[str] = []  # the last that was known, at each reading

    def is_going(until: int) -> bool:
        active = [word for word in words[:until] if word != "waiting"]
        return active[-1:] == ["charging"]

    def is_first(kind: str, index: int) -> bool:
        """In this charge: what was told before is void once it was 5 % lower, or unplugged."""
        return not any(
            all(
                history[later][0] > history[before][0] - 50 and words[later] != "unplugged"
                for later in range(before + 1, index + 1)
            )
            for before in noted[kind]
        )

    for index, (tenths, word, minutes) in enumerate(history):
        if word == "unknown" and is_going(index):  # its charge is no evidence of a fall
            tenths = max(tenths, history[index - 1][0])
            history[index] = (tenths, word, minutes)
        words.append(word if word != "unknown" or not words else words[-1])
        is_full = words[-1] == "full"
        before = words[-2] if index else ""
        kinds = []
        if index and history[index - 1][0] < NOTIFY_AT * 10 <= tenths and not is_full:
            kinds += ["reached"] if is_first("reached", index) else []
        if minutes is not None and minutes <= 10 and is_first("soon", index):
            kinds.append("soon")
        if is_full and is_first("full", index):
            kinds += ["full"] if index else []
            noted["full"].append(index)
        if is_going(index) and words[-1] not in ("charging", "waiting", "full"):
            kinds.append("stopped")
        if before == "charging" and words[-1] == "waiting":
            kinds.append("paused")
        last_told = max([0, *[n for n, of_one in enumerate(told) if of_one]])
        if index and not kinds and tenths - min(t for t, _, _ in history[last_told:index]) >= 50:
            kinds = ["step"]
        for kind in ("soon", "reached"):
            noted[kind] += [index] if kind in kinds else []
        told.append(kinds)
    return told


@given(HISTORIES)
def test_news_is_what_the_rules_say(history: list[tuple[int, str, Any]]) -> None:
    assert history_news(history) == naive_news(history)


@given(st.lists(TENTHS, min_size=1).map(sorted))
def test_steps_of_a_rising_charge_are_5_apart(charges: list[int]) -> None:
    told = news(*[(tenths / 10, "charging") for tenths in charges])
    steps = [charges[0], *[charges[index] for index in told]]
    assert set(told.values()) <= {"step"}
    assert all(later - earlier >= 50 for earlier, later in zip(steps, steps[1:]))
    assert charges[-1] - steps[-1] < 50


@given(HISTORIES, st.integers(0, 30))
def test_nothing_is_forgotten_over_a_restart(history: list[Any], restart: int) -> None:
    watches = [ChargeWatch(NOTIFY_AT), ChargeWatch(NOTIFY_AT)]
    for index, (tenths, word, minutes) in enumerate(history):
        if index == restart:
            known = {k: v for k, v in vars(watches[0]).items() if not k.startswith("_")}
            watches[1] = ChargeWatch(NOTIFY_AT)
            vars(watches[1]).update(json.loads(json.dumps(known)))
        reading = Reading(tenths / 10, word, full_at=minutes and after(minutes))
        told, after_restart = (watch.news(reading, NOW) for watch in watches)
        assert told == after_restart


# --- How long to wait -----------------------------------------------------------------------


MINUTE = 60
INTERVAL_S = 40 * MINUTE


@pytest.mark.parametrize(
    ("charge", "minutes", "goals", "next_minutes"),
    [
        (60, None, [65], 40),
        (60, 400, [65], 40),
        (60, 200, [65], 25),
        (60, 200, [80, 65], 25),
        (60, 200, [80, 62], 10),
        (60, 200, [50, 60], 40),
        (60, 36, [], 26),
        (95, 30, [100], 20),
        (96, 19, [101], 10),
        (96, 10, [101], 12),
        (96, 9, [101], 11),
        (98, 3, [103], 10),
        (100, 0, [105], 10),
        (100, -60, [105], 10),
    ],
)
def test_the_next_poll_is_when_news_is_due(
    charge: float, minutes: float | None, goals: list[float], next_minutes: float
) -> None:
    found = i3charge.news_due_s(charging(charge, minutes), NOW, goals, INTERVAL_S)
    assert found == pytest.approx(next_minutes * MINUTE)


@given(
    st.floats(0, 100),
    st.none() | st.floats(-2000, 2000),
    st.lists(st.floats(0, 105), max_size=2),
    st.floats(0.001, 1e5),
)
def test_a_poll_is_never_too_soon_and_never_later_than_the_regular_one(
    charge: float, minutes: float | None, goals: list[float], interval_s: float
) -> None:
    found = i3charge.news_due_s(charging(charge, minutes), NOW, goals, interval_s)
    assert min(interval_s, 10 * MINUTE) <= found <= interval_s


def test_two_polls_in_vain_are_followed_by_regular_ones_until_something_changes() -> None:
    watch = ChargeWatch()

    def next_minutes(reading: Reading) -> float:
        watch.news(reading, NOW)
        return round(watch.next_poll_s(reading, NOW, INTERVAL_S) / MINUTE)

    due, other = charging(95, 25), charging(95.5, 24)
    assert [next_minutes(due) for _ in range(5)] == [15, 15, 40, 40, 40]
    assert [next_minutes(other) for _ in range(4)] == [14, 14, 40, 40]
    assert next_minutes(other._replace(status="waiting")) == 14
    calm = charging(61, None)
    assert [next_minutes(calm) for _ in range(5)] == [40] * 5
    assert next_minutes(calm._replace(full_at=after(195))) == 25


def test_a_charge_that_creeps_on_when_it_should_be_full_does_not_drain_the_quota() -> None:
    watch, waits = ChargeWatch(), []
    for tenths in range(700, 720):
        watch.news(reading := charging(tenths / 10, -30), NOW)
        waits.append(watch.next_poll_s(reading, NOW, INTERVAL_S) / MINUTE)
    assert waits == [10, 10, *[40] * 18]


@pytest.mark.parametrize(
    ("failures", "interval_s", "wait_s"),
    [
        *[(1, 60, 60), (2, 60, 120), (3, 60, 240), (4, 60, 300), (50, 60, 300), (10**6, 60, 300)],
        *[(1, 600, 600), (2, 600, 600), (10**6, 600, 600), (1, 10, 10), (5, 10, 160), (6, 10, 300)],
        *[(1, 0.05, 0.05), (4, 0.05, 0.4), (10**9, 0.001, 300)],
    ],
)
def test_the_wait_after_failures(failures: int, interval_s: float, wait_s: float) -> None:
    assert i3charge.retry_s(failures, TryAgain(), interval_s) == pytest.approx(wait_s)


@pytest.mark.parametrize(
    ("failures", "interval_s", "wait_s"),
    [
        *[(1, 2400, 60), (2, 2400, 120), (6, 2400, 1920), (7, 2400, 2400), (10**6, 2400, 2400)],
        *[(1, 60, 60), (9, 60, 60), (1, 10, 10), (9, 10, 10)],
    ],
)
def test_the_wait_after_what_never_reached_bmw(
    failures: int, interval_s: float, wait_s: float
) -> None:
    assert i3charge.retry_s(failures, TryAgain(unsent=True), interval_s) == wait_s


@given(st.integers(1, 10**12), st.floats(0.001, 1e5), st.floats(0, 3600))
def test_the_wait_after_failures_is_bounded(
    failures: int, interval_s: float, least_s: float
) -> None:
    problem = TryAgain(least_s=least_s)
    wait_s = i3charge.retry_s(failures, problem, interval_s)
    assert max(interval_s, least_s) <= wait_s <= max(300, interval_s, least_s)
    assert wait_s <= i3charge.retry_s(failures + 1, problem, interval_s)
    assert i3charge.retry_s(failures, TryAgain(wait_s=7), interval_s) == 7


def retry_after_s(**headers: str) -> float:
    return answer_of(b"", **headers).failure().least_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *[("0", 0), ("1", 1), ("120", 120), ("3600", 3600), ("3601", 3600), ("9" * 9, 3600)],
        *[("-1", 0), ("", 0), ("soon", 0), ("1e3", 0), ("NaN", 0), ("\u0661\u0662\u0660", 0)],
        *[("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Fri, 31 Dec 9999 23:59:59 GMT", 3600)],
        ("Wed, 99 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_retry_after(value: str, seconds: float) -> None:
    assert retry_after_s(**{"Retry-After": value}) == seconds


def test_retry_after_as_a_date_or_not_at_all() -> None:
    value = email.utils.formatdate(time.time() + 600, usegmt=True)
    assert retry_after_s(**{"Retry-After": value}) == pytest.approx(600, abs=60)
    assert retry_after_s() == 0


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ [A-Z+\-0-9]*"))
@example("9" * 5000)
def test_any_retry_after_is_kept_within_an_hour(value: str) -> None:
    assert 0 <= retry_after_s(**{"Retry-After": value}) <= 3600
