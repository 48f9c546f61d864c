#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = [
#   "requests>=2.28,<3",
#   "python-dotenv>=1.0,<2",
#   "pync>=2.0.3,<3; sys_platform == 'darwin'",
# ]
# ///
"""Log the charge of a BMW i3, and tell its owner when the charging station is free.

The script polls BMW for the car's status. Each reading is a line on stdout, and all
other lines of the log go to stderr. News, such as that the car is full, is shown as a
notification on this computer, too, and most of it is told to the owner's phone.

Settings come from `.env` beside this file, and from the environment. What has to
outlast the program (the sign-in, the charge that goes on, what the phone has not heard
yet) is kept in `.i3charge.json` beside the settings.

The file reads from top to bottom: the settings, what a reading is, what is remembered,
how a request is made, CarData, what its answers mean, the old portal, what a reading
leaves out, what a charge is, what is news, when the next poll is due, the watch that puts
these together, the log, how news is told, the loop, the command line, and the demo's
simulated car.
"""

from __future__ import annotations

import signal
import warnings

if __name__ == "__main__":
    # A Ctrl-C during the imports below ends the program without a traceback.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # urllib3 warns of the old TLS library that macOS has; the owner cannot change it.
    warnings.simplefilter("ignore")

import argparse
import base64
import dataclasses
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import (
    IO,
    TYPE_CHECKING,
    Any,
    Callable,
    ClassVar,
    Literal,
    NamedTuple,
    NoReturn,
    Protocol,
    TypeVar,
    get_args,
)
from urllib.parse import parse_qsl, quote, unquote, urlsplit

try:
    import requests
    import urllib3
    from dotenv.parser import Binding, parse_stream
except (ImportError, OSError) as problem:  # certificates that are missing, too
    advice = "README.md says how to install what is needed"
    sys.exit(f"i3charge: {problem}; {advice}")

if TYPE_CHECKING:
    import subprocess

    from _typeshed import DataclassInstance

__version__ = "3.1.0"
logger = logging.getLogger("i3charge")

# The numbers of the signals that have come to end the program. Python drops what their
# handler raises while it tidies up after a request, so the loop looks here, too.
SIGNALS: list[int] = []

# A name that ends in `_s` is in seconds: a span, or a moment as time.time() has it.
A_MINUTE_S = 60.0
AN_HOUR_S = 60 * A_MINUTE_S
A_DAY_S = 24 * AN_HOUR_S


class CannotStart(Exception):
    """The program ends before its first poll, after these lines for the owner."""

    def __init__(self, lines: list[str], exit_status: int = 2) -> None:
        super().__init__(*lines)
        self.lines = lines
        self.exit_status = exit_status


# --- The settings ---------------------------------------------------------------------
REQUIRED_SETTINGS = {
    "VEHICLE_IDENTIFICATION_NUMBER": "the car's 17 characters, in its papers",
    "CARDATA_CLIENT_ID": "from the My BMW portal; README.md has the steps",
}
OPTIONAL_SETTINGS = {
    "NTFY_URL": "your phone: https://ntfy.sh/ and your topic",
    "WEBHOOK_URL": "an address that gets the news as JSON",
    "NOTIFY_AT": "a charge in percent to hear of, such as 80",
    "LOG_INTERVAL": "milliseconds between readings; else 2400000",
    "CARDATA_BASE_URL": "CarData's address, if BMW moves it",
    "CARDATA_AUTH_BASE_URL": "its sign-in's address, if BMW moves that",
}
# Used where PASSWORD or AUTH_CLIENT_ID is set, and CARDATA_CLIENT_ID is not.
PORTAL_SETTINGS = {
    "USERNAME": "the account's e-mail address",
    "PASSWORD": "its password",
    "AUTH_CLIENT_ID": "the id that the portal's page sent at its login",
    "CONNECTED_DRIVE_BASE_URL": "the address of your country's portal",
    "AUTH_BASE_URL": "the address of its login",
    "AUTH_REDIRECT_URI": "where its login leads back to",
}
SETTING_NAMES = [*REQUIRED_SETTINGS, *OPTIONAL_SETTINGS, *PORTAL_SETTINGS]

CARDATA_URL = "https://api-cardata.bmwgroup.com/"
CARDATA_AUTH_URL = "https://customer.bmwgroup.com/gcdm/oauth/"
CARDATA_INTERVAL_MS = 2_400_000
PORTAL_URL = "https://www.bmw-connecteddrive.nl/api/"
PORTAL_LOGIN_URL = "https://customer.bmwgroup.com/gcdm/oauth/authenticate"
PORTAL_REDIRECT_URI = (
    "https://www.bmw-connecteddrive.com/app/default/static/external-dispatch.html"
)
PORTAL_INTERVAL_MS = 60_000
PORTAL_LEAST_INTERVAL_MS = 10_000


@dataclass(frozen=True)
class Settings:
    """What the owner has set. What CarData, or the portal, does not need is ""."""

    vin: str = ""
    interval_s: float = 0.0  # between two regular polls
    notify_at: float = 0.0  # percent; 0 for none
    ntfy_url: str = ""
    webhook_url: str = ""

    client_id: str = ""  # at CarData; without one, the portal is asked
    cardata_url: str = ""
    cardata_auth_url: str = ""

    username: str = ""
    password: str = ""
    auth_client_id: str = ""
    redirect_uri: str = ""
    portal_url: str = ""
    login_url: str = ""


def read_settings_file(path: Path) -> dict[str, str]:
    """The variables in a settings file; CannotStart where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        mode = path.stat().st_mode
    except OSError as error:
        raise CannotStart([f"{path} cannot be read: {error.strerror}"]) from None
    except UnicodeError:
        raise CannotStart([f"{path} cannot be read: it should be UTF-8 text"]) from None

    if path.is_file() and mode & 0o066:
        advice = f"mend it: chmod 600 '{path}'"
        logger.warning("other users can read or change the settings; %s", advice)

    return variables_in(text, path)


def variables_in(text: str, path: Path) -> dict[str, str]:
    """The variables in the text of a settings file; CannotStart where one is broken."""
    variables = {}
    broken = []
    for binding in parse_stream(io.StringIO(text)):
        if binding.key and binding.value is not None:
            variables[binding.key] = binding.value
        elif binding.key or binding.error:
            should = "should be NAME=value (is a quote missing?)"
            broken.append(f"{path}, line {line_of(binding)}: {should}")
    if broken:
        raise CannotStart(broken)
    return variables


def line_of(binding: Binding) -> int:
    """The line's number. dotenv gives that of the blank lines before it, if any."""
    text = binding.original.string
    before = text.partition(text.strip())[0]
    return binding.original.line + before.count("\n")


def setting_meant_by(name: str) -> str:
    """The setting that an unknown name almost is; "" where it is like none."""
    import difflib  # only here, for it is slow to import and seldom needed

    # At 0.85, DATABASE_URL would be taken for CARDATA_BASE_URL.
    meant = difflib.get_close_matches(name.upper(), SETTING_NAMES, n=1, cutoff=0.86)
    return meant[0] if meant else ""


def check_names(names: Iterable[str]) -> list[str]:
    """Warn of names that are none of ours; returns a problem for each that almost is."""
    problems = []
    for name in sorted(set(names) - set(SETTING_NAMES)):
        meant = setting_meant_by(name)
        if meant:
            problems.append(f"{name} is not a setting; did you mean {meant}?")
        else:
            logger.warning("%s is not a setting of i3charge", name)
    return problems


def load_settings(
    variables: Mapping[str, str],
    problems: list[str],
    advice: str,
    in_file: Collection[str] = (),
) -> Settings:
    """Make settings of variables; CannotStart with all that is wrong, in one go.

    `problems` were found before; the advice follows where a setting is missing. Of those
    that are `in_file`, a missing one is said to be empty there.
    """
    checked = CheckedVariables(variables, problems, in_file)
    settings = with_news(Settings(vin=checked.vin()), checked)
    if is_portal(variables):
        settings = with_portal(settings, checked)
    else:
        settings = with_cardata(settings, checked)

    if checked.is_incomplete:
        checked.problems.append(advice)
    if checked.problems:
        raise CannotStart(checked.problems)
    return settings


def is_portal(variables: Mapping[str, str]) -> bool:
    """Whether the settings are for the portal. USERNAME is no sign: desktops export it."""
    given = {name for name, value in variables.items() if value.strip()}
    if "CARDATA_CLIENT_ID" in given:
        return False
    return bool(given & {"PASSWORD", "AUTH_CLIENT_ID"})


def with_news(settings: Settings, checked: CheckedVariables) -> Settings:
    """What the demo needs, too."""
    return dataclasses.replace(
        settings,
        notify_at=checked.notify_at(),
        ntfy_url=checked.ntfy_url(),
        webhook_url=checked.url("WEBHOOK_URL", is_plain_allowed=True),
    )


def with_cardata(settings: Settings, checked: CheckedVariables) -> Settings:
    url = checked.url("CARDATA_BASE_URL", CARDATA_URL)
    least_ms = CARDATA_INTERVAL_MS
    why = "CarData allows 50 requests a day"
    return dataclasses.replace(
        settings,
        client_id=checked.client_id(),
        cardata_url=url,
        cardata_auth_url=checked.url("CARDATA_AUTH_BASE_URL", CARDATA_AUTH_URL),
        interval_s=checked.interval_s(url, CARDATA_INTERVAL_MS, least_ms, why),
    )


def with_portal(settings: Settings, checked: CheckedVariables) -> Settings:
    url = checked.url("CONNECTED_DRIVE_BASE_URL", PORTAL_URL)
    least_ms = PORTAL_LEAST_INTERVAL_MS
    why = "BMW blocks who asks faster"
    return dataclasses.replace(
        settings,
        username=checked.copied_text("USERNAME"),
        password=checked.text("PASSWORD"),
        auth_client_id=checked.copied_text("AUTH_CLIENT_ID"),
        redirect_uri=checked.copied_text("AUTH_REDIRECT_URI", PORTAL_REDIRECT_URI),
        portal_url=url,
        login_url=checked.url("AUTH_BASE_URL", PORTAL_LOGIN_URL),
        interval_s=checked.interval_s(url, PORTAL_INTERVAL_MS, least_ms, why),
    )


class CheckedVariables:
    """Hands out single variables, and collects what is wrong with them.

    No problem names a value, for it could be a mislaid password.
    """

    def __init__(
        self,
        variables: Mapping[str, str],
        problems: list[str],
        in_file: Collection[str] = (),
    ) -> None:
        self._variables = variables
        self._in_file = in_file
        self.problems = list(problems)
        self.is_incomplete = False

    def text(self, name: str, default: str = "") -> str:
        """Without a default, it is required."""
        value = self._variables.get(name) or default
        if not value.strip():
            where = " (it is empty in the file)" if name in self._in_file else ""
            self.problems.append(f"{name} is missing or empty{where}")
            self.is_incomplete = True
        return value

    def copied_text(self, name: str, default: str = "") -> str:
        """A text that is copied from somewhere, as a number or an id is."""
        return self._copied(name, self.text(name, default))

    def _copied(self, name: str, value: str) -> str:
        """Strip the blanks around a value. A stray character in it is a problem."""
        stray = stray_character(value.strip())
        if not stray:
            return value.strip()
        strayed = f"a stray character ({stray}), perhaps copied with it"
        self.problems.append(f"{name} holds {strayed}: type it anew")
        return ""

    def url(
        self, name: str, default: str = "", *, is_plain_allowed: bool = False
    ) -> str:
        """An address, or "". Secrets go to https only, or to this computer."""
        value = self._copied(name, self._variables.get(name) or default)
        if not value or is_web_address(value, is_plain_allowed or is_loopback(value)):
            return value
        begins = "http:// or https://" if is_plain_allowed else "https://"
        self.problems.append(f"{name} should be an address that begins with {begins}")
        return ""

    def ntfy_url(self) -> str:
        url = self.url("NTFY_URL", is_plain_allowed=True)
        if url and not urlsplit(url).path.strip("/"):
            should = "should end with a topic, such as 20 random letters"
            self.problems.append(f"NTFY_URL {should}")
        return url

    def vin(self) -> str:
        name = "VEHICLE_IDENTIFICATION_NUMBER"
        value = self.copied_text(name)
        if value and len(value) != 17:
            should = f"17 characters (this has {len(value)})"
            self.problems.append(f"{name} should be {should}")
        elif value and not re.fullmatch("[A-HJ-NPR-Za-hj-npr-z0-9]{17}", value):
            should = "17 letters and digits, none of them I, O or Q"
            self.problems.append(f"{name} should be {should}")
        return value.upper()

    def client_id(self) -> str:
        """In lower case where it is a UUID: BMW may show another, but refuses it."""
        name = "CARDATA_CLIENT_ID"
        value = self.copied_text(name)
        if value and not re.fullmatch("[A-Za-z0-9-]+", value):
            self.problems.append(f"{name} should be letters, digits and hyphens")
        uuid = "[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
        return value.lower() if re.fullmatch(uuid, value) else value

    def notify_at(self) -> float:
        value = self._variables.get("NOTIFY_AT", "").strip() or "0"
        if not re.fullmatch("[1-9][0-9]?%?|0", value):
            self.problems.append("NOTIFY_AT should be a whole number from 1 to 99")
            return 0.0
        return float(value.rstrip("%"))

    def interval_s(self, url: str, default_ms: int, least_ms: int, why: str) -> float:
        """LOG_INTERVAL in seconds; raised to the least, but not for a simulated BMW."""
        value = self._variables.get("LOG_INTERVAL", "").strip() or str(default_ms)
        if not re.fullmatch("0*[1-9][0-9]{0,7}", value):
            should = "a whole number of milliseconds, such as 2400000 for 40 minutes"
            self.problems.append(f"LOG_INTERVAL should be {should}")
            return 0.0
        value_ms = int(value)
        if value_ms < least_ms and not is_loopback(url):
            raised = f"{least_ms} milliseconds ({duration(least_ms / 1000)})"
            logger.warning("LOG_INTERVAL is raised to %s: %s", raised, why)
            value_ms = least_ms
        return value_ms / 1000


def stray_character(value: str) -> str:
    """The name of a character that one does not type, such as an invisible one."""
    for char in value:
        if char.isprintable() and (char.isascii() or char.isalnum()):
            continue
        import unicodedata  # only here, for it is seldom needed

        return unicodedata.name(char, "control character").lower()
    return ""


def is_web_address(url: str, is_plain_allowed: bool) -> bool:
    schemes = ("http", "https") if is_plain_allowed else ("https",)
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket too few, or a port that is no number
        return False
    return parts.scheme in schemes and has_host


def is_loopback(url: str) -> bool:
    try:
        return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    except ValueError:
        return False


# --- A reading, and a piece of news ---------------------------------------------------
Status = Literal[
    "charging", "full", "waiting", "error", "plugged in", "not charging", "unplugged",
    "unknown"
]  # fmt: skip
ACTIVE: tuple[Status, ...] = ("charging", "waiting")  # it charges, or waits to do so
Source = Literal["the car", "BMW", "interpolated"]


@dataclass(frozen=True)
class Reading:
    """What the car has said, in the owner's words.

    What it has not said is None or "", and a moment that is not known is 0.
    """

    charge: float  # percent, 0 to 100, as the car's own display shows it
    taken_s: float = 0.0  # when BMW has answered
    status: Status = "unknown"
    status_s: float = 0.0  # when the car said what makes it so
    source: Source = "the car"  # of the charge
    plugged: bool | None = None
    plugged_s: float = 0.0  # when the plug went in or out
    range: float | None = None  # in range_unit
    range_unit: str = ""  # "km" or "mi"
    full_at_s: float = 0.0  # as the car expects, and only while charging
    last_word_s: float = 0.0  # when the car last said anything of this
    car_said: float | None = None  # percent, the car's own last word on its charge
    car_said_s: float = 0.0
    end_said_s: float = 0.0  # when the car said that a charge has ended
    end_reason: str = ""  # of the last charge, if the car says one that we know
    end_reason_s: float = 0.0

    @property
    def predicted(self) -> bool:
        """Whether the charge is computed, by BMW or by us."""
        return self.source != "the car"

    @property
    def percent(self) -> str:
        """Rounded down, for 99.6 % is not full; with a "~" where it is predicted."""
        return f"{'~' if self.predicted else ''}{int(self.charge)}%"

    @property
    def reported_s(self) -> float:
        """When the car said the charge, or, of a predicted one, when it last spoke."""
        if self.predicted:
            return self.last_word_s
        return self.car_said_s or self.last_word_s

    @property
    def spoken_s(self) -> float:
        """When the car last spoke of its charge, its status or its plug.

        Minutes are left out, which BMW can stamp anew at each answer.
        """
        return max(self.car_said_s, self.status_s, self.plugged_s)

    @property
    def is_active(self) -> bool:
        """Whether it charges, or waits to do so."""
        return self.status in ACTIVE

    @property
    def minutes_to_full(self) -> float | None:
        """None where that has passed, too: BMW repeats what the car once expected."""
        if self.full_at_s < self.taken_s - A_MINUTE_S:
            return None
        return max(0.0, round((self.full_at_s - self.taken_s) / A_MINUTE_S, 1))

    @property
    def full_clock(self) -> str:
        """The time of day when it should be full; "" where that is not known."""
        return "" if self.minutes_to_full is None else clock_at(self.full_at_s)


