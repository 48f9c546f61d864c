"""Whatever BMW, the network and the desk do, the logger lives on and tells all news once.

A row of a table is a name, what the server does once, and what the owner sees of it.
"""

from __future__ import annotations

import json
import re
import resource
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from pathlib import Path
from typing import Any, Callable, Union

import pytest
from conftest import LOG_LINE, Notifier, Script, Start, closing
from fake_bmw import Answer, Handler, Portal, Recorder, car, full_car
from fake_cardata import HV_STATUS, PREDICTED, CarData, full, telematic

Bmw = Union[Portal, CarData]

QUICK = {"CONNECT_AND_READ_TIMEOUT_S": [0.5, 0.5], "POLL_LIMIT_S": 1.5}
FULL = "Fully charged. The charging station can be freed."


@pytest.fixture
def cardata(tmp_path: Path) -> Iterator[CarData]:
    """A CarData where the script has signed in before."""
    server = CarData()
    server.quota = 10**6
    store = tmp_path / ".cardata.json"
    store.write_text(json.dumps(server.sign_in()))
    store.chmod(0o600)
    yield from closing(server)


@pytest.fixture
def bmw(request: pytest.FixtureRequest) -> Bmw:
    server: Bmw = request.getfixturevalue(request.param)
    return server


both_doors = pytest.mark.parametrize("bmw", ["portal", "cardata"], indirect=True)


def charging(bmw: Bmw, charge: int) -> dict[str, Any]:
    if isinstance(bmw, Portal):
        return car(f"{charge}.0", chargingTimeRemaining=None)
    return telematic(predicted=str(charge), minutes=None)


def fully_charged(bmw: Bmw) -> dict[str, Any]:
    return full_car() if isinstance(bmw, Portal) else full()


# Faults of HTTP: each answers one request, at whatever door


