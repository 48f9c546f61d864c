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

Words = dict[str, str]  # such as {"status": "CHARGINGACTIVE@18:00", "header": "40@18:04"}


def moment(clock: str) -> datetime:
    day, _, time = clock.rpartition(" ")
    hours, minutes = time.split(":")
    return MIDNIGHT + timedelta(days=int(day or 1) - 1, hours=int(hours), minutes=int(minutes))


def clock_of(now: datetime) -> str:
    day, rest = divmod(now - MIDNIGHT, timedelta(days=1))
    return f"{day + 1} {rest.seconds // 3600}:{rest.seconds % 3600 // 60:02}"


def answer(words: Words, now: datetime) -> dict[str, object]:
    """BMW's answer. A word without a time is stamped with `now`, as BMW stamps its own."""
    values: dict[str, object] = {}
    for name, word in words.items():
        value, _, said = word.partition("@")
        stamp = moment(said) if said else now
        timestamp = f"{stamp:%Y-%m-%dT%H:%M:%S.%fZ}"
        values[NAMES[name]] = {"value": value or None, "timestamp": timestamp}
    return values


class Bmw:
    """BMW, and the script that polls it."""

    def __init__(self, notify_at: float = 0, interval_s: float = 2400, /, **words: str) -> None:
        self.words: Words = {}
        self.notify_at = notify_at
        self.interval_s = interval_s
        self.memory = Memory("client", "WBY00000000000000")
        self.start()
        self.shows(**words)

    def start(self) -> None:
        self.watch = ChargeWatch(self.memory, self.notify_at, self.interval_s)

    def restart(self) -> None:
        """The script ends, and starts again with what it has kept."""
        kept = json.loads(json.dumps(dataclasses.asdict(self.memory)))
        memory = i3charge.restored(Memory(), kept)
        memory.last = i3charge.restored_reading(kept["last"])
        memory.journal = list(i3charge.observations_in(kept["journal"]))
        self.memory = memory
        self.start()

    def shows(self, **words: str) -> None:
        """A descriptor's value and its time; "" for one that is left out."""
        self.words.update(words)

    def polled(self, clock: str, computer_is_ahead_h: float = 0, /, **words: str) -> list[str]:
        """Poll; return the news, such as "full: Fully charged." """
        self.shows(**words)
        now = moment(clock)
        values = answer(self.words, now)
        computer_s = now.timestamp() + computer_is_ahead_h * 3600
        report = i3charge.report_in(values, computer_s)
        _, self.reading, news = self.watch.observe(report)
        return [f"{one.kind}: {one.text}" for one in news]

    def polled_until(
        self,
        until: str,
        story: dict[str, Words] | None = None,
        first: str = "0:00",
        every: int = 40,
    ) -> list[str]:
        """Poll from `first` on, while the story is shown; return all news but steps."""
        told = []
        now = moment(first)
        changes = sorted((moment(clock), words) for clock, words in (story or {}).items())
        while now <= moment(until):
            for shown, words in changes:
                if shown <= now:
                    self.shows(**words)
            found = self.polled(clock_of(now))
            told += [news for news in found if not news.startswith("step")]
            now += timedelta(minutes=every)
        return told

    @property
    def line(self) -> str:
        return f"{self.reading.percent_text} {self.reading.status}"

    @property
    def age(self) -> str:
        """How old the line says that it is."""
        return i3charge.text_line(self.reading, "").partition("car: ")[2].replace(" ago", "")

    @property
    def next_poll_min(self) -> float:
        """The minutes to the next poll, after one that took ten seconds."""
        began_s = self.reading.taken_s - 10
        return (self.watch.next_poll_s(self.reading, began_s) - began_s) / 60


def kinds(news: list[str]) -> list[str]:
    return [each.split(":")[0] for each in news]
