"""The second door: BMW CarData."""

from __future__ import annotations

import json
import re
import stat
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from conftest import Notifier, Start, closing
from fake_bmw import VIN, Handler, Recorder
from fake_cardata import CLIENT_ID, DISPLAYED, HEADER, CarData, full, telematic

import i3charge
from i3charge import Reading


@pytest.fixture
def cardata() -> Iterator[CarData]:
    yield from closing(CarData())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where the script keeps what it must remember: beside the settings file."""
    return tmp_path / ".cardata.json"


def keep(store: Path, kept: dict[str, Any]) -> None:
    store.write_text(json.dumps(kept))
    store.chmod(0o600)


def refuse(code: str, message: str, status: int = 403) -> Any:
    return lambda handler: CarData.refuse(handler, status, code, message)


# Settings


def test_client_id_and_vin_are_all_that_is_needed(cardata: CarData, start: Start) -> None:
    settings = {**cardata.settings(), "AUTH_BASE_URL": "nonsense", "USERNAME": ""}
    script = start(settings=settings)
    script.wait_for_readings(1)
    script = start(settings={"CARDATA_CLIENT_ID": CLIENT_ID})
    assert script.end() == 2
    assert script.stderr[0][21:].startswith("VEHICLE_IDENTIFICATION_NUMBER is missing")
    assert len(script.stderr) == 2


@pytest.mark.parametrize("name", ["CARDATA_AUTH_BASE_URL", "CARDATA_BASE_URL"])
def test_addresses_must_be_https(cardata: CarData, start: Start, name: str) -> None:
    script = start(settings={**cardata.settings(), name: "http://example.com/"})
    assert script.end() == 2
    assert script.stderr_with(name) == 1
    assert cardata.requests == []


def interval_of(tmp_path: Path, **variables: str) -> float:
    needed = {"CARDATA_CLIENT_ID": CLIENT_ID, "VEHICLE_IDENTIFICATION_NUMBER": VIN}
    settings = i3charge.Settings({**needed, **variables}, tmp_path)
    interval_s = i3charge.CarData(settings, i3charge.Http()).interval_s
    settings.check()
    return interval_s


def test_interval_is_half_an_hour(tmp_path: Path) -> None:
    assert interval_of(tmp_path) == 1800


def test_interval_of_the_other_door_is_raised_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert interval_of(tmp_path, LOG_INTERVAL="60000") == 600
    assert len(caplog.messages) == 1
    assert "LOG_INTERVAL is raised to 600000" in caplog.messages[0]
    assert "50 requests in 24 hours" in caplog.messages[0]


# Signing in


def test_first_run_goes_from_nothing_to_the_first_reading(
    cardata: CarData, start: Start, store: Path
) -> None:
    cardata.pending = 2
    script = start(settings=cardata.settings())
    script.wait_for_readings(1)
    assert re.search(r"  62%  charging  101 km  full about \d\d:\d\d$", script.stdout[0])
    assert script.stderr_with("open https://customer.bmwgroup.com/oneid/link?user_code=CODE-1") == 1
    assert script.stderr_with("confirm the code CODE-1") == 1
    assert script.stderr_with("signed in at BMW") == 1
    assert len(script.stderr) == 2
    assert len(cardata.seen("device/code")) == 1
    assert [r.method for r in cardata.seen("containers")] == ["GET", "POST"]
    assert stat.S_IMODE(store.stat().st_mode) == 0o600


def test_container_asks_for_what_the_reading_needs(cardata: CarData, start: Start) -> None:
    start(settings=cardata.settings()).wait_for_readings(1)
    asked = json.loads(cardata.seen("containers")[1].body)
    needed = set(telematic(displayed="1", status="x")["telematicData"])
    assert needed <= set(asked["technicalDescriptors"])
    assert asked["name"] == "i3charge"


def test_restart_needs_no_sign_in_and_no_container(
    cardata: CarData, start: Start, store: Path
) -> None:
    script = start(settings=cardata.settings())
    script.wait_for_readings(1)
    script.interrupt()
    before = len(cardata.requests)
    script = start("--once", settings=cardata.settings())
    assert script.end() == 0
    assert script.stderr == []
    (request,) = cardata.requests[before:]
    assert "telematicData" in request.path
    assert request.headers["Accept"] == "application/json"


def test_token_is_asked_for_at_the_interval_that_bmw_names(cardata: CarData, start: Start) -> None:
    cardata.interval_s = 0.4
    cardata.pending = 2
    start(settings=cardata.settings()).wait_for_readings(1)
    times = [request.time for request in cardata.seen("/oauth/")]
    assert len(times) == 4
    assert all(later - earlier >= 0.4 for earlier, later in zip(times, times[1:]))


def test_slow_down_adds_five_seconds(cardata: CarData, start: Start) -> None:
    cardata.token_answers = [lambda h: h.reply(400, {"error": "slow_down"})]
    cardata.pending = 0
    script = start(settings=cardata.settings())
    script.wait_for_readings(1)
    first, second = (request.time for request in cardata.seen("oauth/token"))
    assert second - first >= 5


@pytest.mark.parametrize("error", ["expired_token", "invalid_grant"])
def test_expired_code_is_replaced(cardata: CarData, start: Start, error: str) -> None:
    cardata.token_answers = [lambda h: h.reply(401, {"error": error})]
    script = start(settings=cardata.settings())
    script.wait_for_readings(1)
    assert script.stderr_with("confirm the code CODE-1") == 1
    assert script.stderr_with("confirm the code CODE-2") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [("access_denied", "was declined"), ("invalid_client", "check CARDATA_CLIENT_ID")],
)
def test_refused_sign_in_ends_the_program(
    cardata: CarData, start: Start, error: str, said: str
) -> None:
    cardata.token_answers = [lambda h: h.reply(403, {"error": error})]
    script = start(settings=cardata.settings())
    assert script.end() == 1
    assert script.stderr_with(said) == 1


def test_unknown_client_ends_the_program(cardata: CarData, start: Start) -> None:
    script = start(settings={**cardata.settings(), "CARDATA_CLIENT_ID": "another"})
    assert script.end() == 1
    assert script.stderr_with("check CARDATA_CLIENT_ID") == 1
    assert len(cardata.requests) == 1


def test_gateway_trouble_during_the_sign_in_is_survived(cardata: CarData, start: Start) -> None:
    cardata.token_answers = [lambda h: h.reply(500, "<html>")]
    cardata.pending = 0
    script = start(settings=cardata.settings())
    script.wait_for_readings(1)
    assert script.stderr_with("is out of order") == 1
    assert len(cardata.seen("device/code")) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (500, {"message": "Internal Server Error"}),
        (503, {"error": "temporarily_unavailable"}),
        (429, {"error": "rate_limited"}),
        (403, {"message": "no"}),
        (200, {}),
    ],
)
def test_odd_answer_during_the_sign_in_is_survived(
    cardata: CarData, start: Start, answer: tuple[int, dict[str, str]]
) -> None:
    cardata.token_answers = [lambda h: h.reply(*answer)]
    script = start(settings=cardata.settings())
    script.wait_for_stderr("; trying again")
    assert script.process.poll() is None


def test_ctrl_c_while_the_owner_is_waited_for(cardata: CarData, start: Start) -> None:
    cardata.pending = 10**6
    script = start(settings=cardata.settings())
    cardata.wait_for(lambda: len(cardata.seen("oauth/token")) >= 3, "requests for the token")
    assert script.interrupt() == 130
    assert len(script.stderr) == 1


def test_once_does_not_wait_for_a_sign_in(
    cardata: CarData, start: Start, terminal_notifier: Notifier
) -> None:
    script = start("--once", settings=cardata.settings(), mac=True)
    assert script.end() == 1
    assert script.stderr_with("run python i3charge.py once by hand") == 1
    assert cardata.requests == []
    assert terminal_notifier.messages() == []


def test_token_that_expires_during_the_run_is_renewed(
    cardata: CarData, start: Start, store: Path
) -> None:
    cardata.readings = [telematic(), cardata.expire_token, telematic(predicted="63"), telematic()]
    script = start(settings=cardata.settings())
    script.wait_for_readings(3)
    assert "63%" in script.stdout[1]
    assert len(cardata.seen("device/code")) == 1
    assert json.loads(store.read_text())["refresh_token"] == cardata.refresh_token
    assert len(script.stderr) == 2


def test_token_is_renewed_shortly_before_it_ends(
    cardata: CarData, start: Start, store: Path
) -> None:
    keep(store, {**cardata.sign_in(), "expires_s": time.time() + 50})
    script = start("--once", settings=cardata.settings())
    assert script.end() == 0
    assert [r.path.split("/")[1] for r in cardata.requests] == ["oauth", "api"]


def test_new_refresh_token_is_on_disk_before_it_is_used(
    cardata: CarData, start: Start, store: Path
) -> None:
    on_disk = []

    def look(handler: Handler) -> None:
        on_disk.append(json.loads(store.read_text())["refresh_token"])
        handler.reply(200, telematic())

    keep(store, {**cardata.sign_in(), "expires_s": 0.0})
    cardata.readings = [look]
    assert start("--once", settings=cardata.settings()).end() == 0
    assert on_disk == ["secret-refresh-2"]


def test_new_refresh_token_is_on_disk_even_if_no_request_follows(
    cardata: CarData, start: Start, store: Path
) -> None:
    spent = [time.time() - 60.0] * 48
    keep(store, {**cardata.sign_in(), "expires_s": 0.0, "requests_s": spent})
    assert start("--once", settings=cardata.settings()).end() == 1
    assert json.loads(store.read_text())["refresh_token"] == "secret-refresh-2"


def test_refresh_token_that_died_leads_to_a_new_sign_in(
    cardata: CarData, start: Start, store: Path, terminal_notifier: Notifier
) -> None:
    keep(store, {**cardata.sign_in(), "expires_s": 0.0, "refresh_token": "secret-dead"})
    script = start(settings=cardata.settings(), mac=True)
    script.wait_for_readings(1)
    assert terminal_notifier.messages() == ["BMW wants a new sign-in: the terminal shows how"]
    assert script.stderr_with("confirm the code CODE-1") == 1


def test_refused_refresh_at_once_is_told(
    cardata: CarData, start: Start, store: Path, terminal_notifier: Notifier
) -> None:
    keep(store, {**cardata.sign_in(), "expires_s": 0.0, "refresh_token": "secret-dead"})
    script = start("--once", settings=cardata.settings(), mac=True)
    assert script.end() == 1
    assert len(terminal_notifier.messages()) == 1


def test_refresh_refused_with_403_is_refused(cardata: CarData, start: Start, store: Path) -> None:
    keep(store, {**cardata.sign_in(), "expires_s": 0.0})
    cardata.token_answers = [lambda h: h.reply(403, {"error": "access_denied"})]
    script = start(settings=cardata.settings())
    script.wait_for_stderr("confirm the code CODE-1")


@pytest.mark.parametrize("status", [400, 401, 403])
def test_gateway_cannot_take_the_refresh_token(
    cardata: CarData, start: Start, store: Path, status: int
) -> None:
    keep(store, {**cardata.sign_in(), "expires_s": 0.0})
    cardata.token_answers = [lambda h: h.reply(status, "<html>gateway</html>")]
    script = start(settings=cardata.settings())
    script.wait_for_readings(1)
    assert cardata.seen("device/code") == []


def test_refresh_that_names_no_new_refresh_token_keeps_the_old(
    cardata: CarData, start: Start, store: Path
) -> None:
    kept = cardata.sign_in()
    keep(store, {**kept, "expires_s": 0.0})
    answer = {"access_token": kept["access_token"], "expires_in": 3599}
    cardata.token_answers = [lambda h: h.reply(200, answer)]
    assert start("--once", settings=cardata.settings()).end() == 0
    assert json.loads(store.read_text())["refresh_token"] == kept["refresh_token"]


def test_news_of_a_sign_in_survives_a_fault_in_between(
    cardata: CarData, start: Start, store: Path, terminal_notifier: Notifier
) -> None:
    keep(store, {**cardata.sign_in(), "expires_s": 0.0, "refresh_token": "secret-dead"})
    cardata.device_answers = [lambda h: h.reply(500, "<html>")]
    script = start(settings=cardata.settings(), mac=True)
    script.wait_for_readings(1)
    assert terminal_notifier.messages() == ["BMW wants a new sign-in: the terminal shows how"]


def test_refresh_that_only_failed_is_tried_again(
    cardata: CarData, start: Start, store: Path
) -> None:
    keep(store, {**cardata.sign_in(), "expires_s": 0.0})
    cardata.token_answers = [lambda h: h.reply(500, "<html>")]
    script = start(settings=cardata.settings())
    script.wait_for_readings(1)
    assert cardata.seen("device/code") == []


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"client_id": 1}', b"[" * 100_000, b'"x"'],
    ids=["empty", "cut", "list", "no-utf8", "fields-missing", "deep", "text"],
)
def test_damaged_store_is_put_aside_and_said(
    cardata: CarData, start: Start, store: Path, damaged: bytes
) -> None:
    store.write_bytes(damaged)
    script = start(settings=cardata.settings())
    script.wait_for_readings(1)
    assert script.stderr_with("put aside as .cardata.json.damaged") == 1
    assert store.with_name(".cardata.json.damaged").read_bytes() == damaged


def test_store_of_another_client_id_is_not_used(
    cardata: CarData, start: Start, store: Path
) -> None:
    keep(store, {**cardata.sign_in(), "client_id": "another"})
    script = start("--once", settings=cardata.settings())
    assert script.end() == 1
    assert cardata.requests == []


# The container


def test_container_that_exists_is_found(cardata: CarData, start: Start, store: Path) -> None:
    kept = cardata.sign_in()
    cardata.containers[:0] = [
        {**cardata.containers[0], "containerId": "deleted", "state": "DELETED"},
        {**cardata.containers[0], "containerId": "other", "purpose": "older"},
        {**cardata.containers[0], "containerId": "others", "name": "evcc"},
    ]
    keep(store, {**kept, "container": ""})
    assert start("--once", settings=cardata.settings()).end() == 0
    assert [r.method for r in cardata.seen("/api/")] == ["GET", "GET"]
    assert cardata.requests[-1].path.endswith(f"containerId={kept['container']}")


def unknown(how: str) -> Any:
    return (lambda h: h.reply(404)) if how == "404" else refuse(how, "x")


@pytest.mark.parametrize("how", ["CU-105", "CU-122", "404"])
def test_container_that_bmw_forgot_is_made_again(
    cardata: CarData, start: Start, store: Path, how: str
) -> None:
    keep(store, cardata.sign_in())
    cardata.containers.clear()
    cardata.readings = [telematic()]
    cardata.api_answers = [unknown(how)]
    assert start("--once", settings=cardata.settings()).end() == 0
    assert [r.method for r in cardata.seen("/api/")] == ["GET", "GET", "POST", "GET"]


def test_container_that_is_refused_but_listed_is_replaced(
    cardata: CarData, start: Start, store: Path
) -> None:
    keep(store, cardata.sign_in())
    cardata.readings = [refuse("CU-105", "no"), telematic()]
    assert start("--once", settings=cardata.settings()).end() == 0
    assert [r.method for r in cardata.seen("/api/")] == ["GET", "GET", "POST", "GET"]


def test_container_is_replaced_once_only(cardata: CarData, start: Start, store: Path) -> None:
    keep(store, cardata.sign_in())
    cardata.readings = [refuse("CU-105", "no")]
    script = start("--once", settings=cardata.settings())
    assert script.end() == 1
    assert len(cardata.seen("/api/")) == 4


# Errors and the quota


@pytest.mark.parametrize(
    "used_up",
    [refuse("CU-429", "Quota", 429), refuse("CU-429", "Quota", 403), lambda h: h.reply(429)],
)
def test_quota_used_up_by_others_is_said(
    cardata: CarData, start: Start, store: Path, used_up: Any
) -> None:
    keep(store, cardata.sign_in())
    cardata.readings = [used_up]
    script = start(settings=cardata.settings())
    script.wait_for_stderr("50 requests for 24 hours are used up; next try in 60 min")
    assert len(script.stderr) == 1


@pytest.mark.parametrize("code", ["CU-104", "CU-120"])
def test_car_that_is_not_ours_names_the_vin(
    cardata: CarData, start: Start, store: Path, code: str
) -> None:
    keep(store, cardata.sign_in())
    cardata.readings = [refuse(code, f"No permission for \x1b[31m{VIN}")]
    script = start("--once", settings=cardata.settings())
    assert script.end() == 1
    assert script.stderr_with("check VEHICLE_IDENTIFICATION_NUMBER") == 1
    assert script.stderr_with(f"No permission for ?[31m*** ({code})") == 1


def test_bmws_own_words_are_in_the_line(cardata: CarData, start: Start, store: Path) -> None:
    keep(store, cardata.sign_in())
    cardata.readings = [refuse("CU-500", "Technical error", 500), telematic()]
    script = start(settings=cardata.settings())
    script.wait_for_readings(1)
    assert script.stderr_with("CarData says: Technical error (CU-500); next try in") == 1


def test_spent_quota_survives_a_restart_and_is_waited_for(
    cardata: CarData, start: Start, store: Path
) -> None:
    now = time.time()
    spent = [now - 23 * 3600.0, *[now - 60.0] * 47]
    keep(store, {**cardata.sign_in(), "requests_s": spent})
    script = start(settings=cardata.settings())
    script.wait_for_stderr("the next reading is due at")
    due = datetime.fromtimestamp(now + 3600)
    assert f"{due:%Y-%m-%d %H:%M}" in script.stderr[0] or "due at" in script.stderr[0]
    assert script.interrupt() == 130
    assert cardata.requests == []
    assert len(script.stderr) == 1


def test_requests_that_never_left_cost_nothing(cardata: CarData, start: Start, store: Path) -> None:
    keep(store, cardata.sign_in())
    cardata.stop_listening()
    script = start("--once", settings=cardata.settings())
    assert script.end() == 1
    assert script.stderr_with("no connection to 127.0.0.1") == 1
    assert json.loads(store.read_text())["requests_s"] == []
    cardata.listen_again()


def test_quota_used_up_ends_once_with_status_1(cardata: CarData, start: Start, store: Path) -> None:
    keep(store, {**cardata.sign_in(), "requests_s": [time.time() - 60.0] * 48})
    script = start("--once", settings=cardata.settings())
    assert script.end() == 1
    assert cardata.requests == []


def test_requests_of_more_than_a_day_ago_do_not_count(
    cardata: CarData, start: Start, store: Path
) -> None:
    keep(store, {**cardata.sign_in(), "requests_s": [time.time() - 86500.0] * 50})
    assert start("--once", settings=cardata.settings()).end() == 0
    assert len(json.loads(store.read_text())["requests_s"]) == 1


# The reading

NOW = datetime(2026, 8, 18, 14, 30, tzinfo=timezone.utc)


def reading(body: dict[str, Any] | bytes) -> Reading:
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    return i3charge.CarData._reading(i3charge.Answer("status", "host", 200, {}, data))


def test_reading_has_every_field() -> None:
    assert reading(telematic(NOW)) == Reading(
        charge=62.0,
        status="charging",
        range=101.0,
        range_unit="km",
        minutes_to_full=140.0,
        reported=NOW,
        minutes_from=NOW,
    )


@pytest.mark.parametrize(
    ("entries", "charge", "age"),
    [
        ({"header": ("52", 60), "predicted": ("62", 0)}, 62, 0),
        ({"header": ("52", 10), "predicted": ("62", 10)}, 62, 10),
        ({"header": ("52", 0), "predicted": ("62", 60)}, 52, 0),
        ({"header": ("52", 60), "predicted": ("62", 0), "hv_status": "NOT_CHARGING"}, 52, 60),
        ({"header": None, "predicted": ("62", 5)}, 62, 5),
        ({"header": None, "displayed": ("61", 9), "predicted": None}, 61, 9),
        ({"header": ("nonsense", 0), "displayed": ("61", 9), "predicted": None}, 61, 9),
        ({"header": ("52", 60), "predicted": ("101", 0)}, 52, 60),
        ({"header": ("52", 60), "predicted": (None, 0)}, 52, 60),
    ],
    ids=[
        "predicted-while-charging",
        "as-old-as-the-header",
        "prediction-older",
        "not-charging",
        "no-header",
        "displayed",
        "header-nonsense",
        "prediction-nonsense",
        "prediction-null",
    ],
)
def test_charge_is_the_best_that_there_is(
    entries: dict[str, Any], charge: float, age: float
) -> None:
    found = reading(telematic(NOW, **entries))
    assert found.charge == charge
    assert found.reported == NOW - timedelta(minutes=age)


@pytest.mark.parametrize(
    ("hv_status", "plug", "status"),
    [
        ("CHARGING", "CONNECTED", "charging"),
        ("FINISHED_FULLY_CHARGED", "CONNECTED", "full"),
        ("WAITING_FOR_CHARGING", "CONNECTED", "waiting"),
        ("ERROR", "CONNECTED", "error"),
        ("NOT_CHARGING", "CONNECTED", "plugged in"),
        ("INVALID", "CONNECTED", "plugged in"),
        ("INVALID", "DISCONNECTED", "unplugged"),
        ("BRAND_NEW", None, "unknown"),
        (None, None, "unknown"),
    ],
)
def test_words_mean_what_they_mean_at_the_other_door(
    hv_status: str | None, plug: str | None, status: str
) -> None:
    assert reading(telematic(NOW, hv_status=hv_status, plug=plug)).status == status


def test_minutes_count_from_when_bmw_said_them() -> None:
    found = reading(telematic(NOW, predicted=("62", 30), header=None, minutes=("60", 10)))
    assert found.seconds_to_full(NOW) == 50 * 60
    assert json.loads(i3charge.json_line(found, NOW))["minutes_to_full"] == 60


@pytest.mark.parametrize("said", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_absurd_time_stamps_are_survived(said: str) -> None:
    data = telematic(NOW)
    for entry in data["telematicData"].values():
        entry["timestamp"] = said
    i3charge.plain_line(reading(data), NOW)


def test_report_is_in_utc_whatever_the_offset() -> None:
    data = telematic(NOW, header=None)
    for entry in data["telematicData"].values():
        entry["timestamp"] = "2026-08-18T16:30:00+02:00"
    assert json.loads(i3charge.json_line(reading(data), NOW))["reported"] == NOW.isoformat()


def test_second_names_are_used_where_the_first_are_missing() -> None:
    data = telematic(NOW, range=None, minutes=None, plug=None, hv_status=None)["telematicData"]
    entry = {"timestamp": NOW.isoformat(), "unit": None}
    engine = "vehicle.drivetrain.electricEngine."
    data[engine + "charging.status"] = {**entry, "value": "CHARGINGACTIVE"}
    data[engine + "charging.timeRemaining"] = {**entry, "value": "30"}
    data["vehicle.drivetrain.lastRemainingRange"] = {**entry, "value": "90"}
    data["vehicle.body.chargingPort.combinedStatus"] = {**entry, "value": "CONNECTED"}
    found = reading({"telematicData": data})
    assert (found.status, found.minutes_to_full, found.range) == ("charging", 30, 90)


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {HEADER: None}, {HEADER: "52"}, {HEADER: {"value": None}}, {DISPLAYED: []}],
)
def test_answer_without_a_charge_is_an_error(data: Any) -> None:
    with pytest.raises(i3charge.TryAgain):
        reading({"telematicData": data})


# Everything after the reading is the code that is there


def test_whole_charge_is_logged_and_told(
    cardata: CarData,
    start: Start,
    store: Path,
    terminal_notifier: Notifier,
    webhook: Recorder,
) -> None:
    keep(store, cardata.sign_in())
    cardata.quota = 1000
    charges = [*range(52, 100, 2)]
    cardata.readings = [
        *(telematic(predicted=str(charge), minutes=None) for charge in charges),
        full(),
    ]
    settings = {**cardata.settings(), "WEBHOOK_URL": webhook.url}
    script = start(settings=settings, mac=True)
    webhook.wait_for(lambda: webhook.accepted, "the webhook")
    done = "Fully charged. The charging station can be freed."
    assert webhook.messages() == [done]
    steps = [f"{charge}% charged" for charge in (58, 64, 70, 76, 82, 88, 94)]
    terminal_notifier.wait_for_calls(8)
    assert terminal_notifier.messages() == [*steps, done]
    assert script.stderr == []


# A day on a clock that is not the wall's


class FakeTime:
    """In the place of the module `time`: sleeping moves it."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def time(self) -> float:
        return self.now_s

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Restart(Exception):
    pass