def reset(handler: Handler) -> None:
    """Close so that the other side sees a reset and not an end."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.wfile.flush()
    handler.connection.close()
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def raw(text: str, then: Callable[[Handler], None] = hang_up) -> Answer:
    def answer(handler: Handler) -> None:
        handler.wfile.write(text.encode())
        handler.wfile.flush()
        then(handler)

    return answer


def never(handler: Handler) -> None:
    handler.server.closing.wait(60)
    handler.close_connection = True


def trickle(start: str) -> Answer:
    def answer(handler: Handler) -> None:
        handler.wfile.write(start.encode())
        while not handler.server.closing.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    return answer


def reply(status: int, body: Any = b"", **headers: str) -> Answer:
    return lambda handler: handler.reply(status, body, **headers)


def huge(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(50 << 20))
    handler.end_headers()
    for _ in range(50):
        handler.wfile.write(b" " * (1 << 20))


def soon(handler: Handler) -> None:
    handler.reply(503, Retry_After=formatdate(time.time() + 1, usegmt=True))


OK = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n"
BROKE_OFF = "no connection to 127.0.0.1 for .*, or it broke off"
TOO_LATE = "127.0.0.1 did not answer in time"
TOO_LONG = "BMW took too long to answer"
OUT_OF_ORDER = "127.0.0.1 is out of order"
UNEXPECTED = "127.0.0.1 sent something unexpected"
REDIRECT = "127.0.0.1 sent a redirect, which is not followed"

HTTP_FAULTS: dict[str, tuple[Answer, str]] = {
    "reset-before-the-headers": (reset, BROKE_OFF),
    "reset-after-the-headers": (raw(OK + "\r\n{", reset), BROKE_OFF),
    "hung-up": (hang_up, BROKE_OFF),
    "body-cut-short": (raw(OK + '\r\n{"attri'), f"{BROKE_OFF}|{UNEXPECTED}"),
    "headers-cut-short": (raw(OK), f"{BROKE_OFF}|{UNEXPECTED}"),
    "never-answers": (never, TOO_LATE),
    "trickles-headers": (trickle("HTTP/1.1 200 OK\r\nX: "), TOO_LONG),
    "trickles-body": (trickle(OK.replace("1000", "100000") + "\r\n"), TOO_LONG),
    "no-http": (raw("SSH-2.0-OpenSSH_9.6\r\n"), BROKE_OFF),
    "too-many-headers": (raw(OK + "X: y\r\n" * 200 + "\r\n"), BROKE_OFF),
    "too-long-a-header": (raw(OK + "X: " + "y" * 100_000 + "\r\n\r\n"), BROKE_OFF),
    "500-page": (reply(500, "<html>Oh no</html>"), OUT_OF_ORDER),
    "502-page": (reply(502, "<html>Bad gateway</html>"), OUT_OF_ORDER),
    "503-page": (reply(503, "<html>Sorry</html>"), OUT_OF_ORDER),
    "503-retry-after-seconds": (reply(503, Retry_After="1"), OUT_OF_ORDER),
    "503-retry-after-date": (soon, OUT_OF_ORDER),
    "503-retry-after-nonsense": (reply(503, Retry_After="\x1b[2J soon"), OUT_OF_ORDER),
    "login-page": (reply(200, "<html>Sign in</html>"), UNEXPECTED),
    "50-mb": (huge, "127.0.0.1 sent far too much"),
    "not-allowed": (reply(405), "127.0.0.1 declined"),
    "teapot": (reply(418, "\x1b]2;gotcha\x07"), "127.0.0.1 declined"),
}

# Answers of status 200 that hold no reading

BODY_FAULTS: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "number": b"62",
    "no-utf8": b'{"attributesMap": {"chargingLevelHv": "\xff\xfe62"}}',
    "deep": b'{"a":' * 100_000,
    "deep-list": b"[" * 100_000,
    "long-integer": b'{"attributesMap": ' + b"9" * 10_000 + b"}",
    "compressed": bytes.fromhex("1f8b0800000000000003abae0500431fb36e02000000"),
}


def body(content: bytes) -> Answer:
    return reply(200, content, Content_Type="application/json")


def check_news(
    bmw: Bmw,
    script: Script,
    said: Sequence[str],
    notifier: Notifier,
    webhook: Recorder,
) -> None:
    """The readings after the fault were logged, all news was told once, and stderr says why."""
    webhook.wait_for(lambda: webhook.accepted, "the webhook")
    notifier.wait_for_calls(2)
    script.wait_for_readings(5)
    assert script.process.poll() is None
    assert [line.split()[2] for line in script.stdout[:4]] == ["60%", "63%", "66%", "100%"]
    assert notifier.messages() == ["66% charged", FULL]
    assert webhook.messages() == [FULL]
    assert script.interrupt() == 130
    assert len(script.stderr) == len(said), script.stderr
    for line, pattern in zip(script.stderr, said):
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (" + pattern + ")", line), line
        assert line.isprintable()


def run_row(
    bmw: Bmw,
    start: Start,
    faults: list[Answer],
    said: Sequence[str],
    notifier: Notifier,
    webhook: Recorder,
    **constants: Any,
) -> None:
    bmw.readings = [
        charging(bmw, 60),
        charging(bmw, 63),
        *faults,
        charging(bmw, 66),
        fully_charged(bmw),
    ]
    settings = {**bmw.settings(), "WEBHOOK_URL": webhook.url + "secret"}
    script = start(settings=settings, mac=True, constants={**QUICK, **constants})
    check_news(bmw, script, said, notifier, webhook)


@both_doors
@pytest.mark.parametrize("name", HTTP_FAULTS)
def test_fault_while_the_car_is_asked_for(
    bmw: Bmw, start: Start, terminal_notifier: Notifier, webhook: Recorder, name: str
) -> None:
    fault, said = HTTP_FAULTS[name]
    run_row(bmw, start, [fault], [said], terminal_notifier, webhook)


@both_doors
@pytest.mark.parametrize("name", BODY_FAULTS)
def test_answer_that_holds_no_reading(
    bmw: Bmw, start: Start, terminal_notifier: Notifier, webhook: Recorder, name: str
) -> None:
    fault = body(BODY_FAULTS[name])
    said = f"{UNEXPECTED}|.*holds no charge"
    run_row(bmw, start, [fault], [said], terminal_notifier, webhook)


@both_doors
def test_charge_that_is_none(
    bmw: Bmw, start: Start, terminal_notifier: Notifier, webhook: Recorder
) -> None:
    values: list[Any] = ["", None, "-1", "101", "NaN", "1e999", ["62.0"], True, "\x1b[2J"]
    if isinstance(bmw, Portal):
        good: Any = car()["attributesMap"]
        bodies: list[Any] = [
            *({"attributesMap": {**good, "chargingLevelHv": value}} for value in values),
            {"attributesMap": {n: v for n, v in good.items() if n != "chargingLevelHv"}},
            {"attributesMap": None},
        ]
    else:
        entry = {"unit": "%", "timestamp": None}
        bodies = [
            *({"telematicData": {PREDICTED: {**entry, "value": value}}} for value in values),
            {"telematicData": {HV_STATUS: {**entry, "value": "CHARGING"}}},
            {"telematicData": None},
        ]
    faults = [reply(200, json.dumps(body)) for body in bodies]
    said = ["(BMW|CarData)'s answer holds no charge between 0 and 100"] * len(faults)
    run_row(bmw, start, faults, said, terminal_notifier, webhook, LONGEST_BACKOFF_S=0)


@both_doors
def test_readings_with_odd_time_stamps_are_readings(
    bmw: Bmw, start: Start, terminal_notifier: Notifier, webhook: Recorder
) -> None:
    future = datetime.now(timezone.utc) + timedelta(days=400)
    if isinstance(bmw, Portal):
        odd: list[Any] = [
            car("63.0", updateTime="2026-11-22T19:20:11Z"),
            car("63.0", updateTime="99.99.2026 25:61:61 UTC"),
            car("63.0", updateTime=f"{future:%d.%m.%Y %H:%M:%S} UTC", chargingTimeRemaining="1e9"),
        ]
    else:
        odd = [telematic(future, predicted="63", minutes="99999")]
        for value in ("22.11.2026", "\x1b[2J", 5):
            odd.append(telematic(predicted="63", minutes=None))
            odd[-1]["telematicData"][PREDICTED]["timestamp"] = value
            odd[-1]["telematicData"].pop("vehicle.drivetrain.batteryManagement.header")
    bmw.readings = [charging(bmw, 60), *odd, fully_charged(bmw)]
    script = start(settings=bmw.settings())
    script.wait_for_readings(len(odd) + 2)
    shown = [line.split()[2] for line in script.stdout[: len(odd) + 1]]
    assert shown == ["60%", *["63%"] * len(odd)]
    assert all(LOG_LINE.match(line) and line.isprintable() for line in script.stdout)
    assert script.stderr == []


@both_doors
def test_redirect_is_not_followed(
    bmw: Bmw, start: Start, terminal_notifier: Notifier, webhook: Recorder
) -> None:
    other = Recorder()
    try:
        faults = [
            reply(302, Location=other.url),
            reply(307, Location=other.url),
            reply(301, b"x" * 2_000_000, Location="https://[::1"),
        ]
        said = [REDIRECT, REDIRECT, f"{REDIRECT}|127.0.0.1 sent far too much"]
        run_row(bmw, start, faults, said, terminal_notifier, webhook)
        assert other.requests == []
    finally:
        other.close()


@both_doors
def test_token_that_expires_once_is_no_fault(
    bmw: Bmw, start: Start, terminal_notifier: Notifier, webhook: Recorder
) -> None:
    run_row(bmw, start, [bmw.expire_token], [], terminal_notifier, webhook)


@both_doors
def test_token_that_is_never_accepted(
    bmw: Bmw, start: Start, terminal_notifier: Notifier, webhook: Recorder
) -> None:
    faults = [reply(401)] * 4
    lines = 3 if isinstance(bmw, Portal) else 2  # a poll that signs in again meets two of them
    said = ["BMW does not accept the access token|127.0.0.1 declined"] * lines
    run_row(bmw, start, faults, said, terminal_notifier, webhook)


@pytest.mark.parametrize("status", [403, 404])
def test_car_that_is_not_shown(
    portal: Portal, start: Start, terminal_notifier: Notifier, webhook: Recorder, status: int
) -> None:
    said = "BMW does not show this car .*: check VEHICLE_IDENTIFICATION_NUMBER; next try"
    run_row(portal, start, [reply(status)], [said], terminal_notifier, webhook)


@pytest.mark.parametrize("retry_after", ["1", "date"])
def test_portal_that_wants_fewer_requests(
    portal: Portal, start: Start, terminal_notifier: Notifier, webhook: Recorder, retry_after: str
) -> None:
    def fault(handler: Handler) -> None:
        in_a_second = formatdate(time.time() + 1, usegmt=True)
        handler.reply(429, Retry_After=in_a_second if retry_after == "date" else retry_after)

    said = "127.0.0.1 wants fewer requests"
    run_row(portal, start, [fault], [said], terminal_notifier, webhook)


def test_faults_while_it_signs_in_again(
    portal: Portal, start: Start, terminal_notifier: Notifier, webhook: Recorder
) -> None:
    faults, said = zip(*HTTP_FAULTS.values())
    portal.logins = [None, *faults, None]
    expired = [portal.expire_token]
    run_row(portal, start, expired, said, terminal_notifier, webhook, LONGEST_BACKOFF_S=0)


def test_faults_while_the_token_is_refreshed(
    cardata: CarData, start: Start, terminal_notifier: Notifier, webhook: Recorder
) -> None:
    faults, said = zip(*HTTP_FAULTS.values())
    cardata.token_answers = list(faults)
    expired = [cardata.expire_token]
    run_row(cardata, start, expired, said, terminal_notifier, webhook, LONGEST_BACKOFF_S=0)
    assert cardata.seen("device/code") == []


@both_doors
def test_refused_connection(
    bmw: Bmw, start: Start, terminal_notifier: Notifier, webhook: Recorder
) -> None:
    """Between two good readings nobody listens at BMW's address."""
    bmw.readings = [charging(bmw, 60), charging(bmw, 63), hang_up]
    settings = {**bmw.settings(), "WEBHOOK_URL": webhook.url + "secret"}
    script = start(settings=settings, mac=True, constants={**QUICK, "LONGEST_BACKOFF_S": 0})
    script.wait_for_stderr("no connection to 127.0.0.1")
    bmw.stop_listening()
    script.wait_for_stderr("no connection to 127.0.0.1", count=len(script.stderr) + 2)
    bmw.readings = [charging(bmw, 66), fully_charged(bmw)]
    bmw.listen_again()
    webhook.wait_for(lambda: webhook.accepted, "the webhook")
    assert script.interrupt() == 130
    assert [line.split()[2] for line in script.stdout[:4]] == ["60%", "63%", "66%", "100%"]
    assert terminal_notifier.messages() == ["66% charged", FULL]
    assert webhook.messages() == [FULL]


