"""CarData: the sign-in, by a device code and then by refresh tokens."""

from __future__ import annotations

import json
import os
import pty
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
from i3charge import Memory, News, Trouble

MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
INTERVAL_S = 40 * MINUTE_S
INTERVAL = str(INTERVAL_S * 1000)
ADDRESS = "https://customer.bmwgroup.com/oneid/link"
ASKED_ONCE_MORE = "BMW does not renew the sign-in; it is asked once more"


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
    assert trouble.is_for_owner
    return trouble


def kept_token(path: Path) -> str:
    return str(json.loads(path.read_text())["sign_in"]["refresh_token"])


class Wait:
    """Polls as the loop does, until there is a report, and notes the minutes of what happens."""

    def __init__(self, client: Client, clock: Clock, hours: float) -> None:
        self.codes: list[int] = []  # told to the owner
        self.told: list[tuple[float, str]] = []  # the same codes: the time and the message
        self.codes_asked_for: list[int] = []
        self.renewals: list[int] = []  # of the old refresh token
        self.troubles: list[Trouble] = []
        self.has_ended = False
        cardata = client.cardata
        cardata.interval_s = 20
        began_s = clock.now_s
        ends_s = began_s + hours * HOUR_S
        while clock.now_s < ends_s:
            requests = len(cardata.requests)
            trouble = client.problem()
            minute = round((clock.now_s - began_s) / MINUTE_S)
            new = cardata.requests[requests:]
            self.codes_asked_for += [minute for each in new if each.path.endswith("device/code")]
            self.renewals += [
                minute for each in new if each.form.get("grant_type") == "refresh_token"
            ]
            if not trouble:
                self.has_ended = True
                break
            self.troubles.append(trouble)
            if trouble.news and trouble.news.kind == "sign-in":
                self.codes.append(minute)
                self.told.append((clock.now_s, str(trouble)))
            clock.sleep(min(client.pause_s(trouble, INTERVAL_S), ends_s - clock.now_s))

    @property
    def said(self) -> set[str]:
        """What was said besides the codes."""
        return {str(each) for each in self.troubles if "CODE-" not in str(each)}


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
    assert str(trouble).split("\n") == [
        "Sign in at BMW: open",
        address,
        "and confirm the code",
        "CODE-1",
        f"It is good until {i3charge.clock_at(good_until_s, now_s)}."
        f" The next one comes at {i3charge.clock_at(next_s, now_s)},"
        " and at once if you start i3charge.py by hand.",
    ]
    assert trouble.news == News("sign-in", str(trouble), click=address, good_until_s=good_until_s)
    assert trouble.wait_s == cardata.interval_s


def test_sign_in_goes_on_when_the_owner_has_confirmed(cardata: CarData, new: Client) -> None:
    cardata.pending = 2
    waits(new)
    assert [str(waits(new)) for _ in range(2)] == ["", ""]
    assert new.poll()
    assert new.memory.sign_in.refresh_token == cardata.refresh_token
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
def test_code_outlasts_a_useless_answer(cardata: CarData, new: Client, answer: Answer) -> None:
    waits(new)
    cardata.token_answers = [answer]
    trouble = new.refused()
    assert trouble.wait_s == MINUTE_S and "(HTTP " in str(trouble)
    waits(new)
    assert new.poll()


def test_code_outlasts_a_missing_answer(cardata: CarData, new: Client) -> None:
    waits(new)
    cardata.stop_listening()
    trouble = new.refused()
    assert trouble.wait_s == MINUTE_S and str(trouble).startswith("no answer from 127.0.0.1")
    cardata.listen_again()
    waits(new)
    assert new.poll()


def test_pause_is_a_minute_only_while_the_code_may_be_good(
    cardata: CarData, new: Client, clock: Clock
) -> None:
    waits(new)
    clock.sleep(HOUR_S)
    cardata.token_answers = [says(500)]
    assert new.refused().wait_s is None


def test_code_that_was_confirmed_before_the_computer_slept_is_redeemed(
    cardata: CarData, new: Client, clock: Clock
) -> None:
    waits(new)
    cardata.pending = 0
    clock.sleep(8 * HOUR_S)
    assert new.poll()


# --- When a code is asked for ---------------------------------------------------------


