"""How late an owner hears of a charge: nights with an i3, a CarData and a clock that are
simulated, and with the real loop and the real door. By hand: python tests/nights.py

Moments are in seconds since the logger has started, and charges in percent. A bare i3 has, as
some owners' cars, no prediction and no hvStatus, and says once, when a charge starts, how long
it will take.
"""

from __future__ import annotations

import logging
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # by hand, nobody else does

from fake_cardata import telematic
from simulation import DAY_S, HOUR_S, MINUTE_S, Told, busiest_day, run

BEGINS = datetime(2027, 1, 15, 18, tzinfo=timezone.utc)

# --- The car --------------------------------------------------------------------------------


class Night(NamedTuple):
    """A car is plugged in, and charges at once."""

    kw: float  # that reach the battery while it is not nearly full
    bare: bool = False  # the car
    tapers: bool = True  # the power falls above 90 %
    begins_s: float = HOUR_S
    ends_at: float = 100.0  # percent; at less, the station has stopped it


class Car:
    """A BMW i3 (120 Ah) through a night. All of it is computed; nothing here changes."""

    BATTERY_KWH = 37.9  # that can be used, of 42.2: BMW's data sheet of 2018
    FROM_PERCENT = 30.0
    # The power falls from here on, in a straight line over the percents, to a quarter at
    # 100 %: a simplification of ours.
    TAPERS_FROM = 90.0

    def __init__(self, night: Night) -> None:
        self.night = night
        self._percent_a_second = night.kw / self.BATTERY_KWH * 100 / HOUR_S
        # Of the power, per percent; as good as none where it does not fall.
        self._taper = (0.75 if night.tapers else 1e-9) / (100 - self.TAPERS_FROM)
        self.begins_s = night.begins_s
        self.ends_s = self.time_of(night.ends_at)

    def _seconds(self, percent: float) -> float:
        """How long an empty battery takes to `percent`.

        Above 90 %, x more percent: dx/dt = rate * (1 - taper * x), which has this integral.
        """
        above = max(0.0, percent - self.TAPERS_FROM)
        even = min(percent, self.TAPERS_FROM)
        return (even - math.log1p(-self._taper * above) / self._taper) / self._percent_a_second

    def _percent(self, seconds: float) -> float:
        """The inverse of `_seconds`."""
        percent = seconds * self._percent_a_second
        above = max(0.0, percent - self.TAPERS_FROM)
        return min(percent, self.TAPERS_FROM) - math.expm1(-self._taper * above) / self._taper

    def time_of(self, percent: float) -> float:
        """When the charge reaches `percent`, if nothing stops it."""
        return self.begins_s + self._seconds(percent) - self._seconds(self.FROM_PERCENT)

    def charge_at(self, at_s: float) -> float:
        charged_s = min(max(at_s, self.begins_s), self.ends_s) - self.begins_s
        return self._percent(self._seconds(self.FROM_PERCENT) + charged_s)


# --- BMW ------------------------------------------------------------------------------------


def whole(number: float) -> str:
    """Rounded down, but for what arithmetic has lost of a whole number."""
    return str(math.floor(number + 1e-9))


class Bmw:
    """What CarData says of this `car`."""

    LATE_S = 60.0  # what the car sends is shown so much later
    MINUTES_EVERY_S = 10 * MINUTE_S  # that a car that is not bare sends them anew
    DRIVEN_S = -8.0 * HOUR_S  # when it was last driven
    KM_A_PERCENT = 2.6  # 260 km in all: BMW's data sheet of 2018

    def __init__(self, car: Car) -> None:
        self.car = car

    def telematic(self, clock_s: float) -> dict[str, Any]:
        car, now_s = self.car, clock_s - BEGINS.timestamp()
        seen_s = now_s - self.LATE_S
        if seen_s < car.begins_s:
            said_s, status, hv_status = self.DRIVEN_S, "NOCHARGING", "INVALID"
        elif seen_s < car.ends_s:
            said_s, status, hv_status = car.begins_s, "CHARGINGACTIVE", "CHARGING"
        else:
            said_s, status, hv_status = car.ends_s, "CHARGINGENDED", "FINISHED_NOT_FULL"
            if car.night.ends_at == 100:
                hv_status = "FINISHED_FULLY_CHARGED"

        age = (now_s - said_s) / MINUTE_S
        charge = car.charge_at(said_s)
        predicted = car.charge_at(now_s) if status == "CHARGINGACTIVE" else charge
        plug = "DISCONNECTED" if said_s == self.DRIVEN_S else "CONNECTED"
        plugged_s = car.begins_s if plug == "CONNECTED" else said_s
        entries: dict[str, Any] = {
            "header": (whole(charge), age),
            "predicted": None if car.night.bare else whole(predicted),
            "hv_status": None if car.night.bare else hv_status,
            "status": (status, age),
            "minutes": self._minutes(seen_s, now_s),
            "range": (whole(charge * self.KM_A_PERCENT), age),
            "plug": (plug, (now_s - plugged_s) / MINUTE_S),
        }
        return telematic(BEGINS + timedelta(seconds=now_s), **entries)

    def _minutes(self, seen_s: float, now_s: float) -> tuple[str, float] | None:
        """What the car has said last of the minutes stays when the charge has ended.

        It knows nothing of a stop by the station.
        """
        if seen_s < self.car.begins_s:
            return None
        said_s = self.car.begins_s
        if not self.car.night.bare:
            charging_s = min(seen_s, self.car.ends_s - 1) - self.car.begins_s
            said_s += charging_s - charging_s % self.MINUTES_EVERY_S
        left = math.ceil((self.car.time_of(100) - said_s) / MINUTE_S - 1e-9)
        return str(left), (now_s - said_s) / MINUTE_S


