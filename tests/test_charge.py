"""What a charge is: CarData's answers, one after the other, and what is shown and told of them.

Moments are clock times in Amsterdam, "18:04" of the first day or "2 18:04" of the second. What a
step does not name is as BMW had it before.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from fake_cardata import NAMES

import i3charge
from i3charge import Memory, TelematicData

MIDNIGHT = datetime(2026, 8, 17, 22, 0, tzinfo=timezone.utc)
MINUTE_S = 60

Words = dict[str, str]  # such as {"status": "CHARGINGACTIVE@18:00", "header": "40@18:04"}


def moment(clock: str) -> datetime:
    day, _, time = clock.rpartition(" ")
    hours, minutes = time.split(":")
    return MIDNIGHT + timedelta(days=int(day or 1) - 1, hours=int(hours), minutes=int(minutes))


class Bmw:
    """What BMW shows, and what an owner then sees and hears."""

    def __init__(self, **words: str) -> None:
        self.words: Words = {}
        self.memory = Memory("client", "WBY00000000000000")
        self.watch = i3charge.ChargeWatch(self.memory, 0, 2400)
        self.shows(**words)

    def shows(self, **words: str) -> None:
        """A descriptor's value and its moment; "" for one that is left out."""
        self.words.update(words)

    def polled(self, clock: str, **words: str) -> list[str]:
        """The kinds of news, and their messages."""
        self.shows(**words)
        now = moment(clock)
        data = {}
        for name, word in self.words.items():
            value, _, said = word.partition("@")
            stamp = moment(said) if said else now  # as BMW stamps its own words
            entry = {"value": value or None, "timestamp": f"{stamp:%Y-%m-%dT%H:%M:%S.%fZ}"}
            data[NAMES[name]] = entry
        found = i3charge.reading_in(TelematicData(data, now.timestamp()))
        assert found
        self.watch.forget(found.taken_s)
        self.reading = i3charge.held(found, self.memory.last, self.memory.session)
        return [f"{news.kind}: {news.message}" for news in self.watch.take(self.reading)]

    @property
    def line(self) -> str:
        return f"{self.reading.percent} {self.reading.status}"

    @property
    def age(self) -> str:
        return i3charge.age_words(self.reading)


def kinds(news: list[str]) -> list[str]:
    return [each.split(":")[0] for each in news]


def told(bmw: Bmw, story: dict[str, Words], first: int, until: str, every: int = 40) -> list[str]:
    """All that is told by polls from the minute `first` on; steps are left out."""
    found = []
    begins, ends = moment("00:00"), moment(until)
    now = begins + timedelta(minutes=first)
    changes = sorted((moment(clock), words) for clock, words in story.items())
    while now <= ends:
        for at, words in changes:
            if at <= now:
                bmw.shows(**words)
        day, rest = divmod(now - begins, timedelta(days=1))
        clock = f"{day + 1} {rest.seconds // 3600}:{rest.seconds % 3600 // 60}"
        found += [news for news in bmw.polled(clock) if not news.startswith("step")]
        now += timedelta(minutes=every)
    return found


def at_rest(charge: str = "60") -> Words:
    return {"plug": "DISCONNECTED@00:00", "status": "NOCHARGING@00:00", "header": f"{charge}@00:00"}


FULL_AT_TWO: Words = {
    "plug": "CONNECTED@00:30",
    "status": "CHARGINGENDED@02:00",
    "header": "100@02:00",
}


@pytest.fixture
def full() -> Bmw:
    """It was full at two, which is told, and is still plugged in."""
    bmw = Bmw(**at_rest())
    assert bmw.polled("00:10") == []
    bmw.polled("00:40", plug="CONNECTED@00:30", status="CHARGINGACTIVE@00:30")
    assert kinds(bmw.polled("02:05", **FULL_AT_TWO)) == ["full"]
    return bmw


# --- The charge stands, and the car's own word wins -------------------------------------


def test_charge_does_not_fall_with_a_prediction_that_is_null_or_wild() -> None:
    bmw = Bmw(plug="CONNECTED@18:00", status="CHARGINGACTIVE@18:00", header="41@18:00")
    lines = []
    for minute, level in enumerate(["62", "", "72", "6", "84"]):
        bmw.polled(f"19:0{minute}", predicted=level)
        lines.append(bmw.line)
    assert lines == [f"~{charge}% charging" for charge in (62, 62, 72, 72, 84)]


