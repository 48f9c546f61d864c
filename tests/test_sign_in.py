"""The portal's login and the life of its access token."""

from __future__ import annotations

from urllib.parse import parse_qs, quote

import pytest
from conftest import Start
from fake_bmw import (
    CLIENT_ID,
    PASSWORD,
    REDIRECT_URI,
    USERNAME,
    VIN,
    Answer,
    Handler,
    Portal,
    car,
)

TOKEN = "secret+token/9="


def redirect(portal: Portal, location: str, status: int = 302) -> Answer:
    """A login that answers with this `location`; {state} and {token} are filled in."""

    def answer(handler: Handler) -> None:
        portal.tokens.append(TOKEN)
        state = parse_qs(handler.body.decode())["state"][0]
        text = location.replace("{state}", state).replace("{token}", quote(TOKEN, safe=""))
        handler.reply(status, Location=text)

    return answer


def test_login_sends_the_form_of_the_web_app(portal: Portal, start: Start) -> None:
    assert start("--once", settings=portal.settings()).end() == 0
    (login,) = portal.logins_seen()
    assert login.headers["Content-Type"] == "application/x-www-form-urlencoded"
    form = login.form
    assert len(form.pop("state")) >= 16
    assert form == {
        "username": USERNAME,
        "password": PASSWORD,
        "client_id": CLIENT_ID,
        "redirect_uri": REDIRECT_URI,
        "response_type": "token",
        "scope": "authenticate_user fupo",
    }


def test_every_login_has_a_state_of_its_own(portal: Portal, start: Start) -> None:
    portal.readings = [car(), portal.expire_token, car()]
    start(settings=portal.settings()).wait_for_readings(3)
    first, second = (login.form["state"] for login in portal.logins_seen())
    assert first != second


