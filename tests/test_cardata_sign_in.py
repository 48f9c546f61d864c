"""CarData: the sign-in, by a device code and then by refresh tokens."""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import ENDINGS, Clock, Script, Start
from fake_bmw import VIN, Answer, Handler, Recorder
from fake_cardata import CarData, Client, oauth_error, says, telematic

import i3charge
from i3charge import Memory, WaitingForOwner

MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
INTERVAL_S = 40 * MINUTE_S
ADDRESS = "https://customer.bmwgroup.com/oneid/link"


@pytest.fixture
def new(cardata: CarData) -> Client:
    """Never signed in; the owner is there."""
    return Client(cardata, Memory(cardata.client_id, VIN))


@pytest.fixture
def signed_in(cardata: CarData) -> Client:
    """The access token is about to end."""
    return Client(cardata, cardata.signed_in(expires_s=0.0))


def waits(client: Client) -> WaitingForOwner:
    problem = client.refused()
    assert isinstance(problem, WaitingForOwner)
    return problem


def kept_token(path: Path) -> str:
    return str(json.loads(path.read_text())["sign_in"]["refresh_token"])


# --- The code that the owner confirms -------------------------------------------------


@pytest.mark.parametrize("complete", [True, False])
def test_address_and_code_are_shown_on_lines_of_their_own(
    cardata: CarData, new: Client, clock: Clock, complete: bool
) -> None:
    cardata.complete_uri = complete
    problem = waits(new)
    good_until_s = clock.now_s + 5 * MINUTE_S
    address = f"{ADDRESS}?user_code=CODE-1" if complete else ADDRESS
    assert str(problem).split("\n") == [
        "Sign in at BMW: open",
        address,
        "and confirm the code",
        "CODE-1",
        f"It is good until {i3charge.clock_at(good_until_s)}.",
    ]
    assert problem.news == i3charge.News("sign-in", str(problem), address, good_until_s)
    assert problem.wait_s == cardata.interval_s


def test_sign_in_goes_on_when_the_owner_has_confirmed(cardata: CarData, new: Client) -> None:
    cardata.pending = 2
    waits(new)
    assert [str(waits(new)) for _ in range(2)] == ["", ""]
    new.memory.told_s = {"sign-in": 1.0, i3charge.CODE_REFUSED: 1.0, "another trouble": 1.0}
    assert new.poll().charge == 62
    assert list(new.memory.told_s) == ["another trouble"]
    assert new.memory.sign_in.refresh_token
    assert cardata.spent == 3  # waiting for the owner costs no requests


@pytest.mark.parametrize("body", [{"message": "no"}, "<html>", ""])
def test_forbidden_without_an_error_is_not_yet(cardata: CarData, new: Client, body: Any) -> None:
    waits(new)
    cardata.token_answers = [says(403, body)]
    assert str(waits(new)) == ""


def test_slow_down_adds_five_seconds(cardata: CarData, new: Client) -> None:
    waits(new)
    cardata.token_answers = [oauth_error(400, "slow_down")]
    assert waits(new).wait_s == cardata.interval_s + 5
    assert waits(new).wait_s == cardata.interval_s + 5


@pytest.mark.parametrize("answer", [says(500), says(200, "<html>"), says(404)])
def test_code_outlasts_an_answer_of_no_use(cardata: CarData, new: Client, answer: Answer) -> None:
    waits(new)
    cardata.token_answers = [answer]
    problem = new.refused()
    assert problem.wait_s == 60 and "(HTTP " in str(problem)
    waits(new)
    assert new.poll()


def test_code_outlasts_a_question_that_is_not_answered(cardata: CarData, new: Client) -> None:
    waits(new)
    cardata.stop_listening()
    problem = new.refused()
    assert problem.wait_s == 60 and str(problem).startswith("no answer from 127.0.0.1")
    cardata.listen_again()
    waits(new)
    assert new.poll()


def test_pause_of_a_minute_is_only_for_a_code_that_may_be_good(
    cardata: CarData, new: Client, clock: Clock
) -> None:
    waits(new)
    clock.sleep(HOUR_S)
    cardata.token_answers = [says(500)]
    assert new.refused().wait_s is None


def test_code_that_was_confirmed_under_a_closed_lid_is_redeemed(
    cardata: CarData, new: Client, clock: Clock
) -> None:
    waits(new)
    cardata.pending = 0
    clock.sleep(8 * HOUR_S)
    assert new.poll()


def test_codes_that_nobody_confirms_follow_each_other_at_the_growing_pause(
    cardata: CarData, new: Client, clock: Clock
) -> None:
    cardata.pending, cardata.interval_s = 100_000, 5
    shown_s, said = [], set()
    began_s = clock.now_s
    while clock.now_s < began_s + 3 * HOUR_S:
        problem = waits(new)
        if "CODE-" in str(problem):
            shown_s.append(clock.now_s)
        else:
            said.add(str(problem))
        clock.sleep(new.pause_s(problem, INTERVAL_S))
    # Five minutes for each of them, and after them a pause.
    minutes = [round((later - earlier) / 60) for earlier, later in zip(shown_s, shown_s[1:])]
    assert minutes == [6, 7, 9, 13, 21, 37, 45]
    assert said == {"", "nobody has confirmed the code; a new start gives another at once"}


