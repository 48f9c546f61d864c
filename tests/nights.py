"""How late an owner hears of a charge: simulated nights, with an i3, a CarData and clocks that
are simulated, too. By hand: python tests/nights.py

Compared are i3charge, with its real loop and its real door, and polls at fixed times. Where
nothing else is said, a moment is in seconds since the start of the simulation, which is when
the logger starts, and a charge is in percent. The facts on BMW and the car without another
source are from part 2 of the project's notes on BMW's API.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # by hand, nobody else does

from fake_cardata import HEADER, HV_STATUS, MINUTES, PLUG, PREDICTED, RANGE, STATUS

import i3charge

MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S

Kind = Literal["step", "soon", "full", "stopped", "error"]
State = Literal["unplugged", "charging", "ended", "full"]


class Told(NamedTuple):
    """A notification to the owner."""

    kind: Kind
    at_s: float
    charge: float  # as it was shown then


# --- The clock ------------------------------------------------------------------------------


class Over(BaseException):
    """The simulation has reached its end. No Exception, for those a logger may survive."""


class Clock:
    """Stands in for the module `time`: sleeping moves it, and nothing else does."""

    BEGINS = datetime(2027, 1, 15, 18, tzinfo=timezone.utc)

    def __init__(self, ends_s: float = math.inf) -> None:
        self.now_s = 0.0
        self.ends_s = ends_s

    def time(self) -> float:
        """Seconds since 1970."""
        return self.BEGINS.timestamp() + self.now_s

    def monotonic(self) -> float:
        return self.time()

    def sleep(self, seconds: float) -> None:
        """Raises Over where that is beyond the end."""
        self.now_s += seconds
        if self.now_s >= self.ends_s:
            raise Over

    def moment(self, at_s: float) -> datetime:
        return self.BEGINS + timedelta(seconds=at_s)


# --- The car --------------------------------------------------------------------------------


class Night(NamedTuple):
    """A car is plugged in, and charges at once."""

    kw: float  # that reach the battery while it is not nearly full
    from_percent: float = 30.0
    begins_s: float = HOUR_S
    station_stops_at: float | None = None  # percent
    unplugged_s: float | None = None


class Sent(NamedTuple):
    """What the car says by itself: when a charge begins and ends, and when it is unplugged."""

    at_s: float
    state: State
    charge: float


class Car:
    """A BMW i3 (120 Ah) through a night. All of it is computed; nothing here changes."""

    BATTERY_KWH = 37.9  # that can be used, of 42.2: BMW's data sheet of 2018
    # The power falls from here on, in a straight line over the percents, to a quarter at 100 %:
    # a simplification of ours.
    TAPERS_FROM = 90.0
    TAPER = 0.75 / (100 - TAPERS_FROM)  # of the power, per percent
    SWITCHED_OFF_S = -8.0 * HOUR_S  # after the drive before the night

    def __init__(self, night: Night) -> None:
        self.night = night
        self._percent_a_second = night.kw / self.BATTERY_KWH * 100 / HOUR_S
        self.begins_s = night.begins_s
        target = 100.0 if night.station_stops_at is None else night.station_stops_at
        self.ends_s = self._reaches_s(target)
        if night.unplugged_s is not None and night.unplugged_s < self.ends_s:
            self.ends_s = night.unplugged_s
            target = self._percent(
                self._seconds(night.from_percent) + self.ends_s - self.begins_s
            )
        self.end_charge = target
        moments = {self.begins_s, self.ends_s, night.unplugged_s or self.ends_s}
        self.sent = [
            Sent(at_s, self.state_at(at_s), self.charge_at(at_s))
            for at_s in (self.SWITCHED_OFF_S, *sorted(moments))
        ]

    def _seconds(self, percent: float) -> float:
        """How long an empty battery takes to `percent`.

        Above 90 %, x more percent: dx/dt = rate * (1 - TAPER * x), which has this integral.
        """
        above = max(0.0, percent - self.TAPERS_FROM)
        constant = min(percent, self.TAPERS_FROM)
        return (
            constant - math.log(1 - self.TAPER * above) / self.TAPER
        ) / self._percent_a_second

    def _percent(self, seconds: float) -> float:
        """The inverse of `_seconds`."""
        percent = seconds * self._percent_a_second
        above = max(0.0, percent - self.TAPERS_FROM)
        return (
            min(percent, self.TAPERS_FROM)
            + (1 - math.exp(-self.TAPER * above)) / self.TAPER
        )

    def _reaches_s(self, percent: float) -> float:
        """When it would, if nothing stopped it."""
        return (
            self.begins_s
            + self._seconds(percent)
            - self._seconds(self.night.from_percent)
        )

    def charge_at(self, at_s: float) -> float:
        if at_s <= self.begins_s:
            return self.night.from_percent
        if at_s >= self.ends_s:
            return self.end_charge
        return self._percent(
            self._seconds(self.night.from_percent) + at_s - self.begins_s
        )

    def state_at(self, at_s: float) -> State:
        unplugged_s = self.night.unplugged_s
        if at_s < self.begins_s or (unplugged_s is not None and at_s >= unplugged_s):
            return "unplugged"
        if at_s < self.ends_s:
            return "charging"
        return "full" if self.end_charge >= 100 else "ended"

    def time_of(self, percent: float) -> float | None:
        """When the charge reaches `percent`; None where it never does in this night."""
        if self.night.from_percent <= percent <= self.end_charge:
            return self._reaches_s(percent)
        return None

    def seconds_to_full(self, at_s: float) -> float | None:
        """As the car expects, which knows nothing of a stop by the station."""
        return (
            self._reaches_s(100) - at_s if self.state_at(at_s) == "charging" else None
        )

    def soon_s(self, left_s: float) -> float | None:
        """When `left_s` were left to a full battery; None if it was stopped before."""
        at_s = max(self.begins_s, self._reaches_s(100) - left_s)
        return at_s if at_s < self.ends_s else None


# --- BMW ------------------------------------------------------------------------------------

STATUS_WORDS: dict[State, tuple[str, str]] = {  # charging.status, charging.hvStatus
    "unplugged": ("NOCHARGING", "INVALID"),
    "charging": ("CHARGINGACTIVE", "CHARGING"),
    "ended": ("CHARGINGENDED", "FINISHED_NOT_FULL"),
    "full": ("CHARGINGENDED", "FINISHED_FULLY_CHARGED"),
}


def whole(number: float) -> str:
    """Rounded down, but for what arithmetic has lost of a whole number."""
    return str(math.floor(number + 1e-9))


class Bmw:
    """Stands in for `i3charge.Http`: BMW's sign-in and CarData, with its quota and this `car`."""

    QUOTA = 50  # requests to the API in any 24 hours, refused ones too
    REQUEST_S = 1.0
    MINUTES_EVERY_S = 10 * MINUTE_S  # that the car sends the time to full anew
    KM_A_PERCENT = 2.6  # 260 km in all: BMW's data sheet of 2018

    def __init__(self, car: Car, clock: Clock, late_s: float = 60.0) -> None:
        """What the car sends is shown `late_s` later."""
        self.car = car
        self.clock = clock
        self.late_s = late_s
        self.requests_s: list[float] = []  # to the API, by the clock's now_s
        self.over_quota = 0  # of them

    def send(self, what: str, method: str, url: str, **_: Any) -> i3charge.Answer:
        self.clock.sleep(self.REQUEST_S)
        status, body = self._answer(method, url)
        return i3charge.Answer(what, "simulated", status, {}, json.dumps(body).encode())

    def _answer(self, method: str, url: str) -> tuple[int, dict[str, Any]]:
        if "/oauth/" in url:
            tokens = {"access_token": "a", "refresh_token": "r", "id_token": "i"}
            return 200, {**tokens, "token_type": "Bearer", "expires_in": 3599}
        now_s = self.clock.now_s
        self.requests_s.append(now_s)
        if sum(now_s - DAY_S < at_s for at_s in self.requests_s) > self.QUOTA:
            self.over_quota += 1
            error = {
                "exveErrorRef": "x",
                "exveErrorMsg": "API rate limit reached",
                "exveNote": "",
            }
            return 403, {"exveErrorId": "CU-429", **error}
        if url.endswith("/telematicData"):
            return 200, self.telematic_data(now_s)
        if url.endswith("/containers"):
            if method == "POST":
                return 201, {"containerId": "S000000000000", "state": "ACTIVE"}
            return 200, {"containers": []}
        return 404, {}

    def telematic_data(self, now_s: float) -> dict[str, Any]:
        """The answer to a fetch: the car's own stamps end in .000Z, BMW's are those of now."""
        seen_s = now_s - self.late_s
        sent_s, state, charge = [sent for sent in self.car.sent if sent.at_s <= seen_s][
            -1
        ]
        predicted = self.car.charge_at(now_s) if state == "charging" else charge
        car_said = self._stamp(sent_s)
        bmw_says = f"{self.clock.moment(now_s):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
        status_word, hv_word = STATUS_WORDS[state]
        plug_word = "DISCONNECTED" if state == "unplugged" else "CONNECTED"
        plug_said = self._stamp(sent_s if state == "unplugged" else self.car.begins_s)
        said: dict[str, tuple[str, str | None, str]] = {
            HEADER: (whole(charge), "%", car_said),
            PREDICTED: (whole(predicted), "%", bmw_says),
            STATUS: (status_word, None, car_said),
            HV_STATUS: (hv_word, None, bmw_says),
            RANGE: (whole(charge * self.KM_A_PERCENT), None, car_said),
            PLUG: (plug_word, None, plug_said),
        }
        # What the car has said last of the minutes stays when the charge has ended.
        into_s = min(seen_s, self.car.ends_s - 1) - self.car.begins_s
        minutes_s = (
            self.car.begins_s + into_s // self.MINUTES_EVERY_S * self.MINUTES_EVERY_S
        )
        left_s = self.car.seconds_to_full(minutes_s)
        if left_s is not None:
            minutes = math.ceil(left_s / MINUTE_S - 1e-9)
            said[MINUTES] = (str(minutes), "min", self._stamp(minutes_s))
        entries = {
            name: {"value": value, "unit": unit, "timestamp": timestamp}
            for name, (value, unit, timestamp) in said.items()
        }
        return {"telematicData": entries}

    def _stamp(self, sent_s: float) -> str:
        return f"{self.clock.moment(sent_s):%Y-%m-%dT%H:%M:%S}.000Z"


