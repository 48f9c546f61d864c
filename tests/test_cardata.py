"""CarData: the container, the day's requests, and what BMW refuses."""

from __future__ import annotations

import re
from datetime import datetime
from socket import SHUT_RDWR
from typing import Any

import pytest
from conftest import Clock, Start
from fake_bmw import VIN, Answer, Handler, says
from fake_cardata import DESCRIPTORS, CarData, Client, Code, full, oauth_error, telematic

import i3charge

HOUR_S = 3600
DAY_S = 24 * HOUR_S
INTERVAL_S = 2400
OF_THE_CAR = set(i3charge.DESCRIPTORS[i3charge.SMALL_SET])


def says_code(code: str, status: int = 403, message: str = "No") -> Answer:
    return lambda handler: CarData.refuse(handler, status, code, message)


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
def stopgap(cardata: CarData, new: Client) -> Client:
    """With a small container, made because BMW was out of order for the full one."""
    cardata.accepted_descriptors = OF_THE_CAR
    cardata.descriptor_refusal = (500, None)
    new.poll()
    cardata.requests.clear()
    return new


def values(report: i3charge.Report) -> dict[str, object]:
    return {each.topic: each.value for each in report.observations}


def asked(cardata: CarData) -> str:
    """What the API was asked for: L for the list, P for a new container, R for a reading."""
    letters = {("GET", True): "L", ("GET", False): "R", ("POST", True): "P"}
    api = cardata.seen("/api/")
    return "".join(letters[r.method, r.path.endswith("/containers")] for r in api)


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
    assert OF_THE_CAR < DESCRIPTORS


def test_container_is_made_once_and_kept(cardata: CarData, new: Client) -> None:
    for _ in range(2):
        assert values(new.poll())["predicted"] == 62
    assert asked(cardata) == "LPRR"
    assert [each["purpose"] for each in cardata.containers] == [i3charge.FULL_SET]


def test_container_that_bmw_does_not_name_is_not_used(cardata: CarData, new: Client) -> None:
    cardata.api_answers = [says(200, {"containers": []}), says(201, "<html>")]
    assert "returned no id" in str(new.refused())
    assert not new.memory.container.id


def test_existing_container_is_found(cardata: CarData, new: Client) -> None:
    cardata.add_container(purpose=i3charge.SMALL_SET)
    found = cardata.add_container()
    cardata.add_container(state="DELETED")
    cardata.add_container(name="another program's")
    new.poll()
    assert (asked(cardata), new.memory.container.id) == ("LR", found)


@pytest.mark.parametrize(
    "lost", [(403, "CU-105"), (403, "CU-121"), (403, "CU-122"), (404, None), (400, None)]
)
def test_lost_container_is_replaced_even_if_bmw_still_lists_it(client: Client, lost: Code) -> None:
    client.cardata.api_answers = [client.cardata.refusal(lost, "No")]
    assert values(client.poll())["predicted"] == 62
    assert asked(client.cardata) == "RLPR"


def test_each_lost_container_is_replaced_even_if_bmw_goes_on_listing_all(
    cardata: CarData, client: Client, clock: Clock
) -> None:
    lost: set[str] = set()
    read = cardata.telematic_data

    def read_or_lost(container_id: str) -> Answer:
        is_lost = container_id in lost
        return cardata.lost_container_refusal() if is_lost else read(container_id)

    cardata.telematic_data = read_or_lost  # type: ignore[method-assign]
    for made in (2, 3):
        lost.add(client.memory.container.id)
        clock.sleep(DAY_S)
        assert client.poll()
        assert cardata.containers_made == made


@pytest.mark.parametrize("status", [404, 400])
def test_bad_minute_of_the_gateway_costs_no_hour(client: Client, status: int) -> None:
    client.cardata.api_answers = [says(status, "<html>")] * 2
    assert client.refused().wait_s is None  # the growing pause
    assert client.poll()


def test_sign_in_that_answers_404_loses_no_container(cardata: CarData, client: Client) -> None:
    cardata.access_token = "another"
    cardata.token_answers = [says(404, "<html>")]
    client.refused()
    assert client.poll()
    assert cardata.containers_made == 1


@pytest.mark.parametrize("refusal", [(400, "CU-402"), (503, "CU-503")])
def test_small_container_is_made_if_bmw_refuses_the_full_one(
    cardata: CarData, new: Client, refusal: Code
) -> None:
    cardata.accepted_descriptors = OF_THE_CAR
    cardata.descriptor_refusal = refusal
    assert set(values(new.poll())) == {"plug", "percent", "status", "full_at"}
    assert asked(cardata) == "LPPR"
    assert Client(cardata, new.memory).poll()
    assert asked(cardata) == "LPPR" + "LPR"


def test_full_container_is_sought_at_a_start_and_once_a_day_if_a_small_one_stands_in(
    cardata: CarData, stopgap: Client, clock: Clock
) -> None:
    clock.sleep(DAY_S)
    assert Client(cardata, stopgap.memory, attended=False).poll()  # as cron starts it
    assert asked(cardata) == "R"
    poll_for(Client(cardata, stopgap.memory), clock, 47)
    assert asked(cardata).replace("R", "") == "LPLP"