@pytest.mark.parametrize("has_worked", [True, False])
def test_code_is_told_at_once_then_after_an_hour_then_every_six_hours(
    cardata: CarData, new: Client, signed_out: Client, clock: Clock, has_worked: bool
) -> None:
    cardata.pending = 100_000
    wait = Wait(signed_out if has_worked else new, clock, 20)
    # BMW is asked twice, a minute apart, whether it renews a sign-in that has worked.
    first = 1 if has_worked else 0
    assert wait.codes == [first + 60 * hours for hours in (0, 1, 7, 13, 19)]
    assert wait.codes_asked_for == wait.codes
    for (now_s, message), (next_s, _) in zip(wait.told, wait.told[1:]):
        assert f"The next one comes at {i3charge.clock_at(next_s, now_s)}," in message
    assert "nobody has confirmed the code; a new start gives another at once" in wait.said


@pytest.mark.parametrize("has_worked", [True, False])
@pytest.mark.parametrize("hours_asleep", [0.2, 3])
def test_start_by_hand_gives_a_code_at_once_and_another_start_the_kept_schedule(
    cardata: CarData,
    new: Client,
    signed_out: Client,
    clock: Clock,
    hours_asleep: float,
    has_worked: bool,
) -> None:
    cardata.pending = 100_000
    memory = (signed_out if has_worked else new).memory
    Wait(signed_out if has_worked else new, clock, 2)  # the next code comes after five hours
    clock.sleep(hours_asleep * HOUR_S)
    until_s = memory.sign_in.next_code_s

    trouble = waits(Client(cardata, memory, LOG_INTERVAL=INTERVAL))
    next_clock = i3charge.clock_at(until_s, clock.now_s)
    assert str(trouble) == f"CarData needs a sign-in: the next code comes at {next_clock}"
    assert trouble.news is None

    by_hand = Client(cardata, memory, by_hand=True, LOG_INTERVAL=INTERVAL)
    assert Wait(by_hand, clock, 8).codes == [0, 60, 7 * 60]


def test_schedule_of_codes_survives_a_restart_but_for_one_on_a_terminal(
    cardata: CarData, start: Start
) -> None:
    cardata.pending = 100_000
    first = start(settings=cardata.settings())
    first.wait_for_stderr("The next one comes at")
    cardata.wait_for(lambda: cardata.seen("/token"), "the next poll, after the code is saved")
    first.interrupt()
    second = start(settings=cardata.settings())
    second.wait_for_stderr("CarData needs a sign-in: the next code comes at")
    second.interrupt()
    assert len(cardata.seen("/device/code")) == 1

    ours, theirs = pty.openpty()
    third = start(settings=cardata.settings(), preexec_fn=lambda: os.dup2(theirs, 0))
    third.wait_for_stderr("CODE-2")
    third.interrupt()
    os.close(ours)
    os.close(theirs)


def test_code_is_asked_for_at_once_if_the_clock_was_far_ahead(new: Client, clock: Clock) -> None:
    new.memory.sign_in.next_code_s = clock.now_s + 7 * HOUR_S
    assert "CODE-1" in str(waits(new))


def test_refused_code_is_followed_at_once_and_further_ones_after_an_hour(
    cardata: CarData, new: Client, clock: Clock
) -> None:
    cardata.pending, cardata.codes_that_fail = 0, 4
    assert Wait(new, clock, 3.5).codes == [0, 0, 61, 121, 181]
    assert cardata.sign_ins == 1


def fails_over_the_code(cardata: CarData) -> None:
    cardata.pending, cardata.codes_that_fail = 0, 1


def declined(cardata: CarData) -> None:
    cardata.token_answers = [oauth_error(403, "access_denied")]


def invalid(cardata: CarData) -> None:
    cardata.token_answers = [oauth_error(400, "invalid_grant")]


ADVICE = ": confirm the next one in a private window without an ad blocker"
ENDS: list[tuple[Any, str]] = [
    (fails_over_the_code, f"BMW has failed over this code (invalid_access_token){ADVICE}"),
    (declined, f"the sign-in was declined, or BMW has failed over this code{ADVICE}"),
    (invalid, f"BMW has failed over this code (invalid_grant){ADVICE}"),
]


