"""The ConnectedDrive portal: the login, the access token's life, and what the car says."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta, timezone
from itertools import product
from typing import Any, get_args
from urllib.parse import parse_qs, quote

import hypothesis
import pytest
from fake_bmw import PASSWORD, REDIRECT_URI, USERNAME, Answer, Handler, Portal, car, full_car, says
from hypothesis import strategies as st

import i3charge
from i3charge import CannotGoOn, Memory, Reading, Report, Trouble

Door = i3charge.Portal
TOKEN = "secret+token/9="
NOW = datetime(2018, 2, 27, 20, 0, tzinfo=timezone.utc)  # 21:00 in Amsterdam
NOW_S = NOW.timestamp()


def door_to(portal: Portal, **variables: str) -> Door:
    settings = i3charge.load_settings({**portal.settings(), **variables}, "portal", "")
    return Door(settings)


def percent_in(report: Report) -> Any:
    return {each.topic: each.value for each in report.observations}["percent"]


@pytest.fixture
def door(portal: Portal) -> Door:
    return door_to(portal)


def redirect(location: str) -> Answer:
    """A login that answers with this `location`; {state} and {token} are filled in."""

    def answer(handler: Handler) -> None:
        assert isinstance(handler.server, Portal)
        handler.server.tokens.append(TOKEN)
        state = parse_qs(handler.body.decode())["state"][0]
        text = location.replace("{state}", state).replace("{token}", quote(TOKEN, safe=""))
        handler.reply(302, Location=text)

    return answer


# --- The login ------------------------------------------------------------------------


def test_one_login_serves_until_a_401(portal: Portal, door: Door) -> None:
    portal.readings = [car("61"), car("62"), portal.expire_token, car("63"), car("64")]
    assert [percent_in(door.poll()) for _ in range(4)] == [61, 62, 63, 64]
    first, second = [login.form["state"] for login in portal.logins_seen()]
    assert first != second and len(first) >= 16


@pytest.mark.parametrize(
    "fields", [f"#access_token={TOKEN}", "?state={state}#access_token={token}"]
)
def test_token_is_found_in_the_redirect(portal: Portal, door: Door, fields: str) -> None:
    portal.logins = [redirect(REDIRECT_URI + fields)]
    door.poll()
    assert portal.polls_seen()[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_address_that_the_login_leads_back_to_may_be_another_one(portal: Portal) -> None:
    here = portal.url + "landing"
    portal.logins = [redirect(here + "#state={state}&access_token={token}")]
    door_to(portal, AUTH_REDIRECT_URI=here).poll()
    assert portal.logins_seen()[0].form["redirect_uri"] == here


NO_TOKEN = "login with a redirect that holds no token"


@pytest.mark.parametrize(
    ("login", "said"),
    [
        (redirect("https://evil.example/external-dispatch.html#access_token={token}"), NO_TOKEN),
        (redirect(REDIRECT_URI + "#access_token={token}&state=other"), NO_TOKEN),
        (redirect(REDIRECT_URI + "#access_token=secret%0d%0aX:%20y"), NO_TOKEN),
        (says(429), "HTTP 429"),
    ],
)
def test_useless_answer_to_a_login_is_no_refusal(
    portal: Portal, door: Door, login: Answer, said: str
) -> None:
    portal.logins = [login, None]
    with pytest.raises(Trouble, match=said):
        door.poll()
    assert portal.polls_seen() == []
    assert percent_in(door.poll()) == 62


SECRETS = quote(f"no {PASSWORD} for {USERNAME.upper()}\033[2J")
REFUSALS = {
    "access_denied": redirect(REDIRECT_URI + "#error=access_denied&state={state}"),
    "no *** for ***?[2J": redirect(f"{REDIRECT_URI}?error={SECRETS}"),
    "invalid_grant": says(400, {"error": "invalid_grant"}),
    "HTTP 401": says(401, {"error": {"code": 4}}),
    "HTTP 403": says(403, "<html>No</html>"),
}


@pytest.mark.parametrize("said", REFUSALS)
def test_program_ends_if_a_first_login_is_refused(portal: Portal, door: Door, said: str) -> None:
    portal.logins = [REFUSALS[said]]
    with pytest.raises(CannotGoOn) as raised:
        door.poll()
    advice = "check USERNAME, PASSWORD, AUTH_CLIENT_ID"
    assert raised.value.lines == (f"BMW refuses the login ({said}): {advice}",)
    assert raised.value.exit_status == 1
    assert portal.polls_seen() == []


def test_login_that_has_worked_is_tried_three_times(portal: Portal, door: Door) -> None:
    door.poll()
    portal.logins = [says(401)]
    portal.readings = [portal.expire_token]
    for _ in range(2):
        with pytest.raises(Trouble):
            door.poll()
    with pytest.raises(CannotGoOn):
        door.poll()


@pytest.mark.parametrize(("interval_ms", "wait_s"), [("50", 600), ("7200000", 7200)])
def test_new_token_that_is_also_refused_means_a_long_pause(
    portal: Portal, interval_ms: str, wait_s: float
) -> None:
    portal.readings = [portal.expire_token]
    with pytest.raises(Trouble, match="does not accept the access token") as raised:
        door_to(portal, LOG_INTERVAL=interval_ms).poll()
    assert raised.value.wait_s == wait_s
    assert len(portal.logins_seen()) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says(403), r"does not show this car \(HTTP 403\); check VEHICLE_ID"),
        (says(404), r"does not show this car \(HTTP 404\); check VEHICLE_ID"),
        (says(200, {"attributesMap": []}), "gave no useful answer"),
        (says(202, car()), "gave no useful answer"),
    ],
)
def test_useless_answer_is_trouble(portal: Portal, door: Door, answer: Answer, said: str) -> None:
    portal.readings = [answer]
    with pytest.raises(Trouble, match=said):
        door.poll()


# --- What the car says ----------------------------------------------------------------


def stamp(when: datetime) -> str:
    return f"{when:%d.%m.%Y %H:%M:%S} UTC"


class Played:
    """What an owner sees and hears of reports, one after the other."""

    def __init__(self) -> None:
        self.watch = i3charge.ChargeWatch(Memory(), 0, 60)
        self.told: list[tuple[i3charge.Kind, str]] = []

    def show(self, answer: dict[str, Any], now: datetime) -> Reading:
        report = i3charge.portal_report_in(answer["attributesMap"], now.timestamp())
        _, reading, news = self.watch.observe(report)
        self.told += [(each.kind, each.message) for each in news if each.kind != "step"]
        return reading


@pytest.mark.parametrize(("unit", "shown"), [("km", "km"), ("mls", "mi")])
def test_car_that_still_charges_at_100_percent(unit: str, shown: str) -> None:
    updated = "27.02.2018 19:35:01 UTC"
    of_car = {"chargingTimeRemaining": "10.0", "beRemainingRangeElectric": "32.0"}
    answer = car("100.0", unitOfLength=unit, updateTime=updated, **of_car)
    found = Played().show(answer, NOW)
    assert (found.percent_text, found.status, found.plugged) == ("100%", "charging", True)
    assert (found.range, found.range_unit) == (32, shown)
    assert found.reported_s == NOW_S - 24 * 60 - 59
    assert found.full_at_s == found.reported_s + 600


@pytest.mark.parametrize(
    ("attributes", "status"),
    [
        ({"chargingHVStatus": "CHARGING"}, "charging"),
        ({"chargingHVStatus": "FINISHED_FULLY_CHARGED"}, "plugged in"),  # its goal was 62 %
        ({"charging_status": "CHARGINGACTIVE", "chargingHVStatus": "NOT_CHARGING"}, "charging"),
        ({"charging_status": "NOCHARGING", "chargingHVStatus": "INVALID"}, "plugged in"),
        ({"charging_status": "NOCHARGING", "connectorStatus": None}, "not charging"),
        ({"charging_status": "CHARGINGACTIVE", "connectorStatus": "DISCONNECTED"}, "unplugged"),
        ({"connectorStatus": "DISCONNECTED", "chargingLevelHv": "100.0"}, "full"),
        ({"connectorStatus": None}, "unknown"),
    ],
)
def test_keywords_of_the_portal(attributes: dict[str, Any], status: str) -> None:
    of_car = {"chargingLevelHv": "62.0", "connectorStatus": "CONNECTED", **attributes}
    assert Played().show({"attributesMap": of_car}, NOW).status == status


def test_minutes_count_from_the_time_of_a_report_that_is_25_minutes_old() -> None:
    played = Played()
    for minute in range(120):  # it begins in the 10th, and is full in the 100th
        at = NOW + timedelta(minutes=minute)
        answer = car(f"{10 + minute * 0.9:.1f}", chargingTimeRemaining=f"{100 - minute}")
        if minute < 10:
            answer = car("19.0", charging_status="NOCHARGING", chargingTimeRemaining=None)
        if minute >= 100:
            answer = full_car()
        answer["attributesMap"]["updateTime"] = stamp(at)
        found = played.show(answer, at + timedelta(minutes=25))
        assert i3charge.text_line(found, "%H:%M").endswith("  car: 25 min ago")
        assert not found.predicted
        assert found.full_at_s == (NOW_S + 100 * 60 if 10 <= minute < 100 else 0)
    assert played.told == [
        ("started", "Charging from 19%, full about 22:40"),
        ("soon", "Full in about 10 min, at 22:40"),
        ("full", "Fully charged: 19 → 100% in 1 h 30 min."),
    ]


def test_report_that_is_repeated_grows_old() -> None:
    played = Played()
    answer = car("62.0", chargingTimeRemaining="90", updateTime=stamp(NOW))
    for minute in range(25, 75):
        found = played.show(answer, NOW + timedelta(minutes=minute))
        line = i3charge.text_line(found, "%H:%M")
        age = f"{minute} min" if minute < 60 else i3charge.duration(minute * 60)
        assert line.endswith(f" 62%  charging    101 km  full 22:30  car: {age} ago")
    assert played.told == []


def test_each_new_report_is_no_other_plug() -> None:
    """The plug and the status have no times of their own."""
    played = Played()
    for minute in range(0, 400, 40):
        at = NOW + timedelta(minutes=minute)
        answer = full_car(chargingTimeRemaining="0.0", updateTime=stamp(at))
        assert played.show(answer, at).status == "full"
    assert played.told == [("still", "Full since 21:00, and still plugged in")]


# --- Values of any kind ---------------------------------------------------------------

NAMES = sorted(car()["attributesMap"])
# What is no value of any attribute: of a wrong type, out of range, or not a word of BMW's.
JUNK: list[Any] = [None, True, [1], {"a": 1}, -0.1, 1e300, 10**30, float("inf"), float("nan")]
JUNK += ["", "INVALID", "-1", "1e1", "٣", "9" * 5000, "99.99.9999 99:99:99 UTC", "\ud800"]
WORDS = [*i3charge.STATUS_OF_WORD, "CONNECTED", "DISCONNECTED", "62.0", "100.0", "km", "mls"]
STAMPS = ["27.02.2018 19:59:03 UTC", "01.01.0001 00:00:00 UTC", "31.12.9999 23:59:59 UTC"]
ANSWERS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(JUNK + WORDS + STAMPS))


def test_bad_value_is_left_out_and_the_rest_counts() -> None:
    whole = car(charging_status="CHARGINGPAUSED", updateTime=stamp(NOW))["attributesMap"]
    for name, value in product(NAMES, JUNK):
        without = {each: whole[each] for each in whole if each != name}
        expected = i3charge.portal_report_in(without, NOW_S)
        if name == "unitOfLength" and isinstance(value, str) and value:
            expected = dataclasses.replace(expected, range=None)  # of an unknown unit
        assert i3charge.portal_report_in({**whole, name: value}, NOW_S) == expected


@hypothesis.given(st.lists(ANSWERS, max_size=4))
def test_any_answers_are_sane_readings_or_a_trouble(answers: list[dict[str, Any]]) -> None:
    played = Played()
    for minute, attributes in enumerate(answers):
        try:
            found = played.show({"attributesMap": attributes}, NOW + timedelta(minutes=minute))
        except Trouble as trouble:
            assert "contains no valid charge" in str(trouble)
            continue
        assert 0 <= found.percent <= 100
        assert found.status in get_args(i3charge.Status)
        assert i3charge.text_line(found, "%H:%M").isprintable()
        json.loads(i3charge.json_line(found))
