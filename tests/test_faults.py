"""Whatever BMW, the network and the computer do, the logger lives on and tells all news once.

A row of a table is a name, what the server does once, and what the owner sees of it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Union

import fake_bmw
import fake_cardata
import pytest
from conftest import Notifier, Script, Start, closing
from fake_bmw import Answer, Handler, Recorder, car, full_car
from fake_cardata import CLIENT_ID, HV_STATUS, PREDICTED, full, telematic

import i3charge
from i3charge import Http, Reading, Settings, Store, TryAgain

Bmw = Union[fake_bmw.Portal, fake_cardata.CarData]

EMPTY = "(BMW|CarData)'s answer holds no charge between 0 and 100"
NO_ANSWER = "no answer from 127.0.0.1 when asked for "
OUT_OF_ORDER = "127.0.0.1 is out of order when asked for "
USELESS = "127.0.0.1 gave no useful answer when asked for "
EMPTY_OR_USELESS = f"{EMPTY}|{USELESS}"  # the car's status, or the tokens


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Where the script keeps what it must remember: beside the settings file."""
    return tmp_path / ".i3charge.json"


@pytest.fixture
def cardata(kept: Path) -> Iterator[fake_cardata.CarData]:
    """A CarData where the script has signed in before."""
    server = fake_cardata.CarData()
    server.quota = 10**6
    kept.write_text(json.dumps({f"CarData {CLIENT_ID}": server.sign_in()}))
    yield from closing(server)


@pytest.fixture(params=["portal", "cardata"])
def bmw(request: pytest.FixtureRequest) -> Bmw:
    server: Bmw = request.getfixturevalue(request.param)
    return server


def is_portal(bmw: Bmw) -> bool:
    return isinstance(bmw, fake_bmw.Portal)


def charging(bmw: Bmw, charge: int) -> dict[str, Any]:
    if is_portal(bmw):
        return car(f"{charge}.0", chargingTimeRemaining=None)
    return telematic(predicted=str(charge), minutes=None)


def reply(status: int, body: Any = b"", **headers: str) -> Answer:
    return lambda handler: handler.reply(status, body, **headers)


# Faults of HTTP, of whatever is asked for


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


def trickle(handler: Handler) -> None:
    while not handler.server.closing.wait(0.05):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def huge(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(50 << 20))
    handler.end_headers()
    for _ in range(50):
        handler.wfile.write(b" " * (1 << 20))


OK = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n"

HTTP_FAULTS: dict[str, tuple[Answer, str]] = {
    "reset before the headers": (reset, NO_ANSWER),
    "reset after the headers": (raw(OK + "\r\n{", reset), EMPTY_OR_USELESS),
    "hung up": (hang_up, NO_ANSWER),
    "body cut short": (raw(OK + '\r\n{"attri'), EMPTY_OR_USELESS),
    "headers cut short": (raw(OK), EMPTY_OR_USELESS),
    "never answers": (never, NO_ANSWER),
    "trickles headers": (raw("HTTP/1.1 200 OK\r\nX: ", trickle), NO_ANSWER + ".* in time"),
    "trickles a body": (raw(OK + "\r\n", trickle), EMPTY_OR_USELESS),
    "50 MB": (huge, EMPTY_OR_USELESS),
    "no HTTP": (raw("SSH-2.0-OpenSSH_9.6\r\n"), NO_ANSWER),
    "too many headers": (raw(OK + "X: y\r\n" * 200 + "\r\n"), NO_ANSWER),
    "too long a header": (raw(OK + "X: " + "y" * 100_000 + "\r\n\r\n"), NO_ANSWER),
    "redirect": (
        reply(302, Location="/elsewhere"),
        f"{USELESS}|BMW answered the login",
    ),
    "another redirect": (reply(307, Location="/elsewhere"), USELESS),
    "malformed redirect": (reply(301, Location="https://[::1"), f"{USELESS}|{NO_ANSWER}"),
    "500": (reply(500, "<html>Oh no</html>"), OUT_OF_ORDER + r".*\(HTTP 500\)"),
    "503": (reply(503), OUT_OF_ORDER + r".*\(HTTP 503\)"),
    "Retry-After is nonsense": (reply(503, Retry_After="\x1b[2J soon"), OUT_OF_ORDER),
    "login page": (reply(200, "<html>Sign in</html>"), EMPTY_OR_USELESS),
    "teapot": (reply(418, "\x1b]2;gotcha\x07"), USELESS + r".*\(HTTP 418\)"),
}

