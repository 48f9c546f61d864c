"""What survives a restart: one file, which one process owns."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import ROOT, SCRIPT, Script, Start, write_settings
from fake_bmw import VIN, Portal, Recorder
from fake_cardata import CarData, full, telematic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import i3charge
from i3charge import Container, Memory, MemoryFile, Message, News, Observation, Reading, SignIn

NOW_S = time.time()
REACHED = News("reached", "80% reached", at_s=9e8, since_s=8e8, click="x", good_until_s=2e9)


def whole_memory() -> Memory:
    """Return a memory in which no field has its default."""
    return Memory(
        client_id="client",
        vin=VIN,
        sign_in=SignIn("secret-access", 4e9, "secret-refresh", 1, True, 2, 3, 1.6e9),
        container=Container("S1", i3charge.FULL_SET, True, 5.5),
        requests_s=[1.5, 2],
        journal=[
            Observation(1e9, "plug", "CONNECTED"),
            Observation(1e9, "percent", 41),
            Observation(1e9 + 1, "displayed", 41.5),
            Observation(1e9 + 1, "status", "CHARGINGACTIVE"),
            Observation(1e9 + 1, "hv_status", "CHARGING"),
            Observation(1e9 + 1, "full_at", 1.1e9),
            Observation(1e9 + 2, "reason", "CHARGING_GOAL_REACHED"),
            Observation(1e9 + 2, "predicted", 42.5),
        ],
        last=Reading(61.5, 1e9, "charging", True, True, 101, "km", 1.1e9, 9.5e8),
        range_unit="km",
        step_from=60.5,
        news_told_s={"soon": 1e9},
        troubles_told_s={"sign-in": 1e9},
        outbox=[Message("NTFY_URL", REACHED, 1e9, 61.5, True, "charging", 1.1e9, 2, True)],
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".i3charge.json"


@pytest.fixture
def file(path: Path) -> Iterator[MemoryFile]:
    """Owned by this process until the end of the test."""
    file = MemoryFile(path)
    yield file
    if file._lock:
        file._lock.close()


def load(file: MemoryFile, client_id: str = "client", vin: str = VIN) -> Memory:
    return file.load(client_id, vin)


# --- The file -------------------------------------------------------------------------


def test_every_field_is_kept(file: MemoryFile) -> None:
    whole = whole_memory()
    records: list[Any] = [whole, whole.sign_in, whole.container, whole.last, *whole.outbox]
    for record in records:
        for name, value in vars(record).items():
            assert value != getattr(type(record)(), name), name
    assert {each.topic for each in whole.journal} == set(i3charge.TOPICS)
    assert file.save(whole)
    assert load(file) == whole


def test_only_its_owner_can_read_the_file_from_its_first_moment(
    file: MemoryFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        modes.append(os.fstat(descriptor).st_mode & 0o777)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    old_mask = os.umask(0)
    try:
        file.save(whole_memory())
    finally:
        os.umask(old_mask)
    assert modes == [0o600] and path.stat().st_mode & 0o777 == 0o600


def test_file_is_replaced_as_a_whole(
    file: MemoryFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.save(whole_memory())
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert not file.save(Memory(vin="other"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "name"), [(".env", ".i3charge.json"), ("b.env", ".i3charge-b.env.json")]
)
def test_file_is_named_after_the_settings_file_and_git_ignores_it(settings: str, name: str) -> None:
    path = i3charge.memory_path(ROOT / settings)
    assert path == ROOT / name
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    for ending in ("", ".new", ".lock", ".damaged"):
        command = ["git", "check-ignore", "-q", f"{path}{ending}"]
        assert subprocess.run(command, cwd=ROOT).returncode == 0


def test_file_is_beside_the_script_if_the_settings_come_from_a_pipe(
    portal: Portal, env: dict[str, str], tmp_path: Path
) -> None:
    script_copy = shutil.copy(SCRIPT, tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    script = Script([sys.executable, str(script_copy), "--once", "--env-file", str(pipe)], env)
    write_settings(pipe, portal.settings())
    assert script.end() == 0
    assert (tmp_path / ".i3charge.json").exists()


def test_first_start_needs_no_file(file: MemoryFile) -> None:
    assert load(file) == Memory("client", VIN)


def test_another_client_id_loses_only_the_sign_in_and_the_container(file: MemoryFile) -> None:
    file.save(whole_memory())
    expected = dataclasses.replace(
        whole_memory(), client_id="another", sign_in=SignIn(), container=Container()
    )
    assert load(file, client_id="another") == expected


def test_portal_keeps_the_sign_in_at_cardata(file: MemoryFile) -> None:
    """The portal has no client id."""
    file.save(whole_memory())
    assert load(file, client_id="") == whole_memory()


def test_another_car_loses_only_what_the_first_car_has_said_and_what_was_told_of_it(
    file: MemoryFile,
) -> None:
    file.save(whole_memory())
    vin = "WBY00000000000000"
    blank = Memory()
    expected = dataclasses.replace(
        whole_memory(),
        vin=vin,
        journal=blank.journal,
        last=blank.last,
        range_unit=blank.range_unit,
        step_from=blank.step_from,
        news_told_s=blank.news_told_s,
    )
    assert load(file, vin=vin) == expected


# --- A file of another version --------------------------------------------------------

VERSION_3_0_0: dict[str, Any] = {
    "version": 1,
    "client_id": "client",
    "vin": VIN,
    "sign_in": {
        "access_token": "secret-access",
        "expires_s": 4e9,
        "refresh_token": "secret-refresh",
        "refusals": 0,
        "has_worked": True,
        "outage_told": False,
        "owner_told_s": 0.0,
    },
    "container": {"id": "S1", "purpose": "descriptors 3", "next_full_try_s": 0.0},
    "requests_s": [1.5],
    "session": {"seen_s": 1.8e9, "status": "charging", "charge": 61.5, "told": ["soon"]},
    "outbox": [{"address": "NTFY_URL", "body": "Fully charged.", "headers": {}, "made_s": 1.8e9}],
}
VERSION_3_1_0: dict[str, Any] = {
    "client_id": "client",
    "vin": VIN,
    "sign_in": {
        "access_token": "secret-access",
        "expires_s": 4e9,
        "refresh_token": "secret-refresh",
        "refusals": 0,
    },
    "container": {"id": "S1", "purpose": "descriptors 3", "next_search_s": 0.0},
    "requests_s": [1.5],
    "last": {
        "charge": 94.5,
        "taken_s": 1.79e9,
        "status": "charging",
        "status_s": 1.78e9,
        "source": "BMW",
        "plugged": True,
        "plugged_s": 1.78e9,
        "range": 101.0,
        "range_unit": "km",
        "full_at_s": 1.791e9,
        "last_word_s": 1.785e9,
        "car_said": 41.0,
        "car_said_s": 1.78e9,
        "end_said_s": 0.0,
        "end_reason": "",
        "end_reason_s": 0.0,
    },
    "session": {
        "began_s": 1.78e9,
        "began_percent": "41%",
        "expected_s": 1.791e9,
        "ended_s": 0.0,
        "highest": 94.5,
        "lowest_since_news": 90.0,
        "told": ["started"],
    },
    "told_s": {"sign-in": 1.7e9},
    "outbox": [
        {
            "address": "NTFY_URL",
            "news": {"kind": "reached", "message": "80% reached", "click": "", "good_until_s": 0},
            "made_s": 1.79e9,
            "charge": 80.2,
            "predicted": True,
            "status": "charging",
            "next_try_s": 0.0,
            "unanswered": 1,
        },
        {
            "address": "WEBHOOK_URL",
            "news": {"kind": "error", "message": "x", "click": "", "good_until_s": 2e9},
            "made_s": 1.79e9,
            "charge": None,
            "predicted": None,
            "status": None,
            "next_try_s": 1.8e9,
            "unanswered": 0,
        },
    ],
}
OUTBOX_3_1_0 = [
    Message("NTFY_URL", News("reached", "80% reached"), 1.79e9, 80.2, True, "charging", 0, 1),
    Message("WEBHOOK_URL", News("error", "x", good_until_s=2e9), 1.79e9, next_try_s=1.8e9),
]


@pytest.mark.parametrize(
    ("saved", "percent", "outbox"),
    [
        pytest.param(VERSION_3_0_0, None, [], id="3.0.0"),  # its messages have no kind
        pytest.param(VERSION_3_1_0, 94.5, OUTBOX_3_1_0, id="3.1.0"),
    ],
)
def test_memory_of_an_older_version_keeps_what_the_new_version_knows(
    file: MemoryFile,
    path: Path,
    saved: dict[str, Any],
    percent: float | None,
    outbox: list[Message],
) -> None:
    path.write_text(json.dumps(saved))
    loaded = load(file)
    assert loaded.sign_in == SignIn("secret-access", 4e9, "secret-refresh")
    assert loaded.container == Container("S1", i3charge.FULL_SET)
    assert loaded.requests_s == [1.5]
    assert (loaded.last.percent if loaded.last else None) == percent
    assert loaded.outbox == outbox


def soon_full() -> dict[str, Any]:
    return telematic(minutes=("5", 0), predicted="96")


@pytest.mark.parametrize(
    ("reports", "news"),
    [([soon_full], []), ([full], []), ([soon_full, full], ["Fully charged"])],
    ids=["soon", "full", "soon, then full"],
)
def test_memory_of_version_3_1_0_goes_on_and_tells_nothing_at_its_first_report(
    cardata: CarData,
    start: Start,
    kept: Path,
    ntfy: Recorder,
    reports: list[Callable[[], dict[str, Any]]],
    news: list[str],
) -> None:
    saved = copy.deepcopy(VERSION_3_1_0)
    new = dataclasses.asdict(cardata.signed_in())
    for name in ("access_token", "refresh_token"):
        saved["sign_in"][name] = new["sign_in"][name]
    saved["container"]["id"] = new["container"]["id"]
    saved["client_id"] = new["client_id"]
    saved["last"]["taken_s"] = saved["outbox"][0]["made_s"] = time.time()
    del saved["outbox"][1:]
    kept.write_text(json.dumps(saved))

    cardata.readings = [make() for make in reports]
    script = start(settings={**cardata.settings(), "NTFY_URL": ntfy.url + "secret-topic"})
    script.wait_for_readings(4)
    script.wait_for_stderr("was told: ", 1 + len(news))
    assert script.interrupt() == 130
    told = [line.partition("was told: ")[2] for line in script.news if "was told: " in line]
    expected = ["80% reached", *news]
    assert len(told) == len(ntfy.accepted) == len(expected)
    assert all(text.startswith(words) for text, words in zip(told, expected))
    assert script.stderr_with("Full in about") == script.stderr_with("Charging from") == 0
    assert script.stderr_with("  Fully charged") == len(news)
    assert (cardata.sign_ins, cardata.refreshes, cardata.containers_made) == (0, 0, 1)


def test_new_memory_tells_soon_at_its_first_report(
    cardata: CarData, start: Start, kept: Path, ntfy: Recorder
) -> None:
    cardata.keep(kept)
    cardata.readings = [soon_full()]
    settings = {**cardata.settings(), "NTFY_URL": ntfy.url + "secret-topic"}
    assert start("--once", settings=settings).end() == 0
    (message,) = ntfy.messages()
    assert re.fullmatch(r"Full in about \d min, at \d\d:\d\d", message)


# --- Values that do not fit -----------------------------------------------------------

ODD: list[Any] = [None, True, -1, 1e300, float("nan"), "now", [], [1], {}, {"a": []}]
RECORDS: dict[str, Any] = {"sign_in": SignIn(), "container": Container(), "last": Reading()}


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_odd_value_costs_its_field_and_nothing_else(
    file: MemoryFile, path: Path, value: Any
) -> None:
    whole = dataclasses.asdict(whole_memory())
    for part in RECORDS:
        for name in whole[part]:
            path.write_text(json.dumps({**whole, part: {**whole[part], name: value}}))
            loaded = dataclasses.asdict(load(file))
            for other, expected in whole.items():
                assert other == part or loaded[other] == expected
            # A reading needs a percentage and a known status.
            is_lost = name == "percent" or (name, value) == ("status", "now")
            assert (loaded[part] is None) == is_lost
            if not is_lost:
                assert {**loaded[part], name: whole[part][name]} == whole[part]


def test_missing_value_costs_its_field_and_nothing_else(file: MemoryFile, path: Path) -> None:
    whole = dataclasses.asdict(whole_memory())
    for part, record in RECORDS.items():
        for name in set(whole[part]) - {"percent"}:
            rest = {each: value for each, value in whole[part].items() if each != name}
            path.write_text(json.dumps({**whole, part: rest}))
            loaded = dataclasses.asdict(load(file))
            assert loaded == {**whole, part: {**rest, name: getattr(record, name)}}


FITTING: dict[str, list[object]] = {"requests_s": [[1]], "range_unit": ["now"]}
PARTS = [each.name for each in dataclasses.fields(Memory) if each.name not in ("client_id", "vin")]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_odd_part_is_begun_anew_and_the_others_stay(
    file: MemoryFile, path: Path, value: Any
) -> None:
    whole = dataclasses.asdict(whole_memory())
    for part in PARTS:
        path.write_text(json.dumps({**whole, part: value}))
        loaded = load(file)
        fits = value in FITTING.get(part, [])
        assert getattr(loaded, part) == (value if fits else getattr(Memory(), part))
        for other in set(PARTS) - {part}:
            assert getattr(loaded, other) == getattr(whole_memory(), other)


WHOLE_MESSAGE = dataclasses.asdict(whole_memory().outbox[0])


@pytest.mark.parametrize(
    ("saved", "is_kept"),
    [
        ({}, False),
        ("text", False),
        ({"news": WHOLE_MESSAGE["news"]}, False),
        ({**WHOLE_MESSAGE, "address": 1}, False),
        ({**WHOLE_MESSAGE, "news": {**WHOLE_MESSAGE["news"], "kind": "a newer one"}}, False),
        ({**WHOLE_MESSAGE, "news": {"kind": "full"}}, False),
        ({**WHOLE_MESSAGE, "news": [1]}, False),
        ({"address": "NTFY_URL", "news": {"kind": "full", "message": "Full"}}, True),
        ({**WHOLE_MESSAGE, "charge": "much", "made_s": {}, "unanswered": None}, True),
    ],
)
def test_message_is_kept_if_it_can_be_told(
    file: MemoryFile, path: Path, saved: object, is_kept: bool
) -> None:
    path.write_text(json.dumps({"outbox": [saved, WHOLE_MESSAGE]}))
    assert len(load(file).outbox) == 1 + is_kept


# --- The journal on disk --------------------------------------------------------------

GOOD = [[NOW_S - 3600, "percent", 52], [NOW_S - 1800, "status", "CHARGINGACTIVE"]]

ODD_ENTRIES: list[object] = [
    None,
    "text",
    [],
    [1e9, "percent"],
    [1e9, "percent", 52, 1],
    {"at_s": 1e9, "topic": "percent", "value": 52},
    [None, "percent", 52],
    ["now", "percent", 52],
    [-1, "percent", 52],
    [float("nan"), "percent", 52],
    [float("inf"), "percent", 52],
    [10**30, "percent", 52],
    [True, "percent", 52],
    [1e9, "a newer topic", 52],
    [1e9, None, 52],
    [1e9, ["percent"], 52],
    [1e9, {}, 52],
    [1e9, "percent", None],
    [1e9, "percent", True],
    [1e9, "percent", -1],
    [1e9, "displayed", 100.1],
    [1e9, "predicted", "much"],
    [1e9, "percent", [52]],
    [1e9, "full_at", 1e300],
    [1e9, "full_at", {}],
    [1e9, "status", "A_NEWER_STATUS"],
    [1e9, "status", ["CHARGINGACTIVE"]],
    [1e9, "hv_status", {}],
    [1e9, "plug", 1],
    [1e9, "reason", None],
]


@pytest.mark.parametrize("entry", ODD_ENTRIES, ids=repr)
def test_odd_observation_is_left_out_and_the_others_count(
    file: MemoryFile, path: Path, entry: object
) -> None:
    path.write_text(json.dumps({"vin": VIN, "journal": [GOOD[0], entry, GOOD[1]]}))
    assert [list(each) for each in load(file).journal] == GOOD


def test_odd_journal_stops_no_start(cardata: CarData, start: Start, kept: Path) -> None:
    saved = dataclasses.asdict(cardata.signed_in())
    kept.write_text(json.dumps({**saved, "journal": ODD_ENTRIES}))
    script = start("--once", settings=cardata.settings())
    assert script.end() == 0
    assert (len(script.stdout), script.stderr_with("fault"), cardata.sign_ins) == (1, 0, 0)


def report() -> i3charge.Report:
    observations = [
        Observation(NOW_S, "plug", "CONNECTED"),
        Observation(NOW_S, "percent", 62.0),
        Observation(NOW_S, "status", "CHARGINGACTIVE"),
        Observation(NOW_S, "full_at", NOW_S + 3600),
    ]
    return i3charge.Report(NOW_S, NOW_S, observations, 101.0, "km")


@pytest.mark.parametrize(
    ("topic", "value"),
    [("percent", 12), ("plug", "DISCONNECTED"), ("status", "CHARGINGERROR"), ("full_at", 9.1e10)],
)
def test_observation_of_a_far_future_does_not_outlast_what_bmw_reports(
    file: MemoryFile, path: Path, topic: str, value: object
) -> None:
    path.write_text(json.dumps({"vin": VIN, "journal": [*GOOD, [9e10, topic, value]]}))
    watch = i3charge.ChargeWatch(load(file), 0, 2400)
    reading, _ = watch.observe(report())
    found = (reading.percent, reading.status, reading.plugged, reading.full_at_s)
    assert found == (62, "charging", True, NOW_S + 3600)


PERCENTS = st.integers(0, 100) | st.floats(0, 100).map(lambda percent: round(percent, 1))
RECENT = st.floats(NOW_S - 2e5, NOW_S)


def good_values(topic: i3charge.Topic) -> st.SearchStrategy[Any]:
    if topic in i3charge.KEYWORDS:
        return st.sampled_from(sorted(i3charge.KEYWORDS[topic]))
    return RECENT if topic == "full_at" else PERCENTS


GOOD_ENTRIES = st.sampled_from(i3charge.TOPICS).flatmap(
    lambda topic: st.tuples(RECENT, st.just(topic), good_values(topic)).map(list)
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
TIMES = RECENT | st.floats(0, 1e11) | ANYTHING
WORDS = st.sampled_from([word for words in i3charge.KEYWORDS.values() for word in words])
VALUES = WORDS | PERCENTS | TIMES
TOPICS = st.sampled_from(i3charge.TOPICS) | ANYTHING
ANY_ENTRIES = ANYTHING | st.tuples(TIMES, TOPICS, VALUES).map(list)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(good=st.lists(GOOD_ENTRIES, max_size=6), others=st.lists(ANY_ENTRIES), data=st.data())
def test_start_survives_any_journal(
    file: MemoryFile, path: Path, good: list[Any], others: list[Any], data: st.DataObject
) -> None:
    journal = data.draw(st.permutations(good + others))
    path.write_text(json.dumps({"vin": VIN, "journal": journal}))
    memory = load(file)
    assert {tuple(each) for each in good} <= set(memory.journal)

    watch = i3charge.ChargeWatch(memory, 80, 2400)
    reading, news = watch.observe(report())
    watch.next_poll_s(reading, NOW_S)
    assert i3charge.json_line(reading) and i3charge.text_line(reading, i3charge.DATE_IN_FILE)
    for one in news:
        message = Message("NTFY_URL", one, NOW_S)
        assert i3charge.text_to_send(message, NOW_S + 3600)
    assert file.save(memory)
    assert load(file) == memory


def test_timestamp_of_the_year_1_costs_no_memory(cardata: CarData, start: Start) -> None:
    data = telematic()
    for entry in data["telematicData"].values():
        entry["timestamp"] = "0001-01-01T00:00:00Z"
    cardata.readings = [data]
    script = start(settings=cardata.settings())
    script.wait_for_readings(2)
    script.interrupt()
    assert script.stderr_with("fault") == 0
    assert start("--once", settings=cardata.settings()).end() == 0
    assert cardata.sign_ins == 1


# --- A file that is of no use ---------------------------------------------------------

DAMAGED = {
    "a comma too many": b"{,}",
    "a list": b"[]",
    "nested too deeply": b"[" * 100_000,
    "no text": b"\xff\xfe\x00",
    "empty": b"",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file_is_put_aside_and_a_new_one_begun(
    file: MemoryFile, path: Path, name: str, log: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(DAMAGED[name])
    assert load(file) == Memory("client", VIN)
    assert not path.exists()
    assert Path(f"{path}.damaged").read_bytes() == DAMAGED[name]
    begun = "and a new one is started, without the sign-in"
    assert log.messages == [f"{path} is damaged; it is now {path.name}.damaged, {begun}"]


def test_damaged_file_is_reported_once_and_the_program_runs(
    cardata: CarData, start: Start, kept: Path
) -> None:
    kept.write_text("[1]")
    script = start(settings=cardata.settings())
    script.wait_for_readings(3)
    script.interrupt()
    assert script.stderr_with("is damaged") == 1
    assert script.stderr_with("fault") == 0
    assert json.loads(kept.read_text())["last"]["percent"] == 62


def test_file_that_cannot_be_read_ends_the_program_and_stays(
    cardata: CarData, start: Start, kept: Path
) -> None:
    kept.mkdir()
    script = start(settings=cardata.settings())
    assert script.end() == 2
    assert script.stderr_with(f"{kept} cannot be read: Is a directory") == 1
    assert kept.is_dir() and cardata.requests == []


# --- A file that cannot be written ----------------------------------------------------


def test_failing_disk_is_reported_once_until_it_works_again(
    path: Path, log: pytest.LogCaptureFixture
) -> None:
    folder = path.parent / "later"
    file = MemoryFile(folder / path.name)
    assert [file.save(whole_memory()), file.save(whole_memory())] == [False, False]
    assert len(log.messages) == 1 and not file.works
    folder.mkdir()
    assert file.save(whole_memory()) and file.works
    shutil.rmtree(folder)
    assert not file.save(whole_memory())
    assert len(log.messages) == 2


def test_folder_that_is_moved_while_the_program_runs_loses_and_repeats_no_news(
    cardata: CarData, start: Start, tmp_path: Path, ntfy: Recorder
) -> None:
    folder, moved = tmp_path / "folder", tmp_path / "moved"
    folder.mkdir()
    variables = {**cardata.settings(), "NTFY_URL": ntfy.url + "secret-topic"}
    settings_file = write_settings(folder / "b.env", variables)
    cardata.keep(folder / ".i3charge-b.env.json")

    def move(handler: Any) -> None:
        folder.rename(moved)
        handler.reply(200, telematic(predicted="90"))

    cardata.readings = [telematic(predicted="61"), move, full()]
    script = start("--env-file", str(settings_file))
    script.wait_for_readings(20)
    script.interrupt()
    assert script.stderr_with("cannot be written") == 1
    assert script.stderr_with("  Fully charged") == 1
    (message,) = [each for each in ntfy.messages() if "Fully" in each]
    assert message.endswith("The charging station can be freed.")
    last = json.loads((moved / ".i3charge-b.env.json").read_text())["last"]
    assert last["percent"] == 61


# --- One process ----------------------------------------------------------------------


def test_second_process_ends_at_once_and_names_the_first(
    cardata: CarData, start: Start, kept: Path
) -> None:
    cardata.keep(kept)
    first = start(settings=cardata.settings())
    first.wait_for_readings(1)
    second = start("--once", settings=cardata.settings())
    assert second.end() == 1
    (line,) = second.stderr
    assert line.endswith(f"  i3charge is already running (process {first.process.pid})")
    assert second.stdout == []
    first.interrupt()
    third = start("--once", settings=cardata.settings())
    assert third.end() == 0


def test_file_system_without_locks_is_no_obstacle(tmp_path: Path) -> None:
    assert i3charge.locked(tmp_path / "nowhere" / ".i3charge.json.lock") is None