Kind = Literal[
    "started", "step", "reached", "soon", "overdue", "full", "stopped", "paused", "still",
    "sign-in", "error"
]  # fmt: skip


@dataclass(frozen=True)
class News:
    """What is worth telling."""

    kind: Kind
    message: str
    click: str = ""  # an address that a tap opens
    good_until_s: float = 0.0  # 0 for a day


def clock_at(at_s: float) -> str:
    """The local time of day."""
    return f"{datetime.fromtimestamp(at_s):%H:%M}"


def duration(seconds: float) -> str:
    """As one says it: "90 s", "25 min", "2 h 20 min", "4 days"."""
    minutes = round(seconds / 60)
    if seconds < 119.5:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 10 * 60:
        hours, rest = divmod(minutes, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    if minutes < 48 * 60:
        return f"{round(minutes / 60)} h"
    return f"{round(minutes / 1440)} days"


# --- What a server sends, which can be anything ---------------------------------------
def text_or_empty(value: object) -> str:
    return value if isinstance(value, str) else ""


def dict_or_empty(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def number(value: object, most: float) -> float | None:
    """A number from 0 to `most`; None if it is no such number."""
    text = str(value).strip() if isinstance(value, (str, int, float)) else ""
    if re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,20})?", text) and float(text) <= most:
        return float(text)
    return None


def moment_s(value: object) -> float:
    """The time.time() of an ISO 8601 stamp; 0 where it is none, or of before 1970.

    A stamp without an offset is in UTC.
    """
    text = text_or_empty(value).replace("Z", "+00:00")
    # Python 3.9 and 3.10 take a fraction of a second with 3 or 6 digits only.
    text = re.sub(r"\.([0-9]+)", six_digits, text)
    with suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return max(0.0, moment.timestamp())
    return 0.0


def six_digits(fraction: re.Match[str]) -> str:
    return f".{fraction[1][:6]:0<6}"


def is_token(value: object) -> bool:
    """Whether it can stand in a header, or in a line of the terminal."""
    return bool(re.fullmatch(r"[\x21-\x7e]+", text_or_empty(value)))


def printable(value: object, hidden: Iterable[str]) -> str:
    """What a server sent, as short and harmless text on one line, without secrets."""
    text = text_or_empty(value)
    for secret in sorted(filter(None, hidden), key=len, reverse=True):
        text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
    text = " ".join(text.split())
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text[:200] or "no reason given"


# --- Memory: what outlasts the program ------------------------------------------------
@dataclass
class SignIn:
    """What BMW has given for the client id. A refresh token tells that it has worked."""

    access_token: str = ""
    expires_s: float = 0.0  # when the access token does
    refresh_token: str = ""  # good for two weeks, and for one use
    refusals: int = 0  # of the refresh token, in a row


@dataclass
class Container:
    """The set of descriptors at CarData through which the car is read."""

    id: str = ""
    purpose: str = ""  # names its descriptors
    next_search_s: float = 0.0  # before which none is sought


@dataclass
class ChargingSession:
    """What is remembered of the charge that goes on, or else of the last one.

    The section on the charging session says when it begins, ends, and is another one.
    """

    began_s: float = 0.0  # 0 where it has not
    began_percent: str = ""  # as it was shown; "" where it is not known
    expected_s: float = 0.0  # when the car last expected to be full
    ended_s: float = 0.0  # when it was full or had stopped; 0 while it goes on
    highest: float = 0.0  # percent
    lowest_since_news: float = 100.0  # percent; a step is 5 % above it
    told: list[str] = field(default_factory=list)  # what is told once a session

    @property
    def is_on(self) -> bool:
        """Whether the car charges, or pauses."""
        return self.began_s > 0 and not self.ended_s

    @property
    def is_full_told(self) -> bool:
        """Whether it was told that the car is full: a charge after that is a top-up."""
        return "full" in self.told


@dataclass
class Message:
    """A piece of news that one address has yet to take."""

    address: str  # the name of the setting that holds it
    news: News
    made_s: float = 0.0
    charge: float | None = None  # when it was made, as the two below
    predicted: bool | None = None
    status: Status | None = None
    next_try_s: float = 0.0  # when it is due
    unanswered: int = 0  # times that it was sent, and may have been taken

    @property
    def good_until_s(self) -> float:
        return self.news.good_until_s or self.made_s + A_DAY_S

    @property
    def summary(self) -> str:
        """On one line, for the log."""
        return " ".join(self.news.message.split())


@dataclass
class Memory:
    """All that outlasts the program. One process reads it once, and owns it."""

    client_id: str = ""  # that the sign-in and the container belong to
    vin: str = ""  # that the reading and the session belong to
    sign_in: SignIn = field(default_factory=SignIn)
    container: Container = field(default_factory=Container)
    requests_s: list[float] = field(default_factory=list)  # when each was sent
    last: Reading | None = None
    session: ChargingSession = field(default_factory=ChargingSession)
    told_s: dict[str, float] = field(default_factory=dict)  # when, of which trouble
    outbox: list[Message] = field(default_factory=list)

    path: Path | None = None  # without one, nothing is kept
    is_kept: bool = True  # the last save has worked

    def save(self) -> bool:
        """Write all of it to the disk; returns whether that has worked."""
        if not self.path:
            return True

        kept = dataclasses.asdict(self)
        del kept["path"], kept["is_kept"]
        try:
            write_aside_and_rename(self.path, json.dumps(kept).encode())
        except OSError as error:
            if self.is_kept:
                why = f"{self.path} cannot be written ({error.strerror})"
                logger.error("%s; after a restart, what it should hold is lost", why)
            self.is_kept = False
        else:
            self.is_kept = True
        return self.is_kept