def test_small_container_goes_on_until_a_search_has_found_the_full_one(stopgap: Client) -> None:
    cardata, memory = stopgap.cardata, stopgap.memory
    cardata.accepted_descriptors = set(DESCRIPTORS)
    cardata.api_answers = [says_code("CU-403")]
    assert "predicted" not in values(Client(cardata, memory).poll())

    memory.sign_in = i3charge.SignInState()  # waiting for the owner is no search
    started = Client(cardata, memory)
    assert any(not started.problem() for _ in range(4))
    assert memory.container.purpose == i3charge.FULL_SET


@pytest.mark.parametrize("refusal", [(403, "CU-124"), (500, None)])
def test_search_is_made_once_an_hour_and_at_a_start(
    cardata: CarData, new: Client, clock: Clock, refusal: Code
) -> None:
    cardata.container_refusal = refusal
    assert new.refused().wait_s == HOUR_S
    clock.sleep(HOUR_S - 1)
    assert new.refused().wait_s == pytest.approx(1, abs=0.1)
    Client(cardata, new.memory, attended=False).refused()  # as cron starts it
    assert asked(cardata) == "LPP"

    started = Client(cardata, new.memory)
    for _ in range(2):
        started.refused()
    assert asked(cardata) == "LPP" * 2
    clock.sleep(HOUR_S + 1)
    cardata.container_refusal = None
    assert new.poll()


def test_containers_cost_four_requests_an_hour_at_most(client: Client, clock: Clock) -> None:
    """Whatever is asked, BMW says that it has lost the container."""
    client.cardata.most_containers = 10_000
    client.cardata.readings = [lambda handler: client.cardata.lost_container_refusal()(handler)]
    times = poll_for(client, clock, 24)
    assert times
    for at_s in times:
        assert sum(0 <= later - at_s < HOUR_S for later in times) <= 4


@pytest.mark.parametrize("trouble", ["our count", "BMW's count", "token", "scope"])
def test_trouble_of_the_sign_in_or_the_quota_costs_the_container_no_hour(
    cardata: CarData, new: Client, clock: Clock, trouble: str
) -> None:
    if trouble == "our count":  # it allows the list, and the rest in five seconds
        ages_s = [DAY_S - 5.0] * 3 + [60.0] * 44
        new.memory.requests_s = [clock.now_s - age_s for age_s in ages_s]
    elif trouble == "BMW's count":
        cardata.api_answers = [says_code("CU-429")]
        clock.now_s = datetime.fromisoformat("2026-08-18T23:58+00:00").timestamp()
    elif trouble == "token":  # BMW refuses it early, and for once the refresh token
        cardata.access_token = "another"
        cardata.token_answers = [oauth_error(400, "invalid_grant")]
    else:
        cardata.token_scope = "authenticate_user openid"
        cardata.pending = 0
    started = Client(cardata, new.memory)
    limit_s = clock.now_s + 10 * 60
    while problem := started.problem():
        clock.sleep(started.pause_s(problem, INTERVAL_S))
        assert clock.now_s < limit_s


# --- The day's requests ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval_ms", "ages_s", "wait_s"),
    [
        (2_400_000, [60.0] * 47, None),
        (2_400_000, [DAY_S + 1.0] * 48, None),
        (2_400_000, [DAY_S - 5.0, *[60.0] * 47], 5),
        (2_400_000, [-3600.0] * 48, HOUR_S),  # the clock was set back: taken for now
        (4_800_000, [0.0] * 23, None),  # the others are left to another car on the account
        (4_800_000, [0.0] * 24, HOUR_S),
        (99_999_999, [0.0] * 9, None),
        (99_999_999, [0.0] * 10, HOUR_S),
    ],
)
def test_48_requests_are_made_in_any_24_hours_and_fewer_at_a_longer_interval(
    cardata: CarData, clock: Clock, interval_ms: int, ages_s: list[float], wait_s: float | None
) -> None:
    client = Client(cardata, cardata.signed_in(), LOG_INTERVAL=str(interval_ms))
    client.memory.requests_s = [clock.now_s - age_s for age_s in ages_s]
    trouble = client.problem()
    assert (trouble and trouble.wait_s) == (wait_s and pytest.approx(wait_s))
    assert not trouble or str(trouble) == "i3charge has used up its CarData requests for 24 hours"


def test_requests_of_a_clock_that_was_a_month_ahead_expire_in_a_day(
    client: Client, clock: Clock
) -> None:
    client.memory.requests_s = [clock.now_s + 30 * DAY_S] * 48
    assert client.refused()
    clock.sleep(DAY_S)
    assert client.poll()


def test_request_is_counted_on_disk_before_it_is_sent(cardata: CarData) -> None:
    memory = cardata.signed_in()
    saved: list[int] = []

    def save() -> bool:
        saved.append(len(memory.requests_s))
        return True

    def answer(handler: Handler) -> None:
        assert saved == [1]
        handler.reply(200, telematic())

    cardata.readings = [answer]
    assert Client(cardata, memory, save=save).poll()