@both_doors
def test_huge_answer_does_not_fill_the_memory(bmw: Bmw, start: Start) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    bmw.readings = [charging(bmw, 60), huge, charging(bmw, 61)]
    script = start(settings=bmw.settings())

    def peak_kib() -> int:
        status = Path(f"/proc/{script.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])

    script.wait_for_readings(1)
    before = peak_kib()
    script.wait_for_readings(2)
    assert peak_kib() - before < 10 * 1024


@both_doors
@pytest.mark.parametrize("jump_s", [-3600, 3600])
def test_clock_that_is_set(
    bmw: Bmw, start: Start, terminal_notifier: Notifier, webhook: Recorder, jump_s: int
) -> None:
    run_row(bmw, start, [], [], terminal_notifier, webhook, clock_jump_s=jump_s)


def test_full_disk_leaves_the_old_tokens_where_they_are(
    cardata: CarData, start: Start, tmp_path: Path
) -> None:
    store = tmp_path / ".cardata.json"
    before = store.read_text()

    def no_file_may_grow() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    cardata.readings = [telematic(), cardata.expire_token, telematic(predicted="63")]
    script = start(settings=cardata.settings(), preexec_fn=no_file_may_grow)
    script.wait_for_readings(2)
    assert script.stderr_with(".cardata.json cannot be written") >= 1
    assert store.read_text() == before
    assert [path.name for path in tmp_path.glob(".cardata*")] == [".cardata.json"]
