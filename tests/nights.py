"""How late an owner hears of a charge: nights with an i3, a CarData and a clock that are
simulated, and with the real loop and the real door. By hand: python tests/nights.py

Where nothing else is said, a moment is in seconds since the start of the simulation, which
is when the logger starts, and a charge is in percent. A bare i3 has, as some owners' cars,
no prediction and no hvStatus, and says once, when a charge starts, how long it will take.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # by hand, nobody else does

from conftest import Clock
from fake_cardata import HEADER, HV_STATUS, MINUTES, PLUG, PREDICTED, RANGE, STATUS

import i3charge

MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S

State = Literal["unplugged", "charging", "ended", "full"]


class Told(NamedTuple):
    """A notification to the owner."""

    kind: i3charge.Kind
    at_s: float
    charge: float  # as it was shown then


BEGINS = datetime(2027, 1, 15, 18, tzinfo=timezone.utc)


def moment(at_s: float) -> datetime:
    return BEGINS + timedelta(seconds=at_s)


# --- The car --------------------------------------------------------------------------------


class Night(NamedTuple):
    """A car is plugged in, and charges at once."""

    kw: float  # that reach the battery while it is not nearly full
    bare: bool = False  # the car
    tapers: bool = True  # the power falls above 90 %
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
    # The power falls from here on, in a straight line over the percents, to a quarter at
    # 100 %: a simplification of ours.
    TAPERS_FROM = 90.0
    SWITCHED_OFF_S = -8.0 * HOUR_S  # after the drive before the night

    def __init__(self, night: Night) -> None:
        self.night = night
        self._percent_a_second = night.kw / self.BATTERY_KWH * 100 / HOUR_S
        # Of the power, per percent; as good as none where it does not fall.
        self._taper = (0.75 if night.tapers else 1e-9) / (100 - self.TAPERS_FROM)
        self.begins_s = night.begins_s
        target = 100.0 if night.station_stops_at is None else night.station_stops_at
        self.ends_s = self._reaches_s(target)
        if night.unplugged_s is not None and night.unplugged_s < self.ends_s:
            self.ends_s = night.unplugged_s
            target = self._percent(self._seconds(night.from_percent) + self.ends_s - self.begins_s)
        self.end_charge = target
        moments = {self.begins_s, self.ends_s, night.unplugged_s or self.ends_s}
        self.sent = [
            Sent(at_s, self.state_at(at_s), self.charge_at(at_s))
            for at_s in (self.SWITCHED_OFF_S, *sorted(moments))
        ]

    def _seconds(self, percent: float) -> float:
        """How long an empty battery takes to `percent`.

        Above 90 %, x more percent: dx/dt = rate * (1 - taper * x), which has this integral.
        """
        above = max(0.0, percent - self.TAPERS_FROM)
        constant = min(percent, self.TAPERS_FROM)
        return (constant - math.log(1 - self._taper * above) / self._taper) / self._percent_a_second

    def _percent(self, seconds: float) -> float:
        """The inverse of `_seconds`."""
        percent = seconds * self._percent_a_second
        above = max(0.0, percent - self.TAPERS_FROM)
        return min(percent, self.TAPERS_FROM) + (1 - math.exp(-self._taper * above)) / self._taper

    def _reaches_s(self, percent: float) -> float:
        """When it would, if nothing stopped it."""
        return self.begins_s + self._seconds(percent) - self._seconds(self.night.from_percent)

    def charge_at(self, at_s: float) -> float:
        if at_s <= self.begins_s:
            return self.night.from_percent
        if at_s >= self.ends_s:
            return self.end_charge
        return self._percent(self._seconds(self.night.from_percent) + at_s - self.begins_s)

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
        return self._reaches_s(100) - at_s if self.state_at(at_s) == "charging" else None

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
    """Stands in for `i3charge.Http`: BMW's sign-in and CarData, with this `car`."""

    QUOTA = 50  # requests to the API in any 24 hours, refused ones too
    REQUEST_S = 1.0
    MINUTES_EVERY_S = 10 * MINUTE_S  # that a car that is not bare sends them anew
    KM_A_PERCENT = 2.6  # 260 km in all: BMW's data sheet of 2018

    def __init__(self, car: Car, clock: Clock, late_s: float = 60.0) -> None:
        """What the car sends is shown `late_s` later."""
        self.car = car
        self.clock = clock
        self.late_s = late_s
        self.requests_s: list[float] = []  # to the API
        self.over_quota = 0  # of them

    def now_s(self) -> float:
        return self.clock.time() - BEGINS.timestamp()

    def send(self, request: i3charge.Request) -> i3charge.HttpAnswer:
        self.clock.sleep(self.REQUEST_S)
        status, body = self._answer(request.method, request.url)
        data = json.dumps(body).encode()
        return i3charge.HttpAnswer(request.what, "simulated", status, {}, data)

    def _answer(self, method: str, url: str) -> tuple[int, dict[str, Any]]:
        if "/oauth/" in url:
            return 200, {"access_token": "a", "refresh_token": "r", "expires_in": 3599}
        now_s = self.now_s()
        self.requests_s.append(now_s)
        if sum(now_s - DAY_S < at_s for at_s in self.requests_s) > self.QUOTA:
            self.over_quota += 1
            return 403, {"exveErrorId": "CU-429", "exveErrorMsg": "rate limit reached"}
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
        sent_s, state, charge = [sent for sent in self.car.sent if sent.at_s <= seen_s][-1]
        predicted = self.car.charge_at(now_s) if state == "charging" else charge
        car_said = self._stamp(sent_s)
        bmw_says = f"{moment(now_s):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
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
        minutes_s = self.car.begins_s + into_s // self.MINUTES_EVERY_S * self.MINUTES_EVERY_S
        if self.car.night.bare:
            minutes_s = self.car.begins_s
        left_s = self.car.seconds_to_full(minutes_s)
        if left_s is not None:
            minutes = math.ceil(left_s / MINUTE_S - 1e-9)
            said[MINUTES] = (str(minutes), "min", self._stamp(minutes_s))
        if self.car.night.bare:
            del said[PREDICTED], said[HV_STATUS]
        entries = {
            name: {"value": value, "unit": unit, "timestamp": timestamp}
            for name, (value, unit, timestamp) in said.items()
        }
        return {"telematicData": entries}

    def _stamp(self, sent_s: float) -> str:
        return f"{moment(sent_s):%Y-%m-%dT%H:%M:%S}.000Z"