class Day:
    """A car that charges twice in a day, and a CarData that counts what it is asked."""

    def __init__(self, clock: FakeTime) -> None:
        self.clock = clock
        self.begin_s = clock.now_s
        self.requests_s: list[float] = []
        self.restarts_s = [self.begin_s + hours * 3600 for hours in (5, 11, 30)]

    def send(self, what: str, method: str, url: str, **options: Any) -> i3charge.Answer:
        self.clock.now_s += 1
        if "oauth" in url:
            tokens = {"access_token": "a", "refresh_token": "r", "expires_in": 3599}
            return i3charge.Answer(what, "host", 200, {}, json.dumps(tokens).encode())
        self.requests_s.append(self.clock.now_s)
        if method == "GET" and url.endswith("containers"):
            body: dict[str, Any] = {"containers": []}
        elif method == "POST":
            body = {"containerId": "S000000000000"}
        else:
            body = self.telematic()
        return i3charge.Answer(what, "host", 200, {}, json.dumps(body).encode())

    def telematic(self) -> dict[str, Any]:
        now = datetime.fromtimestamp(self.clock.now_s, timezone.utc)
        into = (self.clock.now_s - self.begin_s) % 43200 / 3600  # a charge at every 12 hours
        if into < 4:
            minutes = str(int((4 - into) * 60))
            charge = str(int(20 + 20 * into))
            return telematic(now, predicted=charge, minutes=minutes, header=("20", into * 60))
        return telematic(now, header="100", hv_status="FINISHED_FULLY_CHARGED", minutes=None)


