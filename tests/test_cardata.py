"""CarData: the container, the day's requests, and what BMW refuses."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock, Start
from fake_bmw import VIN, Answer, Handler, Request
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

HOUR_S = 3600
DAY_S = 24 * HOUR_S
INTERVAL_S = 2400
OF_THE_CAR = {HEADER, STATUS, MINUTES, REMAINING, RANGE, PLUG}
LOST = [(403, "CU-105"), (403, "CU-121"), (403, "CU-122"), (404, None), (400, None)]
EXPIRED = [(401, "CU-102"), (401, None), (403, "CU-101"), (403, "CU-127"), (403, None)]
TEMPORARY = [(500, None), (503, "CU-503")]
HINT = "an older car may have to be driven once"


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
    """Signed in, without a container; `--once` runs it, and nobody is there."""
    memory = cardata.signed_in()
    cardata.containers.clear()
    memory.container = i3charge.Container()
    return Client(cardata, memory, attended=False)


@pytest.fixture
def with_stopgap(cardata: CarData, new: Client) -> Client:
    """With a small container, made because BMW was out of order for the full one."""
    cardata.accepted_descriptors = OF_THE_CAR
    cardata.descriptor_refusal = (500, None)
    new.poll()
    assert new.memory.container.purpose == i3charge.SMALL_SET
    cardata.requests.clear()
    return new


def values(report: i3charge.Report) -> dict[str, object]:
    return {each.topic: each.value for each in report.observations}


def asked(cardata: CarData) -> str:
    """What the API was asked for: L for the list, P for a new container, R for a reading."""
    letters = {"GET": {True: "L", False: "R"}, "POST": {True: "P"}}
    api = cardata.seen("/api/")
    return "".join(letters[r.method][r.path.endswith("/containers")] for r in api)


def purposes(cardata: CarData) -> list[str]:
    return [container["purpose"] for container in cardata.containers]


def poll_for(client: Client, clock: Clock, hours: float) -> list[float]:
    """Poll as the loop does; return the times of the requests for containers."""
    client.cardata.quota = 10_000  # it knows nothing of the simulated clock
    times: list[float] = []
    ends_s = clock.now_s + hours * HOUR_S
    while clock.now_s < ends_s:
        before = len(asked(client.cardata))
        trouble = client.problem()
        times += [clock.now_s] * sum(c in "LP" for c in asked(client.cardata)[before:])
        clock.sleep(client.pause_s(trouble, INTERVAL_S))
    return times


# --- The container --------------------------------------------------------------------


def test_every_descriptor_is_in_bmws_catalogue() -> None:
    """BMW refuses a whole container for a wrong one; the fake has the list of them."""
    assert set(i3charge.DESCRIPTORS[i3charge.FULL_SET]) == DESCRIPTORS
    assert set(i3charge.DESCRIPTORS[i3charge.SMALL_SET]) == OF_THE_CAR


def test_container_is_made_once_and_kept(cardata: CarData, new: Client) -> None:
    assert values(new.poll())["predicted"] == 62
    assert values(new.poll())["predicted"] == 62
    assert asked(cardata) == "LPRR"
    assert purposes(cardata) == [i3charge.FULL_SET]


def test_container_that_bmw_does_not_name_is_not_used(cardata: CarData, new: Client) -> None:
    cardata.api_answers = [says(200, {"containers": []}), says(201, "<html>")]
    assert "does not name it" in str(new.refused())
    assert not new.memory.container.id


def test_existing_container_is_found(cardata: CarData, new: Client) -> None:
    cardata.add_container(name="another program's")
    cardata.add_container(purpose=i3charge.SMALL_SET)
    found = cardata.add_container()
    cardata.add_container(state="DELETED")
    new.poll()
    assert (asked(cardata), new.memory.container.id) == ("LR", found)


@pytest.mark.parametrize("refusal", [(400, "CU-402"), *TEMPORARY])
def test_small_container_is_made_if_bmw_refuses_the_full_one(
    cardata: CarData, new: Client, refusal: Any
) -> None:
    cardata.accepted_descriptors = OF_THE_CAR
    cardata.descriptor_refusal = refusal
    assert set(values(new.poll())) == {"plug", "percent", "status", "full_at"}
    assert purposes(cardata) == [i3charge.SMALL_SET]


REFUSALS = [(400, "CU-402"), (403, "CU-403"), (403, "CU-124"), *TEMPORARY]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_search_is_made_once_an_hour_whatever_bmw_answers_and_at_a_start(
    cardata: CarData, new: Client, clock: Clock, refusal: Any
) -> None:
    cardata.container_refusal = refusal
    assert new.refused().wait_s == HOUR_S
    search = asked(cardata)
    clock.sleep(HOUR_S - 1)
    assert new.refused().wait_s == pytest.approx(1, abs=0.1)
    assert asked(cardata) == search
    Client(cardata, new.memory, attended=False).refused()
    assert asked(cardata) == search  # cron starts it every few minutes

    started = Client(cardata, new.memory)
    started.refused()
    assert asked(cardata) == search * 2
    started.refused()
    assert asked(cardata) == search * 2
    clock.sleep(HOUR_S + 1)
    cardata.container_refusal = None
    assert new.poll()


@pytest.mark.parametrize("is_listed", [True, False])
def test_full_container_is_sought_at_the_next_start_if_a_small_one_stands_in(
    cardata: CarData, with_stopgap: Client, clock: Clock, is_listed: bool
) -> None:
    poll_for(with_stopgap, clock, 30)
    assert "P" not in asked(cardata)
    if not is_listed:
        cardata.containers.clear()
    started = Client(cardata, with_stopgap.memory)
    poll_for(started, clock, 30)
    assert asked(cardata).count("P") == (1 if is_listed else 2)
    assert purposes(cardata) == [i3charge.SMALL_SET]

    cardata.accepted_descriptors = set(DESCRIPTORS)
    assert "predicted" in values(Client(cardata, with_stopgap.memory).poll())
    assert with_stopgap.memory.container.purpose == i3charge.FULL_SET
    assert not with_stopgap.memory.container.is_stopgap


def test_small_container_stays_if_bmw_does_not_accept_a_descriptor(
    cardata: CarData, new: Client, clock: Clock
) -> None:
    cardata.accepted_descriptors = OF_THE_CAR
    new.poll()
    cardata.requests.clear()
    for _ in range(2):
        clock.sleep(DAY_S)
        Client(cardata, new.memory).poll()
    assert asked(cardata) == "RR"


FAILED_SEARCHES: dict[str, list[Any]] = {
    "list": [says_code("CU-403")],
    "list-500": [says(500)],
    "made": [says(200, {"containers": []}), says_code("CU-124")],
    "unanswered": [hang_up],
}


@pytest.mark.parametrize("answers", FAILED_SEARCHES.values(), ids=FAILED_SEARCHES.keys())
def test_small_container_goes_on_if_the_search_at_the_start_fails(
    cardata: CarData, with_stopgap: Client, answers: list[Any]
) -> None:
    cardata.accepted_descriptors = set(DESCRIPTORS)
    cardata.api_answers = list(answers)
    assert Client(cardata, with_stopgap.memory).poll()
    assert with_stopgap.memory.container.purpose == i3charge.SMALL_SET
    assert Client(cardata, with_stopgap.memory).poll()
    assert with_stopgap.memory.container.purpose == i3charge.FULL_SET


def test_search_for_a_full_container_costs_cron_no_reading(
    cardata: CarData, with_stopgap: Client, clock: Clock
) -> None:
    """Every start by cron is a new one, and BMW answers 500 to the full set for weeks."""
    cardata.quota = 10_000
    clock.sleep(DAY_S)
    troubles = []
    for _ in range(2 * DAY_S // INTERVAL_S):
        interval = str(INTERVAL_S * 1000)
        started = Client(cardata, with_stopgap.memory, attended=False, LOG_INTERVAL=interval)
        troubles.append(started.problem())
        clock.sleep(INTERVAL_S)
    assert not any(troubles)


def test_search_that_was_not_sent_is_made_at_the_next_poll(cardata: CarData, new: Client) -> None:
    cardata.stop_listening()
    assert not new.refused().was_sent
    cardata.listen_again()
    assert new.poll()


def out_of_requests(cardata: CarData, client: Client, clock: Clock) -> None:
    """Our own count of the day allows the list, and the rest in five seconds."""
    ages_s = [DAY_S - 5.0] * 3 + [60.0] * 44
    client.memory.requests_s = [clock.now_s - age_s for age_s in ages_s]


def no_requests_at_bmw(cardata: CarData, client: Client, clock: Clock) -> None:
    cardata.api_answers = [says_code("CU-429")]
    clock.now_s = datetime.fromisoformat("2026-08-18T23:58+00:00").timestamp()


def token_not_renewed(cardata: CarData, client: Client, clock: Clock) -> None:
    """BMW refuses the access token early, and for once the refresh token."""
    cardata.access_token = "another"
    cardata.token_answers = [oauth_error(400, "invalid_grant")]


def token_unanswered(cardata: CarData, client: Client, clock: Clock) -> None:
    cardata.access_token = "another"
    cardata.token_answers = [hang_up]


def wrong_scope(cardata: CarData, client: Client, clock: Clock) -> None:
    cardata.token_scope = "authenticate_user openid"
    cardata.pending = 0


@pytest.mark.parametrize(
    "trouble",
    [out_of_requests, no_requests_at_bmw, token_not_renewed, token_unanswered, wrong_scope],
)
def test_trouble_of_the_sign_in_or_the_quota_costs_the_container_no_hour(
    cardata: CarData, new: Client, clock: Clock, trouble: Any
) -> None:
    trouble(cardata, new, clock)
    started = Client(cardata, new.memory)
    began_s = clock.now_s
    while problem := started.problem():
        clock.sleep(started.pause_s(problem, INTERVAL_S))
    assert clock.now_s - began_s < 10 * 60


def test_missing_sign_in_does_not_count_as_the_search_of_a_start(
    cardata: CarData, with_stopgap: Client
) -> None:
    cardata.accepted_descriptors = set(DESCRIPTORS)
    with_stopgap.memory.sign_in = i3charge.SignIn()
    started = Client(cardata, with_stopgap.memory)
    while started.problem():
        pass
    assert with_stopgap.memory.container.purpose == i3charge.FULL_SET


@pytest.mark.parametrize("lost", LOST)
def test_container_that_bmw_has_lost_is_replaced(
    cardata: CarData, client: Client, lost: Any
) -> None:
    cardata.lost_container = lost
    cardata.containers[0]["state"] = "DELETED"
    assert values(client.poll())["predicted"] == 62
    assert asked(cardata) == "RLPR"


def test_lost_container_is_not_used_again_even_if_bmw_still_lists_it(
    cardata: CarData, client: Client
) -> None:
    cardata.api_answers = [says_code("CU-105")]
    assert client.poll()
    assert asked(cardata) == "RLPR"


@pytest.mark.parametrize("code", ["CU-105", "CU-500"])
def test_refused_list_counts_as_a_search(
    cardata: CarData, new: Client, clock: Clock, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    new.memory.container = i3charge.Container("S-lost", i3charge.FULL_SET)
    follow_rules = cardata.resource

    def refuse_list(request: Request, path: str) -> Answer:
        is_list = path.endswith("/containers")
        return says_code(code) if is_list else follow_rules(request, path)

    monkeypatch.setattr(cardata, "resource", refuse_list)
    times = poll_for(new, clock, 12)
    assert asked(cardata).startswith("RL")
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    assert gaps and all(HOUR_S <= gap <= 2 * HOUR_S for gap in gaps)


def test_containers_cost_four_requests_an_hour_at_most(
    cardata: CarData, client: Client, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked, BMW says that it has lost the container."""
    cardata.lost_container = (404, None)
    cardata.most_containers = 10_000
    monkeypatch.setattr(cardata, "next_reading", lambda _: cardata.lost_container_refusal())
    times = poll_for(client, clock, 24)
    assert times
    for at_s in times:
        assert sum(0 <= later - at_s < HOUR_S for later in times) <= 4


