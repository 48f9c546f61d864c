#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = [
#   "requests>=2.28,<3",
#   "python-dotenv>=1.0,<2",
#   "pync>=2.0.3,<3; sys_platform == 'darwin'",
# ]
# ///
"""Log the charge of a BMW i3, and tell its owner when the charging station can be freed.

One line on stdout for each reading, everything else on stderr. Settings come from `.env`
beside this file (see `.env.example`) and from the environment; what has to be remembered is
kept in `.i3charge.json` beside the settings.
"""

from __future__ import annotations

import gc
import signal
import warnings

if __name__ == "__main__":
    gc.disable()  # until it has started, for there is nothing to collect
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of an interrupted import
    warnings.simplefilter("ignore")  # urllib3's, of the TLS library that macOS has

import argparse
import base64
import fcntl
import hashlib
import io
import itertools
import json
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

try:
    import requests
    import urllib3
    from dotenv.parser import parse_stream
except ImportError as missing:
    sys.exit(f"i3charge: this Python has no {missing.name}; README.md says how to install it")

__version__ = "2.0.0"
logger = logging.getLogger("i3charge")


# --- The settings ---------------------------------------------------------------------------
NAMES = """VEHICLE_IDENTIFICATION_NUMBER CARDATA_CLIENT_ID CARDATA_BASE_URL CARDATA_AUTH_BASE_URL
LOG_INTERVAL NOTIFY_AT NTFY_URL WEBHOOK_URL USERNAME PASSWORD AUTH_CLIENT_ID AUTH_BASE_URL
AUTH_REDIRECT_URI CONNECTED_DRIVE_BASE_URL""".split()


class SettingsError(Exception):
    """The settings cannot be used. Each argument is a line for the owner."""


def load_variables(path: Path, *, required: bool) -> tuple[dict[str, str], list[str]]:
    """The environment's variables, overruled by those in the settings file; and its typos."""
    if not (required or path.exists()):
        return dict(os.environ), []
    try:
        bindings = list(parse_stream(io.StringIO(path.read_text(encoding="utf-8-sig"))))
        if path.is_file() and path.stat().st_mode & 0o044:
            logger.warning("other users can read the settings; mend it: chmod 600 '%s'", path)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it should be UTF-8 text"
        raise SettingsError(f"{path} cannot be read: {why}") from None
    should = "should be NAME=value (is a quote missing?)"
    if broken := [f"{path}, line {b.original.line}: {should}" for b in bindings if b.error]:
        raise SettingsError(*broken)
    found = {binding.key: binding.value or "" for binding in bindings if binding.key}
    typos = []
    for name in sorted(found.keys() - set(NAMES)):
        import difflib  # only here, for it is slow to import and seldom needed

        if meant := difflib.get_close_matches(name.upper(), NAMES, 1, 0.86):
            typos.append(f"{name} is not a setting; did you mean {meant[0]}?")
    return {**os.environ, **found}, typos  # for desktops export a USERNAME of their own


def is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


class Settings:
    """Takes single settings out of `variables`, and collects what is wrong with them.

    `check` says it all in one go. No message holds a value, for it could be a mislaid password.
    """

    def __init__(self, variables: Mapping[str, str], problems: Iterable[str] = ()) -> None:
        self.variables = variables
        self.problems = list(problems)

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
        value = (self.variables.get(name) or default).strip()
        with suppress(ValueError):
            parts = urlsplit(value)
            plain = not secure or is_loopback(value)
            if not value or (parts.hostname and parts.scheme in ("https", plain and "http")):
                return value
        begins = "https://" if secure else "http:// or https://"
        self.problems.append(f"{name} should be an address that begins with {begins}")
        return "https://invalid/stand-in"

    def vin(self) -> str:
        should = "17 letters and digits, none of them I, O or Q"
        form = "[A-HJ-NPR-Za-hj-npr-z0-9]{17}"
        return self.text("VEHICLE_IDENTIFICATION_NUMBER", form=form, should=should).upper()

    def interval_s(self, url: str, default_ms: int, least_ms: int, why: str) -> float:
        """`LOG_INTERVAL`, in seconds; raised to the least, but not where BMW is simulated."""
        should = "a whole number of milliseconds from 1 to 99999999, 60000 for a minute"
        form = "0*[1-9][0-9]{0,7}"
        value_ms = int(self.text("LOG_INTERVAL", str(default_ms), form=form, should=should))
        if value_ms < least_ms and not is_loopback(url):
            logger.warning("LOG_INTERVAL is raised to %d: %s", least_ms, why)
            value_ms = least_ms
        return value_ms / 1000

    def check(self, *, hint: str) -> None:
        """Say all that is wrong, and the hint where something is missing."""
        if any("is missing" in problem for problem in self.problems):
            self.problems.append(hint)
        if self.problems:
            raise SettingsError(*self.problems)


# --- A reading ------------------------------------------------------------------------------
A_DAY_S = 24 * 60 * 60

Status = Literal["charging", "full", "waiting", "error", "plugged in", "unplugged", "unknown"]


class Reading(NamedTuple):
    """What the car has said, in the owner's words; None where it has not."""

    charge: float  # percent, 0 to 100, as the car's own display shows it
    status: Status
    range: float | None = None  # in range_unit
    range_unit: str | None = None  # "km" or "mi"
    full_at: datetime | None = None  # as BMW expects, and only while charging
    reported: datetime | None = None  # when the car last said something of this
    predicted: bool = False  # the charge is BMW's own computation

    @property
    def percent(self) -> str:
        """Rounded down: 99.6 % is not full."""
        return f"{'~' if self.predicted else ''}{int(self.charge)}%"

    def minutes_to_full(self, now: datetime) -> float | None:
        """None where that is not known, or has passed: BMW repeats what it once expected."""
        if self.full_at is None or self.full_at < now - timedelta(minutes=1):
            return None
        return max(0.0, round((self.full_at - now).total_seconds() / 60, 1))

    def full_clock(self, now: datetime) -> str:
        """The time of day when it should be full; "" where that is not known, or has passed."""
        if self.full_at is None or self.minutes_to_full(now) is None:
            return ""
        return f"{self.full_at.astimezone():%H:%M}"


# The words of hvStatus and of the older fields. An unplugged car says INVALID and NOCHARGING,
# and so may one that is plugged in.
WORDS: dict[Status, str] = {
    "charging": "CHARGING CHARGINGACTIVE",
    "full": "FINISHED_FULLY_CHARGED",
    "waiting": "WAITING_FOR_CHARGING INITIALIZATION CHARGINGPAUSED CHARGINGINTERRUPTED"
    " CHARGINGDISRUPTED",
    "error": "ERROR CHARGINGERROR",
    "plugged in": "NOT_CHARGING FINISHED_NOT_FULL CHARGINGENDED",
    "unknown": "INVALID NOCHARGING",
}
STATUS_WORDS = {word: status for status, words in WORDS.items() for word in words.split()}
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


def local_time() -> datetime:
    return datetime.fromtimestamp(time.time()).astimezone()


def clocks_s() -> tuple[float, float]:
    """One stands still while the computer sleeps, the other can be set."""
    return time.monotonic(), time.time()


def passed_s(since_s: tuple[float, float]) -> float:
    return max(now_s - then_s for now_s, then_s in zip(clocks_s(), since_s))


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


