"""One request, one answer or one error; and what a bad night does to the running script."""

from __future__ import annotations

import gc
import gzip
import logging
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import hypothesis
import pytest
from conftest import Start, closing
from fake_bmw import Answer, Handler, Portal, Recorder, Server, car
from hypothesis import strategies as st

import i3charge
from i3charge import HttpAnswer, Trouble


def ask(url: str, **more: Any) -> HttpAnswer:
    return i3charge.send("the car's status", "GET", url, **more)


def failure(url: str, **more: Any) -> Trouble:
    with pytest.raises(Trouble) as raised:
        ask(url, **more)
    return raised.value


def raw(text: str, then: Callable[[Handler], None] | None = None) -> Answer:
    """Send a text as it is, and hang up."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(text.encode())
        handler.wfile.flush()
        if then:
            then(handler)
        handler.close_connection = True

    return answer


def break_off(connection: socket.socket) -> None:
    linger = b"\1\0\0\0\0\0\0\0"  # so that closing it resets it
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


def reset(handler: Handler) -> None:
    """Read the request, and break the connection."""
    break_off(handler.connection)
    handler.close_connection = True


def never(handler: Handler) -> None:
    handler.server.closing.wait(20)
    handler.reply(200)  # for a client that waits without a limit


class HandshakeServer(Server):
    """Reads the first message of each TLS handshake, and does `then`."""

    then: Callable[[socket.socket], object]
    handshakes = 0

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.handshakes += bool(request.recv(1 << 14))
        self.then(request)


@pytest.fixture
def handshake() -> Iterator[HandshakeServer]:
    yield from closing(HandshakeServer())


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# --- Sent or not ----------------------------------------------------------------------


def test_connection_that_is_refused_has_sent_nothing(webhook: Recorder) -> None:
    webhook.stop_listening()
    problem = failure(webhook.url + "secret")
    assert not problem.was_sent
    assert str(problem) == (
        "no answer from 127.0.0.1 when asked for the car's status (ConnectionError)"
    )
    webhook.listen_again()


@pytest.mark.parametrize(
    "then",
    [break_off, lambda connection: None, lambda connection: connection.recv(1 << 14)],
    ids=["reset", "hung-up", "time-out"],
)
def test_connection_that_breaks_in_the_tls_handshake_has_sent_nothing(
    handshake: HandshakeServer, then: Callable[[socket.socket], object]
) -> None:
    handshake.then = then
    url = handshake.url.replace("http:", "https:")
    assert not failure(url, timeout_s=(0.2, 0.2)).was_sent
    assert handshake.handshakes == 1


PORT = "127.0.0.1:{port}"
BMW = "https://bmw.invalid/"
PROXY = "look at ALL_PROXY and HTTPS_PROXY"
UNSENT: dict[str, tuple[str, str, str]] = {
    "not secure": ("", f"https://{PORT}/", "look at the network, the clock and REQUESTS_CA_BUNDLE"),
    "no certificates": (
        "REQUESTS_CA_BUNDLE=/nowhere/secret",
        BMW,
        "look at REQUESTS_CA_BUNDLE, or",
    ),
    "proxy that needs a package": ("ALL_PROXY=socks5://secret@h:1", BMW, "SOCKS needs pysocks"),
    "proxy of another kind": ("HTTPS_PROXY=gopher://secret", BMW, "HTTPS_PROXY"),
    "proxy without a host": ("HTTPS_PROXY=http://:80/secret", BMW, PROXY),
    "proxy that refuses": (f"HTTPS_PROXY=http://secret@{PORT}", BMW, PROXY),
    "address": ("", "http://bmw..invalid/secret", "look at the address"),
}


@pytest.mark.parametrize("name", UNSENT)
def test_request_that_this_computer_could_not_send_says_where_to_look(
    webhook: Recorder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    variable, url, hint = (text.format(port=webhook.server_port) for text in UNSENT[name])
    if variable:
        monkeypatch.setenv(*variable.split("="))
    problem = failure(url)
    assert not problem.was_sent
    assert hint in str(problem).partition("): ")[2]
    assert "secret" not in str(problem)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize(
    "answer",
    [
        reset,
        never,
        raw("no HTTP at all\r\n\r\n"),
        lambda handler: handler.reply(302, Location="http://[::1/secret"),
    ],
    ids=["reset", "time-out", "garbage", "malformed-redirect"],
)
def test_request_that_was_read_counts_as_sent(webhook: Recorder, answer: Answer) -> None:
    webhook.answers = [answer]
    problem = failure(webhook.url + "secret-path", timeout_s=(5, 0.2))
    assert "secret" not in str(problem)
    was_sent = problem.was_sent
    del problem
    gc.collect()  # requests leaves the connection of a malformed redirect to it
    assert was_sent


ADDRESS = st.lists(
    st.sampled_from(["me:", "@", "[", "]", "::1", "#", "?", "/", "%", "%41", ".", "\\", " ", "é"])
    | st.text("ab1-_~!$&'()*+,;=|^`{}<>\"", max_size=3),
    max_size=6,
)


@hypothesis.given(st.sampled_from(["http://", "https://"]), ADDRESS)
def test_any_address_that_the_settings_accept_gets_an_answer_or_a_trouble(
    scheme: str, parts: list[str]
) -> None:
    def look_up(*_: object, **__: object) -> Any:
        raise socket.gaierror("no network")

    try:
        address = i3charge.parse_web(scheme + "".join(parts))
    except ValueError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up)
        url, credentials = i3charge.split_credentials(address)
        assert not failure(url, auth=credentials or i3charge.without_netrc).was_sent


# --- What is sent ---------------------------------------------------------------------


def test_netrc_cannot_replace_the_token(
    webhook: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(file))
    ask(webhook.url, headers={"Authorization": "Bearer token"})
    assert webhook.requests[0].headers["Authorization"] == "Bearer token"


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that are looked up. The connections to all of them lead to this computer."""
    hosts: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *more: Any, **options: Any) -> Any:
        hosts.append(host.lower())
        return real("127.0.0.1", port, socket.AF_INET, socket.SOCK_STREAM)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return hosts