@pytest.mark.parametrize("level", ["62", "63", "55", "50", ""])
def test_cars_own_newer_word_wins_over_a_prediction_that_was_higher(level: str) -> None:
    bmw = Bmw(plug="CONNECTED@18:00", status="CHARGINGACTIVE@18:00", header="41@18:00")
    bmw.polled("19:00", predicted="62")
    bmw.polled("19:30", header="55@19:25", predicted=level)
    assert bmw.line == "55% charging"


def test_prediction_of_now_stands_where_it_has_come_down_to_the_cars_word() -> None:
    bmw = Bmw(plug="CONNECTED@18:00", status="CHARGINGACTIVE@18:00", header="80@08:00")
    bmw.polled("18:02", predicted="80")
    bmw.polled("18:40", header="40@18:04", predicted="50")
    assert bmw.line == "~50% charging"


def test_interpolated_charge_outlasts_its_minutes_and_the_end() -> None:
    bmw = Bmw(plug="CONNECTED@18:00", status="CHARGINGACTIVE@18:00", header="40@18:00")
    bmw.polled("19:00", minutes="120@18:00")
    assert bmw.line == "~70% charging"
    bmw.polled("19:10", minutes="")
    assert bmw.line == "~70% charging"
    bmw.polled("19:20", status="CHARGINGPAUSED@19:15")
    assert bmw.line == "~70% waiting"
    bmw.polled("19:30", status="CHARGINGENDED@19:25")
    bmw.polled("20:10")
    assert bmw.line == "~70% plugged in"
    bmw.polled("20:50", header="66@19:25")
    assert bmw.line == "66% plugged in"


def test_car_that_says_no_charge_of_its_own_falls_with_bmws() -> None:
    bmw = Bmw(status="NOCHARGING@18:00", predicted="80")
    bmw.polled("18:10")
    bmw.polled("20:10", status="NOCHARGING@20:00", predicted="60")
    assert bmw.line == "~60% not charging"


def test_status_that_is_not_known_is_the_last_one() -> None:
    bmw = Bmw(plug="CONNECTED@18:00", status="CHARGINGACTIVE@18:00", header="41@18:00")
    bmw.polled("19:00", predicted="62")
    assert bmw.polled("19:40", status="UNKNOWN@19:30", hv_status="INVALID") == []
    assert bmw.line == "~62% charging"


def test_car_that_is_plugged_in_again_is_not_full_for_lack_of_a_status(full: Bmw) -> None:
    full.polled("08:00", plug="DISCONNECTED@07:00")
    full.polled("18:10", plug="CONNECTED@18:00", status="UNKNOWN@18:00")
    assert full.line == "100% plugged in"


# --- How old it is ----------------------------------------------------------------------

OLD_HEADER: Words = {"plug": "CONNECTED@18:00", "header": "52@18:00"}


@pytest.mark.parametrize(
    ("words", "age"),
    [
        ({"status": "CHARGINGACTIVE@20:00"}, "2 h"),
        ({"status": "CHARGINGACTIVE@18:00", "minutes": "140@20:00"}, ""),
        ({"status": "CHARGINGACTIVE@18:00", "minutes": "140@20:00", "predicted": "70"}, ""),
        # Minutes that BMW stamps as what it computes itself are no word of the car's.
        ({"status": "CHARGINGACTIVE@18:00", "minutes": "140", "predicted": "70"}, "2 h"),
    ],
    ids=["own", "interpolated", "predicted", "stamped-at-each-answer"],
)
def test_line_says_how_old_the_charge_is_that_it_shows(words: Words, age: str) -> None:
    bmw = Bmw(**OLD_HEADER)
    bmw.polled("20:01" if "140@" in str(words) else "20:00", **words)
    assert bmw.age == age


# --- Another charge ---------------------------------------------------------------------

