#!/usr/bin/env python3
"""Log the charge of a BMW i3, and tell its owner when the charging station can be freed.

A reading at every `LOG_INTERVAL`: one line on stdout, everything else on stderr. A
notification at every 5 % that the charge has risen, and when charging has ended, then on the
phone too. Settings come from `.env` beside this file (see `.env.example`) and from the
environment; a sign-in at BMW CarData is kept in `.cardata.json` beside the settings file.
"""

from __future__ import annotations

import signal
import warnings

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of an interrupted import
    warnings.simplefilter("ignore")  # urllib3's, of the TLS library that macOS has

import argparse
import base64
import hashlib
import importlib
import io
import json
import logging
import math
import os
import re
import secrets
import shlex
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Union
from urllib.parse import parse_qsl, urlsplit

try:
    import requests
    import urllib3
    from dotenv.parser import parse_stream
except ImportError as missing:
    sys.exit(f"i3charge: this Python has no {missing.name}; README.md says how to install it")

__version__ = "1.1.0"

logger = logging.getLogger("i3charge")


# --- The settings ---------------------------------------------------------------------------


class SettingsError(Exception):
    """The settings cannot be used. Each argument is a line for the owner."""


def load_variables(path: Path, *, required: bool) -> dict[str, str]:
    """The environment's variables, overruled by those in the settings file.

    Windows and many Linux desktops export a `USERNAME` of their own. An empty value in the
    file overrules too.

    Raises:
        SettingsError: the file is missing though `required`, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        mode = path.stat().st_mode
    except FileNotFoundError:
        if required:
            raise SettingsError(f"--env-file: there is no file {path}") from None
        return dict(os.environ)
    except UnicodeDecodeError:
        raise SettingsError(f"{path} should be UTF-8 text") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        mend = shlex.join(["chmod", "600", str(path)])
        logger.warning("other users of this computer can read the settings; mend it: %s", mend)
    bindings = list(parse_stream(io.StringIO(text)))
    broken = [binding.original.line for binding in bindings if binding.error]
    if broken:
        should = "should be NAME=value (is a quote missing?)"
        raise SettingsError(*(f"{path}, line {line}: {should}" for line in broken))
    return {**os.environ, **{b.key: b.value or "" for b in bindings if b.key}}


def is_loopback(url: str) -> bool:
    return bool(re.fullmatch(r"localhost|127(\.\d{1,3}){3}|::1", urlsplit(url).hostname or ""))


class Settings:
    """Takes single settings out of `variables`, and collects what is wrong with them.

    What is wrong comes back as a stand-in, so that `check` can say it all in one go, before
    anything is sent. No message holds a value: any of them could be a mislaid password.
    """

    def __init__(self, variables: Mapping[str, str], folder: Path = Path()) -> None:
        self.variables = variables
        self.folder = folder  # of the settings file
        self.problems: list[str] = []

    def text(self, name: str, default: str = "", *, form: str = ".*", should: str = "") -> str:
        """A text in the `form` of a regular expression; without a default it is required."""
        value = self.variables.get(name) or default
        if not value:
            self.problems.append(f"{name} is missing or empty")
        elif not re.fullmatch(form, value, re.DOTALL):
            self.problems.append(f"{name} should be {should}")
            return default
        return value

    def url(self, name: str, default: str = "", *, secure: bool = True) -> str:
        """An address; a `secure` one, that secrets are sent to, is https or on this computer."""
        value = self.variables.get(name) or default
        with suppress(ValueError):
            parts = urlsplit(value)
            plain = parts.scheme == "http" and (not secure or is_loopback(value))
            if not value or (parts.hostname and (plain or parts.scheme == "https")):
                return value
        begins = "https://" if secure else "http:// or https://"
        self.problems.append(f"{name} should be an address that begins with {begins}")
        return "https://invalid/"

    def vin(self) -> str:
        should = "17 letters and digits, none of them I, O or Q"
        form = "[A-HJ-NPR-Za-hj-npr-z0-9]{17}"
        return self.text("VEHICLE_IDENTIFICATION_NUMBER", form=form, should=should).upper()

    def interval_s(self, default_ms: int, least_ms: int, why: str) -> float:
        """`LOG_INTERVAL`, in seconds, raised to the least that `why` allows."""
        should = "a whole number of milliseconds from 1 to 99999999, 60000 for a minute"
        form = "0*[1-9][0-9]{0,7}"
        value_ms = int(self.text("LOG_INTERVAL", str(default_ms), form=form, should=should))
        if value_ms < least_ms:
            logger.warning("LOG_INTERVAL is raised to %d: %s", least_ms, why)
        return max(value_ms, least_ms) / 1000

    def check(self) -> None:
        missing = any("missing" in problem for problem in self.problems)
        hint = (
            "copy .env.example to .env and fill it in (with CARDATA_CLIENT_ID, the door that"
            " BMW has open today, no password is needed); --demo needs no account"
        )
        if self.problems:
            raise SettingsError(*self.problems, *([hint] if missing else []))


# --- A reading ------------------------------------------------------------------------------

A_DAY_MINUTES = 24 * 60

Status = Literal["charging", "full", "waiting", "error", "plugged in", "unplugged", "unknown"]


class Reading(NamedTuple):
    """What the car has said, in the owner's words; None where it has not."""

    charge: float  # percent, 0 to 100, as the car's own display shows it
    status: Status
    range: float | None = None  # in range_unit
    range_unit: str | None = None  # "km" or "mi"
    full_at: datetime | None = None  # as BMW expects, and only while charging
    reported: datetime | None = None  # when the car said its charge

    @property
    def percent(self) -> str:
        """Rounded down: 99.6 % is not full."""
        return f"{int(self.charge)}%"

    def minutes_to_full(self, now: datetime) -> float | None:
        """None where that is not known, or has passed: BMW repeats what it once expected."""
        if self.full_at is None or self.full_at < now - timedelta(minutes=1):
            return None
        return max(0.0, round((self.full_at - now).total_seconds() / 60, 1))

    def full_about(self, now: datetime) -> str:
        if self.full_at is None or self.minutes_to_full(now) is None:
            return ""
        return f"full about {self.full_at.astimezone():%H:%M}"


