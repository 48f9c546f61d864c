"""Weeks at a simulated CarData: each piece of news is true, and comes once."""

from __future__ import annotations

import lives
import pytest

# Each life has a car, an owner and a BMW of its own; by hand one plays hundreds.
LIVES = [range(first, first + 4) for first in (8, 12, 24, 28)]


@pytest.mark.parametrize("seeds", LIVES, ids=str)
def test_what_is_told_in_three_weeks_is_true_and_told_once(seeds: range) -> None:
    due = {True: 0, False: 0}  # full charges, of cars with a plug's word, and of others
    missed = {True: 0, False: 0}
    for _, verdict in lives.verdicts(seeds):
        untrue = [fault for fault in verdict.faults if "missed" not in fault]
        assert untrue == []
        has_plug = verdict.life.habits.has_plug
        due[has_plug] += verdict.counts["full due"]
        missed[has_plug] += verdict.counts["full missed"] + verdict.counts["stop missed"]
    assert due[True] >= 20
    assert missed[True] <= 1 + due[True] / 100
    assert missed[False] <= 1 + due[False] / 10
