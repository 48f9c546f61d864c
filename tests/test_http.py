"""One request, and one answer or one error."""

from __future__ import annotations

import gc
import gzip
import logging
import socket
import tracemalloc
from pathlib import Path
from typing import Any, Callable
from unittest import mock

import hypothesis
import pytest
from conftest import fixture_of
from fake_bmw import Answer, Handler, Recorder, Server, says
from hypothesis import strategies as st

import i3charge
from i3charge import HttpAnswer, Trouble


def ask(url: str, **more: Any) -> HttpAnswer:
    return i3charge.send("the car's status", "GET", url, **more)


def failure(url: str, **more: Any) -> Trouble:
    with pytest.raises(Trouble) as raised:
        ask(url, **more)
    return raised.value


def raw(text: str, then: Callable[[Handler], object] = lambda handler: None) -> Answer:
    """Send a text as it is, and hang up."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(text.encode())
        handler.wfile.flush()
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


handshake = fixture_of(HandshakeServer)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# --- Sent or not ----------------------------------------------------------------------


def test_connection_that_is_refused_has_sent_nothing(webhook: Recorder) -> None:
    webhook.stop_listening()
    problem = failure(webhook.url + "secret")
    webhook.listen_again()
    assert not problem.may_have_arrived
    said = "no answer from 127.0.0.1 when asked for the car's status (ConnectionError)"
    assert str(problem) == said


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
    assert not failure(url, timeout_s=(0.2, 0.2)).may_have_arrived
    assert handshake.handshakes == 1


BMW = "https://bmw.invalid/"
PROXY = "check ALL_PROXY and HTTPS_PROXY"
INSECURE = "check the network, the clock and REQUESTS_CA_BUNDLE"


@pytest.mark.parametrize(
    ("variable", "url", "hint"),
    [
        ("", "https://127.0.0.1:{port}/", INSECURE),
        ("REQUESTS_CA_BUNDLE=/nowhere/secret", BMW, "check REQUESTS_CA_BUNDLE, or"),
        ("ALL_PROXY=socks5://secret@h:1", BMW, "SOCKS needs pysocks"),
        ("HTTPS_PROXY=gopher://secret", BMW, "HTTPS_PROXY"),  # it is of another kind
        ("HTTPS_PROXY=http://:80/secret", BMW, "HTTPS_PROXY"),  # it has no host
        ("HTTPS_PROXY=http://secret@127.0.0.1:{port}", BMW, PROXY),  # it refuses
        ("", "http://bmw..invalid/secret", "check the address"),
    ],
)
def test_request_that_this_computer_could_not_send_says_where_to_look(
    webhook: Recorder, monkeypatch: pytest.MonkeyPatch, variable: str, url: str, hint: str
) -> None:
    port = webhook.server_port
    if variable:
        monkeypatch.setenv(*variable.format(port=port).split("="))
    problem = failure(url.format(port=port))
    assert not problem.may_have_arrived
    assert hint in str(problem).partition("): ")[2]
    assert "secret" not in str(problem)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize(
    "answer",
    [reset, never, raw("no HTTP at all\r\n\r\n"), says(302, Location="http://[::1/secret")],
    ids=["reset", "time-out", "garbage", "malformed-redirect"],
)
def test_request_that_was_read_counts_as_sent(webhook: Recorder, answer: Answer) -> None:
    webhook.answers = [answer]
    problem = failure(webhook.url + "secret-path", timeout_s=(5, 0.2))
    assert "secret" not in str(problem)
    may_have_arrived = problem.may_have_arrived
    del problem
    gc.collect()  # requests leaves the connection of a malformed redirect to it
    assert may_have_arrived


ADDRESS = st.lists(
    st.sampled_from(["me:", "@", "[", "]", "::1", "#", "?", "/", "%", "%41", ".", "\\", " ", "é"])
    | st.text("ab1-_~!$&'()*+,;=|^`{}<>\"", max_size=3),
    max_size=6,
)


@hypothesis.given(st.sampled_from(["http://", "https://"]), ADDRESS)
def test_any_address_that_the_settings_accept_gets_an_answer_or_a_trouble(
    scheme: str, parts: list[str]
) -> None:
    try:
        address = i3charge.parse_web(scheme + "".join(parts))
    except ValueError:
        return
    with mock.patch.object(socket, "getaddrinfo", side_effect=socket.gaierror("no network")):
        url, credentials = i3charge.split_credentials(address)
        assert not failure(url, auth=credentials or i3charge.without_netrc).may_have_arrived


# --- What is sent ---------------------------------------------------------------------


def test_netrc_cannot_replace_the_token(
    webhook: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(file))
    ask(webhook.url, headers={"Authorization": "Bearer token"})
    assert webhook.requests[0].headers["Authorization"] == "Bearer token"


NEARBY = ["homeassistant", "192.168.178.20", "[fe80::7]", "HomeAssistant.LOCAL"]


@pytest.mark.parametrize("host", [*NEARBY, "8.8.8.8", "bmw.invalid", "bmw.notlocal"])
def test_nearby_host_is_not_asked_through_the_proxy(
    webhook: Recorder, ntfy: Recorder, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("http_proxy", ntfy.url)
    monkeypatch.setenv("all_proxy", ntfy.url)
    look_up = socket.getaddrinfo
    with mock.patch.object(socket, "getaddrinfo") as looked_up:  # all lead to this computer
        looked_up.side_effect = lambda _, *port, **more: look_up("127.0.0.1", *port, **more)
        ask(f"http://{host}:{webhook.server_port}/secret")
    is_nearby = host in NEARBY
    assert (len(webhook.requests), len(ntfy.requests)) == (is_nearby, not is_nearby)
    # Only to connect: that tells a name server nothing that it need not know.
    (looked_up_host,) = [call.args[0].lower() for call in looked_up.call_args_list]
    assert looked_up_host == (host.strip("[]").lower() if is_nearby else "127.0.0.1")


def test_each_request_names_the_program_wants_no_compression_and_has_its_own_connection(
    webhook: Recorder,
) -> None:
    """A router forgets a connection that is idle for forty minutes."""
    for _ in range(3):
        ask(webhook.url)
    assert len({request.connection for request in webhook.requests}) == 3
    headers = webhook.requests[0].headers
    assert headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"] == f"i3charge/{i3charge.__version__}"


# --- What comes back ------------------------------------------------------------------


def test_redirect_is_an_answer_and_not_followed(webhook: Recorder) -> None:
    webhook.answers = [says(302, Location=webhook.url + "next")]
    assert ask(webhook.url).status == 302
    assert len(webhook.requests) == 1


# It breaks off after an object and the blanks of the first chunk.
TOO_SHORT = 'HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{"a": 1}' + " " * 5000
NO_OBJECTS = {
    "empty": says(200),
    "list": says(200, "[]"),
    "too-deep": says(200, "[" * 100_000),
    "no-utf-8": says(200, b"\xff"),
    "no-gzip": says(200, {"a": 1}, Content_Encoding="gzip"),
    "hung-up": raw(TOO_SHORT),
    "reset": raw(TOO_SHORT, reset),
}


@pytest.mark.parametrize("answer", NO_OBJECTS.values(), ids=NO_OBJECTS)
def test_body_without_a_whole_object_is_an_empty_one(webhook: Recorder, answer: Answer) -> None:
    webhook.answers = [answer]
    found = ask(webhook.url)
    assert (found.status, found.json()) == (200, {})


def test_long_body_is_read_whole_and_unpacked(webhook: Recorder) -> None:
    """A server may pack its answer although that was not asked for."""
    body = " ".join(map(str, range(20_000))).encode()
    packed = gzip.compress(body)
    assert len(packed) > 3 * i3charge.CHUNK_BYTES
    webhook.answers = [says(200, packed, Content_Encoding="gzip")]
    assert ask(webhook.url).body == body


def test_huge_body_costs_no_memory(webhook: Recorder) -> None:
    packed = gzip.compress(bytes(100 << 20))
    webhook.answers = [says(200, packed, Content_Encoding="gzip")]
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
