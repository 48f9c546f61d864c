"""A BMW CarData on loopback that keeps the rules of the real one."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, Optional
from urllib.parse import parse_qs, urlsplit

from fake_bmw import VIN, Answer, Door, Handler, Request, says

import i3charge

CLIENT_ID = "secret-client-id"
API_SCOPE = "cardata:api:read"
SCOPE = f"authenticate_user openid {API_SCOPE}"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
USED_UP = {"fault": {"detail": {"errorcode": "keymanagement.service.invalid_access_token"}}}
ADDRESS = "https://customer.bmwgroup.com/oneid/link"

# All of these are in BMW's catalogue, and in containers of clients that owners use.
# The catalogue has vehicle.drivetrain.lastRemainingRange, too, which is 0 on an electric i3. It
# is not accepted here, unlike at BMW, for nobody is to ask for it.
ENGINE = "vehicle.drivetrain.electricEngine."
HEADER = "vehicle.drivetrain.batteryManagement.header"
PREDICTED = ENGINE + "charging.level"
HV_STATUS = ENGINE + "charging.hvStatus"
NAMES = {
    "header": HEADER,
    "displayed": "vehicle.powertrain.electric.battery.stateOfCharge.displayed",
    "predicted": PREDICTED,
    "hv_status": HV_STATUS,
    "status": ENGINE + "charging.status",
    "minutes": ENGINE + "charging.timeToFullyCharged",
    "remaining": ENGINE + "charging.timeRemaining",
    "reason": ENGINE + "charging.hvpmFinishReason",
    "range": ENGINE + "kombiRemainingElectricRange",
    "plug": "vehicle.body.chargingPort.status",
    "plug2": "vehicle.body.chargingPort.combinedStatus",
}
DESCRIPTORS = frozenset(NAMES.values())


def stamp(entry: str, now: datetime, age: float) -> str:
    """The car's are of whole seconds; BMW's own values are stamped with `now`."""
    if entry not in ("predicted", "hv_status"):
        return f"{now - timedelta(minutes=age):%Y-%m-%dT%H:%M:%S}.000Z"
    return f"{now:%Y-%m-%dT%H:%M:%S}.{max(now.microsecond // 1000, 1):03}Z"


def telematic(now: datetime | None = None, **entries: Any) -> dict[str, Any]:
    """What BMW says at `now` of a charging car.

    Give `header`, `predicted` and so on a value, a pair with its age in minutes, or a triple
    with its unit as well. None leaves the descriptor out, an age of None only its time stamp.
    """
    now = now or datetime.now(timezone.utc)
    given: dict[str, Any] = {
        "header": ("52", 60),
        "predicted": "62",
        "hv_status": "CHARGING",
        "status": ("CHARGINGACTIVE", 60),
        "minutes": ("140", 0),
        "range": ("101", 0),
        "plug": ("CONNECTED", 60),
        **entries,
    }
    data = {}
    for entry, parts in given.items():
        if parts is None:
            continue
        value, *rest = parts if isinstance(parts, tuple) else (parts,)
        age, unit = rest + [0, None][len(rest) :]
        timestamp = None if age is None else stamp(entry, now, age)
        data[NAMES[entry]] = {"value": value, "unit": unit, "timestamp": timestamp}
    return {"telematicData": data}


def full(**entries: Any) -> dict[str, Any]:
    words = {
        "header": ("100", 0),
        "predicted": "100",
        "hv_status": "FINISHED_FULLY_CHARGED",
        "status": ("CHARGINGENDED", 0),
        "minutes": None,
    }
    return telematic(**{**words, **entries})


def fits(verifier: str, challenge: str) -> bool:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=") == challenge


def oauth_error(status: int, error: str) -> Answer:
    return says(status, {"error": error})


# A refusal: the status, and BMW's error code or None where no such code is sent.
Code = tuple[int, Optional[str]]


class CarData(Door):
    """Its `readings` are sent as they were made, without what is not in the container."""

    def __init__(self) -> None:
        super().__init__(telematic())
        # What it answers next, in the place of what its rules say.
        self.device_answers: list[Answer] = []
        self.token_answers: list[Answer] = []
        self.api_answers: list[Answer] = []

        # Its rules, to be set by a test.
        self.client_id = CLIENT_ID  # the only one that it knows, letter by letter
        self.quota = 50  # requests to the API, before it refuses all
        self.quota_refusal: Code = (403, "CU-429")
        self.pending = 1  # times that a sign-in is not confirmed yet
        self.interval_s = 0.05  # between two questions whether it is
        self.complete_uri = True  # with a code comes an address that holds it
        self.codes_that_fail = 0  # confirmed codes that end in BMW's error 500, and are used up
        self.expiry_refusal: Code = (401, "CU-102")  # of any but the newest access token
        self.accepted_descriptors: set[str] = set(DESCRIPTORS)
        self.descriptor_refusal: Code = (400, "CU-402")  # of a container with any other
        self.container_refusal: Code | None = None  # of every new container
        self.most_containers = 10  # deleted ones count

        # What it has come to.
        self.spent = 0  # requests to the API, refused ones too
        self.sign_ins = 0
        self.refreshes = 0
        self.tokens = 0  # pairs that were made
        self.access_token = ""  # the newest tokens, the only ones that are good
        self.refresh_token = ""
        self.token_scope = ""
        self.containers: list[dict[str, Any]] = []
        self.containers_made = 0
        self.device_codes: dict[str, str] = {}  # the challenge of each, or "used" or "failed"

    def settings(self) -> dict[str, str]:
        return {
            "CARDATA_CLIENT_ID": self.client_id,
            "VEHICLE_IDENTIFICATION_NUMBER": VIN,
            "CARDATA_AUTH_BASE_URL": self.url + "oauth",
            "CARDATA_BASE_URL": self.url + "api/",
            "LOG_INTERVAL": "50",
        }

    def seen(self, path: str) -> list[Request]:
        return [request for request in self.requests if path in request.path]

    def signed_in(self, **changed: Any) -> i3charge.Memory:
        """What the script remembers after a sign-in here; `changed` is of the sign-in."""
        with self.changed:
            self.new_tokens(SCOPE)
        sign_in = i3charge.SignInState(self.access_token, 4e9, self.refresh_token)
        return i3charge.Memory(
            client_id=self.client_id,
            vin=VIN,
            sign_in=dataclasses.replace(sign_in, **changed),
            container=i3charge.Container(id=self.add_container(), purpose=i3charge.FULL_SET),
        )

    def keep(self, path: Path, **changed: Any) -> i3charge.Memory:
        """Let the file be what the script has after a sign-in here."""
        memory = self.signed_in(**changed)
        path.write_text(json.dumps(dataclasses.asdict(memory)))
        return memory

    def new_tokens(self, scope: str) -> dict[str, Any]:
        self.tokens += 1
        self.access_token = f"secret-access-{self.tokens}"
        self.refresh_token = f"secret-refresh-{self.tokens}"
        self.token_scope = scope
        return {
            "access_token": self.access_token,
            "refresh_token": self.refresh_token,
            "id_token": "secret-id",
            "expires_in": 3599,
            "scope": scope,
        }

    def add_container(self, **fields: Any) -> str:
        """Make a container as the script would; returns its id."""
        with self.changed:
            container = {
                "containerId": f"S{self.containers_made:012}",
                "name": "i3charge",
                "purpose": i3charge.FULL_SET,
                "state": "ACTIVE",
                "technicalDescriptors": sorted(self.accepted_descriptors),
                **fields,
            }
            self.containers_made += 1
            self.containers.append(container)
        return str(container["containerId"])

    def answer(self, handler: Handler, request: Request) -> None:
        """Decide on one request at a time; a test's own answer may then block."""
        path = urlsplit(request.path).path
        with self.changed:
            if path == "/oauth/device/code":
                answer = self.next_of(self.device_answers) or self.device_code(request.form)
            elif path == "/oauth/token":
                answer = self.next_of(self.token_answers) or self.token(request.form)
            elif path.startswith("/api/"):
                answer = self.api(request, path[len("/api/") :])
            else:
                answer = says(404)
            self.changed.notify_all()
        answer(handler)

    @staticmethod
    def next_of(answers: list[Answer]) -> Answer | None:
        return answers.pop(0) if answers else None

    # The sign-in

    def device_code(self, form: dict[str, str]) -> Answer:
        if form.get("client_id") != self.client_id:
            return oauth_error(401, "invalid_client")
        fixed = (form.get("response_type"), form.get("code_challenge_method"), form.get("scope"))
        if fixed != ("device_code", "S256", SCOPE) or not form.get("code_challenge"):
            return oauth_error(400, "invalid_request")
        number = len(self.device_codes) + 1
        self.device_codes[f"secret-device-{number}"] = form["code_challenge"]
        body = {
            "user_code": f"CODE-{number}",
            "device_code": f"secret-device-{number}",
            "interval": self.interval_s,
            "expires_in": 300,
            "verification_uri": ADDRESS,
        }
        if self.complete_uri:
            body["verification_uri_complete"] = f"{ADDRESS}?user_code=CODE-{number}"
        return says(200, body)

    def token(self, form: dict[str, str]) -> Answer:
        if form.get("client_id") != self.client_id:
            return oauth_error(401, "invalid_client")
        if form.get("grant_type") == "refresh_token":
            return self.refresh(form.get("refresh_token"))
        if form.get("grant_type") == DEVICE_GRANT:
            return self.redeem(form.get("device_code", ""), form.get("code_verifier", ""))
        return oauth_error(400, "invalid_request")

    def refresh(self, refresh_token: str | None) -> Answer:
        if not refresh_token or refresh_token != self.refresh_token:
            return oauth_error(400, "invalid_grant")
        self.refreshes += 1
        return says(200, self.new_tokens(self.token_scope))

    def redeem(self, device_code: str, verifier: str) -> Answer:
        challenge = self.device_codes.get(device_code, "used")
        if challenge == "used":
            return oauth_error(400, "invalid_grant")
        if challenge == "failed":
            return oauth_error(403, "access_denied")
        if self.pending > 0:
            self.pending -= 1
            return oauth_error(403, "authorization_pending")
        if self.codes_that_fail > 0:
            self.codes_that_fail -= 1
            self.device_codes[device_code] = "failed"
            return says(500, USED_UP)
        self.device_codes[device_code] = "used"
        if not fits(verifier, challenge):
            return oauth_error(400, "invalid_grant")
        self.sign_ins += 1
        return says(200, self.new_tokens(SCOPE))

    # The API

    def api(self, request: Request, path: str) -> Answer:
        self.spent += 1
        if self.spent > self.quota:
            return self.refusal(self.quota_refusal, "Quota used up")
        if request.headers.get("x-version") != "v1":
            return self.refusal((400, "CU-000"), "x-version missing")
        if request.headers.get("Authorization") != f"Bearer {self.access_token}":
            return self.token_refusal()
        if API_SCOPE not in self.token_scope.split():
            return self.refusal((403, "CU-103"), "Scope is not CarData")
        return self.next_of(self.api_answers) or self.resource(request, path)

    def resource(self, request: Request, path: str) -> Answer:
        asked = (request.method, path)
        if asked == ("GET", "customers/containers"):
            return says(200, {"containers": [self.listed(c) for c in self.containers]})
        if asked == ("POST", "customers/containers"):
            return self.new_container(json.loads(request.body))
        if asked == ("GET", f"customers/vehicles/{VIN}/telematicData"):
            query = parse_qs(urlsplit(request.path).query)
            return self.telematic_data(query.get("containerId", [""])[0])
        if path.startswith("customers/vehicles/"):
            return self.refusal((403, "CU-104"), f"No permission for {VIN}")
        return says(404)

    @staticmethod
    def listed(container: dict[str, Any]) -> dict[str, Any]:
        return {name: what for name, what in container.items() if name != "technicalDescriptors"}

    def new_container(self, asked: dict[str, Any]) -> Answer:
        assert set(asked) == {"name", "purpose", "technicalDescriptors"}
        if self.container_refusal:
            return self.refusal(self.container_refusal, "The container is refused")
        if not set(asked["technicalDescriptors"]) <= self.accepted_descriptors:
            return self.refusal(self.descriptor_refusal, "Telematic key is invalid")
        if len(self.containers) >= self.most_containers:
            return self.refusal((403, "CU-124"), "Too many containers")
        self.add_container(**asked)
        return says(201, self.containers[-1])

    def telematic_data(self, container_id: str) -> Answer:
        for container in self.containers:
            if (container["containerId"], container["state"]) == (container_id, "ACTIVE"):
                return self.next_reading(set(container["technicalDescriptors"]))
        return self.lost_container_refusal()

    def next_reading(self, descriptors: set[str]) -> Answer:
        item = self.next_item()
        if callable(item):
            return item
        data = item.get("telematicData")
        if isinstance(data, dict):
            kept = {name: entry for name, entry in data.items() if name in descriptors}
            item = {**item, "telematicData": kept}
        return self.serving(item)

    def lost_container_refusal(self) -> Answer:
        return self.refusal((403, "CU-105"), "No permission for this container")

    def token_refusal(self) -> Answer:
        status, code = self.expiry_refusal
        if code is None:
            return oauth_error(status, "invalid_token")
        return self.refusal((status, code), "Token expired")

    def refusal(self, refusal: Code, message: str) -> Answer:
        status, code = refusal
        if code is None:
            return says(status)
        return lambda handler: self.refuse(handler, status, code, message)

    @staticmethod
    def refuse(handler: Handler, status: int, code: str, message: str) -> None:
        handler.reply(status, {"exveErrorId": code, "exveErrorRef": "x", "exveErrorMsg": message})

    def expire_token(self, handler: Handler) -> None:
        """As a reading: the access token that was just used has expired."""
        with self.changed:
            self.access_token = "expired: nothing matches this"
            answer = self.token_refusal()
        answer(handler)


