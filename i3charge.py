#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = [
#   "requests>=2.28,<3",
#   "python-dotenv>=1.0,<2",
#   "pync>=2.0.3,<3; sys_platform == 'darwin'",
# ]
# ///
"""Log the charge of a BMW i3, and tell its owner when the car is full.

The script polls BMW for the car's status. It writes one line per reading to stdout, and
all other log lines to stderr. It shows news, for example that the car is full, as a
notification on this computer, and sends most of it to the owner's phone as well.

Settings come from `.env` beside this file and from the environment. State that must
survive a restart (the sign-in, what the car has said, undelivered messages) is kept in
`.i3charge.json` beside the settings file.

The code follows the data from top to bottom: the settings, the data types
(observations, readings, news), the memory, HTTP requests, the doors (BMW's APIs, which
are the sources of observations), the car's stays, the reading, the news, the watch
(what the owner has been told, and when to poll next), the log, notifications, the main
loop, the command line, and the demo's simulated car.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    # Until main() runs, Ctrl-C ends the program without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import base64
import dataclasses
import fcntl
import hashlib
import io
import ipaddress
import json
import logging
import math
import os
import re
import secrets
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import (
    IO,
    TYPE_CHECKING,
    Any,
    Callable,
    Literal,
    NamedTuple,
    NoReturn,
    Protocol,
    TypeVar,
    get_args,
)
from urllib.parse import parse_qsl, quote, unquote, urlsplit

# urllib3 warns about macOS's old TLS library, which the owner cannot change.
warnings.filterwarnings("ignore", module="urllib3")

try:
    import requests
    import urllib3
    from dotenv.parser import parse_stream
except (ImportError, OSError) as problem:  # OSError: no CA certificates
    sys.exit(f"i3charge: {problem}; README.md explains how to install it")

if TYPE_CHECKING:
    import subprocess

__version__ = "4.0.0"
logger = logging.getLogger("i3charge")

# A name that ends in `_s` holds seconds: a duration, or a time as from time.time().
MINUTE_S = 60.0
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S


# --- Errors ---------------------------------------------------------------------------
class CannotGoOn(Exception):
    """A fatal error. Its lines tell the owner why the program exits."""

    def __init__(self, *lines: str, exit_status: int = 2) -> None:
        super().__init__(*lines)
        self.lines = lines
        self.exit_status = exit_status


@dataclass(eq=False)
class Trouble(Exception):
    """A failure that may be temporary."""

    why: str  # for the log
    code: str = ""  # CarData's error code, or "HTTP 404"; "" if there is none
    wait_s: float | None = None  # until the next try; None to use growing_pause_s()
    news: News | None = None  # for the owner; not repeated within a day
    needs_sign_in: bool = False  # the owner must sign in, which is not an error
    may_have_arrived: bool = True  # whether the server may have the request

    def __str__(self) -> str:
        return self.why


def trouble_of(problem: Exception) -> Trouble:
    """Convert any exception to a Trouble."""
    if isinstance(problem, Trouble):
        return problem
    if isinstance(problem, CannotGoOn):
        sentence = " ".join(problem.lines)
    else:
        sentence = describe_fault(problem)
    return Trouble(sentence, news=News("error", sentence))


OWN_FAULT = "a fault in i3charge itself"


def describe_fault(problem: Exception) -> str:
    """Describe an internal error without its text, which could contain a secret."""
    frames = traceback.extract_tb(problem.__traceback__)
    for frame in frames:
        name = Path(frame.filename).name
        logger.debug("  %s, line %s, in %s", name, frame.lineno, frame.name)
    place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
    what = type(problem).__name__
    return f"{OWN_FAULT}: {what} in {place}; please report it"


def is_own_fault(sentence: str) -> bool:
    return sentence.startswith(OWN_FAULT)


MIN_LONGEST_PAUSE_S = 5 * MINUTE_S  # if the polling interval is shorter


def growing_pause_s(failures: int, longest_s: float) -> float:
    """Return the pause after consecutive failures: 1, 2, 4 … minutes, up to a limit."""
    longest_s = max(longest_s, MIN_LONGEST_PAUSE_S)
    return min(MINUTE_S * 2.0 ** min(failures - 1, 20), longest_s)


def seconds_until(planned_s: float, longest_s: float) -> float:
    """Return the seconds until a planned time; 0 if it has passed.

    Also return 0 if the wait exceeds `longest_s`: the clock must have been wrong when
    it was planned.
    """
    wait_s = planned_s - time.time()
    return wait_s if 0 < wait_s <= longest_s else 0.0


# --- Settings -------------------------------------------------------------------------
# A door is a source of observations: one of BMW's APIs, or the demo's simulated car.
DoorName = Literal["CarData", "portal", "demo"]
CARDATA: tuple[DoorName, ...] = ("CarData",)
PORTAL: tuple[DoorName, ...] = ("portal",)
BMW: tuple[DoorName, ...] = ("CarData", "portal")
ALL: tuple[DoorName, ...] = ("CarData", "portal", "demo")

REQUIRED = object()

CARDATA_URL = "https://api-cardata.bmwgroup.com/"
CARDATA_AUTH_URL = "https://customer.bmwgroup.com/gcdm/oauth/"
PORTAL_URL = "https://www.bmw-connecteddrive.nl/api/"
PORTAL_LOGIN_URL = "https://customer.bmwgroup.com/gcdm/oauth/authenticate"
PORTAL_REDIRECT_URI = (
    "https://www.bmw-connecteddrive.com/app/default/static/external-dispatch.html"
)


def setting(
    name: str,
    parse: Callable[[str], Any],
    doors: tuple[DoorName, ...],
    default: object = "",
) -> Any:
    """Declare a field that is read from the variable `name` if one of `doors` is used.

    `parse` raises ValueError with a message that says what the text should be. The
    message must not contain the text, which could be a misplaced password.
    """
    metadata = {"name": name, "parse": parse, "doors": doors, "default": default}
    return field(default="" if default is REQUIRED else default, metadata=metadata)


def parse_typed(text: str) -> str:
    """Strip the text, and reject stray characters picked up by copy and paste."""
    text = text.strip()
    for char in text:
        if not char.isprintable() or not (char.isascii() or char.isalnum()):
            raise ValueError("contains a stray character: type it by hand")
    return text


def parse_vin(text: str) -> str:
    vin = parse_typed(text).upper()
    if len(vin) != 17:
        raise ValueError(f"should be 17 characters (this has {len(vin)})")
    if not re.fullmatch("[A-HJ-NPR-Z0-9]{17}", vin):
        raise ValueError("should be 17 letters and digits, none of them I, O or Q")
    return vin


def parse_client_id(text: str) -> str:
    """Convert a UUID to lower case: BMW may show upper case, but does not accept it."""
    client_id = parse_typed(text)
    if not re.fullmatch("[A-Za-z0-9-]+", client_id):
        raise ValueError("should be letters, digits and hyphens")
    uuid = "[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
    return client_id.lower() if re.fullmatch(uuid, client_id) else client_id


def parse_https(text: str) -> str:
    """Accept only https or this computer, because secrets are sent to this address."""
    address = parse_typed(text)
    if not is_web_address(address, ["https"]) and not is_loopback(address):
        raise ValueError("should be an address that begins with https://")
    return address


def parse_web(text: str) -> str:
    address = parse_typed(text)
    if is_web_address(address, ["https", "http"]):
        return address
    if re.match("https?://.*@", address, re.IGNORECASE):
        raise ValueError(
            "is no valid address: a password in it has to be percent-encoded:"
            " # is %23, / is %2F"
        )
    raise ValueError("should be an address that begins with http:// or https://")


def parse_ntfy(text: str) -> str:
    address = parse_web(text)
    if not urlsplit(address).path.strip("/"):
        raise ValueError("should end with a topic, such as 20 random letters")
    return address


def parse_percent(text: str) -> float:
    """Parse the percentage at which the owner wants to be told; 0 means none."""
    if not re.fullmatch(r"\s*([1-9][0-9]?%?|0)\s*", text):
        raise ValueError("should be a whole number from 1 to 99")
    return float(text.strip().rstrip("%"))


def parse_milliseconds(text: str) -> float:
    """Convert milliseconds to seconds."""
    if not re.fullmatch(r"\s*0*[1-9][0-9]{0,7}\s*", text, re.ASCII):
        raise ValueError(
            "should be a whole number of milliseconds, such as 2400000 for 40 minutes"
        )
    return int(text) / 1000


@dataclass(frozen=True)
class Settings:
    vin: str = setting("VEHICLE_IDENTIFICATION_NUMBER", parse_vin, BMW, REQUIRED)
    client_id: str = setting("CARDATA_CLIENT_ID", parse_client_id, CARDATA, REQUIRED)

    ntfy_url: str = setting("NTFY_URL", parse_ntfy, ALL)
    webhook_url: str = setting("WEBHOOK_URL", parse_web, ALL)
    notify_at: float = setting("NOTIFY_AT", parse_percent, ALL, 0.0)
    interval_s: float = setting("LOG_INTERVAL", parse_milliseconds, BMW, 0.0)
    cardata_url: str = setting("CARDATA_BASE_URL", parse_https, CARDATA, CARDATA_URL)
    cardata_auth_url: str = setting(
        "CARDATA_AUTH_BASE_URL", parse_https, CARDATA, CARDATA_AUTH_URL
    )

    username: str = setting("USERNAME", parse_typed, PORTAL, REQUIRED)
    password: str = setting("PASSWORD", str, PORTAL, REQUIRED)
    auth_client_id: str = setting("AUTH_CLIENT_ID", parse_typed, PORTAL, REQUIRED)
    portal_url: str = setting(
        "CONNECTED_DRIVE_BASE_URL", parse_https, PORTAL, PORTAL_URL
    )
    login_url: str = setting("AUTH_BASE_URL", parse_https, PORTAL, PORTAL_LOGIN_URL)
    redirect_uri: str = setting(
        "AUTH_REDIRECT_URI", parse_typed, PORTAL, PORTAL_REDIRECT_URI
    )


SETTING_NAMES = [each.metadata["name"] for each in dataclasses.fields(Settings)]


class Pace(NamedTuple):
    """A door's default and minimum polling interval, and why there is a minimum."""

    default_s: float
    min_s: float
    why: str


PACES: dict[DoorName, Pace] = {
    "CarData": Pace(2400.0, 2400.0, "CarData allows 50 requests a day"),
    "portal": Pace(60.0, 10.0, "BMW blocks clients that poll faster"),
    "demo": Pace(0.57, 0.0, ""),
}


def load_settings(
    variables: Mapping[str, str],
    door: DoorName,
    advice: str,
    names_in_file: Iterable[str] = (),
) -> Settings:
    """Return the settings that a door needs.

    Raise CannotGoOn with all problems at once, and `advice` if a setting is missing.
    """
    problems = misspelt_names(names_in_file)
    missing = []
    values = {}
    for each in dataclasses.fields(Settings):
        if door not in each.metadata["doors"]:
            continue
        name = each.metadata["name"]
        text = variables.get(name, "")
        if text.strip():
            try:
                values[each.name] = each.metadata["parse"](text)
            except ValueError as error:
                problems.append(f"{name} {error}")
        elif each.metadata["default"] is REQUIRED:
            missing.append(f"{name} is missing or empty")

    if missing:
        missing.append(advice)
    if problems or missing:
        raise CannotGoOn(*problems, *missing)
    return with_pace(Settings(**values), PACES[door])


def with_pace(settings: Settings, pace: Pace) -> Settings:
    """Apply the default and minimum interval, but no minimum to a local simulator."""
    interval_s = settings.interval_s or pace.default_s
    is_simulated = is_loopback(settings.cardata_url) or is_loopback(settings.portal_url)
    if interval_s < pace.min_s and not is_simulated:
        logger.warning(
            "LOG_INTERVAL is raised to %d milliseconds (%s): %s",
            pace.min_s * 1000,
            duration(pace.min_s),
            pace.why,
        )
        interval_s = pace.min_s
    return dataclasses.replace(settings, interval_s=interval_s)


def read_settings_file(path: Path) -> dict[str, str]:
    """Return a file's variables. Raise CannotGoOn if it is unreadable or malformed."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        mode = path.stat().st_mode
    except OSError as error:
        raise CannotGoOn(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise CannotGoOn(f"{path} cannot be read: it should be UTF-8 text") from None
    if path.is_file() and mode & 0o066:
        logger.warning(
            "other users can read or change the settings; run: chmod 600 '%s'", path
        )
    return variables_in(text, path)


def variables_in(text: str, path: Path) -> dict[str, str]:
    """Parse a settings file. Raise CannotGoOn with all malformed lines."""
    variables = {}
    broken = []
    for binding in parse_stream(io.StringIO(text)):
        # Do not show any other key: it may be an address that contains "=".
        name = binding.key or ""
        if re.fullmatch(r"[\w.-]+", name) and binding.value is not None:
            variables[name] = binding.value
        elif name or binding.error:
            # dotenv reports the line of the first blank line before a binding.
            original = binding.original.string
            blank_lines = original[: len(original) - len(original.lstrip())].count("\n")
            line = binding.original.line + blank_lines
            broken.append(
                f"{path}, line {line}: should be NAME=value (is a quote missing?)"
            )
    if broken:
        raise CannotGoOn(*broken)
    return variables


def misspelt_names(names: Iterable[str]) -> list[str]:
    """Return a problem for each misspelt setting; warn about other unknown names."""
    problems = []
    for name in sorted(set(names) - set(SETTING_NAMES)):
        import difflib  # here, because it is slow to import and seldom needed

        # With a cutoff of 0.85, DATABASE_URL would match CARDATA_BASE_URL.
        meant = difflib.get_close_matches(name.upper(), SETTING_NAMES, 1, cutoff=0.86)
        if meant:
            problems.append(f"{name} is not a setting; did you mean {meant[0]}?")
        else:
            logger.warning("%s is not a setting of i3charge", name)
    return problems


def is_web_address(url: str, schemes: list[str]) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a missing bracket or a non-numeric port
        return False


def is_loopback(url: str) -> bool:
    local = ("localhost", "127.0.0.1", "::1")
    return is_web_address(url, ["https", "http"]) and urlsplit(url).hostname in local


# --- Observations, readings and news --------------------------------------------------
CLOCK_ERROR_S = DAY_S  # a timestamp farther in the future is ignored

# Observations with the same time are processed in this order.
Topic = Literal[
    "plug", "percent", "displayed", "status", "hv_status", "full_at", "reason", "predicted"
]  # fmt: skip
TOPICS: tuple[Topic, ...] = get_args(Topic)


class Observation(NamedTuple):
    """A topic's value, sent by the car or (predicted, hv_status) computed by BMW."""

    at_s: float  # when the car sent it; 0 if BMW gives no valid time
    topic: Topic
    value: Any  # one of BMW's keywords, a percentage, or the time expected for full


@dataclass(frozen=True)
class Report:
    """An answer from BMW: the latest observation on each topic, and the range."""

    taken_s: float
    as_of_s: float  # the time of observations that have none of their own
    observations: list[Observation]
    range: float | None = None  # in range_unit
    range_unit: str = ""  # "km" or "mi"; "" if BMW does not name it
    interpolates: bool = True  # whether we may interpolate the percentage


Status = Literal[
    "charging", "full", "waiting", "error", "plugged in", "not charging", "unplugged",
    "unknown"
]  # fmt: skip
ACTIVE = ("charging", "waiting")

# What the keywords of charging.status and hvStatus mean to the owner. They do not say
# whether the car was full when a charge ended.
STATUS_OF_WORD: dict[str, Status] = {
    "CHARGINGACTIVE": "charging",
    "CHARGING": "charging",
    "CHARGINGPAUSED": "waiting",
    "CHARGINGINTERRUPTED": "waiting",
    "CHARGINGDISRUPTED": "waiting",
    "INITIALIZATION": "waiting",
    "WAITING_FOR_CHARGING": "waiting",
    "CHARGINGERROR": "error",
    "ERROR": "error",
    "NOCHARGING": "not charging",
    "CHARGINGENDED": "plugged in",
    "NOT_CHARGING": "plugged in",
    "FINISHED_NOT_FULL": "plugged in",
    "FINISHED_FULLY_CHARGED": "plugged in",  # goal reached, at 80 % on other models
}
NOCHARGING = "NOCHARGING"  # does not say whether the car is plugged in
CHARGING_ENDED = "CHARGINGENDED"
HV_GOAL_REACHED = "FINISHED_FULLY_CHARGED"

GOAL_REACHED = "CHARGING_GOAL_REACHED"
REASON_OF_WORD = {
    GOAL_REACHED: "",
    "POWERGRID_FAILED": "the station lost power",
    "CONNECTOR_REMOVED": "the plug was pulled",
    "CHARGING_STATION_FAILURE": "the station failed",
    "END_REQUESTED_BY_DRIVER": "stopped by hand",
    "HV_SYSTEM_FAILURE": "a fault in the car",
}

STATUS_AT_REST: dict[bool | None, Status] = {
    True: "plugged in",
    False: "unplugged",
    None: "not charging",  # a car whose plug is not known
}

CONNECTED = "CONNECTED"
KEYWORDS: dict[Topic, Iterable[str]] = {
    "plug": (CONNECTED, "DISCONNECTED"),
    "status": STATUS_OF_WORD,
    "hv_status": STATUS_OF_WORD,
    "reason": REASON_OF_WORD,
}


SENT_PERCENTAGES: tuple[Topic, ...] = ("percent", "displayed")
PERCENTAGES: tuple[Topic, ...] = (*SENT_PERCENTAGES, "predicted")


def is_possible(topic: Topic, value: object) -> bool:
    if topic in KEYWORDS:
        return text_or_empty(value) in KEYWORDS[topic]
    if topic in PERCENTAGES:
        return is_amount(value) and number(value, most=100) is not None
    return is_amount(value)


