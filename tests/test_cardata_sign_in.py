"""Signing in at BMW CarData, and the file in which that is kept, which processes share."""

from __future__ import annotations

import fcntl
import json
import logging
import stat
from pathlib import Path
from typing import Any

import pytest
from conftest import Notifier, Script, Start
from fake_bmw import Recorder
from fake_cardata import CLIENT_ID, CarData, Client, Clock, oauth_error, says, telematic

import i3charge
from i3charge import SignInFailed, TryAgain

LINK = "https://customer.bmwgroup.com/oneid/link"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(i3charge, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "i3charge")
    return caplog


def wait_for_reading(client: Client, clock: Clock) -> list[TryAgain]:
    """Poll until there is a reading, on a clock that need not be waited for."""
    problems: list[TryAgain] = []
    while problem := client.problem():
        problems.append(problem)
        assert len(problems) < 20, problems
        clock.sleep(problem.wait_s or 1)
    return problems


def waiting(cardata: CarData, file: Path) -> Client:
    """A script whose owner has been asked, and has not confirmed yet."""
    cardata.pending = 0
    client = Client(cardata, file)
    client.refused()
    return client


def dead(cardata: CarData, file: Path, **more: Any) -> dict[str, Any]:
    """Let the file hold an access token that has expired and a refresh token that is dead."""
    return cardata.keep(file, expires_s=0.0, refresh_token="secret-dead", **more)


# The device flow


def test_first_run_shows_address_and_code_on_lines_of_their_own(
    cardata: CarData, start: Start, file: Path, terminal_notifier: Notifier, ntfy: Recorder
) -> None:
    cardata.pending = 2
    settings = {**cardata.settings(), "NTFY_URL": ntfy.url + "topic"}
    script = start(settings=settings, mac=True)
    script.wait_for_readings(1)
    assert script.stderr.count(f"{LINK}?user_code=CODE-1") == 1
    assert script.stderr.count("CODE-1") == 1
    assert script.stderr_with("signed in at BMW") == 1
    assert len(cardata.seen("device/code")) == cardata.sign_ins == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    terminal_notifier.wait_for_calls(1)
    (call,) = terminal_notifier.calls()
    assert call[call.index("-open") + 1] == f"{LINK}?user_code=CODE-1"
    assert f"{LINK}?user_code=CODE-1" in terminal_notifier.messages()[0]
    (told,) = ntfy.accepted
    assert told.headers["Click"] == f"{LINK}?user_code=CODE-1"
    assert f"{LINK}?user_code=CODE-1" in told.body.decode()


def test_address_without_the_code_in_it_is_enough(cardata: CarData, file: Path) -> None:
    cardata.complete_uri = False
    problem = Client(cardata, file).refused()
    assert problem.click == LINK
    assert {LINK, "CODE-1"} <= set(problem.news.split("\n"))


def test_sign_in_is_asked_for_at_the_pace_that_bmw_names(
    cardata: CarData, file: Path, clock: Clock
) -> None:
    cardata.interval_s = 7
    cardata.pending = 2
    problems = wait_for_reading(Client(cardata, file), clock)
    assert [(p.wait_s, str(p)) for p in problems] == [(7, "")] * 3
    assert cardata.sign_ins == 1


def test_slow_down_adds_five_seconds(cardata: CarData, file: Path) -> None:
    cardata.interval_s = 3
    client = waiting(cardata, file)
    cardata.token_answers = [oauth_error(400, "slow_down")]
    cardata.pending = 1
    assert [client.refused().wait_s, client.refused().wait_s] == [8, 8]
    client.poll()


@pytest.mark.parametrize("body", [{"message": "no"}, "<html>", ""])
def test_forbidden_without_an_error_is_not_yet(cardata: CarData, file: Path, body: Any) -> None:
    client = waiting(cardata, file)
    cardata.token_answers = [says(403, body)]
    problem = client.refused()
    assert (problem.wait_s, str(problem)) == (cardata.interval_s, "")
    client.poll()
    assert cardata.sign_ins == len(cardata.device_codes) == 1


@pytest.mark.parametrize(
    "answer",
    [
        says(500, "<html>"),
        says(500, {"message": "Internal Server Error"}),
        says(503, {"error": "temporarily_unavailable"}),
        says(429, {"error": "rate_limited"}),
    ],
)
def test_code_outlasts_an_odd_answer(cardata: CarData, file: Path, answer: Any) -> None:
    client = waiting(cardata, file)
    cardata.token_answers = [answer]
    problem = client.refused()
    assert str(problem)
    assert problem.wait_s == cardata.interval_s + 5
    client.poll()
    assert len(cardata.device_codes) == 1


