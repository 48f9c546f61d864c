"""Whole nights at a simulated CarData: news is told when it is due, and the quota lasts."""

from __future__ import annotations

import nights
import pytest


def median_min(late: nights.Lateness) -> float:
    assert late.median_s is not None
    return late.median_s / 60


@pytest.mark.parametrize("name", nights.NIGHTS)
def test_news_is_told_in_time_and_the_quota_lasts(name: str) -> None:
    offsets_s = nights.OFFSETS_S[::6]
    played = [nights.simulate(nights.later(nights.NIGHTS[name], off)) for off in offsets_s]
    late = nights.lateness((bmw.car, told) for bmw, told in played)
    for bmw, _ in played:
        assert bmw.over_quota == 0
        assert nights.busiest_day(bmw.requests_s) <= 48
    for kind in ("full", "stopped"):
        assert late[kind].told == late[kind].due  # each exactly once
    if name == "11 kW":
        assert median_min(late["step"]) <= 8
        assert median_min(late["full"]) <= 6
        assert late["soon"].told == late["soon"].due


def test_polls_at_fixed_times_are_later() -> None:
    played = [nights.simulate(nights.later(nights.NIGHTS["11 kW"], off), 30) for off in (37, 663)]
    late = nights.lateness((bmw.car, told) for bmw, told in played)
    assert median_min(late["full"]) > 6
