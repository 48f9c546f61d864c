"""Whatever comes in, there is a reading or one of our own errors, and nothing else.

Many more examples: --hypothesis-profile=long
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fake_bmw import REDIRECT_URI, VIN, Handler, Portal
from hypothesis import example, given
from hypothesis import strategies as st

import i3charge
from i3charge import Answer, CarData, Http, Reading, Settings, SignInFailed, Store, TryAgain

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
numbers = st.sampled_from(["62.0", "100", "0", "5", "-1", "101", "NaN", "1e999", "", "62,0", "٦٢"])
offsets = st.sampled_from(["Z", "", "+14:00", "-14:00", "+23:59", "+99:99", "z", " UTC"])
extremes = st.sampled_from([datetime.min, datetime.max])
times = (
    st.builds("{:%Y-%m-%dT%H:%M:%S.%f}{}".format, st.datetimes() | extremes, offsets)
    | st.builds("{:%d.%m.%Y %H:%M:%S} UTC".format, st.datetimes() | extremes)
    | st.integers(-600, 600).map(lambda n: f"{datetime.now(timezone.utc) + timedelta(minutes=n)}")
    | st.sampled_from(["31.02.2018 00:00:00 UTC", "0001-01-01T00:00:00+14:00", "T", "2026-W01"])
)
words = st.sampled_from([*i3charge.STATUS_WORDS, *i3charge.PLUG_WORDS, "NEW", "km", "mi", "mls"])
values = numbers | times | words | json_values

PORTAL_FIELDS = """chargingLevelHv chargingHVStatus charging_status chargingSystemStatus
    connectorStatus chargingTimeRemaining beRemainingRangeElectric beRemainingRangeElectricKm
    unitOfLength updateTime""".split()
portal_cars = st.fixed_dictionaries(
    {"chargingLevelHv": values}, optional=dict.fromkeys(PORTAL_FIELDS[1:], values)
) | st.fixed_dictionaries(
    {
        "chargingLevelHv": numbers,
        "chargingHVStatus": st.just("CHARGING"),
        "chargingTimeRemaining": numbers,
        "updateTime": times,
    }
)
entries = st.fixed_dictionaries({}, optional={"value": values, "unit": values, "timestamp": values})
stamped_numbers = st.fixed_dictionaries({"value": numbers, "timestamp": times})
telematic_data = st.dictionaries(
    st.sampled_from((*CarData.DESCRIPTORS, CarData.PREDICTED)), entries | values
) | st.fixed_dictionaries(
    {
        CarData.HEADER: stamped_numbers,
        CarData.STATUS: times.map(lambda time: {"value": "CHARGINGACTIVE", "timestamp": time}),
        CarData.TO_FULL: stamped_numbers,
        CarData.REMAINING: stamped_numbers,
    }
)


# --- What a car says ------------------------------------------------------------------------


def take(reader: Any, cars: list[Any]) -> None:
    """Read what they say, one after the other, and let it be told."""
    watch, now = i3charge.ChargeWatch(80), i3charge.local_time()
    for car in cars:
        try:
            reading = reader(i3charge.mapping(car), now)
        except TryAgain as problem:
            assert str(problem).isprintable()
            continue
        assert 0 <= reading.charge <= 100
        assert reading.full_at is None or reading.status == "charging"
        assert i3charge.plain_line(reading, now).isprintable()
        assert i3charge.terminal_line(reading, now, "").isprintable()
        json.loads(i3charge.json_line(reading, now), parse_constant=pytest.fail)
        assert all(message.isprintable() for _, message in watch.news(reading, now))
        assert 600 <= watch.next_poll_s(reading, now, 2400) <= 2400
        now += timedelta(minutes=40)


@given(cars=st.lists(portal_cars | json_values, min_size=1, max_size=3))
def test_any_json_from_the_portal(cars: list[Any]) -> None:
    take(i3charge.Portal.reading_in, cars)


@given(cars=st.lists(telematic_data | json_values, min_size=1, max_size=3))
def test_any_json_from_cardata(cars: list[Any]) -> None:
    take(CarData.reading_in, cars)


# --- What BMW answers -----------------------------------------------------------------------

VARIABLES = {
    "USERNAME": "owner@example.com",
    "PASSWORD": "password",
    "AUTH_CLIENT_ID": "client",
    "CARDATA_CLIENT_ID": "client",
    "VEHICLE_IDENTIFICATION_NUMBER": VIN,
}
GOOD_ANSWERS: dict[str, tuple[int, Any]] = {
    "POST authenticate": (302, {}),
    "GET " + VIN: (200, {"attributesMap": {"chargingLevelHv": "62"}}),
    "POST code": (200, {"device_code": "d", "user_code": "u", "verification_uri": "https://x/"}),
    "POST token": (200, {"access_token": "a", "refresh_token": "r", "expires_in": 30}),
    "GET containers": (200, {"containers": []}),
    "POST containers": (201, {"containerId": "c"}),
    "GET telematicData": (200, {"telematicData": {CarData.HEADER: {"value": "62"}}}),
}
GOOD_LOCATION = REDIRECT_URI + "#access_token=t&state={state}"


class ScriptedHttp:
    """In the place of Http: good answers but to one `asked`. {state} is filled in."""

    def __init__(self, asked: str, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.odd = {asked: (status, body, headers)}

    def send(self, what: str, method: str, url: str, **options: Any) -> Answer:
        asked = f"{method} {urlsplit(url).path.rsplit('/', 1)[-1]}"
        status, said = GOOD_ANSWERS[asked]
        good = (status, json.dumps(said).encode(), {"Location": GOOD_LOCATION})
        status, body, headers = self.odd.get(asked, good)
        state = options.get("data", {}).get("state", "")
        filled = {name: value.replace("{state}", state) for name, value in headers.items()}
        return Answer(what, "host", status, filled, body)


NAMES = """access_token attributesMap containerId containers device_code error exveErrorId
    exveErrorMsg expires_in interval name purpose refresh_token scope state telematicData
    user_code verification_uri""".split()
SAID = """ACTIVE CU-101 CU-103 CU-105 CU-122 CU-124 CU-402 CU-429 access_denied
    authorization_pending expired_token i3charge invalid_grant invalid_token server_error
    slow_down 5 https://x/\x1b""".split()
