"""CarData: the container, the day's requests, and what BMW refuses."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock, Start
from fake_bmw import VIN, Handler
from fake_cardata import (
    DESCRIPTORS,
    HEADER,
    MINUTES,
    PLUG,
    RANGE,
    REMAINING,
    STATUS,
    CarData,
    Client,
    full,
    oauth_error,
    says,
    telematic,
)

import i3charge
from i3charge import NoAnswer, NoReading

HOUR_S = 3600
DAY_S = 24 * HOUR_S
INTERVAL_S = 2400
OF_THE_CAR = {HEADER, STATUS, MINUTES, REMAINING, RANGE, PLUG}
LOST = [(403, "CU-105"), (403, "CU-122"), (404, None), (400, None)]
EXPIRED = [(401, "CU-102"), (401, None), (403, "CU-101"), (403, "CU-127"), (403, None)]


def says_code(code: str, status: int = 403, message: str = "No") -> Any:
    return lambda handler: CarData.refuse(handler, status, code, message)


def hang_up(handler: Handler) -> None:
    handler.connection.close()
    handler.close_connection = True


@pytest.fixture
def client(cardata: CarData) -> Client:
    """Signed in, with a container."""
    return Client(cardata, cardata.signed_in())


@pytest.fixture
def new(cardata: CarData) -> Client:
    """Signed in, without a container; it runs by `--once`, with nobody there."""
    memory = cardata.signed_in()
    cardata.containers.clear()
    memory.container = i3charge.Container()
    return Client(cardata, memory, attended=False)


def asked(cardata: CarData) -> str:
    """What the API was asked for: L for the list, P for a new container, R for a reading."""
    letters = {"GET": {True: "L", False: "R"}, "POST": {True: "P"}}
    api = cardata.seen("/api/")
    return "".join(letters[r.method][r.path.endswith("/containers")] for r in api)


def purposes(cardata: CarData) -> list[str]:
    return [container["purpose"] for container in cardata.containers]


def poll_for(client: Client, clock: Clock, hours: float) -> list[float]:
    """Poll as the loop does; returns the times of the requests on containers."""
    client.cardata.quota = 10_000  # it knows nothing of the simulated clock
    times: list[float] = []
    ends_s = clock.now_s + hours * HOUR_S
    while clock.now_s < ends_s:
        before = len(asked(client.cardata))
        problem = client.problem()
        times += [clock.now_s] * sum(c in "LP" for c in asked(client.cardata)[before:])
        clock.sleep(client.pause_s(problem, INTERVAL_S))
    return times


# --- The container --------------------------------------------------------------------


def test_every_descriptor_is_in_bmws_catalogue() -> None:
    """One that is not would refuse the whole container; the fake has the list of them."""
    assert set(i3charge.DESCRIPTORS[i3charge.FULL_SET]) == DESCRIPTORS
    assert set(i3charge.DESCRIPTORS[i3charge.SMALL_SET]) == OF_THE_CAR


def test_container_is_made_once_and_kept(cardata: CarData, new: Client) -> None:
    assert new.poll().charge == 62
    assert new.poll().charge == 62
    assert asked(cardata) == "LPRR"
    assert purposes(cardata) == [i3charge.FULL_SET]


def test_container_that_bmw_does_not_name_is_none(cardata: CarData, new: Client) -> None:
    cardata.api_answers = [says(200, {"containers": []}), says(201, "<html>")]
    assert "does not name it" in str(new.refused())
    assert not new.memory.container.id


def test_container_that_exists_is_found(cardata: CarData, new: Client) -> None:
    cardata.add_container(name="another program's")
    cardata.add_container(purpose=i3charge.SMALL_SET)
    found = cardata.add_container()
    cardata.add_container(state="DELETED")
    new.poll()
    assert (asked(cardata), new.memory.container.id) == ("LR", found)


@pytest.mark.parametrize("refusal", [(400, "CU-402"), (500, None), (503, "CU-503")])
def test_refused_container_is_made_of_the_cars_own_words(
    cardata: CarData, new: Client, refusal: Any
) -> None:
    cardata.accepted_descriptors = OF_THE_CAR
    cardata.descriptor_refusal = refusal
    cardata.readings = [telematic(predicted=None, hv_status=None)]
    assert new.poll().source == "interpolated"
    assert purposes(cardata) == [i3charge.SMALL_SET]


REFUSALS = [(400, "CU-402"), (403, "CU-403"), (403, "CU-124"), (500, None), (503, "CU-503")]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_search_is_made_once_an_hour_whatever_bmw_answers_and_at_once_by_hand(
    cardata: CarData, new: Client, clock: Clock, refusal: Any
) -> None:
    cardata.container_refusal = refusal
    assert new.refused().wait_s == HOUR_S
    search = asked(cardata)
    clock.sleep(HOUR_S - 1)
    assert new.refused().wait_s == pytest.approx(1, abs=0.1)
    assert asked(cardata) == search

    by_hand = Client(cardata, new.memory)
    by_hand.refused()
    assert asked(cardata) == search * 2
    by_hand.refused()
    assert asked(cardata) == search * 2  # by hand is only the first
    clock.sleep(HOUR_S + 1)
    cardata.container_refusal = None
    assert new.poll()


@pytest.mark.parametrize("is_listed", [True, False])
def test_start_by_hand_seeks_a_full_container_where_a_small_one_stands_in(
    cardata: CarData, new: Client, clock: Clock, is_listed: bool
) -> None:
    cardata.accepted_descriptors = OF_THE_CAR
    poll_for(new, clock, 30)
    assert asked(cardata).count("P") == 2  # a full one, and a small one
    if not is_listed:
        cardata.containers.clear()
    by_hand = Client(cardata, new.memory)
    assert by_hand.poll() and by_hand.poll()
    assert purposes(cardata) == [i3charge.SMALL_SET]
    assert asked(cardata).count("P") == (3 if is_listed else 4)

    cardata.accepted_descriptors = set(DESCRIPTORS)
    assert Client(cardata, new.memory).poll()
    assert new.memory.container.purpose == i3charge.FULL_SET


def test_sign_in_that_is_missing_is_no_search(cardata: CarData, new: Client) -> None:
    """So the start by hand still seeks a full container when the owner has signed in."""
    cardata.accepted_descriptors = OF_THE_CAR
    assert new.poll()
    cardata.accepted_descriptors = set(DESCRIPTORS)
    new.memory.sign_in = i3charge.SignIn()
    by_hand = Client(cardata, new.memory)
    while by_hand.problem():
        pass
    assert new.memory.container.purpose == i3charge.FULL_SET


def test_small_container_goes_on_where_the_search_at_a_start_by_hand_is_refused(
    cardata: CarData, new: Client
) -> None:
    cardata.accepted_descriptors = OF_THE_CAR
    assert new.poll()
    cardata.api_answers = [says_code("CU-403")]
    assert Client(cardata, new.memory).poll()
    assert new.memory.container.purpose == i3charge.SMALL_SET


def test_search_that_was_not_sent_is_made_again_at_the_next_poll(
    cardata: CarData, new: Client
) -> None:
    cardata.stop_listening()
    assert not new.unanswered().was_sent
    cardata.listen_again()
    assert new.poll()


@pytest.mark.parametrize("lost", LOST)
def test_container_that_bmw_has_lost_is_replaced(
    cardata: CarData, client: Client, lost: Any
) -> None:
    cardata.lost_container = lost
    cardata.containers[0]["state"] = "DELETED"
    assert client.poll().charge == 62
    assert asked(cardata) == "RLPR"


def test_lost_container_is_not_used_again_where_bmw_still_lists_it(
    cardata: CarData, client: Client
) -> None:
    cardata.api_answers = [says_code("CU-105")]
    assert client.poll().charge == 62
    assert asked(cardata) == "RLPR"


@pytest.mark.parametrize("code", ["CU-105", "CU-500"])
def test_list_that_is_refused_counts_as_a_try(
    cardata: CarData, new: Client, clock: Clock, code: str
) -> None:
    new.memory.container = i3charge.Container("S-lost", i3charge.FULL_SET)
    refuse = says_code(code)
    cardata.api_answers = [says_code("CU-105"), *[refuse] * 40]
    times = poll_for(new, clock, 12)
    assert asked(cardata).startswith("RL")
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    assert gaps and min(gaps) >= HOUR_S


def test_containers_cost_four_requests_an_hour_at_most(
    cardata: CarData, client: Client, clock: Clock
) -> None:
    """Whatever is asked, BMW says that it has lost the container."""
    cardata.lost_container = (404, None)
    cardata.most_containers = 10_000
    cardata.next_reading = lambda _: cardata.lost_container_refusal()  # type: ignore
    times = poll_for(client, clock, 24)
    assert times
    for at_s in times:
        assert sum(0 <= later - at_s < HOUR_S for later in times) <= 4


def test_older_container_is_used_where_there_are_too_many(cardata: CarData, new: Client) -> None:
    cardata.add_container(purpose="descriptors 1", state="DELETED")
    older = cardata.add_container(purpose="descriptors 1")
    cardata.add_container(purpose="descriptors 1", state="INACTIVE")
    cardata.most_containers = 3
    new.poll()
    assert new.memory.container.id == older


def test_too_many_containers_of_others_are_said(cardata: CarData, new: Client) -> None:
    cardata.add_container(name="another program's")
    cardata.add_container(state="DELETED")  # one of our own, which is no help
    cardata.most_containers = 2
    problem = new.refused()
    assert str(problem).endswith(
        "(CU-124): CarData allows ten containers, and other programs have made them: delete one"
        " with the program that made it"
    )


# --- The day's requests ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("ages_s", "wait_s"),
    [
        ([60.0] * 47, None),
        ([60.0] * 48, DAY_S - 60),
        ([DAY_S + 1.0] * 48, None),
        ([DAY_S - 5.0, *[60.0] * 47], 5),
        ([-3600.0] * 48, DAY_S),  # from before the clock was set back: taken for now
    ],
)
def test_48_requests_are_made_in_any_24_hours(
    client: Client, clock: Clock, ages_s: list[float], wait_s: float | None
) -> None:
    client.memory.requests_s = [clock.now_s - age_s for age_s in ages_s]
    problem = client.problem()
    assert (problem and problem.wait_s) == (wait_s and pytest.approx(wait_s))


@pytest.mark.parametrize(
    ("interval_ms", "most"), [(2_400_000, 48), (50, 48), (4_800_000, 24), (99_999_999, 10)]
)
def test_longer_interval_leaves_requests_to_another_car_on_the_account(
    cardata: CarData, clock: Clock, interval_ms: int, most: int
) -> None:
    memory = cardata.signed_in()
    client = Client(cardata, memory, LOG_INTERVAL=str(interval_ms))
    for _ in range(most):
        client.poll()
        clock.sleep(1)
    assert str(client.refused()) == "CarData's requests for 24 hours are spent"
    assert cardata.spent == most


def test_request_is_on_disk_before_it_is_sent(cardata: CarData, tmp_path: Path) -> None:
    path = tmp_path / ".i3charge.json"
    client = Client(cardata, cardata.keep(path))
    seen = []

    def look(handler: Handler) -> None:
        seen.append(len(json.loads(path.read_text())["requests_s"]))
        handler.reply(200, telematic())

    cardata.readings = [look]
    client.poll()
    assert seen == [1]


def test_every_request_counts_that_bmw_may_have_read(
    cardata: CarData, client: Client, clock: Clock
) -> None:
    cardata.readings = [hang_up]
    began_s = clock.now_s
    for failures in range(1, 101):
        with suppress(NoReading, NoAnswer):  # NoReading where the day's requests are spent
            client.poll()
        clock.sleep(i3charge.growing_pause_s(failures, INTERVAL_S))
    assert 48 < cardata.spent <= 48 * (1 + (clock.now_s - began_s) // DAY_S)
    assert client.memory.requests_s


def test_request_that_was_not_sent_costs_nothing(cardata: CarData, client: Client) -> None:
    cardata.stop_listening()
    assert not client.unanswered().was_sent
    assert client.memory.requests_s == []
    cardata.listen_again()


@pytest.mark.parametrize("refusal", [(403, "CU-429"), (429, "CU-429"), (429, None)])
@pytest.mark.parametrize("answered", [0, 1, 2], ids=["list", "container", "reading"])
def test_quota_that_is_used_up_is_said_whatever_was_asked(
    cardata: CarData, new: Client, refusal: Any, answered: int
) -> None:
    cardata.quota, cardata.quota_refusal = answered, refusal
    problem = new.refused()
    assert str(problem) == "BMW says that CarData's 50 requests a day are used up"


@pytest.mark.parametrize(("clock_utc", "wait_s"), [("12:00", 3600), ("23:50", 660)])
def test_quota_comes_back_within_the_hour_or_at_midnight_utc(
    cardata: CarData, client: Client, clock: Clock, clock_utc: str, wait_s: float
) -> None:
    clock.now_s = datetime.fromisoformat(f"2026-08-18T{clock_utc}+00:00").timestamp()
    cardata.quota = 0
    assert client.refused().wait_s == wait_s


# --- Refusals -------------------------------------------------------------------------


@pytest.mark.parametrize("answered", [0, 1, 2], ids=["list", "container", "reading"])
def test_client_id_that_is_not_subscribed_is_told_what_to_do(
    cardata: CarData, new: Client, answered: int
) -> None:
    good = [says(200, {"containers": []}), says(201, {"containerId": "S1"})]
    cardata.api_answers = [*good[:answered], says_code("CU-403", message="invalid resource")]
    assert str(new.refused()) == (
        "CarData says: invalid resource (CU-403): subscribe the client id to the CarData"
        " API, and check that you are the car's primary user"
    )


@pytest.mark.parametrize("code", ["CU-104", "CU-120"])
def test_car_that_is_not_ours_names_the_setting(
    cardata: CarData, client: Client, code: str
) -> None:
    cardata.readings = [says_code(code)]
    assert str(client.refused()).endswith("; check VEHICLE_IDENTIFICATION_NUMBER")


@pytest.mark.parametrize("refusal", EXPIRED)
def test_expired_token_is_renewed_and_the_reading_not_lost(
    cardata: CarData, client: Client, refusal: Any
) -> None:
    cardata.expiry_refusal = refusal
    cardata.readings = [cardata.expire_token, telematic()]
    assert client.poll().charge == 62
    assert (cardata.refreshes, asked(cardata)) == (1, "RR")


def test_refusal_without_a_code_is_said_in_plain_words(cardata: CarData, client: Client) -> None:
    cardata.readings = [says(503, "<html>"), oauth_error(403, "forbidden")]
    assert str(client.refused()) == (
        "127.0.0.1 is out of order when asked for the car's status (HTTP 503)"
    )
    assert "gave no useful answer" in str(client.refused())


def test_what_bmw_says_is_harmless(cardata: CarData, client: Client) -> None:
    secrets = [VIN, VIN.lower(), cardata.access_token, client.memory.container.id]
    said = f"\033[2J\nNo {' '.join(secrets)} \u202e" + "x" * 5000
    cardata.readings = [says_code("CU-999\007", message=said)]
    problem = str(client.refused())
    assert problem.isprintable() and len(problem) < 300
    assert problem.startswith("CarData says: ?[2J No *** *** *** *** ?xx")


@pytest.mark.parametrize("data", [{}, {"telematicData": []}, {"telematicData": {}}, []])
def test_answer_without_a_charge_is_no_reading(cardata: CarData, client: Client, data: Any) -> None:
    cardata.readings = [says(200, json.dumps(data))]
    assert "holds no charge" in str(client.refused())


# --- A whole charge -------------------------------------------------------------------


def test_whole_charge_is_logged_and_told(cardata: CarData, start: Start, kept: Path) -> None:
    cardata.readings = [telematic(status="NOCHARGING", predicted=None, header="41")]
    cardata.readings += [telematic(predicted=str(charge)) for charge in (53, 58, 63)]
    cardata.readings += [full()]
    script = start(settings=cardata.settings())
    script.wait_for_stderr("Fully charged.")
    script.interrupt()

    lines = [re.split("  +", line) for line in script.stdout]
    assert [line[1:3] for line in lines][:5] == [
        ["41%", "plugged in"],
        ["~53%", "charging"],
        ["~58%", "charging"],
        ["~63%", "charging"],
        ["100%", "full"],
    ]
    assert any("Charging from 41%" in line for line in script.stderr)
    assert kept.stat().st_mode & 0o777 == 0o600
