"""Weeks with an i3, and what BMW makes of them: is what its owner hears true?

A life comes from a seed alone. The car is driven, is plugged in, charges at once or by its timer,
pauses, is stopped or unplugged too early, is taken on an errand when it is full, and warmed before
it leaves. BMW shows the car's words late, and leaves some out. The real loop and the real door run
in the time of the simulation, and what they tell is held against what was true.

By hand, as many lives as one likes: python tests/lives.py [how many] [first seed]

Moments are those of time.time(), and charges in percent.
"""

from __future__ import annotations

import bisect
import logging
import random
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # by hand, nobody else does

from fake_cardata import telematic
from simulation import DAY_S, HOUR_S, MINUTE_S, Told, busiest_day, run

BEGINS_S = datetime(2027, 1, 15, 18, tzinfo=timezone.utc).timestamp()
BATTERY_KWH = 37.9  # that can be used: BMW's data sheet of 2018


# --- What kind of life it is ----------------------------------------------------------------


class Habits:
    """What the car, its owner and BMW are like."""

    def __init__(self, dice: random.Random) -> None:
        # The car
        self.is_bare = dice.random() < 0.5  # no prediction and no hvStatus
        self.has_plug = dice.random() < 0.7  # the plug's word is shown
        self.full_at = 99.0 if dice.random() < 0.25 else 100.0  # with its goal as the reason
        self.kw = dice.choice([2.3, 3.7, 7.4, 11.0])
        self.percent_a_second = self.kw / BATTERY_KWH * 100 / HOUR_S
        # Its words
        self.is_late = dice.random() < 0.5  # they can take up to 90 minutes
        self.is_each_late = dice.random() < 0.5  # each by itself, not those of a moment together
        self.sticks = dice.choice([0.0, 0.0, 0.3, 1.0])  # of the ends that no status tells
        self.misses_after_drive = dice.choice([0.0, 0.3, 0.8])  # of the charges then
        self.misses_at_beginning = dice.choice([0.0, 0.2])
        self.says_again = dice.choice([0.0, 0.0, 0.05])  # of the charges and plugs
        # BMW
        self.hv_lag_s = dice.choice([1.0, 20.0, 60.0]) * MINUTE_S
        self.wild = dice.choice([0.0, 0.01, 0.03])  # of the predictions: null, or anything
        self.departure_stands = dice.random() < 0.4  # it predicts from the charge of a departure


class Word(NamedTuple):
    """Something that the car has said."""

    said_s: float
    shown_s: float  # by BMW
    value: str


End = Literal["full", "stopped", "away"]  # away: the plug was pulled


@dataclass
class Charge:
    """A charge as it was. A full car that is warmed before it leaves makes a top-up."""

    begins_s: float
    is_top_up: bool = False
    ends_s: float = 0.0
    end: End = "away"
    shown_s: float = 0.0  # when BMW shows all that the car has said of the end
    hidden_s: float = 0.0  # when the car does something else


# --- The car --------------------------------------------------------------------------------