@pytest.mark.parametrize("status", [400, 401])
def test_gateway_that_gives_no_code_does_not_end_the_program(
    cardata: CarData, file: Path, status: int
) -> None:
    cardata.device_answers = [says(status, "<html>")]
    client = Client(cardata, file)
    assert str(client.refused())
    assert LINK in client.refused().news


def test_code_that_bmw_fails_over_is_replaced_a_minute_later(
    cardata: CarData, file: Path, clock: Clock
) -> None:
    cardata.codes_that_fail = 1
    client = waiting(cardata, file)
    problem = client.refused()
    assert problem.wait_s == 60
    for advice in ("private window", "ad blocker", "delete the client id"):
        assert advice in str(problem)
    assert len(cardata.device_codes) == 1
    assert "CODE-2" in client.refused().news  # the owner is away, and believes that it is done
    wait_for_reading(client, clock)
    assert len(cardata.device_codes) == 2


@pytest.mark.parametrize("fault", [None, says(500), says(503, "<html>")])
@pytest.mark.parametrize("error", ["access_denied", "invalid_grant"])
def test_code_that_is_refused_after_a_fault_is_replaced(
    cardata: CarData, file: Path, fault: Any, error: str
) -> None:
    client = waiting(cardata, file)
    if fault:
        cardata.token_answers = [fault]
        client.refused()
    cardata.token_answers = [oauth_error(403, error)]
    if error == "access_denied" and not fault:
        with pytest.raises(SignInFailed, match="access_denied"):
            client.poll()
        return
    assert client.refused().wait_s == 60
    client.refused()
    assert len(cardata.device_codes) == 2
    # What befell the first code does not excuse what is said of the second.
    cardata.token_answers = [oauth_error(403, "access_denied")]
    with pytest.raises(SignInFailed):
        client.poll()


def test_sign_in_that_the_owner_declines_ends_the_program(
    cardata: CarData, start: Start, webhook: Recorder
) -> None:
    cardata.token_answers = [oauth_error(403, "access_denied")]
    script = start(settings={**cardata.settings(), "WEBHOOK_URL": webhook.url})
    assert script.end() == 1
    assert script.stderr_with("start again") == 1
    assert len(cardata.device_codes) == 1


def test_client_that_bmw_does_not_know_ends_it(cardata: CarData, file: Path) -> None:
    with pytest.raises(SignInFailed, match="check CARDATA_CLIENT_ID"):
        Client(cardata, file, CARDATA_CLIENT_ID="another").poll()
    assert len(cardata.requests) == 1


def test_client_that_is_not_let_in_yet_is_told_what_to_subscribe(
    cardata: CarData, file: Path, clock: Clock
) -> None:
    cardata.device_answers = [says(403, {"error": "x"}), says(500)]
    client = Client(cardata, file)
    problem = client.refused()
    assert "subscribe the client id to the CarData API" in str(problem)
    assert problem.wait_s == 60
    assert not client.refused().news  # a fault of BMW's
    assert LINK in client.refused().news


@pytest.mark.parametrize("by_its_clock", [True, False])
def test_third_code_that_expires_makes_the_pauses_long(
    cardata: CarData, file: Path, clock: Clock, by_its_clock: bool
) -> None:
    cardata.pending = 1000
    client = Client(cardata, file)

    def expire() -> TryAgain:
        if by_its_clock:
            clock.sleep(301)
        else:
            cardata.expired_codes = set(cardata.device_codes)
        return client.refused()

    client.refused()
    assert [str(expire()), str(expire())] == ["", ""]  # a new code at once
    for codes in (3, 4):
        assert len(cardata.device_codes) == codes
        problem = expire()
        assert problem.wait_s == 30 * 60
        assert "a new start gives a new code at once" in str(problem)
        assert len(cardata.device_codes) == codes
        assert not client.refused().news
    cardata.pending = 0
    client.poll()


@pytest.mark.parametrize(
    ("known", "given"),
    [
        ("c0ffee00-aaaa-bbbb-cccc-0123456789ab", "C0FFEE00-AAAA-BBBB-CCCC-0123456789AB"),
        ("c0ffee00-aaaa-bbbb-cccc-0123456789ab", "c0ffee00-aaaa-bbbb-cccc-0123456789ab"),
        ("Not-A-UUID", "Not-A-UUID"),
    ],
)
def test_client_id_is_sent_in_lower_case_if_it_is_a_uuid(
    cardata: CarData, file: Path, clock: Clock, known: str, given: str
) -> None:
    cardata.client_id = known
    wait_for_reading(Client(cardata, file, CARDATA_CLIENT_ID=given), clock)
    assert cardata.sign_ins == 1


