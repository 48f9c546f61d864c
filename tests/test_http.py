"""One request, one answer or one error; and what a bad night does to the running script."""

from __future__ import annotations

import base64
import gc
import gzip
import logging
import socket
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable
from urllib.parse import unquote

import hypothesis
import pytest
from conftest import Clock, Start
from fake_bmw import Answer, Handler, Portal, Recorder, car
from fake_cardata import CarData, Client, saved
from hypothesis import strategies as st

import i3charge
from i3charge import HttpAnswer, Memory, News, Settings, Trouble


def ask(url: str, **more: Any) -> HttpAnswer:
    return i3charge.send("the car's status", "GET", url, **more)


def failure(url: str, **more: Any) -> Trouble:
    with pytest.raises(Trouble) as raised:
        ask(url, **more)
    return raised.value


def raw(text: str | bytes, then: Callable[[Handler], None] | None = None) -> Answer:
    """Send bytes as they are, and hang up."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(text.encode("latin-1") if isinstance(text, str) else text)
        handler.wfile.flush()
        if then:
            then(handler)
        handler.close_connection = True

    return answer


RESET = b"\1\0\0\0\0\0\0\0"  # as SO_LINGER: closing resets the connection


def reset(handler: Handler) -> None:
    """Read the request, and break the connection."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    handler.connection.close()
    handler.close_connection = True


def never(handler: Handler) -> None:
    handler.server.closing.wait(20)
    handler.reply(200)  # for a client that waits without a limit