@pytest.mark.parametrize(
    "fields",
    [
        "#state={state}&access_token={token}&token_type=Bearer&expires_in=7199",
        "#access_token={token}&expires_in=7199&token_type=Bearer&state={state}",
        "#token_type=Bearer&expires_in=7199&access_token={token}",
        f"#access_token={TOKEN}",
    ],
    ids=["as-the-web-app", "another-order", "no-state", "not-encoded"],
)
def test_token_is_found_in_the_fragment(portal: Portal, start: Start, fields: str) -> None:
    portal.logins = [redirect(portal, REDIRECT_URI + fields)]
    assert start("--once", settings=portal.settings()).end() == 0
    assert portal.polls_seen()[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_login_redirect_is_not_followed(portal: Portal, start: Start) -> None:
    here = portal.url + "landing"
    portal.logins = [redirect(portal, here + "#state={state}&access_token={token}")]
    settings = {**portal.settings(), "AUTH_REDIRECT_URI": here}
    assert start("--once", settings=settings).end() == 0
    assert [r.path for r in portal.polls_seen()] == [f"/api/vehicle/dynamic/v1/{VIN}"]


BAD_REDIRECTS = {
    "wrong-address": "https://evil.example/external-dispatch.html#access_token={token}",
    "wrong-scheme": REDIRECT_URI.replace("https", "http") + "#access_token={token}",
    "wrong-path": REDIRECT_URI + "x#access_token={token}",
    "wrong-address-with-error": "https://evil.example/?error=access_denied",
    "wrong-state": REDIRECT_URI + "#access_token={token}&state=other",
    "wrong-state-with-error": REDIRECT_URI + "?error=access_denied&state=other",
    "no-fragment": REDIRECT_URI,
    "no-token": REDIRECT_URI + "#state={state}&token_type=Bearer",
    "empty-token": REDIRECT_URI + "#state={state}&access_token=",
    "token-with-line-break": REDIRECT_URI + "#state={state}&access_token=secret%0d%0aX:%20y",
    "token-beyond-ascii": REDIRECT_URI + "#state={state}&access_token=secret%c3%a9",
    "malformed": "https://[::1/#access_token={token}",
    "no-location": "",
}


@pytest.mark.parametrize("location", BAD_REDIRECTS.values(), ids=BAD_REDIRECTS.keys())
def test_unexpected_redirect_is_tried_again(portal: Portal, start: Start, location: str) -> None:
    portal.logins = [redirect(portal, location), None]
    script = start(settings=portal.settings())
    script.wait_for_readings(1)
    assert len(script.stderr) == 1
    assert "login" in script.stderr[0]
    assert "next try in" in script.stderr[0]
    assert len(portal.polls_seen()) == 1


REFUSALS = {
    "error-in-query": (
        "access_denied",
        lambda p: redirect(p, REDIRECT_URI + "?error=access_denied"),
    ),
    "error-in-fragment": (
        "access_denied",
        lambda p: redirect(p, REDIRECT_URI + "#error=access_denied&state={state}"),
    ),
    "401": ("invalid_client", lambda p: lambda h: h.reply(401, {"error": "invalid_client"})),
    "400": ("invalid_grant", lambda p: lambda h: h.reply(400, {"error": "invalid_grant"})),
    "403-page": ("HTTP 403", lambda p: lambda h: h.reply(403, "<html>No</html>")),
    "400-odd-json": ("HTTP 400", lambda p: lambda h: h.reply(400, "[]")),
    "error-is-no-text": ("HTTP 401", lambda p: lambda h: h.reply(401, {"error": {"a": 1}})),
}


@pytest.mark.parametrize(("said", "make"), REFUSALS.values(), ids=REFUSALS.keys())
def test_first_refusal_ends_the_program(
    portal: Portal, start: Start, said: str, make: object
) -> None:
    portal.logins = [make(portal)]  # type: ignore[operator]
    script = start(settings=portal.settings())
    assert script.end() == 1
    assert said in script.stderr[0]
    assert "check USERNAME, PASSWORD and AUTH_CLIENT_ID" in script.stderr[0]
    assert len(portal.requests) == 1


def test_what_bmw_says_of_a_refusal_is_made_harmless(portal: Portal, start: Start) -> None:
    said = f"no \x1b[2J\x9b31m\n{USERNAME.upper()} {PASSWORD} {'x' * 500}"
    portal.logins = [lambda h: h.reply(401, {"error": said})]
    script = start(settings=portal.settings())
    assert script.end() == 1
    assert script.stderr[0].isprintable()
    assert USERNAME.upper() not in script.output
    assert len(script.stderr[0]) < 400


@pytest.mark.parametrize("error", ["server_error", "temporarily_unavailable"])
def test_error_that_is_not_the_owners_is_tried_again(
    portal: Portal, start: Start, error: str
) -> None:
    portal.logins = [redirect(portal, f"{REDIRECT_URI}?error={error}"), None]
    script = start(settings=portal.settings())
    script.wait_for_readings(1)
    assert script.stderr_with("BMW's login is out of order") == 1


def test_gateway_that_says_so_in_json_is_tried_again(portal: Portal, start: Start) -> None:
    portal.logins = [lambda h: h.reply(401, {"error": "temporarily_unavailable"}), None]
    script = start(settings=portal.settings())
    script.wait_for_readings(1)
    assert script.stderr_with("BMW's login is out of order") == 1


def test_one_login_serves_many_polls(portal: Portal, start: Start) -> None:
    start(settings=portal.settings()).wait_for_readings(20)
    assert len(portal.logins_seen()) == 1


def test_expired_token_is_renewed_and_the_reading_kept(portal: Portal, start: Start) -> None:
    portal.readings = [car("61.0"), portal.expire_token, car("62.0"), car("63.0")]
    script = start(settings=portal.settings())
    script.wait_for_readings(3)
    assert ["61%" in script.stdout[0], "62%" in script.stdout[1], "63%" in script.stdout[2]]
    assert script.stderr == []
    assert len(portal.logins_seen()) == 2


def test_expiry_right_after_the_login_is_renewed_too(portal: Portal, start: Start) -> None:
    portal.readings = [portal.expire_token, car()]
    assert start("--once", settings=portal.settings()).end() == 0
    assert len(portal.logins_seen()) == 2


def test_token_refused_for_ever_does_not_mean_a_login_for_every_poll(
    portal: Portal, start: Start
) -> None:
    def refuse(handler: Handler) -> None:
        handler.reply(401)

    portal.readings = [*[refuse] * 8, car()]
    script = start(settings=portal.settings())
    script.wait_for_readings(1)
    polls = len(script.stderr)
    assert script.stderr_with("access token") == polls
    # The first login, one more at once, and then one with every third poll.
    assert len(portal.logins_seen()) <= 2 + polls // 3


def test_two_refusals_later_in_a_run_are_forgiven(portal: Portal, start: Start) -> None:
    def refuse(handler: Handler) -> None:
        handler.reply(401, {"error": "invalid_client"})

    portal.logins = [None, refuse, refuse, None]
    portal.readings = [car("61.0"), portal.expire_token, car("62.0")]
    script = start(settings=portal.settings())
    script.wait_for_readings(2)
    assert script.stderr_with("refuses the login that has worked before") == 2


def test_three_refusals_later_in_a_run_end_the_program(portal: Portal, start: Start) -> None:
    def refuse(handler: Handler) -> None:
        handler.reply(401, {"error": "invalid_client"})

    portal.logins = [None, refuse]
    portal.readings = [car("61.0"), portal.expire_token]
    script = start(settings=portal.settings())
    assert script.end() == 1
    assert len(portal.logins_seen()) == 4


def test_netrc_cannot_replace_the_token(portal: Portal, start: Start, env: dict[str, str]) -> None:
    netrc = f"{env['HOME']}/.netrc"
    with open(netrc, "w") as file:
        file.write("machine 127.0.0.1 login other password other\n")
    script = start("--once", settings=portal.settings(), extra_env={"NETRC": netrc})
    assert script.end() == 0
    assert "Authorization" not in portal.logins_seen()[0].headers
    assert portal.polls_seen()[0].headers["Authorization"].startswith("Bearer ")


def test_token_does_not_follow_a_redirect(portal: Portal, start: Start) -> None:
    other = Portal()
    try:
        portal.readings = [lambda h: h.reply(302, Location=other.url), car()]
        script = start(settings=portal.settings())
        script.wait_for_readings(1)
        assert script.stderr_with("redirect") == 1
        assert other.requests == []
    finally:
        other.close()


def test_answers_are_wanted_uncompressed(portal: Portal, start: Start) -> None:
    assert start("--once", settings=portal.settings()).end() == 0
    assert {request.headers["Accept-Encoding"] for request in portal.requests} == {"identity"}


def test_loopback_is_not_asked_through_a_proxy(portal: Portal, start: Start) -> None:
    proxy = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    assert start("--once", settings=portal.settings(), extra_env=proxy).end() == 0