DEPARTURE: dict[str, Words] = {
    "00:00": at_rest(),
    "00:30": {"plug": "CONNECTED@00:30", "status": "CHARGINGACTIVE@00:30"},
    "02:00": FULL_AT_TWO,
    "07:00": {"plug": "DISCONNECTED@07:00"},
    "18:00": {"plug": "CONNECTED@18:00", "status": "CHARGINGACTIVE@18:00"},
}
SPEAKS: dict[str, Words] = {"18:04": {"header": "40@18:04"}}
END: dict[str, Words] = {"21:00": {"header": "100@21:00", "status": "CHARGINGENDED@21:00"}}


@pytest.mark.parametrize("level", ["", "100"], ids=["bare", "departure-is-predicted"])
@pytest.mark.parametrize("first", range(0, 40, 4))
def test_charge_of_the_departure_is_not_that_of_the_next_charge(first: int, level: str) -> None:
    bmw = Bmw(predicted=level) if level else Bmw()
    bmw.shows(**DEPARTURE["00:00"])
    news = told(bmw, {**DEPARTURE, **SPEAKS, **END}, first, "21:45")
    assert kinds(news)[-2:] == ["started", "full"]
    is_polled_before_it_speaks = first == 0  # at 18:00
    assert ("from 40%" in news[-2]) != is_polled_before_it_speaks
    assert "Fully charged: 40 → 100% in " in news[-1]


@pytest.mark.parametrize("first", range(0, 40, 4))
def test_full_is_told_where_the_car_says_nothing_before_it_is_full(first: int) -> None:
    bmw = Bmw(**DEPARTURE["00:00"])
    news = told(bmw, {**DEPARTURE, **END}, first, "21:45")
    assert kinds(news)[-2:] == ["started", "full"]
    assert "from" not in news[-2]


def test_until_the_car_speaks_its_charge_is_shown_as_old(full: Bmw) -> None:
    full.polled("08:00", plug="DISCONNECTED@07:00")
    assert full.polled("18:02", **DEPARTURE["18:00"], minutes="180@18:00") == [
        "started: Charging has begun, full about 21:00"
    ]
    assert (full.line, full.age) == ("100% charging", "16 h")


@pytest.mark.parametrize("is_seen_at_96", [True, False])
def test_car_that_was_driven_to_96_is_full_a_second_time(full: Bmw, is_seen_at_96: bool) -> None:
    if is_seen_at_96:
        assert full.polled("08:00", plug="DISCONNECTED@07:00", header="96@07:50") == []
    end: Words = {"header": "100@09:00", "status": "CHARGINGENDED@09:00"}
    news = full.polled("09:10", plug="CONNECTED@08:10", **end)
    assert news == ["full: Fully charged. The charging station can be freed."]


def test_old_full_that_is_sent_anew_with_the_plug_is_not_told(full: Bmw) -> None:
    assert full.polled("10:00", plug="CONNECTED@09:00", header="100@09:01") == []
    assert full.polled("10:40") == []


def test_new_plug_is_seen_where_the_end_of_a_top_up_was_never_shown(full: Bmw) -> None:
    assert full.polled("06:30", header="98@06:20", status="CHARGINGACTIVE@06:20") == []
    again: Words = {"plug": "CONNECTED@07:20", "status": "CHARGINGACTIVE@07:21"}
    assert kinds(full.polled("07:30", **again, header="97@07:21")) == ["started"]
    assert kinds(full.polled("08:10", header="100@08:00", status="CHARGINGENDED@08:00")) == ["full"]


def test_new_plug_is_seen_where_it_was_full_at_the_first_reading() -> None:
    bmw = Bmw(plug="CONNECTED@01:00", status="CHARGINGENDED@02:00", header="100@02:00")
    assert bmw.polled("02:10") == []
    again: Words = {"plug": "CONNECTED@12:00", "status": "CHARGINGENDED@13:00"}
    assert kinds(bmw.polled("13:10", **again, header="100@13:00")) == ["full"]


def test_without_any_word_of_the_plug_what_a_top_up_has_left_tells_that_it_was_driven() -> None:
    bmw = Bmw(status="NOCHARGING@00:00", header="60@00:00")
    bmw.polled("00:10")
    bmw.polled("00:40", status="CHARGINGACTIVE@00:30")
    assert kinds(bmw.polled("02:10", status="CHARGINGENDED@02:00", header="100@02:00")) == ["full"]
    assert bmw.polled("06:30", status="CHARGINGACTIVE@06:20", header="99@06:20") == []
    assert bmw.polled("07:10", status="NOCHARGING@07:00", header="94@07:00") == []
    assert kinds(bmw.polled("18:10", status="CHARGINGACTIVE@18:00")) == ["started"]
    assert kinds(bmw.polled("19:10", status="CHARGINGENDED@19:00", header="100@19:00")) == ["full"]