class HandshakeServer:
    """A server that reads the first message of a TLS handshake, and does `then`."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self.socket.getsockname()[1]}/"
        self.then: Callable[[socket.socket], None] = self.reset
        self.handshakes = 0
        self.closing = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self.closing.is_set():
            connection, _ = self.socket.accept()
            with connection:
                self.handshakes += bool(connection.recv(1 << 14))
                self.then(connection)

    def reset(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def hang_up(self, connection: socket.socket) -> None:
        """Close the connection in an orderly way."""

    def say_nothing(self, connection: socket.socket) -> None:
        connection.recv(1 << 14)  # until the client hangs up

    def close(self) -> None:
        self.closing.set()
        socket.create_connection(self.socket.getsockname()).close()
        self.socket.close()


@pytest.fixture
def handshake() -> Iterator[HandshakeServer]:
    server = HandshakeServer()
    yield server
    server.close()


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


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


PROXY = "look at ALL_PROXY and HTTPS_PROXY"
UNSENT: dict[str, tuple[dict[str, str], str, str]] = {
    "not secure": (
        {},
        "https://127.0.0.1:{port}/",
        "look at the network, the clock and REQUESTS_CA_BUNDLE",
    ),
    "no file of certificates": (
        {"REQUESTS_CA_BUNDLE": "/nowhere/secret.pem"},
        "https://bmw.invalid/",
        "look at REQUESTS_CA_BUNDLE, or set up .venv anew: certificates are missing",
    ),
    "proxy that needs a package": (
        {"ALL_PROXY": "socks5://secret@127.0.0.1:1"},
        "https://bmw.invalid/",
        "look at ALL_PROXY: SOCKS needs pysocks",
    ),
    "proxy of another kind": (
        {"HTTPS_PROXY": "gopher://secret"},
        "https://bmw.invalid/",
        "HTTPS_PROXY",
    ),
    "proxy without a host": ({"HTTPS_PROXY": "http://:80/secret"}, "https://bmw.invalid/", PROXY),
    "proxy that is not there": (
        {"HTTP_PROXY": "http://secret@127.0.0.1:1"},
        "http://bmw.invalid/",
        PROXY,
    ),
    "proxy that refuses": (
        {"HTTPS_PROXY": "http://secret@127.0.0.1:{port}"},
        "https://bmw.invalid/",
        PROXY,
    ),
    "address": ({}, "http://bmw..invalid/secret", "look at the address"),
}


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize("name", UNSENT)
def test_request_that_this_computer_could_not_send_says_where_to_look(
    webhook: Recorder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    environment, url, hint = UNSENT[name]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value.format(port=webhook.server_port))
    problem = failure(url.format(port=webhook.server_port))
    assert not problem.was_sent
    assert hint in str(problem).partition("): ")[2]
    assert "secret" not in str(problem)


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize("how", ["reset", "hang_up", "say_nothing"])
def test_connection_that_breaks_in_the_tls_handshake_has_sent_nothing(
    handshake: HandshakeServer, how: str
) -> None:
    handshake.then = getattr(handshake, how)
    assert not failure(handshake.url, timeout_s=(0.5, 0.5)).was_sent
    assert handshake.handshakes == 1


@pytest.mark.usefixtures("no_proxy")
def test_unsent_message_is_tried_for_a_day(clock: Clock, handshake: HandshakeServer) -> None:
    memory = Memory()
    settings = Settings(webhook_url=handshake.url)
    outbox = i3charge.Outbox(settings, memory, saved, "")
    outbox.add(News("full", "Fully charged."), None)
    for _ in range(24 * 60 - 1):
        outbox.deliver()
        clock.sleep(60)
    assert [message.unanswered for message in memory.outbox] == [0]
    assert handshake.handshakes > 24


@pytest.mark.usefixtures("no_proxy")
def test_unsent_request_does_not_count_against_bmws_quota(
    cardata: CarData, handshake: HandshakeServer
) -> None:
    client = Client(cardata, cardata.signed_in(), CARDATA_BASE_URL=handshake.url)
    assert not client.refused().was_sent
    assert (handshake.handshakes, client.memory.requests_s) == (1, [])


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


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize(
    "answer",
    [
        reset,
        lambda handler: setattr(handler, "close_connection", True),
        never,
        raw("no HTTP at all\r\n\r\n"),
        lambda handler: handler.reply(302, Location="http://[::1/secret"),
        lambda handler: handler.reply(302, Location="http://h/\xff"),
    ],
    ids=["reset", "hung-up", "time-out", "garbage", "no-address", "no-utf-8"],
)
def test_request_that_was_read_counts_as_sent(webhook: Recorder, answer: Answer) -> None:
    webhook.answers = [answer]
    problem = failure(webhook.url + "secret-path", **SHORT)
    assert "secret" not in str(problem)
    was_sent = problem.was_sent
    del problem
    gc.collect()  # requests leaves the connection of a malformed redirect to it
    assert was_sent


# --- What is sent ---------------------------------------------------------------------


def test_netrc_cannot_replace_the_token(
    portal: Portal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login secret password secret\n")
    monkeypatch.setenv("NETRC", str(file))
    settings = i3charge.load_settings(portal.settings(), "portal", "")
    i3charge.Portal(settings).poll()
    login, poll = [request.headers.get("Authorization") for request in portal.requests]
    assert (login, poll) == (None, f"Bearer {portal.tokens[0]}")


@pytest.mark.parametrize(
    "password", ["secret", "hasło", "пароль", "has%C5%82o", "%23%2F%3F%5B", "p@ss:word"]
)
def test_password_in_ones_own_address_is_sent_as_utf_8(webhook: Recorder, password: str) -> None:
    own = webhook.url.replace("//", f"//me:{password}@")
    url, credentials = i3charge.split_credentials(own)
    ask(url, auth=credentials)
    scheme, encoded = webhook.requests[0].headers["Authorization"].split()
    assert (scheme, base64.b64decode(encoded).decode()) == ("Basic", f"me:{unquote(password)}")


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that are looked up. The connections to all of them lead to this computer."""
    hosts: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *more: Any, **options: Any) -> Any:
        hosts.append(host)
        return real("127.0.0.1", port, socket.AF_INET, socket.SOCK_STREAM)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return hosts


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize(
    ("host", "is_nearby"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("[::1]", True),
        ("10.0.0.7", True),
        ("172.16.0.7", True),
        ("192.168.178.20", True),
        ("169.254.7.7", True),
        ("[fe80::7]", True),
        ("[fd00::7]", True),
        ("homeassistant.local", True),
        ("HomeAssistant.LOCAL", True),
        ("8.8.8.8", False),
        ("172.32.0.7", False),
        ("[2606:4700::1111]", False),
        ("bmw.invalid", False),
        ("local.invalid", False),
        ("notlocal", False),
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
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, ntfy.url)
    url = f"http://{host}:{webhook.server_port}/secret"
    ask(url)
    asked = {"directly": len(webhook.requests), "proxy": len(ntfy.requests)}
    assert asked == {"directly": is_nearby, "proxy": not is_nearby}
    # Only to connect: that tells a name server nothing that it need not know.
    expected = host.strip("[]").lower() if is_nearby else "127.0.0.1"
    assert [each.lower() for each in looked_up] == [expected]


ADDRESS = st.lists(
    st.sampled_from(["me:", "@", "[", "]", "::1", "#", "?", "/", "%", "%41", ".", "\\", " ", "é"])
    | st.text("ab1-_~!$&'()*+,;=|^`{}<>\"", max_size=3),
    max_size=6,
)


@pytest.mark.usefixtures("no_proxy")
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


@pytest.mark.parametrize("coding", ["identity", "gzip", "deflate"])
@pytest.mark.parametrize("pieces", [1, 7])
def test_packed_or_chunked_body_is_read_whole(webhook: Recorder, coding: str, pieces: int) -> None:
    """A server may pack its answer although that was not asked for."""
    text = '{"a": "' + "".join(map(str, range(20_000))) + '"}'
    packers: dict[str, Callable[[bytes], bytes]] = {
        "identity": bytes,
        "gzip": gzip.compress,
        "deflate": zlib.compress,
    }
    body = packers[coding](text.encode())
    assert len(body) > 3 * i3charge.CHUNK_BYTES
    size = -(-len(body) // pieces)
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    lines = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""]]
    head = f"{OK}Content-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n\r\n"
    webhook.answers = [raw(head.encode() + b"".join(lines))]
    found = ask(webhook.url)
    assert found.body.decode() == text
    assert set(found.json()) == {"a"}


def test_body_that_cannot_be_unpacked_is_no_object(webhook: Recorder) -> None:
    webhook.answers = [lambda handler: handler.reply(200, {"a": 1}, Content_Encoding="gzip")]
    found = ask(webhook.url)
    assert (found.status, found.json()) == (200, {})


def packed_zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(wbits=31)
    packed = [packer.compress(bytes(1 << 20)) for _ in range(megabytes)]
    return b"".join([*packed, packer.flush()])


@pytest.mark.parametrize("is_packed", [False, True])
def test_huge_body_costs_no_memory(webhook: Recorder, is_packed: bool) -> None:
    def huge(handler: Handler) -> None:
        for _ in range(200):
            handler.wfile.write(b"x" * (1 << 20))

    webhook.answers = [raw(OK + "\r\n", huge)]
    if is_packed:
        packed = packed_zeros(200)
        webhook.answers = [lambda handler: handler.reply(200, packed, Content_Encoding="gzip")]
    tracemalloc.start()
    try:
        assert len(ask(webhook.url).body) == i3charge.BODY_LIMIT_BYTES
        assert tracemalloc.get_traced_memory()[1] < 50 * i3charge.BODY_LIMIT_BYTES
    finally:
        tracemalloc.stop()


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
    "empty": (lambda h: h.reply(200), "gave no useful answer"),
    "deep": (lambda h: h.reply(200, "[" * 100_000), "gave no useful answer"),
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