def write_aside_and_rename(path: Path, data: bytes) -> None:
    """Replace a file as a whole. Nobody but its owner can ever read it."""
    aside = path.with_name(path.name + ".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with open(os.open(aside, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def memory_path(settings_path: Path) -> Path:
    """Each settings file has a memory of its own, beside it."""
    name = settings_path.name
    middle = "" if name == ".env" else f"-{name}"
    return settings_path.with_name(f".i3charge{middle}.json")


def load_memory(path: Path, client_id: str, vin: str) -> Memory:
    """Read what an earlier start has saved for this client id and this car."""
    memory = Memory()
    try:
        memory = memory_in(json.loads(path.read_bytes()))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CannotStart([f"{path} cannot be read: {error.strerror}"]) from None
    except (ValueError, RecursionError):
        put_aside(path)
    memory.path = path

    # BMW counts requests by account, so their times outlast a new client id. The portal
    # has none, and an owner who tries it keeps the sign-in at CarData.
    if client_id and memory.client_id != client_id:
        memory.client_id = client_id
        memory.sign_in = SignIn()
        memory.container = Container()
    if memory.vin != vin:
        memory.vin = vin
        memory.last = None
        memory.session = ChargingSession()
    return memory


def put_aside(path: Path) -> None:
    """Keep a file that is not in our form, for it may hold a good sign-in."""
    damaged = path.with_name(path.name + ".damaged")
    try:
        os.replace(path, damaged)
    except OSError as error:
        lines = [f"{path} is damaged, and cannot be renamed: {error.strerror}"]
        raise CannotStart(lines) from None
    begun = "a new one is begun, without the sign-in"
    logger.error("%s is damaged; it is now %s, and %s", path, damaged.name, begun)


def memory_in(kept: object) -> Memory:
    """The memory that a file holds, as far as it fits; ValueError if it is no object.

    Another version can have kept it, and what does not fit must not cost the owner the
    sign-in. A reading without its charge is dropped, and a message that cannot be told.
    """
    if not isinstance(kept, dict):
        raise ValueError("it is no JSON object")

    last = dict_or_empty(kept.get("last"))
    has_charge = is_number(last.get("charge"))
    return record_in(
        kept,
        Memory,
        sign_in=record_in(kept.get("sign_in"), SignIn),
        container=record_in(kept.get("container"), Container),
        last=record_in(last, Reading) if has_charge else None,
        session=record_in(kept.get("session"), ChargingSession),
        outbox=list(messages_in(kept.get("outbox"))),
    )


def messages_in(kept: object) -> Iterator[Message]:
    """The messages of an outbox that can be told."""
    for message in kept if isinstance(kept, list) else []:
        news = dict_or_empty(dict_or_empty(message).get("news"))
        is_known = news.get("kind") in get_args(Kind)
        has_words = is_text(news.get("message")) and is_text(message.get("address"))
        if is_known and has_words:
            yield record_in(message, Message, news=record_in(news, News))


Record = TypeVar("Record", bound="DataclassInstance")


def record_in(kept: object, kind: type[Record], **parts: object) -> Record:
    """Make a record of what was kept of it; what does not fit gets its default.

    `parts` are the fields that are records themselves.
    """
    values = dict_or_empty(kept)
    fitting = {}
    for each in dataclasses.fields(kind):
        fits = FITS.get(str(each.type))
        if fits and each.name in values and fits(values[each.name]):
            fitting[each.name] = values[each.name]
    return kind(**fitting, **parts)


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_number(value: object) -> bool:
    """Whether it can be an amount or a moment. JSON has NaN, too."""
    is_one = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_one and 0 <= value < 1e11  # type: ignore[operator]


# Whether a kept value can stand in a field, by the field's annotation. A field whose
# annotation is missing here always has its default.
FITS: dict[str, Callable[[object], bool]] = {
    "str": is_text,
    "int": lambda value: isinstance(value, int) and is_number(value),
    "float": is_number,
    "float | None": lambda value: value is None or is_number(value),
    "bool | None": lambda value: value is None or isinstance(value, bool),
    "list[str]": lambda value: isinstance(value, list) and all(map(is_text, value)),
    "list[float]": lambda value: isinstance(value, list) and all(map(is_number, value)),
    "dict[str, float]": lambda value: (
        isinstance(value, dict) and all(map(is_number, value.values()))
    ),
    "Kind": lambda value: value in get_args(Kind),
    "Status | None": lambda value: value is None or value in get_args(Status),
    "Status": lambda value: value in get_args(Status),
    "Source": lambda value: value in get_args(Source),
}


def lock_memory(path: Path) -> IO[str] | None:
    """Keep a second process from this memory, as long as what is returned stays open.

    Without a lock (not every file system has them) the program goes on all the same.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        file = open(os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600), "r+")
    except OSError:
        return None

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            process = file.read(20).strip()
        line = f"i3charge is already running (process {process})"
        raise CannotStart([line], exit_status=1) from None
    except OSError:
        file.close()
        return None

    with suppress(OSError):  # a full disk; the lock holds without a number
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
    return file


# --- One request, one answer or one error ---------------------------------------------
class NoReading(Exception):
    """There is no reading this time; the loop goes on. Its text is for the log."""

    def __init__(
        self, why: str, *, wait_s: float | None = None, news: News | None = None
    ) -> None:
        super().__init__(why)
        # Seconds to the next try; with None, the loop waits longer after each failure.
        self.wait_s = wait_s
        self.news = news  # for the owner, who has perhaps heard of it before


class Refusal(NoReading):
    """CarData has answered, but not with what it was asked for."""

    def __init__(
        self, why: str, status: int, code: str, wait_s: float | None = None
    ) -> None:
        super().__init__(why, wait_s=wait_s)
        self.status = status  # that of HTTP
        self.code = code  # CarData's own, or "HTTP 404"


class WaitingForOwner(NoReading):
    """BMW wants the owner to confirm a code, which the log shows as no error."""


class SignInRefused(Exception):
    """Only the owner can mend it, and asking again could lock the account: the end."""


class NoAnswer(Exception):
    """A request has not left this computer, or nothing has come back."""

    def __init__(self, why: str, *, was_sent: bool) -> None:
        super().__init__(why)
        self.was_sent = was_sent  # the other side may have read it


@dataclass(frozen=True)
class HttpAnswer:
    what: str  # was asked for, in the owner's words
    host: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The JSON object in the body; an empty one where there is none."""
        # ValueError: no JSON, no UTF-8, an endless number. RecursionError: too deep.
        with suppress(ValueError, RecursionError):
            return dict_or_empty(json.loads(self.body))
        return {}

    def failure(self) -> str:
        """A sentence for an answer that is of no use."""
        how = "is out of order" if self.status >= 500 else "gave no useful answer"
        return f"{self.host} {how} when asked for {self.what} (HTTP {self.status})"


BODY_LIMIT_BYTES = 1 << 20  # a car's answer has some 4,000
EACH_REQUESTS_HEADERS = {
    "User-Agent": f"i3charge/{__version__}",
    # Compressed, a small body could become a huge one in memory.
    "Accept-Encoding": "identity",
}


def no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """As an auth object, it lets requests leave `~/.netrc` alone."""
    return request


def send(
    what: str,  # is asked for, in the owner's words
    method: str,
    url: str,
    *,
    auth: Callable[..., Any] | None = no_netrc,  # None: a password may stand in the url
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
    json: Mapping[str, Any] | None = None,
    body: bytes | None = None,
    timeout_s: tuple[float, float] = (10.0, 30.0),  # to connect, and between two reads
) -> HttpAnswer:
    """Send a request over a connection of its own. NoAnswer where none comes back."""
    host = urlsplit(url).hostname or ""
    try:
        with requests.request(
            method,
            url,
            auth=auth,
            headers={**EACH_REQUESTS_HEADERS, **(headers or {})},
            params=query,
            data=form or body,
            json=json,
            timeout=timeout_s,
            # No proxy leads back to this computer.
            proxies={"no_proxy": "*"} if is_loopback(url) else None,
            allow_redirects=False,
            stream=True,
        ) as response:
            answer_body = read_body(response)
    except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
        # The text of these errors holds the address. A malformed Location is a
        # ValueError, although redirects are not followed.
        why = f"no answer from {host} when asked for {what}"
        unsent = why_unsent(error)
        if unsent:
            why = f"{why}: this computer could not send it, for {unsent}"
        else:
            why = f"{why} ({type(error).__name__})"
        raise NoAnswer(why, was_sent=not unsent and was_connected(error)) from None

    status = response.status_code
    logger.debug("asked %s for %s: HTTP %d", host, what, status)
    return HttpAnswer(what, host, status, response.headers, answer_body)


def read_body(response: requests.Response) -> bytes:
    """The body, up to a limit; nothing where it breaks off, for its status counts."""
    body: bytes = b""
    with suppress(OSError, urllib3.exceptions.HTTPError):
        body = response.raw.read(BODY_LIMIT_BYTES)
    return body


def why_unsent(error: Exception) -> str:
    """What of this computer has kept a request back; "" where it was not that."""
    is_of_requests = isinstance(error, requests.exceptions.RequestException)
    if isinstance(error, requests.exceptions.ProxyError):
        return "its proxy does not let it through"
    if isinstance(error, requests.exceptions.SSLError):
        # A hotel's network answers so before one has signed in there, and certificates
        # are not good yet on a computer whose clock has not been set.
        place = "look at the network, the clock and REQUESTS_CA_BUNDLE"
        return f"no secure connection was possible: {place}"
    if isinstance(error, OSError) and not is_of_requests:
        place = "look at REQUESTS_CA_BUNDLE, or set up .venv anew"
        return f"its file of certificates is missing: {place}"
    is_of_urllib3 = isinstance(error, urllib3.exceptions.LocationValueError)
    if is_of_urllib3 or (is_of_requests and isinstance(error, ValueError)):
        # A proxy with SOCKS needs a package that is not installed.
        place = "look at ALL_PROXY and HTTPS_PROXY"
        return f"the address or a proxy's cannot be used: {place}"
    return ""


def was_connected(error: Exception) -> bool:
    """Whether the other side may have read the request.

    It has not where no connection was made: refused, no route, no name, out of time.
    """
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return False
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return not isinstance(reason, urllib3.exceptions.NewConnectionError)


def log_values(values: Mapping[str, object], vin: str) -> None:
    """Show what a reading is made of, for --verbose; but not where the car stands."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    shown = re.compile("[Cc]harg|Range|[Cc]onnector|[Uu]pdateTime|header")
    for name in filter(shown.search, values):
        logger.debug("  %s", printable(f"{name}: {json.dumps(values[name])}", [vin]))


# --- CarData: the sign-in -------------------------------------------------------------
SUBSCRIBE = "subscribe the client id to the CarData API"
SUBSCRIBE_IN_PORTAL = f"{SUBSCRIBE} in the My BMW portal"
NOT_CONFIRMED = "nobody has confirmed the code; a new start gives another at once"
CODE_REFUSED = "a code was refused"  # as a trouble that is told

# Of OAuth, as RFC 8628 has them
PENDING = "authorization_pending"
SLOW_DOWN = "slow_down"
EXPIRED = "expired_token"
DECLINED = "access_denied"
OAUTH_REFUSALS = (400, 401, 403)  # as the status of an answer
# A fault of BMW's, after the owner has confirmed: the code is used up.
CODE_USED_UP = b"keymanagement.service.invalid_access_token"


@dataclass
class DeviceCode:
    """A code that the owner is to confirm (RFC 8628)."""

    device_code: str
    user_code: str
    address: str  # to open
    verifier: str  # RFC 7636
    interval_s: float  # between two questions whether it is confirmed
    expires_s: float


class CarDataSignIn:
    """Signs in at CarData, with OAuth 2.0: by a device code, then by refresh tokens."""

    SCOPE = "authenticate_user openid cardata:api:read"
    DEVICE_CODE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"

    TIMEOUT_S = (5.0, 10.0)  # short ones, for a Ctrl-C is held back meanwhile
    RENEW_BEFORE_S = 60.0

    def __init__(
        self, settings: Settings, memory: Memory, *, may_ask_owner: bool
    ) -> None:
        self._url = settings.cardata_auth_url.rstrip("/")
        self._client_id = settings.client_id
        self._memory = memory
        self._kept = memory.sign_in
        self._may_ask_owner = may_ask_owner  # to confirm a code
        self._code: DeviceCode | None = None  # that the owner was shown

    def access_token(self) -> str:
        """Get a good one. NoReading while there is none, SignInRefused if never."""
        if time.time() < self._kept.expires_s - self.RENEW_BEFORE_S:
            return self._kept.access_token
        if self._code:
            self._redeem(self._code)
        else:
            self._renew_or_ask()
        return self._kept.access_token

    def expire_access_token(self) -> None:
        """BMW has refused it before its time."""
        self._kept.expires_s = 0.0

    def forget_tokens(self) -> None:
        """They are good, but not for CarData, and renewing them would not change it."""
        self._kept.access_token = ""
        self._kept.refresh_token = ""
        self._kept.expires_s = 0.0

    def secret_words(self) -> list[str]:
        return [self._client_id, self._kept.access_token, self._kept.refresh_token]

    # The tokens

    def _renew_or_ask(self) -> None:
        # Before each new code the old token is tried, for BMW has refused good ones
        # while it was out of order.
        if self._kept.refresh_token and self._renew():
            return
        if not self._may_ask_owner:
            why = "CarData needs a sign-in: run i3charge.py by hand, without --once"
            raise NoReading(why, news=News("sign-in", why))
        self._ask_owner()

    def _renew(self) -> bool:
        """Get a new access token; returns False where BMW has refused that twice.

        The refresh token is spent at once, so it is not sent where the next cannot be
        kept.
        """
        if not self._memory.save():
            why = "the sign-in is not renewed, for the disk could not keep the new one"
            message = f"No readings until the disk works again: {why}"
            raise NoReading(why, news=News("error", message))

        token = self._kept.refresh_token
        form = {"grant_type": "refresh_token", "refresh_token": token}
        with signals_held_back():
            answer = self._post("a token", "token", form)
            if has_tokens(answer):
                self._keep_tokens(answer)
                return True
        if not oauth_error(answer):
            raise NoReading(answer.failure())

        self._kept.refusals += 1
        self._memory.save()
        if self._kept.refusals == 1:
            raise NoReading("BMW does not renew the sign-in; it is asked once more")
        return False

    def _keep_tokens(self, answer: HttpAnswer) -> None:
        """Save new tokens before they are used, for the old refresh token is dead."""
        said = answer.json()
        kept = self._kept
        kept.access_token = str(said["access_token"])
        if is_token(said.get("refresh_token")):
            kept.refresh_token = str(said["refresh_token"])
        lifetime_s = number(said.get("expires_in"), most=1e6) or 3599.0
        kept.expires_s = time.time() + lifetime_s
        kept.refusals = 0
        self._code = None
        for trouble in ("sign-in", CODE_REFUSED):
            self._memory.told_s.pop(trouble, None)
        self._memory.save()

    # The code that the owner is to confirm

    def _ask_owner(self) -> NoReturn:
        """Raises WaitingForOwner, with a new code for the owner."""
        code = self._new_code()
        self._code = code
        lines = [
            "Sign in at BMW: open",
            code.address,
            "and confirm the code",
            code.user_code,
            f"It is good until {clock_at(code.expires_s)}.",
        ]
        message = "\n".join(lines)
        news = News("sign-in", message, code.address, good_until_s=code.expires_s)
        raise WaitingForOwner(message, wait_s=code.interval_s, news=news)

    def _new_code(self) -> DeviceCode:
        verifier, challenge = verifier_and_challenge()
        form = {
            "response_type": "device_code",
            "scope": self.SCOPE,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        answer = self._post("a sign-in", "device/code", form)
        if answer.status == 403:
            why = f"BMW does not let this client id in yet: {SUBSCRIBE_IN_PORTAL}"
            raise NoReading(why)
        error = oauth_error(answer)
        if error:
            self._raise_client_id_is_refused(error)

        code = device_code_in(answer.json(), verifier)
        if not code:
            raise NoReading(answer.failure())
        return code

    def _raise_client_id_is_refused(self, error: str) -> NoReturn:
        """What has worked once is worth trying again, but the owner should know.

        BMW has refused good client ids while it was out of order, and deleted some.
        """
        said = printable(error, self.secret_words())
        refused = f"BMW refuses the sign-in ({said})"
        if not self._kept.refresh_token:
            advice = f"check CARDATA_CLIENT_ID, {SUBSCRIBE}, and start again"
            raise SignInRefused(f"{refused}: {advice}")
        why = "it is out of order, or has deleted the client id"
        refused += ", which has worked before"
        message = f"{refused}: {why}; after a day, make a new one in the portal"
        raise NoReading(message, news=News("error", message))

    def _redeem(self, code: DeviceCode) -> None:
        """Ask whether the owner has confirmed. Returns when BMW has given tokens.

        That is asked once more after the code's end, for the computer can have slept.
        """
        form = {
            "grant_type": self.DEVICE_CODE_GRANT,
            "device_code": code.device_code,
            "code_verifier": code.verifier,
        }
        try:
            with signals_held_back():
                answer = self._post("the tokens", "token", form)
                if has_tokens(answer):
                    self._keep_tokens(answer)
                    logger.info("signed in at BMW")
                    return
        except NoAnswer as problem:
            self._raise_code_waits(code, str(problem))
        self._go_on_waiting(code, answer)

    def _go_on_waiting(self, code: DeviceCode, answer: HttpAnswer) -> NoReturn:
        """Raises what says why there are no tokens for a code yet, and how to go on."""
        if CODE_USED_UP in answer.body:
            self._raise_code_is_refused("BMW has failed over this code")
        if answer.status not in OAUTH_REFUSALS:
            self._raise_code_waits(code, answer.failure())

        # BMW has left the error out, too, while the owner had not confirmed.
        error = oauth_error(answer) or PENDING
        if error == SLOW_DOWN:
            code.interval_s += 5  # RFC 8628, 3.5
        is_pending = error in (PENDING, SLOW_DOWN)
        if is_pending and time.time() < code.expires_s:
            raise WaitingForOwner("", wait_s=code.interval_s)
        if is_pending or error == EXPIRED:
            self._raise_code_is_over(NOT_CONFIRMED)
        if error == DECLINED:
            why = "the sign-in was declined, or BMW has failed over this code"
            self._raise_code_is_refused(why)
        said = printable(error, self.secret_words())
        self._raise_code_is_refused(f"BMW has failed over this code ({said})")

    def _raise_code_waits(self, code: DeviceCode, why: str) -> NoReturn:
        """The code may still be good, but not for long, so pauses do not grow yet."""
        is_good = time.time() < code.expires_s
        raise NoReading(why, wait_s=A_MINUTE_S if is_good else None)

    def _raise_code_is_refused(self, why: str) -> NoReturn:
        """The next code can work, and the owner, who believes it is done, is to know.

        So that code is told at once although one was. Those after it are told once an
        hour at the most (`Loop.told_again_after_s`), for BMW can refuse all of a night's.
        """
        told_s = self._memory.told_s
        if CODE_REFUSED not in told_s:
            told_s.pop("sign-in", None)
        told_s[CODE_REFUSED] = time.time()
        advice = "confirm the next one in a private window without an ad blocker"
        self._raise_code_is_over(f"{why}: {advice}")

    def _raise_code_is_over(self, why: str) -> NoReturn:
        """Another follows, but after a pause, for nobody may be there to confirm it."""
        self._code = None
        raise WaitingForOwner(why)

    # One request

    def _post(self, what: str, path: str, form: dict[str, str]) -> HttpAnswer:
        url = f"{self._url}/{path}"
        form = {"client_id": self._client_id, **form}
        return send(what, "POST", url, form=form, timeout_s=self.TIMEOUT_S)


def verifier_and_challenge() -> tuple[str, str]:
    """Make a secret, and the hash of it that is sent first (RFC 7636)."""
    verifier = secrets.token_urlsafe(64)
    digest = hashlib.sha256(verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return verifier, challenge


def device_code_in(said: Mapping[str, Any], verifier: str) -> DeviceCode | None:
    """Read BMW's answer; None where a part is missing, or could not be shown."""
    device_code = text_or_empty(said.get("device_code"))
    user_code = text_or_empty(said.get("user_code"))
    address = said.get("verification_uri_complete") or said.get("verification_uri")
    address = text_or_empty(address)
    if not all(map(is_token, (device_code, user_code, address))):
        return None

    lifetime_s = number(said.get("expires_in"), most=A_DAY_S) or 300.0
    return DeviceCode(
        device_code,
        user_code,
        address,
        verifier,
        interval_s=number(said.get("interval"), most=300) or 5.0,  # RFC 8628, 3.2
        expires_s=time.time() + lifetime_s,
    )


def has_tokens(answer: HttpAnswer) -> bool:
    return answer.status == 200 and is_token(answer.json().get("access_token"))


def oauth_error(answer: HttpAnswer) -> str:
    """The word of OAuth itself; "" where it is BMW's gateway that has refused."""
    if answer.status not in OAUTH_REFUSALS:
        return ""
    return text_or_empty(answer.json().get("error"))


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Let what ends the program wait: a Ctrl-C, a closed terminal, a shutdown.

    Between the request for new tokens and their place on the disk, it would cost the
    owner the sign-in.
    """
    held_back = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- CarData: the API -----------------------------------------------------------------
# What CarData can say of the car, by its "descriptors".
ENGINE = "vehicle.drivetrain.electricEngine."
CHARGE_HEADER = "vehicle.drivetrain.batteryManagement.header"
CHARGE_DISPLAYED = "vehicle.powertrain.electric.battery.stateOfCharge.displayed"
CHARGE_PREDICTED = ENGINE + "charging.level"
STATUS = ENGINE + "charging.status"
HV_STATUS = ENGINE + "charging.hvStatus"
TO_FULL = ENGINE + "charging.timeToFullyCharged"
REMAINING = ENGINE + "charging.timeRemaining"
FINISH_REASON = ENGINE + "charging.hvpmFinishReason"
RANGE = ENGINE + "kombiRemainingElectricRange"
PORT = "vehicle.body.chargingPort.status"
PORT_COMBINED = "vehicle.body.chargingPort.combinedStatus"

# BMW refuses a whole container for one descriptor that it does not accept. Those of the small
# one are what the car itself sends.
OF_THE_CAR = (CHARGE_HEADER, STATUS, TO_FULL, REMAINING, RANGE, PORT)
OF_BMW_AND_NEW = (
    CHARGE_DISPLAYED,
    CHARGE_PREDICTED,
    HV_STATUS,
    FINISH_REASON,
    PORT_COMBINED,
)

# A container's purpose tells its descriptors, which cannot be changed later: raise the
# number with every change of them.
FULL_SET = "descriptors 3"
SMALL_SET = "descriptors 3, the car's own"
DESCRIPTORS = {FULL_SET: (*OF_THE_CAR, *OF_BMW_AND_NEW), SMALL_SET: OF_THE_CAR}

# CarData's error codes that change what is done next.
TOKEN_REFUSED = ("CU-100", "CU-101", "CU-102")
NO_DATA_FOUND = "CU-127"  # BMW has sent it for an expired token, too
WRONG_SCOPE = "CU-103"  # of the sign-in, which is not for CarData
CAR_REFUSED = ("CU-104", "CU-120")  # not the owner's, or no such VIN
CONTAINER_LOST = ("CU-105", "CU-121", "CU-122")  # unknown, malformed, to be deleted
MAYBE_LOST = ("HTTP 400", "HTTP 404")  # so said BMW's gateway of a lost container
TOO_MANY_CONTAINERS = "CU-124"
DESCRIPTOR_REFUSED = "CU-402"
# "Invalid resource": owners met it without a subscription, or as no primary user.
NOT_SUBSCRIBED = "CU-403"
QUOTA_USED_UP = "CU-429"

# Two of the 50 that BMW allows are left to the owner's own use of its web portal.
REQUESTS_A_DAY = 48
LEAST_REQUESTS_A_DAY = 10


class CarDataApi:
    """Sends one request to CarData, with a good token, and within what BMW allows."""

    def __init__(
        self, settings: Settings, memory: Memory, sign_in: CarDataSignIn
    ) -> None:
        self._url = settings.cardata_url.rstrip("/") + "/customers"
        self._vin = settings.vin
        self._most_requests = requests_a_day(settings.interval_s)
        self._memory = memory
        self._sign_in = sign_in

    def ask(self, what: str, method: str, path: str, **parts: Any) -> dict[str, Any]:
        """Returns the JSON object of the answer. Refusal, or another NoReading."""
        answer = self._send(what, method, path, **parts)
        if is_token_refused(answer):
            self._sign_in.expire_access_token()
            answer = self._send(what, method, path, **parts)
        if 200 <= answer.status < 300:
            return answer.json()
        self._raise_refusal(answer)

    def _send(self, what: str, method: str, path: str, **parts: Any) -> HttpAnswer:
        headers = {
            "Authorization": f"Bearer {self._sign_in.access_token()}",
            "x-version": "v1",
            "Accept": "application/json",
        }
        self._count_request()
        try:
            return send(what, method, f"{self._url}/{path}", headers=headers, **parts)
        except NoAnswer as problem:
            if not problem.was_sent:
                self._memory.requests_s.pop()  # the loop saves that
            raise

    def _count_request(self) -> None:
        """Note a request before it is sent. NoReading where the day's are spent."""
        now_s = time.time()
        spent_s = requests_of_a_day(self._memory.requests_s, now_s)
        wait_s = quota_wait_s(spent_s, now_s, self._most_requests)
        if wait_s > 0:
            raise NoReading("CarData's requests for 24 hours are spent", wait_s=wait_s)
        self._memory.requests_s = [*spent_s, now_s]
        self._memory.save()

    def _raise_refusal(self, answer: HttpAnswer) -> NoReturn:
        """Say what an answer that is no success means to the owner."""
        code = error_code(answer)
        if code == WRONG_SCOPE:
            self._sign_in.forget_tokens()
            why = f"this sign-in is not for CarData: {SUBSCRIBE_IN_PORTAL}"
            raise NoReading(why)
        if code == QUOTA_USED_UP or answer.status == 429:
            why = "BMW says that CarData's 50 requests a day are used up"
            # They come back at 00:00 UTC, or one by one after 24 hours.
            to_midnight_s = A_DAY_S - time.time() % A_DAY_S
            wait_s = min(AN_HOUR_S, to_midnight_s + A_MINUTE_S)
            raise Refusal(why, answer.status, code, wait_s=wait_s)
        if not code.startswith("CU-"):
            raise Refusal(answer.failure(), answer.status, code)

        hidden = [self._vin, self._memory.container.id, *self._sign_in.secret_words()]
        said = printable(answer.json().get("exveErrorMsg"), hidden)
        why = f"CarData says: {said} ({printable(code, hidden)}){advice_on(code)}"
        raise Refusal(why, answer.status, code)


def error_code(answer: HttpAnswer) -> str:
    """CarData's own code, or that of HTTP: "CU-105", "HTTP 503"."""
    return text_or_empty(answer.json().get("exveErrorId")) or f"HTTP {answer.status}"


def advice_on(code: str) -> str:
    """What the owner can do about a refusal of CarData's."""
    if code in CAR_REFUSED:
        return "; check VEHICLE_IDENTIFICATION_NUMBER"
    if code == TOO_MANY_CONTAINERS:
        others = "CarData allows ten containers, and other programs have made them"
        return f": {others}: delete one with the program that made it"
    if code == DESCRIPTOR_REFUSED:
        return ": get a newer i3charge.py"
    if code == NOT_SUBSCRIBED:
        return f": {SUBSCRIBE}, and check that you are the car's primary user"
    return ""


def is_token_refused(answer: HttpAnswer) -> bool:
    if answer.status == 401 or error_code(answer) in (*TOKEN_REFUSED, NO_DATA_FOUND):
        return True
    return answer.status == 403 and b"invalid_token" in answer.body


def requests_of_a_day(requests_s: Iterable[float], now_s: float) -> list[float]:
    """Those of the last 24 hours; one from the future is taken for now."""
    return sorted(min(at_s, now_s) for at_s in requests_s if now_s - at_s < A_DAY_S)


def requests_a_day(interval_s: float) -> int:
    """This car's share of the day's requests, which its interval tells.

    Two cars on one account share BMW's 50, and each has twice the interval.
    """
    share = REQUESTS_A_DAY * CARDATA_INTERVAL_MS / 1000 / interval_s
    return int(min(max(share, LEAST_REQUESTS_A_DAY), REQUESTS_A_DAY))


def quota_wait_s(spent_s: list[float], now_s: float, most: int) -> float:
    """Seconds until one more is allowed in 24 hours; 0 for at once."""
    return spent_s[-most] + A_DAY_S - now_s if len(spent_s) >= most else 0.0


class CarData:
    """BMW CarData, the official API for one's own car.

    The car is read through a container of descriptors, which is remembered. One that BMW
    has lost is replaced; where BMW refuses the full set, a small one stands in for it.
    """

    name = "CarData"

    SEARCH_PAUSE_S = AN_HOUR_S

    def __init__(
        self, settings: Settings, memory: Memory, *, may_ask_owner: bool
    ) -> None:
        self._vin = settings.vin
        self._memory = memory
        self._sign_in = CarDataSignIn(settings, memory, may_ask_owner=may_ask_owner)
        self._api = CarDataApi(settings, memory, self._sign_in)
        # A start by hand seeks a container at once, whatever has been refused before.
        self._is_start_by_hand = may_ask_owner

    def poll(self) -> Reading:
        """Ask BMW once. NoReading or NoAnswer if not now, SignInRefused if never."""
        # First, for a sign-in that is missing must not count as a search.
        self._sign_in.access_token()
        container_id = self._container_id()
        try:
            return self._read(container_id)
        except Refusal as refusal:
            if refusal.code in CONTAINER_LOST:
                self._memory.container.id = ""
            is_lost = refusal.code in (*CONTAINER_LOST, *MAYBE_LOST)
            if not is_lost or not self._may_search():
                raise
        return self._read(self._find_container(lost=container_id))

    def _read(self, container_id: str) -> Reading:
        path = f"vehicles/{self._vin}/telematicData"
        query = {"containerId": container_id}
        answer = self._api.ask("the car's status", "GET", path, query=query)
        values = dict_or_empty(answer.get("telematicData"))
        log_values(values, self._vin)
        reading = reading_in(TelematicData(values, time.time()))
        if not reading:
            hint = "an older car may have to be driven once"
            raise NoReading(f"BMW's answer holds no charge between 0 and 100; {hint}")
        return reading

    # Its container

    def _container_id(self) -> str:
        container = self._memory.container
        is_usable = bool(container.id) and container.purpose in DESCRIPTORS
        if is_usable and (container.purpose == FULL_SET or not self._is_start_by_hand):
            return container.id
        if not self._may_search():
            wait_s = container.next_search_s - time.time()
            raise NoReading("CarData gives no container", wait_s=wait_s)
        try:
            return self._find_container()
        except Refusal:
            if is_usable:
                return container.id  # a small one, which still gives readings
            raise

    def _may_search(self) -> bool:
        wait_s = self._memory.container.next_search_s - time.time()
        return self._is_start_by_hand or not 0 < wait_s <= self.SEARCH_PAUSE_S

    def _find_container(self, lost: str = "") -> str:
        """Find a full container of ours that BMW knows, or make one.

        That is tried once an hour, whatever BMW answers and also after a success, for it
        has lost containers again and again, and refused the list of them, too.
        """
        self._is_start_by_hand = False
        container = self._memory.container
        container.next_search_s = time.time() + self.SEARCH_PAUSE_S
        try:
            ours = self._containers_but(lost)
            if FULL_SET in ours:
                return self._use(ours[FULL_SET], FULL_SET)
            return self._make_container(ours)
        except Refusal as refusal:
            if refusal.wait_s is None:
                refusal.wait_s = self.SEARCH_PAUSE_S
            raise
        except NoAnswer as problem:
            if not problem.was_sent:
                container.next_search_s = 0.0
            raise
        except NoReading:  # of the sign-in or the quota, which says when to go on
            container.next_search_s = 0.0
            raise

    def _containers_but(self, lost: str) -> dict[str, str]:
        """The ids of our containers that are in use, by their purpose."""
        answer = self._api.ask("its containers", "GET", "containers")
        listed = answer.get("containers")
        ours = {}
        for each in listed if isinstance(listed, list) else []:
            container = dict_or_empty(each)
            container_id = text_or_empty(container.get("containerId"))
            is_ours = container.get("name") == "i3charge"
            is_active = container.get("state") == "ACTIVE"
            if is_ours and is_active and container_id not in ("", lost):
                ours[text_or_empty(container.get("purpose"))] = container_id
        return ours

    def _make_container(self, ours: Mapping[str, str]) -> str:
        """A full one, or where BMW refuses that, a small one or what there is."""
        is_too_many = False
        try:
            return self._use(self._post_container(FULL_SET), FULL_SET)
        except Refusal as refusal:
            is_too_many = refusal.code == TOO_MANY_CONTAINERS and bool(ours)
            # BMW has answered 5xx to a descriptor that it did not know, too.
            is_descriptor = refusal.code == DESCRIPTOR_REFUSED or refusal.status >= 500
            if not is_too_many and not is_descriptor:
                raise
        if SMALL_SET in ours:
            return self._use(ours[SMALL_SET], SMALL_SET)
        if is_too_many:
            # What it holds is not known, so the next start by hand seeks a full one.
            older, *_ = ours.values()
            return self._use(older, SMALL_SET)
        return self._use(self._post_container(SMALL_SET), SMALL_SET)

    def _post_container(self, purpose: str) -> str:
        asked = {
            "name": "i3charge",
            "purpose": purpose,
            "technicalDescriptors": DESCRIPTORS[purpose],
        }
        made = self._api.ask("a container", "POST", "containers", json=asked)
        container_id = text_or_empty(made.get("containerId"))
        if not container_id:
            why = "CarData has made a container, but does not name it"
            raise Refusal(why, status=200, code="")
        return container_id

    def _use(self, container_id: str, purpose: str) -> str:
        self._memory.container.id = container_id
        self._memory.container.purpose = purpose
        return container_id


# --- What an answer means -------------------------------------------------------------
# Who says what, and how it goes stale:
#   PORT, PORT_COMBINED   the car, when the plug goes in or out
#   STATUS                the car, at each change; it can stick for hours after the end
#   HV_STATUS             BMW, at each answer; it can lag by hours, or be wrong for days
#   CHARGE_HEADER, CHARGE_DISPLAYED
#                         the car, when a charge begins and ends, seldom in between;
#                         it can be missing after a drive, and at the beginning
#   CHARGE_PREDICTED      BMW, at each answer; an i3 may have none
#   TO_FULL, REMAINING    the car, now and then; an old value stays for hours
#   FINISH_REASON         the car, when a charge ends; it stays until the next end
# So the plug wins over a status that is no newer, the car's status over BMW's, and
# BMW's charge over the car's only where it is higher: while the charge goes on, and after
# it until the car has said what it has come to.

# What the words of charging.status and of hvStatus mean to the owner. `is_full` decides
# whether a charge that has ended has made the car full. NOCHARGING is missing, for what it
# means depends on the plug.
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
    "CHARGINGENDED": "plugged in",
    "NOT_CHARGING": "plugged in",
    "FINISHED_NOT_FULL": "plugged in",
    "FINISHED_FULLY_CHARGED": "plugged in",  # the goal was reached, on other models at 80 %
}
NOCHARGING = "NOCHARGING"
CHARGING_ENDED = "CHARGINGENDED"
HV_GOAL_REACHED = "FINISHED_FULLY_CHARGED"
REASON_GOAL_REACHED = "CHARGING_GOAL_REACHED"

