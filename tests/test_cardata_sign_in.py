"""CarData: the sign-in, by a device code and then by refresh tokens."""

from __future__ import annotations

import json
import os
import pty
import re
import threading
import time
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

import pytest
from conftest import ENDINGS, Clock, Start
from fake_bmw import VIN, Answer, Handler, Recorder, says
from fake_cardata import ADDRESS, USED_UP, CarData, Client, oauth_error

import i3charge
from i3charge import Memory, News, Trouble

MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
INTERVAL_S = 40 * MINUTE_S
INTERVAL = str(INTERVAL_S * 1000)
NOT_CONFIRMED = "the code was not confirmed in time; restart i3charge to get a new one at once"


@pytest.fixture
def new(cardata: CarData) -> Client:
    """Never signed in; the owner is there."""
    return Client(cardata, Memory(cardata.client_id, VIN))


@pytest.fixture
def signed_in(cardata: CarData) -> Client:
    """The access token is about to expire."""
    return Client(cardata, cardata.signed_in(expires_s=0.0), LOG_INTERVAL=INTERVAL)


@pytest.fixture
def signed_out(cardata: CarData, signed_in: Client) -> Client:
    """Signed in once, but BMW no longer knows the refresh token."""
    cardata.refresh_token = "another"
    return signed_in


def waits(client: Client) -> Trouble:
    """Poll, and return what the owner has to do first."""
    trouble = client.refused()
    assert trouble.needs_sign_in
    return trouble


class Wait:
    """Polls as the loop does, until there is a report, and notes the minutes of what happens.

    Nobody confirms a code, but for `pending`.
    """

    def __init__(self, client: Client, clock: Clock, hours: float, pending: int = 100_000) -> None:
        cardata = client.cardata
        cardata.interval_s, cardata.pending = 20, pending
        self.codes: list[int] = []  # told to the owner
        self.renewals: list[int] = []  # of the old refresh token
        self.said: set[str] = set()
        self.has_ended = False
        began_s = clock.now_s
        ends_s = began_s + hours * HOUR_S
        while clock.now_s < ends_s and not self.has_ended:
            requests = len(cardata.requests)
            trouble = client.problem()
            minute = round((clock.now_s - began_s) / MINUTE_S)
            grants = [each.form.get("grant_type") for each in cardata.requests[requests:]]
            self.renewals += [minute] * grants.count("refresh_token")
            self.codes += [minute] * ("CODE-" in str(trouble))
            self.said.add(str(trouble))
            self.has_ended = trouble is None
            clock.sleep(min(client.pause_s(trouble, INTERVAL_S), ends_s - clock.now_s))


# --- The code that the owner confirms -------------------------------------------------


@pytest.mark.parametrize("complete", [True, False])
def test_code_is_told_with_its_address_its_time_and_the_next_one(
    cardata: CarData, new: Client, clock: Clock, complete: bool
) -> None:
    cardata.complete_uri = complete
    trouble = waits(new)
    address = f"{ADDRESS}?user_code=CODE-1" if complete else ADDRESS
    now_s = clock.now_s
    good_until_s, next_s = now_s + 5 * MINUTE_S, now_s + HOUR_S
    assert str(trouble) == (
        f"Sign in at BMW: open\n{address}\nand confirm the code\nCODE-1\n"
        f"It is valid until {i3charge.clock_at(good_until_s, now_s)}. The next one comes at"
        f" {i3charge.clock_at(next_s, now_s)}, or at once if you start i3charge.py by hand."
    )
    assert trouble.news == News("sign-in", str(trouble), click=address, good_until_s=good_until_s)
    assert trouble.wait_s == cardata.interval_s


def test_owner_is_waited_for_without_a_word_and_without_requests(new: Client) -> None:
    cardata = new.cardata
    cardata.pending = 1
    waits(new)
    cardata.token_answers = [says(403, "<html>"), oauth_error(400, "slow_down")]
    found = [waits(new) for _ in range(3)]
    pause_s = cardata.interval_s
    pauses_s = [pause_s, pause_s + 5, pause_s + 5]
    assert [(str(each), each.wait_s) for each in found] == [("", each) for each in pauses_s]
    assert cardata.spent == 0
    assert new.poll()
    assert new.memory.sign_in.refresh_token == cardata.refresh_token