said_values = st.sampled_from([*SAID, CarData.PURPOSE]) | json_values
objects = st.dictionaries(st.sampled_from(NAMES), said_values)
containers = st.fixed_dictionaries(
    {"name": st.just("i3charge"), "state": st.just("ACTIVE")},
    optional={"purpose": said_values, "containerId": said_values},
)
listed = st.fixed_dictionaries({"containers": st.lists(containers)})
bodies = st.binary() | (objects | listed | json_values).map(
    lambda value: json.dumps(value).encode()
)
answers = st.builds(
    ScriptedHttp,
    st.sampled_from(list(GOOD_ANSWERS)),
    st.sampled_from([200, 201, 302, 400, 401, 403, 404, 429, 500, 503]),
    bodies,
    st.fixed_dictionaries(
        {},
        optional={"Retry-After": numbers | st.text() | st.just("9" * 5000), "Location": st.text()},
    ),
)


@given(http=answers, attended=st.booleans())
@example(http=ScriptedHttp("POST authenticate", 401, b'{"error": "\\u001b"}', {}), attended=True)
@example(
    http=ScriptedHttp(
        "POST code",
        200,
        b'{"device_code": "d", "user_code": "u", "verification_uri": "x\\u001b"}',
        {},
    ),
    attended=True,
)
@example(http=ScriptedHttp("none", 200, b"", {}), attended=True)
def test_any_answer(http: Any, attended: bool) -> None:
    """At both doors, to the login, the sign-in, a renewal or what follows them."""
    settings = Settings(VARIABLES)
    readings = 0
    doors = [i3charge.Portal(settings, http)]
    doors.append(CarData(settings, http, Store(None), attended=attended))  # type: ignore[arg-type]
    for door in doors:
        for _ in range(5):
            try:
                readings += isinstance(door.poll(), Reading)
            except (TryAgain, SignInFailed) as problem:
                assert str(problem).isprintable()
                if isinstance(problem, TryAgain):
                    assert 0 < i3charge.retry_s(1, problem, 60) <= 86400
                    assert all(line.isprintable() for line in problem.news.split("\n"))
    assert readings >= (9 if http.odd.keys() == {"none"} else 0)