REASON_OF_WORD = {
    "POWERGRID_FAILED": "the station lost power",
    "CONNECTOR_REMOVED": "the plug was pulled",
    "CHARGING_STATION_FAILURE": "the station failed",
    "END_REQUESTED_BY_DRIVER": "stopped by hand",
    "HV_SYSTEM_FAILURE": "a fault in the car",
}

UNIT_OF_WORD = {"": "km", "km": "km", "mi": "mi", "miles": "mi", "mls": "mi"}

NEARLY_FULL = 99.0  # percent
SETTLED_S = 30 * A_MINUTE_S  # longer than a car at 100 % goes on charging
TOGETHER_S = 10 * A_MINUTE_S  # what is said within it belongs together


class Said(NamedTuple):
    """One value of an answer, and when it was said; 0 where that is not known."""

    value: Any
    at_s: float = 0.0

    @property
    def word(self) -> str:
        return text_or_empty(self.value)


class TelematicData:
    """The values of an answer, by their descriptors; a time from the future is now."""

    def __init__(self, values: Mapping[str, Any], now_s: float) -> None:
        self.now_s = now_s
        self._entries = {name: dict_or_empty(each) for name, each in values.items()}

    def said(self, name: str) -> Said:
        at_s = min(moment_s(self._text(name, "timestamp")), self.now_s)
        return Said(self._entries.get(name, {}).get("value"), at_s)

    def measured(self, name: str, most: float) -> Said:
        """Its value is a number from 0 to `most`, or None."""
        said = self.said(name)
        return Said(number(said.value, most), said.at_s)

    def unit(self, name: str) -> str:
        return self._text(name, "unit")

    def is_of_fetch(self, name: str) -> bool:
        """Whether BMW has stamped it at this answer, as what it computes itself."""
        computed = (CHARGE_PREDICTED, HV_STATUS)
        stamps = [self._text(each, "timestamp") for each in computed]
        return self._text(name, "timestamp") in stamps

    def _text(self, name: str, part: str) -> str:
        return text_or_empty(self._entries.get(name, {}).get(part))

    @cached_property
    def own_status(self) -> Said:
        """The car's word on what it does."""
        return self.said(STATUS)

    @cached_property
    def hv_word(self) -> str:
        """BMW's word on what the car does."""
        return self.said(HV_STATUS).word

    @cached_property
    def plug(self) -> Said:
        """The car's last word on the plug that says anything."""
        usable = []
        for name in (PORT, PORT_COMBINED):
            said = self.said(name)
            if said.word in ("CONNECTED", "DISCONNECTED"):
                usable.append(said)
        return newest(*usable)

    @cached_property
    def own_charge(self) -> Said:
        """The car's word on its charge; the value is a percentage or None."""
        return newest(
            self.measured(CHARGE_HEADER, most=100),
            self.measured(CHARGE_DISPLAYED, most=100),
        )

    @cached_property
    def predicted_charge(self) -> float | None:
        """BMW's prediction, in percent."""
        predicted: float | None = self.measured(CHARGE_PREDICTED, most=100).value
        return predicted

    @cached_property
    def minutes(self) -> Said:
        """The car's last word on the minutes to full."""
        return newest(
            self.measured(TO_FULL, most=24 * 60),
            self.measured(REMAINING, most=199),  # it says 200 for "200 or more"
        )


def newest(*candidates: Said) -> Said:
    """The one that has a value and was said last; the first where no time is known."""
    found = [said for said in candidates if said.value is not None]
    return max(found, key=lambda said: said.at_s, default=Said(None))


def reading_in(data: TelematicData, *, interpolates: bool = True) -> Reading | None:
    """Say what an answer means; None where it holds no charge."""
    status = status_in(data)
    full_at_s = 0.0
    if status == "charging":
        full_at_s = full_at_s_in(data)
    charge, source = charge_in(data, status, full_at_s, interpolates)
    if charge is None:
        return None

    if is_full(data, status, charge):
        status = "full"
        full_at_s = 0.0
    distance, unit = range_in(data)
    reason = data.said(FINISH_REASON)
    return Reading(
        charge=charge,
        taken_s=data.now_s,
        status=status,
        status_s=status_s_in(data, status),
        source=source,
        plugged=is_plugged(data),
        plugged_s=data.plug.at_s,
        range=distance,
        range_unit=unit,
        full_at_s=full_at_s,
        last_word_s=last_word_s_in(data),
        car_said=data.own_charge.value,
        car_said_s=data.own_charge.at_s,
        end_said_s=end_said_s_in(data, status),
        end_reason=REASON_OF_WORD.get(reason.word, ""),
        end_reason_s=reason.at_s,
    )


# The status


def status_in(data: TelematicData) -> Status:
    """What the car says that it does, else what BMW says; "full" comes later."""
    plugged = is_plugged(data)
    if plugged is False:
        return "unplugged"

    word = data.own_status.word
    own_status = STATUS_OF_WORD.get(word)
    if own_status:
        return own_status

    hv_status = STATUS_OF_WORD.get(data.hv_word, "unknown")
    if word != NOCHARGING:
        return hv_status
    if hv_status in ("waiting", "error"):
        return hv_status
    # Whatever else BMW says is of an earlier charge.
    return "plugged in" if plugged else "not charging"


def status_s_in(data: TelematicData, status: Status) -> float:
    """When the car said the word that makes the status what it is, or, where only BMW
    knows better, its own last word.
    """
    if status == "unplugged":
        return data.plug.at_s
    if status == "full":
        return data.own_charge.at_s
    speaks = data.own_status.word in (*STATUS_OF_WORD, NOCHARGING)
    return data.own_status.at_s if speaks else 0.0


def is_plugged(data: TelematicData) -> bool | None:
    """The last word on the plug; None where there is none that counts.

    A status can stick for hours after the plug was pulled, so the plug wins where it is
    as new. After a later word on charging it may be in again, unless that word only says
    that the pull has ended a charge.
    """
    plug = data.plug
    if plug.value != "DISCONNECTED":
        return True if plug.value == "CONNECTED" else None
    status = data.own_status
    if not plug.at_s or not status.at_s or status.word not in STATUS_OF_WORD:
        return False

    is_end = STATUS_OF_WORD[status.word] == "plugged in"
    allowed_s = TOGETHER_S if is_end else 0.0
    return None if status.at_s - plug.at_s > allowed_s else False


# Whether it is full


def is_full(data: TelematicData, status: Status, charge: float) -> bool:
    """Whether there is nothing left to charge.

    A charge of before the plug went in says nothing. While the car's own status says
    that it charges, 100 % alone is not enough (`is_full_though_charging`). Else the car's 100 % is
    enough, or its goal; BMW's counts only at rest, and where the car says no charge.
    """
    if is_charge_stale(data):
        return False
    if is_status_active(data):
        return is_full_though_charging(data)
    if status in ("charging", "unknown"):
        return False
    if data.own_charge.value == 100 or has_reached_goal(data):
        return True
    has_no_own_word = data.own_charge.value is None
    is_at_rest = status in ("plugged in", "not charging", "unplugged")
    return has_no_own_word and is_at_rest and charge >= 100


def is_status_active(data: TelematicData) -> bool:
    """Whether the car's own status says that it charges, or waits to do so."""
    return STATUS_OF_WORD.get(data.own_status.word) in ACTIVE


def is_charge_stale(data: TelematicData) -> bool:
    """Whether the car has not said its charge since the plug went in.

    What BMW has then, and predicts from, can be the charge of before the last drive.
    """
    own = data.own_charge
    plug = data.plug
    return plug.value == "CONNECTED" and 0 < own.at_s < plug.at_s


def is_full_though_charging(data: TelematicData) -> bool:
    """Whether a charge has made the car full, although its status sticks.

    That can be for hours, and one model never says that the charge has ended. A car
    sends its charge when it reaches 100 %, and goes on charging for a while.
    """
    own = data.own_charge
    began_s = data.own_status.at_s
    if not began_s or own.at_s <= began_s:
        return False
    has_settled = is_plugged(data) is False or data.now_s - own.at_s > SETTLED_S
    return has_reached_goal(data) or (own.value == 100 and has_settled)