# Answers of status 200 that hold no reading

BODY_FAULTS: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "number": b"62",
    "no UTF-8": b'{"attributesMap": {"chargingLevelHv": "\xff\xfe62"}}',
    "deep": b'{"a":' * 100_000,
    "deep list": b"[" * 100_000,
    "long integer": b'{"attributesMap": ' + b"9" * 10_000 + b"}",
    "compressed": bytes.fromhex("1f8b0800000000000003abae0500431fb36e02000000"),
    "nothing of the car": b'{"attributesMap": null, "telematicData": null}',
}

NO_CHARGES = ["", None, "-1", "101", "NaN", "1e999", ["62.0"], True, "\x1b[2J"]


def bodies_without_a_charge() -> dict[str, Answer]:
    bodies = dict(BODY_FAULTS)
    status = {"value": "CHARGING", "unit": None, "timestamp": None}
    for value in NO_CHARGES:
        data = {PREDICTED: {**status, "value": value}, HV_STATUS: status}
        both = {"attributesMap": {"chargingLevelHv": value}, "telematicData": data}
        bodies[f"charge {value!r}"] = json.dumps(both).encode()
    return {name: reply(200, body) for name, body in bodies.items()}


def run_script(bmw: Bmw, start: Start, **options: Any) -> Script:
    """With short limits, and without the waits that save requests."""
    constants = {
        "Http.REQUEST_LIMIT_S": 2,
        "LONGEST_BACKOFF_S": 0,
        "Portal.LOGIN_PAUSE_S": 0,
        "CarData.REQUESTS": 10**6,
    }
    return start(constants=constants, **{"settings": bmw.settings(), **options})


def charges(script: Script) -> list[int]:
    return [int(line.split()[2].strip("~%")) for line in script.stdout]


def check_said(lines: list[str], expected: dict[str, str]) -> None:
    """That every fault was said in a line of its own, in this order."""
    assert len(lines) == len(expected), lines
    for line, (name, pattern) in zip(lines, expected.items()):
        whole = f"[-0-9: ]{{21}}({pattern}).*; next try in [0-9]+ s"
        assert re.fullmatch(whole, line), f"{name}: {line}"
        assert line.isprintable()