class Life:
    """A car through three weeks. All of it is lived at first; then it is only looked at."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.habits = Habits(self.dice)
        self.now_s = BEGINS_S
        self.ends_s = BEGINS_S + 3 * 7 * DAY_S
        self.charge = float(self.dice.randint(30, 90))
        self.charges: list[Charge] = []
        self.words: dict[str, list[Word]] = {}
        self.track = [(BEGINS_S - DAY_S, self.charge)]  # the charge, with straight lines between
        self.hv_words = [(BEGINS_S - DAY_S, "INVALID")]
        self._late_s = (0.0, 0.0)  # a moment, and how late its words are

        self.says("plug", "DISCONNECTED")
        self.says("status", "NOCHARGING")
        self.says_charge()
        while self.now_s < self.ends_s:
            self.lives_a_day()
        self.track.append((self.now_s + DAY_S, self.charge))
        self.says_old_words_again()
        self.notes_when_ends_are_hidden()

    def lives_a_day(self) -> None:
        dice = self.dice
        self.drives(dice.uniform(4, 55))
        if self.charge > 25 and dice.random() < 0.15:  # it is parked without a plug
            self.waits(dice.uniform(1, 12) * HOUR_S)
            return
        self.waits(dice.uniform(0.5, 15) * MINUTE_S)
        self.plugs_in()
        if dice.random() < 0.35:
            self.waits_for_its_timer(dice.uniform(0.3, 7) * HOUR_S)
        self.charges_up()
        while self.charges[-1].end == "full" and dice.random() < 0.08:
            self.waits(dice.uniform(1, 60) * MINUTE_S)
            self.runs_an_errand()
        if self.charges[-1].end != "away":
            self.waits(dice.uniform(0.2, 12) * HOUR_S)
            if self.charges[-1].end == "full" and dice.random() < 0.25:
                self.tops_up()
            self.unplugs()
        if self.charge >= self.habits.full_at and dice.random() < 0.3:
            self.flickers()

    # What it does

    def waits(self, seconds: float, charge: float | None = None) -> None:
        """Let time go by; meanwhile the charge may change evenly."""
        self.now_s += seconds
        self.charge = self.charge if charge is None else charge
        self.track.append((self.now_s, self.charge))

    def drives(self, percent: float) -> None:
        percent = max(1.0, min(percent, self.charge - 8))
        self.waits(MINUTE_S)
        self.waits(percent * self.dice.uniform(1, 3) * MINUTE_S, self.charge - percent)
        self.says("status", "NOCHARGING")
        self.says_charge(misses=self.habits.misses_after_drive)

    def runs_an_errand(self) -> None:
        self.unplugs()
        self.waits(self.dice.uniform(5, 12) * MINUTE_S, self.charge - self.dice.uniform(1.5, 5))
        self.says_charge(misses=self.habits.misses_after_drive)
        self.plugs_in()
        self.charges_up()

    def plugs_in(self) -> None:
        self.says("plug", "CONNECTED")
        self.hv("NOT_CHARGING")

    def unplugs(self) -> None:
        self.says("plug", "DISCONNECTED")
        if self.dice.random() < 0.5:
            self.says("status", "NOCHARGING")
        self.hv("INVALID")

    def waits_for_its_timer(self, seconds: float) -> None:
        self.hv("WAITING_FOR_CHARGING")
        if self.dice.random() < 0.5:
            self.says("status", "INITIALIZATION")
        self.waits(seconds)

    def charges_up(self) -> None:
        """A charge to its end; one that was stopped may be followed by another."""
        dice, full_at = self.dice, self.habits.full_at
        (end,) = dice.choices(get_args(End), [0.8, 0.12, 0.08])
        goal = full_at
        if end != "full":
            goal = self.charge + (full_at - self.charge) * dice.uniform(0.1, 0.9)

        charge = self.begins_to_charge()
        for _ in range(dice.choice([0, 0, 0, 0, 1, 2])):
            if goal - self.charge > 8:
                self.charges_to(self.charge + (goal - self.charge) * dice.uniform(0.2, 0.7))
                self.pauses(dice.uniform(5, 90) * MINUTE_S)
        self.charges_to(goal)
        self.ends(charge, end)
        if end == "stopped" and dice.random() < 0.4:
            self.waits(dice.uniform(0.2, 4) * HOUR_S)
            self.charges_up()

    def tops_up(self) -> None:
        """It is warmed before it leaves, and leaves soon after it is full again, or before."""
        self.waits(MINUTE_S, self.charge - self.dice.uniform(0.3, 1.5))
        charge = self.begins_to_charge(is_top_up=True)
        self.charges_to(self.habits.full_at)
        charge.ends_s = self.now_s
        if self.dice.random() < 0.6:
            self.ends(charge, "full")

    def begins_to_charge(self, *, is_top_up: bool = False) -> Charge:
        charge = Charge(self.now_s, is_top_up)
        self.charges.append(charge)
        self.goes_on_charging()
        if self.dice.random() < 0.3:
            later = self.charge + self.habits.percent_a_second * 4 * MINUTE_S
            self.waits(4 * MINUTE_S, min(later, self.habits.full_at - 0.01))
        self.says_charge(misses=self.habits.misses_at_beginning)
        return charge

    def goes_on_charging(self) -> None:
        self.says("status", "CHARGINGACTIVE")
        self.says("minutes", str(int(self.seconds_to(self.habits.full_at) / MINUTE_S) + 1))
        self.hv("CHARGING")

    def pauses(self, seconds: float) -> None:
        self.says("status", "CHARGINGPAUSED")
        self.hv("WAITING_FOR_CHARGING")
        self.waits(seconds)
        self.goes_on_charging()

    def charges_to(self, percent: float) -> None:
        if self.charge < 90 < percent:
            self.charges_to(90)
        if self.charge < percent:
            self.waits(self.seconds_to(percent), percent)

    def seconds_to(self, percent: float) -> float:
        """Above 90 %, it has half the power."""
        slow = max(0.0, percent - max(self.charge, 90.0))
        return (percent - self.charge + slow) / self.habits.percent_a_second

    def ends(self, charge: Charge, end: End) -> None:
        charge.ends_s, charge.end = self.now_s, end
        sticks = self.dice.random() < self.habits.sticks
        words = [self.says_charge()]
        if end == "full":
            words += [self.says("reason", "CHARGING_GOAL_REACHED")]
            if not sticks:
                words += [self.says("status", "CHARGINGENDED")]
            self.hv("FINISHED_FULLY_CHARGED")
        elif end == "stopped":
            self.says("reason", "POWERGRID_FAILED")
            words += [self.says("status", self.dice.choice(["CHARGINGENDED", "NOCHARGING"]))]
            self.hv("FINISHED_NOT_FULL")
        else:
            words += [self.says("plug", "DISCONNECTED")]
            if not sticks or not self.habits.has_plug:
                words += [self.says("status", "NOCHARGING")]
            self.hv("INVALID")
        charge.shown_s = max(word.shown_s for word in words)

    def flickers(self) -> None:
        """At rest, away from any plug."""
        for charge in (int(self.charge) - 1, int(self.charge)):
            self.waits(self.dice.uniform(0.5, 2) * HOUR_S)
            self.says("header", str(charge))

    # What it says

    def says(self, name: str, value: str) -> Word:
        words = self.words.setdefault(name, [])
        said_s = float(int(self.now_s))
        if words:
            said_s = max(said_s, words[-1].said_s + 1)
        word = Word(said_s, said_s + self.lateness_s(), value)
        words.append(word)
        return word

    def says_charge(self, misses: float = 0.0) -> Word:
        word = Word(0.0, 0.0, str(int(self.charge + 1e-6)))
        return word if self.dice.random() < misses else self.says("header", word.value)

    def lateness_s(self) -> float:
        moment_s, late_s = self._late_s
        if self.habits.is_each_late or moment_s != self.now_s:
            late_s = self.dice.uniform(20, 120)
            if self.habits.is_late and self.dice.random() < 0.15:
                late_s = self.dice.uniform(5, 90) * MINUTE_S
        self._late_s = (self.now_s, late_s)
        return late_s

    def hv(self, word: str) -> None:
        self.hv_words.append((self.now_s, word))

    def says_old_words_again(self) -> None:
        """With a new stamp, some minutes later, where nothing else was said meanwhile."""
        for name in ("header", "plug"):
            words = self.words[name]
            for word, following in zip(list(words), words[1:]):
                again_s = word.said_s + self.dice.uniform(1, 30) * MINUTE_S
                is_quiet = again_s + MINUTE_S < following.said_s
                if is_quiet and self.dice.random() < self.habits.says_again:
                    words.append(Word(again_s, again_s + MINUTE_S, word.value))

    def notes_when_ends_are_hidden(self) -> None:
        moves_s = [word.said_s for word in self.words["plug"]]
        moves_s += [charge.begins_s for charge in self.charges]
        for charge in self.charges:
            later_s = [at_s for at_s in moves_s if at_s > charge.ends_s + 1]
            charge.hidden_s = min(later_s, default=self.ends_s)

    # What BMW makes of it

    def telematic(self, now_s: float) -> dict[str, Any]:
        """What CarData says of it."""
        entries: dict[str, Any] = {"range": None, "predicted": None, "hv_status": None}
        for name in ("header", "status", "minutes", "plug", "reason"):
            word = self.shown(name, now_s)
            entries[name] = word and (word.value, (now_s - word.said_s) / MINUTE_S)
        if not self.habits.has_plug:
            entries["plug"] = None
        if not self.habits.is_bare:
            entries["predicted"] = self.predicted(now_s)
            lagging = bisect.bisect(self.hv_words, (now_s - self.habits.hv_lag_s, "~"))
            entries["hv_status"] = self.hv_words[lagging - 1][1]
        return telematic(datetime.fromtimestamp(now_s, timezone.utc), **entries)

    def shown(self, name: str, now_s: float) -> Word | None:
        known = [word for word in self.words.get(name, []) if word.shown_s <= now_s]
        return max(known, key=lambda word: word.said_s, default=None)

    def predicted(self, now_s: float) -> str | None:
        if self.dice.random() < self.habits.wild:
            return self.dice.choice([None, str(self.dice.randint(0, 100))])
        header, plug, status = [self.shown(each, now_s) for each in ("header", "plug", "status")]
        if not header or not plug or not status:
            return None
        is_of_departure = header.said_s < plug.said_s and self.habits.departure_stands
        if is_of_departure or status.value != "CHARGINGACTIVE":
            return header.value
        return str(int(self.true_charge(now_s)))

    def true_charge(self, now_s: float) -> float:
        after = bisect.bisect(self.track, (now_s, 100.0))
        (before_s, before), (then_s, then) = self.track[after - 1 : after + 1]
        return before + (then - before) * (now_s - before_s) / max(then_s - before_s, 1e-9)


# --- Is it true? ----------------------------------------------------------------------------


class Verdict:
    """What was told in a life, held against what was true.

    `faults` are lines for whoever looks, and `counts` how many there are of each kind, beside
    what was "due": charges whose end BMW shows for long enough. `full_late_s` says how long
    after each end of a full charge that was told.
    """

    LATE_S = 100 * MINUTE_S  # that a word and the poll after it can come at most
    FORGOTTEN_S = 12 * HOUR_S

    def __init__(self, seed: int) -> None:
        self.life = Life(seed)
        self.owner = run(self.life.telematic, BEGINS_S, self.life.ends_s)
        self.real = [charge for charge in self.life.charges if not charge.is_top_up]
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.full_late_s: list[float] = []
        self.judge_full()
        self.judge_stops()
        self.judge_starts()
        self.judge_soon()
        self.judge_the_line()
        if busiest_day(self.owner.requests_s) > 48:
            self.fault("more than 48 requests", self.life.ends_s)

    def fault(self, what: str, at_s: float, message: str = "") -> None:
        self.counts[what] += 1
        moment = datetime.fromtimestamp(at_s, timezone.utc)
        self.faults.append(f"{moment:%d %H:%M} {what} {message}")

    def is_due(self, charge: Charge) -> bool:
        """Whether BMW shows its end for 45 minutes, in which there is a poll."""
        until_s = min(charge.hidden_s, self.life.ends_s)
        return until_s - charge.shown_s >= 45 * MINUTE_S

    def told(self, kind: str) -> list[Told]:
        return [told for told in self.owner.told if told.kind == kind]

    def judge_full(self) -> None:
        """Once a charge, and only of one that has made the car full."""
        told_of: set[float] = set()
        for told in self.told("full"):
            ended = [charge for charge in self.real if charge.ends_s <= told.at_s]
            # What is shown late can be of the charge before an errand.
            full = [charge.ends_s for charge in ended[-2:] if charge.end == "full"]
            full = [ends_s for ends_s in full if told.at_s - ends_s < self.FORGOTTEN_S]
            untold = [ends_s for ends_s in full if ends_s not in told_of]
            told_of |= set(untold[-1:])
            self.full_late_s += [told.at_s - ends_s for ends_s in untold[-1:]]
            if not untold:
                self.fault("full twice" if full else "full is false", told.at_s, told.message)

        due = [charge for charge in self.real if charge.end == "full" and self.is_due(charge)]
        self.counts["full due"] += len(due)
        for charge in due:
            if charge.ends_s not in told_of:
                self.fault("full missed", charge.ends_s)

    def judge_stops(self) -> None:
        for charge in self.real:
            lasts_s = charge.ends_s - charge.begins_s
            if charge.end == "full" or lasts_s < 45 * MINUTE_S or not self.is_due(charge):
                continue
            self.counts["stop due"] += 1
            until_s = charge.hidden_s + self.LATE_S
            if not any(charge.ends_s <= told.at_s < until_s for told in self.told("stopped")):
                self.fault("stop missed", charge.ends_s)
        for told in self.told("stopped"):
            self.counts["stop told"] += 1
            ended = [charge for charge in self.real if charge.ends_s <= told.at_s]
            if not ended or told.at_s - ended[-1].ends_s > 3 * HOUR_S:
                self.fault("stop is false", told.at_s, told.message)
            elif ended[-1].end == "full":
                self.fault("stop of a full car", told.at_s, told.message)

    def judge_starts(self) -> None:
        for told in self.told("started"):
            begun = [charge for charge in self.life.charges if charge.begins_s <= told.at_s]
            if not begun or told.at_s > begun[-1].ends_s + self.LATE_S:
                self.fault("start is false", told.at_s, told.message)

    def judge_soon(self) -> None:
        soon_s = [told.at_s for told in self.told("soon")]
        for charge in self.real:
            of_it = [at_s for at_s in soon_s if charge.begins_s <= at_s < charge.ends_s]
            if len(of_it) > 1:
                self.fault("soon twice", of_it[1])

    def judge_the_line(self) -> None:
        """While the car charges, it falls only if the car has sent its own percentage."""
        for earlier, later in zip(self.owner.readings, self.owner.readings[1:]):
            is_charging = earlier.status == later.status == "charging"
            before = self.life.shown("header", earlier.taken_s)
            has_spoken = self.life.shown("header", later.taken_s) != before
            if is_charging and later.percent < earlier.percent and not has_spoken:
                self.fault("line falls", later.taken_s)


def verdicts(seeds: range) -> Iterator[tuple[int, Verdict]]:
    return ((seed, Verdict(seed)) for seed in seeds)


def main(lives: int = 30, first: int = 0) -> None:
    logging.getLogger("i3charge").addHandler(logging.NullHandler())
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    late_s: list[float] = []  # of cars that are on time, and have a prediction
    for seed, verdict in verdicts(range(first, first + lives)):
        habits = verdict.life.habits
        counts[habits.has_plug].update(verdict.counts)
        if not habits.is_late and not habits.is_bare:
            late_s += verdict.full_late_s
        for fault in verdict.faults:
            kind = "bare, " if habits.is_bare else ""
            plug = "" if habits.has_plug else ", no plug's word"
            print(f"life {seed} ({kind}{habits.kw} kW{plug}): {fault}", flush=True)
    print("with the plug's word:", dict(sorted(counts[True].items())))
    print("without it:", dict(sorted(counts[False].items())))
    if late_s:
        print(f"full is told {statistics.median(late_s) / MINUTE_S:.1f} minutes late in the median")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