def has_reached_goal(data: TelematicData) -> bool:
    """Whether the last charge has ended at its goal, near 100 %: an i3 has no other.

    BMW's word on it lags, so it counts only with the car's own, said in the charge, and
    where the car gives no other reason for this end.
    """
    own = data.own_charge
    reason = data.said(FINISH_REASON)
    if own.value is None or own.value < NEARLY_FULL or not own.at_s:
        return False
    if is_charge_of_end(own.at_s, reason.at_s):
        if reason.word == REASON_GOAL_REACHED:
            return True
        if reason.word in REASON_OF_WORD:
            return False
    is_well_after_status = own.at_s > data.own_status.at_s + TOGETHER_S
    is_in_charge = data.own_status.word == CHARGING_ENDED or is_well_after_status
    return data.hv_word == HV_GOAL_REACHED and is_in_charge


def is_charge_of_end(said_s: float, ended_s: float) -> bool:
    """Whether the car has said its charge when it ended, or was full and charged on."""
    return -TOGETHER_S <= ended_s - said_s <= SETTLED_S


def end_said_s_in(data: TelematicData, status: Status) -> float:
    """When the car said that a charge has ended; 0 where it has not.

    Where its status sticks, a charge has ended when the car has said that it is full.
    """
    if data.own_status.word == CHARGING_ENDED:
        return data.own_status.at_s
    sticks = status == "full" and is_status_active(data)
    return data.own_charge.at_s if sticks else 0.0


# The charge


def charge_in(
    data: TelematicData, status: Status, full_at_s: float, interpolates: bool
) -> tuple[float | None, Source]:
    """The charge in percent, and who says it.

    The car says it when a charge begins and ends, seldom in between. So while the car
    charges or pauses, the higher of its word and BMW's counts. After that the car's
    counts if it is of that end, else the higher one as before.
    """
    own = data.own_charge
    computed = data.predicted_charge
    source: Source = "BMW"
    if computed is None and status == "charging" and interpolates:
        # An i3 may have no CHARGE_PREDICTED.
        computed = interpolated(own, data.own_status.at_s, full_at_s, data.now_s)
        source = "interpolated"

    if computed is None:
        return own.value, "the car"
    if own.value is None or (computed > own.value and not is_own_final(data, status)):
        return computed, source
    return own.value, "the car"


def is_own_final(data: TelematicData, status: Status) -> bool:
    """Whether the car's word on its charge is truer than a higher prediction."""
    if status in ACTIVE:
        return False
    own = data.own_charge
    ended = data.own_status
    if not own.at_s or not ended.at_s:
        return True
    return own.at_s >= ended.at_s - TOGETHER_S


def interpolated(
    own: Said, began_s: float, full_at_s: float, now_s: float
) -> float | None:
    """The charge on a straight line from the car's last word to 100 % when it is full.

    What it said before the charge began still held when it began.
    """
    since_s = max(own.at_s, began_s)
    if own.value is None or not own.at_s or since_s >= full_at_s:
        return None
    share = (now_s - since_s) / (full_at_s - since_s)
    charge: float = own.value + (100 - own.value) * share
    return min(round(charge, 1), NEARLY_FULL)


# The rest


def full_at_s_in(data: TelematicData) -> float:
    """When the car expects to be full; 0 where that is not known.

    Both fields keep an old value for hours: the newer counts, if it is of this charge.
    """
    minutes = data.minutes
    if minutes.value is None or 0 < minutes.at_s < data.own_status.at_s:
        return 0.0
    said_s = minutes.at_s or last_word_s_in(data) or data.now_s
    return said_s + float(minutes.value) * A_MINUTE_S


def last_word_s_in(data: TelematicData) -> float:
    """When the car last spoke of its charge, its status, its plug or the minutes."""
    words = [data.said(name) for name in (CHARGE_HEADER, CHARGE_DISPLAYED, STATUS)]
    for name in (TO_FULL, REMAINING):
        if not data.is_of_fetch(name):
            words.append(data.measured(name, most=24 * 60))
    return newest(*words, data.plug).at_s


def range_in(data: TelematicData) -> tuple[float | None, str]:
    """The electric range, and its unit, which BMW often leaves out."""
    distance = data.measured(RANGE, most=1000).value
    unit = UNIT_OF_WORD.get(data.unit(RANGE).lower())
    if distance is None or unit is None:
        return None, ""
    return distance, unit


# --- The ConnectedDrive portal --------------------------------------------------------
class Portal:
    """The API of BMW's web portal (2017 to 2021), opened with the owner's password."""

    name = "ConnectedDrive portal"

    FIELDS: ClassVar = {  # the portal's words for what CarData calls descriptors
        CHARGE_HEADER: "chargingLevelHv",  # as displayed; soc_hv_percent is less near the top
        HV_STATUS: "chargingHVStatus",
        STATUS: "charging_status",
        TO_FULL: "chargingTimeRemaining",
        RANGE: "beRemainingRangeElectric",
        PORT: "connectorStatus",
    }
    NEW_TOKEN_REFUSED_PAUSE_S = 600.0  # for many logins lock the account
    LOGINS = 3  # that BMW may refuse in a row: its gateway has, for minutes

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._access_token = ""
        self._tries_left = 1  # of the login, until one has worked

    def poll(self) -> Reading:
        """Ask BMW once. NoReading or NoAnswer if not now, SignInRefused if never."""
        if not self._access_token:
            self._sign_in()
        answer = self._ask()
        if answer.status == 401:
            self._sign_in()
            answer = self._ask()
        if answer.status == 401:
            why = "BMW does not accept the access token"
            wait_s = max(self.NEW_TOKEN_REFUSED_PAUSE_S, self._settings.interval_s)
            raise NoReading(why, wait_s=wait_s)
        if answer.status in (403, 404):
            advice = "check VEHICLE_IDENTIFICATION_NUMBER"
            why = f"BMW does not show this car (HTTP {answer.status})"
            raise NoReading(f"{why}; {advice}")
        if answer.status != 200:
            raise NoReading(answer.failure())

        car = dict_or_empty(answer.json().get("attributesMap"))
        log_values(car, self._settings.vin)
        reading = self.reading_in(car, time.time())
        if not reading:
            raise NoReading("BMW's answer holds no charge between 0 and 100")
        return reading

    def reading_in(self, car: Mapping[str, Any], now_s: float) -> Reading | None:
        values = {
            name: {"value": car.get(field_name), "timestamp": None, "unit": None}
            for name, field_name in self.FIELDS.items()
        }
        values[RANGE]["unit"] = car.get("unitOfLength")
        # A report has one time stamp, such as 27.02.2018 19:59:03 UTC. It is not that of
        # the plug and the status, or each report would look like another plug.
        updated = text_or_empty(car.get("updateTime"))
        stamp = re.sub(r"(..)\.(..)\.(....) (.*) UTC", r"\3-\2-\1 \4", updated)
        values[CHARGE_HEADER]["timestamp"] = stamp
        values[TO_FULL]["timestamp"] = stamp
        # The portal's charge is the car's own of now; there is nothing to interpolate.
        return reading_in(TelematicData(values, now_s), interpolates=False)

    def _ask(self) -> HttpAnswer:
        base = self._settings.portal_url.rstrip("/")
        url = f"{base}/vehicle/dynamic/v1/{self._settings.vin}"
        headers = {"Authorization": f"Bearer {self._access_token}"}
        return send("the car's status", "GET", url, headers=headers)

    def _sign_in(self) -> None:
        """Find the access token in a redirect: the implicit grant (RFC 6749, 4.2)."""
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
        url = self._settings.login_url
        answer = send("the login", "POST", url, form=form)
        if answer.status in (400, 401, 403):
            error = text_or_empty(answer.json().get("error"))
            self._raise_login_is_refused(error or f"HTTP {answer.status}")
        if answer.status not in (302, 303):
            raise NoReading(answer.failure())

        fields = self._fields_in(answer.headers.get("Location", ""))
        if fields.get("state", state) == state:  # which can be missing
            if fields.get("error"):
                self._raise_login_is_refused(fields["error"])
            if is_token(fields.get("access_token")):
                self._access_token = fields["access_token"]
                self._tries_left = self.LOGINS
                return
        raise NoReading("BMW answered the login with a redirect that holds no token")

    def _fields_in(self, location: str) -> dict[str, str]:
        """What a redirect to us says, in its fragment or, of an error, in its query."""
        address, _, fields = re.sub("[?#]", "&", location).partition("&")
        if address != self._settings.redirect_uri:
            return {}
        return dict(parse_qsl(fields.replace("+", "%2B")))  # a plus sign is one here

    def _raise_login_is_refused(self, error: str) -> NoReturn:
        hidden = [self._settings.username, self._settings.password]
        said = printable(error, hidden)
        advice = "check USERNAME, PASSWORD and AUTH_CLIENT_ID"
        why = f"BMW refuses the login ({said}): {advice}"
        self._tries_left -= 1
        if not self._tries_left:
            raise SignInRefused(why)
        raise NoReading(why)


class Door(Protocol):
    """Where readings come from."""

    name: str

    def poll(self) -> Reading:
        """NoReading or NoAnswer where there is none, SignInRefused if there never is."""


def open_door(settings: Settings, memory: Memory, *, may_ask_owner: bool) -> Door:
    if settings.client_id:
        return CarData(settings, memory, may_ask_owner=may_ask_owner)
    return Portal(settings)


# --- What a reading leaves out, or repeats --------------------------------------------
# A reading is what BMW knows, which is late, patchy, and sometimes of yesterday. `held`
# mends it before it is shown; then `observe` says what it shows of the session.
def held(reading: Reading, last: Reading | None, session: ChargingSession) -> Reading:
    """Mend a reading by what was known before, so that it can be shown and judged.

    A "full" of before this charge counts no more. A status that is not known, or is of a
    charge that is over, is as it was, unless plug or charge show that it cannot be. The
    charge does not fall unless the car has said one since the last reading; only a car
    that never says one, and does not charge, falls with BMW's prediction.
    """
    if is_stale_full(reading, session):
        status = status_at_rest(reading)
        said_s = reading.end_said_s
        reading = dataclasses.replace(reading, status=status, status_s=said_s)
    if last is None:
        return reading

    if reading.status == "unknown" or is_stale_charging(reading, last, session):
        status = standing_status(reading, last)
        reading = dataclasses.replace(reading, status=status, full_at_s=0.0)
    if reading.car_said is None:
        said = last.car_said
        said_s = last.car_said_s
        reading = dataclasses.replace(reading, car_said=said, car_said_s=said_s)
    if session.is_on or reading.car_said is not None:
        reading = with_standing_charge(reading, last)
    return reading


def is_stale_full(reading: Reading, session: ChargingSession) -> bool:
    """Whether the car has said what makes it full before this charge has begun."""
    is_own_word = reading.car_said is not None and reading.car_said >= NEARLY_FULL
    is_before = 0 < reading.car_said_s < session.began_s - TOGETHER_S
    return session.is_on and reading.status == "full" and is_own_word and is_before


def is_stale_charging(
    reading: Reading, last: Reading, session: ChargingSession
) -> bool:
    """Whether BMW repeats a word of the car's on a charge that is over.

    The same word as in the last reading, which began no session then, begins none now.
    """
    if reading.status != "charging" or not reading.status_s or session.is_on:
        return False
    is_before_end = reading.status_s <= session.ended_s
    is_before_departure = last.plugged is False and reading.status_s <= last.plugged_s
    return is_before_end or is_before_departure or reading.status_s == last.status_s


def standing_status(reading: Reading, last: Reading) -> Status:
    """The last one, unless the plug or the charge show that it is over."""
    has_moved = reading.plugged_s > last.plugged_s
    is_back = last.status == "unplugged" and bool(reading.plugged)
    charge = reading.charge if reading.car_said is None else reading.car_said
    is_less = last.status == "full" and charge < NEARLY_FULL
    is_over = has_moved or is_back or is_less
    return status_at_rest(reading) if is_over else last.status


def status_at_rest(reading: Reading) -> Status:
    return "plugged in" if reading.plugged else "not charging"


def with_standing_charge(reading: Reading, last: Reading) -> Reading:
    """The reading with the last charge, or the car's own, where its charge is wrong."""
    said = charge_said_since(reading, last)
    if said is None and reading.charge < last.charge:
        return dataclasses.replace(reading, charge=last.charge, source=last.source)

    # Where the car's new word is lower, and the prediction did not follow, that is wrong.
    if said is None or said == last.car_said or reading.source != "BMW":
        return reading
    if said < last.charge <= reading.charge:
        return dataclasses.replace(reading, charge=said, source="the car")
    return reading


def charge_said_since(reading: Reading, last: Reading) -> float | None:
    """What the car has said of its charge since the last reading, in percent.

    A charge without a time counts as said just now.
    """
    if not reading.car_said_s:
        return reading.car_said
    before = (last.car_said_s, last.car_said)
    now = (reading.car_said_s, reading.car_said)
    is_new = now != before and reading.car_said_s >= last.car_said_s
    return reading.car_said if is_new else None


# --- The charging session -------------------------------------------------------------
# A session begins with the first reading that charges, goes on through pauses, and ends when
# the car is full or does not charge any more. A charge that came and went between two
# readings is known by its end.
#
# What was told in a session stays told until there is another one: the car was away from
# its plug, was driven, or has long to go. So a top-up tells nothing, as a full car makes
# one when it is warmed before it leaves. Where the car says clearly less while a session
# goes on, it charges from there, and all but its beginning is told anew.
#
#   one day, as an example               change     what is told
#   CHARGINGACTIVE, 41 %                 begins     Charging from 41%
#   BMW predicts 53 %                    goes on    ~53% charged
#   CHARGINGENDED, 100 %                 ends       Fully charged: 41 → 100%
#   CHARGINGACTIVE, 99 %: it is warmed   begins     nothing, for "full" was told
#   CHARGINGENDED, 100 %                 ends       nothing
#   NOCHARGING, 62 %: it was driven      none       nothing, but this is another session
#   CHARGINGACTIVE, 62 %                 begins     Charging from 62%

UNSEEN_S = 2 * AN_HOUR_S  # after such a gap it is not known when a charge began
SENT_ANEW_S = 5 * A_MINUTE_S  # so soon after its plug, a car can send an old word again
WARMED_S = 45 * A_MINUTE_S  # a full car that is warmed at its plug charges for less
FLICKER_PERCENT = 3  # by less, the charge of a car at rest goes up and down
STEP_PERCENT = 5
PERHAPS_FULL = 90.0  # percent; a prediction can be as far behind

# What can have become of a session. One that goes on lower has charged from less than was
# shown, or begins anew; one that came and went was between two readings.
Change = Literal["none", "begins", "goes on", "goes on lower", "ends", "came and went"]


@dataclass(frozen=True)
class Observation:
    """A reading, and what it shows beside what was known before."""

    reading: Reading
    last: Reading | None  # before this one
    session: ChargingSession  # after this one
    change: Change  # of the session

    @property
    def has_ended(self) -> bool:
        """Whether it is the first to show the end of a charge."""
        return self.change in ("ends", "came and went")

    @property
    def has_made_full(self) -> bool:
        """Whether the charge has made the car full, which may have left meanwhile."""
        if self.reading.status == "full":
            return True
        if self.last is None or self.last.car_said != 100:
            return False
        return self.last.car_said_s > self.session.began_s > 0


def observe(
    reading: Reading, last: Reading | None, before: ChargingSession
) -> Observation:
    if last and is_another(reading, last, before):
        before = ChargingSession()
    change = change_in(reading, last, before)
    session = session_after(change, reading, last, before)
    return Observation(reading, last, session, change)


def is_another(reading: Reading, last: Reading, session: ChargingSession) -> bool:
    """Whether a reading is of another session than the one that is remembered."""
    if session.is_on and not session.is_full_told:
        return False
    # The end of a top-up may never be shown, where the car leaves right after it.
    if is_back_at_a_plug(reading, last, session):
        return True
    if is_longer_than_a_top_up(reading, session):
        return True
    return not session.is_on and was_driven(reading, last, session)


def is_back_at_a_plug(
    reading: Reading, last: Reading, session: ChargingSession
) -> bool:
    """Whether the plug went in after the end of the session, as far as that is known."""
    if not reading.plugged and not reading.is_active:
        return False
    before_s = session.ended_s or last.plugged_s
    if reading.plugged_s and before_s:
        return reading.plugged_s > before_s
    return last.plugged is False  # where a stamp is missing


def was_driven(reading: Reading, last: Reading, session: ChargingSession) -> bool:
    """Whether the car says clearly less than in the session, or a full one was at less."""
    lower = session.highest - FLICKER_PERCENT
    if session.is_full_told and last.charge <= lower:
        return True
    said = charge_said_since(reading, last)
    return said is not None and said <= lower


def is_longer_than_a_top_up(reading: Reading, session: ChargingSession) -> bool:
    """Whether the car expects to charge for longer than a full one is warmed."""
    left_s = reading.full_at_s - reading.taken_s
    return session.is_full_told and left_s >= WARMED_S