@pytest.mark.parametrize(
    ("host", "is_nearby"),
    [
        ("homeassistant", True),
        ("192.168.178.20", True),
        ("[fe80::7]", True),
        ("HomeAssistant.LOCAL", True),
        ("8.8.8.8", False),
        ("bmw.invalid", False),
        ("bmw.notlocal", False),
    ],
)
def test_nearby_host_is_not_asked_through_the_proxy(
    webhook: Recorder,
    ntfy: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    looked_up: list[str],
    host: str,
    is_nearby: bool,
) -> None:
    for variable in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(variable, ntfy.url)
    ask(f"http://{host}:{webhook.server_port}/secret")
    asked = {"directly": len(webhook.requests), "proxy": len(ntfy.requests)}
    assert asked == {"directly": is_nearby, "proxy": not is_nearby}
    # Only to connect: that tells a name server nothing that it need not know.
    assert looked_up == [host.strip("[]").lower() if is_nearby else "127.0.0.1"]


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


def test_redirect_is_an_answer_and_not_followed(webhook: Recorder) -> None:
    webhook.answers = [lambda handler: handler.reply(302, Location=webhook.url + "next")]
    assert ask(webhook.url).status == 302
    assert len(webhook.requests) == 1


# It breaks off after an object and the blanks of the first chunk.
TOO_SHORT = 'HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{"a": 1}' + " " * 5000
NO_OBJECTS: dict[str, Answer] = {
    "empty": lambda handler: handler.reply(200),
    "list": lambda handler: handler.reply(200, "[]"),
    "too-deep": lambda handler: handler.reply(200, "[" * 100_000),
    "no-utf-8": lambda handler: handler.reply(200, b"\xff"),
    "no-gzip": lambda handler: handler.reply(200, {"a": 1}, Content_Encoding="gzip"),
    "hung-up": raw(TOO_SHORT),
    "reset": raw(TOO_SHORT, reset),
}


@pytest.mark.parametrize("name", NO_OBJECTS)
def test_body_without_a_whole_object_is_an_empty_one(webhook: Recorder, name: str) -> None:
    webhook.answers = [NO_OBJECTS[name]]
    found = ask(webhook.url)
    assert (found.status, found.json()) == (200, {})


def test_long_body_is_read_whole_and_unpacked(webhook: Recorder) -> None:
    """A server may pack its answer although that was not asked for."""
    body = " ".join(map(str, range(20_000))).encode()
    packed = gzip.compress(body)
    assert len(packed) > 3 * i3charge.CHUNK_BYTES
    webhook.answers = [lambda handler: handler.reply(200, packed, Content_Encoding="gzip")]
    assert ask(webhook.url).body == body


def test_huge_body_costs_no_memory(webhook: Recorder) -> None:
    packed = gzip.compress(bytes(100 << 20))
    webhook.answers = [lambda handler: handler.reply(200, packed, Content_Encoding="gzip")]
    tracemalloc.start()
    try:
        assert len(ask(webhook.url).body) == i3charge.BODY_LIMIT_BYTES
        assert tracemalloc.get_traced_memory()[1] < 20 * i3charge.BODY_LIMIT_BYTES
    finally:
        tracemalloc.stop()


def test_verbose_names_no_address(webhook: Recorder, log: pytest.LogCaptureFixture) -> None:
    log.set_level(logging.DEBUG, logger="i3charge")
    ask(webhook.url + "secret")
    assert log.messages == ["asked 127.0.0.1 for the car's status: HTTP 200"]


# --- A bad night ----------------------------------------------------------------------


def test_script_goes_on_after_every_fault_and_says_each_in_a_line(
    portal: Portal, start: Start
) -> None:
    faults: dict[str, Answer] = {
        "no answer from 127.0.0.1 when asked for": reset,
        "is out of order": lambda handler: handler.reply(502, "<html>secret"),
        "gave no useful answer": NO_OBJECTS["too-deep"],
    }
    portal.readings = [car("50"), *faults.values(), car("60")]
    script = start(settings=portal.settings(), constants={"MIN_LONGEST_PAUSE_S": 0.05})
    script.wait_for_readings(2)
    script.interrupt()
    said = [line for line in script.stderr if "next try in" in line]
    assert [fault in line for fault, line in zip(faults, said)] == [True] * len(said)
    assert len(said) == len(faults)