# --- What is remembered ---------------------------------------------------------------------
class Store:
    """Keeps the public attributes of objects in a file; `with` it, processes take turns."""

    def __init__(self, path: Path | None) -> None:
        self._path = path  # without one nothing is kept
        self.things: dict[str, object] = {}  # by name
        self._kept: dict[str, Any] = {}  # also of the cars and client ids of other settings
        self._text = b""  # of the file, as it was last seen
        self._lock = -1
        self._works = True

    def __enter__(self) -> None:
        with suppress(OSError):  # some file systems have no locks
            if self._path:
                if self._lock < 0:
                    self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.load()

    def __exit__(self, *_: object) -> None:
        try:
            self.save()
        finally:
            with suppress(OSError):
                if self._lock >= 0:
                    fcntl.flock(self._lock, fcntl.LOCK_UN)

    def load(self) -> None:
        """Take over what another process, or an earlier start, has saved."""
        if not self._path:
            return
        try:
            text = self._path.read_bytes()
            if text == self._text:
                return
            self._text, self._kept = text, mapping(json.loads(text))
        except FileNotFoundError:
            with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
                # Of version 1, which kept nothing but the sign-in.
                old = json.loads(self._path.with_name(".cardata.json").read_bytes())
                self._kept = {f"CarData {old['client_id']}": old}
        except (OSError, ValueError, RecursionError):
            logger.error("%s cannot be used; going on without it", self._path.name)
            self._text = b""
        for name, thing in self.things.items():
            kept, now = mapping(self._kept.get(name)), vars(thing)
            same = {key for key in now if key[0] != "_" and type(kept.get(key)) is type(now[key])}
            now.update((key, kept[key]) for key in same)

    def save(self) -> None:
        """What has changed is on disk, whole, before anything is done with it."""
        kept = dict(self._kept)
        for name, thing in self.things.items():
            kept[name] = {key: value for key, value in vars(thing).items() if key[0] != "_"}
        text = json.dumps(kept).encode()
        if not self._path or text == self._text:
            return
        aside = self._path.with_name(self._path.name + ".new")
        try:
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, self._path)
            self._path.with_name(".cardata.json").unlink(missing_ok=True)
            self._text, self._kept, self._works = text, kept, True
        except OSError as error:
            if self._works:
                logger.error("%s cannot be written (%s)", self._path, error.strerror)
            self._works = False


# --- The door: where readings come from -----------------------------------------------------
class TryAgain(Exception):
    """There is no reading now: go on. Without a reason nothing has failed."""

    wait_s: float | None = None  # until the next try; else the longer, the more has failed
    least_s = 0.0  # of such a wait
    unsent = False  # it did not get through to BMW, and has cost it nothing
    code = ""  # CarData's, or that of HTTP
    news = click = ""  # for the owner, wherever that is, and an address to open

    def __init__(self, why: str = "", **details: Any) -> None:
        super().__init__(why)
        vars(self).update(details)


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
        least_s = 0.0
        with suppress(urllib3.exceptions.HTTPError, ValueError, TypeError, OverflowError):
            least_s = urllib3.Retry().parse_retry_after(self.headers.get("Retry-After", ""))
        why = f"{self.host} {why} when asked for {self.what} (HTTP {self.status})"
        return TryAgain(why, least_s=min(least_s, 3600))


def log_values(values: Mapping[str, object], vin: str) -> None:
    """What a reading is made of, for --verbose; not the car's position."""
    if logger.isEnabledFor(logging.DEBUG):
        for name in filter(re.compile("harg|Range|onnector|pdateTime|header").search, values):
            logger.debug("  %s", printable(f"{name}: {json.dumps(values[name])}", [vin]))


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
        self._used = clocks_s()

    def send(self, what: str, method: str, url: str, **options: Any) -> Answer:
        """Send a request for `what`, with `options` for `requests.Request`.

        A `token`, be it empty, keeps `~/.netrc` out. TryAgain where there is no answer, in our
        words, for those of requests hold the address; where the body breaks off it is empty.
        """
        if passed_s(self._used) > 90:
            self._session.close()  # the other side may have, while this computer was asleep
        self._used = clocks_s()
        host = urlsplit(url).hostname or ""
        why = f"no answer from {host} when asked for {what}"
        token, limit_s = options.pop("token", None), options.pop("limit_s", self.REQUEST_LIMIT_S)
        session, timeout = self._session, (limit_s / 3, limit_s)
        settings: Any = {"stream": True}
        if not is_loopback(url):  # to which no proxy leads back
            settings = session.merge_environment_settings(url, {}, True, None, None)
        if token is not None:
            options["auth"] = lambda request: request  # else that of `~/.netrc` would be taken
        if token:
            options["headers"] = {**options.get("headers", {}), "Authorization": f"Bearer {token}"}

        def expire(*_: object) -> None:
            raise TryAgain(f"{why} in time")

        # The time-outs of a socket begin anew with every byte; this one does not.
        signal.signal(signal.SIGALRM, expire)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            request = session.prepare_request(requests.Request(method, url, **options))
            # An adapter follows no redirect, and does not stumble over a malformed one.
            with session.get_adapter(url).send(request, timeout=timeout, **settings) as response:
                body = b""
                with suppress(OSError, urllib3.exceptions.HTTPError, TryAgain):
                    body = response.raw.read(self.BODY_LIMIT_BYTES)
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            unsent = isinstance(error, requests.ConnectionError)
            raise TryAgain(f"{why} ({type(error).__name__})", unsent=unsent) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        logger.debug("asked %s for %s: HTTP %d", host, what, response.status_code)
        return Answer(what, host, response.status_code, response.headers, body)


