"""A BMW on loopback that answers as the real one does, or as it is told to."""

from __future__ import annotations

import json
import socket
import sys
import threading
from dataclasses import dataclass
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable
from urllib.parse import parse_qsl, quote

USERNAME = "owner@example.com"
PASSWORD = "pa$$ #wörd+&=%41"
CLIENT_ID = "web-app-client-id"
VIN = "WBY1Z21040V307905"
REDIRECT_URI = "https://www.bmw-connecteddrive.com/app/default/static/external-dispatch.html"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int  # the client's port: one for each connection

    @property
    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one write an answer, as a real server does it
    server: Server

    def answer_request(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = dict(self.headers)
        request = Request(self.command, self.path, headers, self.body, self.client_address[1])
        with self.server.changed:
            self.server.requests.append(request)
            self.server.changed.notify_all()
        self.server.answer(self, request)

    do_GET = do_POST = answer_request

    def reply(self, status: int, body: bytes | str | dict[str, Any] = b"", **headers: str) -> None:
        """Send a whole answer; underscores in the headers' names stand for hyphens."""
        if isinstance(body, dict):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        pass


Answer = Callable[[Handler], object]


def says(status: int, body: bytes | str | dict[str, Any] = b"", **headers: str) -> Answer:
    return lambda handler: handler.reply(status, body, **headers)


class Server(ThreadingHTTPServer):
    """Records its requests; `answer` is what a subclass does with one of them."""

    daemon_threads = True
    request_queue_size = 50

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[Request] = []
        self.changed = threading.Condition()
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that goes away in the middle is what some of the tests are about.
        if not isinstance(sys.exc_info()[1], (ConnectionError, ValueError)):
            super().handle_error(request, client_address)

    def stop_listening(self) -> None:
        self.shutdown()
        self.server_close()

    def listen_again(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", self.server_port))
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: Handler, request: Request) -> None:
        handler.reply(200)

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 30) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, seconds), f"waited in vain for {what}"

    def close(self) -> None:
        self.closing.set()
        self.stop_listening()


class Recorder(Server):
    """A webhook or ntfy topic: takes a message as ntfy does, or does what is first in `answers`."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Answer] = []
        self.accepted: list[Request] = []

    def answer(self, handler: Handler, request: Request) -> None:
        if self.answers:
            self.answers.pop(0)(handler)
            return
        with self.changed:
            self.accepted.append(request)
            self.changed.notify_all()
        handler.reply(200, {"id": "q9bBuFZXdtmL", "event": "message"})

    def messages(self) -> list[str]:
        return [
            json.loads(r.body)["message"] if b"{" in r.body else r.body.decode()
            for r in self.accepted
        ]


def car(charge: object = "62.0", **fields: object) -> dict[str, Any]:
    """A vehicle status; a field that is None is left out."""
    attributes = {
        "chargingLevelHv": charge,
        "soc_hv_percent": "57.1",
        "chargingHVStatus": "CHARGING",
        "charging_status": "CHARGINGACTIVE",
        "chargingSystemStatus": "CHARGINGACTIVE",
        "connectorStatus": "CONNECTED",
        "chargingTimeRemaining": "140.0",
        "beRemainingRangeElectric": "101.0",
        "beRemainingRangeElectricKm": "101.0",
        "beRemainingRangeElectricMile": "62.0",
        "unitOfLength": "km",
        "updateTime": f"{datetime.now(timezone.utc):%d.%m.%Y %H:%M:%S} UTC",
        **fields,
    }
    kept = {name: value for name, value in attributes.items() if value is not None}
    return {"attributesMap": kept, "vehicleMessages": {"cbsMessages": []}}


def full_car(charge: object = "100.0", **fields: object) -> dict[str, Any]:
    words = {
        "chargingHVStatus": "FINISHED_FULLY_CHARGED",
        "charging_status": "CHARGINGENDED",
        "chargingSystemStatus": "CHARGINGENDED",
        "chargingTimeRemaining": None,
    }
    return car(charge, **{**words, **fields})


class Door(Server):
    """What both doors have: `readings` are what it does next, and the last one stays."""

    def __init__(self, first: dict[str, Any]) -> None:
        super().__init__()
        self.readings: list[dict[str, Any] | Answer] = [first]
        self.served = 0  # readings that were sent whole

    def next_item(self) -> dict[str, Any] | Answer:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

    def serving(self, reading: dict[str, Any]) -> Answer:
        def send(handler: Handler) -> None:
            handler.reply(200, reading, Content_Type="application/json")
            with self.changed:
                self.served += 1
                self.changed.notify_all()

        return send


class Portal(Door):
    """The portal API. `logins` and `readings` are what it does next; the last one stays.

    An entry is a dict, the vehicle's status, or a function that answers by itself; for
    `logins`, None is a good login.
    """

    def __init__(self) -> None:
        super().__init__(car())
        self.logins: list[Answer | None] = [None]
        self.tokens: list[str] = []

    def settings(self) -> dict[str, str]:
        return {
            "USERNAME": USERNAME,
            "PASSWORD": PASSWORD,
            "AUTH_CLIENT_ID": CLIENT_ID,
            "VEHICLE_IDENTIFICATION_NUMBER": VIN,
            "CONNECTED_DRIVE_BASE_URL": self.url + "api/",
            "AUTH_BASE_URL": self.url + "gcdm/oauth/authenticate",
            "LOG_INTERVAL": "50",
        }

    def logins_seen(self) -> list[Request]:
        return [r for r in self.requests if r.method == "POST"]

    def polls_seen(self) -> list[Request]:
        return [r for r in self.requests if r.method == "GET"]

    def answer(self, handler: Handler, request: Request) -> None:
        if request.method == "POST":
            next_login = self.logins.pop(0) if len(self.logins) > 1 else self.logins[0]
            (next_login or self.good_login)(handler)
            return
        expected = f"Bearer {self.tokens[-1]}" if self.tokens else None
        if request.path != f"/api/vehicle/dynamic/v1/{VIN}":
            handler.reply(404)
        elif request.headers.get("Authorization") != expected:
            handler.reply(401, {"error": "invalid_token"})
        else:
            item = self.next_item()
            (item if callable(item) else self.serving(item))(handler)

    def good_login(self, handler: Handler) -> None:
        form = dict(parse_qsl(handler.body.decode()))
        sent = (form.get("username"), form.get("password"), form.get("client_id"))
        fixed = (form.get("response_type"), form.get("scope"), form.get("redirect_uri"))
        if sent != (USERNAME, PASSWORD, CLIENT_ID):
            handler.reply(302, Location=f"{REDIRECT_URI}?error=access_denied")
        elif fixed != ("token", "authenticate_user fupo", REDIRECT_URI):
            handler.reply(400, {"error": "invalid_request"})
        else:
            self.tokens.append(f"secret+token/{len(self.tokens) + 1}=")
            token = quote(self.tokens[-1], safe="")
            fields = f"access_token={token}&state={form['state']}&token_type=Bearer"
            handler.reply(302, Location=f"{REDIRECT_URI}#{fields}&expires_in=7199")

    def expire_token(self, handler: Handler) -> None:
        """As a reading: the token that was just used has expired."""
        self.tokens.append("expired: nothing matches this")
        handler.reply(401, {"error": "invalid_token"})