def change_in(
    reading: Reading, last: Reading | None, session: ChargingSession
) -> Change:
    """What a reading shows of the session that was known before."""
    if session.is_on and not reading.is_active and not awaits_final_charge(reading):
        return "ends"
    if session.is_on:
        return "goes on lower" if last and has_fallen(reading, last) else "goes on"
    if reading.status == "charging":
        return "begins"
    if last and has_come_and_gone(reading, last, session):
        return "came and went"
    return "none"


def awaits_final_charge(reading: Reading) -> bool:
    """Whether a charge has ended, and the car has not said yet what it has come to.

    That is waited for, an hour at most, or a full car would be said to have stopped.
    """
    if reading.status not in ("plugged in", "not charging") or not reading.status_s:
        return False
    has_said = reading.car_said_s >= reading.status_s - TOGETHER_S
    is_long_ago = reading.taken_s - reading.status_s > AN_HOUR_S
    return reading.charge >= PERHAPS_FULL and not has_said and not is_long_ago


def has_fallen(reading: Reading, last: Reading) -> bool:
    """Whether the charge has fallen clearly, by the car's own word.

    A station has stopped at once, unnoticed, and goes on hours later; or the car has
    not said its charge before, since it was plugged in.
    """
    said = charge_said_since(reading, last)
    is_lower = said is not None and said <= last.charge - STEP_PERCENT
    return is_lower and reading.charge < last.charge


def has_come_and_gone(
    reading: Reading, last: Reading, session: ChargingSession
) -> bool:
    """Whether the car has charged since the last reading, and does not any more.

    Either it says 3 % more than before, or it is newly full, and has said so after this
    plug went in. A word of a session whose end is known counts only where the car turns
    out to be full.
    """
    if reading.is_active:
        return False
    is_newly_full = reading.status == "full" and last.status != "full"
    if is_word_of_session(reading, session):
        return is_newly_full
    if is_out_since_end(reading, session):
        return False  # only a drive can have raised the charge

    said = charge_said_since(reading, last)
    is_known = last.car_said is not None  # and not only predicted
    if said is not None and is_known and said >= last.charge + FLICKER_PERCENT:
        return True
    if session == ChargingSession():  # it is another one, and nothing is known of it
        return reading.status == "full" and is_of_this_plug(reading, reading.car_said_s)
    is_end = is_charge_of_end(reading.car_said_s, reading.end_said_s)
    return is_newly_full and is_end and is_of_this_plug(reading, reading.end_said_s)


def is_word_of_session(reading: Reading, session: ChargingSession) -> bool:
    """Whether the car has said its charge in a session that has ended."""
    if not session.ended_s:
        return False
    return session.began_s < reading.car_said_s <= session.ended_s + TOGETHER_S


def is_out_since_end(reading: Reading, session: ChargingSession) -> bool:
    """Whether the plug was pulled at the end of the session, or before it was shown."""
    if reading.plugged is not False or not session.ended_s:
        return False
    return 0 < reading.plugged_s <= session.ended_s + TOGETHER_S


def is_of_this_plug(reading: Reading, said_s: float) -> bool:
    """Whether something was said at this plug, and not sent anew with it."""
    is_known = bool(reading.plugged and reading.plugged_s)
    return is_known and said_s >= reading.plugged_s + SENT_ANEW_S


def session_after(
    change: Change, reading: Reading, last: Reading | None, before: ChargingSession
) -> ChargingSession:
    session = dataclasses.replace(before, told=list(before.told))
    if change == "begins":
        session.began_s = moment_of_change(reading, last)
        session.began_percent = percent_at_beginning(reading, last)
        session.expected_s = 0.0
        session.ended_s = 0.0
    elif change == "goes on lower":
        # It charges from there, from then on.
        began_percent = f"{int(reading.car_said or 0)}%"
        began_s = reading.car_said_s or reading.taken_s
        session = ChargingSession(began_s=began_s, began_percent=began_percent)
    elif change == "ends":
        session.ended_s = moment_of_end(reading, last)
        if not session.is_full_told:
            session.highest = 0.0  # what was predicted above the end was wrong
    elif change == "came and went":
        session.ended_s = moment_of_change(reading, last)
        session.began_percent = ""
    elif change == "none" and reading.status == "full" and not session.is_full_told:
        # It is full, and nobody knows since when: that is no news, now or later.
        session.told += ["full", "still"]

    session.highest = max(session.highest, reading.charge)
    session.lowest_since_news = min(session.lowest_since_news, reading.charge)
    if reading.full_at_s:
        session.expected_s = reading.full_at_s
    elif reading.status == "waiting":
        session.expected_s = 0.0  # it will be later than the car had expected
    return session


def moment_of_change(reading: Reading, last: Reading | None) -> float:
    """When the car has said what this reading is the first to show, else now."""
    if last is None or reading.status_s > last.status_s:
        return reading.status_s or reading.taken_s
    if reading.spoken_s > last.spoken_s:
        return reading.spoken_s
    return reading.taken_s


def moment_of_end(reading: Reading, last: Reading | None) -> float:
    if last and awaits_final_charge(last):
        return last.status_s  # the end was shown before its charge
    return moment_of_change(reading, last)


def percent_at_beginning(reading: Reading, last: Reading | None) -> str:
    """The charge at which it began, as it was shown; "" where that is not known."""
    plug_s = reading.plugged_s if reading.plugged else 0.0
    is_of_before = 0 < reading.car_said_s < plug_s - TOGETHER_S
    if last is None or reading.charge == 100 or is_of_before:
        return ""

    said = charge_said_since(reading, last)
    is_of_beginning = abs(reading.car_said_s - reading.status_s) <= TOGETHER_S
    if said is not None and (is_of_beginning or said < last.charge):
        return f"{int(said)}%"
    was_seen = reading.taken_s - last.taken_s <= UNSEEN_S
    return last.percent if was_seen and last.charge <= reading.charge else ""


# --- What is news ---------------------------------------------------------------------
SOON_MINUTES = 10
OVERDUE_S = 30 * A_MINUTE_S  # after the time when it should have been full
LONGEST_CHARGE_S = 20 * AN_HOUR_S
STILL_THERE_S = AN_HOUR_S

# Of the other kinds, a session can have several.
TOLD_ONCE_A_SESSION = ("reached", "soon", "overdue", "full", "still")


def told_as(news: News) -> str:
    """How it is remembered that it was told: once for each goal, and each trouble."""
    return news.message if news.kind in ("reached", "error") else news.kind


def untold_news(seen: Observation, found: list[News], *, is_first: bool) -> list[News]:
    """What is left to tell of what was found, or else a step."""
    news = [one for one in found if told_as(one) not in seen.session.told]
    if is_first:  # what has been so for long is no news
        return [one for one in news if one.kind in ("soon", "overdue")]
    step = step_news(seen)
    return [step] if step and not news else news


def note_told(session: ChargingSession, found: list[News]) -> None:
    for news in found:
        if news.kind in TOLD_ONCE_A_SESSION and told_as(news) not in session.told:
            session.told.append(told_as(news))


def news_in(seen: Observation, notify_at: float) -> list[News]:
    """All that a reading has to say, in the order of telling."""
    # Once "full" was told, a top-up is no charge, and a car at rest flickers between 99
    # and 100 %: all that is left to say is that it still stands there.
    found = [still_news(seen)]
    if not seen.session.is_full_told:
        found = [
            started_news(seen),
            reached_news(seen, notify_at),
            soon_news(seen),
            overdue_news(seen),
            full_news(seen),
            stopped_news(seen),
            paused_news(seen),
        ]
    return [news for news in found if news]


def started_news(seen: Observation) -> News | None:
    """The first reading that charges, where it did not before; a pause is no end."""
    if seen.change != "begins":
        return None
    began_percent = seen.session.began_percent
    message = "Charging has begun"
    if began_percent:
        message = f"Charging from {began_percent}"
    return News("started", with_full_clock(message, seen.reading))


def reached_news(seen: Observation, notify_at: float) -> News | None:
    """The owner's own goal, when it is passed; a charge at rest can flicker around it."""
    reading = seen.reading
    before = seen.last.charge if seen.last else 0.0
    has_passed = before < notify_at <= reading.charge
    if not has_passed or reading.status == "full" or reading.plugged is False:
        return None
    if awaits_final_charge(reading):
        return None
    return News("reached", f"{notify_at:.0f}% reached")


def soon_news(seen: Observation) -> News | None:
    """Ten minutes to full, or less: it is time to walk to the car."""
    minutes = seen.reading.minutes_to_full
    if minutes is None or minutes > SOON_MINUTES:
        return None
    about = max(1, round(minutes))
    return News("soon", f"Full in about {about} min, at {seen.reading.full_clock}")


def overdue_news(seen: Observation) -> News | None:
    """Far too long a charge: BMW can say for days that a full car charges."""
    reading = seen.reading
    session = seen.session
    if reading.status != "charging":
        return None
    if session.expected_s and reading.taken_s >= session.expected_s + OVERDUE_S:
        expected = f"BMW expected it full at {clock_at(session.expected_s)}"
        return News("overdue", f"{expected}, and has not confirmed it. Have a look.")
    lasts_s = reading.taken_s - session.began_s
    if lasts_s >= LONGEST_CHARGE_S:
        so_long = duration(lasts_s)
        return News("overdue", f"Charging for {so_long} now, says BMW. Have a look.")
    return None


def full_news(seen: Observation) -> News | None:
    """The end that the owner waits for, and the next driver, too."""
    if not seen.has_made_full or not seen.has_ended:
        return None
    summary = session_summary(seen)
    message = f"Fully charged: {summary}." if summary else "Fully charged."
    if seen.reading.plugged is not False:
        message += " The charging station can be freed."
    return News("full", message)


def stopped_news(seen: Observation) -> News | None:
    """The end of a charge at less than full, with the car's reason if it has one."""
    reading = seen.reading
    if seen.has_made_full or not seen.has_ended:
        return None
    if 0 < seen.session.ended_s < seen.session.began_s - TOGETHER_S:
        return None  # it had ended before it seemed to begin anew

    why: str = reading.status
    if reading.end_reason and reading.end_reason_s >= seen.session.began_s > 0:
        why = reading.end_reason
    message = f"Charging stopped at {reading.percent} ({why})"
    summary = session_summary(seen)
    return News("stopped", f"{message}, {summary}" if summary else message)


def paused_news(seen: Observation) -> News | None:
    """It waits, as smart tariffs let it many times in a night; each is told."""
    was_charging = seen.last is not None and seen.last.status == "charging"
    if not was_charging or seen.reading.status != "waiting":
        return None
    return News("paused", f"Charging paused at {seen.reading.percent}")


def still_news(seen: Observation) -> News | None:
    """An hour or more after it was full, where the plug is in by its last word."""
    reading = seen.reading
    ended_s = seen.session.ended_s
    if reading.status != "full" or not reading.plugged or not ended_s:
        return None
    if seen.has_ended or reading.taken_s < ended_s + STILL_THERE_S:
        return None  # one thing at a time, where the end shows late
    return News("still", f"Full since {clock_at(ended_s)}, and still plugged in")


def step_news(seen: Observation) -> News | None:
    """It is 5 % more than at the last news."""
    session = seen.session
    if not session.is_on or session.is_full_told or not seen.reading.is_active:
        return None
    risen = seen.reading.charge - session.lowest_since_news
    if round(risen, 6) < STEP_PERCENT:
        return None
    message = f"{seen.reading.percent} charged"
    return News("step", with_full_clock(message, seen.reading))


def with_full_clock(message: str, reading: Reading) -> str:
    clock = reading.full_clock
    return f"{message}, full about {clock}" if clock else message


def session_summary(seen: Observation) -> str:
    """From where to where, and in what time; "" where the beginning was not seen."""
    session = seen.session
    took_s = session.ended_s - session.began_s
    if not session.began_percent or took_s <= 0:
        return ""
    ended_percent = seen.reading.percent
    if seen.has_made_full and seen.reading.status != "full":
        ended_percent = "100%"  # and it has left since
    from_to = f"{session.began_percent.rstrip('%')} → {ended_percent}"
    return f"{from_to} in {duration(took_s)}"


# --- When the next poll is due --------------------------------------------------------
AFTER_FULL_S = 2 * A_MINUTE_S  # BMW rounds, and is never early
LEAST_GAP_S = 10 * A_MINUTE_S  # between two polls, where one is brought forward

# Polls that may be brought forward, one after the other, without anything new: a state
# that sticks must not drain the quota.
EARLY_POLLS = 2
KEPT_FOR_FULL = 2  # of the day's requests
EARLY_POLLS_NEAR_FULL = 4


def requests_to_spare(
    requests_s: list[float], now_s: float, interval_s: float
) -> float:
    """How many requests can be made beside the regular ones, without a gap later.

    Just before each of the day's requests is a day old, it counts, with those after it
    and the regular ones that come until then. The least that is left is to spare.
    """
    most = requests_a_day(interval_s)
    to_spare = float(most)
    for earlier, at_s in enumerate(requests_s):
        regular = (at_s + A_DAY_S - now_s) / interval_s
        counted = len(requests_s) - earlier
        to_spare = min(to_spare, most - counted - regular)
    return to_spare


def is_new(seen: Observation) -> bool:
    """Whether BMW has said something that it had not said before.

    A charge that changes is nothing new where the car does not expect to be full later.
    """
    reading = seen.reading
    last = seen.last
    if last is None or reading.status != last.status or seen.change == "goes on lower":
        return True
    is_charge_new = reading.charge != last.charge and reading.source != "interpolated"
    return is_charge_new and reading.minutes_to_full is not None


def soon_news_s(reading: Reading) -> float:
    """When "soon" is due; a negative moment where that is not known."""
    return reading.full_at_s - SOON_MINUTES * A_MINUTE_S


def early_poll_s(
    reading: Reading, goals: list[float], early_polls: int
) -> float | None:
    """When news is expected, and BMW may be asked; None for never."""
    if not reading.full_at_s or early_polls >= EARLY_POLLS_NEAR_FULL:
        return None
    now_s = reading.taken_s
    soon_s = soon_news_s(reading)
    # The polls just before and just after full may follow others that were in vain.
    expected_s = [soon_s, reading.full_at_s + AFTER_FULL_S]
    if early_polls < EARLY_POLLS and now_s < soon_s:
        expected_s += [goal_s(reading, goal) for goal in goals]
    ahead_s = [at_s for at_s in expected_s if at_s > now_s]

    least_s = now_s + LEAST_GAP_S
    if ahead_s:
        return max(min(ahead_s), least_s)
    # It should be full by now.
    return least_s if early_polls < EARLY_POLLS else None


def next_poll_s(
    reading: Reading, regular_s: float, goals: list[float], early_polls: int
) -> float:
    """When to poll next: at the regular time, or earlier where news is expected.

    Only where it then catches "soon", it is a little later than the regular time.
    """
    early_s = early_poll_s(reading, goals, early_polls)
    next_s = regular_s if early_s is None else min(early_s, regular_s)

    # Polls keep their distance, so the one after this might tell "soon" too late.
    soon_s = soon_news_s(reading)
    is_too_late = 0 < soon_s - next_s < LEAST_GAP_S
    is_interval_longer = regular_s - reading.taken_s > LEAST_GAP_S
    return soon_s if is_too_late and is_interval_longer else next_s


def goal_s(reading: Reading, goal: float) -> float:
    """When a charge in percent is reached; 0 where it is behind.

    The charge rises evenly. It is asked a little later, for what is interpolated is
    rounded, and could be just below.
    """
    if not reading.charge < goal < 100:
        return 0.0
    left_s = reading.full_at_s - reading.taken_s
    share = (goal + 0.1 - reading.charge) / (100 - reading.charge)
    return reading.taken_s + left_s * share


# --- The watch ------------------------------------------------------------------------
FORGOTTEN_S = 36 * AN_HOUR_S  # longer than from one daily run to the next