@pytest.mark.parametrize("has_worked", [True, False])
@pytest.mark.parametrize(("end", "said"), ENDS)
def test_refusal_of_a_code_is_said_and_the_next_code_works(
    cardata: CarData, new: Client, signed_out: Client, end: Any, said: str, has_worked: bool
) -> None:
    client = signed_out if has_worked else new
    client.memory.sign_in.refusals = 1
    waits(client)
    end(cardata)
    trouble = waits(client)
    assert (str(trouble), trouble.wait_s) == (said, 5)
    assert "CODE-2" in str(waits(client))
    cardata.pending = 0
    assert client.poll()


def test_code_that_bmw_calls_expired_is_over(cardata: CarData, new: Client) -> None:
    waits(new)
    cardata.expired_codes = {"secret-device-1"}
    assert str(waits(new)).startswith("nobody has confirmed the code")
    assert "the next code comes at" in str(waits(new))


def test_old_refresh_token_is_tried_at_every_growing_pause_code_or_no_code(
    cardata: CarData, signed_out: Client, clock: Clock
) -> None:
    cardata.pending = 100_000
    renewals = Wait(signed_out, clock, 8).renewals
    gaps = [later - earlier for earlier, later in zip(renewals, renewals[1:])]
    longest = [min(2**number, 40) for number in range(len(gaps))]
    assert all(gap <= most for gap, most in zip(gaps, longest)), gaps
    assert 12 <= len(renewals) <= 30


@pytest.mark.parametrize("minutes", [3, 20])
def test_outage_of_minutes_costs_no_sign_in(
    cardata: CarData, signed_in: Client, clock: Clock, minutes: int
) -> None:
    """The first one ends while the owner's code is good, the second one after that."""
    cardata.pending = 100_000
    good, cardata.refresh_token = cardata.refresh_token, "another"
    assert not Wait(signed_in, clock, minutes / 60).has_ended
    cardata.refresh_token = good
    wait = Wait(signed_in, clock, 2 * minutes / 60)
    assert wait.has_ended and not wait.codes_asked_for
    assert (len(cardata.device_codes), cardata.sign_ins) == (1, 0)


# --- What ends the program, and what does not -----------------------------------------


def test_client_id_that_bmw_does_not_know_ends_a_first_sign_in(
    cardata: CarData, start: Start
) -> None:
    script = start(settings={**cardata.settings(), "CARDATA_CLIENT_ID": "secret-wrong-id"})
    assert script.end() == 1
    assert script.stderr_with("BMW refuses the sign-in (invalid_client): check CARDATA_CLIENT_ID")


def test_owner_of_a_client_id_that_is_not_let_in_yet_is_told_what_to_subscribe(
    cardata: CarData, new: Client
) -> None:
    cardata.device_answers = [says(403, "<html>")]
    trouble = new.refused()
    assert str(trouble).endswith(i3charge.SUBSCRIBE)
    assert trouble.news == News("error", str(trouble))
    assert trouble.wait_s is None and not trouble.is_for_owner
    assert "CODE-1" in str(waits(new))


def test_refused_client_id_goes_on_being_tried_if_it_has_worked(
    cardata: CarData, signed_in: Client
) -> None:
    cardata.client_id = "another"
    assert str(signed_in.refused()) == ASKED_ONCE_MORE
    for _ in range(2):
        trouble = signed_in.refused()
        assert trouble.wait_s is None
        assert trouble.news == News("error", str(trouble))
        assert str(trouble) == (
            "BMW refuses the sign-in (invalid_client), which has worked before: BMW is out of"
            " order, or has deleted the client id; after a day, make a new one in the portal"
        )
    cardata.client_id = signed_in.memory.client_id
    assert signed_in.poll()


# --- Renewing -------------------------------------------------------------------------


def test_token_is_renewed_shortly_before_it_expires(cardata: CarData, clock: Clock) -> None:
    client = Client(cardata, cardata.signed_in(expires_s=clock.now_s + 61))
    client.poll()
    assert cardata.refreshes == 0
    clock.sleep(2)
    client.poll()
    assert cardata.refreshes == 1