def busiest_day(requests_s: Iterable[float]) -> int:
    """The most requests in any 24 hours."""
    ordered = sorted(requests_s)
    return max(
        (bisect_left(ordered, at_s + DAY_S) - n for n, at_s in enumerate(ordered)),
        default=0,
    )


# --- Polls at fixed times, to compare with --------------------------------------------------

STEP_PERCENT = 5
SOON_S = 10 * MINUTE_S
AFTERWARDS_S = (
    DAY_S  # that a simulation goes on after the charge: for false alarms, and quota
)


def fixed(
    night: Night, every_s: float, first_s: float = 0.0, bmw: Bmw | None = None
) -> list[Told]:
    """What an owner is told from polls at `first_s` and every `every_s` after it.

    Every 30 minutes is what evcc does, every 60 what the Home Assistant integration does. A
    `bmw` is given to have its requests counted; it has this night's car.
    """
    bmw = bmw or Bmw(Car(night), Clock())
    told: list[Told] = []
    lowest, before, soon_told = math.inf, "", False
    due_s = first_s
    while due_s < bmw.car.ends_s + AFTERWARDS_S:
        bmw.clock.sleep(max(0.0, due_s - bmw.clock.now_s))
        due_s += every_s
        answer = bmw.send("the car's status", "GET", "https://simulated/telematicData")
        if answer.status != 200:
            continue
        now_s = bmw.clock.now_s
        data = answer.json()["telematicData"]
        hv_word = data[HV_STATUS]["value"]
        charging = hv_word == "CHARGING"
        charge = float(data[PREDICTED if charging else HEADER]["value"])
        left_s = math.inf
        if charging and MINUTES in data:
            said = datetime.fromisoformat(
                data[MINUTES]["timestamp"].replace("Z", "+00:00")
            )
            left_s = (said - bmw.clock.moment(now_s)).total_seconds()
            left_s += int(data[MINUTES]["value"]) * MINUTE_S
        kinds: list[Kind] = []
        if hv_word == "FINISHED_FULLY_CHARGED" and before != hv_word:
            kinds = ["full"]
        elif before == "CHARGING" and not charging:
            kinds = ["stopped"]
        else:
            if charge - lowest >= STEP_PERCENT:
                kinds.append("step")
            if left_s <= SOON_S and not soon_told:
                kinds.append("soon")
                soon_told = True
        told += [Told(kind, now_s, charge) for kind in kinds]
        lowest = charge if kinds else min(lowest, charge)
        before = hv_word
    return told