def test_day_with_two_charges_and_three_restarts_stays_within_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeTime()
    day = Day(clock)
    monkeypatch.setattr(i3charge, "time", clock)
    variables = {
        "CARDATA_CLIENT_ID": CLIENT_ID,
        "VEHICLE_IDENTIFICATION_NUMBER": VIN,
        "LOG_INTERVAL": "600000",
    }
    now = {"client_id": CLIENT_ID, "access_token": "", "expires_s": 0.0, "refresh_token": "r"}
    keep(tmp_path / ".cardata.json", {**now, "container": "", "requests_s": []})
    end_s = day.begin_s + 48 * 3600
    shown: list[str] = []

    def sleep(seconds: float) -> None:
        clock.now_s += seconds
        if clock.now_s > end_s:
            raise KeyboardInterrupt
        if day.restarts_s and clock.now_s > day.restarts_s[0]:
            day.restarts_s.pop(0)
            raise Restart

    monkeypatch.setattr(clock, "sleep", sleep, raising=False)
    desktop = type("", (), {"show": lambda self, message, *, sound: shown.append(message)})()
    while clock.now_s < end_s:
        settings = i3charge.Settings(variables, tmp_path)
        door = i3charge.CarData(settings, day)  # type: ignore[arg-type]
        try:
            i3charge.run(door, i3charge.ChargeLog(as_json=False), desktop, [])
        except (Restart, KeyboardInterrupt):
            pass
    assert len(day.requests_s) > 90  # it did spend what it has
    for first in day.requests_s:
        assert sum(first <= second < first + 86400 for second in day.requests_s) <= 50


