#!/usr/bin/env python3
"""Log the charge of a BMW i3, and tell its owner when the charging station can be freed.

A reading at every `LOG_INTERVAL`: one line on stdout, everything else on stderr. A
notification at every 5 % that the charge has risen, and when charging has ended, then on the
phone too. Settings come from `.env` beside this file (see `.env.example`) and from the
environment; a sign-in at BMW CarData is kept in `.cardata.json` beside the settings file.
"""

from __future__ import annotations

import os
import signal
import warnings

if __name__ == "__main__":
    # The imports take long enough for a Ctrl-C to meet them, and urllib3 warns of Apple's TLS.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    warnings.simplefilter("ignore")

import argparse
import base64
import email.utils
import hashlib
import importlib
import io
import json
import logging
import math
import re
import secrets
import shlex
import stat
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Literal, NamedTuple, Protocol
from urllib.parse import parse_qsl, urlsplit

try:
    import requests
    import urllib3
    from dotenv.parser import parse_stream
except ImportError as missing:
    sys.exit(f"i3charge: this Python has no {missing.name}; README.md says how to install it")

if TYPE_CHECKING:
    import subprocess  # not needed before the first notification

__version__ = "1.0.0"

STEP_PERCENT = 5
A_DAY_MINUTES = 24 * 60
STALE_REPORT = timedelta(minutes=5)
CONNECT_AND_READ_TIMEOUT_S = (10, 30)
POLL_LIMIT_S = 55  # for all the requests of one poll together, however slowly they trickle in
NOTIFICATION_LIMIT_S = 10  # for each program that shows one and each address that is told
REDELIVERY_S = 60  # between two tries to deliver, where the next poll is later
LONGEST_BACKOFF_S = 300
LONGEST_RETRY_AFTER_S = 3600
BODY_LIMIT_BYTES = 1 << 20  # the recorded vehicle statuses have some 3,500
TITLE = "BMW i3"

logger = logging.getLogger("i3charge")


class SettingsError(Exception):
    """The settings cannot be used. Each argument is a line for the owner."""


class TryAgain(Exception):
    """It did not work this time: go on, after at least `retry_after_s` seconds."""

    def __init__(self, why: str, retry_after_s: float = 0) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class NotSent(TryAgain):
    """The request has not left this computer, and BMW has not counted it."""


class NotYet(Exception):
    """Nothing has failed, and no reading is due for `wait_s` seconds; `news` is for the owner."""

    def __init__(self, wait_s: float, news: str = "") -> None:
        super().__init__(news)
        self.wait_s = wait_s
        self.news = news


class SignInFailed(Exception):
    """Only the owner can mend the sign-in, and asking again could lock the account: stop."""


# --- The settings ---------------------------------------------------------------------------


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
        if os.name == "posix" and stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
            mend = shlex.join(["chmod", "600", str(path)])
            logger.warning("other users of this computer can read the settings; mend it: %s", mend)
    except FileNotFoundError:
        if required:
            raise SettingsError(f"--env-file: there is no file {path}") from None
        return dict(os.environ)
    except UnicodeDecodeError:
        raise SettingsError(f"{path} should be UTF-8 text") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
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

    def __init__(
        self, variables: Mapping[str, str], folder: Path = Path(), *, attended: bool = True
    ) -> None:
        self._variables = variables
        self.folder = folder  # of the settings file
        self.attended = attended  # by an owner who can be asked to sign in
        self.problems: list[str] = []

    def text(self, name: str, default: str = "") -> str:
        value = self._variables.get(name) or default
        if not value:
            self.problems.append(f"{name} is missing or empty")
        return value

    def url(self, name: str, default: str = "", *, secure: bool = True) -> str:
        """An address; a `secure` one, that secrets are sent to, is https or on this computer."""
        value = self._variables.get(name) or default
        with suppress(ValueError):
            parts = urlsplit(value)
            plain = parts.scheme == "http" and (not secure or is_loopback(value))
            # No backslash: requests and urlsplit would see different hosts there.
            sound = parts.hostname and parts.port != 0 and re.fullmatch(r"[!-\[\]-~]+", value)
            if not value or (sound and (plain or parts.scheme == "https")):
                return value
        begins = "https://" if secure else "http:// or https://"
        self.problems.append(f"{name} should be an address that begins with {begins}")
        return "https://invalid/"

    def vin(self) -> str:
        name = "VEHICLE_IDENTIFICATION_NUMBER"
        value = self.text(name).upper()
        if value and not re.fullmatch(r"[A-HJ-NPR-Z0-9]{17}", value):
            self.problems.append(f"{name} should be 17 letters and digits, none of them I, O or Q")
        return value

    def interval_s(self, default_ms: int) -> float:
        """`LOG_INTERVAL`, in seconds."""
        value = self.text("LOG_INTERVAL", str(default_ms))
        if re.fullmatch(r"0*[1-9][0-9]{0,7}", value):
            return int(value) / 1000
        should = "should be a whole number of milliseconds from 1 to 99999999, 60000 for a minute"
        self.problems.append(f"LOG_INTERVAL {should}")
        return default_ms / 1000

    def check(self) -> None:
        if any("missing" in problem for problem in self.problems):
            self.problems.append(
                "copy .env.example to .env and fill it in (with CARDATA_CLIENT_ID, the door that"
                " BMW has open today, no password is needed); --demo needs no account"
            )
        if self.problems:
            raise SettingsError(*self.problems)