# --- How late that was ----------------------------------------------------------------------


class Lateness(NamedTuple):
    """Of one kind of news, over one or more nights; a negative one is early."""

    median_s: float | None  # None where none was told that was due
    worst_s: float | None  # the farthest from 0
    told: int
    due: int


def late_s(car: Car, told: Sequence[Told]) -> Iterator[tuple[Kind, float]]:
    """How late each piece of news came that was due, and came for the first time."""
    due_s: dict[Kind, float | None] = {
        "soon": car.soon_s(SOON_S),
        "full": car.ends_s if car.end_charge >= 100 else None,
        "stopped": car.ends_s if car.end_charge < 100 else None,
    }
    level = car.night.from_percent  # that the owner knows of
    for kind, at_s, charge in told:
        if kind == "error":
            continue
        true_s = (
            car.time_of(level + STEP_PERCENT)
            if kind == "step"
            else due_s.pop(kind, None)
        )
        if true_s is not None:
            yield kind, at_s - true_s
        level = charge


def lateness(nights: Iterable[tuple[Car, Sequence[Told]]]) -> dict[Kind, Lateness]:
    """Of steps, "soon", "full" and "stopped", over all the nights together.

    A step is late by the time since the charge was 5 % above the level that was told before.
    Where the polls are too far apart for every step, fewer are told than are due. The last 5 %
    to a full battery are due, too, though "full" is told in their place.
    """
    kinds: tuple[Kind, ...] = ("step", "soon", "full", "stopped")
    late: dict[Kind, list[float]] = {kind: [] for kind in kinds}
    count: dict[Kind, int] = dict.fromkeys(kinds, 0)
    due = dict(count)
    for car, told in nights:
        for kind, seconds in late_s(car, told):
            late[kind].append(seconds)
        for kind in kinds:
            count[kind] += sum(news.kind == kind for news in told)
        due["step"] += math.floor(
            (car.end_charge - car.night.from_percent) / STEP_PERCENT + 1e-9
        )
        due["soon"] += car.soon_s(SOON_S) is not None
        due["full" if car.end_charge >= 100 else "stopped"] += 1
    return {
        kind: Lateness(
            statistics.median(late[kind]) if late[kind] else None,
            max(late[kind], key=abs, default=None),
            count[kind],
            due[kind],
        )
        for kind in kinds
    }