def test_without_any_word_of_the_plug_the_charge_tells_that_it_was_driven() -> None:
    bmw = Bmw(status="CHARGINGACTIVE@00:30", header="60@00:30")
    bmw.polled("00:40")
    full: Words = {"status": "CHARGINGENDED@02:00", "header": "100@02:00"}
    assert kinds(bmw.polled("02:10", **full)) == ["full"]
    assert bmw.polled("12:10", status="NOCHARGING@12:00", header="80@12:00") == []
    assert bmw.line == "80% not charging"
    assert kinds(bmw.polled("18:10", status="CHARGINGACTIVE@18:00")) == ["started"]
    assert kinds(bmw.polled("19:30", status="CHARGINGENDED@19:20", header="100@19:20")) == ["full"]


def test_without_any_word_of_the_plug_long_minutes_tell_that_it_is_no_top_up() -> None:
    bmw = Bmw(status="CHARGINGENDED@02:00", header="100@02:00")
    bmw.polled("02:10")
    charging: Words = {"status": "CHARGINGACTIVE@18:00", "minutes": "150@18:00"}
    assert kinds(bmw.polled("18:10", **charging)) == ["started"]
    assert kinds(bmw.polled("20:40", status="CHARGINGENDED@20:30", header="100@20:30")) == ["full"]


def test_without_any_word_of_the_plug_minutes_may_come_later_than_the_beginning() -> None:
    bmw = Bmw(status="CHARGINGENDED@02:00", header="100@02:00")
    bmw.polled("02:10")
    assert bmw.polled("18:10", status="CHARGINGACTIVE@18:00") == []
    assert kinds(bmw.polled("18:50", minutes="150@18:05")) == ["started"]
    assert kinds(bmw.polled("20:40", status="CHARGINGENDED@20:30", header="100@20:30")) == ["full"]


def test_charge_that_begins_anew_from_less_is_followed_to_its_end() -> None:
    """A station had stopped at once, and goes on hours later."""
    bmw = Bmw(plug="CONNECTED@16:50", status="NOCHARGING@16:00", header="53@16:00")
    bmw.polled("16:52")
    active: Words = {"status": "CHARGINGACTIVE@16:56", "header": "53@16:56", "minutes": "95@16:56"}
    assert kinds(bmw.polled("17:00", **active)) == ["started"]
    assert kinds(bmw.polled("18:22")) == ["soon"]
    assert kinds(bmw.polled("19:10")) == ["overdue"]
    assert bmw.line == "~99% charging"

    assert bmw.polled("2 01:01", header="53@2 01:00", minutes="95@2 01:00") == []
    assert bmw.line == "~53% charging"
    bmw.polled("2 01:48")
    assert bmw.line == "~76% charging"
    assert kinds(bmw.polled("2 02:25")) == ["soon"]
    (full,) = bmw.polled("2 02:36", header="100@2 02:35", status="CHARGINGENDED@2 02:35")
    assert full.startswith("full: Fully charged: 53 → 100% in 1 h 35 min.")


def test_charge_that_begins_anew_from_less_began_when_the_car_said_so() -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="60@17:00")
    bmw.polled("17:10")
    bmw.polled("20:30", header="50@20:00")
    (full,) = bmw.polled("22:10", header="100@22:00", status="CHARGINGENDED@22:00")
    assert full.startswith("full: Fully charged: 50 → 100% in 2 h.")


def test_word_of_an_earlier_session_is_no_beginning(full: Bmw) -> None:
    full.shows(status="CHARGINGACTIVE@00:30")  # it sticks
    full.polled("03:00")
    assert full.line == "100% full"
    full.polled("08:00", plug="DISCONNECTED@07:00")
    assert full.polled("18:10", plug="CONNECTED@18:00") == []
    assert full.line == "100% plugged in"