def test_ctrl_c_while_the_owner_is_waited_for(cardata: CarData, start: Start) -> None:
    cardata.pending = 10**6
    script = start(settings=cardata.settings())
    cardata.wait_for(lambda: len(cardata.seen("oauth/token")) >= 3, "requests for the token")
    assert script.interrupt() == 130
    assert len(cardata.device_codes) == 1


# The scope


def test_token_that_is_not_for_cardata_is_not_kept(
    cardata: CarData, file: Path, clock: Clock
) -> None:
    whole = cardata.scope
    cardata.scope = "authenticate_user openid"
    client = waiting(cardata, file)
    problem = client.refused()
    assert "subscribe the client id to the CarData API" in str(problem)
    assert cardata.kept(file)["refresh_token"] == ""
    assert cardata.spent == 1
    cardata.scope = whole
    wait_for_reading(client, clock)
    assert (cardata.sign_ins, cardata.refreshes) == (2, 0)


def test_sign_in_that_is_not_for_cardata_is_made_anew(
    cardata: CarData, file: Path, clock: Clock
) -> None:
    whole = cardata.scope
    cardata.scope = "authenticate_user openid"
    cardata.keep(file)
    client = Client(cardata, file)
    assert "subscribe the client id to the CarData API" in str(client.refused())
    cardata.scope = whole
    assert LINK in client.refused().news
    wait_for_reading(client, clock)
    assert (cardata.sign_ins, cardata.refreshes) == (1, 0)


# Renewing


REFUSALS = [(401, "CU-102"), (401, "CU-101"), (403, "CU-127"), (403, None), (401, None)]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_expired_token_is_renewed_once_and_the_reading_not_lost(
    cardata: CarData, file: Path, refusal: tuple[int, str | None]
) -> None:
    cardata.keep(file)
    cardata.expiry_refusal = refusal
    cardata.readings = [cardata.expire_token, telematic(predicted="63")]
    client = Client(cardata, file)
    assert client.poll().charge == 63
    assert (cardata.refreshes, cardata.spent) == (1, 2)
    assert cardata.kept(file)["refresh_token"] == cardata.refresh_token
    cardata.readings = [cardata.expire_token]
    client.refused()
    assert (cardata.refreshes, cardata.spent) == (2, 4)


def test_token_is_renewed_shortly_before_it_ends(
    cardata: CarData, file: Path, clock: Clock
) -> None:
    cardata.keep(file, expires_s=clock.now_s + 50)
    Client(cardata, file).poll()
    assert [r.path.split("/")[1] for r in cardata.requests] == ["oauth", "api"]


def test_new_refresh_token_is_on_disk_before_it_is_used(cardata: CarData, file: Path) -> None:
    on_disk = []

    def look(handler: Any) -> None:
        on_disk.append(cardata.kept(file)["refresh_token"])
        handler.reply(200, telematic())

    cardata.keep(file, expires_s=0.0)
    cardata.readings = [look]
    Client(cardata, file).poll()
    assert on_disk == ["secret-refresh-2"]


def test_refresh_that_names_no_refresh_token_keeps_the_old(cardata: CarData, file: Path) -> None:
    kept = cardata.keep(file, expires_s=0.0)
    answer = {"access_token": kept["access_token"], "expires_in": 3599}
    cardata.token_answers = [says(200, answer)]
    Client(cardata, file).poll()
    assert cardata.kept(file)["refresh_token"] == kept["refresh_token"]


@pytest.mark.parametrize(
    "answer", [says(500, "<html>"), *(says(status, "<html>") for status in (400, 401, 403))]
)
def test_gateway_cannot_take_the_refresh_token(cardata: CarData, file: Path, answer: Any) -> None:
    cardata.keep(file, expires_s=0.0)
    cardata.token_answers = [answer] * 3
    client = Client(cardata, file)
    assert [client.refused().news for _ in range(3)] == [""] * 3
    client.poll()
    assert cardata.device_codes == {}


@pytest.mark.parametrize("status", [400, 401, 403])
def test_refused_refresh_is_tried_once_more(cardata: CarData, file: Path, status: int) -> None:
    client = Client(cardata, file)
    for _ in range(2):  # each time anew
        cardata.keep(file, expires_s=0.0)
        cardata.token_answers = [oauth_error(status, "invalid_grant")]
        problem = client.refused()
        assert not problem.news
        assert cardata.kept(file)["refresh_token"] == cardata.refresh_token
        client.poll()
    assert cardata.device_codes == {}