@dataclass(frozen=True)
class Reading:
    """The car's state at one poll, in terms that the owner understands.

    Unknown values are None or "", and unknown times are 0.
    """

    percent: float = 0.0  # 0 to 100, as on the car's own display
    taken_s: float = 0.0  # when BMW answered
    status: Status = "unknown"
    predicted: bool = False  # the percentage was computed, by BMW or us
    plugged: bool | None = None
    range: float | None = None  # in range_unit
    range_unit: str = ""  # "km" or "mi"
    full_at_s: float = 0.0  # the car's estimate; set only while charging
    reported_s: float = 0.0  # when the car sent the percentage: see reading_of()

    @property
    def percent_text(self) -> str:
        """The percentage, rounded down since 99.6 % is not full; "~" if predicted."""
        return f"{'~' if self.predicted else ''}{int(self.percent)}%"

    @property
    def minutes_to_full(self) -> float | None:
        """Minutes until full; None if unknown or past: BMW keeps sending old ones."""
        left_s = self.full_at_s - self.taken_s
        if not self.full_at_s or left_s < -MINUTE_S:
            return None
        return max(0.0, round(left_s / MINUTE_S, 1))

    @property
    def full_clock(self) -> str:
        """The time of day when the car should be full; "" if unknown."""
        if self.minutes_to_full is None:
            return ""
        return clock_at(self.full_at_s, self.taken_s)


Kind = Literal[
    "started", "step", "reached", "soon", "overdue", "full", "stopped", "paused", "still",
    "sign-in", "error"
]  # fmt: skip


@dataclass(frozen=True)
class News:
    """A piece of news for the owner."""

    kind: Kind = "error"
    message: str = ""
    while_plugged: str = ""  # a last sentence, true until the car is unplugged
    at_s: float = 0.0  # when the event happened
    since_s: float = 0.0  # when the event's stay, charge or pause began
    click: str = ""  # URL to open when the notification is tapped
    good_until_s: float = 0.0  # 0 for a day

    @property
    def text(self) -> str:
        return f"{self.message} {self.while_plugged}".rstrip()


def clock_at(at_s: float, now_s: float) -> str:
    """Return a local time of day, such as "14:05".

    Add the weekday if the day is ambiguous ("Fri 14:05"), or the date after six days.
    """
    moment = datetime.fromtimestamp(at_s)
    is_today = moment.date() == datetime.fromtimestamp(now_s).date()
    if abs(now_s - at_s) > 6 * DAY_S:
        return f"{moment:%d %b %H:%M}"
    if at_s - now_s > DAY_S / 2 or (at_s < now_s and not is_today):
        return f"{moment:%a %H:%M}"
    return f"{moment:%H:%M}"