@pytest.mark.parametrize("answer", [says(500), lambda each: each.connection.shutdown(SHUT_RDWR)])
def test_code_outlasts_its_time_and_answers_of_no_use(
    cardata: CarData, new: Client, clock: Clock, answer: Answer
) -> None:
    waits(new)
    cardata.token_answers = [answer, answer]
    assert new.refused().wait_s == MINUTE_S
    clock.sleep(HOUR_S)
    assert new.refused().wait_s is None
    cardata.pending = 0  # it was confirmed before the computer slept
    assert new.poll()


# --- When a code is asked for ---------------------------------------------------------


@pytest.mark.parametrize("has_worked", [True, False])
def test_code_is_told_at_once_then_after_an_hour_then_every_six_hours(
    cardata: CarData, new: Client, signed_out: Client, clock: Clock, has_worked: bool
) -> None:
    wait = Wait(signed_out if has_worked else new, clock, 20)
    # BMW is asked twice, a minute apart, whether it renews a sign-in that has worked.
    first = 1 if has_worked else 0
    assert wait.codes == [first + 60 * hours for hours in (0, 1, 7, 13, 19)]
    assert len(cardata.device_codes) == 5  # none but those that were told
    assert NOT_CONFIRMED in wait.said


def test_start_by_hand_gives_a_code_at_once_and_another_start_the_kept_schedule(
    cardata: CarData, new: Client, clock: Clock
) -> None:
    Wait(new, clock, 2)  # the next code comes after five hours
    next_clock = i3charge.clock_at(new.memory.sign_in.next_code_s, clock.now_s)
    trouble = waits(Client(cardata, new.memory))
    assert str(trouble) == f"CarData needs a sign-in: the next code comes at {next_clock}"
    assert trouble.news is None
    by_hand = Client(cardata, new.memory, by_hand=True)
    assert Wait(by_hand, clock, 8).codes == [0, 60, 7 * 60]


def test_start_on_a_terminal_is_one_by_hand(cardata: CarData, start: Start, kept: Path) -> None:
    next_code_s = time.time() + HOUR_S
    cardata.keep(kept, refresh_token="", expires_s=0.0, codes=1, next_code_s=next_code_s)
    cardata.pending = 100_000
    ours, theirs = pty.openpty()
    script = start(settings=cardata.settings(), preexec_fn=lambda: os.dup2(theirs, 0))
    script.wait_for_stderr("CODE-1")
    cardata.wait_for(lambda: cardata.seen("/token"), "the next poll, after the code is saved")
    script.interrupt()
    os.close(ours)
    os.close(theirs)
    start(settings=cardata.settings()).wait_for_stderr("the next code comes at")
    assert len(cardata.device_codes) == 1


def test_once_asks_for_no_code_and_tells_the_phone(
    cardata: CarData, start: Start, ntfy: Recorder
) -> None:
    settings = {**cardata.settings(), "NTFY_URL": ntfy.url + "secret-topic"}
    script = start("--once", settings=settings)
    assert script.end() == 1
    assert script.stderr_with("CarData needs a sign-in: run i3charge.py by hand")
    assert not cardata.requests
    assert len(ntfy.accepted) == 1


def test_code_is_asked_for_at_once_if_the_clock_was_far_ahead(new: Client, clock: Clock) -> None:
    new.memory.sign_in.next_code_s = clock.now_s + 7 * HOUR_S
    assert "CODE-1" in str(waits(new))


def test_refused_code_is_followed_at_once_and_further_ones_after_an_hour(
    cardata: CarData, new: Client, clock: Clock
) -> None:
    cardata.codes_that_fail = 4
    assert Wait(new, clock, 3.5, pending=0).codes == [0, 0, 61, 121, 181]
    assert cardata.sign_ins == 1


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (says(500, USED_UP), "BMW could not process this code (invalid_access_token)"),
        (oauth_error(400, "invalid_grant"), "BMW could not process this code (invalid_grant)"),
        (oauth_error(403, "access_denied"), "the sign-in was declined, or BMW could not"),
    ],
)
def test_refusal_of_a_code_is_said_and_the_next_code_works(
    cardata: CarData, new: Client, clock: Clock, end: Answer, said: str
) -> None:
    waits(new)
    cardata.token_answers = [end]
    trouble = waits(new)
    assert str(trouble).startswith(said)
    assert str(trouble).endswith(": confirm the next one in a private window without an ad blocker")
    assert trouble.wait_s == 5
    next_clock = i3charge.clock_at(clock.now_s + HOUR_S, clock.now_s)
    assert re.search(f"CODE-2\n.*The next one comes at {next_clock}", str(waits(new)))
    cardata.pending = 0
    assert new.poll()