# --- A reading ------------------------------------------------------------------------------

Status = Literal["charging", "full", "waiting", "error", "plugged in", "unplugged", "unknown"]


class Reading(NamedTuple):
    """What the car has said, in the owner's words; None where it has not."""

    charge: float  # percent, 0 to 100, as the car's own display shows it
    status: Status
    range: float | None = None  # in range_unit
    range_unit: str | None = None  # "km" or "mi"
    minutes_to_full: float | None = None  # as BMW said, and only while charging
    reported: datetime | None = None  # when the car said its charge
    minutes_from: datetime | None = None  # when BMW said the minutes, if not then

    @property
    def percent(self) -> str:
        """Rounded down: 99.6 % is not full."""
        return f"{int(self.charge)}%"

    def seconds_to_full(self, now: datetime) -> float | None:
        """Below zero when it should have been full before `now`."""
        if self.minutes_to_full is None:
            return None
        # BMW repeats old readings: the minutes began when it first said them.
        began = min(self.minutes_from or self.reported or now, now)
        full_at = began + timedelta(minutes=self.minutes_to_full)
        return (full_at - now).total_seconds()

    def full_about(self, now: datetime) -> str:
        """In words; "" where that is not known, or has passed."""
        seconds = self.seconds_to_full(now)
        if seconds is None or seconds < -60:
            return ""
        return f"full about {(now + timedelta(seconds=seconds)).astimezone():%H:%M}"


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


# --- HTTP -----------------------------------------------------------------------------------


class Answer(NamedTuple):
    what: str  # it answers
    host: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The JSON object in the body.

        Raises:
            TryAgain: there is something else.
        """
        # RecursionError: nested too deeply. ValueError: no JSON, no UTF-8, too long a number.
        with suppress(ValueError, RecursionError):
            found = json.loads(self.body)
            if isinstance(found, dict):
                return found
        raise self.failure()

    def field(self, name: str) -> str:
        """A text in the JSON object, as an error's code; "" where there is none."""
        with suppress(TryAgain):
            return word(self.json().get(name))
        return ""

    def failure(self) -> TryAgain:
        """Why this is not the answer that was hoped for."""
        if self.status == 200:
            why = "sent something unexpected"
        elif 300 <= self.status < 400:
            why = "sent a redirect, which is not followed,"
        elif self.status == 429:
            why = "wants fewer requests"
        elif self.status >= 500:
            why = "is out of order"
        else:
            why = "declined"
        return TryAgain(
            f"{self.host} {why} when asked for {self.what} (HTTP {self.status})",
            self._retry_after_s(),
        )

    def _retry_after_s(self) -> float:
        value = self.headers.get("Retry-After", "")
        with suppress(ValueError, TypeError, IndexError, OverflowError):
            if re.fullmatch(r"[0-9]+", value):
                seconds = float(value)
            else:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            return max(0, min(seconds, LONGEST_RETRY_AFTER_S))
        return 0


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        # Even with allow_redirects=False requests parses the Location, fails where that is
        # malformed, and reads the whole body. Here no answer counts as a redirect.
        return None


class Bearer(requests.auth.AuthBase):
    """An auth object, for `~/.netrc` would replace an Authorization header."""

    def __init__(self, access_token: str = "") -> None:
        self._access_token = access_token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._access_token:
            request.headers["Authorization"] = f"Bearer {self._access_token}"
        return request


def is_token(value: object) -> bool:
    """Whether it can stand in an Authorization header."""
    return bool(re.fullmatch(r"[\x21-\x7e]+", word(value)))


class Http:
    """Sends one request at a time, over one kept connection per host."""

    def __init__(self) -> None:
        self._session = _Session()
        self._session.headers["User-Agent"] = f"i3charge/{__version__}"
        # Compressed, a small body could become a huge one in memory.
        self._session.headers["Accept-Encoding"] = "identity"

    def send(
        self, what: str, method: str, url: str, *, read_body: bool = True, **options: Any
    ) -> Answer:
        """Send a request for `what`, with `options` for `requests.request`.

        Raises:
            TryAgain: there is no answer, or far too much of it. The words are ours, for those
                of requests hold the address.
        """
        host = urlsplit(url).hostname or ""
        proxies = {"no_proxy": "*"} if is_loopback(url) else None  # none leads back to here
        started_s = time.monotonic()
        try:
            options = {"timeout": CONNECT_AND_READ_TIMEOUT_S, "proxies": proxies, **options}
            with self._session.request(method, url, stream=True, **options) as response:
                body = response.raw.read(BODY_LIMIT_BYTES + 1) if read_body else b""
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
            unsent = isinstance(error, requests.ConnectTimeout)
            why = f"{host} did not answer in time when asked for {what}"
            raise (NotSent if unsent else TryAgain)(why) from None
        except requests.exceptions.SSLError:
            why = f"the certificate of {host} is not valid: check this computer's date and network"
            raise NotSent(why) from None
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            reason = getattr(next(iter(error.args), None), "reason", None)
            unsent = isinstance(reason, urllib3.exceptions.NewConnectionError)
            why = f"no connection to {host} for {what}, or it broke off"
            raise (NotSent if unsent else TryAgain)(why) from None
        if len(body) > BODY_LIMIT_BYTES:
            raise TryAgain(f"{host} sent far too much when asked for {what}")
        logger.debug(
            "asked %s for %s: HTTP %d, %d bytes, %.2f s",
            *(host, what, response.status_code, len(body), time.monotonic() - started_s),
        )
        return Answer(what, host, response.status_code, response.headers, body)