def busiest_day(requests_s: Iterable[float]) -> int:
    """The most requests in any 24 hours."""
    ordered = sorted(requests_s)
    return max(
        (bisect_left(ordered, at_s + DAY_S) - n for n, at_s in enumerate(ordered)), default=0
    )


SOON_S = 10 * MINUTE_S
STEP_PERCENT = 5
AFTERWARDS_S = DAY_S  # that a simulation goes on after the charge: false alarms, quota


# --- How late that was ----------------------------------------------------------------------


class Lateness(NamedTuple):
    """Of one kind of news, over one or more nights; a negative one is early."""

    median_s: float | None  # None where none was told that was due
    worst_s: float | None  # the farthest from 0
    told: int
    due: int


def late_s(car: Car, told: Sequence[Told]) -> Iterator[tuple[i3charge.Kind, float]]:
    """How late each piece of news came that was due, and came for the first time."""
    due_s: dict[i3charge.Kind, float | None] = {
        "soon": car.soon_s(SOON_S),
        "full": car.ends_s if car.end_charge >= 100 else None,
        "stopped": car.ends_s if car.end_charge < 100 else None,
    }
    level = car.night.from_percent  # that the owner knows of
    for kind, at_s, charge in told:
        if kind not in ("step", *due_s):
            level = charge
            continue
        true_s = car.time_of(level + STEP_PERCENT) if kind == "step" else due_s.pop(kind, None)
        if true_s is not None:
            yield kind, at_s - true_s
        level = charge


def lateness(nights: Iterable[tuple[Car, Sequence[Told]]]) -> dict[i3charge.Kind, Lateness]:
    """Of steps, "soon", "full" and "stopped", over all the nights together.

    A step is late by the time since the charge was 5 % above the level that was told before.
    Where the polls are too far apart for every step, fewer are told than are due. The last 5 %
    to a full battery are due, too, though "full" is told in their place.
    """
    kinds: tuple[i3charge.Kind, ...] = ("step", "soon", "full", "stopped")
    late: dict[i3charge.Kind, list[float]] = {kind: [] for kind in kinds}
    count: dict[i3charge.Kind, int] = dict.fromkeys(kinds, 0)
    due = dict(count)
    for car, told in nights:
        for kind, seconds in late_s(car, told):
            late[kind].append(seconds)
        for kind in kinds:
            count[kind] += sum(news.kind == kind for news in told)
        due["step"] += math.floor((car.end_charge - car.night.from_percent) / STEP_PERCENT + 1e-9)
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