# --- The nights, and the table --------------------------------------------------------------

NIGHTS: dict[str, Night] = {
    "2.3 kW": Night(2.3),
    "7.4 kW": Night(7.4),
    "11 kW": Night(11),
    "50 kW": Night(50),
    "11 kW, stopped at 70 %": Night(11, station_stops_at=70),
    "11 kW, after 23 hours": Night(11, begins_s=23 * HOUR_S),
    "11 kW, after 30 hours": Night(11, begins_s=30 * HOUR_S),
}
# Each night is played with the charge beginning so much later. These fall evenly on an interval
# of 30, of 40 and of 60 minutes (313 was found by a search), and none on a poll.
OFFSETS_S = [37 + n * 313.0 for n in range(24)]
FIXED_MIN = (30, 60)
# In memory, where there is such a place: i3charge saves its file with every request.
FOLDERS = "/dev/shm" if Path("/dev/shm").is_dir() else None


def later(night: Night, offset_s: float) -> Night:
    unplugged_s = None if night.unplugged_s is None else night.unplugged_s + offset_s
    return night._replace(begins_s=night.begins_s + offset_s, unplugged_s=unplugged_s)


def simulate(night: Night, every_min: int | None = None) -> tuple[Bmw, list[Told]]:
    """One night with polls every so many minutes, or with i3charge; its BMW has the car."""
    clock = Clock()
    bmw = Bmw(Car(night), clock)
    if every_min is not None:
        return bmw, fixed(night, every_min * MINUTE_S, bmw=bmw)
    until_s = bmw.car.ends_s + AFTERWARDS_S
    with tempfile.TemporaryDirectory(dir=FOLDERS) as folder:
        return bmw, play(night, clock, bmw, Path(folder), None, until_s)