def simulate(night: Night, offset_s: float) -> tuple[Car, list[Told], int]:
    """What an owner is told in a night and the day after it, and the busiest day."""
    car = Car(night._replace(begins_s=night.begins_s + offset_s))
    begins_s = BEGINS.timestamp()
    owner = run(Bmw(car).telematic, begins_s, begins_s + car.ends_s + DAY_S)
    told = [news._replace(at_s=news.at_s - begins_s) for news in owner.told]
    return car, told, busiest_day(owner.requests_s)


# --- How late that was ----------------------------------------------------------------------

SOON_S = 10 * MINUTE_S
STEP_PERCENT = 5


@dataclass
class Lateness:
    """Of one kind of news, over one or more nights."""

    late_s: list[float] = field(default_factory=list)  # a negative one is early
    told: int = 0
    due: int = 0

    @property
    def median_s(self) -> float:
        return statistics.median(self.late_s)

    @property
    def worst_s(self) -> float:
        """The farthest from 0."""
        return max(self.late_s, key=abs)


def late_s(car: Car, told: list[Told]) -> Iterator[tuple[str, float]]:
    """How late each piece of news came that was due, and came for the first time.

    A step is late by the time since the charge was 5 % above the level that was told before.
    """
    due_s: dict[str, float] = {
        "soon": car.time_of(100) - SOON_S,
        "full": car.ends_s,
        "stopped": car.ends_s,
    }
    level = car.FROM_PERCENT  # that the owner knows of
    for kind, at_s, _, charge in told:
        if kind == "step" and level + STEP_PERCENT <= car.night.ends_at:
            yield kind, at_s - car.time_of(level + STEP_PERCENT)
        elif kind in due_s:
            yield kind, at_s - max(due_s.pop(kind), car.begins_s)
        level = charge


def lateness(night: Night, offsets_s: list[float]) -> tuple[dict[str, Lateness], int]:
    """Of steps, "soon", "full" and "stopped"; and the most requests in any 24 hours.

    Where the polls are too far apart for every step, fewer are told than are due. The last 5 %
    to a full battery are due, too, though "full" is told in their place.
    """
    found = {kind: Lateness() for kind in ("step", "soon", "full", "stopped")}
    busiest = 0
    for offset_s in offsets_s:
        car, told, busiest_of_night = simulate(night, offset_s)
        busiest = max(busiest, busiest_of_night)
        for kind, seconds in late_s(car, told):
            found[kind].late_s.append(seconds)
        for kind, of_kind in found.items():
            of_kind.told += sum(news.kind == kind for news in told)
    is_full = night.ends_at == 100
    steps = int((night.ends_at - Car.FROM_PERCENT) / STEP_PERCENT)
    due = {"step": steps, "soon": is_full, "full": is_full, "stopped": not is_full}
    for kind, of_kind in found.items():
        of_kind.due = due[kind] * len(offsets_s)
    return found, busiest


# --- The nights, and the table --------------------------------------------------------------

NIGHTS: dict[str, Night] = {
    "2.3 kW": Night(2.3),
    "7.4 kW": Night(7.4),
    "11 kW": Night(11),
    "50 kW": Night(50),
    "11 kW, even to the end": Night(11, tapers=False),
    "11 kW, stopped at 70 %": Night(11, ends_at=70),
    "11 kW, after 23 hours": Night(11, begins_s=23 * HOUR_S),
    "bare, 2.3 kW": Night(2.3, bare=True),
    "bare, 7.4 kW": Night(7.4, bare=True),
    "bare, 11 kW": Night(11, bare=True),
    "bare, 50 kW": Night(50, bare=True),
    "bare, 11 kW, even to the end": Night(11, bare=True, tapers=False),
    "bare, 11 kW, stopped at 70 %": Night(11, bare=True, ends_at=70),
}
# Each night is played with the charge beginning so much later. These fall evenly on an
# interval of 40 minutes (313 was found by a search), and none on a poll.
OFFSETS_S = [37 + n * 313.0 for n in range(24)]


def cell(late: Lateness) -> str:
    """In minutes, median / worst; then how many were told a night, of those that were due."""
    text = "-"
    if late.late_s:
        text = f"{late.median_s / MINUTE_S:.1f} / {late.worst_s / MINUTE_S:.1f}"
    if late.told == late.due:
        return text
    nights = len(OFFSETS_S)
    return f"{text} ({late.told / nights:.3g} of {late.due / nights:.3g})"


def table() -> None:
    """In Markdown: how late each kind of news is, and the requests in the busiest 24 hours."""
    logging.getLogger("i3charge").addHandler(logging.NullHandler())
    print("| night | steps | soon | full | stopped | requests in 24 h |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, night in NIGHTS.items():
        late, busiest = lateness(night, OFFSETS_S)
        cells = " | ".join(map(cell, late.values()))
        print(f"| {name} | {cells} | {busiest} |", flush=True)


if __name__ == "__main__":
    table()