# The words of hvStatus, then those of the older fields. An unplugged car says INVALID and
# NOCHARGING, and so may one that is plugged in.
STATUS_WORDS: dict[str, Status] = {
    "CHARGING": "charging",
    "FINISHED_FULLY_CHARGED": "full",
    "WAITING_FOR_CHARGING": "waiting",
    "ERROR": "error",
    "NOT_CHARGING": "plugged in",
    "FINISHED_NOT_FULL": "plugged in",
    "INVALID": "unknown",
    "CHARGINGACTIVE": "charging",
    "INITIALIZATION": "waiting",
    "CHARGINGPAUSED": "waiting",
    "CHARGINGERROR": "error",
    "CHARGINGENDED": "plugged in",
    "NOCHARGING": "unknown",
}
PLUG_WORDS = ("CONNECTED", "DISCONNECTED")


def status_of(charge: float, words: Iterable[str], plug_word: str) -> Status:
    """One status out of BMW's `words` on the charge, the best first, and its word on the plug.

    A car at 100 % can still be charging, and one that is plugged in may be: where no word is
    known, that the plug is connected proves nothing.
    """
    known = [STATUS_WORDS[word] for word in words if word in STATUS_WORDS]
    said = next((status for status in known if status != "unknown"), None)
    unplugged = plug_word == "DISCONNECTED"
    if said == "charging":
        return "charging"
    if charge >= 100 and (known or unplugged):
        return "full"
    if unplugged:
        return "unplugged"
    return said or ("plugged in" if known and plug_word == "CONNECTED" else "unknown")


def number(value: object, most: float) -> float | None:
    """A number from 0 to `most` out of what BMW sent; None if it is no such number."""
    if isinstance(value, (str, int, float)):
        value = str(value).strip()
        if re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,20})?", value) and float(value) <= most:
            return float(value)
    return None


def utc(value: object) -> datetime | None:
    """An ISO 8601 time; one without an offset is in UTC already."""
    with suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(word(value).replace("Z", "+00:00"))
        aware = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
        return aware.astimezone(timezone.utc)
    return None


def minutes_after(began: datetime | None, minutes: float | None, now: datetime) -> datetime | None:
    """When `minutes` that BMW said at `began` are over; its clock may be ahead of ours."""
    return None if minutes is None else min(began or now, now) + timedelta(minutes=minutes)


def local_time() -> datetime:
    return datetime.fromtimestamp(time.time(), timezone.utc).astimezone()


def word(value: object) -> str:
    return value if isinstance(value, str) else ""


def mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def printable(value: object, hidden: Iterable[str]) -> str:
    """What BMW sent, as short and harmless text on one line, without the `hidden` secrets."""
    text = word(value)
    for secret in sorted(filter(None, hidden), key=len, reverse=True):
        text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in text)[:200] or "no reason given"


# --- The door: where readings come from -----------------------------------------------------


class TryAgain(Exception):
    """There is no reading now: go on. Without a reason nothing has failed.

    The next try is in `wait_s` seconds, or else the later, the more has failed, and in
    `least_s` at the least. What was `unsent` did not get through to BMW, and has cost it
    nothing. `news` is for the owner, wherever that is.
    """

    def __init__(self, why: str = "", **details: Any) -> None:
        super().__init__(why)
        self.wait_s: float | None = details.get("wait_s")
        self.least_s: float = details.get("least_s", 0.0)
        self.unsent: bool = details.get("unsent", False)
        self.news: str = details.get("news", "")


class SignInFailed(Exception):
    """Only the owner can mend the sign-in, and asking again could lock the account: stop."""


