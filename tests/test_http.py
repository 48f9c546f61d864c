"""One request, one answer or one error; and what a bad night does to the running script."""

from __future__ import annotations

import logging
import resource
import socket
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import Clock, Start
from fake_bmw import Answer, Handler, Portal, Recorder, car

import i3charge
from i3charge import HttpAnswer, Memory, News, NoAnswer, Settings


def ask(url: str, **more: Any) -> HttpAnswer:
    return i3charge.send("the car's status", "GET", url, **more)


def failure(url: str, **more: Any) -> NoAnswer:
    with pytest.raises(NoAnswer) as raised:
        ask(url, **more)
    return raised.value


def raw(text: str, then: Callable[[Handler], None] | None = None) -> Answer:
    """Send bytes as they are, and hang up."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(text.encode("latin-1"))
        handler.wfile.flush()
        if then:
            then(handler)
        handler.close_connection = True

    return answer


def reset(handler: Handler) -> None:
    """Read the request, and break the connection."""
    linger = b"\1\0\0\0\0\0\0\0"
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()
    handler.close_connection = True


def never(handler: Handler) -> None:
    handler.server.closing.wait(20)
    handler.reply(200)  # for a client that waits without a limit


OK = "HTTP/1.1 200 OK\r\n"
SHORT: dict[str, Any] = {"timeout_s": (5.0, 0.2)}


# --- Sent or not ----------------------------------------------------------------------


def test_connection_that_is_refused_has_sent_nothing(webhook: Recorder) -> None:
    webhook.stop_listening()
    problem = failure(webhook.url + "secret")
    assert not problem.was_sent
    assert str(problem) == (
        "no answer from 127.0.0.1 when asked for the car's status (ConnectionError)"
    )
    webhook.listen_again()


def test_name_that_is_not_found_has_sent_nothing() -> None:
    assert not failure("http://nowhere.invalid/").was_sent


UNUSABLE = "the address or a proxy's cannot be used: look at ALL_PROXY and HTTPS_PROXY"
UNSENT: dict[str, tuple[dict[str, str], str, str]] = {
    "not secure": (
        {},
        "https://127.0.0.1:{port}/",
        "no secure connection was possible: look at the network, the clock and REQUESTS_CA_BUNDLE",
    ),
    "no file of certificates": (
        {"REQUESTS_CA_BUNDLE": "/nowhere/secret.pem"},
        "https://bmw.invalid/",
        "its file of certificates is missing: look at REQUESTS_CA_BUNDLE, or set up .venv anew",
    ),
    "proxy that needs a package": (
        {"ALL_PROXY": "socks5://secret@127.0.0.1:1"},
        "https://bmw.invalid/",
        UNUSABLE,
    ),
    "proxy of another kind": ({"HTTPS_PROXY": "gopher://secret"}, "https://bmw.invalid/", UNUSABLE),
    "proxy without a host": (
        {"HTTPS_PROXY": "http://:80/secret"},
        "https://bmw.invalid/",
        UNUSABLE,
    ),
    "proxy that is not there": (
        {"HTTP_PROXY": "http://secret@127.0.0.1:1"},
        "http://bmw.invalid/",
        "its proxy does not let it through",
    ),
    "address": ({}, "http://bmw..invalid/secret", UNUSABLE),
}


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize("name", UNSENT)
def test_what_this_computer_has_kept_back_is_not_sent_and_said_in_plain_words(
    webhook: Recorder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    environment, url, why = UNSENT[name]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    problem = failure(url.format(port=webhook.server_port))
    assert not problem.was_sent
    assert str(problem).endswith(f": this computer could not send it, for {why}")
    assert "secret" not in str(problem)


@pytest.mark.usefixtures("no_proxy")
def test_message_that_this_computer_cannot_send_is_kept_and_tried_for_a_day(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    memory = Memory()
    settings = Settings(ntfy_url="https://ntfy.invalid/topic")
    outbox = i3charge.Outbox(settings, memory, "", tries_again=True)
    outbox.add(News("full", "Fully charged."), None)
    for _ in range(24 * 60 - 1):
        outbox.deliver()
        clock.sleep(60)
    assert [message.unanswered for message in memory.outbox] == [0]


def test_connection_that_is_not_made_in_time_has_sent_nothing() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = []
        for _ in range(4):  # until its queue is full
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(("127.0.0.1", port))
        problem = failure(f"http://127.0.0.1:{port}/", timeout_s=(0.2, 5.0))
        for each in waiting:
            each.close()
    assert not problem.was_sent


@pytest.mark.parametrize(
    "answer",
    [
        reset,
        lambda handler: setattr(handler, "close_connection", True),
        never,
        raw("no HTTP at all\r\n\r\n"),
    ],
    ids=["reset", "hung-up", "time-out", "garbage"],
)
def test_request_that_was_read_counts_as_sent(webhook: Recorder, answer: Answer) -> None:
    webhook.answers = [answer]
    assert failure(webhook.url + "secret-path", **SHORT).was_sent


# --- What is sent ---------------------------------------------------------------------


def test_netrc_cannot_replace_the_token(
    portal: Portal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login secret password secret\n")
    monkeypatch.setenv("NETRC", str(file))
    settings = i3charge.load_settings(portal.settings(), [], "")
    i3charge.Portal(settings).poll()
    login, poll = [request.headers.get("Authorization") for request in portal.requests]
    assert (login, poll) == (None, f"Bearer {portal.tokens[0]}")


def test_password_in_ones_own_address_is_used(webhook: Recorder) -> None:
    ask(webhook.url.replace("//", "//me:secret@"), auth=None)
    assert webhook.requests[0].headers["Authorization"].startswith("Basic ")


@pytest.mark.usefixtures("no_proxy")
def test_loopback_alone_is_not_asked_through_the_proxy(
    webhook: Recorder, ntfy: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, ntfy.url)
    ask(webhook.url)
    assert (len(webhook.requests), ntfy.requests) == (1, [])
    ask("http://bmw.invalid/")
    assert [request.path for request in ntfy.requests] == ["http://bmw.invalid/"]


def test_answers_are_wanted_uncompressed(webhook: Recorder) -> None:
    ask(webhook.url)
    headers = webhook.requests[0].headers
    assert headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"] == f"i3charge/{i3charge.__version__}"


def test_each_request_has_a_connection_of_its_own(webhook: Recorder) -> None:
    """A router forgets one that is idle for forty minutes."""
    for _ in range(3):
        ask(webhook.url)
    assert len({request.connection for request in webhook.requests}) == 3


# --- What comes back ------------------------------------------------------------------


@pytest.mark.parametrize("status", [302, 307])
def test_redirect_is_an_answer_and_not_followed(webhook: Recorder, status: int) -> None:
    webhook.answers = [lambda handler: handler.reply(status, Location=webhook.url + "next")]
    assert ask(webhook.url).status == status
    assert len(webhook.requests) == 1


def test_malformed_redirect_is_no_answer(webhook: Recorder) -> None:
    webhook.answers = [lambda handler: handler.reply(302, Location="http://[::1/secret")]
    assert "secret" not in str(failure(webhook.url))


@pytest.mark.parametrize(
    "body", ["", "[]", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\xff"], ids=range(5)
)
def test_body_without_an_object_is_an_empty_one(webhook: Recorder, body: str) -> None:
    webhook.answers = [lambda handler: handler.reply(200, body.encode("latin-1"))]
    assert ask(webhook.url).json() == {}


@pytest.mark.parametrize(
    "answer",
    [
        raw(OK + 'Content-Length: 100\r\n\r\n{"a": '),
        raw(OK + 'Transfer-Encoding: chunked\r\n\r\n10\r\n{"a": 1}\r\n'),
        raw(OK + 'Content-Length: 100\r\n\r\n{"a": 1}', reset),
    ],
    ids=["hung-up", "chunk", "reset"],
)
def test_body_that_breaks_off_is_no_object(webhook: Recorder, answer: Answer) -> None:
    webhook.answers = [answer]
    found = ask(webhook.url, **SHORT)
    assert (found.status, found.json()) == (200, {})


def test_huge_body_costs_no_memory(webhook: Recorder) -> None:
    def huge(handler: Handler) -> None:
        for _ in range(300):
            handler.wfile.write(b"x" * (1 << 20))

    webhook.answers = [raw(OK + "\r\n", huge)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(ask(webhook.url).body) == i3charge.BODY_LIMIT_BYTES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_verbose_names_no_address(webhook: Recorder, log: pytest.LogCaptureFixture) -> None:
    log.set_level(logging.DEBUG, logger="i3charge")
    ask(webhook.url + "secret")
    assert log.messages == ["asked 127.0.0.1 for the car's status: HTTP 200"]


# --- A bad night ----------------------------------------------------------------------

NIGHT: dict[str, tuple[Answer, str]] = {
    "reset": (reset, "no answer from 127.0.0.1 when asked for the car's status"),
    "garbage": (raw("secret\r\n\r\n"), "no answer from 127.0.0.1 when asked for the car's status"),
    "gateway": (lambda h: h.reply(502, "<html>secret"), "is out of order"),
    "teapot": (lambda h: h.reply(418), "gave no useful answer"),
    "empty": (lambda h: h.reply(200), "holds no charge"),
    "deep": (lambda h: h.reply(200, "[" * 100_000), "holds no charge"),
    "redirect": (lambda h: h.reply(302, Location="http://[secret/"), "no answer from 127.0.0.1"),
}


def test_script_goes_on_after_every_fault_and_says_each_in_a_line(
    portal: Portal, start: Start
) -> None:
    faults = [answer for answer, _ in NIGHT.values()]
    portal.readings = [car("50"), *faults, car("60")]
    constants = {"LEAST_LONGEST_PAUSE_S": 0.05}
    script = start(settings=portal.settings(), constants=constants)
    script.wait_for_readings(2)
    script.interrupt()
    said = [line for line in script.stderr if "next try in" in line]
    assert len(said) == len(NIGHT)
    for line, (_, expected) in zip(said, NIGHT.values()):
        assert expected in line
