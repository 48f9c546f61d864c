"""BMW CarData: the readings, the containers, the quota and the pace. Signing in is elsewhere."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Notifier, Start
from fake_bmw import VIN, Recorder, car
from fake_cardata import (
    CLIENT_ID,
    DISPLAYED,
    HEADER,
    PREDICTED,
    RANGE,
    CarData,
    Client,
    Clock,
    full,
    says,
    telematic,
)

import i3charge
from i3charge import Reading

HOUR_S = 3600.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(i3charge, "time", clock)
    return clock


def refuse(code: str, status: int = 403, message: str = "No") -> Any:
    return lambda handler: CarData.refuse(handler, status, code, message)


def methods(cardata: CarData) -> str:
    """What the API was asked: R for a reading, L for the containers, M for making one."""
    return "".join(
        "R" if "telematicData" in request.path else {"GET": "L", "POST": "M"}[request.method]
        for request in cardata.seen("/api/")
    )


# Settings


@pytest.mark.parametrize("name", ["CARDATA_AUTH_BASE_URL", "CARDATA_BASE_URL"])
def test_addresses_must_be_https(cardata: CarData, file: Path, name: str) -> None:
    address: Any = {name: "http://example.com/"}
    with pytest.raises(i3charge.SettingsError, match=f"{name} should be .* https://"):
        Client(cardata, file, **address)


BMW = "https://api-cardata.bmwgroup.com/"


@pytest.mark.parametrize(
    ("url", "given", "interval_s", "said"),
    [
        (BMW, "", 2400, False),
        (BMW, "2400000", 2400, False),
        (BMW, "7200000", 7200, False),
        (BMW, "60000", 2400, True),
        (BMW, "2399999", 2400, True),
        ("http://127.0.0.1:1/", "50", 0.05, False),
    ],
)
def test_interval_is_forty_minutes_at_least(
    cardata: CarData,
    file: Path,
    caplog: pytest.LogCaptureFixture,
    url: str,
    given: str,
    interval_s: float,
    said: bool,
) -> None:
    client = Client(cardata, file, CARDATA_BASE_URL=url, LOG_INTERVAL=given)
    assert client.door.interval_s == interval_s
    assert len(caplog.messages) == said
    if said:
        assert "LOG_INTERVAL is raised to 2400000" in caplog.messages[0]
        assert "50 requests a day" in caplog.messages[0]


# The reading

NOW = datetime(2026, 8, 18, 14, 30, tzinfo=timezone.utc)


def reading(now: datetime = NOW, **entries: Any) -> Reading:
    data = telematic(now, **entries)["telematicData"]
    return i3charge.CarData.reading_in(data, now)


def test_reading_has_every_field() -> None:
    assert reading(header=("52", 20), status=("CHARGINGACTIVE", 30)) == Reading(
        charge=62.0,
        status="charging",
        range=101.0,
        range_unit="km",
        full_at=NOW + timedelta(minutes=140),
        reported=NOW - timedelta(minutes=20),
        predicted=True,
    )


PAUSED: dict[str, Any] = {"hv_status": "INVALID", "status": "CHARGINGPAUSED"}
ENDED: dict[str, Any] = {"hv_status": "NOT_CHARGING", "status": "CHARGINGENDED"}


@pytest.mark.parametrize(
    ("entries", "charge", "predicted"),
    [
        ({}, 62, True),
        ({"header": ("52", 0)}, 62, True),
        (PAUSED, 62, True),
        (ENDED, 52, False),
        ({**ENDED, "header": None, "displayed": "61"}, 61, False),
        ({**ENDED, "header": "nonsense", "displayed": "61"}, 61, False),
        ({**ENDED, "header": None}, 62, True),
        ({"predicted": None}, 52, False),
        ({"predicted": "101"}, 52, False),
        ({"predicted": (None, 0)}, 52, False),
        ({"predicted": "-NA-", "header": None, "displayed": "61"}, 61, False),
        ({"hv_status": "FINISHED_FULLY_CHARGED", "header": "100"}, 100, False),
        ({"plug": ("DISCONNECTED", 0)}, 52, False),
    ],
)
def test_charge_is_bmws_prediction_while_the_car_charges_or_pauses(
    entries: dict[str, Any], charge: float, predicted: bool
) -> None:
    found = reading(**entries)
    assert (found.charge, found.predicted) == (charge, predicted)


def test_predicted_charge_is_marked() -> None:
    found = reading()
    assert "  ~62%  charging" in i3charge.plain_line(found, NOW)
    assert "  ~62%  " in i3charge.terminal_line(found, NOW, "")
    assert json.loads(i3charge.json_line(found, NOW))["predicted"] is True
    sent = reading(**ENDED)
    assert "  52%  plugged in" in i3charge.plain_line(sent, NOW)
    assert json.loads(i3charge.json_line(sent, NOW))["predicted"] is False


def test_predicted_charge_alone_is_not_full() -> None:
    assert reading(predicted="100", **PAUSED).status == "waiting"
    never_sent: dict[str, Any] = {"header": None, "hv_status": "INVALID", "status": "NOCHARGING"}
    assert reading(predicted="100", **never_sent).status == "plugged in"


@pytest.mark.parametrize(
    ("entries", "age"),
    [
        ({"header": ("52", 90), "status": ("CHARGINGACTIVE", 70), "plug": ("CONNECTED", 80)}, 70),
        ({"header": ("52", 65), "status": ("CHARGINGACTIVE", 70), "plug": ("CONNECTED", 80)}, 65),
        ({"header": ("52", 90), "status": ("CHARGINGACTIVE", 70), "plug": ("CONNECTED", 9)}, 9),
        ({"header": None, "displayed": ("5", 7), "status": None, "plug": None}, 7),
        ({"plug": ("INVALID", 0), "plug2": ("CONNECTED", 9)}, 9),
        ({"header": ("52", None), "status": None, "plug": None}, None),
        ({"header": None, "status": None, "plug": None}, None),
    ],
    ids=["status", "charge", "plug", "displayed", "second-plug", "no-stamp", "nothing-of-the-car"],
)
def test_report_is_as_new_as_the_newest_that_the_car_sent(
    entries: dict[str, Any], age: float | None
) -> None:
    # charging.level and hvStatus, which are BMW's own, are always of now.
    expected = None if age is None else NOW - timedelta(minutes=age)
    assert reading(**entries).reported == expected


@pytest.mark.parametrize(
    ("plug", "status"),
    [
        ({"plug": ("DISCONNECTED", 50)}, "unplugged"),
        ({"plug": ("DISCONNECTED", 60)}, "unplugged"),
        ({"plug": ("DISCONNECTED", 61)}, "charging"),
        ({"plug": ("DISCONNECTED", None)}, "charging"),
        ({"plug": ("-NA-", 0), "plug2": ("DISCONNECTED", 0)}, "unplugged"),
        ({"plug": ("CONNECTED", 0)}, "charging"),
    ],
)
def test_plug_that_is_out_since_wins_over_a_charge_that_sticks(
    plug: dict[str, Any], status: str
) -> None:
    found = reading(status=("CHARGINGACTIVE", 60), **plug)
    assert found.status == status
    assert (found.full_at is None) == (status != "charging")


@pytest.mark.parametrize(
    ("entries", "status"),
    [
        ({"hv_status": "CHARGING"}, "charging"),
        ({"hv_status": "FINISHED_FULLY_CHARGED"}, "full"),
        ({"hv_status": "WAITING_FOR_CHARGING"}, "waiting"),
        ({"hv_status": "ERROR"}, "error"),
        ({"hv_status": "NOT_CHARGING"}, "plugged in"),
        ({"hv_status": "INVALID", "status": None}, "plugged in"),
        ({"hv_status": "INVALID", "plug": "DISCONNECTED"}, "unplugged"),
        ({"hv_status": "BRAND_NEW", "status": None, "plug": None}, "unknown"),
        ({"hv_status": None, "status": None, "plug": None}, "unknown"),
        *(
            ({"hv_status": "INVALID", "status": word}, status)
            for word, status in {
                "CHARGINGACTIVE": "charging",
                "INITIALIZATION": "waiting",
                "CHARGINGPAUSED": "waiting",
                "CHARGINGINTERRUPTED": "waiting",
                "CHARGINGDISRUPTED": "waiting",
                "CHARGINGERROR": "error",
                "CHARGINGENDED": "plugged in",
                "NOCHARGING": "plugged in",
                "UNKNOWN": "unknown",
            }.items()
        ),
    ],
)
def test_every_word_of_bmws_is_understood(entries: dict[str, Any], status: str) -> None:
    assert reading(**entries).status == status


@pytest.mark.parametrize(
    ("minutes", "remaining", "left"),
    [
        (("60", 0), None, 60),
        (("60", 10), None, 50),
        (None, ("60", 10), 50),
        (("60", 10), ("90", 5), 85),
        (("60", 5), ("90", 10), 55),
        (("60", 30), None, 30),
        (("60", 31), None, None),
        (("60", 31), ("90", 31), None),
        (("60", 31), ("90", 10), 80),
        (None, ("200", 0), None),
        (("300", 10), ("200", 0), 290),
        (("200", 10), None, 190),
        (("INVALID", 0), ("199", 0), 199),
        (("INVALID", 0), None, None),
        (("60", -10), None, 60),
        (None, None, None),
    ],
)
def test_minutes_are_the_newer_ones_of_this_charge(
    minutes: Any, remaining: Any, left: float | None
) -> None:
    status = ("CHARGINGACTIVE", 30)
    found = reading(minutes=minutes, remaining=remaining, status=status, header=("52", 30))
    assert found.minutes_to_full(NOW) == left


@pytest.mark.parametrize("entries", [PAUSED, ENDED])
def test_minutes_count_only_while_charging(entries: dict[str, Any]) -> None:
    assert reading(**entries).full_at is None


@pytest.mark.parametrize(
    ("unit", "shown"),
    [("km", "km"), ("mi", "mi"), ("miles", "mi"), ("MILES", "mi"), (None, "km"), ("furlong", None)],
)
def test_range_is_in_the_unit_that_bmw_names(unit: str | None, shown: str | None) -> None:
    found = reading(range=("101", 0, unit))
    assert (found.range, found.range_unit) == (101 if shown else None, shown)


@pytest.mark.parametrize("value", [None, "", "-NA-", "INVALID", "9999"])
def test_range_that_is_none_is_left_out(value: str | None) -> None:
    assert reading(range=(value, 0, "km")).range is None


def test_range_is_the_electric_one_alone() -> None:
    combustion = "vehicle.drivetrain.lastRemainingRange"
    data = telematic(NOW, range=None)["telematicData"]
    data[combustion] = {"value": "90", "unit": "km", "timestamp": NOW.isoformat()}
    assert i3charge.CarData.reading_in(data, NOW).range is None
    for descriptors in i3charge.CarData.CONTAINERS.values():
        assert combustion not in descriptors
        assert RANGE in descriptors


@pytest.mark.parametrize("said", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "", None, 5])
def test_absurd_time_stamps_are_survived(said: Any) -> None:
    data = telematic(NOW)["telematicData"]
    for entry in data.values():
        entry["timestamp"] = said
    found = i3charge.CarData.reading_in(data, NOW)
    assert "  ~62%  charging" in i3charge.plain_line(found, NOW)


def test_stamps_may_have_an_offset() -> None:
    data = telematic(NOW)["telematicData"]
    for entry in data.values():
        entry["timestamp"] = "2026-08-18T16:30:00+02:00"
    assert i3charge.CarData.reading_in(data, NOW).reported == NOW


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {HEADER: None}, {HEADER: "52"}, {HEADER: {"value": None}}, {DISPLAYED: []}],
)
def test_answer_without_a_charge_is_said(cardata: CarData, file: Path, data: Any) -> None:
    cardata.keep(file)
    cardata.readings = [{"telematicData": data}]
    assert "no charge" in str(Client(cardata, file).refused())


# The containers


def test_container_is_made_for_what_the_reading_needs(cardata: CarData, file: Path) -> None:
    cardata.keep(file, container="")
    cardata.containers = [{**cardata.containers[0], "purpose": "descriptors 1"}]
    Client(cardata, file).poll()
    assert methods(cardata) == "LMR"
    asked = json.loads(cardata.seen("containers")[1].body)
    assert set(asked["technicalDescriptors"]) == cardata.accepted_descriptors
    assert asked["name"] == "i3charge"
    assert asked["purpose"] == "descriptors 2"  # the set is not that of the last version
    assert Client(cardata, file).poll().charge == 62
    assert methods(cardata) == "LMRR"


def test_container_that_exists_is_found(cardata: CarData, file: Path) -> None:
    container = cardata.keep(file, container="")
    ours = cardata.containers[0]
    container = ours["containerId"]
    cardata.containers = [
        {**ours, "containerId": "deleted", "state": "DELETED"},
        {**ours, "containerId": "older", "purpose": "descriptors 1"},
        {**ours, "containerId": "others", "name": "evcc"},
        ours,
    ]
    Client(cardata, file).poll()
    assert methods(cardata) == "LR"
    assert cardata.requests[-1].path.endswith(f"containerId={container}")


@pytest.mark.parametrize("refusal", [(400, "CU-402"), (403, "CU-403")])
def test_refused_container_is_made_without_the_prediction(
    cardata: CarData, file: Path, refusal: tuple[int, str]
) -> None:
    cardata.keep(file, container="")
    cardata.containers.clear()
    cardata.accepted_descriptors -= {PREDICTED}
    cardata.api_answers = [says(200, {"containers": []}), refuse(refusal[1], refusal[0])]
    assert Client(cardata, file).poll().charge == 52
    assert methods(cardata) == "LMMR"
    bodies = [json.loads(r.body) for r in cardata.seen("containers") if r.body]
    whole, lean = (set(body["technicalDescriptors"]) for body in bodies)
    assert whole - lean == {PREDICTED}
    assert bodies[0]["purpose"] != bodies[1]["purpose"]
    cardata.keep(file, container="")
    cardata.containers.pop()
    Client(cardata, file).poll()
    assert methods(cardata) == "LMMRLR"  # it is known again


@pytest.mark.parametrize(
    ("refusal", "asked", "advice"),
    [
        ((400, "CU-402"), "LMM", "newer i3charge"),
        ((403, "CU-403"), "LMM", "newer i3charge"),
        ((403, "CU-124"), "LM", "delete one in the portal"),
    ],
)
def test_container_that_is_refused_is_tried_again_in_6_hours(
    cardata: CarData, file: Path, refusal: tuple[int, str], asked: str, advice: str
) -> None:
    cardata.keep(file, container="")
    cardata.containers.clear()
    cardata.container_refusal = refusal
    problem = Client(cardata, file).refused()
    assert refusal[1] in str(problem)
    assert advice in str(problem)
    assert problem.wait_s == 6 * HOUR_S
    assert methods(cardata) == asked
    # Runs from cron keep to it; a start by hand tries at once.
    again = Client(cardata, file, attended=False).refused()
    assert again.wait_s == pytest.approx(6 * HOUR_S, abs=60)
    assert methods(cardata) == asked
    cardata.container_refusal = None
    Client(cardata, file).poll()


@pytest.mark.parametrize("lean", [False, True])
def test_older_container_is_used_where_there_are_too_many(
    cardata: CarData, file: Path, lean: bool
) -> None:
    cardata.keep(file, container="")
    ours = cardata.containers[0]
    cardata.containers = [
        {**ours, "containerId": "deleted", "state": "DELETED"},
        {**ours, "containerId": "others", "name": "evcc"},
        {**ours, "containerId": "older", "purpose": "descriptors 1"},
    ]
    cardata.most_containers = 3
    cardata.accepted_descriptors -= {PREDICTED} if lean else set()
    Client(cardata, file).poll()
    assert methods(cardata) == ("LMMR" if lean else "LMR")
    assert cardata.requests[-1].path.endswith("containerId=older")


@pytest.mark.parametrize("lost", [(403, "CU-105"), (403, "CU-122"), (404, None), (400, None)])
@pytest.mark.parametrize("listed", [False, True])
def test_container_that_bmw_has_lost_is_made_again(
    cardata: CarData, file: Path, lost: tuple[int, str | None], listed: bool
) -> None:
    cardata.keep(file)
    cardata.api_answers = [cardata.refusal(lost, "No")]
    if not listed:
        cardata.containers.clear()
    client = Client(cardata, file)
    client.poll()
    assert methods(cardata) == "RLMR"
    cardata.api_answers = [cardata.refusal(lost, "No")]
    client.poll()  # after a reading it may be replaced again
    assert cardata.served == 2


def test_other_refusal_leaves_the_container(cardata: CarData, file: Path) -> None:
    cardata.keep(file)
    cardata.api_answers = [refuse("CU-500", 400)]
    assert "CU-500" in str(Client(cardata, file).refused())
    assert methods(cardata) == "R"


def test_lasting_refusal_costs_one_request_a_try_and_no_containers_in_turn(
    cardata: CarData, file: Path, clock: Clock
) -> None:
    cardata.keep(file)
    cardata.readings = [refuse("CU-105")]
    problem = Client(cardata, file).refused()
    assert "CU-105" in str(problem)
    assert problem.wait_s == pytest.approx(6 * HOUR_S)
    assert methods(cardata) == "RLMR"
    clock.sleep(HOUR_S)
    problem = Client(cardata, file).refused()  # of another start, as --once
    assert problem.wait_s == pytest.approx(6 * HOUR_S)
    assert methods(cardata) == "RLMRR"
    for _ in range(4):
        clock.sleep((problem.wait_s or 0) + 1)
        problem = Client(cardata, file).refused()
    assert methods(cardata) == "RLMRR" + "RLR" * 4
    assert len(cardata.containers) == 2


@pytest.mark.parametrize("status", [400, 404])
def test_gateway_that_refuses_for_an_hour_costs_one_container_and_no_long_pause(
    cardata: CarData, file: Path, status: int
) -> None:
    cardata.keep(file)
    cardata.readings = [*[says(status)] * 4, telematic()]
    client = Client(cardata, file)
    assert [client.refused().wait_s for _ in range(3)] == [None] * 3
    client.poll()
    assert methods(cardata) == "RLMRRRR"


def test_lasting_refusal_is_said_with_its_6_hours(
    cardata: CarData, start: Start, file: Path
) -> None:
    cardata.keep(file)
    cardata.readings = [refuse("CU-105", message=f"No permission for \x1b[31m{VIN}")]
    script = start(settings=cardata.settings())
    script.wait_for_stderr("No permission for ?[31m*** (CU-105); next try in 6 h")


# The quota


@pytest.fixture
def spending(cardata: CarData, file: Path, clock: Clock) -> Any:
    """A door of which these many requests were made so long ago, in seconds."""

    def spending(*ages_s: float) -> Client:
        cardata.keep(file, requests_s=[clock.now_s - age_s for age_s in ages_s])
        return Client(cardata, file)

    return spending


def test_requests_of_24_hours_are_waited_for(
    cardata: CarData, file: Path, clock: Clock, spending: Any
) -> None:
    client = spending(23 * HOUR_S, *[60] * 46)
    client.poll()
    problem = client.refused()
    assert problem.wait_s == pytest.approx(HOUR_S)
    assert "24 hours" in str(problem)
    clock.sleep(HOUR_S - 10)
    assert Client(cardata, file).refused().wait_s == pytest.approx(10)
    assert cardata.spent == 1
    clock.sleep(11)
    client.poll()
    client.refused()
    assert cardata.spent == 2


@pytest.mark.parametrize("age_s", [86_401, -90_000], ids=["older", "before-the-clock-was-set-back"])
def test_requests_of_another_day_do_not_count(
    cardata: CarData, file: Path, spending: Any, age_s: float
) -> None:
    spending(*[age_s] * 60).poll()
    assert len(cardata.kept(file)["requests_s"]) == 1


def test_every_request_is_counted_that_bmw_counts(
    cardata: CarData, file: Path, clock: Clock
) -> None:
    cardata.keep(file)
    client = Client(cardata, file)
    cardata.readings = [
        says(500),
        refuse("CU-104"),
        cardata.expire_token,
        refuse("CU-105"),
        telematic(),
    ]
    client.refused()
    client.refused()
    client.poll()
    assert methods(cardata) == "RRRRLMR"
    assert len(cardata.kept(file)["requests_s"]) == cardata.spent == 7


def test_request_is_on_disk_before_it_is_sent(cardata: CarData, file: Path) -> None:
    """So that the program may end at any moment."""
    kept: list[dict[str, Any]] = []

    def look(handler: Any) -> None:
        kept.append(cardata.kept(file))
        handler.reply(200, telematic())

    cardata.keep(file, container="")
    cardata.containers.clear()
    cardata.readings = [look]
    Client(cardata, file).poll()
    assert len(kept[0]["requests_s"]) == cardata.spent == 3
    assert kept[0]["container"] == cardata.containers[0]["containerId"]


def test_request_that_bmw_leaves_open_is_counted(
    cardata: CarData, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(i3charge.Http, "REQUEST_LIMIT_S", 0.3)
    cardata.keep(file)

    def hang(_: Any) -> None:
        cardata.closing.wait(30)

    cardata.readings = [hang]
    assert not Client(cardata, file).refused().unsent
    assert len(cardata.kept(file)["requests_s"]) == 1


def test_request_that_does_not_get_through_costs_nothing(cardata: CarData, file: Path) -> None:
    cardata.keep(file)
    cardata.stop_listening()
    assert Client(cardata, file).refused().unsent
    assert cardata.kept(file)["requests_s"] == []
    cardata.listen_again()


def test_new_sign_in_is_on_disk_even_if_no_request_follows(
    cardata: CarData, file: Path, clock: Clock
) -> None:
    cardata.keep(file, expires_s=0.0, requests_s=[clock.now_s] * 48)
    Client(cardata, file).refused()
    assert cardata.kept(file)["refresh_token"] == cardata.refresh_token == "secret-refresh-2"


@pytest.mark.parametrize(
    ("utc_time", "wait_s"), [("12:00", 3600), ("22:59", 3600), ("23:30", 1860), ("23:59", 120)]
)
def test_quota_used_up_waits_an_hour_or_for_the_reset(
    cardata: CarData, file: Path, clock: Clock, utc_time: str, wait_s: float
) -> None:
    hour, minute = map(int, utc_time.split(":"))
    clock.now_s = NOW.replace(hour=hour, minute=minute).timestamp()
    cardata.keep(file)
    cardata.quota = 0
    assert Client(cardata, file).refused().wait_s == wait_s


@pytest.mark.parametrize("answered", range(3), ids=["list", "container", "reading"])
@pytest.mark.parametrize("status", [403, 429])
def test_quota_used_up_is_said_whatever_was_asked(
    cardata: CarData, file: Path, answered: int, status: int
) -> None:
    cardata.keep(file, container="")
    cardata.containers.clear()
    cardata.quota, cardata.quota_status = answered, status
    problem = Client(cardata, file).refused()
    assert "50 requests a day are used up" in str(problem)
    assert 60 <= (problem.wait_s or 0) <= 3600
    assert len(cardata.kept(file)["requests_s"]) == answered + 1


def test_too_many_requests_without_a_code_are_the_quota_too(cardata: CarData, file: Path) -> None:
    cardata.keep(file)
    cardata.readings = [says(429)]
    assert "used up" in str(Client(cardata, file).refused())


@pytest.mark.parametrize("code", ["CU-104", "CU-120"])
def test_car_that_is_not_ours_names_the_vin(cardata: CarData, file: Path, code: str) -> None:
    cardata.keep(file)
    cardata.readings = [refuse(code, message=f"No permission for {VIN}")]
    problem = Client(cardata, file).refused()
    assert "check VEHICLE_IDENTIFICATION_NUMBER" in str(problem)
    assert VIN not in str(problem)


# The pace

CHARGING = Reading(60, "charging", full_at=NOW + timedelta(hours=4))


@pytest.mark.parametrize(
    ("charge", "full_in_min", "goals", "next_min"),
    [
        (60, 160, [65, 0], 20),  # 4 minutes a percent
        (60, 160, [65, 63], 12),
        (60, 160, [80, 0], 40),
        (60, 40, [65, 0], 10),  # due in 5
        (60, 40, [99, 0], 30),  # ten minutes before full
        (98, 25, [103, 0], 15),
        (98, 10, [103, 0], 12),  # two minutes after full
        (98, 9, [103, 0], 11),
        (98, 3, [103, 0], 10),
        (98, 0, [103, 0], 10),
        (98, -5, [103, 0], 10),
        (98, 45, [103, 0], 35),
        (60, None, [65, 0], 40),
    ],
)
def test_poll_is_brought_forward_to_when_news_is_expected(
    charge: float, full_in_min: float | None, goals: list[float], next_min: float
) -> None:
    full_at = None if full_in_min is None else NOW + timedelta(minutes=full_in_min)
    found = Reading(charge, "charging", full_at=full_at)
    assert i3charge.news_due_s(found, NOW, goals, 2400) == pytest.approx(next_min * 60)


@pytest.mark.parametrize("interval_s", [60, 300, 599])
def test_shorter_interval_is_never_exceeded(interval_s: float) -> None:
    assert i3charge.news_due_s(CHARGING, NOW, [60.1], interval_s) == interval_s


def test_pace_is_the_same_at_both_doors() -> None:
    at_portal = car("60.0", chargingTimeRemaining="160", updateTime="18.08.2026 14:30:00 UTC")
    found = [
        i3charge.Portal.reading_in(at_portal["attributesMap"], NOW),
        reading(predicted="60", minutes="160"),
    ]
    assert [i3charge.news_due_s(r, NOW, [65], 2400) for r in found] == [1200, 1200]


def paces(readings: list[tuple[float, str]]) -> list[float]:
    """The minutes to the next poll after each of these, each of them full in four hours."""
    watch, full_at = i3charge.ChargeWatch(), NOW + timedelta(minutes=160)
    found: list[float] = []
    for charge, status in readings:
        reading = Reading(charge, status, full_at=full_at)  # type: ignore[arg-type]
        watch.news(reading, NOW)
        found.append(watch.next_poll_s(reading, NOW, 2400) / 60)
    return found


def test_two_polls_in_vain_are_followed_by_a_regular_one() -> None:
    assert paces([(60, "charging")] * 8) == [20, 20] + [40] * 6


def test_poll_that_brought_something_was_not_in_vain() -> None:
    assert paces([(60, "charging"), (60, "charging"), (60, "waiting"), (60, "waiting")]) == [20] * 4
    assert 40 not in paces([(60, "charging"), (60, "charging"), (61, "charging")])


class Restart(Exception):
    pass


class Days:
    """A car that charges twice a day, at a CarData that counts what it is asked."""

    def __init__(self, clock: Clock, charge_hours: float) -> None:
        self.clock, self.charge_hours = clock, charge_hours
        self.began_s = clock.now_s = 1_800_000_000.0
        self.requests_s: list[float] = []

    def send(self, what: str, method: str, url: str, **options: Any) -> i3charge.Answer:
        self.clock.sleep(1)
        if "oauth" in url:
            body = {"access_token": "a", "refresh_token": "r", "expires_in": 3599}
            return i3charge.Answer(what, "host", 200, {}, json.dumps(body).encode())
        self.requests_s.append(self.clock.now_s)
        body = {"containerId": "S0"} if method == "POST" else {}
        body = self.status() if "telematicData" in url else body
        return i3charge.Answer(what, "host", 200, {}, json.dumps(body).encode())

    def status(self) -> dict[str, Any]:
        now = datetime.fromtimestamp(self.clock.now_s, timezone.utc)
        hours = (self.clock.now_s - self.began_s) / HOUR_S % 12
        left = self.charge_hours - hours
        if left < 0:
            return telematic(now, header="100", hv_status="FINISHED_FULLY_CHARGED")
        charge = str(int(100 - 80 * left / self.charge_hours))
        began = ("CHARGINGACTIVE", hours * 60)
        minutes = str(int(left * 60) + 1)
        return telematic(now, predicted=charge, minutes=minutes, header="20", status=began)

    def run(self, file: Path, show: Any) -> None:
        settings = i3charge.Settings(
            {"CARDATA_CLIENT_ID": CLIENT_ID, "VEHICLE_IDENTIFICATION_NUMBER": VIN}
        )
        store = i3charge.Store(file)
        door = i3charge.CarData(settings, self, store, attended=True)  # type: ignore[arg-type]
        phone = i3charge.Phone(settings, self, "i3")  # type: ignore[arg-type]
        settings.check(hint="")
        watch = i3charge.ChargeWatch()
        store.things["car"] = watch
        desktop: Any = SimpleNamespace(show=show)
        i3charge.run(door, store, watch, i3charge.ChargeLog(as_json=False), desktop, phone)


def keep_sign_in(file: Path) -> None:
    file.write_text(json.dumps({f"CarData {CLIENT_ID}": {"refresh_token": "r"}}))


@pytest.mark.parametrize("charge_hours", [2, 4, 11])
def test_days_with_two_charges_and_restarts_stay_within_the_quota(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, charge_hours: float
) -> None:
    days = Days(clock, charge_hours)
    keep_sign_in(file)
    restarts_s = [days.began_s + hours * HOUR_S for hours in (5, 11, 30, 48)]
    move = clock.sleep

    def sleep(seconds: float) -> None:
        move(seconds)
        if clock.now_s > restarts_s[0] and seconds > 1:
            raise Restart

    monkeypatch.setattr(clock, "sleep", sleep)
    while restarts_s:
        with pytest.raises(Restart):
            days.run(file, lambda *_, **__: None)
        restarts_s.pop(0)
    assert len(days.requests_s) > 72  # the regular ones alone
    for first in days.requests_s:
        assert sum(first <= second < first + 86_400 for second in days.requests_s) <= 48


def test_full_battery_is_heard_of_within_minutes(file: Path, clock: Clock) -> None:
    days = Days(clock, 4)
    keep_sign_in(file)
    clock.now_s += 17 * 60  # so that no regular poll is at the charge's end
    told_min: dict[str, float] = {}

    def show(message: str, **_: Any) -> None:
        minutes = (clock.now_s - days.began_s) / 60 - 4 * 60
        told_min.setdefault(" ".join(message.split()[:2]), minutes)
        if message.startswith("Fully"):
            raise Restart

    with pytest.raises(Restart):
        days.run(file, show)
    assert 0 < told_min["Fully charged."] < 10
    assert -11 < told_min["Full in"] < 0
    gaps_s = [later - earlier for earlier, later in zip(days.requests_s, days.requests_s[1:])]
    assert min(gaps_s[2:]) > 595  # a request takes a second; the first two found the container


# Everything together


def test_whole_charge_is_logged_and_told(
    cardata: CarData, start: Start, file: Path, terminal_notifier: Notifier, webhook: Recorder
) -> None:
    cardata.keep(file)
    cardata.readings = [
        *(telematic(predicted=str(charge), minutes=None) for charge in range(52, 92, 3)),
        telematic(predicted="93", minutes="9"),
        telematic(predicted="97", minutes="3"),
        full(),
    ]
    settings = {**cardata.settings(), "WEBHOOK_URL": webhook.url}
    script = start(settings=settings, mac=True)
    webhook.wait_for(lambda: len(webhook.accepted) >= 2, "the webhook")
    soon, done = webhook.messages()
    assert soon.startswith("Full in about 9 min, at ")
    assert done.startswith("Fully charged. ")
    bodies = [json.loads(request.body) for request in webhook.accepted]
    assert [(b["event"], b["predicted"]) for b in bodies] == [("soon", True), ("full", False)]
    terminal_notifier.wait_for_calls(8)
    steps = [f"~{charge}% charged" for charge in (58, 64, 70, 76, 82, 88)]
    assert terminal_notifier.messages() == [*steps, soon, done]
    assert "  ~52%  charging  101 km" in script.stdout[0]
    assert "  100%  full" in script.stdout[-1]
