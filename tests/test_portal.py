"""The ConnectedDrive portal: the login, the access token's life, and what the car says."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs, quote

import pytest
from conftest import Start
from fake_bmw import CLIENT_ID, PASSWORD, REDIRECT_URI, USERNAME, VIN, Answer, Handler, Portal, car

import i3charge
from i3charge import NoReading, Reading, SignInRefused

TOKEN = "secret+token/9="
NOW = datetime(2018, 2, 27, 20, 0, tzinfo=timezone.utc)


def door_to(portal: Portal, **variables: str) -> i3charge.Portal:
    settings = i3charge.load_settings({**portal.settings(), **variables}, [], "")
    return i3charge.Portal(settings)


@pytest.fixture
def door(portal: Portal) -> i3charge.Portal:
    return door_to(portal)


def redirect(portal: Portal, location: str) -> Answer:
    """A login that answers with this `location`; {state} and {token} are filled in."""

    def answer(handler: Handler) -> None:
        portal.tokens.append(TOKEN)
        state = parse_qs(handler.body.decode())["state"][0]
        text = location.replace("{state}", state).replace("{token}", quote(TOKEN, safe=""))
        handler.reply(302, Location=text)

    return answer


def refuse(handler: Handler) -> None:
    handler.reply(401, {"error": "invalid_client"})


# --- The login ------------------------------------------------------------------------


def test_login_sends_the_form_of_the_web_app(portal: Portal, door: i3charge.Portal) -> None:
    door.poll()
    (login,) = portal.logins_seen()
    form = login.form
    assert len(form.pop("state")) >= 16
    assert form == {
        "username": USERNAME,
        "password": PASSWORD,
        "client_id": CLIENT_ID,
        "redirect_uri": REDIRECT_URI,
        "response_type": "token",
        "scope": "authenticate_user fupo",
    }


@pytest.mark.parametrize(
    "fields",
    [
        "#state={state}&access_token={token}&token_type=Bearer&expires_in=7199",
        "#access_token={token}&expires_in=7199&token_type=Bearer&state={state}",
        f"#access_token={TOKEN}",
        "?state={state}#access_token={token}",
    ],
    ids=["as-the-web-app", "another-order", "not-encoded", "state-in-query"],
)
def test_token_is_found_in_the_redirect(portal: Portal, door: i3charge.Portal, fields: str) -> None:
    portal.logins = [redirect(portal, REDIRECT_URI + fields)]
    door.poll()
    assert portal.polls_seen()[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_redirect_is_not_followed(portal: Portal) -> None:
    here = portal.url + "landing"
    portal.logins = [redirect(portal, here + "#state={state}&access_token={token}")]
    door_to(portal, AUTH_REDIRECT_URI=here).poll()
    assert portal.logins_seen()[0].form["redirect_uri"] == here
    assert [r.path for r in portal.polls_seen()] == [f"/api/vehicle/dynamic/v1/{VIN}"]


USELESS: dict[str, Any] = {
    "wrong-address": "https://evil.example/external-dispatch.html#access_token={token}",
    "wrong-state": REDIRECT_URI + "#access_token={token}&state=other",
    "empty-token": REDIRECT_URI + "#state={state}&access_token=",
    "token-with-line-break": REDIRECT_URI + "#access_token=secret%0d%0aX:%20y",
    "no-location": "",
    "too-many-logins": lambda handler: handler.reply(429),
    "gateway": lambda handler: handler.reply(503, {"error": "busy"}),
}


@pytest.mark.parametrize("login", USELESS.values(), ids=USELESS.keys())
def test_useless_answer_to_a_login_is_no_refusal(
    portal: Portal, door: i3charge.Portal, login: Any
) -> None:
    portal.logins = [redirect(portal, login) if isinstance(login, str) else login, None]
    said = "login with a redirect that holds no token" if isinstance(login, str) else "HTTP"
    with pytest.raises(NoReading, match=said):
        door.poll()
    assert portal.polls_seen() == []
    assert door.poll().charge == 62


REFUSALS: dict[str, tuple[str, Any]] = {
    "error-in-query": ("access_denied", f"{REDIRECT_URI}?error=access_denied"),
    "error-in-fragment": ("access_denied", REDIRECT_URI + "#error=access_denied&state={state}"),
    "400": ("invalid_grant", lambda h: h.reply(400, {"error": "invalid_grant"})),
    "401": ("invalid_client", refuse),
    "403-page": ("HTTP 403", lambda h: h.reply(403, "<html>No</html>")),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_first_login_that_is_refused_is_the_last(
    portal: Portal, door: i3charge.Portal, name: str
) -> None:
    said, login = REFUSALS[name]
    portal.logins = [redirect(portal, login) if isinstance(login, str) else login]
    with pytest.raises(SignInRefused, match=rf"refuses the login \({said}\): check USERNAME"):
        door.poll()


def test_refused_login_ends_the_program_and_its_words_are_harmless(
    portal: Portal, start: Start
) -> None:
    error = quote(f"no {PASSWORD} for {USERNAME.upper()}\033[2J")
    portal.logins = [redirect(portal, f"{REDIRECT_URI}?error={error}")]
    script = start(settings=portal.settings())
    assert script.end() == 1
    assert script.stderr_with("BMW refuses the login (no *** for ***?[2J): check USERNAME")
    assert len(portal.logins_seen()) == 1


def test_third_refusal_in_a_row_is_the_last_of_a_login_that_has_worked(
    portal: Portal, door: i3charge.Portal
) -> None:
    door.poll()
    portal.logins = [refuse]
    portal.readings = [portal.expire_token]
    for _ in range(2):
        with pytest.raises(NoReading):
            door.poll()
    with pytest.raises(SignInRefused):
        door.poll()


def test_one_login_serves_until_a_401(portal: Portal, door: i3charge.Portal) -> None:
    portal.readings = [car("61"), car("62"), portal.expire_token, car("63"), car("64")]
    assert [door.poll().charge for _ in range(4)] == [61, 62, 63, 64]
    assert len(portal.logins_seen()) == 2


@pytest.mark.parametrize(("interval_ms", "wait_s"), [("50", 600), ("7200000", 7200)])
def test_new_token_that_is_refused_too_means_a_long_pause(
    portal: Portal, interval_ms: str, wait_s: float
) -> None:
    portal.readings = [portal.expire_token]
    with pytest.raises(NoReading, match="does not accept the access token") as raised:
        door_to(portal, LOG_INTERVAL=interval_ms).poll()
    assert raised.value.wait_s == wait_s
    assert len(portal.logins_seen()) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda h: h.reply(403), r"does not show this car \(HTTP 403\); check VEHICLE_ID"),
        (lambda h: h.reply(404), r"does not show this car \(HTTP 404\); check VEHICLE_ID"),
        (lambda h: h.reply(503, "<html>"), "127.0.0.1 is out of order .* the car's status"),
        (lambda h: h.reply(200, {"attributesMap": []}), "holds no charge"),
        (lambda h: h.reply(200, car(None, soc_hv_percent="57.1")), "holds no charge"),
        (lambda h: h.reply(200, car("150.0")), "holds no charge"),
    ],
)
def test_answer_of_no_use_is_no_reading(
    portal: Portal, door: i3charge.Portal, answer: Answer, said: str
) -> None:
    portal.readings = [answer]
    with pytest.raises(NoReading, match=said):
        door.poll()


# --- What the car says ----------------------------------------------------------------


def reading(charge: str, **attributes: str) -> Reading:
    door = i3charge.Portal(i3charge.Settings())
    found = door.reading_in({"chargingLevelHv": charge, **attributes}, NOW.timestamp())
    assert found
    return i3charge.held(found, None, i3charge.ChargingSession())


def test_recorded_car_that_charges_at_100_percent() -> None:
    reported_s = datetime(2018, 2, 26, 7, 19, 59, tzinfo=timezone.utc).timestamp()
    found = reading(
        "100.0",
        soc_hv_percent="93.8",
        chargingHVStatus="CHARGING",
        charging_status="CHARGINGACTIVE",
        chargingSystemStatus="CHARGINGACTIVE",
        connectorStatus="CONNECTED",
        chargingTimeRemaining="10.0",
        beRemainingRangeElectric="32.0",
        unitOfLength="km",
        updateTime="26.02.2018 07:19:59 UTC",
    )
    assert (found.percent, found.status, found.plugged) == ("100%", "charging", True)
    assert (found.range, found.range_unit, found.reported_s) == (32, "km", reported_s)
    assert found.full_at_s == reported_s + 600
    assert (found.status_s, found.plugged_s) == (0, 0)  # or each report were another plug


@pytest.mark.parametrize(("charge", "status"), [("100.0", "full"), ("80.0", "unplugged")])
def test_recorded_car_that_is_unplugged(charge: str, status: str) -> None:
    found = reading(
        charge,
        soc_hv_percent="95.1",
        chargingHVStatus="INVALID",
        charging_status="NOCHARGING",
        connectorStatus="DISCONNECTED",
        beRemainingRangeElectric="127.0",
        unitOfLength="km",
        updateTime="27.02.2018 19:59:03 UTC",
    )
    assert (found.status, found.plugged, found.full_at_s) == (status, False, 0)


@pytest.mark.parametrize(
    ("attributes", "status"),
    [
        ({"chargingHVStatus": "CHARGING"}, "charging"),
        ({"chargingHVStatus": "NOT_CHARGING"}, "plugged in"),
        ({"chargingHVStatus": "FINISHED_NOT_FULL"}, "plugged in"),
        ({"chargingHVStatus": "FINISHED_FULLY_CHARGED"}, "plugged in"),  # its goal was 62 %
        ({"chargingHVStatus": "FINISHED_FULLY_CHARGED", "chargingLevelHv": "100.0"}, "full"),
        ({"chargingHVStatus": "WAITING_FOR_CHARGING"}, "waiting"),
        ({"chargingHVStatus": "ERROR"}, "error"),
        ({"charging_status": "CHARGINGACTIVE"}, "charging"),
        ({"charging_status": "NOCHARGING", "chargingHVStatus": "INVALID"}, "plugged in"),
        ({"charging_status": "CHARGINGACTIVE", "connectorStatus": "DISCONNECTED"}, "unplugged"),
        ({}, "unknown"),
    ],
)
def test_words_of_the_portal(attributes: dict[str, str], status: str) -> None:
    assert reading("62.0", **{"connectorStatus": "CONNECTED", **attributes}).status == status


def test_charge_is_shown_as_it_is_however_old() -> None:
    found = reading(
        "62.0",
        charging_status="CHARGINGACTIVE",
        chargingTimeRemaining="90.0",
        updateTime="27.02.2018 19:00:00 UTC",
    )
    assert (found.percent, found.full_at_s) == ("62%", NOW.timestamp() + 1800)


@pytest.mark.parametrize("unit", ["mls", "km"])
def test_range_is_in_the_owners_unit(unit: str) -> None:
    found = reading("62.0", beRemainingRangeElectric="63.0", unitOfLength=unit)
    assert (found.range, found.range_unit) == (63, unit.replace("mls", "mi"))
