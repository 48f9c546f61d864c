"""What BMW shows from poll to poll, and what an owner then sees and hears.

Times are clock times in Amsterdam, "18:04" of the first day or "2 18:04" of the second. A value
that a step does not name stays as BMW had it before.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta, timezone

from fake_cardata import NAMES

import i3charge
from i3charge import ChargeWatch, Memory

MIDNIGHT = datetime(2026, 8, 17, 22, 0, tzinfo=timezone.utc)

# A value and its time, such as {"status": "CHARGINGACTIVE@18:00", "header": "40@18:04"}. Without
# a time it is stamped with that of the poll, as BMW stamps its own; "" leaves it out.
Words = dict[str, str]


def begin(at: str) -> Words:
    """The car is plugged in, and charges at once."""
    return {"plug": f"CONNECTED@{at}", "status": f"CHARGINGACTIVE@{at}"}


def end(at: str, percent: int) -> Words:
    return {"status": f"CHARGINGENDED@{at}", "header": f"{percent}@{at}"}


def rest(at: str, percent: int, plug: str = "CONNECTED") -> Words:
    return {"plug": f"{plug}@{at}", "status": f"NOCHARGING@{at}", "header": f"{percent}@{at}"}


def moment(clock: str) -> datetime:
    day, _, time = clock.rpartition(" ")
    hours, minutes = time.split(":")
    return MIDNIGHT + timedelta(days=int(day or 1) - 1, hours=int(hours), minutes=int(minutes))


def answer(words: Words, now: datetime) -> dict[str, object]:
    """What BMW answers."""
    values: dict[str, object] = {}
    for name, word in words.items():
        value, _, said = word.partition("@")
        timestamp = f"{moment(said) if said else now:%Y-%m-%dT%H:%M:%S.%fZ}"
        values[NAMES[name]] = {"value": value or None, "timestamp": timestamp}
    return values


class Bmw:
    """BMW, and the script that polls it."""

    def __init__(self, notify_at: float = 0, interval_s: float = 2400, /, **words: str) -> None:
        self.words = words
        self.notify_at = notify_at
        self.interval_s = interval_s
        self.memory = Memory("client", "WBY00000000000000")
        self.start()

    def start(self) -> None:
        self.watch = ChargeWatch(self.memory, self.notify_at, self.interval_s)

    def restart(self) -> None:
        """The script ends, and starts again with what it has kept."""
        kept = json.loads(json.dumps(dataclasses.asdict(self.memory)))
        self.memory = i3charge.restored(Memory(), kept)
        self.memory.last = i3charge.restored_reading(kept["last"])
        self.memory.journal = list(i3charge.observations_in(kept["journal"]))
        self.start()

    def polled(self, clock: str, computer_is_ahead_h: float = 0, /, **words: str) -> list[str]:
        """Poll; return the news, such as "full: Fully charged." """
        self.words.update(words)
        now = moment(clock)
        computer_s = now.timestamp() + computer_is_ahead_h * 3600
        report = i3charge.report_in(answer(self.words, now), computer_s)
        _, self.reading, news = self.watch.observe(report)
        return [f"{one.kind}: {one.text}" for one in news]

    def at(self, clock: str, /, **words: str) -> str:
        """Poll; return the kinds of news and what is shown, such as "full, 100% full"."""
        return ", ".join([*kinds(self.polled(clock, **words)), self.line])

    @property
    def line(self) -> str:
        return f"{self.reading.percent_text} {self.reading.status}"

    @property
    def next_poll_min(self) -> float:
        """The minutes to the next poll, after one that took ten seconds."""
        began_s = self.reading.taken_s - 10
        return (self.watch.next_poll_s(self.reading, began_s) - began_s) / 60


def seen(clock: str, notify_at: float = 0, /, **words: str) -> Bmw:
    """A car whose first poll tells nothing."""
    bmw = Bmw(notify_at, **words)
    assert bmw.polled(clock) == []
    return bmw


def kinds(news: list[str]) -> list[str]:
    return [each.split(":")[0] for each in news]