class Answer(NamedTuple):
    what: str  # it answers
    host: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The JSON object in the body; an empty one where there is none."""
        # RecursionError: nested too deeply. ValueError: no JSON, no UTF-8, too long a number.
        with suppress(ValueError, RecursionError):
            return mapping(json.loads(self.body))
        return {}

    def failure(self) -> TryAgain:
        """Why this is not the answer that was hoped for."""
        why = "is out of order" if self.status >= 500 else "gave no useful answer"
        why = f"{self.host} {why} when asked for {self.what} (HTTP {self.status})"
        least_s = 0.0
        with suppress(urllib3.exceptions.HTTPError, ValueError, TypeError, OverflowError):
            least_s = urllib3.Retry().parse_retry_after(self.headers.get("Retry-After", ""))
        return TryAgain(why, least_s=min(least_s, 3600))


def is_token(value: object) -> bool:
    """Whether it can stand in an Authorization header."""
    return bool(re.fullmatch(r"[\x21-\x7e]+", word(value)))


class Http:
    """Sends one request at a time, over one kept connection per host."""

    REQUEST_LIMIT_S = 30.0
    BODY_LIMIT_BYTES = 1 << 20  # the recorded vehicle statuses have some 3,500

    def __init__(self) -> None:
        self._session = requests.Session()
        # Compressed, a small body could become a huge one in memory.
        headers = {"User-Agent": f"i3charge/{__version__}", "Accept-Encoding": "identity"}
        self._session.headers.update(headers)

    def send(
        self, what: str, method: str, url: str, *, token: str | None = None, **options: Any
    ) -> Answer:
        """Send a request for `what`, with `options` for `requests.request`.

        With a `token`, be it empty, that and nothing of `~/.netrc` is what it is authorized by.

        Raises:
            TryAgain: there is no answer. The words are ours, for those of requests hold the
                address. Where only the body breaks off, the answer has none.
        """
        host = urlsplit(url).hostname or ""
        why = f"no answer from {host} when asked for {what}"
        limit_s = options.pop("limit_s", self.REQUEST_LIMIT_S)
        options.update(stream=True, allow_redirects=False, timeout=(limit_s / 3, limit_s))
        if is_loopback(url):
            options["proxies"] = {"no_proxy": "*"}  # none leads back to here

        def expire(*_: object) -> None:
            raise TryAgain(f"{why} in time")

        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if token:
                request.headers["Authorization"] = f"Bearer {token}"
            return request

        # The time-outs of a socket begin anew with every byte; this one does not.
        signal.signal(signal.SIGALRM, expire)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            auth = None if token is None else authorize
            with self._session.request(method, url, auth=auth, **options) as response:
                body = b""
                with suppress(OSError, urllib3.exceptions.HTTPError, TryAgain):
                    body = response.raw.read(self.BODY_LIMIT_BYTES)
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            # ValueError: even a redirect that is not followed is parsed.
            unsent = isinstance(error, requests.ConnectionError)
            raise TryAgain(f"{why} ({type(error).__name__})", unsent=unsent) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        status = response.status_code
        logger.debug("asked %s for %s: HTTP %d, %d bytes", host, what, status, len(body))
        return Answer(what, host, status, response.headers, body)


class CarDataFile:
    """What CarData's door has to remember, on disk with mode 0600 and replaced as a whole."""

    def __init__(self, path: Path, client_id: str) -> None:
        self._path = path
        self.client_id = client_id
        self.access_token = ""
        self.expires_s = 0.0  # time.time() when the access token does
        self.refresh_token = ""
        self.container = ""  # its id
        self.sought_s = 0.0  # time.time() when it was, if no reading has come since
        self.requests_s: list[float] = []  # time.time() of each in the last 24 hours
        with suppress(FileNotFoundError):
            try:
                kept = mapping(json.loads(path.read_bytes()))
                if kept["client_id"] == client_id:
                    vars(self).update({n: type(v)(kept[n]) for n, v in self._fields().items()})
            except (ValueError, LookupError, TypeError, RecursionError):
                logger.error("%s cannot be used; going on without it", path.name)

    def _fields(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def save(self) -> None:
        aside = self._path.with_name(self._path.name + ".new")
        try:
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(self._fields(), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, self._path)
        except OSError as error:
            logger.error("%s cannot be written (%s)", self._path, error.strerror)


class DeviceSignIn:
    """Signs in at CarData with the OAuth 2.0 device flow (RFC 8628) and PKCE (RFC 7636)."""

    def __init__(
        self, settings: Settings, http: Http, kept: CarDataFile, *, attended: bool
    ) -> None:
        url = settings.url("CARDATA_AUTH_BASE_URL", "https://customer.bmwgroup.com/gcdm/oauth/")
        self._url = url.rstrip("/")
        self._http = http
        self._kept = kept
        self._attended = attended  # by an owner who can be asked to sign in
        self._refused = False  # the refresh token, and the owner has not been told
        self._device_code = ""  # of the sign-in that waits for the owner
        self._interval_s = 0.0
        self._verifier = ""

    def _oauth(self, what: str, path: str, **form: str) -> Answer:
        form = {"client_id": self._kept.client_id, **form}
        return self._http.send(what, "POST", f"{self._url}/{path}", data=form, token="")

    def renew(self) -> None:
        """Get an access token: with the refresh token, else from the owner, who is waited for."""
        if self._kept.refresh_token:
            refresh = {"grant_type": "refresh_token", "refresh_token": self._kept.refresh_token}
            answer = self._oauth("a new access token", "token", **refresh)
            # Without an error of OAuth's own it was the gateway, and the refresh token is good.
            if answer.status not in (400, 401, 403) or "error" not in answer.json():
                self._keep_tokens(answer)
                return
            self._kept.access_token, self._kept.refresh_token, self._kept.expires_s = "", "", 0.0
            self._kept.save()
            self._refused = True
        if not self._attended:
            advice = "CarData needs a sign-in: run python i3charge.py once by hand, without --once"
            raise SignInFailed(advice) if self._refused else TryAgain(advice)
        if not self._device_code:
            self._ask_owner()
        elif self._owner_has_confirmed():
            return
        news = "BMW wants a new sign-in: the terminal shows how" if self._refused else ""
        self._refused = False
        raise TryAgain(wait_s=self._interval_s, news=news)

    def _ask_owner(self) -> None:
        """RFC 8628, section 3.1, with the code challenge of RFC 7636, section 4.2."""
        self._verifier = secrets.token_urlsafe(64)
        digest = hashlib.sha256(self._verifier.encode()).digest()
        answer = self._oauth(
            "a sign-in",
            "device/code",
            response_type="device_code",
            scope="authenticate_user openid cardata:api:read",
            code_challenge=base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            code_challenge_method="S256",
        )
        if answer.status == 403:
            why = "BMW does not let this client id in yet: subscribe it to the CarData API"
            raise TryAgain(f"{why} in the My BMW portal", wait_s=60)
        if answer.status in (400, 401):
            raise self._refusal(answer)
        said = answer.json()
        code, device_code = said.get("user_code"), said.get("device_code")
        address = said.get("verification_uri_complete") or said.get("verification_uri")
        if not (is_token(device_code) and is_token(code) and is_token(address)):
            raise answer.failure()
        self._device_code = word(device_code)
        self._interval_s = number(said.get("interval"), most=300) or 5  # RFC 8628, 3.2
        logger.warning("to sign in at BMW, open %s and confirm the code %s", address, code)

    def _owner_has_confirmed(self) -> bool:
        """RFC 8628, section 3.5."""
        try:
            answer = self._oauth(
                "the tokens",
                "token",
                grant_type="urn:ietf:params:oauth:grant-type:device_code",
                device_code=self._device_code,
                code_verifier=self._verifier,
            )
            if answer.status == 200:
                self._keep_tokens(answer)
                self._device_code = ""
                logger.info("signed in at BMW")
                return True
            error = word(answer.json().get("error"))
            if answer.status not in (400, 401, 403) or not error:
                raise answer.failure()
        except TryAgain as problem:
            logger.error("%s; trying again", problem)
            # The code is still good. RFC 8628 wants fewer requests after a time-out, too.
            error = "slow_down"
        if error == "slow_down":
            self._interval_s += 5
        elif error in ("expired_token", "invalid_grant"):
            self._ask_owner()
        elif error != "authorization_pending":
            raise self._refusal(answer)
        return False

    def _refusal(self, answer: Answer) -> SignInFailed:
        error = printable(answer.json().get("error"), [self._kept.client_id])
        if error == "access_denied":
            return SignInFailed("the sign-in at BMW was declined: start again to get a new code")
        return SignInFailed(
            f"BMW refuses the sign-in ({error}): check CARDATA_CLIENT_ID, and in the My BMW"
            " portal that it is subscribed to the CarData API"
        )

    def _keep_tokens(self, answer: Answer) -> None:
        """The old refresh token is dead: the new one is on disk before it is used."""
        said, kept = answer.json(), self._kept
        refresh_token = said.get("refresh_token", kept.refresh_token)
        if answer.status != 200 or not (
            is_token(said.get("access_token")) and is_token(refresh_token)
        ):
            raise answer.failure()
        kept.access_token, kept.refresh_token = said["access_token"], refresh_token
        kept.expires_s = time.time() + (number(said.get("expires_in"), most=1e6) or 3599)
        kept.save()


class CarData:
    """BMW CarData, the official API for one's own car: 50 requests in any 24 hours."""

    REQUESTS = 48
    DAY_S = 24 * 60 * 60
    RENEW_BEFORE_S = 60
    CONTAINER_PAUSE_S = 6 * 60 * 60

    ENGINE = "vehicle.drivetrain.electricEngine."
    HEADER = "vehicle.drivetrain.batteryManagement.header"
    DISPLAYED = "vehicle.powertrain.electric.battery.stateOfCharge.displayed"
    PREDICTED = ENGINE + "charging.level"
    STATUS = (ENGINE + "charging.hvStatus", ENGINE + "charging.status")
    MINUTES = (ENGINE + "charging.timeToFullyCharged", ENGINE + "charging.timeRemaining")
    RANGE_KM = (ENGINE + "kombiRemainingElectricRange", "vehicle.drivetrain.lastRemainingRange")
    PLUG = ("vehicle.body.chargingPort.status", "vehicle.body.chargingPort.combinedStatus")
    CONTAINER: ClassVar[dict[str, Any]] = {
        "name": "i3charge",
        "purpose": "descriptors 1",  # to be raised with every change of the descriptors
        "technicalDescriptors": [HEADER, DISPLAYED, PREDICTED, *STATUS, *MINUTES, *RANGE_KM, *PLUG],
    }

    def __init__(self, settings: Settings, http: Http, *, attended: bool) -> None:
        self._http = http
        client_id = settings.text("CARDATA_CLIENT_ID")
        self._vin = settings.vin()
        url = settings.url("CARDATA_BASE_URL", "https://api-cardata.bmwgroup.com/")
        self._url = url.rstrip("/") + "/customers"
        self.gap_s = 0.0 if is_loopback(url) else 600.0
        self.interval_s = settings.interval_s(
            1_800_000, int(self.gap_s * 1000), "CarData allows 50 requests in 24 hours"
        )
        self._kept = CarDataFile(settings.folder / ".cardata.json", client_id)
        self._sign_in = DeviceSignIn(settings, http, self._kept, attended=attended)

    def poll(self) -> Reading:
        """Ask BMW once.

        Raises:
            TryAgain: there is no reading now.
            SignInFailed: there will be none with these settings.
        """
        if time.time() > self._kept.expires_s - self.RENEW_BEFORE_S:
            self._sign_in.renew()
        if not self._kept.container:
            self._find_container()
        answer = self._telematic_data()
        if self._is_unknown_container(answer):
            pause_s = self._kept.sought_s + self.CONTAINER_PAUSE_S - time.time()
            if pause_s <= 0:
                self._find_container(refused=self._kept.container)
                answer, pause_s = self._telematic_data(), self.CONTAINER_PAUSE_S
            if self._is_unknown_container(answer):
                raise TryAgain(str(self._failure(answer)), wait_s=pause_s)
        reading = self.reading_in(self._good(answer), local_time())
        self._kept.sought_s = 0.0
        return reading

    def _telematic_data(self) -> Answer:
        path = f"/vehicles/{self._vin}/telematicData"
        container = {"containerId": self._kept.container}
        return self._send("the car's status", "GET", path, params=container)

    @staticmethod
    def _is_unknown_container(answer: Answer) -> bool:
        return answer.status == 404 or answer.json().get("exveErrorId") in ("CU-105", "CU-122")

    def _find_container(self, refused: str = "") -> None:
        listed = self._good(self._send("its containers", "GET", "/containers")).get("containers")
        wanted = ("ACTIVE", self.CONTAINER["name"], self.CONTAINER["purpose"])
        for container in map(mapping, listed if isinstance(listed, list) else []):
            found = tuple(container.get(name) for name in ("state", "name", "purpose"))
            if found == wanted and container.get("containerId") != refused:
                break
        else:
            made = self._send("a container", "POST", "/containers", json=self.CONTAINER)
            container = self._good(made)
        if not is_token(container.get("containerId")):
            raise TryAgain("CarData named no container")
        self._kept.container, self._kept.sought_s = container["containerId"], time.time()
        self._kept.save()

    def _send(self, what: str, method: str, path: str, **options: Any) -> Answer:
        """Send a request to the API, with a new access token if BMW wants one."""
        kept = self._kept
        headers = {"x-version": "v1", "Accept": "application/json"}
        for renewed in (False, True):
            now_s = time.time()
            # Those of the future are from before the clock was set back.
            spent = sorted(s for s in kept.requests_s if abs(now_s - s) < self.DAY_S)
            if len(spent) >= self.REQUESTS:
                wait_s = min(spent[-self.REQUESTS] + self.DAY_S - now_s, self.DAY_S)
                raise TryAgain("CarData's requests for 24 hours are spent", wait_s=wait_s)
            kept.requests_s = [*spent, now_s]
            try:
                options.update(token=kept.access_token, headers=headers)
                answer = self._http.send(what, method, self._url + path, **options)
            except TryAgain as problem:
                if problem.unsent:
                    kept.requests_s = spent
                raise
            finally:
                kept.save()
            if answer.status != 401 or renewed:
                break
            self._sign_in.renew()
        return answer

    def _good(self, answer: Answer) -> dict[str, Any]:
        if 200 <= answer.status < 300:
            return answer.json()
        raise self._failure(answer)

    def _failure(self, answer: Answer) -> TryAgain:
        code = word(answer.json().get("exveErrorId"))
        if answer.status == 429 or code == "CU-429":
            used_up = "BMW says that CarData's 50 requests for 24 hours are used up"
            return TryAgain(used_up, wait_s=3600)
        failure = answer.failure()
        why = str(failure)
        if code:
            hidden = (self._vin, *(word(value) for value in vars(self._kept).values()))
            text = printable(answer.json().get("exveErrorMsg"), hidden)
            why = f"CarData says: {text} ({printable(code, hidden)})"
        if code in ("CU-104", "CU-120"):
            why += "; check VEHICLE_IDENTIFICATION_NUMBER"
        return TryAgain(why, least_s=failure.least_s)

    @classmethod
    def reading_in(cls, said: Mapping[str, Any], now: datetime) -> Reading:
        """The car sends its charge when charging starts and ends; between, BMW predicts it."""
        data = mapping(said.get("telematicData"))
        values = {name: mapping(entry).get("value") for name, entry in data.items()}
        times = {name: utc(mapping(entry).get("timestamp")) for name, entry in data.items()}

        def first_number(names: Iterable[str], most: float) -> tuple[str, float | None]:
            found = ((name, number(values.get(name), most)) for name in names)
            return next((pair for pair in found if pair[1] is not None), ("", None))

        words = [word(values.get(name)) for name in cls.STATUS]
        plugs = (word(values.get(name)) for name in cls.PLUG)
        plug = next((plug for plug in plugs if plug in PLUG_WORDS), "")
        charging = status_of(0, words, plug) == "charging"
        levels = [cls.HEADER, cls.DISPLAYED, cls.PREDICTED]
        sent, predicted = times.get(cls.HEADER), times.get(cls.PREDICTED)
        if charging and predicted and not (sent and predicted < sent):
            levels.insert(0, cls.PREDICTED)
        level, charge = first_number(levels, most=100)
        if charge is None:
            raise TryAgain("CarData's answer holds no charge between 0 and 100")
        name, minutes = first_number(cls.MINUTES if charging else (), most=A_DAY_MINUTES)
        _, range_km = first_number(cls.RANGE_KM, most=1000)
        return Reading(
            charge=charge,
            status=status_of(charge, words, plug),
            range=range_km,
            range_unit=None if range_km is None else "km",
            full_at=minutes_after(times.get(name) or times.get(level), minutes, now),
            reported=times.get(level),
        )


class Portal:
    """The API of the ConnectedDrive web portal (2017 to 2021), opened with the password."""

    LOGIN_PAUSE_S = 600  # where a new token is of no use; many logins lock the account

    def __init__(self, settings: Settings, http: Http) -> None:
        self._http = http
        dispatch = "https://www.bmw-connecteddrive.com/app/default/static/external-dispatch.html"
        self._form = {
            "username": settings.text("USERNAME"),
            "password": settings.text("PASSWORD"),
            "client_id": settings.text("AUTH_CLIENT_ID"),
            "redirect_uri": settings.text("AUTH_REDIRECT_URI", dispatch),
            "response_type": "token",
            "scope": "authenticate_user fupo",
        }
        vin = settings.vin()
        url = settings.url("CONNECTED_DRIVE_BASE_URL", "https://www.bmw-connecteddrive.nl/api/")
        self._status_url = f"{url.rstrip('/')}/vehicle/dynamic/v1/{vin}"
        self._auth_url = settings.url(
            "AUTH_BASE_URL", "https://customer.bmwgroup.com/gcdm/oauth/authenticate"
        )
        self.interval_s = self.gap_s = settings.interval_s(
            60_000, 1 if is_loopback(url) else 10_000, "BMW blocks accounts that ask faster"
        )
        self._access_token = ""
        self._refusals_left = 1  # of the login, in a row

    def poll(self) -> Reading:
        """As at CarData."""
        for fresh in (False, True):
            if fresh or not self._access_token:
                self._sign_in()
            token, what = self._access_token, "the car's status"
            answer = self._http.send(what, "GET", self._status_url, token=token)
            if answer.status != 401:
                break
        else:
            why = "BMW does not accept the access token that it gave out itself"
            raise TryAgain(why, least_s=self.LOGIN_PAUSE_S)
        if answer.status in (403, 404):
            check = "check VEHICLE_IDENTIFICATION_NUMBER"
            raise TryAgain(f"BMW does not show this car (HTTP {answer.status}): {check}")
        if answer.status != 200:
            raise answer.failure()
        return self.reading_in(answer.json(), local_time())

    def _sign_in(self) -> None:
        """OAuth 2.0 implicit grant (RFC 6749, section 4.2): the answer is a redirect."""
        state = secrets.token_urlsafe(16)
        form = {**self._form, "state": state}
        answer = self._http.send("the login", "POST", self._auth_url, data=form, token="")
        if answer.status in (400, 401, 403):
            raise self._refused(word(answer.json().get("error")) or f"HTTP {answer.status}")
        if answer.status not in (302, 303):
            raise answer.failure()
        location, ours = answer.headers.get("Location", ""), self._form["redirect_uri"]
        # The token is in the fragment, an error in the query or there. A plus sign is one.
        found = re.sub("[?#]", "&", location[len(ours) :]).replace("+", "%2B")
        fields = dict(parse_qsl(found))
        if not location.startswith((f"{ours}#", f"{ours}?")) or fields.get("state", state) != state:
            raise TryAgain("BMW answered the login with a redirect to somewhere else")
        if "error" in fields:
            raise self._refused(fields["error"])
        if not is_token(fields.get("access_token")):
            raise TryAgain("BMW answered the login with a redirect that holds no access token")
        self._access_token = fields["access_token"]
        self._refusals_left = 3  # BMW's gateway has refused good logins for minutes

    def _refused(self, error: str) -> TryAgain | SignInFailed:
        if error in ("server_error", "temporarily_unavailable"):  # RFC 6749, section 4.2.2.1
            return TryAgain("BMW's login is out of order")
        self._refusals_left -= 1
        said = printable(error, [self._form["username"], self._form["password"]])
        if self._refusals_left > 0:
            return TryAgain(f"BMW refuses the login that has worked before ({said})")
        check = "check USERNAME, PASSWORD and AUTH_CLIENT_ID"
        return SignInFailed(f"BMW refuses the login ({said}): {check}")

    @staticmethod
    def reading_in(said: Mapping[str, Any], now: datetime) -> Reading:
        """`chargingLevelHv` is what the car displays; `soc_hv_percent` is less near the top."""
        car = mapping(said.get("attributesMap"))
        charge = number(car.get("chargingLevelHv"), most=100)
        if charge is None:
            raise TryAgain("BMW's answer holds no charge between 0 and 100")
        words = ("chargingHVStatus", "charging_status", "chargingSystemStatus")
        plug_word = word(car.get("connectorStatus"))
        status = status_of(charge, (word(car.get(name)) for name in words), plug_word)
        unit_of_length = {"km": "km", "mls": "mi"}.get(word(car.get("unitOfLength")))
        units = {"": unit_of_length, "Km": "km", "Mile": "mi"}.items()
        found = ((number(car.get(f"beRemainingRangeElectric{n}"), 1000), u) for n, u in units)
        distance, unit = next((pair for pair in found if None not in pair), (None, None))
        minutes = car.get("chargingTimeRemaining") if status == "charging" else None
        # "27.02.2018 19:59:03 UTC"
        day_first = r"(\d\d)\.(\d\d)\.(\d{4}) (\d\d:\d\d:\d\d) UTC"
        updated = re.fullmatch(day_first, word(car.get("updateTime")), re.ASCII)
        reported = utc(updated.expand(r"\3-\2-\1T\4")) if updated else None
        full_at = minutes_after(reported, number(minutes, most=A_DAY_MINUTES), now)
        return Reading(charge, status, distance, unit, full_at, reported)


Door = Union[CarData, Portal]


# --- What is worth telling ------------------------------------------------------------------

STEP_PERCENT = 5
LONGEST_BACKOFF_S = 300

Kind = Literal["step", "full", "stopped", "error"]


class ChargeWatch:
    """Decides what in a row of readings is news: at most one thing a reading."""

    def __init__(self) -> None:
        self._lowest: float | None = None  # percent, since the last news
        self._status: Status = "unknown"  # the last that was known

    def news(self, reading: Reading) -> Kind | None:
        before, lowest = self._status, self._lowest
        if reading.status != "unknown":
            self._status = reading.status
        if lowest is None:
            self._lowest = reading.charge
            return None
        kind: Kind | None = None
        if self._status == "full" and before != "full":
            kind = "full"
        elif before == "charging" and self._status not in ("charging", "full"):
            kind = "stopped"
        elif round(reading.charge - lowest, 6) >= STEP_PERCENT:
            kind = "step"
        self._lowest = reading.charge if kind else min(lowest, reading.charge)
        return kind


def announcement(kind: Kind, reading: Reading, now: datetime) -> str:
    if kind == "full":
        return "Fully charged. The charging station can be freed."
    if kind == "stopped":
        return f"Charging stopped at {reading.percent} ({reading.status})"
    return ", ".join(filter(None, [f"{reading.percent} charged", reading.full_about(now)]))


def next_poll_s(reading: Reading, now: datetime, interval_s: float, gap_s: float) -> float:
    """Seconds from one poll to the next, which is sooner where the car should be full before."""
    if reading.full_at is None:
        return interval_s
    left_s = (reading.full_at - now).total_seconds()
    return interval_s if left_s <= -gap_s else min(interval_s, max(left_s, gap_s))


def next_tick_s(passed_s: float, interval_s: float) -> float:
    """The first tick after `passed_s`: a poll that took long skips those that it missed."""
    return (math.floor(passed_s / interval_s + 1e-9) + 1) * interval_s


def retry_s(failures: int, problem: TryAgain, interval_s: float) -> float:
    """How long to wait after this many failures in a row, the last of them `problem`."""
    doubled = 2.0 ** min(failures - 1, 20)
    if problem.wait_s is not None:
        return problem.wait_s
    if problem.unsent:
        return min(min(60.0, interval_s) * doubled, interval_s)
    return max(min(interval_s * doubled, max(LONGEST_BACKOFF_S, interval_s)), problem.least_s)


# --- How it is told -------------------------------------------------------------------------

TITLE = "BMW i3"
NOTIFICATION_LIMIT_S = 10  # for each program that shows one and each address that is told
STALE_REPORT = timedelta(minutes=5)


def duration(seconds: float) -> str:
    """As one says it: "90 s", "25 min", "3 h", "4 days"."""
    for unit, length_s, below in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if round(seconds / length_s) < below:
            return f"{round(seconds / length_s)} {unit}"
    return f"{round(seconds / 86400)} days"


def plain_line(reading: Reading, now: datetime, bar: str = "") -> str:
    parts = [
        f"{now:%Y-%m-%d %H:%M:%S}",
        f"{reading.percent:>4}  {bar}" if bar else reading.percent,
        reading.status,
        "" if reading.range is None else f"{int(reading.range)} {reading.range_unit}",
        reading.full_about(now),
    ]
    if reading.reported and now - reading.reported > STALE_REPORT:
        age_s = (now - reading.reported).total_seconds()
        parts.append(f"(car last reported {duration(age_s)} ago)")
    return "  ".join(filter(None, parts))


def json_line(reading: Reading, now: datetime) -> str:
    fields = {
        "time": now.isoformat(timespec="seconds"),
        "charge": reading.charge,
        "status": reading.status,
        "range": reading.range,
        "range_unit": reading.range_unit,
        "minutes_to_full": reading.minutes_to_full(now),
        "reported": reading.reported and reading.reported.isoformat(),
    }
    return json.dumps(fields)


COLOURS: dict[Status, int] = {"charging": 32, "full": 36, "waiting": 33, "error": 31}


class ChargeLog:
    """Writes readings to stdout, in the form that suits what stdout is."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        dumb = os.environ.get("TERM") == "dumb"
        self._terminal = sys.stdout.isatty() and not as_json and not dumb
        self._colour = self._terminal and not os.environ.get("NO_COLOR")
        self._blocks = "█░"
        try:
            self._blocks.encode(sys.stdout.encoding)
        except UnicodeError:
            self._blocks = "#-"
        self.works = True

    def write(self, reading: Reading, now: datetime) -> None:
        """Write a line.

        Raises:
            BrokenPipeError: nobody reads the log any more.
        """
        line = json_line(reading, now) if self._as_json else plain_line(reading, now)
        if self._terminal:
            title = f"\033]2;i3 {reading.percent} {reading.status}\007"
            line = title + plain_line(reading, now, self._bar(reading))
        self._write(line + "\n")

    def _write(self, text: str) -> None:
        """Without a buffer, in which something would be left over at the end."""
        try:
            os.write(sys.stdout.fileno(), text.encode(sys.stdout.encoding, "replace"))
            self.works = True
        except BrokenPipeError:
            raise
        except OSError as error:
            if self.works:
                logger.error("the log cannot be written (%s); going on without", error.strerror)
            self.works = False

    def _bar(self, reading: Reading) -> str:
        full = int(reading.charge / 5)
        bar = self._blocks[0] * full + self._blocks[1] * (20 - full)
        return f"\033[{COLOURS.get(reading.status, 2)}m{bar}\033[0m" if self._colour else bar

    def close(self) -> None:
        """Take the title back, which would go on saying what is no longer known."""
        if self._terminal:
            self._write("\033]2;\007")


class Desktop:
    """Shows notifications on this computer, with the first of several programs that can."""

    def __init__(self) -> None:
        self._ways = ["pync", "osascript", "notify-send"]
        self._said = False

    def show(self, message: str, *, sound: bool) -> None:
        for way in list(self._ways):
            try:
                with self._start(way, message, "Glass" if sound else "") as process:
                    try:
                        if process.wait(NOTIFICATION_LIMIT_S) == 0:
                            return
                    finally:
                        process.kill()
            except subprocess.TimeoutExpired:
                self._ways.remove(way)  # or it would delay the polls again and again
            except Exception as problem:  # noqa: BLE001 - pync raises no narrower one
                logger.debug("%s did not work: %s", way, type(problem).__name__)
        if not self._said:
            logger.warning("this machine shows no notifications; README.md says what may help")
        self._said = True

    @staticmethod
    def _start(way: str, message: str, sound: str) -> subprocess.Popen[bytes]:
        if way == "pync":
            # Imported only here: where it cannot work it raises, and it always starts `which`.
            notifier = importlib.import_module("pync").Notifier
            options = {"title": TITLE, "group": "i3charge", **({"sound": sound} if sound else {})}
            process: subprocess.Popen[bytes] = notifier.notify(message, **options)
            return process
        script = "display notification (item 1 of argv) with title (item 2 of argv)"
        script += " sound name (item 3 of argv)" if sound else ""
        apple = ["-e", "on run argv", "-e", script, "-e", "end run", message, TITLE, sound]
        quiet = subprocess.DEVNULL
        command = [way, *(apple if way == "osascript" else [TITLE, message])]
        return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


class Phone:
    """The addresses that hear how a charge ends, and the requests that they have yet to take."""

    def __init__(self, settings: Settings, http: Http) -> None:
        self._http = http
        urls = {name: settings.url(name, secure=False) for name in ("WEBHOOK_URL", "NTFY_URL")}
        self._urls = {name: url for name, url in urls.items() if url}
        self._problems: dict[str, str] = {}  # by name, the last: said once while it lasts
        self.waiting: list[tuple[str, str, dict[str, Any]]] = []  # name, message, request

    def tell(self, kind: Kind, message: str, reading: Reading | None) -> None:
        fields = {
            "event": kind,
            "title": TITLE,
            "message": message,
            "charge": reading and reading.charge,
            "status": reading and reading.status,
            "time": local_time().isoformat(timespec="seconds"),
        }
        # https://docs.ntfy.sh/publish/
        tag = {"full": "battery", "stopped": "warning"}.get(kind, "rotating_light")
        headers = {"Title": TITLE, "Tags": tag, "Priority": "high"}
        for name in self._urls:
            ntfy = {"data": message.encode(), "headers": headers}
            self.waiting.append((name, message, ntfy if name == "NTFY_URL" else {"json": fields}))

    def deliver(self) -> None:
        """Post what waits, in order; after a failure the rest is kept for the next time."""
        failed: dict[str, str] = {}
        for item in list(self.waiting):
            name, _, request = item
            if name in failed:
                continue
            request = {"limit_s": NOTIFICATION_LIMIT_S, **request}
            try:
                answer = self._http.send("a notification", "POST", self._urls[name], **request)
                if not 200 <= answer.status < 300:
                    raise answer.failure()
                self.waiting.remove(item)
            except TryAgain as problem:
                failed[name] = str(problem)
                if failed[name] != self._problems.get(name):
                    logger.error("%s; it will be tried again", problem)
        self._problems = failed

    def give_up(self) -> None:
        for name, message, _ in self.waiting:
            host = urlsplit(self._urls[name]).hostname
            logger.error("%s has not been told: %s", host, message)


# --- The loop -------------------------------------------------------------------------------


class Stopwatch:
    """Counts seconds by the clock that has moved more.

    The one stands still while the computer sleeps, and the other can be set back.
    """

    def __init__(self) -> None:
        self._began_s = [time.monotonic(), time.time()]

    def seconds(self) -> float:
        clocks_s = (time.monotonic(), time.time())
        return max(now_s - began_s for now_s, began_s in zip(clocks_s, self._began_s))

    def begin_later(self, by_s: float) -> None:
        self._began_s = [began_s + by_s for began_s in self._began_s]


def fault(problem: Exception) -> str:
    """Of our own: its text and traceback stay untold, for they could hold a secret."""
    frame, line_number = list(traceback.walk_tb(problem.__traceback__))[-1]
    place = f"{Path(frame.f_code.co_filename).name}, line {line_number}"
    return f"a fault in i3charge itself: {type(problem).__name__} in {place}; please report it"


def run(
    door: Door,
    charge_log: ChargeLog,
    desktop: Desktop,
    phone: Phone,
    *,
    once: bool = False,
    until_full: bool = False,
) -> int:
    """Poll until something ends it; returns the exit status."""
    watch = ChargeWatch()
    reading: Reading | None = None
    failures = 0
    since_due = Stopwatch()  # since the poll was due

    def tell(kind: Kind, message: str) -> None:
        desktop.show(message, sound=kind in ("full", "stopped"))
        if kind != "step":
            phone.tell(kind, message, reading)

    while True:
        exit_status = 1 if once else None
        try:
            reading = door.poll()
        except SignInFailed as problem:
            exit_status = 1
            logger.error("%s", problem)
            tell("error", str(problem))
        except Exception as problem:  # noqa: BLE001 - even a fault of ours may pass
            if not isinstance(problem, TryAgain):
                problem = TryAgain(fault(problem))
            failures += problem.wait_s is None
            since_due, wait_s = Stopwatch(), retry_s(failures, problem, door.interval_s)
            if failures == 1 and reading and problem.wait_s is None and not problem.least_s:
                # Where the end of a charge was to be seen, half an hour is too long to wait.
                soon_s = next_poll_s(reading, local_time(), door.interval_s, door.gap_s)
                wait_s = min(wait_s, soon_s)
            if str(problem):
                next_try = "" if once else f"; next try in {duration(wait_s)}"
                logger.error("%s%s", problem, next_try)
            if problem.news:
                logger.warning("%s", problem.news)
                tell("error", problem.news)
        else:
            failures = 0
            now = local_time()
            charge_log.write(reading, now)
            kind = watch.news(reading)
            if kind:
                tell(kind, announcement(kind, reading, now))
            wait_s = next_tick_s(since_due.seconds(), door.interval_s)
            wait_s = min(wait_s, next_poll_s(reading, now, door.interval_s, door.gap_s))
            if once or (until_full and reading.status == "full"):
                exit_status = 0 if charge_log.works else 1
        phone.deliver()
        if exit_status is not None:
            phone.give_up()
            return exit_status
        while (left_s := wait_s - since_due.seconds()) > 0:
            time.sleep(min(left_s, 60))
            if left_s > 60:
                phone.deliver()
        since_due.begin_later(wait_s)


# --- The command line -----------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Log the charge of a BMW i3, and say when it rises and when it is full.",
        epilog="examples:\n"
        "  python i3charge.py --demo                a simulated charge, without an account\n"
        "  python i3charge.py | tee -a charge.log   log your own car, see .env.example\n"
        "  python i3charge.py --once --json         one reading, for another program",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--once", action="store_true", help="take one reading, then end")
    parser.add_argument("--json", action="store_true", help="log one JSON object a line")
    parser.add_argument("--demo", action="store_true", help="log a simulated i3 until it is full")
    parser.add_argument("--env-file", type=Path, metavar="PATH", help="read the settings from PATH")
    asked = "show what is asked and answered"
    parser.add_argument("-v", "--verbose", action="store_true", help=asked)
    parser.add_argument("--version", action="version", version=f"i3charge {__version__}")
    return parser.parse_args()


def start(arguments: argparse.Namespace, settings: Settings) -> int:
    http = Http()
    once, cardata = arguments.once, settings.variables.get("CARDATA_CLIENT_ID")
    door = CarData(settings, http, attended=not once) if cardata else Portal(settings, http)
    phone = Phone(settings, http)
    settings.check()
    charge_log = ChargeLog(as_json=arguments.json)
    try:
        return run(door, charge_log, Desktop(), phone, once=once, until_full=arguments.demo)
    finally:
        charge_log.close()


def main() -> int:
    """Run the command line; returns the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.raiseExceptions = False  # a log that cannot be written is no reason to stop
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    try:
        arguments = parse_arguments()
        logger.setLevel(logging.DEBUG if arguments.verbose else logging.INFO)
        path = arguments.env_file or Path(__file__).resolve().with_name(".env")
        variables = load_variables(path, required=bool(arguments.env_file))
        if not arguments.demo:
            return start(arguments, Settings(variables, path.parent))
        with simulated_bmw() as simulated:
            told = {name: variables.get(name, "") for name in ("WEBHOOK_URL", "NTFY_URL")}
            return start(arguments, Settings({**simulated, **told}))
    except SettingsError as error:
        for line in error.args:
            logger.error("%s", line)
        return 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as problem:  # noqa: BLE001 - no traceback, whatever it is
        logger.critical("%s", fault(problem))
        return 1


# --- The demo -------------------------------------------------------------------------------


@contextmanager
def simulated_bmw() -> Iterator[dict[str, str]]:
    """A BMW on this computer whose i3 charges from 61 % to full; yields the settings for it."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    charges = iter([61 + 1.5 * n for n in range(26)])
    interval_ms = 570

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """The login."""
            form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            fields = f"state={form['state']}&access_token=demo&token_type=Bearer"
            self.send_response(302)
            self.send_header("Location", f"{form['redirect_uri']}#{fields}")
            self.end_headers()

        def do_GET(self) -> None:
            """The car's status."""
            charge = next(charges, 100.0)
            car = {
                "chargingLevelHv": str(charge),
                "chargingHVStatus": "CHARGING" if charge < 100 else "FINISHED_FULLY_CHARGED",
                "connectorStatus": "CONNECTED",
                "chargingTimeRemaining": f"{(100 - charge) / 1.5 * interval_ms / 60_000:.3f}",
                "beRemainingRangeElectricKm": f"{charge * 1.6:.1f}",
                "updateTime": f"{datetime.now(timezone.utc):%d.%m.%Y %H:%M:%S} UTC",
            }
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"attributesMap": car}).encode())

        def log_message(self, *_: object) -> None:
            """Nothing: the demo's log is the owner's."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        yield {
            **dict.fromkeys(("USERNAME", "PASSWORD", "AUTH_CLIENT_ID"), "demo"),
            **dict.fromkeys(("AUTH_BASE_URL", "CONNECTED_DRIVE_BASE_URL"), address),
            "VEHICLE_IDENTIFICATION_NUMBER": "WBY00000000000000",
            "LOG_INTERVAL": str(interval_ms),
        }


if __name__ == "__main__":
    sys.exit(main())