def test_owner_is_told_if_other_programs_have_made_too_many_containers(
    cardata: CarData, new: Client
) -> None:
    cardata.add_container(name="another program's")
    cardata.add_container(state="DELETED")  # one of our own, which is no help
    cardata.most_containers = 2
    assert str(new.refused()).endswith(
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
    trouble = client.problem()
    assert (trouble and trouble.wait_s) == (wait_s and pytest.approx(wait_s))


@pytest.mark.parametrize(
    ("interval_ms", "most"), [(2_400_000, 48), (50, 48), (4_800_000, 24), (99_999_999, 10)]
)
def test_longer_interval_leaves_requests_to_another_car_on_the_account(
    cardata: CarData, clock: Clock, interval_ms: int, most: int
) -> None:
    client = Client(cardata, cardata.signed_in(), LOG_INTERVAL=str(interval_ms))
    for _ in range(most):
        client.poll()
        clock.sleep(1)
    assert str(client.refused()) == "CarData's requests for 24 hours are spent"
    assert cardata.spent == most


def test_request_is_counted_on_disk_before_it_is_sent(cardata: CarData) -> None:
    memory = cardata.signed_in()
    steps: list[str] = []

    def save() -> bool:
        steps.append(f"saved {len(memory.requests_s)}")
        return True

    def answer(handler: Handler) -> None:
        steps.append("asked")
        handler.reply(200, telematic())

    cardata.readings = [answer]
    Client(cardata, memory, save=save).poll()
    assert steps[:2] == ["saved 1", "asked"]


def test_every_request_counts_that_bmw_may_have_read(
    cardata: CarData, client: Client, clock: Clock
) -> None:
    cardata.readings = [hang_up]
    began_s = clock.now_s
    for failures in range(1, 101):
        client.refused()
        clock.sleep(i3charge.growing_pause_s(failures, INTERVAL_S))
    assert 48 < cardata.spent <= 48 * (1 + (clock.now_s - began_s) // DAY_S)
    assert client.memory.requests_s


class ResettingServer:
    """Resets each connection as soon as the client has begun its TLS handshake."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self.socket.getsockname()[1]}/"
        self.resets = 0
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            with connection:
                if not connection.recv(1):
                    return
                linger = struct.pack("ii", 1, 0)  # so that closing it resets it
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.resets += 1

    def close(self) -> None:
        socket.create_connection(self.socket.getsockname()).close()
        self.thread.join(30)
        self.socket.close()


@pytest.fixture
def resetting() -> Iterator[ResettingServer]:
    server = ResettingServer()
    yield server
    server.close()


def test_request_that_was_not_sent_costs_nothing(
    cardata: CarData, client: Client, resetting: ResettingServer
) -> None:
    reset = Client(cardata, client.memory, CARDATA_BASE_URL=resetting.url)
    assert not reset.refused().was_sent
    assert resetting.resets == 1

    cardata.stop_listening()
    assert not client.refused().was_sent
    cardata.listen_again()
    assert client.memory.requests_s == []


@pytest.mark.parametrize("refusal", [(403, "CU-429"), (429, "CU-429"), (429, None)])
@pytest.mark.parametrize("answered", [0, 1, 2], ids=["list", "container", "reading"])
def test_quota_that_is_used_up_is_said_whatever_was_asked(
    cardata: CarData, new: Client, refusal: Any, answered: int
) -> None:
    cardata.quota, cardata.quota_refusal = answered, refusal
    trouble = new.refused()
    assert str(trouble) == "BMW says that CarData's 50 requests a day are used up"


@pytest.mark.parametrize(("clock_utc", "wait_s"), [("12:00", 3600), ("23:50", 660)])
def test_quota_comes_back_within_the_hour_or_at_midnight_utc(
    cardata: CarData, client: Client, clock: Clock, clock_utc: str, wait_s: float
) -> None:
    clock.now_s = datetime.fromisoformat(f"2026-08-18T{clock_utc}+00:00").timestamp()
    cardata.quota = 0
    assert client.refused().wait_s == wait_s


# --- Refusals -------------------------------------------------------------------------


@pytest.mark.parametrize("answered", [0, 1, 2], ids=["list", "container", "reading"])
def test_owner_of_a_client_id_that_is_not_subscribed_is_told_what_to_do(
    cardata: CarData, new: Client, answered: int
) -> None:
    good = [says(200, {"containers": []}), says(201, {"containerId": "S1"})]
    cardata.api_answers = [*good[:answered], says_code("CU-403", message="invalid resource")]
    assert str(new.refused()) == (
        "CarData says: invalid resource (CU-403): subscribe the client id to the CarData"
        " API in the My BMW portal, and check that you are the car's primary user"
    )


@pytest.mark.parametrize("code", ["CU-104", "CU-120"])
def test_car_that_is_not_ours_names_the_setting(
    cardata: CarData, client: Client, code: str
) -> None:
    cardata.readings = [says_code(code)]
    assert str(client.refused()).endswith(": check VEHICLE_IDENTIFICATION_NUMBER")


@pytest.mark.parametrize("refusal", EXPIRED)
def test_expired_token_is_renewed_and_the_reading_not_lost(
    cardata: CarData, client: Client, refusal: Any
) -> None:
    cardata.expiry_refusal = refusal
    cardata.readings = [cardata.expire_token, telematic()]
    assert values(client.poll())["predicted"] == 62
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
    trouble = str(client.refused())
    assert trouble.isprintable() and len(trouble) < 300
    assert trouble.startswith("CarData says: ?[2J No *** *** *** *** ?xx")


USELESS = "127.0.0.1 gave no useful answer when asked for the car's status (HTTP 200)"
UNUSABLE_ANSWERS: dict[str, tuple[Any, str]] = {
    "nothing": (says(200), USELESS),
    "empty": (says(200, {}), USELESS),
    "list": (says(200, "[]"), USELESS),
    "html": (says(200, "<html>Sorry</html>"), USELESS),
    "no-values": (says(200, {"telematicData": {}}), USELESS),
    "values-of-no-use": (says(200, {"telematicData": {HEADER: {"value": "-"}}}), USELESS),
    "code": (says_code("CU-104", 200), "CarData says: No (CU-104)"),
    "quota": (says_code("CU-429", 200), "BMW says that CarData's 50 requests a day are used up"),
}


@pytest.mark.parametrize(("answer", "said"), UNUSABLE_ANSWERS.values(), ids=UNUSABLE_ANSWERS.keys())
def test_useless_answer_with_status_200_is_named_once_there_was_a_reading(
    cardata: CarData, client: Client, answer: Any, said: str
) -> None:
    client.memory.last = i3charge.Reading(percent=62.0, status="charging")
    cardata.readings = [answer]
    trouble = str(client.refused())
    assert trouble.startswith(said) and HINT not in trouble


@pytest.mark.parametrize("data", [{}, {"telematicData": []}, {"telematicData": {}}, []])
def test_answer_without_values_gives_a_hint_before_the_first_reading(
    cardata: CarData, client: Client, data: Any
) -> None:
    cardata.readings = [says(200, json.dumps(data))]
    assert str(client.refused()) == f"BMW's answer holds no values of the car; {HINT}"


@pytest.mark.parametrize("is_first", [True, False])
def test_answer_without_a_percentage_gives_a_hint_only_before_the_first_reading(
    cardata: CarData, client: Client, is_first: bool
) -> None:
    if not is_first:  # kept by a version that had no journal
        client.memory.last = i3charge.Reading(percent=62.0, status="charging")
    cardata.readings = [telematic(header=None, predicted=None)]
    watch = i3charge.ChargeWatch(client.memory, 0.0, INTERVAL_S)
    with pytest.raises(i3charge.Trouble) as caught:
        watch.observe(client.poll())
    assert (HINT in str(caught.value)) == is_first


def test_refused_token_with_status_200_is_renewed(cardata: CarData, client: Client) -> None:
    cardata.expiry_refusal = (200, "CU-102")
    cardata.readings = [cardata.expire_token, telematic()]
    assert client.poll()


# --- A whole charge -------------------------------------------------------------------


def test_whole_charge_is_logged_and_told(cardata: CarData, start: Start, kept: Path) -> None:
    cardata.readings = [
        telematic(header=("41", 90), status=("NOCHARGING", 90), predicted=None, hv_status=None)
    ]
    cardata.readings += [
        telematic(header=("41", 60), predicted=str(percent)) for percent in (53, 58, 63)
    ]
    cardata.readings += [full()]
    script = start(settings=cardata.settings())
    script.wait_for_stderr("Fully charged: 41 → 100%")
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
