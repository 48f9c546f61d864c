"""Weeks at a simulated CarData: each piece of news is true, and comes once."""

from __future__ import annotations

from collections import Counter

import lives
import pytest

# Each life has a car, an owner and a BMW of its own; by hand one plays hundreds.
LIVES = [range(first, first + 6) for first in range(1000, 1048, 6)]


@pytest.mark.parametrize("seeds", LIVES, ids=str)
def test_what_is_told_in_three_weeks_is_true_and_told_once(seeds: range) -> None:
    found: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for _, verdict in lives.verdicts(seeds):
        found[verdict.life.habits.has_plug].update(verdict.counts)
    both = found[True] + found[False]
    for kind in ("full is false", "full twice", "soon twice", "start is false"):
        assert both[kind] == 0, kind
    assert both["more than 48 requests"] == 0

    def is_rare(kind: str, of: str, most: float, counts: Counter[str]) -> bool:
        """Whether it is as rare as in hundreds of lives, but for two."""
        return counts[kind] <= 2 + most * counts[of]

    assert both["full due"] >= 100
    assert is_rare("full missed", "full due", 0.0015, found[True])
    assert is_rare("full missed", "full due", 0.08, found[False])
    assert is_rare("stop missed", "stop due", 0.01, both)
    assert is_rare("stop is false", "stop told", 0.01, both)
    assert is_rare("stop of a full car", "stop told", 0.01, both)
    assert is_rare("line falls", "full due", 0.003, both)