def cell(late: Lateness, nights: int) -> str:
    """In minutes, median / worst; then how many were told a night, of those that were due."""
    text = "-"
    if late.median_s is not None and late.worst_s is not None:
        text = f"{late.median_s / MINUTE_S:.1f} / {late.worst_s / MINUTE_S:.1f}"
    if late.told == late.due:
        return text
    return f"{text} ({late.told / nights:.3g} of {late.due / nights:.3g})"


def table() -> None:
    """In Markdown: how late each kind of news is, and the requests in the busiest 24 hours."""
    logging.getLogger("i3charge").addHandler(
        logging.NullHandler()
    )  # what it tells is counted here
    print("| night | polls | steps | soon | full | stopped | requests in 24 h |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, night in NIGHTS.items():
        for every_min in (None, *FIXED_MIN):
            played = [
                simulate(later(night, offset_s), every_min) for offset_s in OFFSETS_S
            ]
            late = lateness((bmw.car, told) for bmw, told in played)
            cells = [cell(late[kind], len(played)) for kind in late]
            busiest = max(busiest_day(bmw.requests_s) for bmw, _ in played)
            polls = "i3charge" if every_min is None else f"fixed, {every_min} min"
            print(f"| {name} | {polls} | {' | '.join(cells)} | {busiest} |", flush=True)


# --- The contact with i3charge: all of it is here -------------------------------------------


class Owner:
    """Stands in for the log and the desktop, and hears what there is to tell."""

    works, unread = True, False  # the log

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._charge = math.nan
        self.told: list[Told] = []

    def write(self, reading: i3charge.Reading, now: datetime) -> None:
        self._charge = reading.charge

    def title(self, text: str) -> None:
        """Of a terminal, which there is none of."""

    def show(self, message: str, **_: object) -> None:
        beginnings: dict[str, Kind] = {
            "Fully charged": "full",
            "Full in": "soon",
            "Charging stopped": "stopped",
        }
        kinds = (
            kind for begins, kind in beginnings.items() if message.startswith(begins)
        )
        kind = next(kinds, "step" if " charged" in message else "error")
        self.told.append(Told(kind, self._clock.now_s, self._charge))


def play(
    night: Night,
    clock: Clock,
    bmw: Bmw,
    folder: Path,
    interval_ms: int | None,
    until_s: float,
) -> list[Told]:
    """What an owner is told by i3charge, with its own LOG_INTERVAL where there is no other.

    It starts signed in, but without a container, and keeps its file in `folder`. The `night`
    is that of the `bmw`'s car.
    """
    variables = {
        "CARDATA_CLIENT_ID": "simulated-client-id",
        "VEHICLE_IDENTIFICATION_NUMBER": "WBY00000000000000",
        "LOG_INTERVAL": "" if interval_ms is None else str(interval_ms),
    }
    file = Path(folder, ".i3charge.json")
    file.write_text(json.dumps({"CarData simulated-client-id": {"refresh_token": "r"}}))
    owner: Any = Owner(clock)
    http: Any = bmw
    clock.ends_s = until_s
    with mock.patch.object(i3charge, "time", clock), mock.patch("os.fsync"):
        settings = i3charge.Settings(variables)
        store = i3charge.Store(file)
        door = i3charge.CarData(settings, http, store, attended=False)
        settings.check(hint="")
        phone = i3charge.Phone(settings, http, "")
        watch = i3charge.ChargeWatch()
        store.things["car"] = watch
        try:
            i3charge.run(door, store, watch, owner, owner, phone)
        except Over:
            pass
        else:
            raise AssertionError("i3charge has ended before the night")
    told: list[Told] = owner.told
    return told


if __name__ == "__main__":
    table()