def saved() -> bool:
    """A memory that is always kept."""
    return True


class Client:
    """The script's own door to a CarData, in this process, and what it remembers."""

    def __init__(
        self,
        cardata: CarData,
        memory: i3charge.Memory,
        *,
        attended: bool = True,
        by_hand: bool = False,
        save: Callable[[], bool] = saved,
        **more: str,
    ) -> None:
        settings = i3charge.load_settings({**cardata.settings(), **more}, "CarData", "")
        self.cardata = cardata
        self.memory = memory
        store = i3charge.Store(memory, save)
        self.door = i3charge.CarData(settings, store, may_ask=attended, by_hand=by_hand)
        self.poll = self.door.poll
        self.failures = 0  # consecutive

    def problem(self) -> i3charge.Trouble | None:
        """Poll; return why there is no report, or None if there is one."""
        try:
            self.poll()
        except i3charge.Trouble as trouble:
            return trouble
        return None

    def refused(self) -> i3charge.Trouble:
        trouble = self.problem()
        assert trouble, "there should be no report"
        return trouble

    def pause_s(self, trouble: i3charge.Trouble | None, interval_s: float) -> float:
        """The pause that the loop makes after a poll with this trouble, or with none."""
        if trouble is None:
            self.failures = 0
            return interval_s
        self.failures += not trouble.needs_sign_in
        if trouble.wait_s is not None:
            return trouble.wait_s
        return i3charge.growing_pause_s(max(self.failures, 1), interval_s)