@contextmanager
def time_limit(seconds: float, why: str) -> Iterator[None]:
    """Raise TryAgain(`why`) in the block when it takes longer than `seconds`.

    The time-outs of a socket begin anew with every byte; this one does not. It comes again every
    second, in case that what it raises is lost, as in a finalizer.
    """

    def expire(*_: object) -> None:
        raise TryAgain(why)

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# --- The door: where readings come from -----------------------------------------------------


class Door(Protocol):
    interval_s: float
    gap_s: float  # between two polls, at least, when one is brought forward

    def read(self) -> Reading:
        """Ask BMW once.

        Raises:
            TryAgain: there is no reading now.
            NotYet: it is not the time for one.
            SignInFailed: there will be none with these settings.
        """


class Portal:
    """The API of the ConnectedDrive web portal (2017 to 2021), opened with the password."""

    # https://datatracker.ietf.org/doc/html/rfc6749#section-4.2.2.1: no fault of the owner's.
    PASSING_ERRORS = ("server_error", "temporarily_unavailable")

    def __init__(self, settings: Settings, http: Http) -> None:
        self._http = http
        self._form = {
            "username": settings.text("USERNAME"),
            "password": settings.text("PASSWORD"),
            "client_id": settings.text("AUTH_CLIENT_ID"),
            "redirect_uri": settings.text(
                "AUTH_REDIRECT_URI",
                "https://www.bmw-connecteddrive.com/app/default/static/external-dispatch.html",
            ),
            "response_type": "token",
            "scope": "authenticate_user fupo",
        }
        vin = settings.vin()
        base_url = settings.url(
            "CONNECTED_DRIVE_BASE_URL", "https://www.bmw-connecteddrive.nl/api/"
        )
        self._status_url = f"{base_url.rstrip('/')}/vehicle/dynamic/v1/{vin}"
        self._auth_url = settings.url(
            "AUTH_BASE_URL", "https://customer.bmwgroup.com/gcdm/oauth/authenticate"
        )
        self.interval_s = settings.interval_s(60_000)
        if self.interval_s < 10 and not is_loopback(base_url):
            settings.problems.append(
                "LOG_INTERVAL should be 10000 or more: it is in milliseconds, and BMW blocks"
                " accounts that ask many times a second"
            )
        self.gap_s = self.interval_s
        self._access_token = ""
        self._polls_refused = 0  # in a row, with 401
        self._logins_refused = 0  # in a row
        self._login_has_worked = False

    def read(self) -> Reading:
        if not self._access_token:
            self._sign_in()
        answer = self._ask()
        # Where a new token did not help, the next two polls do without another login.
        if answer.status == 401 and self._polls_refused % 3 == 0:
            self._sign_in()
            answer = self._ask()
        if answer.status == 401:
            self._polls_refused += 1
            raise TryAgain("BMW does not accept the access token that it gave out itself")
        if answer.status in (403, 404):
            raise TryAgain(
                f"BMW does not show this car (HTTP {answer.status}):"
                " check VEHICLE_IDENTIFICATION_NUMBER"
            )
        reading = self._reading(answer)
        self._polls_refused = 0
        return reading

    def _ask(self) -> Answer:
        return self._http.send(
            "the car's status", "GET", self._status_url, auth=Bearer(self._access_token)
        )

    def _sign_in(self) -> None:
        """OAuth 2.0 implicit grant (RFC 6749, section 4.2): the answer is a redirect."""
        state = secrets.token_urlsafe(16)
        answer = self._http.send(
            "the login",
            "POST",
            self._auth_url,
            data={**self._form, "state": state},
            auth=Bearer(),  # none, not even that of ~/.netrc
        )
        if answer.status in (400, 401, 403):
            raise self._refused(answer.field("error") or f"HTTP {answer.status}")
        if answer.status not in (302, 303):
            raise answer.failure()
        fields = self._redirect_fields(answer)
        if fields is None or fields.get("state", state) != state:
            raise TryAgain("BMW answered the login with a redirect to somewhere else")
        if "error" in fields:
            raise self._refused(fields["error"])
        if not is_token(fields.get("access_token")):
            raise TryAgain("BMW answered the login with a redirect that holds no access token")
        self._access_token = fields["access_token"]
        self._login_has_worked, self._logins_refused = True, 0

    def _redirect_fields(self, answer: Answer) -> dict[str, str] | None:
        """The fields in query and fragment; None if it does not lead to our redirect URI."""
        with suppress(ValueError):
            target = urlsplit(answer.headers.get("Location", ""))
            if target[:3] == urlsplit(self._form["redirect_uri"])[:3]:
                # A plus sign is one: no token holds a blank.
                return dict(parse_qsl(f"{target.query}&{target.fragment}".replace("+", "%2B")))
        return None

    def _refused(self, error: str) -> TryAgain | SignInFailed:
        if error in self.PASSING_ERRORS:
            return TryAgain("BMW's login is out of order")
        # BMW's gateway has refused good logins for minutes.
        self._logins_refused += 1
        said = printable(error, [self._form["username"], self._form["password"]])
        if self._login_has_worked and self._logins_refused < 3:
            return TryAgain(f"BMW refuses the login that has worked before ({said})")
        return SignInFailed(
            f"BMW refuses the login ({said}): check USERNAME, PASSWORD and AUTH_CLIENT_ID"
        )

    @staticmethod
    def _reading(answer: Answer) -> Reading:
        """`chargingLevelHv` is what the car displays; `soc_hv_percent` is less near the top."""
        if answer.status != 200:
            raise answer.failure()
        car = mapping(answer.json().get("attributesMap"))
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
        remaining = car.get("chargingTimeRemaining") if status == "charging" else None
        # "27.02.2018 19:59:03 UTC"
        day_first = r"(\d\d)\.(\d\d)\.(\d{4}) (\d\d:\d\d:\d\d) UTC"
        reported = re.fullmatch(day_first, word(car.get("updateTime")), re.ASCII)
        return Reading(
            charge=charge,
            status=status,
            range=distance,
            range_unit=unit,
            minutes_to_full=number(remaining, most=A_DAY_MINUTES),
            reported=utc(reported.expand(r"\3-\2-\1T\4")) if reported else None,
        )