def test_code_that_bmw_calls_expired_is_over(cardata: CarData, new: Client) -> None:
    waits(new)
    cardata.token_answers = [oauth_error(401, "expired_token")]
    assert str(waits(new)) == NOT_CONFIRMED
    assert "the next code comes at" in str(waits(new))


def test_old_refresh_token_is_tried_at_every_growing_pause_code_or_no_code(
    signed_out: Client, clock: Clock
) -> None:
    renewals = Wait(signed_out, clock, 8).renewals
    assert renewals[:6] == [0, 1, 3, 7, 15, 31]
    assert all(later - earlier <= 40 for earlier, later in zip(renewals, renewals[1:]))
    assert 12 <= len(renewals) <= 20


@pytest.mark.parametrize("minutes", [3, 20])
def test_outage_of_minutes_costs_no_sign_in(
    signed_in: Client, clock: Clock, log: pytest.LogCaptureFixture, minutes: int
) -> None:
    """The first one ends while the owner's code is good, the second one after that."""
    cardata = signed_in.cardata
    good, cardata.refresh_token = cardata.refresh_token, "another"
    Wait(signed_in, clock, minutes / 60)
    cardata.refresh_token = good
    assert Wait(signed_in, clock, 2 * minutes / 60).has_ended
    assert (len(cardata.device_codes), cardata.sign_ins) == (1, 0)
    assert log.messages == ["BMW has renewed the sign-in after all"]


# --- A client id that BMW refuses -----------------------------------------------------


def test_client_id_that_bmw_does_not_know_ends_a_first_sign_in(new: Client) -> None:
    new.cardata.client_id = "another"
    with pytest.raises(i3charge.CannotGoOn) as caught:
        new.poll()
    assert caught.value.exit_status == 1
    said = "BMW refuses the sign-in (invalid_client): check CARDATA_CLIENT_ID"
    assert caught.value.lines[0].startswith(said)


def test_refused_client_id_goes_on_being_tried_if_it_has_worked(
    signed_in: Client, clock: Clock
) -> None:
    cardata = signed_in.cardata
    cardata.client_id = "another"
    once_more = signed_in.refused()
    assert ("trying once more" in str(once_more), once_more.wait_s) == (True, MINUTE_S)
    for _ in range(2):
        trouble = signed_in.refused()
        assert trouble.wait_s is None
        assert trouble.news == News("error", str(trouble))
        assert str(trouble) == (
            "BMW refuses the sign-in (invalid_client), which has worked before: BMW has an"
            " outage, or has deleted the client id; if this lasts a day, create a new one in"
            " the portal"
        )
    cardata.client_id = signed_in.memory.client_id
    clock.sleep(2 * MINUTE_S)
    assert signed_in.poll()


def test_owner_of_a_client_id_that_is_not_let_in_yet_is_told_what_to_subscribe(new: Client) -> None:
    new.cardata.device_answers = [says(403, "<html>")]
    trouble = new.refused()
    assert str(trouble).endswith(i3charge.SUBSCRIBE_ADVICE)
    assert trouble.news == News("error", str(trouble))
    assert trouble.wait_s is None and not trouble.needs_sign_in
    assert "CODE-1" in str(waits(new))


def test_403_for_a_client_id_that_has_worked_is_told_as_an_outage(signed_out: Client) -> None:
    signed_out.cardata.device_answers = [says(403, "<html>")]
    signed_out.refused()
    trouble = signed_out.refused()
    assert "(HTTP 403), which has worked before: BMW has an outage" in str(trouble)
    assert trouble.news == News("error", str(trouble))


# --- Renewing -------------------------------------------------------------------------


def test_new_sign_in_ends_the_pause_of_the_old_one(cardata: CarData, clock: Clock) -> None:
    memory = cardata.signed_in(expires_s=0.0, refusals=8)
    cardata.refresh_token, cardata.pending = "another", 0
    client = Client(cardata, memory, by_hand=True, LOG_INTERVAL=INTERVAL)
    assert "CODE-1" in str(waits(client))
    assert client.poll()
    cardata.access_token = "another"  # BMW refuses the new one early
    assert client.poll()
    assert len(cardata.device_codes) == 1