def test_new_tokens_are_saved_before_they_are_used(cardata: CarData) -> None:
    memory = cardata.signed_in(expires_s=0.0)
    saved: list[str] = []
    seen: list[str] = []

    def save() -> bool:
        saved.append(memory.sign_in.refresh_token)
        return True

    def answer(handler: Handler) -> None:
        seen.extend(saved[-1:])
        handler.reply(200, telematic())

    cardata.readings = [answer]
    Client(cardata, memory, save=save).poll()
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
def test_useless_answer_does_not_count_as_a_refusal_of_the_refresh_token(
    cardata: CarData, signed_in: Client, answer: Answer
) -> None:
    cardata.token_answers = [answer] * 3
    for _ in range(3):
        assert "(HTTP " in str(signed_in.refused())
    assert signed_in.poll()
    assert (cardata.refreshes, cardata.sign_ins) == (1, 0)


def test_second_refusal_asks_the_owner_and_keeps_the_old_token(
    cardata: CarData, signed_out: Client
) -> None:
    token = signed_out.memory.sign_in.refresh_token
    assert str(signed_out.refused()) == ASKED_ONCE_MORE
    assert "CODE-1" in str(waits(signed_out))
    assert signed_out.memory.sign_in.refresh_token == token


def test_restart_needs_no_sign_in(cardata: CarData, start: Start, kept: Path) -> None:
    cardata.keep(kept)
    assert start("--once", settings=cardata.settings()).end() == 0
    assert (cardata.refreshes, cardata.sign_ins) == (0, 0)


# --- A sign-in that is not for CarData ------------------------------------------------


def test_sign_in_that_is_not_for_cardata_is_made_anew(cardata: CarData, signed_in: Client) -> None:
    cardata.token_scope = "authenticate_user openid"
    trouble = signed_in.refused()
    assert str(trouble) == f"this sign-in is not for CarData: {i3charge.SUBSCRIBE}"
    assert trouble.wait_s is None
    cardata.pending = 0
    assert "CODE-1" in str(waits(signed_in))
    assert signed_in.poll()
    assert not signed_in.memory.sign_in.is_out_of_scope


def test_sign_in_that_is_not_for_cardata_is_never_renewed(
    cardata: CarData, signed_in: Client, clock: Clock
) -> None:
    cardata.token_scope = "authenticate_user openid"
    cardata.pending = 100_000
    wait = Wait(signed_in, clock, 8)
    assert wait.renewals == [0]  # before anybody knew
    assert wait.codes == [1, 61, 7 * 60 + 1]
    clock.sleep(HOUR_S)
    restarted = Client(cardata, signed_in.memory, LOG_INTERVAL=INTERVAL)
    assert not Wait(restarted, clock, 8).renewals


def test_sign_in_that_is_not_for_cardata_still_shows_that_the_client_id_has_worked(
    cardata: CarData, signed_in: Client
) -> None:
    cardata.token_scope = "authenticate_user openid"
    signed_in.refused()
    cardata.client_id = "another"
    assert "which has worked before" in str(signed_in.refused())


# --- Without an owner -----------------------------------------------------------------


@pytest.mark.parametrize("has_worked", [True, False])
def test_once_asks_for_no_code_and_tells_the_phone_once(
    cardata: CarData, start: Start, ntfy: Recorder, kept: Path, has_worked: bool
) -> None:
    if has_worked:
        cardata.keep(kept, expires_s=0.0, refusals=1)
        cardata.refresh_token = "another"
    settings = {**cardata.settings(), "NTFY_URL": ntfy.url + "secret-topic"}
    for _ in range(2):
        script = start("--once", settings=settings)
        assert script.end() == 1
        assert script.stderr_with("CarData needs a sign-in: run i3charge.py by hand")
    assert not cardata.seen("/device/code")
    assert len(ntfy.accepted) == 1


# --- A disk that cannot keep the sign-in ----------------------------------------------


def test_refresh_token_is_not_spent_if_the_new_one_cannot_be_kept(cardata: CarData) -> None:
    memory = cardata.signed_in(expires_s=0.0)
    works = False
    client = Client(cardata, memory, save=lambda: works)
    for _ in range(2):
        trouble = client.refused()
        assert str(trouble) == (
            "no readings until the disk works again: it could not save a new sign-in"
        )
        assert trouble.news == News("error", str(trouble))
    assert cardata.requests == []

    works = True
    assert client.poll()


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
