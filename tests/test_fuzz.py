"""Whatever comes in, there is a reading or one of our own errors, and nothing else.

Many more examples: --hypothesis-profile=long
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from fake_bmw import REDIRECT_URI, Handler, Portal
from hypothesis import given
from hypothesis import strategies as st

import i3charge
from i3charge import Answer, CarData, Http, Reading, Settings, SignInFailed, TryAgain

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
numbers = st.sampled_from(["62.0", "100", "-1", "101", "NaN", "1e999", "", "0", "62,0", "٦٢"])
times = st.sampled_from(
    ["27.02.2018 19:59:03 UTC", "2026-08-18T14:16:36.000Z", "31.02.2018", "9999-12-31T23:59:59Z"]
)
words = st.sampled_from([*i3charge.STATUS_WORDS, *i3charge.PLUG_WORDS, "INVALID", "NEW"])
values = numbers | times | words | json_values

portal_bodies = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        (
            "chargingLevelHv",
            "chargingHVStatus",
            "charging_status",
            "chargingSystemStatus",
            "connectorStatus",
            "chargingTimeRemaining",
            "beRemainingRangeElectric",
            "beRemainingRangeElectricKm",
            "unitOfLength",
            "updateTime",
        ),
        values,
    ),
).map(lambda car: {"attributesMap": car})
entries = st.fixed_dictionaries({}, optional={"value": values, "unit": values, "timestamp": values})
telematic_bodies = st.dictionaries(
    st.sampled_from(CarData.CONTAINER["technicalDescriptors"]), entries | values
).map(lambda data: {"telematicData": data})


def answer(body: bytes, status: int = 200, **headers: str) -> Answer:
    return Answer("it", "host", status, headers, body)


def reading_or_try_again(door: type[Any], body: bytes, status: int = 200) -> None:
    try:
        reading = door._reading(answer(body, status))
    except TryAgain as problem:
        assert str(problem).isprintable()
        return
    assert isinstance(reading, Reading)
    assert 0 <= reading.charge <= 100
    assert reading.minutes_to_full is None or reading.status == "charging"
    now = i3charge.local_time()
    assert i3charge.plain_line(reading, now).isprintable()
    json.loads(i3charge.json_line(reading, now))


@given(body=portal_bodies | json_values)
def test_any_json_from_the_portal(body: Any) -> None:
    reading_or_try_again(i3charge.Portal, json.dumps(body).encode())


@given(body=telematic_bodies | json_values)
def test_any_json_from_cardata(body: Any) -> None:
    reading_or_try_again(CarData, json.dumps(body).encode())


@pytest.mark.parametrize("door", [i3charge.Portal, CarData])
@given(body=st.binary(), status=st.integers(200, 599))
def test_any_bytes(door: type[Any], body: bytes, status: int) -> None:
    reading_or_try_again(door, body, status)


class OneAnswer:
    """In the place of Http: the same answer to whatever is asked; {state} is filled in."""

    def __init__(self, status: int, body: bytes = b"", location: str = "") -> None:
        self._answer = (status, body, location)

    def send(self, what: str, method: str, url: str, **options: Any) -> Answer:
        status, body, location = self._answer
        location = location.replace("{state}", options.get("data", {}).get("state", ""))
        return answer(body, status, Location=location)


def portal_door(http: Any) -> i3charge.Portal:
    variables = {
        "USERNAME": "owner@example.com",
        "PASSWORD": "password",
        "AUTH_CLIENT_ID": "client",
        "VEHICLE_IDENTIFICATION_NUMBER": "WBY1Z21040V307905",
    }
    settings = Settings(variables)
    door = i3charge.Portal(settings, http)
    settings.check()
    return door


pieces = (
    *("#", "?", "&", "=", "%", "%00", "%0a", "[", "]", "//", "@", ":", "+", "\x80", "\xff"),
    *("access_token", "state", "error", "access_denied", "{state}", "secret", REDIRECT_URI),
)
fragments = st.lists(st.sampled_from(pieces), max_size=14).map("".join)
locations = (
    fragments.map(lambda text: REDIRECT_URI + text)
    | fragments
    | st.text(st.characters(max_codepoint=255))
)


@given(location=locations, body=st.binary(), status=st.sampled_from([302, 303, 307, 200, 400, 401]))
def test_any_answer_to_the_login(location: str, body: bytes, status: int) -> None:
    try:
        reading = portal_door(OneAnswer(status, body, location)).read()
    except (TryAgain, SignInFailed) as problem:
        assert str(problem).isprintable()
    else:
        assert isinstance(reading, Reading)


@pytest.fixture(scope="module")
def server() -> Iterator[Portal]:
    server = Portal()
    yield server
    server.close()


@given(location=locations.filter(lambda text: not set("\r\n") & set(text)))
def test_any_location_on_the_wire(server: Portal, location: str) -> None:
    def redirect(handler: Handler) -> None:
        state = parse_qs(handler.body.decode())["state"][0]
        handler.reply(302, Location=location.replace("{state}", state))

    server.logins = [redirect]
    variables = {**server.settings(), "LOG_INTERVAL": "50"}
    try:
        i3charge.Portal(Settings(variables), HTTP).read()
    except (TryAgain, SignInFailed) as problem:
        assert str(problem).isprintable()


HTTP = Http()
FOLDER = tempfile.TemporaryDirectory()


@given(kept=st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_store_of_cardata(kept: bytes) -> None:
    path = Path(FOLDER.name, ".cardata.json")
    path.write_bytes(kept)
    store = i3charge.CarDataFile(path, "client")
    assert store.refresh_token == "" and store.requests_s == []


sign_in_bodies = st.dictionaries(
    st.sampled_from(["device_code", "user_code", "verification_uri", "interval", "error"]),
    st.sampled_from(["slow_down", "expired_token", "5", "", "https://x/\x1b"]) | json_values,
)


@given(
    body=st.binary() | (sign_in_bodies | json_values).map(lambda value: json.dumps(value).encode()),
    status=st.sampled_from([200, 400, 401, 403, 500]),
)
def test_any_answer_to_a_sign_in_at_cardata(status: int, body: bytes) -> None:
    variables = {
        "CARDATA_CLIENT_ID": "client",
        "VEHICLE_IDENTIFICATION_NUMBER": "WBY1Z21040V307905",
    }
    settings = Settings(variables, Path(FOLDER.name, "nothing-kept"))
    door = CarData(settings, OneAnswer(status, body))  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises((TryAgain, SignInFailed, i3charge.NotYet)):
            door.read()