def test_plug_whose_word_comes_late_is_that_of_the_charge_that_was_told() -> None:
    bmw = Bmw(**at_rest("79"))
    bmw.polled("01:00")
    assert kinds(bmw.polled("02:40", header="100@02:30", status="CHARGINGENDED@02:30")) == ["full"]
    assert bmw.polled("03:20", plug="CONNECTED@01:20") == []


def test_word_that_the_car_said_before_it_left_is_no_beginning_at_the_next_plug() -> None:
    bmw = Bmw(plug="DISCONNECTED@05:20", status="NOCHARGING@05:00", header="60@05:00")
    bmw.polled("05:30")
    late: Words = {"status": "CHARGINGACTIVE@05:19"}
    assert bmw.polled("09:40", plug="CONNECTED@09:30", **late) == []
    assert bmw.polled("10:20") == []
    assert bmw.line == "60% plugged in"
    assert kinds(bmw.polled("11:10", status="CHARGINGACTIVE@11:00")) == ["started"]


@pytest.mark.parametrize(
    ("parked", "plugged", "message"),
    [
        ("60@17:55", "CONNECTED@18:00", "Charging from 60%"),
        ("60@12:00", "CONNECTED@18:00", "Charging has begun"),  # it may have been driven since
        ("100@12:00", "", "Charging has begun"),
        ("60@12:00", "", "Charging from 60%"),
    ],
)
def test_started_names_the_charge_only_where_it_is_of_now(
    parked: str, plugged: str, message: str
) -> None:
    bmw = Bmw(status="NOCHARGING@11:00", header=parked, plug=plugged)
    bmw.polled("17:58")
    active: Words = {"status": "CHARGINGACTIVE@18:00", "minutes": "160@18:00"}
    assert bmw.polled("18:10", **active) == [f"started: {message}, full about 20:40"]


# --- The end of a charge ----------------------------------------------------------------


def test_no_charging_ends_a_charge_where_the_plug_says_nothing() -> None:
    bmw = Bmw(status="NOCHARGING@17:00", header="41@17:00", hv_status="INVALID")
    bmw.polled("17:50")
    bmw.polled("18:10", status="CHARGINGACTIVE@18:00", header="60@18:00")
    stopped = "stopped: Charging stopped at 60% (not charging)"
    assert bmw.polled("18:50", status="NOCHARGING@18:40") == [f"{stopped}, 60 → 60% in 40 min"]
    assert bmw.polled("19:30", header="68@19:20") == [
        "stopped: Charging stopped at 68% (not charging)"
    ]
    assert bmw.polled("20:10", header="69@20:00") == []


@pytest.mark.parametrize(("header", "news"), [("62", 0), ("63", 1)])
def test_charge_that_came_and_went_between_two_readings_is_told_by_its_end(
    header: str, news: int
) -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="NOCHARGING@17:00", header="60@17:00")
    bmw.polled("17:10")
    found = bmw.polled("18:10", status="CHARGINGENDED@18:00", header=f"{header}@18:00")
    assert found == ["stopped: Charging stopped at 63% (plugged in)"] * news


@pytest.mark.parametrize(("ended", "news"), [("02:29", ["full"]), ("02:31", [])])
def test_charge_at_100_percent_goes_on_for_half_an_hour_at_most(
    ended: str, news: list[str]
) -> None:
    """Nobody has seen it: the computer was asleep."""
    bmw = Bmw(plug="CONNECTED@00:10", status="NOCHARGING@00:00", header="98@00:00")
    bmw.polled("00:20")
    full: Words = {"header": "100@02:00", "status": f"CHARGINGENDED@{ended}"}
    assert kinds(bmw.polled("07:00", **full)) == news


def test_charge_that_came_and_went_is_told_where_the_status_sticks() -> None:
    bmw = Bmw(plug="CONNECTED@00:10", status="NOCHARGING@00:00", header="98@00:00")
    bmw.polled("00:20")
    full: Words = {"header": "100@02:00", "status": "CHARGINGACTIVE@00:30"}
    assert kinds(bmw.polled("07:00", **full)) == ["full"]