class CarDataFile:
    """What CarData's door has to remember, on disk with mode 0600 and replaced as a whole."""

    def __init__(self, path: Path, client_id: str) -> None:
        self._path = path
        self.client_id = client_id
        self.access_token = ""
        self.expires_s = 0.0  # time.time() when the access token does
        self.refresh_token = ""
        self.container = ""  # its id
        self.requests_s: list[float] = []  # time.time() of each in the last 24 hours
        try:
            kept = mapping(json.loads(path.read_bytes()))
            for name, value in self._fields().items():
                if type(kept[name]) is not type(value):
                    raise ValueError(name)
            kept["requests_s"] = list(map(float, kept["requests_s"]))
            if kept["client_id"] == client_id:
                vars(self).update((name, kept[name]) for name in self._fields())
        except FileNotFoundError:
            pass
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            aside = path.with_name(path.name + ".damaged")
            with suppress(OSError):
                path.replace(aside)
            logger.error("%s cannot be used and is put aside as %s", path.name, aside.name)

    def _fields(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def save(self) -> None:
        try:
            handle, name = tempfile.mkstemp(prefix=self._path.name, dir=self._path.parent)
            try:
                with open(handle, "w") as file:
                    json.dump(self._fields(), file)
                    file.flush()
                    os.fsync(handle)
                os.replace(name, self._path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            logger.error("%s cannot be written (%s)", self._path, error.strerror)


class DeviceSignIn:
    """Signs in at CarData with the OAuth 2.0 device flow (RFC 8628) and PKCE (RFC 7636)."""

    def __init__(self, settings: Settings, http: Http, kept: CarDataFile) -> None:
        self._auth_url = settings.url(
            "CARDATA_AUTH_BASE_URL", "https://customer.bmwgroup.com/gcdm/oauth/"
        )
        self._attended = settings.attended
        self._http = http
        self._kept = kept
        self._device_code = ""  # of the sign-in that waits for the owner
        self._interval_s = 0.0
        self._verifier = ""
        self._news = ""  # for the owner, with the next NotYet

    def _oauth(self, what: str, path: str, **form: str) -> Answer:
        return self._http.send(
            what,
            "POST",
            f"{self._auth_url.rstrip('/')}/{path}",
            data={"client_id": self._kept.client_id, **form},
            auth=Bearer(),
        )

    def renew(self) -> None:
        """Get an access token: with the refresh token, else from the owner, who is waited for."""
        if self._kept.refresh_token:
            refresh = {"grant_type": "refresh_token", "refresh_token": self._kept.refresh_token}
            answer = self._oauth("a new access token", "token", **refresh)
            # Without an error of OAuth's own it was the gateway, and the refresh token is good.
            if answer.status not in (400, 401, 403) or not answer.field("error"):
                self._keep_tokens(answer)
                return
            self._kept.access_token = self._kept.refresh_token = ""
            self._kept.expires_s = 0.0
            self._kept.save()
            self._news = "BMW wants a new sign-in: the terminal shows how"
        if not self._attended:
            advice = "CarData needs a sign-in: run python i3charge.py once by hand, without --once"
            raise SignInFailed(advice) if self._news else TryAgain(advice)
        if not self._device_code:
            self._ask_owner()
        elif self._owner_has_confirmed():
            return
        news, self._news = self._news, ""
        raise NotYet(self._interval_s, news)

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
            logger.error(
                "BMW does not let this client id in yet: subscribe it to the CarData API"
                " in the My BMW portal; trying again in a minute"
            )
            raise NotYet(60)
        if answer.status in (400, 401):
            raise self._refused(answer)
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
            error = answer.field("error")
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
            raise self._refused(answer)
        return False

    def _refused(self, answer: Answer) -> SignInFailed:
        error = printable(answer.field("error"), [self._kept.client_id])
        if error == "access_denied":
            return SignInFailed("the sign-in at BMW was declined: start again to get a new code")
        return SignInFailed(
            f"BMW refuses the sign-in ({error}): check CARDATA_CLIENT_ID, and in the My BMW"
            " portal that it is subscribed to the CarData API"
        )

    def _keep_tokens(self, answer: Answer) -> None:
        """The old refresh token is dead: the new one is on disk before it is used."""
        if answer.status != 200:
            raise answer.failure()
        said = answer.json()
        refresh_token = said.get("refresh_token", self._kept.refresh_token)
        if not (is_token(said.get("access_token")) and is_token(refresh_token)):
            raise TryAgain("BMW's answer holds no tokens")
        self._kept.access_token, self._kept.refresh_token = said["access_token"], refresh_token
        self._kept.expires_s = time.time() + (number(said.get("expires_in"), most=1e6) or 3599)
        self._kept.save()


class UnknownContainer(TryAgain):
    """CarData does not know our container; where it says so in so many words, it is named."""

    container = ""


class CarData:
    """BMW CarData, the official API for one's own car: 50 requests in any 24 hours."""

    REQUESTS_FOR_READINGS = 48
    REQUESTS = 50  # two are left to find or make the container
    DAY_S = 24 * 60 * 60
    RENEW_BEFORE_S = 60

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

    def __init__(self, settings: Settings, http: Http) -> None:
        self._http = http
        client_id = settings.text("CARDATA_CLIENT_ID")
        self._vin = settings.vin()
        self._api_url = settings.url("CARDATA_BASE_URL", "https://api-cardata.bmwgroup.com/")
        self.interval_s = settings.interval_s(1_800_000)
        self.gap_s = 0.0 if is_loopback(self._api_url) else 600.0
        if self.interval_s < self.gap_s:
            logger.warning(
                "LOG_INTERVAL is raised to 600000 (10 minutes):"
                " CarData allows 50 requests in 24 hours"
            )
            self.interval_s = self.gap_s
        self._kept = CarDataFile(settings.folder / ".cardata.json", client_id)
        self._sign_in = DeviceSignIn(settings, http, self._kept)
        self._quota_said = False

    def read(self) -> Reading:
        if time.time() > self._kept.expires_s - self.RENEW_BEFORE_S:
            self._sign_in.renew()
        if not self._kept.container:
            self._find_container()
        try:
            answer = self._telematic_data()
        except UnknownContainer as unknown:
            self._find_container(refused=unknown.container)
            answer = self._telematic_data()
        return self._reading(answer)

    def _telematic_data(self) -> Answer:
        return self._send(
            "the car's status",
            "GET",
            f"customers/vehicles/{self._vin}/telematicData",
            params={"containerId": self._kept.container},
            most=self.REQUESTS_FOR_READINGS,
        )

    def _find_container(self, refused: str = "") -> None:
        path = "customers/containers"
        listed = self._send("its containers", "GET", path).json().get("containers")
        wanted = ("ACTIVE", self.CONTAINER["name"], self.CONTAINER["purpose"])
        for container in map(mapping, listed if isinstance(listed, list) else []):
            found = tuple(container.get(name) for name in ("state", "name", "purpose"))
            if found == wanted and container.get("containerId") != refused:
                break
        else:
            container = self._send("a container", "POST", path, json=self.CONTAINER).json()
        if not is_token(container.get("containerId")):
            raise TryAgain("CarData named no container")
        self._kept.container = container["containerId"]
        self._kept.save()

    def _send(
        self, what: str, method: str, path: str, *, most: int = REQUESTS, **options: Any
    ) -> Answer:
        """Send a request to the API, with a new access token if BMW wants one."""
        url = f"{self._api_url.rstrip('/')}/{path}"
        headers = {"x-version": "v1", "Accept": "application/json"}

        def send_once() -> Answer:
            self._spend_request(most)
            auth = Bearer(self._kept.access_token)
            try:
                return self._http.send(what, method, url, headers=headers, auth=auth, **options)
            except NotSent:
                self._kept.requests_s.pop()
                self._kept.save()
                raise

        answer = send_once()
        if answer.status == 401:
            self._sign_in.renew()
            answer = send_once()
        if not 200 <= answer.status < 300:
            raise self._failure(answer)
        return answer

    def _spend_request(self, most: int) -> None:
        now_s = time.time()
        # Those of the future are from before the clock was set back.
        spent = sorted(s for s in self._kept.requests_s if abs(now_s - s) < self.DAY_S)
        if len(spent) >= most:
            wait_s = min(spent[-most] + self.DAY_S - now_s, self.DAY_S)
            if not self._quota_said:
                due = datetime.fromtimestamp(now_s + wait_s)
                logger.warning(
                    "CarData's requests for 24 hours are spent; the next reading is due at %s",
                    f"{due:%Y-%m-%d %H:%M}",
                )
            self._quota_said = True
            # Looked at again every few minutes, for the clock of a sleeping computer stands.
            raise NotYet(min(wait_s, 600))
        self._quota_said = False
        self._kept.requests_s = [*spent, now_s]
        self._kept.save()

    def _failure(self, answer: Answer) -> TryAgain:
        code = answer.field("exveErrorId")
        if answer.status == 429 or code == "CU-429":
            return TryAgain("BMW says that CarData's 50 requests for 24 hours are used up", 3600)
        failure = answer.failure()
        why = str(failure)
        if code:
            hidden = (self._vin, *(word(value) for value in vars(self._kept).values()))
            text = printable(answer.field("exveErrorMsg"), hidden)
            why = f"CarData says: {text} ({printable(code, hidden)})"
        if code in ("CU-104", "CU-120"):
            why += "; check VEHICLE_IDENTIFICATION_NUMBER"
        if code in ("CU-105", "CU-122") or answer.status == 404:
            unknown = UnknownContainer(why, failure.retry_after_s)
            unknown.container = self._kept.container if code else ""
            return unknown
        return TryAgain(why, failure.retry_after_s)

    @classmethod
    def _reading(cls, answer: Answer) -> Reading:
        """The car sends its charge when charging starts and ends; between, BMW predicts it."""
        data = mapping(answer.json().get("telematicData"))
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
        name, minutes_to_full = first_number(cls.MINUTES, most=A_DAY_MINUTES)
        _, range_km = first_number(cls.RANGE_KM, most=1000)
        return Reading(
            charge=charge,
            status=status_of(charge, words, plug),
            range=range_km,
            range_unit=None if range_km is None else "km",
            minutes_to_full=minutes_to_full if charging else None,
            reported=times.get(level),
            minutes_from=times.get(name),
        )


# --- What is worth telling ------------------------------------------------------------------

Kind = Literal["step", "full", "stopped", "error"]


class News(NamedTuple):
    kind: Kind
    message: str
    reading: Reading | None
    time: datetime


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


# --- How it is told -------------------------------------------------------------------------


def local_time() -> datetime:
    return datetime.fromtimestamp(time.time(), timezone.utc).astimezone()


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
    fields = reading._asdict()
    del fields["minutes_from"]
    fields["reported"] = reading.reported and reading.reported.isoformat()
    return json.dumps({"time": now.isoformat(timespec="seconds"), **fields})


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
        self._works = True

    def write(self, reading: Reading, now: datetime) -> None:
        """Write a line.

        Raises:
            BrokenPipeError: nobody reads the log any more.
        """
        if self._as_json:
            line = json_line(reading, now)
        elif self._terminal:
            title = f"\033]2;i3 {reading.percent} {reading.status}\007"
            line = title + plain_line(reading, now, self._bar(reading))
        else:
            line = plain_line(reading, now)
        try:
            print(line, flush=True)
            self._works = True
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._works:
                logger.error("the log cannot be written (%s); going on without", error.strerror)
            self._works = False

    def _bar(self, reading: Reading) -> str:
        full = int(reading.charge / 5)
        bar = self._blocks[0] * full + self._blocks[1] * (20 - full)
        return f"\033[{COLOURS.get(reading.status, 2)}m{bar}\033[0m" if self._colour else bar

    def close(self) -> None:
        """Take the title back, which would go on saying what is no longer known."""
        if self._terminal:
            with suppress(OSError):
                print("\033]2;\007", end="", flush=True)


class Desktop:
    """Shows notifications on this computer, with the first of several programs that can."""

    def __init__(self) -> None:
        self._ways = [self._pync, self._osascript, self._notify_send]
        self._said = False

    def show(self, message: str, *, sound: bool) -> None:
        import subprocess

        for way in list(self._ways):
            try:
                with way(message, "Glass" if sound else "") as process:
                    try:
                        if process.wait(NOTIFICATION_LIMIT_S) == 0:
                            return
                    finally:
                        process.kill()
            except subprocess.TimeoutExpired:
                self._ways.remove(way)  # or it would delay the polls again and again
            except Exception as problem:  # noqa: BLE001 - pync raises no narrower one
                logger.debug("%s did not work: %s", way.__name__[1:], type(problem).__name__)
        if not self._said:
            logger.warning("this machine shows no notifications; README.md says what may help")
        self._said = True

    def _pync(self, message: str, sound: str) -> subprocess.Popen[bytes]:
        # Imported only here: where it cannot work it raises, and it always starts `which`.
        notifier = importlib.import_module("pync").Notifier
        options = {"sound": sound} if sound else {}
        options.update(title=TITLE, group="i3charge")
        process: subprocess.Popen[bytes] = notifier.notify(message, **options)
        return process

    def _osascript(self, message: str, sound: str) -> subprocess.Popen[bytes]:
        script = "display notification (item 1 of argv) with title (item 2 of argv)"
        script += " sound name (item 3 of argv)" if sound else ""
        lines = ["-e", "on run argv", "-e", script, "-e", "end run"]
        return self._start("osascript", *lines, message, TITLE, sound)

    def _notify_send(self, message: str, sound: str) -> subprocess.Popen[bytes]:
        return self._start("notify-send", TITLE, message)

    @staticmethod
    def _start(*command: str) -> subprocess.Popen[bytes]:
        import subprocess

        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


def webhook_form(news: News) -> dict[str, Any]:
    fields = {
        "event": news.kind,
        "title": TITLE,
        "message": news.message,
        "charge": news.reading and news.reading.charge,
        "status": news.reading and news.reading.status,
        "time": news.time.isoformat(timespec="seconds"),
    }
    return {"json": fields}


def ntfy_form(news: News) -> dict[str, Any]:
    """https://docs.ntfy.sh/publish/"""
    tags = {"full": "battery", "stopped": "warning", "error": "rotating_light"}
    headers = {"Title": TITLE, "Tags": tags[news.kind], "Priority": "high"}
    return {"data": news.message.encode(), "headers": headers}


class Mailbox:
    """An address to tell, and what it has not been told yet."""

    def __init__(self, url: str, form: Callable[[News], dict[str, Any]], http: Http) -> None:
        self._url = url
        self._host = urlsplit(url).hostname
        self._form = form
        self._http = http
        self._problem = ""  # the last one said: once is enough for an address that is down
        self.waiting: deque[News] = deque()

    def deliver(self) -> None:
        """Post what waits, in order; after a failure the rest is kept for the next time."""
        try:
            while self.waiting:
                self._post(self.waiting[0])
                self.waiting.popleft()
                self._problem = ""
        except TryAgain as problem:
            if str(problem) != self._problem:
                logger.error("%s; it will be tried again", problem)
            self._problem = str(problem)

    def give_up(self) -> None:
        for news in self.waiting:
            logger.error("%s has not been told: %s", self._host, news.message)

    def _post(self, news: News) -> None:
        too_late = f"{self._host} did not answer a notification in time"
        with time_limit(NOTIFICATION_LIMIT_S, too_late):
            # A 2xx is enough: it must not be told again for what its body may be.
            answer = self._http.send(
                "a notification", "POST", self._url, read_body=False, **self._form(news)
            )
        if not 200 <= answer.status < 300:
            raise TryAgain(f"{self._host} did not accept a notification (HTTP {answer.status})")


# --- The loop -------------------------------------------------------------------------------


def next_tick_s(now_s: float, first_s: float, interval_s: float) -> float:
    """The first tick after `now_s`: a poll that took long skips those that it missed."""
    return first_s + (math.floor((now_s - first_s) / interval_s + 1e-9) + 1) * interval_s


def next_poll_s(
    now_s: float, polled_s: float, tick_s: float, full_in_s: float | None, gap_s: float
) -> float:
    """The next tick, or the time when the car should be full, or has just become so, before it."""
    if full_in_s is None or full_in_s <= -gap_s:
        return tick_s
    return min(tick_s, max(now_s + full_in_s, polled_s + gap_s))


def backoff_s(failures: int, interval_s: float, retry_after_s: float) -> float:
    """How long to wait after this many failures in a row."""
    longest_s = max(LONGEST_BACKOFF_S, interval_s)
    return max(min(interval_s * 2.0 ** min(failures - 1, 20), longest_s), retry_after_s)


def fault(problem: Exception) -> str:
    """Of our own: its text and traceback stay untold, for they could hold a secret."""
    frame, line_number = list(traceback.walk_tb(problem.__traceback__))[-1]
    place = f"{Path(frame.f_code.co_filename).name}, line {line_number}"
    return f"a fault in i3charge itself: {type(problem).__name__} in {place}; please report it"


def run(
    door: Door,
    charge_log: ChargeLog,
    desktop: Desktop,
    phone: list[Mailbox],
    *,
    once: bool = False,
    until_full: bool = False,
) -> int:
    """Poll until something ends it; returns the exit status."""
    watch = ChargeWatch()
    reading: Reading | None = None
    failures = 0
    first_s = time.monotonic()

    def tell(kind: Kind, message: str) -> None:
        desktop.show(message, sound=kind in ("full", "stopped"))
        if kind != "step":
            for mailbox in phone:
                mailbox.waiting.append(News(kind, message, reading, local_time()))

    def deliver() -> None:
        for mailbox in phone:
            mailbox.deliver()

    while True:
        exit_status = 1 if once else None
        polled_s = time.monotonic()
        try:
            with time_limit(POLL_LIMIT_S, "BMW took too long to answer"):
                reading = door.read()
        except NotYet as wait:
            next_s = time.monotonic() + wait.wait_s
            if wait.news:
                logger.warning("%s", wait.news)
                tell("error", wait.news)
        except SignInFailed as problem:
            exit_status = 1
            logger.error("%s", problem)
            tell("error", str(problem))
        except Exception as problem:  # noqa: BLE001 - even a fault of ours may pass
            failures += 1
            if not isinstance(problem, TryAgain):
                problem = TryAgain(fault(problem))
            now_s = time.monotonic()
            next_s = now_s + backoff_s(failures, door.interval_s, problem.retry_after_s)
            if failures == 1 and reading and not problem.retry_after_s:
                # Where the end of a charge was to be seen, half an hour is too long to wait.
                full_in_s = reading.seconds_to_full(local_time())
                next_s = next_poll_s(now_s, now_s, next_s, full_in_s, door.gap_s)
            wait_s = next_s - now_s
            logger.error("%s%s", problem, "" if once else f"; next try in {duration(wait_s)}")
        else:
            failures = 0
            now = local_time()
            charge_log.write(reading, now)
            kind = watch.news(reading)
            if kind:
                tell(kind, announcement(kind, reading, now))
            now_s = time.monotonic()
            tick_s = next_tick_s(now_s, first_s, door.interval_s)
            full_in_s = reading.seconds_to_full(now)
            next_s = next_poll_s(now_s, polled_s, tick_s, full_in_s, door.gap_s)
            if once or (until_full and reading.status == "full"):
                exit_status = 0
        deliver()
        if exit_status is not None:
            for mailbox in phone:
                mailbox.give_up()
            return exit_status
        while (left_s := next_s - time.monotonic()) > 0:
            time.sleep(min(left_s, REDELIVERY_S))
            if left_s > REDELIVERY_S:
                deliver()


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
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show what is asked and answered"
    )
    parser.add_argument("--version", action="version", version=f"i3charge {__version__}")
    return parser.parse_args()


def start(arguments: argparse.Namespace, variables: Mapping[str, str], env_file: Path) -> int:
    settings = Settings(variables, env_file.parent, attended=not arguments.once)
    http = Http()
    cardata = variables.get("CARDATA_CLIENT_ID")
    door: Door = CarData(settings, http) if cardata else Portal(settings, http)
    addresses = (("WEBHOOK_URL", webhook_form), ("NTFY_URL", ntfy_form))
    phone = [
        Mailbox(url, form, http)
        for name, form in addresses
        if (url := settings.url(name, secure=False))
    ]
    settings.check()
    charge_log = ChargeLog(as_json=arguments.json)
    try:
        return run(
            door, charge_log, Desktop(), phone, once=arguments.once, until_full=arguments.demo
        )
    finally:
        charge_log.close()


def main() -> int:
    """Run the command line; returns the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A closed stream would leave its number to the next connection that is opened.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
    # An interrupt can leave an object half made, whose finalizer fails: no news for the owner.
    sys.unraisablehook = lambda _: None
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
            return start(arguments, variables, path)
        with simulated_bmw() as simulated:
            told = {name: variables.get(name, "") for name in ("WEBHOOK_URL", "NTFY_URL")}
            return start(arguments, {**simulated, **told}, path)
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
    finally:
        # What could not be written would be tried once more, and fail, at the exit.
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# --- The demo -------------------------------------------------------------------------------


@contextmanager
def simulated_bmw() -> Iterator[dict[str, str]]:
    """A BMW on this computer whose i3 charges from 61 % to full; yields the settings for it."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    token = secrets.token_urlsafe()
    charges = iter([61 + 1.5 * n for n in range(26)])
    interval_ms = 570

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """The login."""
            form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            fields = f"state={form['state']}&access_token={token}&token_type=Bearer"
            self.answer(302, "", ("Location", f"{form['redirect_uri']}#{fields}"))

        def do_GET(self) -> None:
            """The car's status."""
            if self.headers["Authorization"] != f"Bearer {token}":
                self.answer(401, "{}")
                return
            charge = next(charges, 100.0)
            car = {
                "chargingLevelHv": str(charge),
                "chargingHVStatus": "CHARGING" if charge < 100 else "FINISHED_FULLY_CHARGED",
                "connectorStatus": "CONNECTED",
                "chargingTimeRemaining": f"{(100 - charge) / 1.5 * interval_ms / 60_000:.3f}",
                "beRemainingRangeElectricKm": f"{charge * 1.6:.1f}",
                "updateTime": f"{datetime.now(timezone.utc):%d.%m.%Y %H:%M:%S} UTC",
            }
            self.answer(200, json.dumps({"attributesMap": car}))

        def answer(self, status: int, body: str, *headers: tuple[str, str]) -> None:
            self.send_response(status)
            for name, value in (*headers, ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Nothing: the demo's log is the owner's."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        yield {
            "USERNAME": "demo",
            "PASSWORD": "demo",
            "AUTH_CLIENT_ID": "demo",
            "AUTH_BASE_URL": address,
            "CONNECTED_DRIVE_BASE_URL": address,
            "VEHICLE_IDENTIFICATION_NUMBER": "WBY00000000000000",
            "LOG_INTERVAL": str(interval_ms),
        }


if __name__ == "__main__":
    sys.exit(main())
