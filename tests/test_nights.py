"""Whole nights at a simulated CarData: news comes when it is due, and the quota lasts."""

from __future__ import annotations

import nights
import pytest


@pytest.mark.parametrize("name", nights.NIGHTS)
def test_news_comes_in_time_and_the_quota_lasts(name: str) -> None:
    played = [nights.simulate(nights.NIGHTS[name], s) for s in nights.OFFSETS_S[::4]]

    for bmw, _ in played:
        assert bmw.over_quota == 0
        assert nights.busiest_day(bmw.requests_s) <= 48
    late = nights.lateness((bmw.car, told) for bmw, told in played)
    for kind in ("full", "stopped"):
        assert late[kind].told == late[kind].due  # each exactly once
        assert all(abs(s) <= 14 * 60 for s in (late[kind].worst_s,) if s is not None)


@pytest.mark.parametrize(("name", "steps", "minutes"), [("11 kW", 8, 8), ("bare, 11 kW", 9, 12)])
def test_steps_are_told_during_an_ordinary_charge(name: str, steps: int, minutes: float) -> None:
    played = [nights.simulate(nights.NIGHTS[name], s) for s in nights.OFFSETS_S[::2]]
    late = nights.lateness((bmw.car, told) for bmw, told in played)

    assert late["step"].told / len(played) >= steps
    median_s, worst_s = late["step"].median_s, late["soon"].worst_s
    assert median_s is not None and median_s <= minutes * 60
    assert late["soon"].told == late["soon"].due
    assert worst_s is not None and -10 * 60 <= worst_s <= 5 * 60  # 5 to 20 before full