def duration(span_s: float) -> str:
    """Format a duration: "90 s", "25 min", "2 h 20 min", "14 h", "4 days"."""
    minutes = round(span_s / 60)
    if span_s < 119.5:
        return f"{round(span_s)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 10 * 60:
        hours, rest = divmod(minutes, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    if minutes < 48 * 60:
        return f"{round(minutes / 60)} h"
    return f"{round(minutes / 1440)} days"


# --- Untrusted values from servers ----------------------------------------------------
def text_or_empty(value: object) -> str:
    return value if isinstance(value, str) else ""


def dict_or_empty(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def list_or_empty(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def is_amount(value: object) -> bool:
    """Return whether a value can be a duration, time or percentage; json parses NaN."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value < 1e11  # type: ignore[operator]


def number(value: object, most: float) -> float | None:
    """Parse a number or numeric string from 0 to `most`; return None if invalid."""
    text = str(value).strip() if isinstance(value, (str, int, float)) else ""
    if re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,20})?", text) and float(text) <= most:
        return float(text)
    return None


def timestamp_s(value: object, now_s: float) -> float:
    """Convert an ISO 8601 timestamp to Unix time; a missing offset means UTC.

    Return 0 if it is invalid, before 1970, or too far in the future.
    """
    text = text_or_empty(value).replace("Z", "+00:00")
    # Python 3.9 and 3.10 accept fractional seconds with 3 or 6 digits only.
    text = re.sub(r"\.([0-9]+)", lambda found: f".{found[1][:6]:0<6}", text)
    with suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        at_s = moment.timestamp()
        return at_s if 0 < at_s <= now_s + CLOCK_ERROR_S else 0.0
    return 0.0


def is_token(value: object) -> bool:
    """Return whether a value is safe in an HTTP header and on a terminal."""
    return bool(re.fullmatch(r"[\x21-\x7e]+", text_or_empty(value)))


def printable(value: object, hidden: Iterable[str]) -> str:
    """Make a server's text safe to log: one short line, with secrets masked."""
    text = text_or_empty(value)
    for secret in sorted(filter(None, hidden), key=len, reverse=True):
        text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
    text = " ".join(text.split())
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text[:200] or "no reason given"


# --- Memory: state kept across restarts -----------------------------------------------
@dataclass
class SignInState:
    """The client id's OAuth tokens. A refresh token shows that the id has worked."""

    access_token: str = ""
    expires_s: float = 0.0  # when the access token expires
    refresh_token: str = ""  # valid for two weeks, and for a single use
    refusals: int = 0  # consecutive, of the refresh token
    is_out_of_scope: bool = False  # not valid for CarData; renewing does not help
    codes: int = 0  # device codes requested since the last sign-in or refused code
    codes_refused: int = 0  # confirmed codes that BMW refused since the last sign-in
    next_code_s: float = 0.0  # earliest time to request another device code


@dataclass
class Container:
    """A CarData container, which is the set of descriptors to read from the car."""

    id: str = ""
    purpose: str = ""  # its key in DESCRIPTORS
    next_search_s: float = 0.0  # earliest time to search for another container
    # When BMW lost other containers, by their ids
    lost_s: dict[str, float] = field(default_factory=dict)


@dataclass
class Message:
    """A piece of news that has yet to be delivered to one address."""

    address: str = ""  # name of the setting that holds the address
    news: News = field(default_factory=News)
    made_s: float = 0.0
    charge: float | None = None  # percent at that time, like the next two fields
    predicted: bool | None = None
    status: str = ""
    next_try_s: float = 0.0  # 0 before the first try
    unanswered: int = 0  # tries that may have been delivered
    is_refused: bool = False  # the last answer was a refusal, possibly permanent

    @property
    def good_until_s(self) -> float:
        return self.news.good_until_s or self.made_s + DAY_S

    @property
    def summary(self) -> str:
        """The message on one line, for the log."""
        return " ".join(self.news.text.split())


@dataclass
class Memory:
    """All state that survives a restart. One process loads it once and owns it."""

    client_id: str = ""  # the sign-in and the container belong to it
    vin: str = ""  # the car that the fields from journal to news_told_s describe
    sign_in: SignInState = field(default_factory=SignInState)
    container: Container = field(default_factory=Container)
    requests_s: list[float] = field(default_factory=list)  # CarData's last 24 hours
    journal: list[Observation] = field(default_factory=list)
    last: Reading | None = None
    range_unit: str = ""  # the last unit that BMW has named for the car
    step_from: float = 100.0  # the lowest percentage since the last news
    # When the latest news of each kind happened, and when each trouble was told
    news_told_s: dict[str, float] = field(default_factory=dict)
    troubles_told_s: dict[str, float] = field(default_factory=dict)
    outbox: list[Message] = field(default_factory=list)


class MemoryFile:
    """The JSON file that stores the memory, readable only by its owner."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.works = True  # whether the last save succeeded
        self._lock = locked(Path(f"{path}.lock"))

    def load(self, client_id: str, vin: str) -> Memory:
        """Load the memory, and reset what belongs to another client id or car."""
        memory = self._read()
        # BMW counts requests per account, so keep their times for a new client id. The
        # portal has no client id, and trying it must not lose the CarData sign-in.
        if client_id and memory.client_id != client_id:
            memory.client_id = client_id
            memory.sign_in = SignInState()
            memory.container = Container()
        if memory.vin != vin:
            memory.vin = vin
            memory.journal = []
            memory.last = None
            memory.range_unit = ""
            memory.step_from = 100.0
            memory.news_told_s = {}
        return memory

    def _read(self) -> Memory:
        try:
            saved = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return Memory()
        except OSError as error:
            why = f"{self._path} cannot be read: {error.strerror}"
            raise CannotGoOn(why) from None
        except (ValueError, RecursionError):
            saved = None
        if not isinstance(saved, dict):
            self._put_aside()
            return Memory()

        memory = restored(Memory(), saved)
        memory.last = restored_reading(saved.get("last"))
        memory.journal = list(observations_in(saved.get("journal")))
        memory.outbox = list(messages_in(saved.get("outbox")))
        return memory

    def _put_aside(self) -> None:
        """Rename a damaged file for the owner, as it may still hold the sign-in."""
        damaged = Path(f"{self._path}.damaged")
        try:
            os.replace(self._path, damaged)
        except OSError as error:
            why = f"{self._path} is damaged, and cannot be renamed: {error.strerror}"
            raise CannotGoOn(why) from None
        logger.error(
            "%s is damaged, and was renamed to %s; you will have to sign in again",
            self._path,
            damaged.name,
        )

    def save(self, memory: Memory) -> bool:
        """Replace the file atomically; return whether that succeeded."""
        aside = Path(f"{self._path}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            with open(os.open(aside, flags, 0o600), "w") as file:
                json.dump(dataclasses.asdict(memory), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, self._path)
        except OSError as error:
            if self.works:
                logger.error(
                    "%s cannot be written (%s); unsaved state is lost on a restart",
                    self._path,
                    error.strerror,
                )
            self.works = False
        else:
            self.works = True
        return self.works


def locked(path: Path) -> IO[str] | None:
    """Lock a file until this process exits. Raise CannotGoOn if another one has it.

    Return None if it cannot be locked: not every file system supports locks.
    """
    try:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            process = file.read(20).strip()
        why = f"i3charge is already running (process {process})"
        raise CannotGoOn(why, exit_status=1) from None
    except OSError:
        return None
    with suppress(OSError):  # a full disk; the lock holds without a number
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
    return file


Record = TypeVar("Record")


def restored(defaults: Record, saved: object) -> Record:
    """Return a copy of `defaults` with all saved values that have the right type.

    Another version may have saved the file, so values of the wrong type are ignored.
    """
    valid = {}
    for name, value in dict_or_empty(saved).items():
        if name not in vars(defaults):
            continue
        default = getattr(defaults, name)
        if dataclasses.is_dataclass(default):
            valid[name] = restored(default, value)
        elif fits(value, default):
            valid[name] = value
    return dataclasses.replace(defaults, **valid)  # type: ignore[type-var]


def fits(value: object, default: object) -> bool:
    """Return whether a saved value has the type of its default."""
    if default is None:  # an optional number or truth value
        return value is None or isinstance(value, bool) or is_amount(value)
    if isinstance(default, float):
        return is_amount(value)
    if isinstance(default, list):
        return isinstance(value, list) and all(map(is_amount, value))
    if isinstance(default, dict):
        return isinstance(value, dict) and all(map(is_amount, value.values()))
    return type(value) is type(default)


def restored_reading(saved: object) -> Reading | None:
    """Return the last reading, or None if it has no percentage."""
    values = dict_or_empty(saved)
    if "charge" in values:  # as version 3.1.0 named it
        values = {**values, "percent": values["charge"]}
    if not is_amount(values.get("percent")):
        return None
    reading = restored(Reading(), values)
    return reading if reading.status in get_args(Status) else None


def messages_in(saved: object) -> Iterator[Message]:
    """Yield the messages of a saved outbox that can be delivered."""
    for each in list_or_empty(saved):
        message = restored(Message(), each)
        is_known = message.news.kind in get_args(Kind)
        if is_known and message.address and message.news.message:
            yield message


def observations_in(saved: object) -> Iterator[Observation]:
    """Yield the valid observations in a saved journal."""
    for each in list_or_empty(saved):
        if not isinstance(each, list) or len(each) != 3:
            continue
        at_s, topic, value = each
        is_time = is_amount(at_s) and at_s <= time.time() + CLOCK_ERROR_S
        if is_time and topic in TOPICS and is_possible(topic, value):
            yield Observation(at_s, topic, value)


def memory_path(settings_path: Path) -> Path:
    """Return the path of a settings file's own memory, beside it."""
    name = settings_path.name
    middle = "" if name == ".env" else f"-{name}"
    return settings_path.with_name(f".i3charge{middle}.json")


@dataclass(frozen=True)
class Store:
    """The memory, and a function that saves it and returns whether that succeeded."""

    memory: Memory
    save: Callable[[], bool]


# --- HTTP requests --------------------------------------------------------------------
@dataclass(frozen=True)
class HttpAnswer:
    what: str  # describes the request to the owner, such as "the login"
    host: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the JSON object in the body, or an empty dict if there is none."""
        # ValueError: not JSON, not UTF-8, or a huge integer. RecursionError: too deep.
        with suppress(ValueError, RecursionError):
            return dict_or_empty(json.loads(self.body))
        return {}

    def trouble(self, wait_s: float | None = None) -> Trouble:
        """Return the Trouble to raise for an unusable answer."""
        how = "failed" if self.status >= 500 else "gave no useful answer"
        why = f"{self.host} {how} when asked for {self.what} (HTTP {self.status})"
        return Trouble(why, code=f"HTTP {self.status}", wait_s=wait_s)


CHUNK_BYTES = 1 << 12  # a compressed chunk can expand to 1,000 times its size
BODY_LIMIT_BYTES = 1 << 20  # the car's status takes about 4,000

# Hints for the owner if this computer could not send a request. The first type that
# matches is used.
LOCAL_TROUBLES: dict[type[Exception], str] = {
    requests.exceptions.ProxyError: "check ALL_PROXY and HTTPS_PROXY",
    # A SOCKS proxy needs a package that is not installed.
    requests.exceptions.InvalidSchema: "check ALL_PROXY: SOCKS needs pysocks",
    # Networks with a login page answer with their own certificate, and a certificate
    # appears not to be valid yet if the computer's clock has not been set.
    requests.exceptions.SSLError: "check the network, the clock and REQUESTS_CA_BUNDLE",
    requests.exceptions.InvalidURL: "check the address, ALL_PROXY and HTTPS_PROXY",
    urllib3.exceptions.LocationValueError: "check the address",
}


def without_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Do nothing. If passed as `auth`, this stops requests from reading `~/.netrc`."""
    return request


def send(
    what: str,
    method: str,
    url: str,
    *,
    timeout_s: tuple[float, float] = (10.0, 30.0),  # to connect, and between reads
    headers: Mapping[str, str] | None = None,
    **parts: Any,
) -> HttpAnswer:
    """Send a request over a new connection; pass `parts` on to requests.request().

    `what` describes the request to the owner. Raise Trouble if no answer arrives.
    """
    host = urlsplit(url).hostname or ""
    own_headers = {
        "User-Agent": f"i3charge/{__version__}",
        "Accept-Encoding": "identity",
    }
    try:
        with requests.request(
            method,
            url,
            headers={**own_headers, **(headers or {})},
            timeout=timeout_s,
            proxies={"no_proxy": "*"} if is_nearby(host) else None,
            allow_redirects=False,
            stream=True,
            **{"auth": without_netrc, **parts},
        ) as response:
            body = read_body(response)
    except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
        # Do not log these errors' text, which contains the URL. A malformed Location
        # raises ValueError even though redirects are not followed.
        why = f"no answer from {host} when asked for {what} ({type(error).__name__})"
        hint = hint_for(error)
        if hint:
            why += f": {hint}"
        raise Trouble(why, may_have_arrived=may_have_been_sent(error)) from None

    logger.debug("asked %s for %s: HTTP %d", host, what, response.status_code)
    return HttpAnswer(what, host, response.status_code, response.headers, body)


def is_nearby(host: str) -> bool:
    """Return whether a host is on the owner's own network, without a DNS lookup.

    A proxy cannot reach it, and must not see the secret path in its address.
    """
    with suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0]).is_private
    return "." not in host or host.endswith(".local")


def read_body(response: requests.Response) -> bytes:
    """Read and decompress the body, up to a limit. Return b"" if reading fails."""
    body = b""
    with suppress(OSError, urllib3.exceptions.HTTPError):
        for chunk in response.iter_content(CHUNK_BYTES):
            body += chunk
            if len(body) >= BODY_LIMIT_BYTES:
                break
        return body[:BODY_LIMIT_BYTES]
    return b""


def hint_for(error: Exception) -> str:
    """Return what the owner can check, if the cause is on this computer."""
    for kind, hint in LOCAL_TROUBLES.items():
        if isinstance(error, kind):
            return hint
    is_of_requests = isinstance(error, requests.exceptions.RequestException)
    if isinstance(error, OSError) and not is_of_requests:
        return (
            "check REQUESTS_CA_BUNDLE, or set up .venv anew: certificates are missing"
        )
    return ""


def may_have_been_sent(error: BaseException | None) -> bool:
    """Return whether a request may have reached its server before an error.

    It has not if the error occurred before or during http.client's connect(), which
    includes the TLS handshake. After that, endheaders() sends the request.
    """
    steps = set()
    while error:
        steps |= {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        error = error.__context__
    sent = {"endheaders", "getresponse", "resolve_redirects"}
    return "connect" not in steps and bool(steps & sent)


# --- CarData: sign-in -----------------------------------------------------------------
SUBSCRIBE_ADVICE = "subscribe the client id to the CarData API in the My BMW portal"
# The pauses after the first device code and after each later one
CODE_PAUSES_S = (HOUR_S, 6 * HOUR_S)

# OAuth error codes (RFC 8628, 3.5)
PENDING = "authorization_pending"
SLOW_DOWN = "slow_down"
EXPIRED = "expired_token"
# BMW's answer if it could not process a confirmed code, which is then used up.
CODE_USED_UP = b"keymanagement.service.invalid_access_token"


@dataclass
class DeviceCode:
    """A device code and the user code that the owner must confirm (RFC 8628)."""

    device_code: str
    user_code: str
    address: str  # the page where the owner confirms it
    verifier: str  # for PKCE (RFC 7636)
    interval_s: float  # between polls for the tokens
    expires_s: float


class CarDataSignIn:
    """The OAuth 2.0 sign-in to CarData: by device code, then by refresh tokens."""

    SCOPE = "authenticate_user openid cardata:api:read"
    DEVICE_CODE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
    RENEW_BEFORE_S = 60.0
    TIMEOUT_S = (5.0, 10.0)  # short, because Ctrl-C is blocked meanwhile

    def __init__(
        self, settings: Settings, store: Store, *, may_ask: bool, by_hand: bool
    ) -> None:
        self._url = settings.cardata_auth_url.rstrip("/")
        self._client_id = settings.client_id
        self._longest_pause_s = settings.interval_s
        self._memory = store.memory
        self._save = store.save
        self._may_ask = may_ask  # whether the owner may be asked to confirm a code
        self._code: DeviceCode | None = None  # the one that the owner was shown
        self._next_renewal_s = 0.0  # earliest time to try the refresh token again
        if by_hand:
            store.memory.sign_in.codes = 0
            store.memory.sign_in.codes_refused = 0
            store.memory.sign_in.next_code_s = 0.0

    def access_token(self) -> str:
        """Return a valid token. Raise Trouble if a retry may help, else CannotGoOn."""
        if time.time() >= self._memory.sign_in.expires_s - self.RENEW_BEFORE_S:
            self._get_tokens()
        return self._memory.sign_in.access_token

    def _get_tokens(self) -> None:
        """Renew the sign-in or, if BMW refuses that, ask the owner to sign in.

        BMW has refused valid refresh tokens for minutes, so keep trying the old one
        even while waiting for the owner to confirm a code.
        """
        if self._can_renew():
            try:
                if self._renew():
                    return
            except Trouble:
                if not self._code:
                    raise
                self._next_renewal_s = time.time() + MINUTE_S
        if self._code:
            self._redeem(self._code)
        else:
            self._ask_owner()

    def expire(self) -> None:
        """Mark the access token as expired, after BMW has refused it early."""
        self._memory.sign_in.expires_s = 0.0

    def reject_scope(self) -> None:
        """Note that the tokens are not valid for CarData; only a new sign-in helps."""
        self._memory.sign_in.expires_s = 0.0
        self._memory.sign_in.is_out_of_scope = True

    def known_secrets(self) -> list[str]:
        sign_in = self._memory.sign_in
        return [self._client_id, sign_in.access_token, sign_in.refresh_token]

    # Tokens

    def _can_renew(self) -> bool:
        sign_in = self._memory.sign_in
        is_usable = bool(sign_in.refresh_token) and not sign_in.is_out_of_scope
        return is_usable and not self._renewal_wait_s()

    def _renewal_wait_s(self) -> float:
        return seconds_until(self._next_renewal_s, DAY_S)

    def _renew(self) -> bool:
        """Get new tokens; return False if BMW has refused the refresh token twice.

        A refresh token is single-use, so send it only if its successor can be saved.
        """
        if not self._save():
            why = "no readings until the disk works again: a renewed sign-in could not be saved"
            raise Trouble(why, news=News("error", why))
        sign_in = self._memory.sign_in
        form = {"grant_type": "refresh_token", "refresh_token": sign_in.refresh_token}
        answer = self._request_tokens("a token", form)
        if has_tokens(answer):
            if sign_in.refusals:
                logger.info("BMW has renewed the sign-in after all")
            return True
        if not oauth_error(answer):
            raise answer.trouble()
        sign_in.refusals += 1
        if sign_in.refusals == 1:
            why = "BMW did not renew the sign-in; trying once more"
            raise Trouble(why, wait_s=MINUTE_S)
        pause_s = growing_pause_s(sign_in.refusals, self._longest_pause_s)
        self._next_renewal_s = time.time() + pause_s
        return False

    def _request_tokens(self, what: str, form: Mapping[str, str]) -> HttpAnswer:
        """Request tokens, and save them before they are used or a signal is handled.

        A refresh token is single-use: if the process ended between the request and the
        save, the owner would have to sign in again.
        """
        with signals_held_back():
            answer = self._post(what, "token", form)
            if has_tokens(answer):
                self._keep_tokens(answer.json())
        return answer

    def _keep_tokens(self, said: Mapping[str, Any]) -> None:
        lifetime_s = number(said.get("expires_in"), most=1e6) or 3599.0
        old = self._memory.sign_in
        self._memory.sign_in = SignInState(
            access_token=said["access_token"],
            expires_s=time.time() + lifetime_s,
            refresh_token=old.refresh_token,
        )
        if is_token(said.get("refresh_token")):
            self._memory.sign_in.refresh_token = said["refresh_token"]
        self._code = None
        self._next_renewal_s = 0.0  # the pause was for the old refresh token
        self._save()

    # The code that the owner confirms

    def _ask_owner(self) -> NoReturn:
        """Request a device code if one is due. Raise the Trouble for the owner.

        Every code is sent to the owner, so limit their number: one at once, one after
        an hour, then one every six hours.
        """
        if not self._may_ask:
            why = "CarData needs a sign-in: run i3charge.py by hand, without --once"
            raise Trouble(why, news=News("sign-in", why), needs_sign_in=True)
        sign_in = self._memory.sign_in
        wait_s = seconds_until(sign_in.next_code_s, max(CODE_PAUSES_S))
        if wait_s:
            raise self._trouble_until_next_code(wait_s)

        self._code = self._new_code()
        sign_in.next_code_s = time.time() + CODE_PAUSES_S[min(sign_in.codes, 1)]
        sign_in.codes += 1
        raise self._trouble_until_confirmed(self._code)

    def _trouble_until_confirmed(self, code: DeviceCode) -> Trouble:
        """Return the Trouble that shows a new code to the owner."""
        now_s = time.time()
        valid_until = clock_at(code.expires_s, now_s)
        next_clock = clock_at(self._memory.sign_in.next_code_s, now_s)
        message = (
            f"Sign in at BMW: open\n{code.address}\n"
            f"and confirm the code\n{code.user_code}\n"
            f"It is valid until {valid_until}. The next one comes at {next_clock}, or at"
            " once if you start i3charge.py by hand."
        )
        news = News("sign-in", message, click=code.address, good_until_s=code.expires_s)
        return Trouble(message, wait_s=code.interval_s, news=news, needs_sign_in=True)

    def _trouble_until_next_code(self, wait_s: float) -> Trouble:
        """Return the Trouble that says when the next code comes.

        Until then, only the old refresh token is tried.
        """
        next_clock = clock_at(self._memory.sign_in.next_code_s, time.time())
        why = f"CarData needs a sign-in: the next code comes at {next_clock}"
        wait_s = min(wait_s, self._renewal_wait_s() or wait_s)
        return Trouble(why, wait_s=wait_s, needs_sign_in=True)

    def _new_code(self) -> DeviceCode:
        verifier = secrets.token_urlsafe(64)
        digest = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        form = {
            "response_type": "device_code",
            "scope": self.SCOPE,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        answer = self._post("a sign-in", "device/code", form)
        if answer.status == 403 and not self._memory.sign_in.refresh_token:
            why = f"BMW does not let this client id in yet: {SUBSCRIBE_ADVICE}"
            raise Trouble(why, news=News("error", why))
        error = oauth_error(answer)
        if error or answer.status == 403:
            raise self._client_id_refused(error or "HTTP 403")
        code = device_code_in(answer.json(), verifier)
        if not code:
            raise answer.trouble()
        return code

    def _client_id_refused(self, error: str) -> Exception:
        """Return the error to raise: a fatal one only if the client id never worked.

        BMW has refused valid client ids during outages, and has deleted some.
        """
        why = f"BMW refuses the sign-in ({printable(error, self.known_secrets())})"
        if not self._memory.sign_in.refresh_token:
            advice = f"check CARDATA_CLIENT_ID, {SUBSCRIBE_ADVICE}, and start again"
            return CannotGoOn(f"{why}: {advice}", exit_status=1)
        why += (
            ", which has worked before: BMW has an outage, or has deleted the client id"
        )
        message = f"{why}; if this lasts a day, create a new one in the portal"
        return Trouble(message, news=News("error", message))

    def _redeem(self, code: DeviceCode) -> None:
        """Exchange the device code for tokens. Raise Trouble if BMW grants none yet.

        Try even after it has expired: the owner may have confirmed it and then closed
        the laptop.
        """
        form = {
            "grant_type": self.DEVICE_CODE_GRANT,
            "device_code": code.device_code,
            "code_verifier": code.verifier,
        }
        is_valid = time.time() < code.expires_s
        wait_s = MINUTE_S if is_valid else None  # growing pauses could outlast the code
        try:
            answer = self._request_tokens("the tokens", form)
        except Trouble as trouble:
            trouble.wait_s = wait_s
            raise
        if has_tokens(answer):
            logger.info("signed in at BMW")
            return

        error = oauth_error(answer)
        if error == SLOW_DOWN:
            code.interval_s += 5  # RFC 8628, 3.5
        state = code_state_in(answer, error)
        if state == "pending" and is_valid:
            raise Trouble("", wait_s=code.interval_s, needs_sign_in=True)
        if state in ("pending", "expired"):
            self._code = None
            why = "the code was not confirmed in time; restart i3charge to get a new one at once"
            raise Trouble(why, needs_sign_in=True)
        if state == "refused":
            self._drop_refused_code(error or "invalid_access_token")
        raise answer.trouble(wait_s)

    def _drop_refused_code(self, error: str) -> NoReturn:
        """Drop the code, and raise the Trouble that says so.

        The owner believes that the sign-in worked, so request the next code at once.
        After further refusals, wait an hour: BMW may refuse every code for hours.
        """
        sign_in = self._memory.sign_in
        self._code = None
        sign_in.codes = 0
        sign_in.codes_refused += 1
        pause_s = 0.0 if sign_in.codes_refused == 1 else HOUR_S
        sign_in.next_code_s = time.time() + pause_s
        why = f"BMW could not process this code ({printable(error, self.known_secrets())})"
        if error == "access_denied":
            why = "the sign-in was declined, or BMW could not process this code"
        advice = "confirm the next one in a private window without an ad blocker"
        wait_s = None if pause_s else 5.0
        raise Trouble(f"{why}: {advice}", wait_s=wait_s, needs_sign_in=True)

    def _post(self, what: str, path: str, form: Mapping[str, str]) -> HttpAnswer:
        form = {"client_id": self._client_id, **form}
        url = f"{self._url}/{path}"
        return send(what, "POST", url, data=form, timeout_s=self.TIMEOUT_S)


def device_code_in(said: Mapping[str, Any], verifier: str) -> DeviceCode | None:
    """Parse BMW's answer; return None if a value is missing or not printable."""
    device_code = said.get("device_code")
    user_code = said.get("user_code")
    address = said.get("verification_uri_complete") or said.get("verification_uri")
    if not (is_token(device_code) and is_token(user_code) and is_token(address)):
        return None
    return DeviceCode(
        str(device_code),
        str(user_code),
        str(address),
        verifier,
        interval_s=number(said.get("interval"), most=300) or 5.0,  # RFC 8628, 3.2
        expires_s=time.time() + (number(said.get("expires_in"), most=DAY_S) or 300.0),
    )


def code_state_in(
    answer: HttpAnswer, error: str
) -> Literal["pending", "expired", "refused", ""]:
    """Return what BMW says about a device code; "" if the answer is useless."""
    # BMW has also sent a 403 without an error code while a code was not confirmed.
    if error in (PENDING, SLOW_DOWN) or (answer.status == 403 and not error):
        return "pending"
    if error == EXPIRED:
        return "expired"
    return "refused" if error or CODE_USED_UP in answer.body else ""


def has_tokens(answer: HttpAnswer) -> bool:
    return answer.status == 200 and is_token(answer.json().get("access_token"))


def oauth_error(answer: HttpAnswer) -> str:
    """Return the OAuth error code; "" if there is none, as from BMW's gateway."""
    is_refusal = answer.status in (400, 401, 403)
    return text_or_empty(answer.json().get("error")) if is_refusal else ""


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Block the signals of Ctrl-C, a closed terminal and a shutdown."""
    held_back = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- CarData: API ---------------------------------------------------------------------
# CarData's names ("descriptors") for the values that it can return.
ENGINE = "vehicle.drivetrain.electricEngine."
HEADER = "vehicle.drivetrain.batteryManagement.header"
DISPLAYED = "vehicle.powertrain.electric.battery.stateOfCharge.displayed"
PREDICTED = ENGINE + "charging.level"
STATUS = ENGINE + "charging.status"
HV_STATUS = ENGINE + "charging.hvStatus"
TO_FULL = ENGINE + "charging.timeToFullyCharged"
REMAINING = ENGINE + "charging.timeRemaining"
FINISH_REASON = ENGINE + "charging.hvpmFinishReason"
RANGE = ENGINE + "kombiRemainingElectricRange"
PORT = "vehicle.body.chargingPort.status"
PORT_COMBINED = "vehicle.body.chargingPort.combinedStatus"

# BMW rejects a container for a single descriptor that it does not accept, so there is a
# smaller fallback with the values that the car itself has always sent. A container is
# found by its purpose and cannot be edited: increase the number with every change here.
FULL_SET = "descriptors 3"
SMALL_SET = "descriptors 3, the car's own"
BASIC_DESCRIPTORS = [HEADER, STATUS, TO_FULL, REMAINING, RANGE, PORT]
EXTRA_DESCRIPTORS = [DISPLAYED, PREDICTED, HV_STATUS, FINISH_REASON, PORT_COMBINED]
DESCRIPTORS = {
    FULL_SET: BASIC_DESCRIPTORS + EXTRA_DESCRIPTORS,
    SMALL_SET: BASIC_DESCRIPTORS,
}

# CarData error codes that are handled specially.
TOKEN_REFUSED = ("HTTP 401", "CU-100", "CU-101", "CU-102", "CU-127")
WRONG_SCOPE = "CU-103"  # the sign-in is not valid for CarData
# Unknown, malformed or being deleted; BMW's gateway has also sent 400 and 404 for it.
CONTAINER_LOST = ("CU-105", "CU-121", "CU-122", "HTTP 400", "HTTP 404")
# Errors that refuse the full set. BMW has also answered unknown descriptors with 5xx,
# and an owner who cannot create another container may still have the small one.
SET_REFUSED_PREFIXES = ("CU-402", "CU-124", "CU-5", "HTTP 5")
QUOTA_USED_UP = ("CU-429", "HTTP 429")

ADVICE = {
    "CU-104": "check VEHICLE_IDENTIFICATION_NUMBER",
    "CU-120": "check VEHICLE_IDENTIFICATION_NUMBER",
    "CU-124": "CarData allows ten containers, and other programs have made them: delete"
    " one with the program that made it",
    "CU-402": "get a newer i3charge.py",
    # Owners got this without a subscription, or if they were not the primary user.
    "CU-403": f"{SUBSCRIBE_ADVICE}, and check that you are the car's primary user",
}

# BMW allows 50; leave two for the owner's own use of BMW's web portal.
REQUESTS_A_DAY = 48
SEARCH_PAUSE_S = HOUR_S  # between searches for a container
MAX_LOST_CONTAINERS = 4

# A hint for an owner who has never got a reading
DRIVE_ONCE = "an older car may have to be driven once"


class CarData:
    """The door to BMW CarData, the official API for car owners.

    The car is read through a container of descriptors, whose id is remembered.
    """

    name = "CarData"

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        may_ask: bool = False,
        by_hand: bool = False,
    ) -> None:
        self._url = settings.cardata_url.rstrip("/") + "/customers"
        self._vin = settings.vin
        self._quota = daily_quota(settings.interval_s)
        self._memory = store.memory
        self._save = store.save
        self._sign_in = CarDataSignIn(settings, store, may_ask=may_ask, by_hand=by_hand)
        self._next_upgrade_s = math.inf  # when to replace a small container
        if may_ask:  # not run by cron every few minutes, so search without delay
            self._next_upgrade_s = 0.0
            store.memory.container.next_search_s = 0.0

    def poll(self) -> Report:
        """Return a new report. Raise Trouble if a retry may help, CannotGoOn if not."""
        self._sign_in.access_token()  # if this fails, it must not count as a search
        container = self._memory.container
        if container.purpose not in DESCRIPTORS:
            self._find_container()
        elif container.purpose == SMALL_SET and time.time() >= self._next_upgrade_s:
            self._next_upgrade_s = time.time() + DAY_S
            with suppress(Trouble):  # the small container still works
                self._find_container()
        try:
            return self._read(container.id)
        except Trouble as trouble:
            # An HTTP status can also be that of the sign-in, before the request.
            is_lost = trouble.may_have_arrived and trouble.code in CONTAINER_LOST
            if not is_lost or self._search_wait_s() > 0:
                raise
        self._find_container(lost=container.id)
        return self._read(container.id)

    def _read(self, container_id: str) -> Report:
        path = f"vehicles/{self._vin}/telematicData"
        answer = self._ask(
            "the car's status", "GET", path, params={"containerId": container_id}
        )
        values = dict_or_empty(answer.json().get("telematicData"))
        log_values(values, self._vin)
        report = report_in(values, time.time())
        if report.observations:
            return report
        if self._memory.last:
            raise answer.trouble()
        raise Trouble(f"BMW's answer contains no data of the car; {DRIVE_ONCE}")

    # Containers

    def _search_wait_s(self) -> float:
        """Return the seconds until a search is allowed."""
        return seconds_until(self._memory.container.next_search_s, SEARCH_PAUSE_S)

    def _find_container(self, lost: str = "") -> None:
        """Find one of our containers at BMW, or create one.

        Do so at most once an hour, even after a success: BMW has repeatedly lost
        containers, and has also refused to list them.
        """
        container = self._memory.container
        wait_s = self._search_wait_s()
        if wait_s:
            raise Trouble("there is no CarData container yet", wait_s=wait_s)
        container.next_search_s = time.time() + SEARCH_PAUSE_S
        if lost:
            self._note_lost(lost)
        try:
            self._use_best_container(self._active_containers())
        except Trouble as trouble:
            is_unrelated = trouble.code in (WRONG_SCOPE, *QUOTA_USED_UP)
            if is_unrelated or not trouble.may_have_arrived:
                container.next_search_s = 0.0
            elif trouble.wait_s is None and not lost:  # a lost one may work again
                trouble.wait_s = SEARCH_PAUSE_S
            raise

    def _note_lost(self, container_id: str) -> None:
        """Remember a lost container, because BMW may go on listing it as active.

        Forget the oldest: BMW may have lost them for a while only, and allows ten.
        """
        lost_s = self._memory.container.lost_s
        lost_s[container_id] = time.time()
        for oldest in sorted(lost_s, key=lost_s.__getitem__)[:-MAX_LOST_CONTAINERS]:
            del lost_s[oldest]

    def _active_containers(self) -> dict[str, str]:
        """Return the ids of our active containers by purpose, except lost ones."""
        answer = self._ask("its containers", "GET", "containers")
        listed = answer.json().get("containers")
        if not isinstance(listed, list):
            raise answer.trouble()
        ours = {}
        for each in map(dict_or_empty, listed):
            container_id = text_or_empty(each.get("containerId"))
            is_ours = each.get("name") == "i3charge" and each.get("state") == "ACTIVE"
            if is_ours and container_id not in ("", *self._memory.container.lost_s):
                ours[text_or_empty(each.get("purpose"))] = container_id
        return ours

    def _use_best_container(self, ours: Mapping[str, str]) -> None:
        """Use our container with the full set or, if BMW refuses it, the small one."""
        try:
            self._use_container(FULL_SET, ours)
        except Trouble as trouble:
            if not trouble.code.startswith(SET_REFUSED_PREFIXES):
                raise
            self._use_container(SMALL_SET, ours)

    def _use_container(self, purpose: str, ours: Mapping[str, str]) -> None:
        container = self._memory.container
        container.id = ours.get(purpose) or self._make_container(purpose)
        container.purpose = purpose

    def _make_container(self, purpose: str) -> str:
        asked = {
            "name": "i3charge",
            "purpose": purpose,
            "technicalDescriptors": DESCRIPTORS[purpose],
        }
        made = self._ask("a container", "POST", "containers", json=asked).json()
        container_id = text_or_empty(made.get("containerId"))
        if not container_id:
            raise Trouble("CarData created a container, but returned no id")
        return container_id

    # Requests

    def _ask(self, what: str, method: str, path: str, **parts: Any) -> HttpAnswer:
        """Return BMW's answer. Raise Trouble if it is an error."""
        answer = self._send(what, method, path, **parts)
        is_expired = answer.status == 403 and b"invalid_token" in answer.body
        if error_code(answer) in TOKEN_REFUSED or is_expired:
            self._sign_in.expire()
            answer = self._send(what, method, path, **parts)
        code = error_code(answer)
        if not code:
            return answer
        if code == WRONG_SCOPE:
            self._sign_in.reject_scope()
        raise self._trouble_in(answer, code)

    def _trouble_in(self, answer: HttpAnswer, code: str) -> Trouble:
        if code == WRONG_SCOPE:
            return Trouble(
                f"this sign-in is not for CarData: {SUBSCRIBE_ADVICE}", code=code
            )
        if code in QUOTA_USED_UP or answer.status == 429:
            # The quota resets at 00:00 UTC, or each request expires after 24 hours.
            wait_s = min(HOUR_S, DAY_S - time.time() % DAY_S + MINUTE_S)
            why = "BMW says that CarData's 50 requests a day are used up"
            return Trouble(why, code=QUOTA_USED_UP[0], wait_s=wait_s)
        if not code.startswith("CU-"):
            return answer.trouble()
        hidden = [self._vin, self._memory.container.id, *self._sign_in.known_secrets()]
        said = printable(answer.json().get("exveErrorMsg"), hidden)
        advice = f": {ADVICE[code]}" if code in ADVICE else ""
        shown_code = printable(code, hidden)
        return Trouble(f"CarData says: {said} ({shown_code}){advice}", code=code)

    def _send(self, what: str, method: str, path: str, **parts: Any) -> HttpAnswer:
        """Count a request, then send it. Raise Trouble if the quota is used up."""
        try:
            access_token = self._sign_in.access_token()
        except Trouble as trouble:
            trouble.may_have_arrived = False  # not sent: this request needs the token
            raise
        headers = {
            "Authorization": f"Bearer {access_token}",
            "x-version": "v1",
            "Accept": "application/json",
        }
        now_s = time.time()
        sent_s = requests_of_24_hours(self._memory.requests_s, now_s)
        self._memory.requests_s = sent_s  # so that future times expire in a day
        if len(sent_s) >= self._quota:
            wait_s = min(sent_s[-self._quota] + DAY_S - now_s, HOUR_S)
            why = "i3charge has used up its CarData requests for 24 hours"
            raise Trouble(why, wait_s=wait_s, may_have_arrived=False)
        self._memory.requests_s.append(now_s)
        self._save()
        try:
            return send(what, method, f"{self._url}/{path}", headers=headers, **parts)
        except Trouble as trouble:
            if not trouble.may_have_arrived:
                self._memory.requests_s.pop()
            raise


def error_code(answer: HttpAnswer) -> str:
    """Return CarData's error code ("CU-105") or the HTTP status ("HTTP 503").

    Return "" for a success. BMW has sent error codes with status 200, too.
    """
    code = text_or_empty(answer.json().get("exveErrorId"))
    if 200 <= answer.status < 300:
        return code
    return code or f"HTTP {answer.status}"


def requests_of_24_hours(requests_s: Iterable[float], now_s: float) -> list[float]:
    """Return the times of the last 24 hours, sorted; future ones count as now."""
    return sorted(min(at_s, now_s) for at_s in requests_s if now_s - at_s < DAY_S)


def daily_quota(interval_s: float) -> int:
    """Return this car's share of the daily request quota, derived from its interval.

    Two cars on one account share BMW's 50 requests, so each has twice the interval.
    """
    share = REQUESTS_A_DAY * PACES["CarData"].default_s / interval_s
    return int(min(max(share, 10), REQUESTS_A_DAY))


def log_values(values: Mapping[str, object], vin: str) -> None:
    """Log the values behind a reading for --verbose, but not the car's position."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    shown = re.compile("[Cc]harg|Range|[Cc]onnector|[Uu]pdateTime|header")
    for name in filter(shown.search, values):
        logger.debug("  %s", printable(f"{name}: {json.dumps(values[name])}", [vin]))


# --- What a CarData answer says -------------------------------------------------------
# If there are two descriptors for a topic, the later value counts.
DESCRIPTORS_OF_TOPIC: dict[Topic, tuple[str, ...]] = {
    "plug": (PORT, PORT_COMBINED),
    "percent": (HEADER,),
    "displayed": (DISPLAYED,),
    "status": (STATUS,),
    "full_at": (TO_FULL, REMAINING),
    "reason": (FINISH_REASON,),
    "predicted": (PREDICTED,),
    "hv_status": (HV_STATUS,),
}
# BMW stamps these with the time of its answer, so their times are not usable.
STAMPED_BY_BMW = ("predicted", "hv_status")

DAY_MINUTES = 24 * 60
# timeRemaining never exceeds 200, which means "200 or more".
MAX_MINUTES = {TO_FULL: DAY_MINUTES, REMAINING: 199}

UNIT_OF_WORD = {"km": "km", "mi": "mi", "miles": "mi", "mls": "mi"}


def report_in(values: Mapping[str, Any], now_s: float) -> Report:
    """Convert a CarData answer."""
    observations = []
    for topic, descriptors in DESCRIPTORS_OF_TOPIC.items():
        said = [observation_in(values, topic, each, now_s) for each in descriptors]
        found = [each for each in said if each]
        if found:
            observations.append(max(found, key=lambda each: each.at_s))
    entry = dict_or_empty(values.get(RANGE))
    distance, unit = range_in(entry.get("value"), entry.get("unit"))
    return Report(now_s, now_s, observations, range=distance, range_unit=unit)


def observation_in(
    values: Mapping[str, Any], topic: Topic, descriptor: str, now_s: float
) -> Observation | None:
    entry = dict_or_empty(values.get(descriptor))
    value = entry.get("value")
    at_s = timestamp_s(entry.get("timestamp"), now_s)
    if topic == "full_at":
        value = time_after(at_s or now_s, value, MAX_MINUTES[descriptor])
    return observed(0.0 if topic in STAMPED_BY_BMW else at_s, topic, value)


def observed(at_s: float, topic: Topic, value: object) -> Observation | None:
    """Return an observation, or None if BMW's value does not fit the topic."""
    if topic in PERCENTAGES:
        value = number(value, most=100)
    return Observation(at_s, topic, value) if is_possible(topic, value) else None


def time_after(at_s: float, minutes: object, most: float) -> float | None:
    """Return the time `minutes` after `at_s`; None if BMW sends no valid number."""
    known = number(minutes, most)
    return None if known is None else at_s + known * MINUTE_S


def range_in(distance: object, unit: object) -> tuple[float | None, str]:
    """Return the electric range and its unit; "" if BMW omits that, which is common."""
    word = text_or_empty(unit).lower()
    if word and word not in UNIT_OF_WORD:
        return None, ""
    return number(distance, most=1000), UNIT_OF_WORD.get(word, "")


# --- ConnectedDrive portal ------------------------------------------------------------
class Portal:
    """The door to BMW's web portal (2017 to 2021), using the owner's password."""

    name = "ConnectedDrive portal"
    NEW_TOKEN_REFUSED_PAUSE_S = 600.0  # because many logins lock the account
    LOGINS = 3  # in a row: BMW's gateway has refused valid ones for minutes

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._access_token = ""
        self._tries_left = 1  # just one until a login has worked

    def poll(self) -> Report:
        """Return a new report. Raise Trouble if a retry may help, CannotGoOn if not."""
        if not self._access_token:
            self._sign_in()
        answer = self._ask()
        if answer.status == 401:
            self._sign_in()
            answer = self._ask()
        if answer.status == 401:
            wait_s = max(self.NEW_TOKEN_REFUSED_PAUSE_S, self._settings.interval_s)
            raise Trouble("BMW does not accept the access token", wait_s=wait_s)
        if answer.status in (403, 404):
            raise Trouble(
                f"BMW does not show this car (HTTP {answer.status});"
                " check VEHICLE_IDENTIFICATION_NUMBER"
            )
        car = dict_or_empty(answer.json().get("attributesMap"))
        log_values(car, self._settings.vin)
        report = portal_report_in(car, time.time())
        if answer.status != 200 or not report.observations:
            raise answer.trouble()
        return report

    def _ask(self) -> HttpAnswer:
        base = self._settings.portal_url.rstrip("/")
        url = f"{base}/vehicle/dynamic/v1/{self._settings.vin}"
        headers = {"Authorization": f"Bearer {self._access_token}"}
        return send("the car's status", "GET", url, headers=headers)

    def _sign_in(self) -> None:
        """Log in by the implicit grant: a redirect holds the token (RFC 6749, 4.2)."""
        state = secrets.token_urlsafe(16)
        form = {
            "username": self._settings.username,
            "password": self._settings.password,
            "client_id": self._settings.auth_client_id,
            "redirect_uri": self._settings.redirect_uri,
            "response_type": "token",
            "scope": "authenticate_user fupo",
            "state": state,
        }
        answer = send("the login", "POST", self._settings.login_url, data=form)
        fields = self._fields_in(answer.headers.get("Location", ""))
        if answer.status in (400, 401, 403):
            error = text_or_empty(answer.json().get("error"))
            fields = {"error": error or f"HTTP {answer.status}"}
        elif answer.status not in (302, 303):
            raise answer.trouble()

        is_ours = fields.get("state", state) == state  # BMW may omit it
        if is_ours and fields.get("error"):
            raise self._refused(fields["error"])
        if not is_ours or not is_token(fields.get("access_token")):
            raise Trouble("BMW answered the login with a redirect that holds no token")
        self._access_token = fields["access_token"]
        self._tries_left = self.LOGINS

    def _fields_in(self, location: str) -> dict[str, Any]:
        """Return the fields of a redirect to us: its fragment or, for errors, query."""
        address, _, fields = re.sub("[?#]", "&", location).partition("&")
        if address != self._settings.redirect_uri:
            return {}
        return dict(parse_qsl(fields.replace("+", "%2B")))  # not an encoded space

    def _refused(self, error: object) -> Exception:
        said = printable(error, [self._settings.username, self._settings.password])
        why = (
            f"BMW refuses the login ({said}): check USERNAME, PASSWORD, AUTH_CLIENT_ID"
        )
        self._tries_left -= 1
        return Trouble(why) if self._tries_left else CannotGoOn(why, exit_status=1)


def portal_report_in(car: Mapping[str, Any], now_s: float) -> Report:
    """Convert the portal's answer, which is a snapshot of the car at `updateTime`."""
    # Such as 27.02.2018 19:59:03 UTC
    updated = text_or_empty(car.get("updateTime"))
    stamp = re.sub(r"(..)\.(..)\.(....) (.*) UTC", r"\3-\2-\1 \4", updated)
    updated_s = timestamp_s(stamp, now_s)
    as_of_s = updated_s or now_s
    full_at_s = time_after(as_of_s, car.get("chargingTimeRemaining"), DAY_MINUTES)
    # Only the percentage gets a time. Otherwise each answer would look as if the car
    # had been plugged in again.
    status = observed(0.0, "status", car.get("charging_status"))
    said = [
        observed(0.0, "plug", car.get("connectorStatus")),
        # As on the car's display; soc_hv_percent is lower near full.
        observed(updated_s, "percent", car.get("chargingLevelHv")),
        status or observed(0.0, "status", car.get("chargingHVStatus")),
        observed(0.0, "full_at", full_at_s),
    ]
    observations = [each for each in said if each]
    distance, unit = range_in(
        car.get("beRemainingRangeElectric"), car.get("unitOfLength")
    )
    return Report(now_s, as_of_s, observations, distance, unit, interpolates=False)


class Door(Protocol):
    """A source of reports: one of BMW's APIs or the simulated car."""

    name: str

    def poll(self) -> Report:
        """Return a new report. Raise Trouble if a retry may help, CannotGoOn if not."""


# --- The car's stays ------------------------------------------------------------------
# BMW's answer holds the latest observation on each topic. Each observation has its own
# time, and may arrive late, out of order, or never. So we keep a journal of them, sort
# it by time, and split it into stays. A stay begins when the car is plugged in, or when
# an observation shows that it was driven. For example, this journal has two stays:
#
#   18:00  plug CONNECTED           stay 1 begins
#   18:00  percent 41
#   18:00  status CHARGINGACTIVE    a charge begins
#   22:00  percent 100
#   22:00  status CHARGINGENDED     the charge stops; the car is full since 22:00
#   06:30  status CHARGINGACTIVE    a top-up, because the car is warmed before it leaves
#   08:10  percent 62               stay 2 begins: the car was driven
#
# A late observation is sorted into place, and a duplicate changes nothing. Neither a
# restart nor a gap of two days needs special treatment.
JOURNAL_S = 3 * DAY_S  # longer than any charge

# Tolerances for observations that are late, repeated or inexact
TOGETHER_S = 10 * MINUTE_S  # closer observations are about the same event
SAME_MESSAGE_S = MINUTE_S  # closer observations may come from one message of the car
RESENT_S = 5 * MINUTE_S  # after plugging in, the car may send old values again
RESENT_PLUG_S = 30 * MINUTE_S  # a second CONNECTED by then is no new connection
FLICKER_PERCENT = 3  # a resting car's percentage changes by less
HOLDS_100_S = 30 * MINUTE_S  # a car that has sent 100 % stops within this time
MAX_PERCENT_DELAY_S = 1.5 * HOUR_S  # of the final percentage of a charge
MAX_TOP_UP_S = 45 * MINUTE_S  # warming a full car charges it for less
NEARLY_FULL = 99.0  # percent
FASTEST_PERCENT = 2.0  # per minute: 50 kW into the largest battery


def merged(journal: list[Observation], report: Report) -> list[Observation]:
    """Return the journal with a report's observations, sorted by time."""
    found = list(journal)
    for each in report.observations:
        # BMW sends the latest observation. Drop later ones: a wrong clock made them.
        latest_s = max(each.at_s, report.taken_s) if each.at_s else report.as_of_s
        found = [
            one for one in found if one.topic != each.topic or one.at_s <= latest_s
        ]
        earlier = [one.value for one in found if one.topic == each.topic]
        new = each if each.at_s else dated(each, earlier, report.as_of_s)
        if new:
            # The sort is stable: if two times are equal, the later arrival comes last.
            found = [one for one in found if one != new] + [new]
    return sorted(found, key=lambda one: (one.at_s, TOPICS.index(one.topic)))


def dated(new: Observation, earlier: list[Any], as_of_s: float) -> Observation | None:
    """Return an observation with its report's time; None if its value is not new."""
    if earlier and earlier[-1] == new.value:
        return None
    # A car that is plugged in at its first report has been so for longer: its other
    # values are not old ones, sent again with the plug.
    is_old = not earlier and new.value == CONNECTED
    return new._replace(at_s=as_of_s - TOGETHER_S if is_old else as_of_s)


def trimmed(
    journal: list[Observation], stays: list[Stay], now_s: float
) -> list[Observation]:
    """Return the journal of the last three days, and of the last two stays.

    The previous stay explains why the present one began. Drop repeated values that are
    older than three days. Keep the latest observation on each topic.
    """
    since_s = stays[-2].since_s if len(stays) > 1 else 0.0
    latest = {each.topic: each for each in journal}
    kept = []
    last_value: dict[Topic, Any] = {}
    for each in journal:
        is_repeated = last_value.get(each.topic) == each.value
        last_value[each.topic] = each.value
        is_recent = each.at_s >= now_s - JOURNAL_S
        is_needed = each.at_s >= since_s and not is_repeated
        if is_recent or is_needed or each is latest[each.topic]:
            kept.append(each)
    return kept


@dataclass
class Charge:
    """A charge within a stay. A pause does not end it."""

    began_s: float = 0.0  # 0 if only its end was seen
    stopped_s: float = 0.0  # according to the status or the plug; 0 while it goes on
    status: Status = "unknown"  # the car's status when the charge had stopped
    full_at_s: float = 0.0  # when the car expects to be full; 0 if unknown
    computed: float = 0.0  # the highest computed percentage since the car last sent one
    is_computed_by_bmw: bool = False  # not by this script
    resumed: Observation | None = None  # the percentage when a pause ended
    is_assumed: bool = False  # the car was driven, but its status still says charging


@dataclass
class Stay:
    """What the car has done since it was plugged in or parked elsewhere.

    Pass the observations to `see` in chronological order. Methods that depend on the
    current time take it as a parameter.

    The car's status can lag, so there are three answers to whether the car is charging:
    `status`; `open_charge`, which the status has begun but not ended; and
    `is_charging`, which is false once that charge has filled the car.
    """

    since_s: float = 0.0
    percent_before: Observation | None = None  # the last percentage before the stay
    is_driven_since: bool = False  # the car has been driven since it sent that
    plugged: bool | None = None
    plug_seen_s: float = 0.0  # when the car last sent the state of the plug
    pulled_s: float = 0.0  # when the plug was pulled; 0 if it was not
    status: Status = "unknown"
    status_since_s: float = 0.0  # when the status changed
    percents: list[Observation] = field(default_factory=list)
    charges: list[Charge] = field(default_factory=list)
    reasons: list[Observation] = field(default_factory=list)  # why charges ended
    bmw_prediction: float | None = None  # percent
    hv_status: str = ""  # BMW's own keyword, which lags the car's status
    estimate: Observation | None = None  # of the time when the car will be full
    last_sent_s: float = 0.0  # when the car last sent anything

    # Taking note of observations

    def see(self, new: Observation) -> None:
        if new.topic == "plug":
            self._see_plug(new.value == CONNECTED, new.at_s)
        elif new.topic in SENT_PERCENTAGES:
            self._see_percent(new)
        elif new.topic == "status" and self.plugged is not False:
            self._see_status(new.value, new.at_s)
        elif new.topic == "full_at":
            self._see_estimate(new)
        elif new.topic == "reason":
            self.reasons.append(new)
            if self.plugged is not False and not self._may_be_resent(new.at_s):
                self._note_unseen_charge(new.at_s)
        elif new.topic == "predicted":
            self._see_prediction(new)
        elif new.topic == "hv_status":
            self.hv_status = new.value
        if new.topic not in ("predicted", "hv_status"):
            self.last_sent_s = new.at_s

    def _see_plug(self, is_in: bool, at_s: float) -> None:
        was_in = self.plugged or (self.plugged is None and self.charges)
        if was_in and not is_in:
            self.pulled_s = at_s
        self.plugged = is_in
        self.plug_seen_s = at_s
        if not is_in:
            self._change_status("unplugged", at_s)
        elif self.status in ("unknown", "unplugged", "not charging"):
            self._change_status("plugged in", at_s)

    def _see_status(self, keyword: str, at_s: float) -> None:
        status = STATUS_OF_WORD[keyword]
        if keyword == NOCHARGING and self.plugged:
            status = "plugged in"
        self._change_status(status, at_s)
        if keyword == CHARGING_ENDED and not self._may_be_resent(at_s):
            self._note_unseen_charge(at_s)
        elif status not in ACTIVE and self._has_risen():
            self._note_unseen_charge(self.percents[-1].at_s)

    def _change_status(self, status: Status, at_s: float) -> None:
        """Set the status. Begin, pause or stop a charge if it is a new one."""
        if status == self.status:
            return
        charge = self.open_charge
        if status == "charging" and not charge:
            self.charges.append(Charge(at_s, full_at_s=self._estimate_s(at_s)))
        elif charge and status == "charging":
            self._resume_charge(charge, at_s)
        elif charge and status == "waiting":
            charge.computed = self.computed_percent(at_s)
            charge.full_at_s = 0.0  # it will be later than the car expected
        elif charge:
            self._stop_charge(charge, status, at_s)
        self.status = status
        self.status_since_s = at_s

    def _estimate_s(self, at_s: float) -> float:
        """Return the car's estimate, or 0 if it is outdated (over a minute old)."""
        if self.estimate and self.estimate.at_s >= at_s - SAME_MESSAGE_S:
            return float(self.estimate.value)
        return 0.0

    def _resume_charge(self, charge: Charge, at_s: float) -> None:
        """End a pause, in which the percentage has not risen."""
        charge.full_at_s = self._estimate_s(at_s)
        if self.valid_percent:
            percent = max(charge.computed, self.valid_percent.value)
            charge.resumed = Observation(at_s, "predicted", percent)

    def _stop_charge(self, charge: Charge, status: Status, at_s: float) -> None:
        if charge.is_assumed and at_s <= charge.began_s + TOGETHER_S:
            self.charges.remove(charge)  # the assumption was wrong
            return
        charge.computed = self.computed_percent(at_s)
        charge.stopped_s = at_s
        charge.status = status

    def _note_unseen_charge(self, ended_s: float) -> None:
        """Add a charge of which only the end was seen, unless one is known."""
        if not self.charges:
            self.charges.append(Charge(stopped_s=ended_s, status=self.status))

    def _may_be_resent(self, at_s: float) -> bool:
        """Return whether a value may be an old one, sent again with the plug."""
        return at_s <= self.since_s + SAME_MESSAGE_S

    def _has_risen(self) -> bool:
        """Return whether the last percentage is well above the one before it."""
        values = self.values_of(self.percents[-1].topic) if self.percents else []
        return len(values) > 1 and values[-1] >= values[-2] + FLICKER_PERCENT

    def _see_percent(self, new: Observation) -> None:
        is_new_value = self.values_of(new.topic)[-1:] != [new.value]
        if self.open_charge and is_new_value:  # it replaces the computed percentage
            self.open_charge.computed = 0.0
            self.open_charge.resumed = None
            self.open_charge.is_computed_by_bmw = False
        self.percents.append(new)
        is_of_pull = 0 < self.pulled_s and new.at_s <= self.pulled_s + TOGETHER_S
        if is_of_pull and self._has_risen():
            self._note_unseen_charge(self.pulled_s)

    def _see_estimate(self, new: Observation) -> None:
        self.estimate = new
        if self.open_charge and self.status == "charging":
            self.open_charge.computed = self.computed_percent(new.at_s)
            self.open_charge.full_at_s = new.value

    def _see_prediction(self, new: Observation) -> None:
        """Record BMW's prediction, and apply it to the charge if it is possible.

        For a while after a drive, BMW may predict from the percentage before the drive.
        """
        self.bmw_prediction = new.value
        charge = self.open_charge
        if not charge:
            return
        last = self.last_percent
        is_known = last is not None and last.at_s >= charge.began_s - TOGETHER_S
        if last and is_known and new.value > highest_possible(last, new.at_s):
            return
        charge.computed = max(charge.computed, new.value)
        charge.is_computed_by_bmw = True

    # What the observations mean

    @property
    def open_charge(self) -> Charge | None:
        """The charge that the status has not ended; a pause does not end it."""
        last = self.charges[-1] if self.charges else None
        return None if last is None or last.stopped_s else last

    def is_charging(self, now_s: float) -> bool:
        """Return whether a charge is in progress and has not yet filled the car.

        A top-up, which begins after the car was full, counts too, until it is full again.
        """
        if not self.open_charge:
            return False
        last_full_s = max(self._full_times_s(now_s), default=0.0)
        return last_full_s == 0 or self.open_charge.began_s > last_full_s

    def charge_begun_by(self, at_s: float) -> Charge | None:
        """Return the last charge that had begun by a given time."""
        begun = [each for each in self.charges if each.began_s <= at_s]
        return begun[-1] if begun else None

    @property
    def last_percent(self) -> Observation | None:
        """The last percentage that the car sent, perhaps before the stay."""
        return self.percents[-1] if self.percents else self.percent_before

    @property
    def parked_percent(self) -> Observation | None:
        """The last percentage before the stay, unless the car was driven after it."""
        return None if self.is_driven_since else self.percent_before

    @property
    def valid_percent(self) -> Observation | None:
        """The last percentage, unless the car was driven after it."""
        return self.percents[-1] if self.percents else self.parked_percent

    def values_of(self, topic: Topic) -> list[float]:
        """Return the percentages on one topic; the two topics can differ slightly."""
        return [each.value for each in self.percents if each.topic == topic]

    def percent_at_start(self, charge: Charge) -> float | None:
        """Return the percentage at which a charge began, if the car has sent it."""
        if not charge.began_s:
            return None
        known = [self.percent_before] if self.percent_before else []
        known += [
            each for each in self.percents if each.at_s <= charge.began_s + TOGETHER_S
        ]
        found = first_from_or_last_before(
            known, charge.began_s, earliest_s=self.since_s - TOGETHER_S
        )
        return found.value if found else None

    def percent_at_end(self, charge: Charge, ended_s: float) -> Observation | None:
        """Return the percentage at which a charge ended, if the car has sent it."""
        latest_s = self._final_percent_due_s(ended_s)
        known = [
            each for each in self.percents if charge.began_s < each.at_s <= latest_s
        ]
        return first_from_or_last_before(
            known, ended_s, earliest_s=ended_s - TOGETHER_S
        )

    def _final_percent_due_s(self, ended_s: float) -> float:
        """Return how late the final percentage of a charge may be sent."""
        latest_s = ended_s + MAX_PERCENT_DELAY_S
        if self.pulled_s:  # later ones belong to the drive
            latest_s = min(latest_s, self.pulled_s + TOGETHER_S)
        resumed = [each.began_s for each in self.charges if each.began_s > ended_s]
        if resumed:  # later ones belong to the next charge
            latest_s = min(latest_s, resumed[0] + TOGETHER_S)
        return latest_s

    def is_full_unseen(self, now_s: float) -> bool:
        """Return whether the car reached its goal, but never sent its percentage then."""
        full_s = self.became_full_s(now_s)
        charge = self.charge_begun_by(full_s) or Charge()
        is_due = now_s > self._final_percent_due_s(full_s)
        return full_s > 0 and is_due and not self.percent_at_end(charge, full_s)

    def _may_be_full_at_end(self, charge: Charge, ended_s: float) -> bool:
        """Return whether the car may be full, judging by its percentage near the end.

        If the car sent that before the end, the charge may have risen since.
        """
        found = self.percent_at_end(charge, ended_s)
        return not found or highest_possible(found, ended_s) >= NEARLY_FULL

    def became_full_s(self, now_s: float) -> float:
        """Return when the car became full; 0 if it did not.

        100 % counts once the charge has stopped, BMW confirms it, or half an hour has
        passed. A reached goal counts even at 99 %: an i3 cannot have a lower goal.
        """
        return min(self._full_times_s(now_s), default=0.0)

    def _full_times_s(self, now_s: float) -> list[float]:
        """Return each time when the car was full: the first one, and after top-ups."""
        full_times_s = [
            each.at_s
            for each in self.percents
            if each.value == 100 and self._means_full(each.at_s, now_s)
        ]
        full_times_s += [
            each.at_s
            for each in self.reasons
            if each.value == GOAL_REACHED and self._is_full_at_goal(each.at_s)
        ]
        return full_times_s

    def _means_full(self, said_s: float, now_s: float) -> bool:
        """Return whether 100 %, sent at a given time, means that the car is full.

        A charging car may send it and keep charging for a while. A car that was just
        plugged in may resend an old value.
        """
        charge = self.charge_begun_by(said_s)
        if not charge:
            return said_s >= self.since_s + RESENT_S
        is_confirmed = charge.stopped_s > 0 or self.hv_status == HV_GOAL_REACHED
        return is_confirmed or now_s > said_s + HOLDS_100_S

    def _is_full_at_goal(self, reached_s: float) -> bool:
        """Return whether the percentages are consistent with a goal of 100 %."""
        charge = self.charge_begun_by(reached_s) or Charge()
        is_of_beginning = reached_s <= charge.began_s + SAME_MESSAGE_S
        if is_of_beginning or self._may_be_resent(reached_s):
            return False
        return self._may_be_full_at_end(charge, reached_s)

    def is_settled(self, charge: Charge, now_s: float) -> bool:
        """Return whether the outcome of a stopped charge is known, or overdue.

        If the car may be full, for example at 99 %, only the reason settles it.
        """
        ended_s = charge.stopped_s
        if now_s >= ended_s + MAX_PERCENT_DELAY_S or charge is not self.charges[-1]:
            return True
        if self.percent_at_end(charge, ended_s) is None:
            return False
        has_reason = any(each.at_s >= ended_s - TOGETHER_S for each in self.reasons)
        return has_reason or not self._may_be_full_at_end(charge, ended_s)

    def computed_percent(self, now_s: float) -> float:
        """Return BMW's prediction or, if there is none, interpolate linearly.

        The line runs from the car's own percentage, or from the end of a pause, to
        100 % at the time that the car expects. Within a charge, the result never falls
        until the car sends its own percentage. The stay must have a charge; if that has
        stopped, return its final percentage.
        """
        charge = self.charges[-1]
        last = charge.resumed or self.valid_percent
        if not last or charge.is_computed_by_bmw or not self.open_charge:
            return charge.computed
        since_s = max(last.at_s, charge.began_s)
        has_estimate = since_s < charge.full_at_s
        is_recent = since_s < now_s <= since_s + DAY_S
        if not has_estimate or not is_recent:
            return charge.computed
        share = (now_s - since_s) / (charge.full_at_s - since_s)
        line: float = last.value + (100 - last.value) * share
        return max(charge.computed, min(round(line, 1), NEARLY_FULL))


def first_from_or_last_before(
    observations: list[Observation], at_s: float, earliest_s: float
) -> Observation | None:
    """Return the first observation from `at_s` on, or else the last one before it."""
    after = [each for each in observations if at_s <= each.at_s]
    before = [each for each in observations if earliest_s <= each.at_s < at_s]
    found = after[:1] or before[-1:]
    return found[0] if found else None


def highest_possible(last: Observation, at_s: float) -> float:
    """Return the percentage that the fastest charge could have reached by `at_s`."""
    minutes = max(0.0, at_s - last.at_s) / MINUTE_S
    return float(last.value + FASTEST_PERCENT * minutes)


def stays_in(journal: list[Observation]) -> list[Stay]:
    """Split the journal into stays; the last one is the current stay."""
    if all(each.topic != "status" for each in journal):
        journal = [as_status(each) for each in journal]
    stays = [Stay()]
    # If the car sends CONNECTED twice, it may have been away in between. This is the
    # stay that began if so. A charge or an estimate confirms it; 100 % alone does not.
    # Until then, both stays see every observation.
    possible: Stay | None = None
    for each in journal:
        if possible:
            possible.see(each)
            expects_charge = each.topic == "full_at" and each.value > each.at_s
            if possible.charges or expects_charge:
                stays.append(possible)
                possible = None
                continue

        stay = stays[-1]
        beginning = beginning_in(each, stay)
        if beginning == "plugged in again":
            possible = begin_stay(beginning, each, stay)
            possible.see(each)
        elif beginning:
            stays.append(begin_stay(beginning, each, stay))
            possible = None
        stays[-1].see(each)
    return stays


def as_status(each: Observation) -> Observation:
    """Return BMW's hvStatus as the status, for a car that sends none of its own."""
    return each._replace(topic="status") if each.topic == "hv_status" else each


# How a stay begins; "plugged in again" means only that one may have begun.
Beginning = Literal[
    "plugged in", "plugged in again", "driven", "charging", "away unnoticed"
]  # fmt: skip


def beginning_in(new: Observation, stay: Stay) -> Beginning | None:
    """Return how an observation begins a new stay, or None if the stay goes on."""
    if new.topic in SENT_PERCENTAGES:
        return "driven" if is_driven(new, stay) else None
    if new.topic == "plug" and new.value == CONNECTED:
        return beginning_at_plug(new, stay)
    if new.topic == "status" and stay.plugged is False:
        # The car must be back at a plug.
        is_later = new.at_s > stay.status_since_s
        is_active = STATUS_OF_WORD[new.value] in ACTIVE
        return "charging" if is_later and is_active else None
    # A full car that charges for longer than a top-up must have left unnoticed.
    is_long = new.topic == "full_at" and new.value - new.at_s > MAX_TOP_UP_S
    was_full = stay.open_charge and stay.became_full_s(new.at_s)
    return "away unnoticed" if is_long and was_full else None


def is_driven(new: Observation, stay: Stay) -> bool:
    """Return whether a percentage is so low that the car must have been driven."""
    highest = max(stay.values_of(new.topic), default=0.0)
    if stay.is_full_unseen(new.at_s):
        highest = NEARLY_FULL
    return bool(new.value <= highest - FLICKER_PERCENT)


def beginning_at_plug(new: Observation, stay: Stay) -> Beginning | None:
    # During a charge, CONNECTED is an old value or a late one.
    if stay.is_charging(new.at_s):
        return None
    if not stay.plugged:
        return "plugged in"
    is_late = new.at_s > stay.plug_seen_s + RESENT_PLUG_S
    return "plugged in again" if is_late else None


def begin_stay(beginning: Beginning, new: Observation, stay: Stay) -> Stay:
    """Return the stay that an observation begins, without adding that observation.

    Move a charge that continues in it from the stay before.
    """
    last = stay.last_percent
    is_driven_since = last is not None and last.at_s <= stay.pulled_s + TOGETHER_S
    after = Stay(
        new.at_s,
        last,
        is_driven_since,
        bmw_prediction=stay.bmw_prediction,
        estimate=stay.estimate,
    )
    if beginning in ("plugged in", "plugged in again"):
        return after
    # If the car charges, it is plugged in again.
    after.plugged = beginning == "charging" or stay.plugged
    after.plug_seen_s = new.at_s
    after.status = STATUS_AT_REST[after.plugged]
    after.status_since_s = new.at_s
    charge = continuing_charge(beginning, new, stay)
    if charge:
        stay.charges = [each for each in stay.charges if each is not charge]
        after.charges = [charge]
        after.since_s = charge.began_s
        after.status = stay.status
    return after


def continuing_charge(
    beginning: Beginning, new: Observation, stay: Stay
) -> Charge | None:
    """Return the charge with which a stay begins, if there is one.

    It is the charge of the stay before, or one whose beginning was not seen.
    """
    was_away = beginning == "away unnoticed"
    if not stay.is_charging(new.at_s):
        # The status may have been "charging" since before the car was full.
        return Charge(new.at_s) if was_away else None
    charge = stay.charges[-1]
    if was_away or charge.began_s >= new.at_s - TOGETHER_S:
        return charge  # the drive was before it
    if stay.became_full_s(new.at_s):
        return None
    # The drive interrupted the charge, whose end and new beginning were not seen.
    return Charge(new.at_s, is_assumed=True)


# --- Reading --------------------------------------------------------------------------
def reading_of(stay: Stay, report: Report, range_unit: str) -> Reading | None:
    """Return the car's state now, or None if no percentage is known.

    `range_unit` is used if BMW does not name one.
    """
    computed = percent_to_show(stay, report)
    if computed is not None:
        # A computed percentage is as old as the car's last observation on any topic.
        percent, reported_s = computed, stay.last_sent_s
    elif stay.last_percent:
        percent, reported_s = float(stay.last_percent.value), stay.last_percent.at_s
    else:
        return None

    now_s = report.taken_s
    status = stay.status
    if stay.became_full_s(now_s) and not stay.is_charging(now_s):
        status = "full"
    full_at_s = 0.0
    if status == "charging" and stay.charges:
        full_at_s = stay.charges[-1].full_at_s
    unit = ""
    if report.range is not None:
        unit = report.range_unit or range_unit or "km"
    return Reading(
        percent=percent,
        taken_s=now_s,
        status=status,
        predicted=computed is not None,
        plugged=stay.plugged,
        range=report.range,
        range_unit=unit,
        full_at_s=full_at_s,
        reported_s=reported_s,
    )


def percent_to_show(stay: Stay, report: Report) -> float | None:
    """Return the computed percentage if it should be shown, not the car's own.

    The car sends its own when a charge begins and ends, and seldom in between. So show
    the computed one if it is higher, until the car has sent its final percentage.
    """
    if stay.last_percent is None:
        return stay.bmw_prediction
    if not stay.charges:
        return None
    now_s = report.taken_s
    charge = stay.charges[-1]
    computed = stay.computed_percent(now_s)
    if computed <= stay.last_percent.value:
        return None
    if not charge.is_computed_by_bmw and not report.interpolates:
        return None
    if stay.is_charging(now_s):
        return computed
    ended_s = charge.stopped_s or stay.became_full_s(now_s)
    return computed if stay.last_percent.at_s < ended_s - TOGETHER_S else None


# --- News -----------------------------------------------------------------------------
STEP_PERCENT = 5
SOON_MINUTES = 10
OVERDUE_S = 30 * MINUTE_S  # after the time when it should have been full
MAX_CHARGE_S = 20 * HOUR_S
STILL_THERE_S = HOUR_S
# Older events are dropped. The limit exceeds a day so that a daily run misses nothing.
MAX_NEWS_AGE_S = 36 * HOUR_S


def events_in(stays: list[Stay], reading: Reading, notify_at: float) -> Iterator[News]:
    """Yield all events in the stays, even those already told, in order of delivery.

    A stop is no event if the car has become full in its stay or a later one.
    """
    now_s = reading.taken_s
    present = stays[-1]
    full_times_s = [stay.became_full_s(now_s) for stay in stays]
    for index, (stay, full_s) in enumerate(zip(stays, full_times_s)):
        if full_s:
            yield full_news(stay, full_s, is_present=stay is present)
        elif not any(full_times_s[index:]):
            yield from stopped_events(stay, now_s)

    full_s = full_times_s[-1]
    if full_s and is_still_there(present, full_s, now_s):
        yield still_news(present, full_s, now_s)
    if present.open_charge and not full_s:
        yield from news_of_charge(present.open_charge, present, reading, notify_at)


def stopped_events(stay: Stay, now_s: float) -> Iterator[News]:
    for charge in stay.charges:
        if charge.stopped_s and stay.is_settled(charge, now_s):
            yield stopped_news(stay, charge)


def news_of_charge(
    charge: Charge, stay: Stay, reading: Reading, notify_at: float
) -> Iterator[News]:
    """Yield the events of the charge in progress."""
    # The car's clock can be ahead.
    at_s = max(reading.taken_s, charge.began_s)

    def news(kind: Kind, message: str) -> News:
        return News(kind, message, at_s=at_s, since_s=charge.began_s)

    yield started_news(charge, stay, reading)
    if has_reached(notify_at, charge, stay, reading):
        yield news("reached", f"{notify_at:.0f}% reached")
    minutes = reading.minutes_to_full
    if minutes is not None and minutes <= SOON_MINUTES:
        about = max(1, round(minutes))
        yield news("soon", f"Full in about {about} min, at {reading.full_clock}")
    if reading.status == "waiting":
        message = f"Charging paused at {reading.percent_text}"
        yield News(
            "paused", message, at_s=stay.status_since_s, since_s=stay.status_since_s
        )
    warning = overdue_message(charge, stay.status_since_s, reading)
    if warning:
        yield news("overdue", warning)


def started_news(charge: Charge, stay: Stay, reading: Reading) -> News:
    percent = stay.percent_at_start(charge)
    message = "Charging has begun"
    if percent is not None:
        message = f"Charging from {int(percent)}%"
    message = with_full_clock(message, reading)
    return News("started", message, at_s=charge.began_s, since_s=charge.began_s)


def with_full_clock(message: str, reading: Reading) -> str:
    if not reading.full_clock:
        return message
    return f"{message}, full about {reading.full_clock}"


def has_reached(notify_at: float, charge: Charge, stay: Stay, reading: Reading) -> bool:
    """Return whether a charge that began below `notify_at` has reached it."""
    percent = stay.percent_at_start(charge)
    if percent is None and stay.parked_percent:
        percent = stay.parked_percent.value
    if percent is None:
        sent = [each.value for each in stay.percents if each.at_s >= charge.began_s]
        percent = min(sent, default=None)  # the car may have sent it late
    return percent is not None and percent < notify_at <= reading.percent


def overdue_message(charge: Charge, since_s: float, reading: Reading) -> str:
    """Return a warning if a charge takes far too long; "" if not.

    BMW may report a full car as charging for days.
    """
    if reading.status != "charging":
        return ""
    now_s = reading.taken_s
    if charge.full_at_s and OVERDUE_S <= now_s - charge.full_at_s <= DAY_S:
        clock = clock_at(charge.full_at_s, now_s)
        return f"Expected full at {clock}, but BMW has not confirmed it. Please check the car."
    if now_s - since_s >= MAX_CHARGE_S:
        lasts = duration(now_s - since_s)
        return f"BMW reports {lasts} of charging. Please check the car."
    return ""


def full_news(stay: Stay, full_s: float, *, is_present: bool) -> News:
    charge = stay.charge_begun_by(full_s) or Charge()
    last = stay.percent_at_end(charge, full_s)
    percent_text = f"{int(last.value) if last else 100}%"
    summary = charge_summary(stay, charge, full_s, percent_text)
    is_plugged = is_present and stay.plugged is not False
    return News(
        "full",
        f"Fully charged: {summary}." if summary else "Fully charged.",
        while_plugged="You can move the car now." if is_plugged else "",
        at_s=full_s,
        since_s=stay.since_s,
    )


def is_still_there(stay: Stay, full_s: float, now_s: float) -> bool:
    """Return whether the car has been full and plugged in for an hour."""
    is_long = now_s >= full_s + STILL_THERE_S
    return is_long and stay.plugged is True and not stay.is_charging(now_s)


def still_news(stay: Stay, full_s: float, now_s: float) -> News:
    message = f"Full since {clock_at(full_s, now_s)}, and still plugged in"
    return News("still", message, at_s=now_s, since_s=stay.since_s)


def stopped_news(stay: Stay, charge: Charge) -> News:
    ended_s = charge.stopped_s
    percent_text = percent_text_at_end(stay, charge)
    at = f" at {percent_text}" if percent_text else ""
    why = why_stopped(stay, charge)
    message = f"Charging stopped{at}"
    if why != "unknown":
        message += f" ({why})"
    summary = charge_summary(stay, charge, ended_s, percent_text)
    message = f"{message}, {summary}" if summary else message
    return News("stopped", message, at_s=ended_s, since_s=charge.began_s or ended_s)


def percent_text_at_end(stay: Stay, charge: Charge) -> str:
    """Return the final percentage, sent by the car or computed; "" if unknown."""
    last = stay.percent_at_end(charge, charge.stopped_s)
    if last:
        return f"{int(last.value)}%"
    return f"~{int(charge.computed)}%" if charge.computed else ""


def why_stopped(stay: Stay, charge: Charge) -> str:
    """Return the reason that the car sent, or else its status after the charge."""
    for each in stay.reasons:
        reason = REASON_OF_WORD[each.value]
        if reason and abs(each.at_s - charge.stopped_s) <= TOGETHER_S:
            return reason
    return charge.status


def charge_summary(stay: Stay, charge: Charge, ended_s: float, to_percent: str) -> str:
    """Return the first and last percentage and the duration; "" if one is unknown."""
    from_percent = stay.percent_at_start(charge)
    if from_percent is None or not to_percent or ended_s <= charge.began_s:
        return ""
    lasts = duration(ended_s - charge.began_s)
    return f"{int(from_percent)} → {to_percent} in {lasts}"


def is_outdated(news: News, made_s: float, stay: Stay, now_s: float) -> bool:
    """Return whether a message from `made_s` is no longer true at a later reading."""
    if news.kind in ("sign-in", "error"):
        return not is_own_fault(news.message)
    if news.kind in ("started", "soon", "overdue"):
        charge = stay.open_charge
        return charge is None or charge.began_s > made_s or not stay.is_charging(now_s)
    if news.kind == "still":
        return has_left(made_s, stay)
    return False


def has_left(made_s: float, stay: Stay) -> bool:
    """Return whether the car has been unplugged since `made_s`."""
    return stay.plugged is False or stay.since_s > made_s


# --- Watch ----------------------------------------------------------------------------
MIN_GAP_S = 10 * MINUTE_S  # between polls, before an early one
AFTER_FULL_S = 2 * MINUTE_S  # BMW rounds its estimate, and never reports full early
MAX_EARLY_POLLS = 4  # in a row with nothing new, in case the status is stuck


class ChargeWatch:
    """Turn reports into readings and news, and decide when to poll next."""

    def __init__(self, memory: Memory, notify_at: float, interval_s: float) -> None:
        self._memory = memory
        self._notify_at = notify_at  # the owner's own percentage; 0 for none
        self._interval_s = interval_s
        self._early_polls = 0  # in a row with nothing new

    def observe(self, report: Report) -> tuple[Stay, Reading, list[News]]:
        """Return the current stay, the reading, and the news in order of delivery.

        Raise Trouble if no percentage is known.
        """
        memory = self._memory
        is_first = not memory.journal
        journal = merged(memory.journal, report)
        stays = stays_in(journal)
        stay = stays[-1]
        memory.range_unit = report.range_unit or memory.range_unit
        reading = reading_of(stay, report, memory.range_unit)
        if not reading:
            why = "BMW's answer contains no valid charge"
            raise Trouble(why if memory.last else f"{why}; {DRIVE_ONCE}")

        memory.journal = trimmed(journal, stays, report.taken_s)
        events = events_in(stays, reading, self._notify_at)
        news = self._take_untold(events, reading.taken_s, is_first)
        memory.step_from = min(memory.step_from, reading.percent)
        if not news and not is_first and stay.is_charging(reading.taken_s):
            news = self._step_news(reading)
        if news or is_first:
            memory.step_from = reading.percent

        self._count_early_polls(reading, news)
        memory.last = reading
        return stay, reading, news

    def _take_untold(
        self, events: Iterable[News], now_s: float, is_first: bool
    ) -> list[News]:
        """Return the events that are new to the owner, and mark them as told."""
        news: list[News] = []
        for event in events:
            is_after_full = any(each.kind == "full" for each in news)
            if event.kind == "still" and is_after_full:
                continue  # "full" is told late, so "still" can wait for the next poll
            if not self._was_told(event, now_s):
                self._memory.news_told_s[event.kind] = event.at_s
                if self._is_worth_telling(event, now_s, is_first):
                    news.append(event)
        return news

    def _was_told(self, event: News, now_s: float) -> bool:
        """Return whether news of this kind was told in the event's stay or charge."""
        told_s = self._memory.news_told_s.get(event.kind)
        if told_s is None or told_s > now_s + CLOCK_ERROR_S:  # the clock was wrong then
            return False
        return told_s >= event.since_s

    def _is_worth_telling(self, event: News, now_s: float, is_first: bool) -> bool:
        """Return whether an event is recent, and not from before the first report.

        In the first report, only "soon" and "overdue" are news. Not even those are if
        version 3.1.0 left a reading without a journal: it may have told them.
        """
        if now_s - event.at_s > MAX_NEWS_AGE_S:
            return False
        is_new_owner = self._memory.last is None
        return not is_first or (is_new_owner and event.kind in ("soon", "overdue"))

    def _step_news(self, reading: Reading) -> list[News]:
        risen = reading.percent - self._memory.step_from
        if round(risen, 6) < STEP_PERCENT:
            return []
        message = with_full_clock(f"{reading.percent_text} charged", reading)
        return [News("step", message, at_s=reading.taken_s)]

    def _count_early_polls(self, reading: Reading, news: list[News]) -> None:
        last = self._memory.last
        if news or last is None or reading.status != last.status:
            self._early_polls = 0
        elif reading.taken_s < last.taken_s + self._interval_s - MINUTE_S:
            self._early_polls += 1

    # The next poll

    def next_poll_s(self, reading: Reading, began_s: float) -> float:
        """Return when to poll next: after the interval, or earlier if news is due.

        Wait up to MIN_GAP_S longer if that poll can then announce "soon".
        """
        regular_s = began_s + self._interval_s
        if not reading.full_at_s or self._early_polls >= MAX_EARLY_POLLS:
            return regular_s
        soon_s = reading.full_at_s - SOON_MINUTES * MINUTE_S
        expected_s = self._expected_news_s(reading, soon_s)
        ahead_s = [at_s for at_s in expected_s if at_s > reading.taken_s]
        earliest_s = reading.taken_s + MIN_GAP_S
        # If nothing is ahead, the car should be full by now.
        next_s = min(ahead_s, default=earliest_s)
        next_s = min(max(next_s, earliest_s), regular_s)

        # Polls are MIN_GAP_S apart, so the one after this could be too late for "soon".
        is_just_before = 0 < soon_s - next_s < MIN_GAP_S
        return soon_s if is_just_before and self._interval_s > MIN_GAP_S else next_s

    def _expected_news_s(self, reading: Reading, soon_s: float) -> list[float]:
        times_s = [soon_s, reading.full_at_s + AFTER_FULL_S]
        if self._has_requests_to_spare(reading.taken_s):
            times_s.append(
                time_at_percent(reading, self._memory.step_from + STEP_PERCENT)
            )
            times_s.append(time_at_percent(reading, self._notify_at))
        return times_s

    def _has_requests_to_spare(self, now_s: float) -> bool:
        """Return whether one more leaves enough for regular polls, and two around full.

        Check the moment before each request of the last 24 hours expires: that request,
        those after it, and the regular polls until then must fit the quota.
        """
        most = daily_quota(self._interval_s) - 2
        sent_s = requests_of_24_hours(self._memory.requests_s, now_s)
        for earlier, at_s in enumerate(sent_s):
            regular = (at_s + DAY_S - now_s) / self._interval_s
            if len(sent_s) - earlier + regular > most:
                return False
        return True


def time_at_percent(reading: Reading, percent: float) -> float:
    """Return when the charge reaches a percentage if it rises evenly; 0 if it has.

    Aim 0.1 % higher, because a rounded interpolation could be just below.
    """
    if not reading.percent < percent < 100:
        return 0.0
    share = (percent + 0.1 - reading.percent) / (100 - reading.percent)
    return reading.taken_s + (reading.full_at_s - reading.taken_s) * share


# --- Log lines ------------------------------------------------------------------------
STALE_AFTER_S = 5 * MINUTE_S
MIN_COLUMNS_FOR_BAR = 80  # minimum terminal width for the bar
COLOURS: dict[Status, int] = {"charging": 32, "full": 36, "waiting": 33, "error": 31}
DIM = 2
RED = 31
DATE_ON_TERMINAL = "%a %H:%M"
DATE_IN_FILE = "%Y-%m-%d %H:%M:%S"


def text_line(reading: Reading, date_format: str, bar: str = "") -> str:
    moment = datetime.fromtimestamp(reading.taken_s)
    distance = ""
    if reading.range is not None:
        distance = f"{int(reading.range)} {reading.range_unit}"
    age_s = reading.taken_s - reading.reported_s
    is_old = reading.reported_s > 0 and age_s > STALE_AFTER_S
    columns = [
        f"{moment:{date_format}} {reading.percent_text:>5}",
        bar,
        f"{reading.status:<10}",
        f"{distance:>6}",
        f"full {reading.full_clock}" if reading.full_clock else "",
        f"car: {duration(age_s)} ago" if is_old else "",
    ]
    return "  ".join(filter(None, columns)).rstrip()


def bar_of(percent: float, blocks: str) -> str:
    """Draw ten cells. `blocks` has an empty cell, partial ones, and a full one."""
    parts = len(blocks) - 1
    filled = round(percent / 10 * parts)
    if percent < 100:
        filled = min(filled, 10 * parts - 1)
    cells, part = divmod(filled, parts)
    partial = blocks[part] if part else ""
    return (blocks[-1] * cells + partial).ljust(10, blocks[0])


def json_line(reading: Reading) -> str:
    minutes = reading.minutes_to_full
    values = {
        "time": iso_local(reading.taken_s),
        "charge": reading.percent,
        "predicted": reading.predicted,
        "status": reading.status,
        "plugged": reading.plugged,
        "range": reading.range,
        "range_unit": reading.range_unit or None,
        "minutes_to_full": minutes,
        "full_at": None if minutes is None else iso_utc(reading.full_at_s),
        "reported": iso_utc(reading.reported_s) if reading.reported_s else None,
    }
    return json.dumps(values)


def iso_local(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).astimezone().isoformat(timespec="seconds")


def iso_utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, timezone.utc).isoformat(timespec="seconds")


def is_terminal(stream: IO[str]) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class ChargeLog:
    """The log of readings on stdout, as JSON or as text for a terminal or a file."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._encoding = sys.stdout.encoding
        self._is_terminal = is_terminal(sys.stdout) and not as_json
        is_utf = self._encoding.lower().startswith("utf")
        self._blocks = "░▏▎▍▌▋▊▉█" if is_utf else "-#"
        self._title = ""
        self.works = True
        self.is_unread = False  # whether the reader of the pipe has exited
        if self._is_terminal:
            self._write("\033[22;2t")  # save the terminal's own title

    def write(self, reading: Reading) -> None:
        self._write(self._line(reading) + "\n")
        self.set_title(f"i3 {reading.percent_text} {reading.status}")

    def set_title(self, text: str) -> None:
        if self._is_terminal and text != self._title:
            self._title = text
            self._write(f"\033]2;{text}\007")

    def close(self) -> None:
        if self._is_terminal:
            self._write("\033]2;\007\033[23;2t")  # restore the terminal's own title

    def _line(self, reading: Reading) -> str:
        if self._as_json:
            return json_line(reading)
        if not self._is_terminal:
            return text_line(reading, DATE_IN_FILE)
        is_wide = shutil.get_terminal_size().columns >= MIN_COLUMNS_FOR_BAR
        bar = bar_of(reading.percent, self._blocks) if is_wide else ""
        if bar and not os.environ.get("NO_COLOR"):
            bar = f"\033[{COLOURS.get(reading.status, DIM)}m{bar}\033[0m"
        return text_line(reading, DATE_ON_TERMINAL, bar)

    def _write(self, text: str) -> None:
        """Write without buffering, so that nothing is left to flush at exit."""
        if not self.works:
            text = f"\n{text}"  # the failure may have torn the last line
        left = text.encode(self._encoding, "replace")
        try:
            while left:  # a disk that is nearly full takes only a part
                left = left[os.write(sys.stdout.fileno(), left) :]
            self.works = True
        except BrokenPipeError:
            self.is_unread = True
        except OSError as error:
            if self.works:
                logger.error(
                    "the log cannot be written (%s); continuing without it",
                    error.strerror,
                )
            self.works = False


class TerminalFormatter(logging.Formatter):
    """A formatter that shows errors in red, and dims lines below a warning."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if record.levelno == logging.WARNING:
            return line
        colour = RED if record.levelno > logging.WARNING else DIM
        return f"\033[{colour}m{line}\033[0m"


def set_up_logger(*, verbose: bool) -> None:
    """Log to stderr, because stdout is for readings only."""
    logging.raiseExceptions = False  # ignore lines that cannot be written
    is_shown = is_terminal(sys.stderr)
    has_colours = is_shown and not os.environ.get("NO_COLOR")
    formatter_class = TerminalFormatter if has_colours else logging.Formatter
    date_format = DATE_ON_TERMINAL if is_shown else DATE_IN_FILE
    handler = logging.StreamHandler()
    handler.setFormatter(formatter_class("%(asctime)s  %(message)s", date_format))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)


# --- Delivery of news -----------------------------------------------------------------
@dataclass(frozen=True)
class Delivery:
    """How one kind of news is delivered, in addition to a desktop notification."""

    level: int = logging.WARNING  # in the log
    is_loud: bool = False  # play a sound on the desktop
    rings: bool = False  # ring the terminal's bell; tmux then marks the window
    priority: str = ""  # ntfy's name for it; "" if not sent to any address
    tag: str = ""  # ntfy's name for an emoji


LOGGED_ELSEWHERE = logging.NOTSET

DELIVERIES: dict[Kind, Delivery] = {
    "started": Delivery(priority="low", tag="zap"),
    "step": Delivery(logging.DEBUG),
    "reached": Delivery(is_loud=True, priority="high", tag="dart"),
    "soon": Delivery(is_loud=True, priority="high", tag="hourglass"),
    "overdue": Delivery(is_loud=True, priority="high", tag="hourglass"),
    "full": Delivery(is_loud=True, rings=True, priority="high", tag="battery"),
    "stopped": Delivery(is_loud=True, rings=True, priority="high", tag="warning"),
    "paused": Delivery(),
    "still": Delivery(priority="default", tag="electric_plug"),
    "sign-in": Delivery(
        LOGGED_ELSEWHERE, rings=True, priority="high", tag="rotating_light"
    ),
    "error": Delivery(
        LOGGED_ELSEWHERE, rings=True, priority="high", tag="rotating_light"
    ),
}

TELLING_LIMIT_S = 10.0  # timeout for notification programs and addresses
FIRST_MACOS_WITHOUT_PYNCS_OWN = 16  # the version macOS 26 reports to older programs


class Desktop:
    """Notifications on this computer, shown by the first program that works."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._has_advised = False

    def show(self, news: News) -> None:
        for start in (start_pync, start_osascript, start_notify_send):
            if self._try_to_show(start, news):
                return
        if not self._has_advised:
            self._has_advised = True
            logger.info("no notifications on this computer; README.md has advice")

    def _try_to_show(
        self, start: Callable[[str, News], subprocess.Popen[bytes]], news: News
    ) -> bool:
        """Return whether a program reports success; kill it if it hangs."""
        try:
            with start(self._title, news) as process:
                try:
                    return process.wait(TELLING_LIMIT_S) == 0
                finally:
                    process.kill()
        except Exception as problem:  # noqa: BLE001 - pync raises plain Exception
            logger.debug("%s: %s", start.__name__, type(problem).__name__)
            return False


def start_pync(title: str, news: News) -> subprocess.Popen[bytes]:
    """Start terminal-notifier, from the PATH or bundled with pync.

    On macOS 16 and later, the bundled one reports success but shows nothing.
    """
    # Import here because the import fails on other systems, and always runs `which`.
    import platform

    import pync  # type: ignore[import-untyped]

    macos = int(platform.mac_ver()[0].split(".")[0] or 0)
    if hasattr(pync.Notifier, "app_path") and macos >= FIRST_MACOS_WITHOUT_PYNCS_OWN:
        raise OSError("pync's own terminal-notifier shows nothing here")

    # A notification replaces the previous one in its group.
    options = {"title": title, "group": f"i3charge-{news.kind}"}
    if DELIVERIES[news.kind].is_loud:
        options["sound"] = "Glass"
    if news.click:
        options["open"] = news.click
    process: subprocess.Popen[bytes] = pync.Notifier.notify(news.text, **options)
    return process


def start_osascript(title: str, news: News) -> subprocess.Popen[bytes]:
    sound = ' sound name "Glass"' if DELIVERIES[news.kind].is_loud else ""
    show = f"display notification (item 1 of argv) with title (item 2 of argv){sound}"
    lines = ["-e", "on run argv", "-e", show, "-e", "end run"]
    return start_quietly(["osascript", *lines, news.text, title])


def start_notify_send(title: str, news: News) -> subprocess.Popen[bytes]:
    return start_quietly(["notify-send", title, news.text])


def start_quietly(command: list[str]) -> subprocess.Popen[bytes]:
    import subprocess  # here, because a start should be quick

    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


# --- Delivery to the owner's addresses ------------------------------------------------
LATE_S = 10 * MINUTE_S  # a later message begins with the time of the event
MAX_RETRY_PAUSE_S = HOUR_S
# Pauses between attempts that may have been delivered. After the last pause, there is
# one last attempt; meanwhile, the message does not delay others.
UNANSWERED_PAUSES_S = (5 * MINUTE_S, 55 * MINUTE_S)

# What became of a message; "unclear": it may have been accepted
Outcome = Literal["accepted", "unclear", "later", "refused"]


class Outbox:
    """The queue of undelivered messages to the owner's addresses.

    Each address gets its messages in order: an undelivered message delays later ones,
    unless the address has refused it or has twice given no clear answer.
    """

    def __init__(self, settings: Settings, store: Store, title: str) -> None:
        urls = {"NTFY_URL": settings.ntfy_url, "WEBHOOK_URL": settings.webhook_url}
        self._urls = {name: url for name, url in urls.items() if url}
        self._memory = store.memory
        self._save = store.save
        self._title = title

    @property
    def hosts(self) -> str:
        return ", ".join(map(self._host, self._urls)) or "none"

    def add(self, news: News, reading: Reading | None) -> None:
        """Queue a message for each address if this kind of news has a priority."""
        if not DELIVERIES[news.kind].priority:
            return
        now_s = time.time()
        for waiting in self._memory.outbox:
            if not waiting.unanswered:  # retry now, so as not to delay the new one
                waiting.next_try_s = min(waiting.next_try_s, now_s)
        for name in self._urls:
            message = Message(name, news, made_s=now_s)
            if reading:
                message.charge = reading.percent
                message.predicted = reading.predicted
                message.status = reading.status
            self._memory.outbox.append(message)

    def deliver(self) -> None:
        """Send the messages that are due."""
        self._drop_expired()
        for name in self._urls:
            self._deliver_to(name)

    def drop_outdated(self, stay: Stay, now_s: float) -> None:
        """Drop messages, or their last sentence, that a new reading contradicts."""
        for message in list(self._memory.outbox):
            if is_outdated(message.news, message.made_s, stay, now_s):
                self._drop_unsent(message)
            elif message.news.while_plugged and has_left(message.made_s, stay):
                message.news = dataclasses.replace(message.news, while_plugged="")

    def log_undelivered(self) -> None:
        for message in self._memory.outbox:
            if message.address in self._urls:
                host = self._host(message.address)
                logger.error("not sent to %s: %s", host, message.summary)

    def _host(self, name: str) -> str:
        return urlsplit(self._urls[name]).hostname or ""

    def _drop_expired(self) -> None:
        now_s = time.time()
        for message in list(self._memory.outbox):
            if now_s < message.good_until_s:
                continue
            if message.news.kind == "sign-in":  # its code has expired, others follow
                self._drop_unsent(message)
            else:
                self._memory.outbox.remove(message)
                logger.error("given up after a day: %s", message.summary)

    def _drop_unsent(self, message: Message) -> None:
        self._memory.outbox.remove(message)
        logger.debug("outdated, so not sent: %s", message.summary)

    def _deliver_to(self, name: str) -> None:
        for message in list(self._memory.outbox):
            if message.address != name:
                continue
            if not seconds_until(message.next_try_s, MAX_RETRY_PAUSE_S):
                self._try(message)
                self._save()
            if message in self._memory.outbox and holds_up_others(message):
                return

    def _try(self, message: Message) -> None:
        outcome, why = self._post(message)
        if outcome != "accepted":
            self._retry_later(message, outcome, why)
            return
        self._memory.outbox.remove(message)
        summary = message.summary
        shown = summary if len(summary) <= 40 else f"{summary[:39]}…"
        logger.info("sent to %s: %s", self._host(message.address), shown)

    def _post(self, message: Message) -> tuple[Outcome, str]:
        """Send a message. Return the outcome, and why it was not accepted."""
        url = self._urls[message.address]
        address, credentials = split_credentials(url)
        is_ntfy = message.address == "NTFY_URL"
        render = ntfy_message if is_ntfy else webhook_message
        body, headers = render(message, self._title, time.time())
        try:
            answer = send(
                "a notification",
                "POST",
                address,
                auth=credentials or without_netrc,
                headers=headers,
                data=body,
                timeout_s=(TELLING_LIMIT_S, TELLING_LIMIT_S),
            )
        except Trouble as trouble:
            return "unclear" if trouble.may_have_arrived else "later", str(trouble)
        outcome = outcome_at_ntfy(answer) if is_ntfy else outcome_at_webhook(answer)
        return outcome, "" if outcome == "accepted" else refusal_in(answer, url)

    def _retry_later(self, message: Message, outcome: Outcome, why: str) -> None:
        """Schedule the next attempt, or give up on the message.

        The pause equals the message's age, but at least a minute and at most an hour.
        """
        now_s = time.time()
        is_first_try = message.next_try_s == 0
        pause_s = min(max(now_s - message.made_s, MINUTE_S), MAX_RETRY_PAUSE_S)
        if outcome == "unclear":
            if message.unanswered >= len(UNANSWERED_PAUSES_S):
                self._memory.outbox.remove(message)
                host = self._host(message.address)
                logger.error(
                    "%s may not have received: %s (%s)", host, message.summary, why
                )
                return
            pause_s = UNANSWERED_PAUSES_S[message.unanswered]
            message.unanswered += 1
        message.next_try_s = now_s + pause_s
        message.is_refused = outcome == "refused"
        if is_first_try:
            logger.error("%s; it will be tried again", why)


def holds_up_others(message: Message) -> bool:
    is_last_try = message.unanswered >= len(UNANSWERED_PAUSES_S)
    return not message.is_refused and not is_last_try


def text_to_send(message: Message, now_s: float) -> str:
    """Return the message, with the time of the event if it is late."""
    news = message.news
    if news.at_s and now_s > message.made_s + LATE_S:
        return f"{clock_at(news.at_s, now_s)}: {news.text}"
    return news.text


def ntfy_message(
    message: Message, title: str, now_s: float
) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers; see https://docs.ntfy.sh/publish/."""
    delivery = DELIVERIES[message.news.kind]
    headers = {"Title": title, "Tags": delivery.tag, "Priority": delivery.priority}
    if message.news.click:
        headers["Click"] = message.news.click
    return text_to_send(message, now_s).encode(), headers


def webhook_message(
    message: Message, title: str, now_s: float
) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers. Receivers ignore keys that they do not know."""
    text = text_to_send(message, now_s)
    values = {
        "event": message.news.kind,
        "title": title,
        "message": text,
        "body": text,  # for Apprise API and Bark
        "text": f"{title}: {text}",  # for Slack, Mattermost and Telegram
        "content": f"{title}: {text}",  # for Discord
        "charge": message.charge,
        "predicted": message.predicted,
        "status": message.status or None,
        "time": iso_local(message.made_s),
    }
    return json.dumps(values).encode(), {"Content-Type": "application/json"}


def split_credentials(url: str) -> tuple[str, tuple[bytes, bytes] | None]:
    """Split the user name and password from an address, and encode them as in RFC 7617.

    requests would encode them as Latin-1, which has no Cyrillic or Polish letters.
    """
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    user, _, password = userinfo.partition(":")
    credentials = (unquote(user).encode(), unquote(password).encode())
    return parts._replace(netloc=host).geturl(), credentials


def outcome_at_ntfy(answer: HttpAnswer) -> Outcome:
    """Return the outcome of a message sent to ntfy.

    Require a message id in the answer, because a login page in front of a self-hosted
    server would swallow messages.
    """
    if not 200 <= answer.status < 300:
        return outcome_of_error(answer.status)
    message_id = answer.json().get("id")
    if isinstance(message_id, (str, int)) and message_id:
        return "accepted"
    return "later" if is_web_page(answer) else "unclear"


def outcome_at_webhook(answer: HttpAnswer) -> Outcome:
    """Return a webhook's outcome. Google Apps Script redirects after it has run."""
    is_google = f".{redirect_host(answer)}".endswith(".googleusercontent.com")
    if 200 <= answer.status < 300 or (answer.status in (302, 303) and is_google):
        return "accepted"
    return outcome_of_error(answer.status)


def outcome_of_error(status: int) -> Outcome:
    if status in (500, 504):  # the message may have been processed anyway
        return "unclear"
    return "refused" if 400 <= status < 500 and status != 429 else "later"


def is_web_page(answer: HttpAnswer) -> bool:
    is_html = "html" in answer.headers.get("Content-Type", "").lower()
    return is_html or answer.body.lstrip()[:1] == b"<"


def redirect_host(answer: HttpAnswer) -> str:
    """Return the host that a redirect leads to; "" if it names none."""
    with suppress(ValueError):
        host = urlsplit(answer.headers.get("Location", "")).hostname or ""
        return host if re.fullmatch("[a-z0-9.-]+", host) else ""
    return ""


def refusal_in(answer: HttpAnswer, url: str) -> str:
    """Describe why an address did not accept a message, without the secret address."""
    refused = f"{answer.host} did not accept a notification (HTTP {answer.status})"
    if 300 <= answer.status < 400:
        where = redirect_host(answer) or "another page"
        return f"{refused}: the address redirects to {where}; is there a login page?"
    if answer.status < 300:
        return f"{refused}: the answer is not from ntfy; is there a login page?"
    said = answer.json()
    error = said.get("error")
    reason = dict_or_empty(error).get("message") or error  # the first is Google's
    reason = reason or said.get("message") or said.get("description")
    if not text_or_empty(reason):
        return refused
    words = re.split("[/?&=:@#]+", f"{url}/{unquote(url)}/{quote(url)}")
    hidden = [url, *(word for word in words if len(word) > 2)]
    return f"{refused}: {printable(reason, hidden)[:60]}"


# --- Telling the owner ----------------------------------------------------------------
class Notifier:
    """Deliver news to the log, to this computer's desktop, and to the outbox."""

    def __init__(self, store: Store, desktop: Desktop, outbox: Outbox) -> None:
        self._memory = store.memory
        self._save = store.save
        self._desktop = desktop
        self._outbox = outbox

    def tell(self, news: list[News], reading: Reading | None = None) -> None:
        """Deliver news. Save it first, so that it is not told twice after a crash."""
        for each in news:
            self._outbox.add(each, reading)
        self._save()
        for each in news:
            delivery = DELIVERIES[each.kind]
            logger.log(delivery.level, "%s", each.text)
            if delivery.rings and sys.stderr.isatty():
                print("\a", end="", file=sys.stderr, flush=True)
            self._desktop.show(each)

    def tell_trouble(self, news: News, told_as: str = "") -> bool:
        """Tell the owner of a trouble at most once a day; return whether it did."""
        told_as = told_as or news.message
        if self.was_told_lately(told_as):
            return False
        now_s = time.time()
        # Each device code is a trouble of its own, so forget those of earlier days.
        told_s = self._memory.troubles_told_s
        told_s = {
            each: at_s for each, at_s in told_s.items() if self.was_told_lately(each)
        }
        self._memory.troubles_told_s = {**told_s, told_as: now_s}
        self.tell([dataclasses.replace(news, at_s=now_s)])
        return True

    def was_told_lately(self, told_as: str) -> bool:
        told_s = self._memory.troubles_told_s.get(told_as, 0.0)
        return 0 <= time.time() - told_s < DAY_S

    def forget_troubles(self) -> None:
        """Forget all troubles but internal errors, which a reading does not refute."""
        told_s = self._memory.troubles_told_s
        self._memory.troubles_told_s = {
            told_as: at_s for told_as, at_s in told_s.items() if is_own_fault(told_as)
        }


def silence_news(last: Reading | None, interval_s: float, now_s: float) -> News | None:
    """Return news if a reading is overdue during a charge, by a day at most."""
    if last is None or last.status != "charging":
        return None
    min_s = max(2 * interval_s, HOUR_S)
    if not min_s <= now_s - last.taken_s <= min_s + DAY_S:
        return None
    since = clock_at(last.taken_s, now_s)
    message = f"No word from BMW since {since} ({last.percent_text}, charging)"
    return News("error", message)


def no_readings_news(last: Reading | None, trouble: Trouble, now_s: float) -> News:
    since = clock_at(last.taken_s, now_s) if last else "the start"
    message = f"No readings since {since}: {trouble}; README.md says what to do"
    return News("error", message)


# --- Main loop ------------------------------------------------------------------------
MAX_NAP_S = MINUTE_S
# Without a reading (in the loop, also three failures) until the owner is told
NO_READINGS_S = 6 * HOUR_S


@dataclass
class Loop:
    """The main loop: poll, log, tell, wait."""

    door: Door
    interval_s: float
    store: Store
    watch: ChargeWatch
    log: ChargeLog
    notifier: Notifier
    outbox: Outbox
    once: bool = False
    ends_when_full: bool = False
    failures: int = 0  # consecutive
    failing_since_s: float = 0.0  # from time.monotonic(), which stops during sleep
    trouble: Trouble | None = None  # why the last poll gave no reading
    next_s: float = 0.0  # when the next poll is due
    exit_status: int | None = None  # set to end the loop

    def run(self) -> int:
        """Run until the exit status is set, and return it."""
        while self.exit_status is None:
            self.guarded(self.poll)
            self.guarded(self.outbox.deliver)
            if self.exit_status is None:
                self.wait()
        return self.exit_status

    def guarded(self, step: Callable[[], object]) -> None:
        """Run a step. If it fails, tell the owner once a day, and carry on."""
        try:
            step()
        except Exception as problem:  # noqa: BLE001 - whatever it is, it may pass
            sentence = describe_fault(problem)
            if self.once:
                self.exit_status = 1
            if not self.notifier.was_told_lately(sentence):
                logger.error("%s", sentence)
                with suppress(Exception):  # the notifier itself may be broken
                    self.notifier.tell_trouble(News("error", sentence))

    def poll(self) -> None:
        """Take one reading, or note why there is none."""
        began_s = time.time()
        try:
            stay, reading, news = self.watch.observe(self.door.poll())
        except Exception as problem:  # noqa: BLE001 - whatever it is, it may pass
            self.note_failure(problem)
            return
        self.failures = 0
        self.trouble = None
        began_s = min(began_s, reading.taken_s)  # the clock may have been corrected
        self.next_s = began_s + self.interval_s
        self.guarded(lambda: self.log.write(reading))
        self.guarded(lambda: self.outbox.drop_outdated(stay, reading.taken_s))
        self.guarded(lambda: self.notifier.tell(news, reading))
        self.guarded(self.notifier.forget_troubles)
        is_saved = self.store.save()

        if self.log.is_unread:
            self.exit_status = 0
        elif self.once or (self.ends_when_full and reading.status == "full"):
            is_good = self.log.works and is_saved and self.exit_status is None
            self.exit_status = 0 if is_good else 1
        self.next_s = self.watch.next_poll_s(reading, began_s)

    # What goes wrong

    def note_failure(self, problem: Exception) -> None:
        """Schedule the next attempt, log the problem, and tell the owner."""
        trouble = trouble_of(problem)
        if isinstance(problem, CannotGoOn):
            self.exit_status = problem.exit_status
        elif self.once:
            self.exit_status = 1
        if self.trouble is None or self.trouble.needs_sign_in:
            self.failing_since_s = time.monotonic()
        self.trouble = trouble
        if not trouble.needs_sign_in:
            self.failures += 1
        wait_s = trouble.wait_s
        if wait_s is None:
            wait_s = growing_pause_s(max(self.failures, 1), self.interval_s)
        self.next_s = time.time() + wait_s

        self.guarded(lambda: self.log_trouble(trouble, wait_s))
        news = trouble.news
        if news:
            self.guarded(lambda: self.notifier.tell_trouble(news))
        # The first failure may only mean that the computer has just woken up.
        if self.once or self.failures > 1:
            self.tell_silence()
        self.store.save()

    def log_trouble(self, trouble: Trouble, wait_s: float) -> None:
        level = logging.WARNING if trouble.needs_sign_in else logging.ERROR
        sentence = str(trouble)
        has_code = trouble.news is not None and bool(trouble.news.click)
        if sentence and self.exit_status is None and not has_code:
            sentence += f"; next try in {duration(wait_s)}"
        if sentence:
            logger.log(level, "%s", sentence)
        waiting_for = "waiting for you" if trouble.needs_sign_in else "no reading"
        self.log.set_title(f"i3: {waiting_for}")

    def tell_silence(self) -> None:
        """Report missing readings: promptly during a charge, else after six hours."""
        now_s = time.time()
        news = silence_news(self.store.memory.last, self.interval_s, now_s)
        told_as = "no word in a charge"
        if not news and self.trouble and self.is_failing_for_long(self.trouble, now_s):
            news = no_readings_news(self.store.memory.last, self.trouble, now_s)
            told_as = "no readings"
        if news and self.notifier.tell_trouble(news, told_as):
            logger.error("%s", news.message)

    def is_failing_for_long(self, trouble: Trouble, now_s: float) -> bool:
        """Return whether polls have failed for hours while the computer was awake."""
        if trouble.needs_sign_in:
            return False
        if self.once:
            last = self.store.memory.last
            return last is not None and now_s - last.taken_s >= NO_READINGS_S
        failing_s = time.monotonic() - self.failing_since_s
        return self.failures >= 3 and failing_s >= NO_READINGS_S

    # Waiting

    def wait(self) -> None:
        """Sleep in naps until the next poll; a clock set back does not extend this."""
        left_s = self.next_s - time.time()
        while left_s > 0:
            nap_s = min(left_s, MAX_NAP_S)
            time.sleep(nap_s)
            left_s = min(left_s - nap_s, self.next_s - time.time())
            if left_s > 0:  # otherwise the next round does this
                self.guarded(self.tell_silence)
                self.guarded(self.outbox.deliver)


# --- Command line ---------------------------------------------------------------------
OWN_SETTINGS_PATH = Path(__file__).resolve().with_name(".env")

DESCRIPTION = """\
Log the charge of a BMW i3, and say when it rises and when the car is full.

Each reading is a line on stdout. The news (charging has started, paused or
stopped, 5 % more, full soon, full) shows as a notification on this computer.
All except pauses and 5 % steps is sent to your phone, too. Ctrl-C ends it."""

MANUAL = """\
settings, from .env beside this file or the environment (.env wins):
  VEHICLE_IDENTIFICATION_NUMBER  the car's 17 characters, in its papers
  CARDATA_CLIENT_ID              from the My BMW portal; README.md has the steps

optional:
  NTFY_URL                       your phone: https://ntfy.sh/ and your topic
  WEBHOOK_URL                    an address that gets the news as JSON
  NOTIFY_AT                      tell me at this charge in percent, such as 80
  LOG_INTERVAL                   milliseconds between readings; else 2400000
  CARDATA_BASE_URL               the address of CarData, if BMW moves it
  CARDATA_AUTH_BASE_URL          the address of its sign-in, if BMW moves it

for the ConnectedDrive portal, which BMW has closed; used if PASSWORD or
AUTH_CLIENT_ID is set, and CARDATA_CLIENT_ID is not:
  USERNAME                       the account's e-mail address
  PASSWORD                       its password
  AUTH_CLIENT_ID                 the client id that the portal's page sends
  CONNECTED_DRIVE_BASE_URL       the address of your country's portal
  AUTH_BASE_URL                  the address of its login
  AUTH_REDIRECT_URI              the redirect URI of its login

files:
  .env             the settings; .env.example is a form for them
  .i3charge.json   beside the settings: the sign-in, the charge, unsent news

exit status:
  0    --once has its reading, --demo is over, or the log's reader has exited
  1    BMW refuses the sign-in, --once got no reading or could not keep it,
       i3charge is already running, or has a fault of its own
  2    the settings, the options or the files are wrong; a message says which
  129, 130, 143   ended by a closed terminal, Ctrl-C, or a shutdown

examples:
  python i3charge.py --demo                     try it, without a BMW account
  python i3charge.py | tee -a charge.log        keep the readings in a file, too
  python i3charge.py --once --json              one reading, for another program
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=MANUAL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--once", action="store_true", help="take one reading, then end")
    add("--json", action="store_true", help="log one JSON object per line")
    add("--demo", action="store_true", help="log a simulated i3 until it is full")
    add("--env-file", type=Path, metavar="PATH", help="read the settings from PATH")
    add(
        "-v", "--verbose", action="store_true", help="log requests and what BMW answers"
    )
    add("--version", action="version", version=f"i3charge {__version__}")
    return parser.parse_args()


def main() -> int:
    """Run the program, and return its exit status."""
    # Replace a stream that was closed before the start, as by `>&-`.
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    try:
        handle_signals()
        arguments = parse_arguments()
        set_up_logger(verbose=arguments.verbose)
        return run(arguments)
    except CannotGoOn as problem:
        for line in problem.lines:
            logger.error("%s", line)
        return problem.exit_status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as problem:  # noqa: BLE001 - never show a traceback
        logger.critical("%s", describe_fault(problem))
        return 1


def handle_signals() -> None:
    """Exit cleanly on a signal, unless the parent process has set it to be ignored.

    nohup ignores SIGHUP, and a script ignores SIGINT for its background commands.
    """
    # Python complains about the partly created sockets that Ctrl-C leaves behind.
    sys.unraisablehook = lambda _: None
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: exit_with_status,
        signal.SIGHUP: exit_with_status,
    }
    for signal_number, handler in handlers.items():
        if signal.getsignal(signal_number) != signal.SIG_IGN:
            signal.signal(signal_number, handler)


def exit_with_status(signal_number: int, _: object) -> NoReturn:
    sys.exit(128 + signal_number)


def run(arguments: argparse.Namespace) -> int:
    """Set up and run the main loop; return the exit status."""
    path = Path(os.path.abspath(arguments.env_file or OWN_SETTINGS_PATH))
    door_name, settings = find_settings(arguments, path)
    store = open_store(path, door_name, settings)
    title = "BMW i3 (demo)" if arguments.demo else "BMW i3"
    outbox = Outbox(settings, store, title)
    loop = Loop(
        door=open_door(door_name, settings, store, once=arguments.once),
        interval_s=settings.interval_s,
        store=store,
        watch=ChargeWatch(store.memory, settings.notify_at, settings.interval_s),
        log=ChargeLog(as_json=arguments.json),
        notifier=Notifier(store, Desktop(title), outbox),
        outbox=outbox,
        once=arguments.once,
        ends_when_full=arguments.demo,
    )
    if not arguments.once:
        pace = f"every {duration(settings.interval_s)} and when news is due"
        if arguments.demo:
            pace = "two hours in 15 seconds"
        logger.info("%s, %s. Phone: %s", loop.door.name, pace, outbox.hosts)
    try:
        status = loop.run()
    finally:
        outbox.log_undelivered()
        loop.log.close()
    if arguments.demo and not arguments.once:
        logger.info('That was a simulation. Next: README.md, "Your own car".')
    return status


def find_settings(
    arguments: argparse.Namespace, path: Path
) -> tuple[DoorName, Settings]:
    """Return the door to use and its settings, from the file and the environment."""
    found = {}
    if arguments.env_file or path.exists():
        found = read_settings_file(path)
    # The file overrides the environment, because many desktops export USERNAME.
    variables = {**os.environ, **found}
    door_name = "demo" if arguments.demo else door_for(variables)
    advice = advice_on_settings(path, door_name)
    return door_name, load_settings(variables, door_name, advice, names_in_file=found)


def door_for(variables: Mapping[str, str]) -> DoorName:
    """Choose the portal if only it is set up. Ignore USERNAME: desktops export it."""
    given = {name for name, value in variables.items() if value.strip()}
    if "CARDATA_CLIENT_ID" in given:
        return "CarData"
    return "portal" if given & {"PASSWORD", "AUTH_CLIENT_ID"} else "CarData"


def advice_on_settings(path: Path, door: DoorName) -> str:
    """Return what to do if a setting is missing."""
    if door == "portal":
        advice = (
            "PASSWORD and AUTH_CLIENT_ID are for a portal that BMW has closed:"
            " fill in CARDATA_CLIENT_ID instead"
        )
    elif path.exists():
        advice = f"fill in {path}"
    else:
        advice = "copy .env.example to .env and fill it in"
    return (
        f'{advice}; "Your own car" in README.md has the steps; --demo needs no account'
    )


def open_store(settings_path: Path, door: DoorName, settings: Settings) -> Store:
    """Return the settings file's store; the demo keeps nothing."""
    if door == "demo":
        return Store(Memory(), save=lambda: True)
    # A pipe, for example from a password manager, has no folder for the memory file.
    is_file = settings_path.is_file()
    file = MemoryFile(memory_path(settings_path if is_file else OWN_SETTINGS_PATH))
    memory = file.load(settings.client_id, settings.vin)
    return Store(memory, save=partial(file.save, memory))


def open_door(name: DoorName, settings: Settings, store: Store, *, once: bool) -> Door:
    if name == "demo":
        return SimulatedCar()
    if name == "CarData":
        by_hand = sys.stdin is not None and sys.stdin.isatty() and not once
        return CarData(settings, store, may_ask=not once, by_hand=by_hand)
    if urlsplit(settings.login_url).hostname == urlsplit(PORTAL_LOGIN_URL).hostname:
        logger.warning(
            "BMW has closed the ConnectedDrive portal;"
            ' use CarData instead: see "Your own car" in README.md'
        )
    return Portal(settings)


# --- Demo -----------------------------------------------------------------------------
class SimulatedCar:
    """The door to a simulated i3, which charges from 61 % to full by 1.5 % a poll."""

    name = "simulated i3"

    MINUTES_A_PERCENT = 3.3  # at 7 kW

    def __init__(self) -> None:
        story = [("NOCHARGING", 61.0)]
        story += [("CHARGINGACTIVE", 61 + 1.5 * step) for step in range(26)]
        self._story = iter(story)
        self._plugged_s = time.time()
        minutes = (100 - 61) * self.MINUTES_A_PERCENT
        self._full_at_s = self._plugged_s + minutes * MINUTE_S

    def poll(self) -> Report:
        status, percent = next(self._story, (CHARGING_ENDED, 100.0))
        now_s = time.time()
        observations = [
            Observation(self._plugged_s, "plug", CONNECTED),
            Observation(now_s, "percent", percent),
            Observation(now_s, "status", status),
            Observation(now_s, "full_at", self._full_at(percent, now_s)),
        ]
        return Report(now_s, now_s, observations, round(percent * 1.6, 1), "km")

    def _full_at(self, percent: float, now_s: float) -> float:
        """Return when the car will be full, fixed until the last few minutes."""
        left_minutes = (100 - percent) * self.MINUTES_A_PERCENT
        if left_minutes <= SOON_MINUTES:
            return now_s + left_minutes * MINUTE_S
        return self._full_at_s


if __name__ == "__main__":
    sys.exit(main())