def fails_over_the_code(cardata: CarData) -> None:
    cardata.pending, cardata.codes_that_fail = 0, 1


def declined(cardata: CarData) -> None:
    cardata.token_answers = [oauth_error(403, "access_denied")]


def invalid(cardata: CarData) -> None:
    cardata.token_answers = [oauth_error(400, "invalid_grant")]


def expired(cardata: CarData) -> None:
    cardata.expired_codes = {"secret-device-1"}


ADVICE = ": confirm the next one in a private window without an ad blocker"
ENDS: list[tuple[Any, str]] = [
    (fails_over_the_code, f"BMW has failed over this code{ADVICE}"),
    (declined, f"the sign-in was declined, or BMW has failed over this code{ADVICE}"),
    (invalid, f"BMW has failed over this code (invalid_grant){ADVICE}"),
    (expired, "nobody has confirmed the code; a new start gives another at once"),
]


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(("end", "said"), ENDS)
def test_whatever_a_code_ends_with_is_said_and_the_next_follows_at_the_growing_pause(
    cardata: CarData, new: Client, end: Any, said: str, is_first: bool
) -> None:
    if not is_first:  # a sign-in that has worked, of which BMW knows nothing any more
        new.memory.sign_in.refresh_token = "another"
        new.memory.sign_in.refusals = 1
    waits(new)
    end(cardata)
    problem = waits(new)
    assert (str(problem), problem.wait_s) == (said, None)
    assert "CODE-2" in str(waits(new))
    cardata.pending = 0
    assert new.poll()


# --- What ends the program, and what does not -----------------------------------------


def test_client_id_that_bmw_does_not_know_ends_a_first_sign_in(
    cardata: CarData, start: Start
) -> None:
    script = start(settings={**cardata.settings(), "CARDATA_CLIENT_ID": "secret-wrong-id"})
    assert script.end() == 1
    assert script.stderr_with("BMW refuses the sign-in (invalid_client): check CARDATA_CLIENT_ID")


def test_client_id_that_is_not_let_in_yet_is_told_what_to_subscribe(
    cardata: CarData, new: Client
) -> None:
    cardata.device_answers = [says(403, "<html>")]
    problem = new.refused()
    assert str(problem).endswith(f"{i3charge.SUBSCRIBE} in the My BMW portal")
    assert problem.wait_s is None


def test_client_id_that_bmw_refuses_goes_on_being_tried_where_it_has_worked(
    cardata: CarData, signed_in: Client
) -> None:
    cardata.client_id = "another"
    assert str(signed_in.refused()) == "BMW does not renew the sign-in; it is asked once more"
    for _ in range(2):
        problem = signed_in.refused()
        assert problem.wait_s is None
        assert problem.news == i3charge.News("error", str(problem))
        assert str(problem) == (
            "BMW refuses the sign-in (invalid_client), which has worked before: it is out of"
            " order, or has deleted the client id; after a day, make a new one in the portal"
        )
    cardata.client_id = signed_in.memory.client_id
    assert signed_in.poll()


def test_old_token_that_is_good_again_ends_the_wait(cardata: CarData, signed_in: Client) -> None:
    good, cardata.refresh_token = cardata.refresh_token, "another"
    signed_in.refused()
    waits(signed_in)
    cardata.expired_codes = {"secret-device-1"}
    waits(signed_in)
    cardata.refresh_token = good
    assert signed_in.poll()


# --- Renewing -------------------------------------------------------------------------


def test_token_is_renewed_shortly_before_it_ends(cardata: CarData, clock: Clock) -> None:
    client = Client(cardata, cardata.signed_in(expires_s=clock.now_s + 61))
    client.poll()
    assert cardata.refreshes == 0
    clock.sleep(2)
    client.poll()
    assert cardata.refreshes == 1


def test_new_tokens_are_on_disk_before_they_are_used(cardata: CarData, kept: Path) -> None:
    client = Client(cardata, cardata.keep(kept, expires_s=0.0))
    seen = []

    def look(handler: Handler) -> None:
        seen.append(kept_token(kept))
        handler.reply(200, telematic())

    cardata.readings = [look]
    client.poll()
    assert seen == [cardata.refresh_token] == ["secret-refresh-2"]


@pytest.mark.parametrize("named", [{}, {"refresh_token": None}, {"refresh_token": ""}])
def test_answer_without_a_refresh_token_keeps_the_good_one(
    cardata: CarData, signed_in: Client, named: dict[str, Any]
) -> None:
    token = cardata.refresh_token
    with cardata.changed:
        answer = {**cardata.new_tokens(cardata.scope), **named}
    if not named:
        del answer["refresh_token"]
    cardata.token_answers = [says(200, answer)]
    assert signed_in.poll()
    assert signed_in.memory.sign_in.refresh_token == token


