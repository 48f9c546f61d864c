"""The real loop and the real door, in the time of a simulation, with a BMW that is computed."""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple
from unittest import mock

from conftest import Clock
from fake_cardata import saved

import i3charge

MINUTE_S = 60.0
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S

Telematic = Callable[[float], Mapping[str, Any]]  # what CarData says of the car, at a time.time()


class Bmw:
    """Stands in for `i3charge.send`: BMW's sign-in and CarData."""

    QUOTA = 50  # requests to the API in any 24 hours, refused ones too
    REQUEST_S = 1.0

    def __init__(self, telematic: Telematic, clock: Clock) -> None:
        self.telematic = telematic
        self.clock = clock
        self.requests_s: list[float] = []  # to the API

    def send(self, what: str, method: str, url: str, **_: Any) -> i3charge.HttpAnswer:
        self.clock.sleep(self.REQUEST_S)
        body = json.dumps(self._answer(method, url)).encode()
        return i3charge.HttpAnswer(what, "simulated", 200, {}, body)

    def _answer(self, method: str, url: str) -> Mapping[str, Any]:
        if "/oauth/" in url:
            return {"access_token": "a", "refresh_token": "r", "expires_in": 3599}
        self.requests_s.append(self.clock.time())
        before = bisect.bisect_right(self.requests_s, self.clock.time() - DAY_S)
        assert len(self.requests_s) - before <= self.QUOTA
        if url.endswith("/telematicData"):
            return self.telematic(self.clock.time())
        return {"containerId": "S000000000000"} if method == "POST" else {"containers": []}


def busiest_day(requests_s: list[float]) -> int:
    """The most requests in any 24 hours; the times are in their order."""
    ends = [bisect.bisect_left(requests_s, at_s + DAY_S) for at_s in requests_s]
    return max((end - begin for begin, end in enumerate(ends)), default=0)


class Told(NamedTuple):
    """A notification to the owner."""

    kind: i3charge.Kind
    at_s: float
    message: str
    percent: float  # as it was shown then


@dataclass
class Owner:
    """Stands in for the log and the desktop, and hears what there is to tell."""

    clock: Clock
    told: list[Told] = field(default_factory=list)
    readings: list[i3charge.Reading] = field(default_factory=list)
    requests_s: list[float] = field(default_factory=list)

    works, is_unread = True, False  # the log

    def write(self, reading: i3charge.Reading) -> None:
        self.readings.append(reading)

    def set_title(self, text: str) -> None:
        """Of a terminal, which there is none of."""

    def show(self, news: i3charge.News) -> None:
        percent = self.readings[-1].percent if self.readings else 0.0
        self.told.append(Told(news.kind, self.clock.time(), news.text, percent))


def run(telematic: Telematic, begins_s: float, ends_s: float) -> Owner:
    """Let the logger run for so long. It starts signed in, but without a container."""
    clock = Clock(begins_s, ends_s)
    bmw: Any = Bmw(telematic, clock)
    owner: Any = Owner(clock)
    variables = {
        "CARDATA_CLIENT_ID": "a-client-id",
        "VEHICLE_IDENTIFICATION_NUMBER": "WBY" + 14 * "0",
    }
    simulated = mock.patch.multiple(i3charge, time=clock, send=bmw.send)
    with simulated, suppress(Clock.Over):
        settings = i3charge.load_settings(variables, "CarData", "")
        memory = i3charge.Memory(sign_in=i3charge.SignInState(refresh_token="r"))
        store = i3charge.Store(memory, saved)
        outbox = i3charge.Outbox(settings, store, "")
        i3charge.Loop(
            door=i3charge.CarData(settings, store),
            interval_s=settings.interval_s,
            store=store,
            watch=i3charge.ChargeWatch(memory, 0, settings.interval_s),
            log=owner,
            notifier=i3charge.Notifier(store, owner, outbox),
            outbox=outbox,
        ).run()
    owner.requests_s = bmw.requests_s
    return owner  # type: ignore[no-any-return]