def peak_kib(script: Script) -> int:
    """The most memory that it has used; 0 where that cannot be known."""
    status = Path(f"/proc/{script.process.pid}/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) if status.exists() else 0


FAULTS = [answer for answer, _ in HTTP_FAULTS.values()]
SAID = {name: said for name, (_, said) in HTTP_FAULTS.items()}


def test_faults_while_the_car_is_asked_for(
    bmw: Bmw, start: Start, terminal_notifier: Notifier, webhook: Recorder
) -> None:
    full_now = full_car() if is_portal(bmw) else full()
    bmw.readings = [charging(bmw, 60), *FAULTS, charging(bmw, 66), full_now]
    settings = {**bmw.settings(), "WEBHOOK_URL": webhook.url + "secret"}
    script = run_script(bmw, start, settings=settings, mac=True)
    script.wait_for_readings(1)
    before = peak_kib(script)
    script.wait_for_stderr("was told")
    assert peak_kib(script) - before < 10 * 1024
    script.wait_for_readings(4)
    assert script.interrupt() == 130
    assert charges(script)[:4] == [60, 66, 100, 100]
    told = [["66% charged", "Fully charge"], ["Fully charge"]]
    found = [[text.strip("~")[:12] for text in o.messages()] for o in (terminal_notifier, webhook)]
    assert found == told
    assert not any("elsewhere" in request.path for request in bmw.requests)
    check_said(script.stderr[1:-2], SAID)


def test_faults_while_it_signs_in_again(bmw: Bmw, start: Start) -> None:
    bmw.readings = [charging(bmw, 60), bmw.expire_token, charging(bmw, 66)]
    if isinstance(bmw, fake_bmw.Portal):
        bmw.logins = [None, *FAULTS, None]
    else:
        bmw.token_answers = list(FAULTS)
    script = run_script(bmw, start)
    script.wait_for_readings(2)
    assert script.interrupt() == 130
    assert charges(script)[:2] == [60, 66]
    check_said(script.stderr[1:], SAID)
    assert not any("device" in request.path for request in bmw.requests)


def test_answers_without_a_charge(bmw: Bmw, start: Start) -> None:
    faults = bodies_without_a_charge()
    bmw.readings = [charging(bmw, 60), *faults.values(), charging(bmw, 66)]
    script = run_script(bmw, start)
    script.wait_for_readings(2)
    assert script.interrupt() == 130
    assert charges(script)[:2] == [60, 66]
    check_said(script.stderr[1:], dict.fromkeys(faults, EMPTY))


def test_token_that_is_not_accepted(bmw: Bmw, start: Start) -> None:
    """Once, no reading is lost; twice in a row, it is a failure like any other."""
    refused = reply(401)
    readings = [charging(bmw, charge) for charge in (60, 61, 62)]
    bmw.readings = [readings[0], refused, readings[1], refused, refused, readings[2]]
    script = run_script(bmw, start)
    script.wait_for_readings(3)
    assert script.interrupt() == 130
    assert charges(script)[:3] == [60, 61, 62]
    accept = f"BMW does not accept the access token|{USELESS}"
    check_said(script.stderr[1:], {"the second": accept})


@pytest.mark.parametrize("status", [403, 404])
def test_car_that_is_not_shown_names_the_vin(
    portal: fake_bmw.Portal, start: Start, status: int
) -> None:
    portal.readings = [reply(status)]
    script = start("--once", settings=portal.settings())
    assert script.end() == 1
    assert script.stderr_with("check VEHICLE_IDENTIFICATION_NUMBER") == 1


def test_odd_time_stamps_spoil_no_reading(bmw: Bmw, start: Start) -> None:
    future = datetime.now(timezone.utc) + timedelta(days=400)
    if is_portal(bmw):
        stamps = ["2026-11-22T19:20:11Z", "99.99.2026 25:61:61 UTC", f"{future:%d.%m.%Y %T} UTC"]
        odd = [car("63.0", updateTime=stamp, chargingTimeRemaining="1e9") for stamp in stamps]
    else:
        odd = [telematic(future, predicted="63", minutes="99999")]
        for stamp in ("22.11.2026", "\x1b[2J", 5):
            odd.append(telematic(predicted="63"))
            for entry in odd[-1]["telematicData"].values():
                entry["timestamp"] = stamp
    bmw.readings = [*odd, charging(bmw, 66)]
    script = run_script(bmw, start)
    script.wait_for_readings(len(odd) + 1)
    assert script.interrupt() == 130
    assert charges(script)[: len(odd) + 1] == [*[63] * len(odd), 66]
    assert all(line.isprintable() for line in script.stdout)
    assert len(script.stderr) == 1


# The file in which it remembers


def test_full_disk_leaves_the_old_file_where_it_is(
    cardata: fake_cardata.CarData, start: Start, kept: Path
) -> None:
    before = kept.read_text()

    def no_file_may_grow() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    cardata.readings = [telematic(), cardata.expire_token, telematic(predicted="63")]
    script = start(settings=cardata.settings(), preexec_fn=no_file_may_grow)
    script.wait_for_readings(4)
    assert script.interrupt() == 130
    assert charges(script)[:2] == [62, 63]
    assert script.stderr_with(".i3charge.json cannot be written") == 1
    assert len(script.stderr) == 2
    assert kept.read_text() == before
    refreshes = [r for r in cardata.seen("token") if r.form["grant_type"] == "refresh_token"]
    assert len(refreshes) == 1


def test_ctrl_c_while_the_file_is_replaced(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace_and_interrupt(*paths: Path) -> None:
        replace(*paths)
        raise KeyboardInterrupt

    replace = os.replace
    store, thing = Store(kept), SimpleNamespace(value=1)
    store.things["thing"] = thing
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", replace_and_interrupt)
        with store:
            thing.value = 2
    assert json.loads(kept.read_text()) == {"thing": {"value": 2}}
    with store:  # nobody holds the lock
        assert thing.value == 2


# The limit of a request


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    yield from closing(Recorder())


def alarm_is_off() -> bool:
    return signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("answer", [reply(200), never, hang_up, raw(OK + "\r\n", trickle)])
def test_no_alarm_is_left_after_a_request(recorder: Recorder, answer: Answer) -> None:
    recorder.answers = [answer]
    with suppress(TryAgain):
        Http().send("it", "GET", recorder.url, limit_s=0.2)
    assert recorder.requests
    assert alarm_is_off()


def test_alarm_at_the_last_moment_is_an_ordinary_failure(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    setitimer = signal.setitimer

    def too_late(which: int, seconds: float) -> None:
        if not seconds:
            setitimer(which, 0.001)
            time.sleep(30)  # until the alarm

    monkeypatch.setattr(signal, "setitimer", too_late)
    with pytest.raises(TryAgain, match="in time"):
        Http().send("it", "GET", recorder.url)
    time.sleep(0.05)
    assert alarm_is_off()


# The loop, by a clock with which waiting takes no time


class Clock:
    """In place of the `time` module; `events` are what happens while somebody waits."""

    def __init__(self) -> None:
        self.wall_s = float(round(time.time()))
        self.began_s = self.wall_s
        self.awake_s = 0.0  # the computer's, while it does not sleep
        self.events: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        return self.wall_s

    def monotonic(self) -> float:
        return self.awake_s

    def passed(self, seconds: float) -> None:
        self.wall_s += seconds
        self.awake_s += seconds

    def sleep(self, seconds: float) -> None:
        until_s = self.awake_s + seconds
        while self.events and self.events[0][0] <= until_s:
            at_s, event = self.events.pop(0)
            self.passed(max(0.0, at_s - self.awake_s))
            event()
        self.passed(max(0.0, until_s - self.awake_s))

    def jump(self, seconds: float) -> None:
        """As a clock that is set, or one that goes on while the computer sleeps."""
        self.wall_s += seconds

    def interrupt(self) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(i3charge, "time", clock)
    return clock


class Door:
    """At each poll it takes some seconds, or fails; then the owner ends it."""

    def __init__(self, clock: Clock, interval_s: float, *does: float | Exception) -> None:
        self.clock, self.interval_s = clock, interval_s
        self.does = list(does)
        self.asked_s: list[float] = []  # by the wall clock, since it began
        self.asked_awake_s: list[float] = []

    def poll(self) -> Reading:
        self.asked_s.append(self.clock.wall_s - self.clock.began_s)
        self.asked_awake_s.append(self.clock.awake_s)
        if not self.does:
            raise KeyboardInterrupt
        does = self.does.pop(0)
        if isinstance(does, Exception):
            raise does
        self.clock.passed(does)
        return Reading(62.0, "charging")


def run_until_interrupted(door: Any, store: Store | None = None) -> None:
    http = Http()
    told_by = (i3charge.Desktop("BMW i3"), i3charge.Phone(Settings({}), http, "BMW i3"))
    watch, log = i3charge.ChargeWatch(), i3charge.ChargeLog(as_json=False)
    with pytest.raises(KeyboardInterrupt):
        i3charge.run(door, store or Store(None), watch, log, *told_by)


def test_polls_keep_the_rhythm_of_the_first(clock: Clock) -> None:
    door = Door(clock, 60, 7, 0, 59, 7)
    run_until_interrupted(door)
    assert door.asked_s == [0, 60, 120, 180, 240]


def test_slow_poll_skips_the_ticks_it_missed(clock: Clock) -> None:
    door = Door(clock, 60, 0, 150, 0)
    run_until_interrupted(door)
    slow, third, fourth = door.asked_s[1:]
    assert slow + 150 < third <= slow + 150 + 60
    assert fourth == third + 60


def test_failures_wait_longer_and_longer_and_a_reading_ends_that(clock: Clock) -> None:
    no = TryAgain("BMW has failed")
    door = Door(clock, 60, 0, no, no, no, no, no, 0, no)
    run_until_interrupted(door)
    assert door.asked_s == [0, 60, 120, 240, 480, 780, 1080, 1140, 1200]


def test_fault_of_our_own_does_not_end_it(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    door = Door(clock, 60, ZeroDivisionError("secret"), 0)
    run_until_interrupted(door)
    assert door.asked_s == [0, 60, 120]
    assert len(caplog.messages) == 1
    assert "ZeroDivisionError in test_faults.py" in caplog.text
    assert "next try in 60 s" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("first", [0, TryAgain("BMW has failed")])
def test_poll_that_fell_due_while_the_computer_slept_is_made_after_waking(
    clock: Clock, first: float | Exception
) -> None:
    three_hours_s = 3 * 60 * 60
    clock.events = [(630, lambda: clock.jump(three_hours_s))]
    door = Door(clock, 2400, first, 0)
    run_until_interrupted(door)
    woken_s = 630 + three_hours_s
    assert woken_s <= door.asked_s[1] <= woken_s + 60
    assert door.asked_s[2] <= door.asked_s[1] + 2400


def test_clock_that_is_set_back_does_not_stretch_a_wait(clock: Clock) -> None:
    clock.events = [(630, lambda: clock.jump(-3600))]
    door = Door(clock, 2400, 0, 0)
    run_until_interrupted(door)
    assert door.asked_awake_s == [0, 2400, 4800]


def run_door(
    bmw: Bmw, clock: Clock, kept: Path, until_s: float, interval_ms: int = 2400000
) -> None:
    """The real door, with the interval that CarData allows, in this process."""
    clock.events.append((until_s, clock.interrupt))
    settings, store = Settings({**bmw.settings(), "LOG_INTERVAL": str(interval_ms)}), Store(kept)
    door: i3charge.Portal | i3charge.CarData
    if is_portal(bmw):
        door = i3charge.Portal(settings, Http())
    else:
        door = i3charge.CarData(settings, Http(), store, attended=True)
    run_until_interrupted(door, store)


def next_tries(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message.partition("; next try in ")[2] for message in caplog.messages]


def test_poll_that_did_not_get_through_is_tried_again_soon(
    bmw: Bmw, clock: Clock, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bmw.readings = [charging(bmw, 60)]
    bmw.stop_listening()
    clock.events = [(1000, bmw.listen_again)]
    run_door(bmw, clock, kept, until_s=4000)
    assert next_tries(caplog) == ["60 s", "2 min", "4 min", "8 min", "16 min"]
    assert all(NO_ANSWER in message for message in caplog.messages)
    bmw.wait_for(lambda: bmw.served, "the reading")
    assert bmw.served == 1
    if not is_portal(bmw):  # and it has cost nothing
        assert len(json.loads(kept.read_text())[f"CarData {CLIENT_ID}"]["requests_s"]) == 1


def test_longer_retry_after_is_kept_to(
    bmw: Bmw, clock: Clock, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    date = formatdate(time.time() + 3300, usegmt=True)
    bmw.readings = [reply(503, Retry_After="3000"), reply(503, Retry_After=date), reply(503)]
    run_door(bmw, clock, kept, until_s=3100)
    assert next_tries(caplog) == ["50 min", "55 min"]


@pytest.mark.parametrize(("interval_s", "most"), [(60, 1), (2400, 1000)])
def test_one_connection_is_kept_but_not_over_a_long_wait(
    bmw: Bmw, clock: Clock, kept: Path, interval_s: int, most: int
) -> None:
    """After which a router may have dropped it without a word."""
    bmw.readings = [charging(bmw, 60), reply(418), charging(bmw, 60)]
    run_door(bmw, clock, kept, until_s=16 * interval_s, interval_ms=interval_s * 1000)
    assert bmw.served > 10
    asked = [request.connection for request in bmw.requests if request.method == "GET"]
    assert len(set(asked)) == min(most, len(asked))


@pytest.mark.parametrize("first", [(), (TryAgain("no network yet", unsent=True),)])
def test_nothing_is_told_of_a_night_that_the_computer_slept_through(
    clock: Clock, caplog: pytest.LogCaptureFixture, first: tuple[TryAgain, ...]
) -> None:
    clock.events = [(630, lambda: clock.jump(8 * 60 * 60))]
    run_until_interrupted(Door(clock, 2400, 0, *first, 0))
    assert not any("No word" in message for message in caplog.messages)


def test_two_turns_without_a_standard_input(bmw: Bmw, start: Start) -> None:
    """Where the lock's file gets the number 0."""
    script = start(settings=bmw.settings(), preexec_fn=lambda: os.close(0))
    script.wait_for_readings(3)
    assert script.interrupt() == 130