def test_charge_that_was_only_predicted_before_is_no_charge_that_came_and_went() -> None:
    bmw = Bmw(plug="DISCONNECTED@17:00", status="NOCHARGING@17:00", predicted="14")
    bmw.polled("17:10")
    assert bmw.polled("17:50", header="64@17:00") == []
    assert bmw.line == "64% unplugged"


def test_charge_that_rises_on_a_drive_after_an_end_is_no_second_end() -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="60@17:00")
    bmw.polled("17:10")
    away: Words = {"plug": "DISCONNECTED@18:00", "status": "NOCHARGING@18:00"}
    assert kinds(bmw.polled("18:10", **away, header="79@18:00")) == ["stopped"]
    assert bmw.polled("18:50", header="87@18:40") == []


def test_car_that_has_left_full_before_its_end_was_shown_is_told_as_full() -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="NOCHARGING@17:00", header="80@17:00")
    bmw.polled("17:05")
    bmw.polled("17:15", status="CHARGINGACTIVE@17:10", header="80@17:10")
    bmw.polled("18:40", header="100@18:30")
    away: Words = {"plug": "DISCONNECTED@18:50", "status": "NOCHARGING@18:50"}
    assert bmw.polled("19:20", **away, header="86@19:15") == [
        "full: Fully charged: 80 → 100% in 1 h 40 min."
    ]


def test_end_of_before_a_charge_seemed_to_begin_anew_is_not_told() -> None:
    """It is topped up, and driven off, while its status sticks and the plug says nothing."""
    bmw = Bmw(status="CHARGINGENDED@02:00", header="100@02:00")
    bmw.polled("02:10")
    bmw.polled("09:30", status="CHARGINGACTIVE@09:24")
    bmw.polled("10:20", header="90@10:11")
    assert bmw.polled("10:50", status="CHARGINGENDED@09:47") == []


GOAL: Words = {"header": "99@20:00", "status": "CHARGINGENDED@20:00"}


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("CHARGING_GOAL_REACHED@20:00", "full: Fully charged: 60 → 99% in 2 h."),
        ("CHARGING_GOAL_REACHED@10:00", "stopped: Charging stopped at 99% (plugged in)"),
        ("POWERGRID_FAILED@20:00", "stopped: Charging stopped at 99% (the station lost power)"),
    ],
)
def test_i3_that_has_reached_its_goal_at_99_percent_is_full(reason: str, expected: str) -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="NOCHARGING@17:00", header="60@17:00")
    bmw.polled("17:50")
    bmw.polled("18:10", status="CHARGINGACTIVE@18:00", header="60@18:00")
    (news,) = bmw.polled("20:05", **GOAL, reason=reason)
    assert news.startswith(expected)


def test_goal_that_is_told_late_makes_the_car_full_all_the_same() -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="60@17:00")
    bmw.polled("17:10")
    assert kinds(bmw.polled("20:05", **GOAL)) == ["stopped"]
    assert kinds(bmw.polled("20:45", reason="CHARGING_GOAL_REACHED@20:00")) == ["full"]


def test_end_near_full_waits_for_the_cars_word_an_hour_at_most() -> None:
    for charge, news in (("100", "full"), ("95", "stopped")):
        bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="60@17:00")
        bmw.polled("19:00", predicted="97")
        assert bmw.polled("19:40", status="CHARGINGENDED@19:30") == []
        assert bmw.line == "~97% plugged in"
        assert kinds(bmw.polled("20:20", header=f"{charge}@19:30", predicted="")) == [news]

    bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="60@17:00")
    bmw.polled("19:00", predicted="97")
    bmw.polled("19:40", status="CHARGINGENDED@19:30")
    assert kinds(bmw.polled("20:31")) == ["stopped"]


@pytest.mark.parametrize("said", ["19:28", "19:32"])
def test_end_that_was_waited_for_is_of_when_it_was(said: str) -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="NOCHARGING@17:00", header="60@17:00")
    bmw.polled("17:50")
    bmw.polled("18:10", status="CHARGINGACTIVE@18:00", header="60@18:00")
    bmw.polled("19:00", predicted="97")
    bmw.polled("19:40", status="CHARGINGENDED@19:30")
    (news,) = bmw.polled("20:20", header=f"100@{said}", predicted="")
    assert news.startswith("full: Fully charged: 60 → 100% in 1 h 30 min.")