def test_token_is_renewed_shortly_before_it_expires(cardata: CarData, clock: Clock) -> None:
    client = Client(cardata, cardata.signed_in(expires_s=clock.now_s + 61))
    client.poll()
    assert cardata.refreshes == 0
    clock.sleep(2)
    client.poll()
    assert cardata.refreshes == 1


def test_answer_without_a_refresh_token_keeps_the_good_one(signed_in: Client) -> None:
    cardata = signed_in.cardata
    token = cardata.refresh_token
    cardata.token_answers = [says(200, {"access_token": cardata.access_token})]
    assert signed_in.poll()
    assert signed_in.memory.sign_in.refresh_token == token


def test_useless_answer_does_not_count_as_a_refusal_of_the_refresh_token(signed_in: Client) -> None:
    cardata = signed_in.cardata
    cardata.token_answers = [says(500), says(401), says(403, "<html>"), says(200)]
    for status in (500, 401, 403, 200):
        assert str(signed_in.refused()).endswith(f"(HTTP {status})")
    assert signed_in.poll()
    assert (cardata.refreshes, cardata.sign_ins) == (1, 0)


def test_refresh_token_is_not_spent_if_the_new_one_cannot_be_kept(cardata: CarData) -> None:
    memory = cardata.signed_in(expires_s=0.0)
    works = False
    client = Client(cardata, memory, save=lambda: works)
    trouble = client.refused()
    said = "no readings until the disk works again: a renewed sign-in could not be saved"
    assert str(trouble) == said
    assert trouble.news == News("error", str(trouble))
    assert cardata.requests == []
    works = True
    assert client.poll()


# --- A sign-in that is not for CarData ------------------------------------------------


def test_sign_in_that_is_not_for_cardata_is_made_anew(cardata: CarData, signed_in: Client) -> None:
    cardata.token_scope = "authenticate_user openid"
    trouble = signed_in.refused()
    assert str(trouble) == f"this sign-in is not for CarData: {i3charge.SUBSCRIBE_ADVICE}"
    assert trouble.wait_s is None

    good, cardata.client_id = cardata.client_id, "another"
    assert "which has worked before" in str(signed_in.refused())
    cardata.client_id = good
    cardata.pending = 0
    assert "CODE-1" in str(waits(signed_in))
    assert signed_in.poll()
    assert not signed_in.memory.sign_in.is_out_of_scope


def test_sign_in_that_is_not_for_cardata_is_never_renewed(signed_in: Client, clock: Clock) -> None:
    cardata = signed_in.cardata
    cardata.token_scope = "authenticate_user openid"
    wait = Wait(signed_in, clock, 8)
    assert wait.renewals == [0]  # before anybody knew
    assert wait.codes == [1, 61, 7 * 60 + 1]
    restarted = Client(cardata, signed_in.memory, LOG_INTERVAL=INTERVAL)
    assert not Wait(restarted, clock, 8).renewals


# --- A signal while BMW answers -------------------------------------------------------


def test_token_request_holds_a_signal_back_for_15_seconds_at_most() -> None:
    assert sum(i3charge.CarDataSignIn.TIMEOUT_S) <= 15


@pytest.mark.parametrize(("ending", "is_signed_in"), list(zip(ENDINGS, [True, False, True])))
def test_signal_while_tokens_are_on_their_way_costs_no_sign_in(
    cardata: CarData, start: Start, kept: Path, ending: Any, is_signed_in: bool
) -> None:
    """It comes while BMW renews a sign-in, or while a confirmed code is redeemed."""
    is_signalled = threading.Event()

    def answer(handler: Handler) -> None:
        assert is_signalled.wait(30)
        with cardata.changed:
            cardata.pending = 0
            good = cardata.token(cardata.requests[-1].form)
        good(handler)

    cardata.token_answers = [answer]
    if is_signed_in:
        cardata.keep(kept, expires_s=0.0)
    script = start(settings=cardata.settings())
    cardata.wait_for(lambda: cardata.seen("/token"), "a request for tokens")
    number, status = ending
    script.process.send_signal(number)
    is_signalled.set()
    assert script.end() == status
    assert (cardata.refreshes, cardata.sign_ins) == (is_signed_in, not is_signed_in)
    token = json.loads(kept.read_text())["sign_in"]["refresh_token"]
    assert token == cardata.refresh_token == f"secret-refresh-{1 + is_signed_in}"