@pytest.fixture(scope="module")
def server() -> Iterator[Portal]:
    server = Portal()
    yield server
    server.close()


pieces = (
    *("#", "?", "&", "=", "%", "%00", "%0a", "[", "]", "//", "@", ":", "+", "\x80", "\xff"),
    *("access_token", "state", "error", "access_denied", "{state}", "secret", REDIRECT_URI),
)
fragments = st.lists(st.sampled_from(pieces), max_size=14).map("".join)
locations = fragments.map(lambda text: REDIRECT_URI + text) | fragments
any_location = locations | st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"))
HTTP = Http()


@given(location=any_location, body=st.binary())
def test_any_location_and_any_bytes_on_the_wire(server: Portal, location: str, body: bytes) -> None:
    def redirect(handler: Handler) -> None:
        state = parse_qs(handler.body.decode())["state"][0]
        handler.reply(302, Location=location.replace("{state}", state))

    server.logins = [redirect, None]
    server.readings = [lambda handler: handler.reply(200, body)]
    door = i3charge.Portal(Settings(server.settings()), HTTP)
    for _ in range(2):
        with pytest.raises((TryAgain, SignInFailed)) as caught:
            door.poll()
        assert str(caught.value).isprintable()


# --- What is remembered ---------------------------------------------------------------------

FOLDER = tempfile.TemporaryDirectory()


def remembered() -> dict[str, Any]:
    """Objects as the store keeps them, with an attribute of each kind."""
    kinds = SimpleNamespace(text="", number=0.0, count=0, flag=False, row=[], names={}, _own=1)
    return {"CarData client": kinds, "car": i3charge.ChargeWatch(80)}


attribute_names = sorted({name for thing in remembered().values() for name in vars(thing)})
sections = st.dictionaries(st.sampled_from(attribute_names), numbers | json_values)
contents = st.dictionaries(st.sampled_from(list(remembered())), sections | json_values)
old_sign_in = sections.map(lambda section: {"client_id": "client", **section})


@given(
    name=st.sampled_from([".i3charge.json", ".cardata.json"]),
    content=(contents | old_sign_in | json_values).map(lambda x: json.dumps(x).encode())
    | st.binary(),
)
@example(name=".i3charge.json", content=b"[" * 100_000)
@example(name=".i3charge.json", content=b'{"car": {"charge": ' + b"9" * 5000 + b"}}")
@example(
    name=".i3charge.json", content=b'{"CarData client": {"number": "1", "count": true, "_own": 2}}'
)
def test_any_store(name: str, content: bytes) -> None:
    """Nothing but values of the right type is taken, and what is set later is kept."""
    with tempfile.TemporaryDirectory(dir=FOLDER.name) as folder:
        Path(folder, name).write_bytes(content)
        first, second = remembered(), remembered()
        for things in (first, second):
            store = Store(Path(folder, ".i3charge.json"))
            for section, thing in things.items():
                store.things[section] = thing
            with store:
                for section, thing in remembered().items():
                    kinds = {key: type(value) for key, value in vars(thing).items()}
                    found = vars(things[section])
                    assert {key: type(value) for key, value in found.items()} == kinds
                    assert all(found[key] == vars(thing)[key] for key in kinds if key[0] == "_")
                if things is first:
                    first["car"].charge = 62.5
        assert second["car"].charge == 62.5