def test_while_the_cars_word_on_the_end_is_waited_for_no_charge_is_news() -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="60@17:00")
    bmw.watch = i3charge.ChargeWatch(bmw.memory, 95, 2400)
    bmw.polled("19:00", predicted="90")
    assert bmw.polled("19:40", status="CHARGINGENDED@19:30", predicted="97") == []
    (news,) = bmw.polled("20:20", header="92@19:30", predicted="")
    assert news.startswith("stopped: Charging stopped at 92%")


def test_100_percent_of_before_the_charge_is_not_its_end() -> None:
    bmw = Bmw(status="NOCHARGING@06:00", header="100@06:00")
    bmw.polled("06:10")
    bmw.polled("08:10", status="CHARGINGACTIVE@08:00", minutes="160@08:00")
    (news,) = bmw.polled("08:50", status="NOCHARGING@08:40")
    assert news.startswith("stopped: ")


def test_end_that_was_told_is_not_told_again_when_the_car_says_its_charge() -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="60@17:00")
    bmw.polled("19:00", predicted="70")
    assert kinds(bmw.polled("19:40", status="CHARGINGENDED@19:30")) == ["stopped"]
    assert bmw.polled("20:20", header="76@19:30", predicted="") == []


def test_prediction_that_was_too_high_is_no_drive() -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="60@17:00")
    assert kinds(bmw.polled("19:00", predicted="97", minutes="125@17:00")) == ["soon"]
    end: Words = {"status": "CHARGINGENDED@19:10", "header": "80@19:10", "predicted": ""}
    assert kinds(bmw.polled("19:20", **end)) == ["stopped"]
    bmw.polled("20:00", header="80@19:50")
    again: Words = {"status": "CHARGINGACTIVE@20:10", "minutes": "9@20:10"}
    assert kinds(bmw.polled("20:11", **again)) == ["started"]  # "soon" is told once a charge


def test_charge_that_was_seen_only_in_a_pause_is_told_when_it_is_full(full: Bmw) -> None:
    full.polled("03:10")  # "still"
    full.polled("03:50", plug="CONNECTED@03:20", status="CHARGINGPAUSED@03:30", header="98@03:20")
    end: Words = {"status": "CHARGINGENDED@04:10", "header": "100@04:10"}
    assert kinds(full.polled("04:20", **end)) == ["full"]


def test_status_that_sticks_ends_with_the_cars_own_100_percent() -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="60@17:00")
    bmw.polled("17:10")
    assert kinds(bmw.polled("20:10", header="100@20:00")) == ["step"]
    assert bmw.polled("20:29") == []
    assert kinds(bmw.polled("20:31")) == ["full"]
    assert bmw.polled("20:55", header="99@20:50") == []  # it flickers
    assert bmw.line == "99% full"


def test_status_that_sticks_ends_with_the_plug_too() -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="60@17:00")
    bmw.polled("17:10")
    end = bmw.polled("20:10", header="100@20:00", plug="DISCONNECTED@20:05")
    assert end == ["full: Fully charged."]


def test_car_that_says_less_is_full_no_more_whatever_bmw_predicts() -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="60@17:00")
    bmw.polled("17:10")
    assert kinds(bmw.polled("20:31", header="100@20:00", predicted="100")) == ["full"]
    assert bmw.polled("21:11", header="93@21:00") == []
    assert bmw.line == "93% plugged in"


# --- BMW's own word that it is full -----------------------------------------------------

GOAL_WORD = "FINISHED_FULLY_CHARGED"


def test_bmws_word_counts_with_the_cars_own_that_was_said_in_the_charge() -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="60@17:00")
    bmw.polled("17:10", hv_status=GOAL_WORD, predicted="61")
    assert bmw.polled("19:00", predicted="99") == ["step: ~99% charged"]
    assert kinds(bmw.polled("19:40", header="99@19:20")) == ["full"]


def test_cars_own_reason_for_the_end_wins_over_bmws_word() -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="97@17:00")
    bmw.polled("17:10", hv_status=GOAL_WORD)
    (news,) = bmw.polled("20:05", **GOAL, reason="POWERGRID_FAILED@20:00")
    assert news.startswith("stopped: Charging stopped at 99% (the station lost power)")