class ChargeWatch:
    """Decides what is news, and when the next poll is due, by what is remembered."""

    def __init__(self, memory: Memory, notify_at: float, interval_s: float) -> None:
        self._memory = memory
        self._notify_at = notify_at  # percent, the owner's own; 0 for none
        self._interval_s = interval_s
        self._early_polls = 0  # since there was something new

    def forget(self, now_s: float) -> None:
        """Forget a last reading of so long ago that it says nothing of today."""
        memory = self._memory
        if memory.last and now_s - memory.last.taken_s > FORGOTTEN_S:
            memory.last = None
            memory.session = ChargingSession()

    def take(self, reading: Reading) -> list[News]:
        """Take note of a reading; returns its news, in the order of telling."""
        memory = self._memory
        is_first = memory.last is None and not memory.session.is_on
        seen = observe(reading, memory.last, memory.session)

        found = news_in(seen, self._notify_at)
        news = untold_news(seen, found, is_first=is_first)
        # Noted only now, for both above look at what was told before. What was so from the
        # beginning is not told later, either.
        note_told(seen.session, found)
        if is_first or news:
            seen.session.lowest_since_news = reading.charge
        if news or is_new(seen):
            self._early_polls = 0
        memory.last = reading
        memory.session = seen.session
        return news

    def silence_news(self, now_s: float) -> News | None:
        """That a charge has not been heard of for too long, but not for a day."""
        last = self._memory.last
        if last is None or last.status != "charging":
            return None
        least_s = max(2 * self._interval_s, AN_HOUR_S)
        if not least_s <= now_s - last.taken_s <= A_DAY_S:
            return None
        since = clock_at(last.taken_s)
        return News(
            "error", f"No word from BMW since {since} ({last.percent}, charging)"
        )

    def plan_next_poll(self, reading: Reading, began_s: float) -> float:
        """The time.time() of the next poll, after one that began at `began_s`."""
        goals = [self._memory.session.lowest_since_news + STEP_PERCENT, self._notify_at]
        now_s = reading.taken_s
        requests_s = requests_of_a_day(self._memory.requests_s, now_s)
        to_spare = requests_to_spare(requests_s, now_s, self._interval_s)
        if to_spare < KEPT_FOR_FULL:
            goals = []

        regular_s = began_s + self._interval_s
        next_s = next_poll_s(reading, regular_s, goals, self._early_polls)
        if next_s < regular_s:
            self._early_polls += 1
        return next_s


# --- Log lines ------------------------------------------------------------------------
OLD_REPORT_S = 5 * A_MINUTE_S
WIDE_COLUMNS = 80  # of a terminal that has room for the bar
COLOURS: dict[Status, int] = {"charging": 32, "full": 36, "waiting": 33, "error": 31}
DIM = 2
DATE_ON_TERMINAL = "%a %H:%M"
DATE_IN_FILE = "%Y-%m-%d %H:%M:%S"


def distance_words(reading: Reading) -> str:
    return "" if reading.range is None else f"{int(reading.range)} {reading.range_unit}"


def age_words(reading: Reading) -> str:
    """The age of what is shown, where it is worth a word."""
    age_s = reading.taken_s - reading.reported_s
    return duration(age_s) if reading.reported_s and age_s > OLD_REPORT_S else ""


def text_line(reading: Reading, date_format: str, bar: str) -> str:
    moment = datetime.fromtimestamp(reading.taken_s)
    age = age_words(reading)
    columns = [
        f"{moment:{date_format}} {reading.percent:>5}",
        bar,
        f"{reading.status:<10}",
        f"{distance_words(reading):>6}",
        f"full {reading.full_clock}" if reading.full_clock else "",
        f"car: {age} ago" if age else "",
    ]
    return "  ".join(filter(None, columns)).rstrip()


def bar_of(charge: float, blocks: str) -> str:
    """Draw ten cells. `blocks` are an empty one, parts of one that grow, a full one."""
    parts = len(blocks) - 1
    filled = round(charge / 10 * parts)
    if charge < 100:
        filled = min(filled, 10 * parts - 1)
    cells, part = divmod(filled, parts)
    bar = blocks[-1] * cells
    if part:
        bar += blocks[part]
    return bar.ljust(10, blocks[0])


def json_line(reading: Reading) -> str:
    minutes = reading.minutes_to_full
    values = {
        "time": iso_local(reading.taken_s),
        "charge": reading.charge,
        "predicted": reading.predicted,
        "status": reading.status,
        "plugged": reading.plugged,
        "range": reading.range,
        "range_unit": reading.range_unit or None,
        "minutes_to_full": minutes,
        "full_at": None if minutes is None else iso_utc(reading.full_at_s),
        "reported": iso_utc(reading.reported_s),
    }
    return json.dumps(values)


def iso_local(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).astimezone().isoformat(timespec="seconds")


def iso_utc(at_s: float) -> str | None:
    moment = datetime.fromtimestamp(at_s, timezone.utc)
    return moment.isoformat(timespec="seconds") if at_s else None


class ChargeLog:
    """Writes readings to stdout, in the form that suits what stdout is."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._encoding = sys.stdout.encoding
        is_dumb = os.environ.get("TERM") == "dumb"
        self._is_terminal = sys.stdout.isatty() and not as_json and not is_dumb
        is_utf = self._encoding.lower().startswith("utf")
        self._blocks = "░▏▎▍▌▋▊▉█" if is_utf else "-#"
        self._title = ""
        self.works = True
        self.is_unread = False  # once what it is piped into has ended
        if self._is_terminal:
            self._write("\033[22;2t")  # puts the title aside that is there

    def write(self, reading: Reading) -> None:
        self._write(self._line(reading) + "\n")
        self.set_title(f"i3 {reading.percent} {reading.status}")

    def set_title(self, text: str) -> None:
        if self._is_terminal and text != self._title:
            self._title = text
            self._write(f"\033]2;{text}\007")

    def close(self) -> None:
        if self._is_terminal:
            self._write("\033]2;\007\033[23;2t")  # takes the old title back

    def _line(self, reading: Reading) -> str:
        if self._as_json:
            return json_line(reading)
        date_format = DATE_ON_TERMINAL if self._is_terminal else DATE_IN_FILE
        return text_line(reading, date_format, self._bar(reading))

    def _bar(self, reading: Reading) -> str:
        is_wide = shutil.get_terminal_size().columns >= WIDE_COLUMNS
        if not self._is_terminal or not is_wide:
            return ""
        bar = bar_of(reading.charge, self._blocks)
        if os.environ.get("NO_COLOR"):
            return bar
        return f"\033[{COLOURS.get(reading.status, DIM)}m{bar}\033[0m"

    def _write(self, text: str) -> None:
        """Write without a buffer, for at the end something would be left over in one."""
        try:
            os.write(sys.stdout.fileno(), text.encode(self._encoding, "replace"))
            self.works = True
        except BrokenPipeError:
            self.is_unread = True
        except OSError as error:
            if self.works:
                why = f"the log cannot be written ({error.strerror})"
                logger.error("%s; going on without", why)
            self.works = False


class TerminalFormatter(logging.Formatter):
    """Shows failures in red, and dims what is said by the way."""

    LEVEL_COLOURS: ClassVar = {logging.DEBUG: 2, logging.INFO: 2, logging.WARNING: 0}
    RED = 31

    def format(self, record: logging.LogRecord) -> str:
        colour = self.LEVEL_COLOURS.get(record.levelno, self.RED)
        return f"\033[{colour}m{super().format(record)}\033[0m"


def set_up_logger(*, verbose: bool) -> None:
    """Everything but readings goes to stderr."""
    logging.raiseExceptions = False  # a log that cannot be written is no reason to stop
    is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    has_colours = is_terminal and not os.environ.get("NO_COLOR")
    formatter_class = TerminalFormatter if has_colours else logging.Formatter
    date_format = DATE_ON_TERMINAL if is_terminal else DATE_IN_FILE
    handler = logging.StreamHandler()
    handler.setFormatter(formatter_class("%(asctime)s  %(message)s", date_format))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)


# --- How news is told -----------------------------------------------------------------
@dataclass(frozen=True)
class Way:
    """How one kind of news reaches the owner, beside a notification on the desktop."""

    level: int = logging.WARNING  # in the log
    sound: bool = False  # of the notification
    bell: bool = False  # of the terminal, with which tmux marks the window
    priority: str = ""  # on the phone, in ntfy's words; "" where it is not told there
    tag: str = ""  # an emoji of ntfy's


NOT_LOGGED = logging.NOTSET

WAYS: dict[Kind, Way] = {
    "started": Way(priority="low", tag="zap"),
    "step": Way(logging.DEBUG),
    "reached": Way(sound=True, priority="high", tag="dart"),
    "soon": Way(sound=True, priority="high", tag="hourglass"),
    "overdue": Way(sound=True, priority="high", tag="hourglass"),
    "full": Way(sound=True, bell=True, priority="high", tag="battery"),
    "stopped": Way(sound=True, bell=True, priority="high", tag="warning"),
    "paused": Way(),
    "still": Way(priority="default", tag="electric_plug"),
    # Where these two come from, the log says it, too.
    "sign-in": Way(NOT_LOGGED, bell=True, priority="high", tag="rotating_light"),
    "error": Way(NOT_LOGGED, bell=True, priority="high", tag="rotating_light"),
}

NOTIFICATION_LIMIT_S = 10.0  # for a program that shows one, and an address that is told
FIRST_MACOS_WITHOUT_PYNCS_OWN = 16  # as macOS 26 calls itself to older programs


class Desktop:
    """Shows notifications on this computer, with the first program that can."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._is_helplessness_said = False

    def show(self, news: News) -> None:
        for start in (start_pync, start_osascript, start_notify_send):
            if self._has_shown(start, news):
                return
        if not self._is_helplessness_said:
            self._is_helplessness_said = True
            helps = "README.md says what may help"
            logger.info("this machine shows no notifications; %s", helps)

    def _has_shown(
        self, start: Callable[[str, News], subprocess.Popen[bytes]], news: News
    ) -> bool:
        """Whether a program says that it has shown it; one that hangs is ended."""
        try:
            with start(self._title, news) as process:
                try:
                    return process.wait(NOTIFICATION_LIMIT_S) == 0
                finally:
                    process.kill()
        except Exception as problem:  # noqa: BLE001 - pync raises no narrower one
            logger.debug("%s: %s", start.__name__, type(problem).__name__)
            return False


def start_pync(title: str, news: News) -> subprocess.Popen[bytes]:
    """Start terminal-notifier, that on the PATH or the one that pync brings.

    On macOS 16 and newer pync's own says that it has shown what it has not.
    """
    # Imported only here: where it cannot work it raises, and it always starts `which`.
    import pync  # type: ignore[import-untyped]

    is_own = hasattr(pync.Notifier, "app_path")
    if is_own and macos_version() >= FIRST_MACOS_WITHOUT_PYNCS_OWN:
        raise OSError("pync's own terminal-notifier shows nothing here")

    # A notification replaces the one before it of its group.
    options = {"title": title, "group": f"i3charge-{news.kind}"}
    if WAYS[news.kind].sound:
        options["sound"] = "Glass"
    if news.click:
        options["open"] = news.click
    process: subprocess.Popen[bytes] = pync.Notifier.notify(news.message, **options)
    return process


def macos_version() -> int:
    """0 on any other system."""
    import platform  # only here, for a start should be quick

    return int(platform.mac_ver()[0].split(".")[0] or 0)


def start_osascript(title: str, news: News) -> subprocess.Popen[bytes]:
    script = "display notification (item 1 of argv) with title (item 2 of argv)"
    arguments = [news.message, title]
    if WAYS[news.kind].sound:
        script += " sound name (item 3 of argv)"
        arguments.append("Glass")
    lines = ["-e", "on run argv", "-e", script, "-e", "end run"]
    return start_quietly(["osascript", *lines, *arguments])


def start_notify_send(title: str, news: News) -> subprocess.Popen[bytes]:
    return start_quietly(["notify-send", title, news.message])


def start_quietly(command: list[str]) -> subprocess.Popen[bytes]:
    import subprocess  # only here, for a start should be quick

    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


class Outbox:
    """Tells the owner's addresses, and keeps what they have not taken."""

    TRIES_UNANSWERED = 3  # of a message that may have been taken each time

    def __init__(
        self, settings: Settings, memory: Memory, title: str, *, tries_again: bool
    ) -> None:
        urls = {"NTFY_URL": settings.ntfy_url, "WEBHOOK_URL": settings.webhook_url}
        self._urls = {name: url for name, url in urls.items() if url}
        self._memory = memory
        self._title = title
        self._later = "; it will be tried again" if tries_again else ""
        self._problems: dict[str, str] = {}  # what was last said of an address

    @property
    def hosts(self) -> str:
        return ", ".join(map(self._host, self._urls)) or "none"

    def add(self, news: News, reading: Reading | None) -> None:
        """Let a message wait for each address; some kinds of news are for none."""
        if not WAYS[news.kind].priority:
            return
        for name in self._urls:
            message = Message(name, news, made_s=time.time())
            if reading:
                message.charge = reading.charge
                message.predicted = reading.predicted
                message.status = reading.status
            self._memory.outbox.append(message)

    def deliver(self) -> None:
        """Post what is due, to one address after the other."""
        self._give_up_the_old()
        for name in self._urls:
            self._deliver_to(name)

    def say_what_is_left(self) -> None:
        later = " (the next start tries again)" if self._memory.path else ""
        for message in self._memory.outbox:
            if message.address in self._urls:
                host = self._host(message.address)
                logger.error("%s has not been told: %s%s", host, message.summary, later)

    def _host(self, name: str) -> str:
        return urlsplit(self._urls[name]).hostname or ""

    def _give_up_the_old(self) -> None:
        for message in list(self._memory.outbox):
            if message.good_until_s > time.time():
                continue
            self._memory.outbox.remove(message)
            # Of a sign-in, the code has run out, and others follow.
            if message.news.kind != "sign-in":
                logger.error("after a day, no more tries to tell: %s", message.summary)

    def _deliver_to(self, name: str) -> None:
        """Each message waits by itself, but none is sent after one that got no answer."""
        for message in list(self._memory.outbox):
            if message.address != name or not is_due(message, time.time()):
                continue
            try:
                self._post(message)
            except NoAnswer as problem:
                message.unanswered += problem.was_sent
                self._keep(message, str(problem))
                return
            finally:
                self._memory.save()

    def _post(self, message: Message) -> None:
        """NoAnswer where the address does not answer."""
        url = self._urls[message.address]
        render = ntfy_message if message.address == "NTFY_URL" else webhook_message
        body, headers = render(message, self._title)
        answer = send(
            "a notification",
            "POST",
            url,
            auth=None,
            headers=headers,
            body=body,
            timeout_s=(NOTIFICATION_LIMIT_S, NOTIFICATION_LIMIT_S),
        )
        why = refusal_by_address(message.address, answer, url)
        if why:
            self._keep(message, why)
            return
        self._memory.outbox.remove(message)
        self._problems.pop(message.address, None)
        summary = message.summary
        shown = summary if len(summary) <= 40 else f"{summary[:39]}…"
        logger.info("%s was told: %s", answer.host, shown)

    def _keep(self, message: Message, why: str) -> None:
        """Let a message wait once more, for as long as it has waited, or give it up."""
        if message.unanswered >= self.TRIES_UNANSWERED:
            self._memory.outbox.remove(message)
            host = self._host(message.address)
            untold = f"{host} may not have been told: {message.summary}"
            logger.error("%s (%s)", untold, why)
            return

        waited_s = time.time() - message.made_s
        pause_s = min(max(waited_s, A_MINUTE_S), AN_HOUR_S)
        message.next_try_s = time.time() + pause_s
        if self._problems.get(message.address) != why:
            self._problems[message.address] = why
            logger.error("%s%s", why, self._later)


def is_due(message: Message, now_s: float) -> bool:
    """Whether it has waited. A wait of over an hour tells that the clock was set back."""
    return not 0 < message.next_try_s - now_s <= AN_HOUR_S


def ntfy_message(message: Message, title: str) -> tuple[bytes, dict[str, str]]:
    """Make the body and the headers; see https://docs.ntfy.sh/publish/."""
    news = message.news
    way = WAYS[news.kind]
    headers = {"Title": title, "Tags": way.tag, "Priority": way.priority}
    if news.click:
        headers["Click"] = news.click
    return news.message.encode(), headers


def webhook_message(message: Message, title: str) -> tuple[bytes, dict[str, str]]:
    """Make the body and the headers. Receivers ignore what they do not know."""
    said = message.news.message
    text = f"{title}: {said}"
    values = {
        "event": message.news.kind,
        "title": title,
        "message": said,
        "body": said,  # for Apprise API and Bark
        "text": text,  # for Slack, Mattermost and Telegram
        "content": text,  # for Discord
        "charge": message.charge,
        "predicted": message.predicted,
        "status": message.status,
        "time": iso_local(message.made_s),
    }
    return json.dumps(values).encode(), {"Content-Type": "application/json"}


def refusal_by_address(name: str, answer: HttpAnswer, url: str) -> str:
    """Why an address has not taken a message, in a sentence; "" where it has."""
    if is_taken(name, answer):
        return ""
    refused = f"{answer.host} did not accept a notification (HTTP {answer.status})"
    if 300 <= answer.status < 400:
        where = redirect_host(answer) or "another page"
        return f"{refused}: the address leads to {where}, as to a login"
    if answer.status < 300:
        page = "a web page, such as that of a login"
        return f"{refused}: the address does not answer as ntfy, but with {page}"

    parts = re.split("[/?&=:@#]+", f"{url}/{unquote(url)}/{quote(url)}")
    hidden = [url, *(part for part in parts if len(part) > 2)]
    return f"{refused}: {printable(reason_in(answer), hidden)[:60]}"


