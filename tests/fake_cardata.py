"""A BMW CarData on loopback that keeps the rules of the real one."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import datetime, timedelta, timezone
from typing import Any, Callable
from urllib.parse import parse_qs, urlsplit

from fake_bmw import VIN, Answer, Door, Handler, Request

CLIENT_ID = "secret-client-id"
SCOPE = "authenticate_user openid cardata:api:read"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"

HEADER = "vehicle.drivetrain.batteryManagement.header"
DISPLAYED = "vehicle.powertrain.electric.battery.stateOfCharge.displayed"
ENGINE = "vehicle.drivetrain.electricEngine."
PREDICTED = ENGINE + "charging.level"
HV_STATUS = ENGINE + "charging.hvStatus"
STATUS = ENGINE + "charging.status"
MINUTES = ENGINE + "charging.timeToFullyCharged"
RANGE = ENGINE + "kombiRemainingElectricRange"
PLUG = "vehicle.body.chargingPort.status"


def at(when: datetime | None) -> str | None:
    return when and when.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def telematic(now: datetime | None = None, **entries: Any) -> dict[str, Any]:
    """A charging car; give `header`, `predicted` and so on a value, a pair with its age in
    minutes, or None to leave the descriptor out."""
    now = now or datetime.now(timezone.utc)
    names = {
        "header": HEADER,
        "displayed": DISPLAYED,
        "predicted": PREDICTED,
        "hv_status": HV_STATUS,
        "status": STATUS,
        "minutes": MINUTES,
        "range": RANGE,
        "plug": PLUG,
    }
    values: dict[str, Any] = {
        "header": ("52", 60),
        "predicted": "62",
        "hv_status": "CHARGING",
        "minutes": "140",
        "range": "101",
        "plug": "CONNECTED",
        **entries,
    }
    data = {}
    for name, value in values.items():
        if value is not None:
            value, age = value if isinstance(value, tuple) else (value, 0)
            timestamp = at(now - timedelta(minutes=age))
            data[names[name]] = {"value": value, "unit": "%", "timestamp": timestamp}
    return {"telematicData": data}


def full(**entries: Any) -> dict[str, Any]:
    return telematic(
        **{"header": "100", "hv_status": "FINISHED_FULLY_CHARGED", "minutes": None, **entries}
    )


class CarData(Door):
    """`readings` is what it answers next, the last one stays: a dict, or a function of the
    handler. `token_answers` are functions of the handler for the next requests for a token."""

    def __init__(self) -> None:
        super().__init__(telematic())
        self.device_answers: list[Answer] = []
        self.token_answers: list[Answer] = []
        self.api_answers: list[Answer] = []
        self.pending = 1  # times that a sign-in is not confirmed yet
        self.interval_s = 0.05
        self.lifetime_s = 3599
        self.quota = 50
        self.spent = 0
        self.tokens = 0
        self.access_token = ""
        self.refresh_token = ""
        self.challenges: dict[str, str] = {}  # by device code
        self.containers: list[dict[str, Any]] = []

    def settings(self) -> dict[str, str]:
        return {
            "CARDATA_CLIENT_ID": CLIENT_ID,
            "VEHICLE_IDENTIFICATION_NUMBER": VIN,
            "CARDATA_AUTH_BASE_URL": self.url + "oauth",
            "CARDATA_BASE_URL": self.url + "api/",
            "LOG_INTERVAL": "50",
        }

    def seen(self, path: str) -> list[Request]:
        return [request for request in self.requests if path in request.path]

    def sign_in(self) -> dict[str, Any]:
        """What a store of the script holds after a sign-in here."""
        self.new_tokens()
        return {
            "client_id": CLIENT_ID,
            "access_token": self.access_token,
            "expires_s": 4e9,
            "refresh_token": self.refresh_token,
            "container": self.add_container(),
            "requests_s": [],
        }

    def new_tokens(self) -> dict[str, Any]:
        self.tokens += 1
        self.access_token = f"secret-access-{self.tokens}"
        self.refresh_token = f"secret-refresh-{self.tokens}"
        return {
            "access_token": self.access_token,
            "refresh_token": self.refresh_token,
            "id_token": "secret-id",
            "token_type": "Bearer",
            "expires_in": self.lifetime_s,
            "scope": SCOPE,
            "gcid": "secret-gcid",
        }

    def add_container(self, **fields: Any) -> str:
        import i3charge

        container_id = f"S{len(self.containers):012}"
        self.containers.append(
            {
                "containerId": container_id,
                "name": "i3charge",
                "purpose": i3charge.CarData.CONTAINER["purpose"],
                "state": "ACTIVE",
                "created": "2026-08-18T14:16:36.000Z",
                **fields,
            }
        )
        return container_id

    def answer(self, handler: Handler, request: Request) -> None:
        path = urlsplit(request.path).path
        if path == "/oauth/device/code":
            self.answers_first(handler, self.device_answers, self.device_code, request)
        elif path == "/oauth/token":
            self.answers_first(handler, self.token_answers, self.token, request)
        elif path.startswith("/api/customers/"):
            self.api(handler, request, path)
        else:
            handler.reply(404)

    @staticmethod
    def answers_first(
        handler: Handler,
        answers: list[Answer],
        otherwise: Callable[[Handler, Request], None],
        request: Request,
    ) -> None:
        if answers:
            answers.pop(0)(handler)
        else:
            otherwise(handler, request)

    def device_code(self, handler: Handler, request: Request) -> None:
        form = request.form
        fixed = (form.get("response_type"), form.get("code_challenge_method"))
        if form.get("client_id") != CLIENT_ID:
            handler.reply(401, {"error": "invalid_client"})
        elif fixed != ("device_code", "S256") or form.get("scope") != SCOPE:
            handler.reply(400, {"error": "invalid_request"})
        else:
            device_code = f"secret-device-{len(self.challenges) + 1}"
            self.challenges[device_code] = form["code_challenge"]
            user_code = f"CODE-{len(self.challenges)}"
            address = "https://customer.bmwgroup.com/oneid/link"
            handler.reply(
                200,
                {
                    "user_code": user_code,
                    "device_code": device_code,
                    "interval": self.interval_s,
                    "expires_in": 300,
                    "verification_uri": address,
                    "verification_uri_complete": f"{address}?user_code={user_code}",
                },
            )

    def token(self, handler: Handler, request: Request) -> None:
        form = request.form
        if form.get("client_id") != CLIENT_ID:
            handler.reply(401, {"error": "invalid_client"})
        elif form.get("grant_type") == "refresh_token":
            if form.get("refresh_token") == self.refresh_token:
                handler.reply(200, self.new_tokens())
            else:
                handler.reply(400, {"error": "invalid_grant"})
        elif form.get("grant_type") == DEVICE_GRANT and form["device_code"] in self.challenges:
            digest = hashlib.sha256(form["code_verifier"].encode()).digest()
            challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
            if self.pending > 0:
                self.pending -= 1
                handler.reply(403, {"error": "authorization_pending"})
            elif challenge != self.challenges.pop(form["device_code"]):
                handler.reply(400, {"error": "invalid_grant"})
            else:
                handler.reply(200, self.new_tokens())
        else:
            handler.reply(400, {"error": "invalid_request"})

    def api(self, handler: Handler, request: Request, path: str) -> None:
        self.spent += 1
        if self.spent > self.quota:
            self.refuse(handler, 429, "CU-429", "Quota used up")
        elif request.headers.get("x-version") != "v1":
            self.refuse(handler, 400, "CU-000", "x-version missing")
        elif request.headers.get("Authorization") != f"Bearer {self.access_token}":
            self.refuse(handler, 401, "CU-102", "Token expired")
        elif self.api_answers:
            self.api_answers.pop(0)(handler)
        elif path == "/api/customers/containers" and request.method == "GET":
            handler.reply(200, {"containers": self.containers})
        elif path == "/api/customers/containers":
            asked = json.loads(request.body)
            assert set(asked) == {"name", "purpose", "technicalDescriptors"}
            self.add_container(name=asked["name"], purpose=asked["purpose"])
            handler.reply(201, {**self.containers[-1], **asked})
        elif path != f"/api/customers/vehicles/{VIN}/telematicData":
            self.refuse(handler, 403, "CU-104", f"No permission for {VIN}")
        else:
            self.telematic_data(handler, request)

    def telematic_data(self, handler: Handler, request: Request) -> None:
        asked = parse_qs(urlsplit(request.path).query).get("containerId")
        known = [c["containerId"] for c in self.containers if c["state"] == "ACTIVE"]
        if not asked or asked[0] not in known:
            self.refuse(handler, 403, "CU-105", "No permission for this container")
            return
        self.send_reading(handler)

    @staticmethod
    def refuse(handler: Handler, status: int, code: str, message: str) -> None:
        handler.reply(
            status,
            {"exveErrorId": code, "exveErrorRef": "x", "exveErrorMsg": message, "exveNote": ""},
        )

    def expire_token(self, handler: Handler) -> None:
        """As a reading: the access token that was just used has expired."""
        self.access_token = "expired: nothing matches this"
        self.refuse(handler, 401, "CU-102", "Token expired")