def test_second_refusal_asks_the_owner_and_keeps_the_old_token(
    cardata: CarData, file: Path, clock: Clock
) -> None:
    dead(cardata, file)
    Client(cardata, file).refused()
    client = Client(cardata, file)  # a restart in between is no new beginning
    problem = client.refused()
    assert cardata.refused_refreshes == 2
    assert f"{LINK}?user_code=CODE-1" in problem.news
    assert problem.click == f"{LINK}?user_code=CODE-1"
    assert not client.refused().news
    assert cardata.kept(file)["refresh_token"] == "secret-dead"
    wait_for_reading(client, clock)
    assert cardata.kept(file)["refresh_token"] == cardata.refresh_token != "secret-dead"


def test_refused_refresh_reads_the_file_again(cardata: CarData, file: Path) -> None:
    """Where nothing can be locked, another process may have been faster."""
    dead(cardata, file)

    def be_faster(handler: Any) -> None:
        cardata.keep(file, expires_s=0.0)
        handler.reply(400, {"error": "invalid_grant"})

    cardata.token_answers = [be_faster]
    Client(cardata, file).poll()
    assert (cardata.refreshes, cardata.refused_refreshes) == (1, 0)


def test_waiting_for_the_owner_costs_no_requests(
    cardata: CarData, file: Path, clock: Clock
) -> None:
    """Where BMW has refused an access token that should have been good for longer."""
    cardata.keep(file)
    cardata.readings = [cardata.expire_token]
    cardata.token_answers = [oauth_error(400, "invalid_grant")] * 2
    cardata.pending = 5
    client = Client(cardata, file)
    client.refused()
    assert LINK in client.refused().news
    for _ in range(5):
        assert str(client.refused()) == ""
    assert cardata.spent == 1


def test_sign_in_elsewhere_ends_the_wait_for_the_owner(
    cardata: CarData, file: Path, clock: Clock
) -> None:
    cardata.pending = 10**6
    logger_in_tmux = Client(cardata, file)
    while logger_in_tmux.refused().wait_s != 30 * 60:
        clock.sleep(301)
    cardata.pending = 0
    wait_for_reading(Client(cardata, file), clock)
    codes = len(cardata.device_codes)
    for _ in range(3):
        logger_in_tmux.poll()
        clock.sleep(3600)
    assert len(cardata.device_codes) == codes
    assert cardata.sign_ins == 1


def test_request_before_a_refused_refresh_is_counted(cardata: CarData, file: Path) -> None:
    cardata.keep(file)
    cardata.readings = [cardata.expire_token]
    cardata.token_answers = [oauth_error(400, "invalid_grant")]
    Client(cardata, file).refused()
    assert len(cardata.kept(file)["requests_s"]) == cardata.spent == 1


# --once


def test_once_does_not_wait_for_a_sign_in(
    cardata: CarData, start: Start, terminal_notifier: Notifier
) -> None:
    script = start("--once", settings=cardata.settings(), mac=True)
    assert script.end() == 1
    assert script.stderr_with("by hand, without --once") == 1
    assert terminal_notifier.messages() == []
    assert cardata.requests == []


def test_once_asks_for_no_code(cardata: CarData, file: Path) -> None:
    dead(cardata, file)
    news = [Client(cardata, file, attended=False).refused().news for _ in range(4)]
    assert ["by hand" in text for text in news] == [False, True, False, False]
    assert cardata.device_codes == {}
    # The logger beside it tells where to sign in all the same.
    problem = Client(cardata, file).refused()
    assert problem.click in problem.news
    assert problem.click.startswith("https://")


# The file


def test_restart_needs_no_sign_in(cardata: CarData, file: Path, clock: Clock) -> None:
    wait_for_reading(Client(cardata, file), clock)
    before = len(cardata.requests)
    Client(cardata, file).poll()
    (request,) = cardata.requests[before:]
    assert "telematicData" in request.path
    assert request.headers["Accept"] == "application/json"


def test_file_of_the_last_version_is_taken_over_once(
    cardata: CarData, start: Start, file: Path
) -> None:
    old = file.with_name(".cardata.json")
    old.write_text(json.dumps({"client_id": CLIENT_ID, **cardata.sign_in()}))
    script = start("--once", settings=cardata.settings())
    assert script.end() == 0
    assert script.stderr == []
    assert not old.exists()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert cardata.kept(file)["refresh_token"] == cardata.refresh_token
    assert len(cardata.requests) == 1
    # From now on what is in the new file counts.
    old.write_text(json.dumps({"client_id": CLIENT_ID, "expires_s": 0.0, "refresh_token": "dead"}))
    Client(cardata, file).poll()
    assert len(cardata.requests) == 2