def test_bmws_word_of_the_charge_before_does_not_make_the_next_one_full(full: Bmw) -> None:
    full.polled("03:00", hv_status=GOAL_WORD, predicted="100")
    full.polled("07:10", plug="DISCONNECTED@07:00", header="97@07:05", predicted="97")
    again: Words = {
        "plug": "CONNECTED@07:20",
        "status": "CHARGINGACTIVE@07:20",
        "header": "97@07:20",
    }
    assert kinds(full.polled("07:50", **again, predicted="99")) == ["started"]
    assert full.polled("08:00") == []
    assert kinds(full.polled("08:20", header="100@08:15", status="CHARGINGENDED@08:15")) == ["full"]


def test_day_that_the_script_has_as_an_example() -> None:
    bmw = Bmw(plug="CONNECTED@00:30", status="NOCHARGING@00:30", header="41@00:30")
    assert bmw.polled("00:40") == []
    day: list[tuple[str, Words, list[str]]] = [
        ("01:10", {"status": "CHARGINGACTIVE@01:00", "header": "41@01:00"}, ["Charging from 41%"]),
        ("01:50", {"predicted": "53"}, ["~53% charged"]),
        ("04:10", {"status": "CHARGINGENDED@04:00", "header": "100@04:00"}, ["Fully charged: 41"]),
        ("06:20", {"status": "CHARGINGACTIVE@06:15", "header": "99@06:15", "predicted": ""}, []),
        ("06:40", {"status": "CHARGINGENDED@06:35", "header": "100@06:35"}, []),
        ("08:00", {"status": "NOCHARGING@07:50", "header": "62@07:50"}, []),
        ("08:20", {"status": "CHARGINGACTIVE@08:10", "header": "62@08:10"}, ["Charging from 62%"]),
    ]
    for clock, words, expected in day:
        found = [news.partition(": ")[2][: len(expected[0])] for news in bmw.polled(clock, **words)]
        assert found == expected


# --- A top-up is no charge --------------------------------------------------------------


def test_top_up_before_departure_tells_nothing(full: Bmw) -> None:
    full.polled("03:10")  # "still"
    assert full.polled("06:22", header="99@06:20", status="CHARGINGACTIVE@06:20") == []
    assert full.polled("06:30", header="100@06:28", status="CHARGINGENDED@06:28") == []
    assert full.polled("06:40", header="99@06:35", status="CHARGINGACTIVE@06:35") == []
    assert full.polled("07:10", plug="DISCONNECTED@07:00", status="NOCHARGING@07:00") == []


def test_top_up_of_more_than_5_percent_tells_nothing_either(full: Bmw) -> None:
    full.polled("03:10")  # "still"
    assert full.polled("06:22", header="98@06:20", status="CHARGINGACTIVE@06:20") == []
    assert full.polled("06:30", header="94@06:28") == []
    assert full.polled("06:40", predicted="99") == []


def test_car_that_flickers_between_99_and_100_percent_tells_nothing(full: Bmw) -> None:
    full.polled("03:10")  # "still"
    assert full.polled("04:10", header="99@04:00") == []
    assert full.polled("05:10", header="100@05:00") == []
    assert full.polled("07:10", plug="DISCONNECTED@07:00") == []
    assert full.polled("08:10", header="99@08:00") == []
    assert full.polled("09:10", header="100@09:00") == []


def test_car_that_was_full_at_the_first_reading_tells_nothing_of_it_later() -> None:
    bmw = Bmw(**FULL_AT_TWO)
    assert bmw.polled("03:00") == []
    assert bmw.polled("04:10", header="99@04:00") == []
    assert bmw.polled("05:10", header="100@05:00") == []
    assert bmw.polled("06:22", header="99@06:20", status="CHARGINGACTIVE@06:20") == []
    assert bmw.polled("06:30", header="100@06:28", status="CHARGINGENDED@06:28") == []


def test_what_is_a_day_and_a_half_old_is_not_held() -> None:
    bmw = Bmw(plug="CONNECTED@17:00", status="CHARGINGACTIVE@17:00", header="60@17:00")
    bmw.polled("19:00", predicted="97")
    bmw.polled("3 07:01", predicted="80")
    assert bmw.line == "~80% charging"