@pytest.mark.parametrize("answer", [says(500), says(401), says(403, "<html>"), says(200)])
def test_gateway_cannot_take_the_refresh_token(
    cardata: CarData, signed_in: Client, answer: Answer
) -> None:
    cardata.token_answers = [answer]
    assert "it is asked once more" not in str(signed_in.refused())
    assert signed_in.poll()
    assert (cardata.refreshes, cardata.sign_ins) == (1, 0)


def test_second_refusal_asks_the_owner_and_keeps_the_old_token(
    cardata: CarData, signed_in: Client
) -> None:
    token, cardata.refresh_token = cardata.refresh_token, "another"
    problem = signed_in.refused()
    assert str(problem) == "BMW does not renew the sign-in; it is asked once more"
    assert "CODE-1" in str(waits(signed_in))
    assert signed_in.memory.sign_in.refresh_token == token


def test_sign_in_that_is_not_for_cardata_is_made_anew(cardata: CarData, signed_in: Client) -> None:
    cardata.token_scope = "authenticate_user openid"
    signed_in.memory.container = i3charge.Container()  # a search for one is none at all then
    problem = signed_in.refused()
    assert str(problem).startswith("this sign-in is not for CarData: ")
    assert problem.wait_s is None
    cardata.pending = 0
    waits(signed_in)
    assert signed_in.poll()


def test_restart_needs_no_sign_in(cardata: CarData, start: Start, kept: Path) -> None:
    cardata.keep(kept)
    assert start("--once", settings=cardata.settings()).end() == 0
    assert (cardata.refreshes, cardata.sign_ins) == (0, 0)


# --- Without an owner -----------------------------------------------------------------


def test_once_asks_for_no_code_and_tells_the_phone_once(
    cardata: CarData, start: Start, ntfy: Recorder
) -> None:
    settings = {**cardata.settings(), "NTFY_URL": ntfy.url + "secret-topic"}
    for _ in range(2):
        script = start("--once", settings=settings)
        assert script.end() == 1
        assert script.stderr_with("CarData needs a sign-in: run i3charge.py by hand")
    assert cardata.requests == []
    assert len(ntfy.accepted) == 1


# --- A disk that cannot keep the sign-in ----------------------------------------------


def test_refresh_token_is_not_spent_where_the_new_one_cannot_be_kept(
    cardata: CarData, signed_in: Client, tmp_path: Path
) -> None:
    signed_in.memory.path = tmp_path / "nowhere" / ".i3charge.json"
    for _ in range(2):
        problem = signed_in.refused()
        assert str(problem).startswith("the sign-in is not renewed, for the disk could not")
        assert problem.news and problem.news.kind == "error"
        assert problem.news.message.startswith("No readings until the disk works again")
    assert cardata.requests == []

    signed_in.memory.path = tmp_path / ".i3charge.json"
    assert signed_in.poll()


@pytest.mark.parametrize("expires_s", [0.0, 4e9], ids=["to-renew", "good"])
def test_once_on_a_full_disk_ends_with_1_and_loses_nothing(
    cardata: CarData, start: Start, kept: Path, expires_s: float
) -> None:
    cardata.keep(kept, expires_s=expires_s)

    def fill_the_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    script = start("--once", settings=cardata.settings(), preexec_fn=fill_the_disk)
    assert script.end() == 1
    assert script.stderr_with("cannot be written (File too large)") == 1
    assert len(script.stdout) == (expires_s > 0)
    assert kept_token(kept) == cardata.refresh_token


def test_token_request_holds_a_signal_back_for_15_seconds_at_most() -> None:
    assert sum(i3charge.CarDataSignIn.TIMEOUT_S) <= 15


# --- A signal while BMW answers -------------------------------------------------------


class Interrupted:
    """The next token answer comes when the script has been sent a signal."""

    def __init__(self, cardata: CarData, number: signal.Signals) -> None:
        self.script: Script | None = None
        self.is_started = threading.Event()

        def answer(handler: Handler) -> None:
            assert self.is_started.wait(30) and self.script
            os.kill(self.script.process.pid, number)
            form = cardata.requests[-1].form
            with cardata.changed:
                cardata.pending = 0
                good = cardata.token(form)
            good(handler)

        cardata.token_answers = [answer]

    def end(self, script: Script) -> int:
        self.script = script
        self.is_started.set()
        return script.end()


@pytest.mark.parametrize("is_signed_in", [True, False], ids=["renewal", "confirmed-code"])
@pytest.mark.parametrize(("number", "status"), ENDINGS)
def test_signal_while_tokens_are_on_their_way_costs_no_sign_in(
    cardata: CarData,
    start: Start,
    kept: Path,
    number: signal.Signals,
    status: int,
    is_signed_in: bool,
) -> None:
    if is_signed_in:
        cardata.keep(kept, expires_s=0.0)
    interrupted = Interrupted(cardata, number)
    assert interrupted.end(start(settings=cardata.settings())) == status
    assert (cardata.refreshes, cardata.sign_ins) == (is_signed_in, not is_signed_in)
    newest = f"secret-refresh-{1 + is_signed_in}"
    assert kept_token(kept) == cardata.refresh_token == newest
