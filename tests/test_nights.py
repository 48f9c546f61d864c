"""Whole nights at a simulated CarData: news comes when it is due, and the quota lasts."""

from __future__ import annotations

import nights
import pytest


@pytest.mark.parametrize("name", nights.NIGHTS)
def test_news_comes_in_time_and_the_quota_lasts(name: str) -> None:
    late, busiest_day = nights.lateness(nights.NIGHTS[name], nights.OFFSETS_S[::4])
    assert busiest_day <= 48
    for kind in ("full", "stopped"):
        assert late[kind].told == late[kind].due  # each exactly once
        assert all(abs(seconds) <= 14 * 60 for seconds in late[kind].late_s)


@pytest.mark.parametrize(("name", "steps", "minutes"), [("11 kW", 8, 8), ("bare, 11 kW", 9, 12)])
def test_steps_are_told_during_an_ordinary_charge(name: str, steps: int, minutes: float) -> None:
    late, _ = nights.lateness(nights.NIGHTS[name], nights.OFFSETS_S[::2])
    assert late["step"].told / len(nights.OFFSETS_S[::2]) >= steps
    assert late["step"].median_s <= minutes * 60
    assert late["soon"].told == late["soon"].due
    assert -10 * 60 <= late["soon"].worst_s <= 5 * 60  # 5 to 20 minutes before full