class Account:
    """A client id at CarData: what is remembered of it, and its sign-in with OAuth 2.0."""

    SCOPE = "authenticate_user openid cardata:api:read"
    SUBSCRIBE = "in the My BMW portal, subscribe the client id to the CarData API"
    USED_UP = "BMW has failed over this code; it works more often in a private window without an"
    USED_UP += " ad blocker; if not, delete the client id in the portal and make a new one"
    REFUSED = "BMW refuses the sign-in ({}): start again for a new code, or check"
    REFUSED += " CARDATA_CLIENT_ID and " + SUBSCRIBE
    RENEW_BEFORE_S = 60
    UNATTENDED_S = 30 * 60

    def __init__(self, settings: Settings, http: Http, store: Store, *, attended: bool) -> None:
        self.access_token = self.refresh_token = ""
        self.expires_s = 0.0  # time.time() when the access token does
        self.refusals = 0  # of the refresh token, in a row; the second is for the owner to mend
        self.asked = False  # the owner, to sign in
        self.container = ""  # its id
        self.sought_s = 0.0  # time.time() when it was, if no reading has come since
        self.requests_s: list[float] = []  # time.time() of each in the last 24 hours
        url = settings.url("CARDATA_AUTH_BASE_URL", "https://customer.bmwgroup.com/gcdm/oauth/")
        self._url, self._http, self._store = url.rstrip("/"), http, store
        self._client_id = settings.text("CARDATA_CLIENT_ID")
        if re.fullmatch("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", self._client_id):
            self._client_id = self._client_id.lower()  # a UUID, which BMW shows in upper case
        self._attended = attended  # by an owner who can be asked to sign in
        self._renewing: Iterator[TryAgain] | None = None
        store.things[f"CarData {self._client_id}"] = self

    def _oauth(self, what: str, path: str, **form: str) -> Answer:
        form = {"client_id": self._client_id, **form}
        return self._http.send(what, "POST", f"{self._url}/{path}", data=form, token="")

    def sign_in(self) -> None:
        """See to a good access token. TryAgain while the owner is waited for."""
        if time.time() < self.expires_s - self.RENEW_BEFORE_S:
            self._renewing = None  # another process has been faster
            return
        renewing, self._renewing = self._renewing or self._renew(), None
        if not_yet := next(renewing, None):
            self._renewing = renewing  # the next poll goes on there; after an error it begins anew
            raise not_yet

    def _renew(self) -> Iterator[TryAgain]:
        """With the refresh token, else by the owner; what is yielded is to be waited for."""
        for codes in itertools.count():
            if self.refresh_token and self._refreshed():
                return
            if not self._attended:
                advice = "CarData needs a sign-in: run i3charge.py once by hand, without --once"
                raise TryAgain(news=advice) if self.refusals == 2 else TryAgain(advice)
            if codes >= 3:
                why = "nobody has confirmed the sign-in; a new start gives a new code at once"
                yield TryAgain(why, wait_s=self.UNATTENDED_S)
            if (yield from self._device_flow()):
                return

    def _refreshed(self) -> bool:
        token = self.refresh_token
        answer = self._oauth("a token", "token", grant_type="refresh_token", refresh_token=token)
        # Without an error of OAuth's own it was the gateway, and the refresh token is good.
        if answer.status not in (400, 401, 403) or "error" not in answer.json():
            self._keep_tokens(answer)
            return True
        self._store.load()  # a process without the lock may have been faster
        if self.refresh_token != token:
            return self._refreshed()
        self.refusals += 1
        if self.refusals == 1:  # BMW has refused good ones while it was out of order
            raise TryAgain("BMW does not renew the sign-in; it is asked once more")
        return False

    def _device_flow(self) -> Generator[TryAgain, None, bool]:
        """RFC 8628, with RFC 7636: whether the owner has confirmed before the code expired."""
        verifier = secrets.token_urlsafe(64)
        digest = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        form = {"response_type": "device_code", "scope": self.SCOPE, "code_challenge": challenge}
        answer = self._oauth("a sign-in", "device/code", **form, code_challenge_method="S256")
        if answer.status == 403:
            raise TryAgain(f"BMW does not let this client id in yet: {self.SUBSCRIBE}", wait_s=60)
        said = answer.json()
        if answer.status in (400, 401) and "error" in said:
            raise SignInFailed(self.REFUSED.format(printable(said.get("error"), [self._client_id])))
        code, user_code = said.get("device_code"), said.get("user_code")
        address = said.get("verification_uri_complete") or said.get("verification_uri")
        if not all(map(is_token, (code, user_code, address))):
            raise answer.failure()
        interval_s = number(said.get("interval"), most=300) or 5  # section 3.2
        expires_s = time.time() + (number(said.get("expires_in"), most=A_DAY_S) or 300)
        news = f"to sign in at BMW, open\n{address}\nand confirm the code\n{user_code}"
        if self.asked:
            logger.warning("%s", news)
            news = ""
        self.asked = True
        yield TryAgain(wait_s=interval_s, news=news, click=address)
        grant_type = "urn:ietf:params:oauth:grant-type:device_code"
        form = {"grant_type": grant_type, "device_code": word(code), "code_verifier": verifier}
        shaken = False  # by a fault of BMW's, after which it can refuse the code
        while time.time() < expires_s:
            try:
                answer = self._oauth("the tokens", "token", **form)
                used_up = b"keymanagement.service.invalid_access_token" in answer.body
                if answer.status not in (200, 400, 401, 403) and not used_up:
                    raise answer.failure()
            except TryAgain as problem:
                shaken, interval_s = True, interval_s + 5
                problem.wait_s = interval_s
                yield problem
                continue
            if answer.status == 200:
                self._keep_tokens(answer)
                logger.info("signed in at BMW")
                return True
            error = answer.json().get("error") or "authorization_pending"  # BMW has left it out
            if used_up or error == "invalid_grant" or (error == "access_denied" and shaken):
                self.asked = False  # the owner believes that it is done
                raise TryAgain(self.USED_UP, wait_s=60)
            if error == "expired_token":
                break
            if error == "slow_down":
                interval_s += 5
            elif error != "authorization_pending":
                raise SignInFailed(self.REFUSED.format(printable(error, [self._client_id])))
            yield TryAgain(wait_s=interval_s)
        return False

    def _keep_tokens(self, answer: Answer) -> None:
        """The old refresh token is dead: the new one is on disk before it is used."""
        said = answer.json()
        tokens = said.get("access_token"), said.get("refresh_token", self.refresh_token)
        if answer.status != 200 or not all(map(is_token, tokens)):
            raise answer.failure()
        self.access_token, self.refresh_token = map(word, tokens)
        self.expires_s = time.time() + (number(said.get("expires_in"), most=1e6) or 3599)
        self.refusals, self.asked = 0, False
        self._store.save()