def test_request_counts_only_if_bmw_may_have_read_it(cardata: CarData, client: Client) -> None:
    cardata.readings = [lambda handler: handler.connection.shutdown(SHUT_RDWR)]
    client.refused()
    assert len(client.memory.requests_s) == 1
    cardata.stop_listening()
    assert not client.refused().may_have_arrived
    cardata.listen_again()
    assert len(client.memory.requests_s) == 1


@pytest.mark.parametrize(
    ("refusal", "clock_utc", "wait_s"),
    [
        ((403, "CU-429"), "12:00", 3600),
        ((429, None), "23:50", 660),
        ((200, "CU-429"), "00:00", 3600),
    ],
)
def test_quota_that_is_used_up_comes_back_within_the_hour_or_at_midnight_utc(
    cardata: CarData, client: Client, clock: Clock, refusal: Code, clock_utc: str, wait_s: float
) -> None:
    clock.now_s = datetime.fromisoformat(f"2026-08-18T{clock_utc}+00:00").timestamp()
    cardata.quota, cardata.quota_refusal = 0, refusal
    trouble = client.refused()
    assert str(trouble) == "BMW says that CarData's 50 requests a day are used up"
    assert trouble.wait_s == wait_s


# --- Refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal", [(401, "CU-102"), (401, None), (403, "CU-101"), (403, None), (200, "CU-127")]
)
def test_expired_token_is_renewed_and_the_reading_not_lost(client: Client, refusal: Code) -> None:
    cardata = client.cardata
    cardata.expiry_refusal = refusal
    cardata.readings = [cardata.expire_token, telematic()]
    assert values(client.poll())["predicted"] == 62
    assert (cardata.refreshes, asked(cardata)) == (1, "RR")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says(503, "<html>"), "127.0.0.1 failed when asked for the car's status"),
        (oauth_error(403, "forbidden"), "127.0.0.1 gave no useful answer when asked for"),
        (says(200, {"telematicData": {}}), "127.0.0.1 gave no useful answer when asked for"),
        (says_code("CU-104"), "CarData says: No (CU-104): check VEHICLE_IDENTIFICATION_NUMBER"),
        (says_code("CU-120"), "CarData says: No (CU-120): check VEHICLE_IDENTIFICATION_NUMBER"),
        (says_code("CU-124"), "CarData says: No (CU-124): CarData allows ten containers, and oth"),
        (says_code("CU-403"), "CarData says: No (CU-403): subscribe the client id to the CarData"),
        (says_code("CU-999", 200), "CarData says: No (CU-999)"),
    ],
)
def test_answer_without_a_reading_is_said_in_plain_words_with_what_to_do(
    cardata: CarData, client: Client, answer: Answer, said: str
) -> None:
    client.memory.last = i3charge.Reading(percent=62.0, status="charging")
    cardata.readings = [answer]
    assert str(client.refused()).startswith(said)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    "data", [{"telematicData": []}, telematic(header=None, predicted=None)], ids=["no", "plug"]
)
def test_hint_to_drive_the_car_is_given_only_before_the_first_reading(
    cardata: CarData, client: Client, data: dict[str, Any], is_first: bool
) -> None:
    if not is_first:
        client.memory.last = i3charge.Reading(percent=62.0, status="charging")
    cardata.readings = [data]
    watch = i3charge.ChargeWatch(client.memory, 0.0, INTERVAL_S)
    with pytest.raises(i3charge.Trouble) as caught:
        watch.observe(client.poll())
    assert ("an older car may have to be driven once" in str(caught.value)) == is_first


def test_what_bmw_says_is_harmless(cardata: CarData, client: Client) -> None:
    secrets = [VIN, VIN.lower(), cardata.access_token, client.memory.container.id]
    said = f"\033[2J\nNo {' '.join(secrets)} \u202e" + "x" * 5000
    cardata.readings = [says_code("CU-999\007", message=said)]
    trouble = str(client.refused())
    assert trouble.isprintable() and len(trouble) < 300
    assert trouble.startswith("CarData says: ?[2J No *** *** *** *** ?xx")


# --- A whole charge -------------------------------------------------------------------


def test_whole_charge_is_logged_and_told_and_a_restart_needs_no_sign_in(
    cardata: CarData, start: Start
) -> None:
    cardata.readings = [
        telematic(header=("41", 90), status=("NOCHARGING", 90), predicted=None, hv_status=None),
        *[telematic(header=("41", 60), predicted=str(percent)) for percent in (53, 58)],
        full(),
    ]
    script = start(settings=cardata.settings())
    script.wait_for_stderr("Fully charged: 41 → 100%")
    script.interrupt()
    assert [re.split("  +", line)[1:3] for line in script.stdout][:4] == [
        ["41%", "plugged in"],
        ["~53%", "charging"],
        ["~58%", "charging"],
        ["100%", "full"],
    ]
    assert script.stderr_with("Charging from 41%")

    assert start("--once", settings=cardata.settings()).end() == 0
    assert (cardata.sign_ins, cardata.refreshes) == (1, 0)
