"""What is decided without any network: readings, news, words and waiting times."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import i3charge
from i3charge import Answer, ChargeWatch, Portal, Reading, TryAgain

# A loaded machine is no failure.

CET = timezone(timedelta(hours=1))
NOW = datetime(2026, 11, 22, 19, 20, 11, tzinfo=CET)
NOT_CHARGING = ["waiting", "error", "plugged in", "unplugged"]
STATUSES = ["charging", "full", "unknown", *NOT_CHARGING]


@pytest.fixture
def amsterdam() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Europe/Amsterdam")
        time.tzset()
        yield
    time.tzset()


# --- One reading ----------------------------------------------------------------------------


def reading_of(body: bytes) -> Reading:
    return Portal._reading(Answer("status", "host", 200, {}, body))


def reading(charge: object = "62.0", **attributes: object) -> Reading:
    car = {"chargingLevelHv": charge, **attributes}
    return reading_of(json.dumps({"attributesMap": car}).encode())


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
@pytest.mark.parametrize("field", ["chargingHVStatus", "charging_status", "chargingSystemStatus"])
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


def test_words_that_are_missing_in_the_middle_of_a_charge_are_no_news() -> None:
    words = ("chargingHVStatus", "charging_status", "chargingSystemStatus")
    watch = i3charge.ChargeWatch()
    gone = reading("62.0", connectorStatus="CONNECTED", **dict.fromkeys(words, None))
    charging = reading("62.0", chargingHVStatus="CHARGING")
    assert [watch.news(r) for r in (charging, gone, charging)] == [None] * 3


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
    assert reading("62.0") == Reading(62, "unknown", None, None, None, None)


@pytest.mark.usefixtures("amsterdam")
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
    assert reading("100.0", **car) == Reading(100, "charging", 32, "km", 10, reported)


@pytest.mark.usefixtures("amsterdam")
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
    ("fields", "expected"),
    [
        ({"": "101.0", "unitOfLength": "km"}, (101, "km")),
        ({"": "63.0", "unitOfLength": "mls"}, (63, "mi")),
        ({"": "63.0", "Km": "101.0", "Mile": "62.0", "unitOfLength": "mls"}, (63, "mi")),
        ({"": "63.0", "Km": "101.0", "Mile": "62.0"}, (101, "km")),
        ({"": "63.0", "Km": "101.0", "unitOfLength": "furlongs"}, (101, "km")),
        ({"": "63.0", "unitOfLength": "furlongs"}, (None, None)),
        ({"": "63.0"}, (None, None)),
        ({"Mile": "62.0"}, (62, "mi")),
        ({"": None, "Km": "many", "Mile": "62.0", "unitOfLength": "km"}, (62, "mi")),
        ({"": "-1", "Km": "NaN", "Mile": ["62.0"], "unitOfLength": "km"}, (None, None)),
        ({"": "0.0", "Km": "101.0", "unitOfLength": "km"}, (0, "km")),
        ({"unitOfLength": "km"}, (None, None)),
    ],
)
def test_range(fields: dict[str, object], expected: tuple[object, object]) -> None:
    names = {name: f"beRemainingRangeElectric{name}" for name in ("", "Km", "Mile")}
    found = reading(**{names.get(name, name): value for name, value in fields.items()})
    assert (found.range, found.range_unit) == expected


@pytest.mark.parametrize(
    "value",
    [
        *["", "yesterday", "27.02.2018 19:59:03", "27.02.2018 19:59:03 CET", "31.02.2018 10:00:00"],
        *["2018-02-27T19:59:03Z", "27.02.2018 25:00:00 UTC", "00.00.0000 00:00:00 UTC", 1519761543],
        *["27.02.20188 19:59:03 UTC", None, [], {}, "9" * 5000],
    ],
)
def test_a_time_stamp_that_is_none(value: object) -> None:
    assert reading(updateTime=value).reported is None


@pytest.mark.parametrize("word", ["CHARGING", "WAITING_FOR_CHARGING", "FINISHED_FULLY_CHARGED", ""])
def test_minutes_are_of_use_only_while_charging(word: str) -> None:
    found = reading(chargingHVStatus=word, chargingTimeRemaining="140.0").minutes_to_full
    assert found == (140 if word == "CHARGING" else None)


@pytest.mark.parametrize("value", [None, "", "-5", "NaN", "1e999", "soon", [], {}, True, "9" * 99])
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
    assert found.minutes_to_full is None or found.status == "charging"
    line = i3charge.plain_line(found, NOW)
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
def test_any_bytes_are_an_ordinary_failure(body: bytes) -> None:
    with pytest.raises(TryAgain):
        reading_of(body)


@pytest.mark.parametrize("code", [201, 204, 301, 302, 400, 418, 429, 500, 503])
def test_only_an_answer_of_200_is_read(code: int) -> None:
    body = b'{"attributesMap": {"chargingLevelHv": "62.0"}}'
    with pytest.raises(TryAgain, match=str(code)):
        Portal._reading(Answer("status", "host", code, {}, body))


# --- In words -------------------------------------------------------------------------------


def minutes_ago(minutes: float) -> datetime:
    return NOW.astimezone(timezone.utc) - timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("car", "line"),
    [
        (Reading(62, "charging", 101, "km", 140), "62%  charging  101 km  full about 21:40"),
        (Reading(62.9, "waiting", 63.9, "mi"), "62%  waiting  63 mi"),
        (Reading(99.99, "plugged in"), "99%  plugged in"),
        (Reading(100, "full", 0, "km"), "100%  full  0 km"),
        (Reading(0, "unplugged"), "0%  unplugged"),
        (Reading(5, "error", reported=minutes_ago(5)), "5%  error"),
        (Reading(5, "unknown", reported=minutes_ago(-30)), "5%  unknown"),
        (
            Reading(62, "charging", 101, "km", 140, minutes_ago(25)),
            "62%  charging  101 km  full about 21:15  (car last reported 25 min ago)",
        ),
        (
            Reading(62, "charging", None, None, 10, minutes_ago(25)),
            "62%  charging  (car last reported 25 min ago)",
        ),
        (
            Reading(62, "charging", reported=minutes_ago(5.02)),
            "62%  charging  (car last reported 5 min ago)",
        ),
    ],
)
@pytest.mark.usefixtures("amsterdam")
def test_the_line_of_the_log(car: Reading, line: str) -> None:
    assert i3charge.plain_line(car, NOW) == f"2026-11-22 19:20:11  {line}"


@pytest.mark.usefixtures("amsterdam")
def test_the_line_of_the_log_in_json() -> None:
    car = Reading(62.0, "charging", 101.0, "km", 140.0, minutes_ago(1))
    assert i3charge.json_line(car, NOW) == (
        '{"time": "2026-11-22T19:20:11+01:00", "charge": 62.0, "status": "charging",'
        ' "range": 101.0, "range_unit": "km", "minutes_to_full": 140.0,'
        ' "reported": "2026-11-22T18:19:11+00:00"}'
    )
    unknown = json.loads(i3charge.json_line(Reading(62.5, "unknown"), NOW))
    assert unknown == {
        "time": "2026-11-22T19:20:11+01:00",
        "charge": 62.5,
        "status": "unknown",
        **dict.fromkeys(["range", "range_unit", "minutes_to_full", "reported"]),
    }


@pytest.mark.parametrize(
    ("left", "reported", "words"),
    [
        (None, None, ""),
        (140, None, "full about 21:40"),
        (140, minutes_ago(20), "full about 21:20"),
        (140, minutes_ago(-20), "full about 21:40"),
        (0, None, "full about 19:20"),
        (10, minutes_ago(10.5), "full about 19:19"),
        (10, minutes_ago(11.5), ""),
        (10, minutes_ago(60 * 24 * 365), ""),
        (300, None, "full about 00:20"),
    ],
)
@pytest.mark.usefixtures("amsterdam")
def test_when_it_will_be_full(left: float | None, reported: datetime | None, words: str) -> None:
    car = Reading(62, "charging", minutes_to_full=left, reported=reported)
    assert car.full_about(NOW) == words


@pytest.mark.usefixtures("amsterdam")
def test_when_it_will_be_full_where_the_clock_is_put_back_before() -> None:
    now = datetime(2026, 10, 25, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    assert Reading(62, "charging", minutes_to_full=120).full_about(now) == "full about 02:30"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *[(0, "0 s"), (0.05, "0 s"), (60, "60 s"), (119, "119 s"), (120, "2 min")],
        *[(301, "5 min"), (25 * 60, "25 min"), (3600, "60 min"), (7199, "2 h"), (7200, "2 h")],
        *[(47 * 3600, "47 h"), (48 * 3600, "2 days"), (4 * 86400, "4 days")],
    ],
)
def test_a_duration(seconds: float, words: str) -> None:
    assert i3charge.duration(seconds) == words


@pytest.mark.parametrize(
    ("kind", "car", "message"),
    [
        ("step", Reading(67.5, "charging", minutes_to_full=140), "67% charged, full about 21:40"),
        ("step", Reading(67, "plugged in"), "67% charged"),
        ("full", Reading(100, "full"), "Fully charged. The charging station can be freed."),
        ("stopped", Reading(83.9, "error"), "Charging stopped at 83% (error)"),
        ("stopped", Reading(83, "plugged in"), "Charging stopped at 83% (plugged in)"),
    ],
)
@pytest.mark.usefixtures("amsterdam")
def test_the_words_of_a_notification(kind: i3charge.Kind, car: Reading, message: str) -> None:
    assert i3charge.announcement(kind, car, NOW) == message


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


def news(*readings: tuple[float, str]) -> list[str | None]:
    watch = ChargeWatch()
    return [watch.news(Reading(charge, word)) for charge, word in readings]  # type: ignore[arg-type]


def news_while_charging(*charges: float) -> list[str | None]:
    return news(*[(charge, "charging") for charge in charges])


@pytest.mark.parametrize("word", STATUSES)
@pytest.mark.parametrize("charge", [0, 62, 100])
def test_the_first_reading_is_no_news(charge: float, word: str) -> None:
    assert news((charge, word), (charge, word)) == [None, None]


def test_a_rise_of_5_is_a_step() -> None:
    assert news_while_charging(62, 66.9, 67, 71.9, 72) == [None, None, "step", None, "step"]
    assert news_while_charging(62, 66.999) == [None, None]
    assert news_while_charging(0.1, 5.1, 10.1, 15.1) == [None, "step", "step", "step"]
    assert news_while_charging(3.2, 8.2) == [None, "step"]


def test_a_jump_over_several_steps_is_one() -> None:
    assert news_while_charging(52, 90, 94.9, 95) == [None, "step", None, "step"]


def test_a_fall_lowers_the_baseline() -> None:
    assert news_while_charging(62, 60, 64.9, 65) == [None, None, None, "step"]
    assert news_while_charging(62, 67, 40, 44, 43, 45) == [None, "step", *[None] * 3, "step"]
    assert news((80, "unplugged"), (30, "unplugged"), (35, "charging")) == [None, None, "step"]


def test_full_is_told_once_a_charge() -> None:
    charge = [(99, "charging"), (100, "charging"), (100, "full"), (100, "full")]
    assert news(*charge) == [None, None, "full", None]
    again = [(96, "unplugged"), (96, "charging"), (100, "full"), (100, "full")]
    assert news(*charge, *again)[4:] == [None, None, "full", None]


def test_full_takes_the_place_of_a_step() -> None:
    assert news((90, "charging"), (100, "full"), (100, "full")) == [None, "full", None]


def test_full_counts_as_the_last_notification() -> None:
    readings = [(90, "charging"), (94, "full"), (94, "plugged in"), (98.9, "charging")]
    assert news(*readings) == [None, "full", None, None]


def test_a_car_that_was_full_at_the_start_is_no_news() -> None:
    assert news((100, "full"), (100, "unknown"), (100, "full")) == [None] * 3


@pytest.mark.parametrize("word", NOT_CHARGING)
def test_charging_that_stops_is_told_once(word: str) -> None:
    assert news((80, "charging"), (83, word), (83, word)) == [None, "stopped", None]
    assert news((80, "charging"), (89, word)) == [None, "stopped"]
    twice = [(83, "charging"), (83, word), (84, "charging"), (84, word)]
    assert news(*twice) == [None, "stopped", None, "stopped"]


def test_what_never_charged_does_not_stop() -> None:
    assert news((80, "plugged in"), (80, "unplugged"), (80, "waiting")) == [None] * 3


@pytest.mark.parametrize(
    ("word", "kind"), [("charging", None), ("full", "full"), ("waiting", "stopped")]
)
def test_unknown_is_no_evidence(word: str, kind: str | None) -> None:
    readings = [(80, "charging"), (81, "unknown"), (81, "unknown"), (82, word)]
    assert news(*readings) == [None, None, None, kind]


def test_unknown_between_two_full_readings_is_no_second_charge() -> None:
    readings = [(99, "charging"), (100, "full"), (100, "unknown"), (100, "full")]
    assert news(*readings) == [None, "full", None, None]


TENTHS = st.integers(0, 1000) | st.sampled_from([600, 649, 650, 651, 700, 1000])
HISTORIES = st.lists(st.tuples(TENTHS, st.sampled_from(STATUSES)), min_size=1, max_size=30)


def news_of(history: list[tuple[int, str]]) -> list[str | None]:
    return news(*[(tenths / 10, word) for tenths, word in history])


def naive_news(history: list[tuple[int, str]]) -> list[str | None]:
    """The rules as they are written down, looked up in the whole history every time."""
    told: list[str | None] = [None]
    for index in range(1, len(history)):
        tenths, word = history[index]
        known = ["nothing", *[w for _, w in history[:index] if w != "unknown"]]
        last_told = max([0, *[i for i, kind in enumerate(told) if kind]])
        lowest = min(t for t, _ in history[last_told:index])
        if word == "full" and known[-1] != "full":
            told.append("full")
        elif known[-1] == "charging" and word in NOT_CHARGING:
            told.append("stopped")
        else:
            told.append("step" if tenths - lowest >= 50 else None)
    return told


@given(HISTORIES)
def test_news_is_what_the_rules_say(history: list[tuple[int, str]]) -> None:
    assert news_of(history) == naive_news(history)


@given(HISTORIES)
def test_no_rise_of_5_goes_untold(history: list[tuple[int, str]]) -> None:
    lowest = history[0][0]
    for (tenths, _), kind in zip(history, news_of(history)):
        assert kind or tenths - lowest < 50
        assert kind != "step" or tenths - lowest >= 50
        lowest = tenths if kind else min(lowest, tenths)


@given(st.lists(TENTHS, min_size=1).map(sorted))
def test_steps_of_a_rising_charge_are_5_apart(charges: list[int]) -> None:
    kinds = news_of([(tenths, "charging") for tenths in charges])
    steps = [charges[0], *[tenths for tenths, kind in zip(charges, kinds) if kind]]
    assert set(kinds) <= {None, "step"}
    assert all(later - earlier >= 50 for earlier, later in zip(steps, steps[1:]))
    assert charges[-1] - steps[-1] < 50


@given(HISTORIES)
def test_full_and_stopped_are_told_exactly_once_a_charge(history: list[tuple[int, str]]) -> None:
    pairs = list(zip(history, news_of(history)))
    known = [(word, kind) for (_, word), kind in pairs if word != "unknown"]
    assert all(kind in (None, "step") for (_, word), kind in pairs if word == "unknown")
    for (before, _), (word, kind) in zip(known, known[1:]):
        assert (kind == "full") == (word == "full" != before)
        assert (kind == "stopped") == (before == "charging" and word in NOT_CHARGING)


# --- How long to wait -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now_s", "next_s"),
    [(100, 160), (100.1, 160), (159.9, 160), (160, 220), (399, 400), (401, 460)],
)
def test_the_next_tick(now_s: float, next_s: float) -> None:
    assert i3charge.next_tick_s(now_s, 100, 60) == next_s


@given(
    st.floats(0, 1e8),
    st.floats(0, 1e7),
    st.integers(10_000, 99_999_999).map(lambda ms: ms / 1000),
)
def test_the_next_tick_comes_soon_and_is_one(
    first_s: float, passed_s: float, interval_s: float
) -> None:
    now_s = first_s + passed_s
    next_s = i3charge.next_tick_s(now_s, first_s, interval_s)
    assert now_s < next_s <= now_s + interval_s * (1 + 1e-6)
    ticks = (next_s - first_s) / interval_s
    assert ticks == pytest.approx(round(ticks), abs=1e-6)
    assert round(ticks) >= 1


def test_there_is_no_drift() -> None:
    first_s, tick_s = 1234.5678, 1234.5678
    for n in range(1, 20_000):
        tick_s = i3charge.next_tick_s(tick_s, first_s, 0.3)
        assert tick_s == pytest.approx(first_s + n * 0.3, abs=1e-4)


@pytest.mark.parametrize(
    ("failures", "interval_s", "wait_s"),
    [
        *[(1, 60, 60), (2, 60, 120), (3, 60, 240), (4, 60, 300), (50, 60, 300), (10**6, 60, 300)],
        *[(1, 600, 600), (2, 600, 600), (10**6, 600, 600), (1, 10, 10), (5, 10, 160), (6, 10, 300)],
        *[(1, 0.05, 0.05), (4, 0.05, 0.4), (10**9, 0.001, 300)],
    ],
)
def test_the_wait_after_failures(failures: int, interval_s: float, wait_s: float) -> None:
    assert i3charge.backoff_s(failures, interval_s, 0) == pytest.approx(wait_s)


@given(st.integers(1, 10**12), st.floats(0.001, 1e5), st.floats(0, 3600))
def test_the_wait_after_failures_is_bounded(
    failures: int, interval_s: float, retry_after_s: float
) -> None:
    wait_s = i3charge.backoff_s(failures, interval_s, retry_after_s)
    assert wait_s >= max(interval_s, retry_after_s)
    assert wait_s <= max(300, interval_s, retry_after_s)
    assert wait_s <= i3charge.backoff_s(failures + 1, interval_s, retry_after_s)


def retry_after_s(value: str) -> float:
    return Answer("status", "host", 429, {"Retry-After": value}, b"").failure().retry_after_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *[("0", 0), ("1", 1), ("120", 120), ("3600", 3600), ("3601", 3600), ("9" * 9, 3600)],
        *[("9" * 11, 3600), ("9" * 400, 3600), ("-1", 0), ("-120", 0), ("", 0), ("soon", 0)],
        *[("1e3", 0), ("NaN", 0), ("inf", 0), ("\u0661\u0662\u0660", 0), ("1.5.2", 0)],
        *[("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Fri, 31 Dec 9999 23:59:59 GMT", 3600)],
        *[("Wed, 99 Oct 2015 07:28:00 GMT", 0)],
    ],
)
def test_retry_after(value: str, seconds: float) -> None:
    assert retry_after_s(value) == seconds


def test_retry_after_as_a_date() -> None:
    value = email.utils.formatdate(time.time() + 600, usegmt=True)
    assert retry_after_s(value) == pytest.approx(600, abs=5)


def test_no_retry_after() -> None:
    assert Answer("status", "host", 500, {}, b"").failure().retry_after_s == 0


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ [A-Z+\-0-9]*"))
def test_any_retry_after_is_kept_within_an_hour(value: str) -> None:
    assert 0 <= retry_after_s(value) <= 3600