@pytest.mark.parametrize("name", [".i3charge.json", ".cardata.json"])
def test_sign_in_of_another_client_id_is_not_used(
    cardata: CarData, tmp_path: Path, file: Path, name: str
) -> None:
    kept = cardata.sign_in()
    text = {"client_id": "other", **kept} if "cardata" in name else {"CarData other": kept}
    (tmp_path / name).write_text(json.dumps(text))
    Client(cardata, file, attended=False).refused()
    assert cardata.requests == []
    assert json.loads(file.read_text())["CarData other"]["refresh_token"] == kept["refresh_token"]


DAMAGED = {
    "empty": b"",
    "cut": b"{",
    "no-utf8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "list": b"[]",
    "text": b'"x"',
    "fields": json.dumps({f"CarData {CLIENT_ID}": {"expires_s": "x", "requests_s": 1}}).encode(),
    "no-section": json.dumps({f"CarData {CLIENT_ID}": []}).encode(),
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("name", [".i3charge.json", ".cardata.json"])
def test_damaged_file_is_gone_on_without(
    cardata: CarData,
    tmp_path: Path,
    clock: Clock,
    log: pytest.LogCaptureFixture,
    name: str,
    damaged: bytes,
) -> None:
    (tmp_path / name).write_bytes(damaged)
    file = tmp_path / ".i3charge.json"
    wait_for_reading(Client(cardata, file), clock)
    assert sum("cannot be used" in message for message in log.messages) <= 1
    assert cardata.kept(file)["refresh_token"] == cardata.refresh_token


def test_damaged_file_is_said_in_one_line(
    cardata: CarData, file: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(b"{")
    wait_for_reading(Client(cardata, file), clock)
    said = [message for message in log.messages if "cannot be used" in message]
    assert len(said) == 1
    assert "\n" not in said[0]


def test_file_that_is_damaged_while_it_runs_is_written_anew(cardata: CarData, file: Path) -> None:
    cardata.keep(file)
    client = Client(cardata, file)
    client.poll()
    file.write_bytes(b"{")
    with client.store:
        pass
    assert cardata.kept(file)["refresh_token"] == cardata.refresh_token


def test_what_one_process_renews_the_other_uses(cardata: CarData, file: Path, clock: Clock) -> None:
    cardata.keep(file, expires_s=clock.now_s)
    one, other = Client(cardata, file), Client(cardata, file)
    for _ in range(3):
        for client in (one, other):
            clock.sleep(3600)
            client.poll()
            (other if client is one else one).poll()
    assert (cardata.refreshes, cardata.refused_refreshes) == (6, 0)
    assert len(cardata.kept(file)["requests_s"]) == cardata.spent


def test_sign_in_through_the_other_process_is_enough(
    cardata: CarData, file: Path, clock: Clock
) -> None:
    cardata.pending = 1000
    one, other = Client(cardata, file), Client(cardata, file)
    one.refused()
    other.refused()
    cardata.pending = 0
    other.poll()
    for _ in range(2):
        one.poll()
        clock.sleep(3600)
        cardata.expired_codes = set(cardata.device_codes)
    cardata.token_answers = [oauth_error(400, "invalid_grant")]
    one.refused()
    one.poll()  # the old code has no part in this any more
    assert (cardata.sign_ins, len(cardata.device_codes)) == (1, 2)


def test_two_processes_share_one_sign_in_and_one_ledger(
    cardata: CarData, start: Start, file: Path
) -> None:
    cardata.quota = 10**6
    cardata.lifetime_s = cardata.token_life_s = 0.3
    constants = {"Account.RENEW_BEFORE_S": 0, "CarData.REQUESTS": 10**6}
    scripts: list[Script] = []
    for _ in range(2):
        scripts.append(start(settings=cardata.settings(), constants=constants))
        scripts[-1].wait_for_readings(1)
    began = cardata.refreshes
    cardata.wait_for(lambda: cardata.refreshes >= began + 6, "expiries of the token")
    count = len(scripts[0].stdout), len(scripts[1].stdout)
    for script, readings in zip(scripts, count):
        script.wait_for_readings(readings + 2)
    with open(f"{file}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # both wait, so that nothing is on its way
        assert len(cardata.kept(file)["requests_s"]) == cardata.spent
        assert (cardata.sign_ins, cardata.refused_refreshes) == (1, 0)
    assert [script.stderr_with("next try") for script in scripts] == [0, 0]