def is_taken(name: str, answer: HttpAnswer) -> bool:
    """A login page in front of an own server would swallow all messages.

    So ntfy has to name the message that it has taken, and no address may redirect, but
    for Google's Apps Script, which answers so when it has run.
    """
    is_good = 200 <= answer.status < 300
    if name == "NTFY_URL":
        return is_good and bool(text_or_empty(answer.json().get("id")))
    is_google = f".{redirect_host(answer)}".endswith(".googleusercontent.com")
    return is_good or (answer.status in (302, 303) and is_google)


def redirect_host(answer: HttpAnswer) -> str:
    """Where a redirect leads to; "" where it names no host."""
    with suppress(ValueError):
        host = urlsplit(answer.headers.get("Location", "")).hostname or ""
        return host if re.fullmatch("[a-z0-9.-]+", host) else ""
    return ""


def reason_in(answer: HttpAnswer) -> object:
    """Why an address refuses, where such addresses say it, or in a page of theirs."""
    said = answer.json()
    error = said.get("error")
    if isinstance(error, dict):  # where Google has it
        error = error.get("message")
    page = re.sub("<[^>]*>", " ", answer.body.decode("utf-8", "replace"))
    return error or said.get("message") or said.get("description") or page


# --- The loop -------------------------------------------------------------------------
LONGEST_NAP_S = 60.0
FIRST_PAUSE_S = A_MINUTE_S  # after a failure
LEAST_LONGEST_PAUSE_S = 5 * A_MINUTE_S  # where the interval is shorter
TELL_AGAIN_S = A_DAY_S  # of a trouble that goes on
TELL_SIGN_IN_AGAIN_S = 6 * AN_HOUR_S
TELL_AFTER_REFUSED_CODE_S = AN_HOUR_S
OWN_FAULT = "a fault in i3charge itself"


@dataclass
class Loop:
    """Poll, log, save, tell, wait."""

    door: Door
    interval_s: float
    memory: Memory
    watch: ChargeWatch
    log: ChargeLog
    desktop: Desktop
    outbox: Outbox
    once: bool = False
    until_full: bool = False
    reading: Reading | None = None  # the last
    failures: int = 0  # in a row
    next_s: float = 0.0  # when the next poll is due
    fault_due_s: dict[str, float] = field(default_factory=dict)  # when it is said again
    exit_status: int | None = None  # when it is over

    def run(self) -> int:
        """Go on until something ends it; returns the exit status."""
        while True:
            self.guard(self.poll)
            self.guard(self.outbox.deliver)
            if self.exit_status is not None:
                return self.exit_status
            self.wait()

    def guard(self, step: Callable[[], None]) -> bool:
        """Do a step of the round. A fault of ours is said, and ends nothing else."""
        try:
            step()
        except Exception as problem:  # noqa: BLE001 - whatever it is, it may pass
            self.note_fault(problem)
            return False
        return True

    def poll(self) -> None:
        began_s = time.time()
        try:
            reading = self.door.poll()
        except NoReading as problem:
            self.note_failure(problem)
        except NoAnswer as problem:
            self.note_failure(NoReading(str(problem)))
        except SignInRefused as refusal:
            self.exit_status = 1
            logger.error("%s", refusal)
            self.tell_trouble(News("error", str(refusal)))
        else:
            self.note(reading, began_s)

    def note(self, reading: Reading, began_s: float) -> None:
        """Take note of a reading. The next poll is planned before anybody is told."""
        self.watch.forget(reading.taken_s)
        self.reading = held(reading, self.memory.last, self.memory.session)
        self.log.write(self.reading)
        news = self.watch.take(self.reading)
        self.next_s = self.watch.plan_next_poll(self.reading, began_s)
        self.failures = 0
        self.tell(news)
        self.forget_troubles()

        if self.log.is_unread:
            self.exit_status = 0
        elif self.once or (self.until_full and self.reading.status == "full"):
            self.exit_status = 0 if self.log.works and self.memory.is_kept else 1

    def note_failure(self, problem: NoReading) -> None:
        wait_s = problem.wait_s
        if wait_s is None:
            wait_s = self.count_failure()
        self.next_s = time.time() + wait_s
        if self.once:
            self.exit_status = 1

        self.say(problem, wait_s)
        if problem.news:
            self.tell_trouble(problem.news)
        # The first failure may be that of a computer that wakes.
        if self.once or self.failures > 1:
            self.tell_silence()
        if not isinstance(problem, WaitingForOwner):
            self.memory.save()

    def note_fault(self, problem: Exception) -> None:
        """The next poll may be better; one that is planned stays where it is."""
        now_s = time.time()
        pause_s = self.count_failure()
        if self.next_s <= now_s:
            self.next_s = now_s + pause_s
        if self.once:
            self.exit_status = 1

        sentence = fault(problem)
        if now_s >= self.fault_due_s.get(sentence, 0.0):
            self.fault_due_s[sentence] = now_s + pause_s
            logger.error("%s", sentence)
        with suppress(Exception):  # telling can be what is at fault
            self.tell_trouble(News("error", sentence))

    def count_failure(self) -> float:
        """Returns the seconds to the next try."""
        self.failures += 1
        return growing_pause_s(self.failures, self.interval_s)

    def say(self, problem: NoReading, wait_s: float) -> None:
        """Say what is wrong. To wait for the owner is no error."""
        is_waiting = isinstance(problem, WaitingForOwner)
        self.log.set_title("i3: waiting for you" if is_waiting else "i3: no reading")
        sentence = str(problem)
        is_of_code = is_waiting and problem.wait_s is not None
        if not is_of_code and not self.once:
            sentence += f"; next try in {duration(wait_s)}"
        if sentence:
            logger.log(logging.WARNING if is_waiting else logging.ERROR, "%s", sentence)

    def tell(self, news: list[News]) -> None:
        """Save before anybody is told, so that a crash cannot tell it twice."""
        for one in news:
            self.outbox.add(one, self.reading)
        self.memory.save()
        for one in news:
            way = WAYS[one.kind]
            logger.log(way.level, "%s", one.message)
            if way.bell and sys.stderr.isatty():
                print("\a", end="", file=sys.stderr, flush=True)
            self.desktop.show(one)

    def tell_trouble(self, news: News) -> bool:
        """Tell of a trouble, but not at once again while it goes on; returns whether."""
        told_s = self.memory.told_s
        since_s = time.time() - told_s.get(told_as(news), 0.0)
        if 0 <= since_s < self.told_again_after_s(news):
            return False
        told_s[told_as(news)] = time.time()
        self.tell([news])
        return True

    def told_again_after_s(self, news: News) -> float:
        if news.kind != "sign-in":
            return TELL_AGAIN_S
        told_s = self.memory.told_s
        is_refused = told_s.get(CODE_REFUSED, 0.0) > told_s.get(told_as(news), 0.0)
        return TELL_AFTER_REFUSED_CODE_S if is_refused else TELL_SIGN_IN_AGAIN_S

    def tell_silence(self) -> None:
        news = self.watch.silence_news(time.time())
        if news and self.tell_trouble(news):
            logger.error("%s", news.message)

    def forget_troubles(self) -> None:
        """A reading ends BMW's troubles, but not a fault of ours, which comes again."""
        told_s = self.memory.told_s
        over = [trouble for trouble in told_s if not trouble.startswith(OWN_FAULT)]
        for trouble in over:
            del told_s[trouble]
        if over:
            self.memory.save()

    def wait(self) -> None:
        """Sleep in naps until the next poll; where the clock is set back, the naps count."""
        end_if_signalled()
        left_s = self.next_s - time.time()
        may_tell = True
        while left_s > 0:
            nap_s = min(left_s, LONGEST_NAP_S)
            time.sleep(nap_s)
            left_s = min(left_s - nap_s, self.next_s - time.time())
            if left_s > 0 and may_tell:  # what is due now, the next poll tells
                may_tell = self.guard(self.tell_while_waiting)
                left_s = min(left_s, self.next_s - time.time())
                end_if_signalled()

    def tell_while_waiting(self) -> None:
        self.tell_silence()
        self.outbox.deliver()


def end_if_signalled() -> None:
    if SIGNALS:
        sys.exit(128 + SIGNALS[0])


def growing_pause_s(failures: int, interval_s: float) -> float:
    """The pause after so many failures in a row: 1, 2, 4 … minutes, with a limit."""
    longest_s = max(interval_s, LEAST_LONGEST_PAUSE_S)
    return min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 20), longest_s)


def fault(problem: Exception) -> str:
    """A sentence on a fault of our own; its text could hold a secret.

    --verbose shows where it happened, too.
    """
    frames = traceback.extract_tb(problem.__traceback__)
    for frame in frames:
        name = Path(frame.filename).name
        logger.debug("  %s, line %s, in %s", name, frame.lineno, frame.name)
    place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
    what = type(problem).__name__
    return f"{OWN_FAULT}: {what} in {place}; please report it"


# --- The command line -----------------------------------------------------------------
OWN_SETTINGS_PATH = Path(__file__).resolve().with_name(".env")

DESCRIPTION = """\
Log the charge of a BMW i3, and say when it rises and when the car is full.

Each reading is a line on stdout. The news (charging has started, paused or
stopped, 5 % more, full soon, full) shows as a notification on this computer.
All but pauses and the 5 % goes to your phone. It runs until Ctrl-C ends it."""


def manual() -> str:
    """What --help says below the options."""
    return f"""\
settings, in .env beside this file, which wins, or in the environment:
{settings_table(REQUIRED_SETTINGS)}

optional:
{settings_table(OPTIONAL_SETTINGS)}

for the ConnectedDrive portal, which BMW has closed:
{settings_table(PORTAL_SETTINGS)}

files:
  .env             the settings; .env.example is a form for them
  .i3charge.json   beside the settings: the sign-in, the charge, unsent news

exit status:
  0    --once has its reading, --demo is over, or nobody reads the log any more
  1    BMW refuses the sign-in, --once got no reading or could not keep it,
       i3charge is already running, or has a fault of its own
  2    the settings, the options or the files are wrong; a message says which
  129, 130, 143   ended by a closed terminal, Ctrl-C, or a shutdown

examples:
  python i3charge.py --demo                     try it, without a BMW account
  python i3charge.py | tee -a charge.log        keep the readings in a file, too
  python i3charge.py --once --json              one reading, for another program
"""


def settings_table(settings: Mapping[str, str]) -> str:
    return "\n".join(f"  {name:<29}  {what}" for name, what in settings.items())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=manual(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--once", action="store_true", help="take one reading, then end")
    add("--json", action="store_true", help="log one JSON object a line")
    add("--demo", action="store_true", help="log a simulated i3 until it is full")
    add("--env-file", type=Path, metavar="PATH", help="read the settings from PATH")
    add("-v", "--verbose", action="store_true", help="show what BMW answers")
    add("--version", action="version", version=f"i3charge {__version__}")
    return parser.parse_args()


def main() -> int:
    """Returns the exit status."""
    open_closed_streams()
    handle_signals()
    try:
        arguments = parse_arguments()
        set_up_logger(verbose=arguments.verbose)
        if arguments.demo:
            return run_demo(arguments)
        return run_logger(arguments)
    except CannotStart as problem:
        for line in problem.lines:
            logger.error("%s", line)
        return problem.exit_status
    except Exception as problem:  # noqa: BLE001 - no traceback, whatever it is
        logger.critical("%s", fault(problem))
        return 1


def open_closed_streams() -> None:
    """Go on without a stream that was closed before the start, as by `>&-`."""
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")


def handle_signals() -> None:
    """Let a Ctrl-C, a shutdown and a closed terminal end the program.

    What the parent has ignored stays so: nohup leaves SIGHUP to be ignored, and a script
    SIGINT for what it runs in the background.
    """
    # Python complains of the half-made sockets that a Ctrl-C leaves.
    sys.unraisablehook = lambda _: None
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signal_number) != signal.SIG_IGN:
            signal.signal(signal_number, end_with_status)


def end_with_status(signal_number: int, _: object) -> None:
    SIGNALS.append(signal_number)
    end_if_signalled()


def run_logger(arguments: argparse.Namespace) -> int:
    path = settings_path(arguments)
    settings = logger_settings(arguments, path)
    # A pipe, such as a password manager's, has no folder to keep anything in.
    kept_in = memory_path(path if path.is_file() else OWN_SETTINGS_PATH)
    with lock_memory(kept_in) or nullcontext():
        memory = load_memory(kept_in, settings.client_id, settings.vin)
        door = open_door(settings, memory, may_ask_owner=not arguments.once)
        return run(settings, memory, door, "BMW i3", arguments)


def logger_settings(arguments: argparse.Namespace, path: Path) -> Settings:
    found = own_variables(arguments, path)
    first = f"fill in {path}"
    if not path.exists():
        first = "copy .env.example to .env and fill it in"
    # The file wins over the environment, for many desktops export a USERNAME.
    variables = {**os.environ, **found}
    if is_portal(variables):
        closed = "PASSWORD and AUTH_CLIENT_ID are for a portal that BMW has closed"
        first = f"{closed}: fill in CARDATA_CLIENT_ID instead"
    steps = 'README.md has the steps in "Your own car"'
    advice = f"{first}; {steps}; --demo needs no account"
    settings = load_settings(variables, check_names(found), advice, in_file=found)

    if urlsplit(settings.login_url).hostname == urlsplit(PORTAL_LOGIN_URL).hostname:
        where = 'README.md describes the open one in "Your own car"'
        logger.warning("BMW has closed this door, the ConnectedDrive portal; %s", where)
    return settings


def settings_path(arguments: argparse.Namespace) -> Path:
    if arguments.env_file:
        return Path(os.path.abspath(arguments.env_file))
    return OWN_SETTINGS_PATH


def own_variables(arguments: argparse.Namespace, path: Path) -> dict[str, str]:
    """Those of the settings file; none where there is no `.env`."""
    if not arguments.env_file and not path.exists():
        return {}
    return read_settings_file(path)


def run(
    settings: Settings,
    memory: Memory,
    door: Door,
    title: str,
    arguments: argparse.Namespace,
) -> int:
    """Put the parts together, and let them run; returns the exit status."""
    tries_again = not arguments.once and not arguments.demo
    outbox = Outbox(settings, memory, title, tries_again=tries_again)
    log = ChargeLog(as_json=arguments.json)
    loop = Loop(
        door=door,
        interval_s=settings.interval_s,
        memory=memory,
        watch=ChargeWatch(memory, settings.notify_at, settings.interval_s),
        log=log,
        desktop=Desktop(title),
        outbox=outbox,
        once=arguments.once,
        until_full=arguments.demo,
    )
    if not arguments.once:
        pace = f"every {duration(settings.interval_s)} and when news is due"
        if arguments.demo:
            pace = "whose two hours pass in 15 seconds"
        logger.info("%s, %s. Phone: %s", door.name, pace, outbox.hosts)
    try:
        return loop.run()
    finally:
        outbox.say_what_is_left()
        log.close()


# --- The demo -------------------------------------------------------------------------
def run_demo(arguments: argparse.Namespace) -> int:
    """Log a simulated i3, with the owner's own addresses, and without a memory."""
    found = own_variables(arguments, settings_path(arguments))
    settings = demo_settings({**os.environ, **found}, check_names(found))
    status = run(settings, Memory(), SimulatedCar(), "BMW i3 (demo)", arguments)
    if status == 0 and not arguments.once:
        logger.info('That was a simulation. Next: README.md, "Your own car".')
    return status


def demo_settings(variables: Mapping[str, str], problems: list[str]) -> Settings:
    checked = CheckedVariables(variables, problems)
    settings = with_news(Settings(interval_s=0.57), checked)
    if checked.problems:
        raise CannotStart(checked.problems)
    return settings


class SimulatedCar:
    """A door to an i3 that charges from 61 % to full, a little more at every poll."""

    name = "simulated i3"

    MINUTES_A_PERCENT = 3.3  # as at 7 kW

    def __init__(self) -> None:
        story: list[tuple[Status, float]] = [("plugged in", 61.0)]
        story += [("charging", 61 + 1.5 * step) for step in range(26)]
        self._story = iter(story)
        minutes = (100 - 61) * self.MINUTES_A_PERCENT
        self._full_at_s = time.time() + minutes * A_MINUTE_S

    def poll(self) -> Reading:
        status, charge = next(self._story, ("full", 100.0))
        now_s = time.time()
        return Reading(
            charge=charge,
            taken_s=now_s,
            status=status,
            plugged=True,
            range=round(charge * 1.6, 1),
            range_unit="km",
            full_at_s=self._full_at(charge, now_s) if status == "charging" else 0.0,
            last_word_s=now_s,
            car_said=charge,
            car_said_s=now_s,
        )

    def _full_at(self, charge: float, now_s: float) -> float:
        """A time of day that stands still, until the end is near."""
        left_minutes = (100 - charge) * self.MINUTES_A_PERCENT
        if left_minutes <= SOON_MINUTES:
            return now_s + left_minutes * A_MINUTE_S
        return self._full_at_s


if __name__ == "__main__":
    sys.exit(main())
