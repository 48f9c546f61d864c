"""The portal's login and the life of its access token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote

import pytest
from conftest import Start, closing
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

import i3charge
from i3charge import SignInFailed, TryAgain

TOKEN = "secret+token/9="


def door_to(portal: Portal, **variables: str) -> i3charge.Portal:
    return i3charge.Portal(i3charge.Settings({**portal.settings(), **variables}), i3charge.Http())


@pytest.fixture
def door(portal: Portal) -> i3charge.Portal:
    return door_to(portal)


@pytest.fixture
def other_portal() -> Iterator[Portal]:
    yield from closing(Portal())


def redirect(portal: Portal, location: str) -> Answer:
    """A login that answers with this `location`; {state} and {token} are filled in."""

    def answer(handler: Handler) -> None:
        portal.tokens.append(TOKEN)
        state = parse_qs(handler.body.decode())["state"][0]
        text = location.replace("{state}", state).replace("{token}", quote(TOKEN, safe=""))
        handler.reply(302, Location=text)

    return answer


def refuse(handler: Handler) -> None:
    handler.reply(401, {"error": "invalid_client"})


# --- The login ------------------------------------------------------------------------------


def test_login_sends_the_form_of_the_web_app(portal: Portal, door: i3charge.Portal) -> None:
    door.poll()
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


@pytest.mark.parametrize(
    "fields",
    [
        "#state={state}&access_token={token}&token_type=Bearer&expires_in=7199",
        "#access_token={token}&expires_in=7199&token_type=Bearer&state={state}",
        "#token_type=Bearer&expires_in=7199&access_token={token}",
        f"#access_token={TOKEN}",
        "?state={state}#access_token={token}",
    ],
    ids=["as-the-web-app", "another-order", "no-state", "not-encoded", "state-in-query"],
)
def test_token_is_found_in_the_redirect(portal: Portal, door: i3charge.Portal, fields: str) -> None:
    portal.logins = [redirect(portal, REDIRECT_URI + fields)]
    door.poll()
    assert portal.polls_seen()[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_login_redirect_is_not_followed(portal: Portal) -> None:
    here = portal.url + "landing"
    portal.logins = [redirect(portal, here + "#state={state}&access_token={token}")]
    door_to(portal, AUTH_REDIRECT_URI=here).poll()
    assert [r.path for r in portal.polls_seen()] == [f"/api/vehicle/dynamic/v1/{VIN}"]


BAD_REDIRECTS = {
    "wrong-address": "https://evil.example/external-dispatch.html#access_token={token}",
    "wrong-scheme": REDIRECT_URI.replace("https", "http") + "#access_token={token}",
    "longer-path": REDIRECT_URI + "x#access_token={token}",
    "ours-in-its-query": f"https://evil.example/?{REDIRECT_URI}#access_token={{token}}",
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
def test_useless_redirect_is_tried_again(
    portal: Portal, door: i3charge.Portal, location: str
) -> None:
    portal.logins = [redirect(portal, location), None]
    with pytest.raises(TryAgain, match="login"):
        door.poll()
    assert portal.polls_seen() == []
    assert door.poll().charge == 62


REFUSALS = {
    "error-in-query": ("access_denied", f"{REDIRECT_URI}?error=access_denied"),
    "error-in-fragment": ("access_denied", f"{REDIRECT_URI}#error=access_denied&state={{state}}"),
    "401": ("invalid_client", refuse),
    "400": ("invalid_grant", lambda h: h.reply(400, {"error": "invalid_grant"})),
    "403-page": ("HTTP 403", lambda h: h.reply(403, "<html>No</html>")),
    "400-odd-json": ("HTTP 400", lambda h: h.reply(400, "[]")),
    "error-is-no-text": ("HTTP 401", lambda h: h.reply(401, {"error": {"a": 1}})),
}


@pytest.mark.parametrize(("said", "login"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_first_login_that_is_refused_is_the_last(
    portal: Portal, door: i3charge.Portal, said: str, login: str | Answer
) -> None:
    portal.logins = [redirect(portal, login) if isinstance(login, str) else login]
    with pytest.raises(SignInFailed, match=f"{said}.*check USERNAME, PASSWORD"):
        door.poll()


def test_a_refused_login_ends_the_program_and_its_words_are_harmless(
    portal: Portal, start: Start
) -> None:
    said = f"no \x1b[2J\x9b31m\n{USERNAME.upper()} {PASSWORD} {'x' * 500}"
    portal.logins = [lambda h: h.reply(401, {"error": said})]
    script = start(settings=portal.settings())
    assert script.end() == 1
    assert len(portal.requests) == 1
    line = next(line for line in script.news if "login" in line)
    assert line.isprintable()
    assert USERNAME.upper() not in script.output
    assert len(line) < 400


# --- The access token -----------------------------------------------------------------------


def test_one_login_serves_until_the_token_expires(portal: Portal, start: Start) -> None:
    portal.readings = [*map(car, ("61", "62", "63")), portal.expire_token, *map(car, ("64", "65"))]
    script = start(settings=portal.settings())
    script.wait_for_readings(5)
    assert [line.split()[2] for line in script.stdout[:5]] == ["61%", "62%", "63%", "64%", "65%"]
    assert script.news == []
    first, second = (login.form["state"] for login in portal.logins_seen())
    assert first != second


def test_a_new_token_that_is_refused_too_means_a_long_pause(portal: Portal, start: Start) -> None:
    portal.readings = [lambda h: h.reply(401)]
    script = start(settings=portal.settings())
    script.wait_for_stderr("access token")
    assert script.stderr_with("next try in 10 min") == 1
    assert len(portal.logins_seen()) == 2


def test_after_the_pause_there_is_at_most_one_login_a_poll(portal: Portal, start: Start) -> None:
    portal.readings = [*[lambda h: h.reply(401)] * 5, car()]
    script = start(settings=portal.settings(), constants={"Portal.LOGIN_PAUSE_S": 0.05})
    script.wait_for_readings(1)
    # Two requests in the first poll, and in each of the next.
    assert script.stderr_with("access token") == 2
    assert len(portal.logins_seen()) == 4


@pytest.mark.parametrize("worked", [1, 2])
def test_the_third_refusal_in_a_row_is_the_last(
    portal: Portal, door: i3charge.Portal, worked: int
) -> None:
    refusals: list[Answer | None] = [refuse, refuse]
    portal.logins = [None, *[*refusals, None] * (worked - 1), *refusals, refuse]
    portal.readings = [*[car(), portal.expire_token] * worked, car()]
    for _ in range(worked):
        assert door.poll().charge == 62
        for _ in refusals:
            with pytest.raises(TryAgain, match="login"):
                door.poll()
    with pytest.raises(SignInFailed):
        door.poll()


# --- What is sent along ---------------------------------------------------------------------


def test_netrc_cannot_replace_the_token(
    portal: Portal, door: i3charge.Portal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    door.poll()
    assert "Authorization" not in portal.logins_seen()[0].headers
    assert portal.polls_seen()[0].headers["Authorization"].startswith("Bearer ")


def test_token_does_not_follow_a_redirect(
    portal: Portal, door: i3charge.Portal, other_portal: Portal
) -> None:
    portal.readings = [lambda h: h.reply(302, Location=other_portal.url), car()]
    with pytest.raises(TryAgain, match="302"):
        door.poll()
    assert other_portal.requests == []


def test_answers_are_wanted_uncompressed(portal: Portal, door: i3charge.Portal) -> None:
    door.poll()
    assert {request.headers["Accept-Encoding"] for request in portal.requests} == {"identity"}


def test_loopback_is_not_asked_through_a_proxy(
    door: i3charge.Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert door.poll().charge == 62