class CarData:
    """BMW CarData, the official API for one's own car: 50 requests in any 24 hours."""

    NAME = "CarData"
    REQUESTS = 48
    CONTAINER_PAUSE_S = 6 * 60 * 60
    ENGINE = "vehicle.drivetrain.electricEngine."
    HEADER = "vehicle.drivetrain.batteryManagement.header"
    DISPLAYED = "vehicle.powertrain.electric.battery.stateOfCharge.displayed"
    PREDICTED = ENGINE + "charging.level"
    HV_STATUS = ENGINE + "charging.hvStatus"
    STATUS = ENGINE + "charging.status"
    TO_FULL = ENGINE + "charging.timeToFullyCharged"
    REMAINING = ENGINE + "charging.timeRemaining"  # never more than 200, which means "or more"
    RANGE = ENGINE + "kombiRemainingElectricRange"
    PLUGS = ("vehicle.body.chargingPort.status", "vehicle.body.chargingPort.combinedStatus")
    DESCRIPTORS = (HEADER, DISPLAYED, HV_STATUS, STATUS, TO_FULL, REMAINING, RANGE, *PLUGS)
    PURPOSE = "descriptors 2"  # to be raised with every change of the descriptors
    # By purpose, the best first: one descriptor that BMW does not accept refuses a container.
    CONTAINERS: ClassVar = {PURPOSE: (*DESCRIPTORS, PREDICTED), PURPOSE + " lean": DESCRIPTORS}
    CHECK_VIN, NEWER = "; check VEHICLE_IDENTIFICATION_NUMBER", ": get a newer i3charge.py"
    ADVICE: ClassVar = {"CU-104": CHECK_VIN, "CU-120": CHECK_VIN, "CU-402": NEWER, "CU-403": NEWER}
    ADVICE["CU-124"] = ": delete one in the portal"

    def __init__(self, settings: Settings, http: Http, store: Store, *, attended: bool) -> None:
        self._http, self._store, self._attended = http, store, attended
        self._account = Account(settings, http, store, attended=attended)
        self.vin = settings.vin()
        url = settings.url("CARDATA_BASE_URL", "https://api-cardata.bmwgroup.com/")
        self._url = url.rstrip("/") + "/customers"
        why = "CarData allows 50 requests a day; when news is due it is asked sooner"
        self.interval_s = settings.interval_s(url, 2_400_000, 2_400_000, why)

    def poll(self) -> Reading:
        """Ask BMW once. TryAgain where there is no reading now, SignInFailed where never."""
        account, path = self._account, f"/vehicles/{self.vin}/telematicData"
        account.sign_in()
        seek = not account.container
        while True:
            if seek:
                self._find_container()
            query = {"containerId": account.container}
            try:
                answer = self._send("the car's status", "GET", path, params=query)
                break
            except TryAgain as problem:
                seek = problem.code in ("CU-105", "CU-121", "CU-122", "HTTP 400", "HTTP 404")
                if not seek or self._pause_s() > 0:  # else one would be made after the other
                    raise
        account.sought_s = 0.0
        data = mapping(answer.get("telematicData"))
        log_values(data, self.vin)
        return self.reading_in(data, local_time())

    def _pause_s(self) -> float:
        """Until a container may be sought again; below zero when it may."""
        return self._account.sought_s + self.CONTAINER_PAUSE_S - time.time()

    def _find_container(self) -> None:
        """Find one of ours that BMW knows, or make one."""
        account, lost = self._account, self._account.container
        if self._pause_s() > 0 and not self._attended:
            raise TryAgain("BMW has refused a container", wait_s=self._pause_s())
        listed = self._send("its containers", "GET", "/containers").get("containers")
        known = map(mapping, listed if isinstance(listed, list) else [])
        ours = {"name": "i3charge", "state": "ACTIVE"}.items()
        active = [c for c in known if ours <= c.items() and c.get("containerId") != lost]
        by_purpose = {word(container.get("purpose")): container for container in active}
        found = next((by_purpose[p] for p in self.CONTAINERS if p in by_purpose), None)
        found = found or self._make_container(active)
        account.container, account.sought_s = word(found.get("containerId")), time.time()

    def _make_container(self, older: list[dict[str, Any]]) -> dict[str, Any]:
        for purpose, descriptors in self.CONTAINERS.items():
            asked = {"name": "i3charge", "purpose": purpose, "technicalDescriptors": descriptors}
            try:
                return self._send("a container", "POST", "/containers", json=asked)
            except TryAgain as problem:
                refused = problem
            if refused.code not in ("CU-402", "CU-403"):
                break
        if refused.code == "CU-124" and older:
            return older[0]
        raise refused

    def _send(self, what: str, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Ask the API, with a new access token if BMW wants one; returns the JSON object."""
        account = self._account
        options["headers"] = {"x-version": "v1", "Accept": "application/json"}
        for renewed in (False, True):
            now_s = time.time()
            # Those of the future are from before the clock was set back.
            spent = sorted(s for s in account.requests_s if abs(now_s - s) < A_DAY_S)
            if len(spent) >= self.REQUESTS:
                wait_s = min(spent[-self.REQUESTS] + A_DAY_S - now_s, A_DAY_S)
                raise TryAgain("CarData's requests for 24 hours are spent", wait_s=wait_s)
            account.requests_s = [*spent, now_s]
            self._store.save()
            try:
                url, token = self._url + path, account.access_token
                answer = self._http.send(what, method, url, token=token, **options)
            except TryAgain as problem:
                if problem.unsent:
                    account.requests_s = spent
                raise
            code = word(answer.json().get("exveErrorId")) or f"HTTP {answer.status}"
            if code == "CU-103":  # refreshing keeps the scope, only a new sign-in mends it
                account.access_token, account.refresh_token, account.expires_s = "", "", 0.0
                raise TryAgain(f"this sign-in is not for CarData: {account.SUBSCRIBE}", wait_s=60)
            expired = answer.status == 403 and b"invalid_token" in answer.body
            expired = expired or answer.status == 401 or code in ("CU-101", "CU-102", "CU-127")
            if renewed or not expired:
                break
            account.expires_s = 0.0
            account.sign_in()
        if 200 <= answer.status < 300:
            return answer.json()
        raise self._refusal(answer, code)

    def _refusal(self, answer: Answer, code: str) -> TryAgain:
        problem = answer.failure()
        problem.code = code
        if code.startswith("CU-"):
            hidden = (self.vin, *map(word, vars(self._account).values()))
            text = printable(answer.json().get("exveErrorMsg"), hidden)
            why = f"CarData says: {text} ({printable(code, hidden)}){self.ADVICE.get(code, '')}"
            problem.args = (why,)
        if code in ("CU-124", "CU-402", "CU-403"):
            self._account.sought_s = time.time()
        if code in ("CU-105", "CU-121", "CU-122", "CU-124", "CU-402", "CU-403"):
            problem.wait_s = self.CONTAINER_PAUSE_S
        if answer.status == 429 or code == "CU-429":
            problem.args = ("BMW says that CarData's 50 requests a day are used up",)
            problem.wait_s = min(3600, A_DAY_S - time.time() % A_DAY_S + 60)  # at 00:00 UTC
        return problem

    @classmethod
    def reading_in(cls, data: Mapping[str, Any], now: datetime) -> Reading:
        """The car sends its charge when charging starts and ends; between, BMW predicts it."""
        entries = {name: mapping(entry) for name, entry in data.items()}
        values = {name: entry.get("value") for name, entry in entries.items()}
        stamps = {name: utc(e["timestamp"]) for name, e in entries.items() if "timestamp" in e}
        plug = next((name for name in cls.PLUGS if values.get(name) in PLUG_WORDS), "")
        plug_word, plug_at = word(values.get(plug)), stamps.get(plug)
        words = [word(values.get(name)) for name in (cls.HV_STATUS, cls.STATUS)]
        began = stamps.get(cls.STATUS)
        sticks = plug_word == "DISCONNECTED" and began and plug_at and plug_at >= began
        if sticks or words[-1] == "UNKNOWN":
            words = []
        status = status_of(0, words, plug_word)
        levels = [cls.HEADER, cls.DISPLAYED, cls.PREDICTED]
        if status in ("charging", "waiting"):
            levels.insert(0, cls.PREDICTED)  # the car's own is as old as the start of the charge
        charges = ((number(values.get(name), most=100), name) for name in levels)
        charge, level = next((pair for pair in charges if pair[0] is not None), (None, ""))
        if charge is None:
            raise TryAgain("BMW's answer holds no charge between 0 and 100")
        if level != cls.PREDICTED:
            status = status_of(charge, words, plug_word)
        # The car's own stamps: BMW stamps hvStatus and the predicted charge anew at every answer.
        sent = (stamps.get(name) for name in (cls.HEADER, cls.DISPLAYED, cls.STATUS, plug))
        reported = max(filter(None, sent), default=None)
        full_at, newest = None, began
        for name, most in ((cls.TO_FULL, A_DAY_S / 60), (cls.REMAINING, 199)):
            minutes, said = number(values.get(name), most), stamps.get(name) or reported
            if minutes is not None and (not newest or (said and said >= newest)):
                full_at, newest = min(said or now, now) + timedelta(minutes=minutes), said
        distance = number(values.get(cls.RANGE), most=1000)
        named = word(entries.get(cls.RANGE, {}).get("unit")).lower()
        unit = {"": "km", "km": "km", "mi": "mi", "miles": "mi", "mls": "mi"}.get(named)
        distance, unit = (distance, unit) if unit and distance is not None else (None, None)
        full_at = full_at if status == "charging" else None
        return Reading(charge, status, distance, unit, full_at, reported, level == cls.PREDICTED)


class Portal:
    """The API of the ConnectedDrive web portal (2017 to 2021), opened with the password."""

    NAME = "ConnectedDrive portal"
    FIELDS: ClassVar = {
        CarData.HEADER: "chargingLevelHv",  # as displayed; soc_hv_percent is less near the top
        CarData.HV_STATUS: "chargingHVStatus",
        CarData.STATUS: "charging_status",
        CarData.TO_FULL: "chargingTimeRemaining",
        CarData.RANGE: "beRemainingRangeElectric",
        CarData.PLUGS[0]: "connectorStatus",
    }
    LOGIN_PAUSE_S = 600  # where a new token is of no use; many logins lock the account

    def __init__(self, settings: Settings, http: Http) -> None:
        self._http = http
        dispatch = "https://www.bmw-connecteddrive.com/app/default/static/external-dispatch.html"
        names = {"username": "USERNAME", "password": "PASSWORD", "client_id": "AUTH_CLIENT_ID"}
        self._form = {field: settings.text(name) for field, name in names.items()}
        self._form["redirect_uri"] = settings.text("AUTH_REDIRECT_URI", dispatch)
        self._form |= {"response_type": "token", "scope": "authenticate_user fupo"}
        self.vin = settings.vin()
        url = settings.url("CONNECTED_DRIVE_BASE_URL", "https://www.bmw-connecteddrive.nl/api/")
        self._status_url = f"{url.rstrip('/')}/vehicle/dynamic/v1/{self.vin}"
        login = "https://customer.bmwgroup.com/gcdm/oauth/authenticate"
        self._auth_url = settings.url("AUTH_BASE_URL", login)
        self.interval_s = settings.interval_s(url, 60_000, 10_000, "BMW blocks who asks faster")
        self._access_token = ""
        self._refusals_left = 1  # of the login, in a row

    def poll(self) -> Reading:
        """As at CarData."""
        for fresh in (False, True):
            if fresh or not self._access_token:
                self._sign_in()
            token = self._access_token
            answer = self._http.send("the car's status", "GET", self._status_url, token=token)
            if answer.status != 401:
                break
        if answer.status == 401:
            raise TryAgain("BMW does not accept the access token", least_s=self.LOGIN_PAUSE_S)
        if answer.status in (403, 404):
            raise TryAgain(f"BMW does not show this car (HTTP {answer.status}){CarData.CHECK_VIN}")
        if answer.status != 200:
            raise answer.failure()
        car = mapping(answer.json().get("attributesMap"))
        log_values(car, self.vin)
        return self.reading_in(car, local_time())

    def _sign_in(self) -> None:
        """OAuth 2.0 implicit grant (RFC 6749, section 4.2): the answer is a redirect."""
        state = secrets.token_urlsafe(16)
        form = {**self._form, "state": state}
        answer = self._http.send("the login", "POST", self._auth_url, data=form, token="")
        fields = {"error": word(answer.json().get("error")) or f"HTTP {answer.status}"}
        if answer.status in (302, 303):
            # The token is in the fragment, an error in the query or there. A plus sign is one.
            location = re.sub("[?#]", "&", answer.headers.get("Location", ""))
            address, _, found = location.replace("+", "%2B").partition("&")
            fields = dict(parse_qsl(found)) if address == self._form["redirect_uri"] else {}
        elif answer.status not in (400, 401, 403):
            raise answer.failure()
        error, token = fields.get("error", ""), fields.get("access_token", "")
        if fields.get("state", state) != state or not (error or is_token(token)):
            raise TryAgain("BMW answered the login with a redirect that holds no access token")
        if not error:
            self._access_token = token
            self._refusals_left = 3  # BMW's gateway has refused good logins for minutes
            return
        said = printable(error, [self._form["username"], self._form["password"]])
        why = f"BMW refuses the login ({said}): check USERNAME, PASSWORD and AUTH_CLIENT_ID"
        self._refusals_left -= 1
        raise TryAgain(why) if self._refusals_left > 0 else SignInFailed(why)

    @classmethod
    def reading_in(cls, car: Mapping[str, Any], now: datetime) -> Reading:
        """In CarData's words."""
        said = {name: {"value": car.get(field)} for name, field in cls.FIELDS.items()}
        said[CarData.RANGE]["unit"] = car.get("unitOfLength")
        updated = word(car.get("updateTime"))  # 27.02.2018 19:59:03 UTC
        iso = re.sub(r"(..)\.(..)\.(....) (.*) UTC", r"\3-\2-\1 \4", updated)
        said[CarData.HEADER]["timestamp"] = iso
        return CarData.reading_in(said, now)


# --- What is worth telling ------------------------------------------------------------------
STEP_PERCENT = 5
SOON_MINUTES = 10
FORGOTTEN_S = A_DAY_S + 60 * 60  # what is run once a day may be a little late
LEAST_GAP_S = 600.0  # between two polls, where one is brought forward
LONGEST_BACKOFF_S = 300

Kind = Literal["step", "soon", "reached", "full", "paused", "stopped", "error"]


class ChargeWatch:
    """Decides what in a row of readings is news. What it knows outlasts the program."""

    def __init__(self, notify_at: float = 0) -> None:
        self.seen_s = 0.0  # time.time() of the last reading, to the minute: seldom a change to save
        self.charge = 0.0  # percent, then
        self.percent = ""  # as it was shown
        self.lowest = 0.0  # percent, since the last news
        self.status: Status = "unknown"  # the last that was known
        self.charging = False  # or pausing: a charge is going on
        self.began_s = 0.0  # when that began; 0 where it was not seen
        self.began_at = ""  # in percent, as it was shown
        self.told: dict[str, float] = {}  # once a charge, and at how many percent
        self.blind = False  # and that has been told
        self._notify_at = notify_at  # percent, the owner's own; 0 for none
        self._early = 0  # polls that were brought forward since there was something new

    def news(self, reading: Reading, now: datetime) -> list[tuple[Kind, str]]:
        """What is to be told, in this order, each with its message."""
        now_s = now.timestamp()
        if now_s - self.seen_s > FORGOTTEN_S:
            vars(self).update(vars(ChargeWatch(self._notify_at)))
        first, before, minutes = not self.seen_s, self.status, reading.minutes_to_full(now)
        charge, status = reading.charge, reading.status
        if status == "unknown":  # which is no evidence that the charge has fallen
            charge, status = max(charge, self.charge if self.charging else 0.0), before
        if status != before or (charge != self.charge and minutes is not None):
            self._early = 0
        said_s = min(reading.reported or now, now).timestamp()
        if status == "charging" and not self.charging:
            seen = not first and now_s - self.seen_s <= 2 * 60 * 60
            self.began_s = max(self.seen_s, said_s) if seen else 0.0
            self.began_at = self.percent if self.charge < charge else reading.percent
        over = ""
        if self.began_s and said_s > self.began_s:
            took, began = duration(said_s - self.began_s), self.began_at.rstrip("%")
            over = f"{began} → {reading.percent} in {took}"
        found: list[tuple[Kind, str]] = []
        if not first and self.charge < self._notify_at <= charge and status != "full":
            found.append(("reached", f"{self._notify_at:.0f}% reached"))
        if minutes is not None and minutes <= SOON_MINUTES:
            about = f"Full in about {max(1, round(minutes))} min"
            found.append(("soon", f"{about}, at {reading.full_clock(now)}"))
        if status == "full":
            full = f"Fully charged: {over}." if over else "Fully charged."
            found.append(("full", f"{full} The charging station can be freed."))
        elif self.charging and status not in ("charging", "waiting"):
            stopped = f"Charging stopped at {reading.percent} ({status})"
            found.append(("stopped", f"{stopped}, {over}" if over else stopped))
        elif before == "charging" and status == "waiting":
            found.append(("paused", f"Charging paused at {reading.percent}"))
        # Once a charge, which is over when the car has been unplugged or has lost 5 %.
        below = 0.0 if status == "unplugged" else charge + STEP_PERCENT
        told = {kind: at for kind, at in self.told.items() if at < below}
        news = [n for n in found if n[0] not in told and not (first and n[0] == "full")]
        self.told = {**{n[0]: charge for n in found if n[0] in ("soon", "reached", "full")}, **told}
        if not news and not first and round(charge - self.lowest, 6) >= STEP_PERCENT:
            clock, charged = reading.full_clock(now), f"{reading.percent} charged"
            news.append(("step", f"{charged}, full about {clock}" if clock else charged))
        self.lowest = charge if news or first else min(self.lowest, charge)
        self.charging = status == "charging" or (self.charging and status == "waiting")
        self.began_s = self.began_s if self.charging else 0.0
        self.seen_s, self.status, self.blind = now_s // 60 * 60, status, False
        self.charge, self.percent = charge, reading.percent
        return news

    def blind_since(self, now: datetime, interval_s: float) -> str:
        """Once, what to tell where a charge has not been heard of for too long; else ""."""
        silent_s = now.timestamp() - self.seen_s
        due = max(2 * interval_s, 3600) <= silent_s <= FORGOTTEN_S
        if self.blind or self.status != "charging" or not due:
            return ""
        self.blind = True
        seen = datetime.fromtimestamp(self.seen_s)
        return f"No word from BMW since {seen:%H:%M} ({self.percent}, charging)"

    def next_poll_s(self, reading: Reading, now: datetime, interval_s: float) -> float:
        """Seconds to the next poll: a state that sticks must not drain the quota."""
        goals = [self.lowest + STEP_PERCENT, self._notify_at]
        due_s = interval_s if self._early >= 2 else news_due_s(reading, now, goals, interval_s)
        self._early += due_s < interval_s
        return due_s


def news_due_s(reading: Reading, now: datetime, goals: list[float], interval_s: float) -> float:
    """Seconds to the next poll, sooner where news is due, as at one of the `goals` in percent."""
    if reading.full_at is None:
        return interval_s
    left_s = (reading.full_at - now).total_seconds()  # the charge is taken to rise evenly
    ahead = (goal for goal in goals if reading.charge < goal < 100)
    expected = [left_s * (goal - reading.charge) / (100 - reading.charge) for goal in ahead]
    expected += [left_s - SOON_MINUTES * 60, left_s + 120]  # BMW rounds, and is never early
    due_s = min((seconds for seconds in expected if seconds > 0), default=0.0)
    return min(interval_s, max(due_s, LEAST_GAP_S))


def retry_s(failures: int, problem: TryAgain, interval_s: float) -> float:
    """How long to wait after this many failures in a row, the last of them `problem`."""
    if problem.wait_s is not None:
        return problem.wait_s
    first_s, most_s = interval_s, max(LONGEST_BACKOFF_S, interval_s)
    if problem.unsent:
        first_s, most_s = min(60.0, interval_s), interval_s
    return max(min(first_s * 2.0 ** min(failures - 1, 20), most_s), problem.least_s)


# --- How it is told -------------------------------------------------------------------------
NOTIFICATION_LIMIT_S = 10  # for each program that shows one and each address that is told
COLOURS: dict[Status, int] = {"charging": 32, "full": 36, "waiting": 33, "error": 31}

# The level in the log; ntfy's tag on the phone, which stays silent without one; a sound; and the
# bell of the terminal, with which tmux marks the window.
WAYS: dict[Kind, tuple[int, str, bool, bool]] = {
    "step": (logging.DEBUG, "", False, False),
    "paused": (logging.WARNING, "", False, False),
    "soon": (logging.WARNING, "hourglass", True, False),
    "reached": (logging.WARNING, "dart", True, False),
    "full": (logging.WARNING, "battery", True, True),
    "stopped": (logging.WARNING, "warning", True, True),
    "error": (logging.ERROR, "rotating_light", False, True),
}


def duration(seconds: float) -> str:
    """As one says it: "90 s", "25 min", "2 h 20 min", "4 days"."""
    minutes = round(seconds / 60)
    if seconds < 119.5:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 10 * 60:
        return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    if minutes < 48 * 60:
        return f"{round(minutes / 60)} h"
    return f"{round(minutes / 1440)} days"


def in_words(reading: Reading, now: datetime) -> tuple[str, str, str]:
    """Range, time of day when full, and age of an old report; "" for what there is not."""
    distance = "" if reading.range is None else f"{int(reading.range)} {reading.range_unit}"
    age = now - reading.reported if reading.reported else timedelta()
    stale = duration(age.total_seconds()) if age > timedelta(minutes=5) else ""
    return distance, reading.full_clock(now), stale


def plain_line(reading: Reading, now: datetime) -> str:
    distance, clock, age = in_words(reading, now)
    clock = f"full about {clock}" if clock else ""
    age = f"(car last reported {age} ago)" if age else ""
    parts = (f"{now:%Y-%m-%d %H:%M:%S}", reading.percent, reading.status, distance, clock, age)
    return "  ".join(filter(None, parts))


def terminal_line(reading: Reading, now: datetime, bar: str) -> str:
    distance, clock, age = in_words(reading, now)
    columns = [f"{now:%a %H:%M} {reading.percent:>5}", bar, f"{reading.status:<10}"]
    columns += [f"{distance:>6}", clock and f"full {clock}", age and f"car: {age} ago"]
    return "  ".join(filter(None, columns)).rstrip()


def bar_of(charge: float, blocks: str) -> str:
    """Ten cells; `blocks` are the empty one, the parts of one in growing order, the full one."""
    parts = len(blocks) - 1
    full, part = divmod(min(round(charge / 10 * parts), 10 * parts - (charge < 100)), parts)
    return (blocks[-1] * full + (blocks[part] if part else "")).ljust(10, blocks[0])


def json_line(reading: Reading, now: datetime) -> str:
    minutes = reading.minutes_to_full(now)
    values = {"time": now, **reading._asdict(), "minutes_to_full": minutes}
    values["full_at"] = None if minutes is None else reading.full_at
    return json.dumps(values, default=lambda moment: moment.isoformat(timespec="seconds"))


class ChargeLog:
    """Writes readings to stdout, in the form that suits what stdout is."""

    def __init__(self, *, as_json: bool) -> None:
        self._line = json_line if as_json else plain_line
        self._terminal = sys.stdout.isatty() and not as_json and os.environ.get("TERM") != "dumb"
        self._blocks = "░▏▎▍▌▋▊▉█" if sys.stdout.encoding.lower().startswith("utf") else "-#"
        self.works, self.unread = True, False  # where nobody reads it any more
        if self._terminal:
            self._write("\033[22;2t")  # puts the title aside that is there

    def write(self, reading: Reading, now: datetime) -> None:
        line = self._line(reading, now)
        if self._terminal:
            wide = shutil.get_terminal_size().columns >= 70
            bar = bar_of(reading.charge, self._blocks) if wide else ""
            if bar and not os.environ.get("NO_COLOR"):
                bar = f"\033[{COLOURS.get(reading.status, 2)}m{bar}\033[0m"
            line = terminal_line(reading, now, bar)
            self.title(f"i3 {reading.percent} {reading.status}")
        self._write(line + "\n")

    def title(self, text: str) -> None:
        if self._terminal:
            self._write(f"\033]2;{text}\007")

    def close(self) -> None:
        if self._terminal:
            self._write("\033]2;\007\033[23;2t")

    def _write(self, text: str) -> None:
        """Without a buffer, in which something would be left over at the end."""
        try:
            os.write(sys.stdout.fileno(), text.encode(sys.stdout.encoding, "replace"))
            self.works = True
        except BrokenPipeError:
            self.unread = True
        except OSError as error:
            if self.works:
                logger.error("the log cannot be written (%s); going on without", error.strerror)
            self.works = False


class Desktop:
    """Shows notifications on this computer, with the first of several programs that can."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._programs = ["pync", "osascript", "notify-send"]
        self._said = False

    def show(self, message: str, *, sound: bool, click: str = "") -> None:
        for program in list(self._programs):
            try:
                with self._start(program, message, "Glass" if sound else "", click) as process:
                    try:
                        if process.wait(NOTIFICATION_LIMIT_S) == 0:
                            return
                    finally:
                        process.kill()
            except subprocess.TimeoutExpired:
                self._programs.remove(program)  # or it would delay the polls again and again
            except Exception as problem:  # noqa: BLE001 - pync raises no narrower one
                logger.debug("%s did not work: %s", program, type(problem).__name__)
        if not self._said:
            logger.info("this machine shows no notifications; README.md says what may help")
        self._said = True

    def _start(self, program: str, message: str, sound: str, click: str) -> subprocess.Popen[bytes]:
        if program == "pync":
            # Imported only here: where it cannot work it raises, and it always starts `which`.
            import pync  # type: ignore[import-untyped]

            wanted = {"title": self._title, "group": "i3charge", "sound": sound, "open": click}
            options = {name: value for name, value in wanted.items() if value}
            process: subprocess.Popen[bytes] = pync.Notifier.notify(message, **options)
            return process
        script = "display notification (item 1 of argv) with title (item 2 of argv)"
        script += " sound name (item 3 of argv)" if sound else ""
        apple = ["-e", "on run argv", "-e", script, "-e", "end run", message, self._title, sound]
        quiet = subprocess.DEVNULL
        command = [program, *(apple if program == "osascript" else [self._title, message])]
        return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


class Phone:
    """The addresses that hear how a charge ends, and the requests that they have yet to take."""

    def __init__(self, settings: Settings, http: Http, title: str) -> None:
        self.waiting: list[dict[str, Any]] = []
        self._http, self._title = http, title
        urls = {name: settings.url(name, secure=False) for name in ("NTFY_URL", "WEBHOOK_URL")}
        self._urls = {name: url for name, url in urls.items() if url}
        self._hosts = {name: urlsplit(url).hostname or "" for name, url in self._urls.items()}
        if "NTFY_URL" in self._urls and not urlsplit(urls["NTFY_URL"]).path.strip("/"):
            settings.problems.append(
                "NTFY_URL should end with a topic: https://ntfy.sh/random-words"
            )

    @property
    def hosts(self) -> str:
        return ", ".join(self._hosts.values()) or "none"

    def tell(self, kind: Kind, message: str, reading: Reading | None, click: str) -> None:
        """Let it wait for `deliver`; some kinds of news are not for the phone."""
        now, text, tag = local_time(), f"{self._title}: {message}", WAYS[kind][1]
        webhook: dict[str, Any] = {"event": kind, "title": self._title, "message": message}
        webhook |= {"text": text, "content": text}  # for Slack, Mattermost, Telegram; Discord
        webhook |= {
            name: getattr(reading, name, None) for name in ("charge", "predicted", "status")
        }
        webhook["time"] = now.isoformat(timespec="seconds")
        # https://docs.ntfy.sh/publish/
        ntfy = {"Title": self._title, "Tags": tag, "Priority": "high", "Click": click or None}
        as_json = (json.dumps(webhook), {"Content-Type": "application/json"})
        for name in self._urls if tag else ():
            body, headers = (message, ntfy) if name == "NTFY_URL" else as_json
            request = {"to": name, "at_s": now.timestamp(), "message": " ".join(message.split())}
            self.waiting.append({**request, "body": body, "headers": headers})

    def deliver(self, store: Store, *, again: bool) -> None:
        """Post what waits, in order; where an address fails, the rest of its waits on."""
        self.waiting = [r for r in self.waiting if r["at_s"] > time.time() - A_DAY_S]
        for name, host in self._hosts.items():
            for request in [r for r in self.waiting if r["to"] == name]:
                try:
                    self._post(self._urls[name], request)
                except TryAgain as problem:
                    if request.get("failed") != str(problem):
                        request["failed"] = str(problem)
                        logger.error("%s%s", problem, "; it will be tried again" if again else "")
                    break
                self.waiting.remove(request)
                store.save()
                told = request["message"]
                logger.info("%s was told: %s", host, told if len(told) <= 40 else f"{told[:39]}…")

    def _post(self, url: str, request: Mapping[str, Any]) -> None:
        options = {"data": request["body"].encode(), "headers": request["headers"]}
        limit_s = NOTIFICATION_LIMIT_S
        answer = self._http.send("a notification", "POST", url, limit_s=limit_s, **options)
        if 200 <= answer.status < 300:
            return
        said = answer.json()
        text = said.get("error") or said.get("message") or said.get("description")
        text = text or re.sub("<[^>]*>", " ", answer.body.decode("utf-8", "replace"))
        parts = re.split("[/?&=:@#]+", f"{url}/{unquote(url)}")
        reason = printable(text, [url, *(part for part in parts if len(part) > 2)])[:60]
        refused = f"{answer.host} did not accept a notification (HTTP {answer.status})"
        raise TryAgain(f"{refused}: {reason}")

    def give_up(self, *, kept: bool) -> None:
        """Say what is left over at the end."""
        later = " (the next start tries again)" if kept else ""
        for request in self.waiting:
            if host := self._hosts.get(request["to"]):
                logger.error("%s has not been told: %s%s", host, request["message"], later)


# --- The loop -------------------------------------------------------------------------------
def fault(problem: Exception) -> str:
    """Of our own: its text and traceback stay untold, for they could hold a secret."""
    frame, line_number = list(traceback.walk_tb(problem.__traceback__))[-1]
    place = f"{Path(frame.f_code.co_filename).name}, line {line_number}"
    return f"a fault in i3charge itself: {type(problem).__name__} in {place}; please report it"


def run(
    door: CarData | Portal,
    store: Store,
    watch: ChargeWatch,
    log: ChargeLog,
    desktop: Desktop,
    phone: Phone,
    *,
    once: bool = False,
    until_full: bool = False,
) -> int:
    """Poll until something ends it; returns the exit status."""
    reading: Reading | None = None
    failures, wait_s, due_s = 0, 0.0, clocks_s()  # when the poll was due

    def tell(news: list[tuple[Kind, str]], click: str = "", *, again: bool) -> None:
        """Once: that it is told is on disk before anybody hears of it."""
        waking = failures == 1 and wait_s <= 60  # in a minute the network may be there
        if not waking and (blind := watch.blind_since(local_time(), door.interval_s)):
            news = [*news, ("error", blind)]
        for kind, message in news:
            phone.tell(kind, message, reading, click)
        if news:
            store.save()
        for kind, message in news:
            level, _, sound, bell = WAYS[kind]
            logger.log(level, "%s", message)
            if bell and sys.stderr.isatty():
                print("\a", end="", file=sys.stderr, flush=True)
            desktop.show(message, sound=sound, click=click)
        phone.deliver(store, again=again)

    while True:
        news: list[tuple[Kind, str]] = []
        click = ""
        exit_status = 1 if once else None
        with store:
            try:
                reading = door.poll()
            except SignInFailed as problem:
                exit_status = 1
                news = [("error", str(problem))]
            except Exception as problem:  # noqa: BLE001 - even a fault of ours may pass
                if not isinstance(problem, TryAgain):
                    problem = TryAgain(fault(problem))
                log.title("i3: no reading")
                failures += problem.wait_s is None
                wait_s = retry_s(failures, problem, door.interval_s)
                due_s = clocks_s()
                if str(problem):
                    next_try = "" if once else f"; next try in {duration(wait_s)}"
                    logger.error("%s%s", problem, next_try)
                if problem.news:
                    news, click = [("error", problem.news)], problem.click
            else:
                failures, now = 0, local_time()
                log.write(reading, now)
                news = watch.news(reading, now)
                wait_s = watch.next_poll_s(reading, now, door.interval_s)
                if passed_s(due_s) > wait_s:
                    due_s = clocks_s()  # what it has missed is not made up for
                if once or log.unread or (until_full and reading.status == "full"):
                    exit_status = 0 if log.works else 1
            tell(news, click, again=exit_status is None)
        if exit_status is not None:
            return exit_status
        while (left_s := wait_s - passed_s(due_s)) > 0:
            time.sleep(min(left_s, 60))
            if wait_s > passed_s(due_s):
                with store:
                    tell([], again=True)
        due_s = due_s[0] + wait_s, due_s[1] + wait_s


# --- The command line -----------------------------------------------------------------------
def start(arguments: argparse.Namespace, settings: Settings, env_file: Path) -> int:
    once, demo = arguments.once, arguments.demo
    http = Http()
    store = Store(None if demo else env_file.with_name(".i3charge.json"))
    given = settings.variables.get
    if given("CARDATA_CLIENT_ID") or not (given("PASSWORD") or given("AUTH_CLIENT_ID")):
        door: CarData | Portal = CarData(settings, http, store, attended=not once)
    else:
        door = Portal(settings, http)
    title = "BMW i3 (demo)" if demo else "BMW i3"
    phone = Phone(settings, http, title)
    form = "[1-9][0-9]?%?|0"
    notify_at = settings.text("NOTIFY_AT", "0", form=form, should="a whole number from 1 to 99")
    watch = ChargeWatch(float(notify_at.rstrip("%")))
    store.things[f"phone of {env_file.name}"] = phone
    store.things[f"car {door.vin}"] = watch
    copy = "" if env_file.exists() else "copy .env.example to .env and fill it in; "
    settings.check(hint=f"{copy}see Your own car in README.md; --demo needs no account")
    log = ChargeLog(as_json=arguments.json)

    def wind_up(interrupt: int = 0, _: object = None) -> None:
        """A Ctrl-C ends it at once: a finalizer would swallow it, and what must last is on disk."""
        phone.give_up(kept=not demo)
        log.close()
        if interrupt:
            os._exit(130)

    signal.signal(signal.SIGINT, wind_up)
    gc.freeze()
    gc.enable()
    if not once:
        name, every = "simulated i3" if demo else door.NAME, duration(door.interval_s)
        logger.info("%s, every %s and when news is due. Phone: %s", name, every, phone.hosts)
    try:
        return run(door, store, watch, log, Desktop(title), phone, once=once, until_full=demo)
    finally:
        wind_up()


def main() -> int:
    logging.raiseExceptions = False  # a log that cannot be written is no reason to stop
    handler = logging.StreamHandler()
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    form, date = "%(asctime)s  %(message)s", "%a %H:%M" if terminal else "%Y-%m-%d %H:%M:%S"
    if terminal and not os.environ.get("NO_COLOR"):
        form = f"%(levelname)s{form}\033[0m"
        for level, colour in ((10, 2), (20, 2), (30, 0), (40, 31), (50, 31)):
            logging.addLevelName(level, f"\033[{colour}m")  # failures in red, tips dim
    handler.setFormatter(logging.Formatter(form, date))
    logger.addHandler(handler)
    parser = argparse.ArgumentParser(
        description="Log the charge of a BMW i3, and say when it rises and when it is full.",
        epilog="For example: python i3charge.py --demo; python i3charge.py | tee -a charge.log",
    )
    parser.add_argument("--once", action="store_true", help="take one reading, then end")
    parser.add_argument("--json", action="store_true", help="log one JSON object a line")
    parser.add_argument("--demo", action="store_true", help="log a simulated i3 until it is full")
    parser.add_argument("--env-file", type=Path, metavar="PATH", help="read the settings from PATH")
    parser.add_argument("-v", "--verbose", action="store_true", help="show what BMW answers")
    parser.add_argument("--version", action="version", version=f"i3charge {__version__}")
    arguments = parser.parse_args()
    logger.setLevel(logging.DEBUG if arguments.verbose else logging.INFO)
    path = arguments.env_file or Path(__file__).resolve().with_name(".env")
    try:
        variables, typos = load_variables(path, required=bool(arguments.env_file))
        if not arguments.demo:
            return start(arguments, Settings(variables, typos), path)
        with simulated_bmw() as simulated:
            own = {n: variables.get(n, "") for n in ("NTFY_URL", "WEBHOOK_URL", "NOTIFY_AT")}
            return start(arguments, Settings({**simulated, **own}, typos), path)
    except SettingsError as error:
        for line in error.args:
            logger.error("%s", line)
        return 2
    except Exception as problem:  # noqa: BLE001 - no traceback, whatever it is
        logger.critical("%s", fault(problem))
        return 1


# --- The demo -------------------------------------------------------------------------------
@contextmanager
def simulated_bmw() -> Iterator[dict[str, str]]:
    """A BMW on this computer whose i3 charges from 61 % to full; yields the settings for it."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    story = iter([("NOT_CHARGING", 61.0), *(("CHARGING", 61 + 1.5 * n) for n in range(26))])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(302)
            self.send_header("Location", "demo:#access_token=demo")
            self.end_headers()

        def do_GET(self) -> None:
            """The car's status: plugged in, then charging as if at 11 kW, then full."""
            status, charge = next(story, ("FINISHED_FULLY_CHARGED", 100.0))
            car = {"chargingLevelHv": str(charge), "chargingHVStatus": status}
            car["connectorStatus"] = "CONNECTED"
            car["chargingTimeRemaining"] = f"{(100 - charge) * 3.6:.1f}"
            car["beRemainingRangeElectric"] = f"{charge * 1.6:.1f}"
            car["updateTime"] = f"{datetime.now(timezone.utc):%d.%m.%Y %H:%M:%S} UTC"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"attributesMap": car}).encode())

        def log_message(self, *_: object) -> None:
            """Nothing: the demo's log is the owner's."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        settings = {"AUTH_BASE_URL": url, "CONNECTED_DRIVE_BASE_URL": url, "LOG_INTERVAL": "570"}
        settings |= dict.fromkeys(("USERNAME", "PASSWORD", "AUTH_CLIENT_ID"), "demo")
        settings |= {"AUTH_REDIRECT_URI": "demo:"}
        yield {**settings, "VEHICLE_IDENTIFICATION_NUMBER": "WBY00000000000000"}


if __name__ == "__main__":
    sys.exit(main())