# --- The contact with i3charge --------------------------------------------------------------


class Owner:
    """Stands in for the log and the desktop, and hears what there is to tell."""

    works, is_unread = True, False  # the log

    def __init__(self, bmw: Bmw) -> None:
        self._bmw = bmw
        self._charge = math.nan
        self.told: list[Told] = []

    def write(self, reading: i3charge.Reading, now: datetime) -> None:
        self._charge = reading.charge

    def set_title(self, text: str) -> None:
        """Of a terminal, which there is none of."""

    def show(self, news: i3charge.News) -> None:
        self.told.append(Told(news.kind, self._bmw.now_s(), self._charge))


def play(bmw: Bmw) -> list[Told]:
    """What an owner is told by i3charge, which starts signed in, but without a container."""
    variables = {
        "CARDATA_CLIENT_ID": "simulated-client-id",
        "VEHICLE_IDENTIFICATION_NUMBER": "WBY00000000000000",
    }
    owner: Any = Owner(bmw)
    http: Any = bmw
    with mock.patch.object(i3charge, "time", bmw.clock):
        settings = i3charge.load_settings(variables, [], "")
        memory = i3charge.Memory(sign_in=i3charge.SignIn(refresh_token="r"))
        loop = i3charge.Loop(
            door=i3charge.CarData(settings, http, memory, is_attended=False),
            interval_s=settings.interval_s,
            memory=memory,
            watch=i3charge.ChargeWatch(memory, 0, settings.interval_s),
            log=owner,
            desktop=owner,
            outbox=i3charge.Outbox(settings, http, memory, ""),
        )
        with suppress(Clock.Over):
            loop.run()
    told: list[Told] = owner.told
    return told


# --- The nights, and the table --------------------------------------------------------------

NIGHTS: dict[str, Night] = {
    "2.3 kW": Night(2.3),
    "7.4 kW": Night(7.4),
    "11 kW": Night(11),
    "50 kW": Night(50),
    "11 kW, even to the end": Night(11, tapers=False),
    "11 kW, stopped at 70 %": Night(11, station_stops_at=70),
    "11 kW, after 23 hours": Night(11, begins_s=23 * HOUR_S),
    "bare, 2.3 kW": Night(2.3, bare=True),
    "bare, 7.4 kW": Night(7.4, bare=True),
    "bare, 11 kW": Night(11, bare=True),
    "bare, 50 kW": Night(50, bare=True),
    "bare, 11 kW, even to the end": Night(11, bare=True, tapers=False),
    "bare, 11 kW, stopped at 70 %": Night(11, bare=True, station_stops_at=70),
}
# Each night is played with the charge beginning so much later. These fall evenly on an
# interval of 40 minutes (313 was found by a search), and none on a poll.
OFFSETS_S = [37 + n * 313.0 for n in range(24)]


def simulate(night: Night, offset_s: float) -> tuple[Bmw, list[Told]]:
    """One night, and the day after it; its BMW has the car."""
    car = Car(night._replace(begins_s=night.begins_s + offset_s))
    clock = Clock(BEGINS.timestamp(), moment(car.ends_s + AFTERWARDS_S).timestamp())
    bmw = Bmw(car, clock)
    return bmw, play(bmw)


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
    logging.getLogger("i3charge").addHandler(logging.NullHandler())
    print("| night | steps | soon | full | stopped | requests in 24 h |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, night in NIGHTS.items():
        played = [simulate(night, offset_s) for offset_s in OFFSETS_S]
        late = lateness((bmw.car, told) for bmw, told in played)
        cells = " | ".join(cell(late[kind], len(played)) for kind in late)
        busiest = max(busiest_day(bmw.requests_s) for bmw, _ in played)
        print(f"| {name} | {cells} | {busiest} |", flush=True)


if __name__ == "__main__":
    table()