def test_full_battery_is_heard_of_within_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeTime()
    day = Day(clock)
    monkeypatch.setattr(i3charge, "time", clock)
    variables = {"CARDATA_CLIENT_ID": CLIENT_ID, "VEHICLE_IDENTIFICATION_NUMBER": VIN}
    kept = {"client_id": CLIENT_ID, "access_token": "", "expires_s": 0.0, "refresh_token": "r"}
    keep(tmp_path / ".cardata.json", {**kept, "container": "c", "requests_s": []})
    clock.now_s += 17 * 60  # so that the ticks do not fall on the charge's end
    told_s: list[float] = []

    def show(self: object, message: str, *, sound: bool) -> None:
        if message.startswith("Fully"):
            told_s.append(clock.now_s)
            raise KeyboardInterrupt

    desktop = type("", (), {"show": show})()
    door = i3charge.CarData(i3charge.Settings(variables, tmp_path), day)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        i3charge.run(door, i3charge.ChargeLog(as_json=False), desktop, [])
    assert told_s[0] - day.begin_s - 4 * 3600 < 10 * 60
    gaps = [b - a for a, b in zip(day.requests_s, day.requests_s[1:])]
    assert min(gaps) >= 600


@pytest.mark.parametrize(
    ("full_in_s", "gap_s", "next_s"),
    [
        (None, 600, 1800),
        (5000, 600, 1800),
        (900, 600, 1000),
        (60, 600, 700),
        (60, 0, 160),
        (0, 600, 700),
        (-60, 600, 700),
        (-600, 600, 1800),
        (0, 0, 1800),
    ],
)
def test_poll_is_brought_forward_to_the_end_of_the_charge(
    full_in_s: float | None, gap_s: float, next_s: float
) -> None:
    assert i3charge.next_poll_s(100, 100, 1800, full_in_s, gap_s) == next_s


def test_fault_at_the_predicted_end_does_not_cost_half_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeTime()
    monkeypatch.setattr(i3charge, "time", clock)
    polls_s: list[float] = []

    class Door:
        interval_s, gap_s = 1800.0, 600.0

        def read(self) -> Reading:
            polls_s.append(clock.now_s)
            if len(polls_s) == 1:
                now = datetime.fromtimestamp(clock.now_s, timezone.utc)
                return Reading(95, "charging", minutes_to_full=20, reported=now)
            if len(polls_s) == 4:
                raise KeyboardInterrupt
            raise i3charge.TryAgain("out of order")

    with pytest.raises(KeyboardInterrupt):
        i3charge.run(Door(), i3charge.ChargeLog(as_json=False), i3charge.Desktop(), [])
    gaps_s = [later - earlier for earlier, later in zip(polls_s, polls_s[1:])]
    assert gaps_s == [1200, 600, 1800]
