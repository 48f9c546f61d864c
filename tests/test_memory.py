"""What survives a restart: one file, which one process owns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from conftest import ANYTHING, ROOT, SCRIPT, Script, Start, write_settings
from fake_bmw import VIN, Portal, Recorder, car, full_car
from fake_cardata import CarData, full, telematic
from hypothesis import given
from hypothesis import strategies as st

import i3charge
from i3charge import Container, Memory, MemoryFile, Message, News, Observation, Reading, SignInState

NOW_S = time.time()
REACHED = News("reached", "80% reached", at_s=9e8, since_s=8e8, click="x", good_until_s=2e9)
MESSAGE = Message("NTFY_URL", REACHED, 1e9, 61.5, True, "charging", 1.1e9, 2, True)


def whole_memory() -> Memory:
    """Return a memory in which no field has its default."""
    return Memory(
        client_id="client",
        vin=VIN,
        sign_in=SignInState("secret-access", 4e9, "secret-refresh", 1, True, 2, 3, 1.6e9),
        container=Container("S1", i3charge.FULL_SET, 5.5, {"S0": 1e9}),
        requests_s=[1.5, 2],
        journal=[
            Observation(1e9, topic, min(i3charge.KEYWORDS.get(topic, [41.5])))
            for topic in i3charge.TOPICS
        ],
        last=Reading(61.5, 1e9, "charging", True, True, 101, "km", 1.1e9, 9.5e8),
        range_unit="km",
        step_from=60.5,
        news_told_s={"soon": 1e9},
        troubles_told_s={"sign-in": 1e9},
        outbox=[MESSAGE],
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


# --- The file -------------------------------------------------------------------------


def test_every_field_is_kept(file: MemoryFile) -> None:
    whole = whole_memory()
    records: list[Any] = [whole, whole.sign_in, whole.container, whole.last, MESSAGE]
    for record in records:
        for name, value in vars(record).items():
            assert value != getattr(type(record)(), name), name
    assert file.save(whole)
    assert file.load("client", VIN) == whole


OF_THE_CAR = ["journal", "last", "range_unit", "step_from", "news_told_s"]


@pytest.mark.parametrize(
    ("client_id", "vin", "lost"),
    [
        ("another", VIN, ["sign_in", "container"]),
        ("client", "WBY00000000000000", OF_THE_CAR),
        ("", VIN, []),  # the portal has none
    ],
)
def test_change_of_the_settings_loses_only_what_no_longer_applies(
    file: MemoryFile, client_id: str, vin: str, lost: list[str]
) -> None:
    file.save(whole_memory())
    blank = {name: getattr(Memory(), name) for name in lost}
    owner = {"client_id": client_id or "client", "vin": vin}
    assert file.load(client_id, vin) == Memory(**{**vars(whole_memory()), **blank, **owner})


def test_only_its_owner_can_read_the_file_from_its_first_moment(
    file: MemoryFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    monkeypatch.setattr(os, "fsync", lambda it: modes.append(os.fstat(it).st_mode & 0o777))
    old_mask = os.umask(0)
    try:
        file.save(whole_memory())
    finally:
        os.umask(old_mask)
    assert [*modes, path.stat().st_mode & 0o777] == [0o600, 0o600]


def test_file_is_replaced_as_a_whole(file: MemoryFile, path: Path) -> None:
    file.save(whole_memory())
    before = path.read_bytes()
    with mock.patch.object(os, "replace", side_effect=OSError(28, "No space left on device")):
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
    copy, pipe = shutil.copy(SCRIPT, tmp_path), tmp_path / "pipe"
    os.mkfifo(pipe)
    script = Script([sys.executable, str(copy), "--once", "--env-file", str(pipe)], env)
    write_settings(pipe, portal.settings())
    assert script.end() == 0
    assert (tmp_path / ".i3charge.json").exists()


def test_second_process_ends_at_once_and_names_the_first(portal: Portal, start: Start) -> None:
    first = start(settings=portal.settings())
    first.wait_for_readings(1)
    second = start("--once", settings=portal.settings())
    assert second.end() == 1
    (line,) = second.stderr
    assert line.endswith(f"  i3charge is already running (process {first.process.pid})")
    assert second.stdout == []


# --- A file of another version --------------------------------------------------------

VERSION_3_1_0 = """{
    "client_id": "secret-client-id", "vin": "%(vin)s",
    "sign_in": {"access_token": "%(access)s", "expires_s": 4e9,
        "refresh_token": "%(refresh)s", "refusals": 0},
    "container": {"id": "%(container)s", "purpose": "descriptors 3", "next_search_s": 0.0},
    "requests_s": [1.5],
    "last": {"charge": 94.5, "taken_s": %(now)s, "status": "charging", "status_s": 1.78e9,
        "source": "BMW", "plugged": true, "plugged_s": 1.78e9, "range": 101.0,
        "range_unit": "km", "full_at_s": 1.791e9, "car_said": 41.0, "end_reason": ""},
    "session": {"began_s": 1.78e9, "began_percent": "41%%", "told": ["started"]},
    "told_s": {"sign-in": 1.7e9},
    "outbox": [{"address": "NTFY_URL", "made_s": %(now)s, "charge": 80.2, "predicted": true,
        "news": {"kind": "reached", "message": "80%% reached", "click": "", "good_until_s": 0},
        "status": "charging", "next_try_s": 0.0, "unanswered": 1}]
}"""


def test_memory_of_version_3_1_0_goes_on_and_tells_nothing_at_its_first_report(
    cardata: CarData, start: Start, kept: Path, ntfy: Recorder
) -> None:
    memory = cardata.signed_in()
    access, refresh = memory.sign_in.access_token, memory.sign_in.refresh_token
    own = {"access": access, "refresh": refresh, "container": memory.container.id}
    kept.write_text(VERSION_3_1_0 % {**own, "vin": VIN, "now": NOW_S})

    cardata.readings = [telematic(minutes=("5", 0), predicted="96"), full()]
    script = start(settings={**cardata.settings(), "NTFY_URL": ntfy.url + "secret-topic"})
    script.wait_for_readings(3)
    ntfy.wait_for(lambda: len(ntfy.accepted) > 1, "two messages")
    assert script.interrupt() == 130
    reached, fully_charged = ntfy.messages()
    assert reached.endswith("80% reached") and fully_charged.startswith("Fully charged")
    assert script.stderr_with("Full in about") == script.stderr_with("Charging from") == 0
    assert (cardata.sign_ins, cardata.refreshes, cardata.containers_made) == (0, 0, 1)


# --- Values that do not fit -----------------------------------------------------------

MISSING = object()
BLANK: dict[str, Any] = {**asdict(Memory()), "last": asdict(Reading())}
PARTS = {"the memory": set(BLANK) - {"client_id", "vin"}}
PARTS |= {part: set(BLANK[part]) for part in ("sign_in", "container", "last")}


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (MISSING, []),
        (None, [type(None)]),
        (True, [bool, type(None)]),
        (-1, [int]),
        (1e300, []),
        (float("nan"), []),
        ("now", [str]),
        (["a"], []),
        ({"a": []}, []),
    ],
)
def test_odd_value_costs_its_field_and_nothing_else(
    file: MemoryFile, path: Path, value: Any, fits: list[type]
) -> None:
    """Another version may have kept a value of another type, or none."""
    for part, name in [(part, name) for part, names in PARTS.items() for name in names]:
        saved, expected = asdict(whole_memory()), asdict(whole_memory())
        default = BLANK.get(part, BLANK)[name]
        saved.get(part, saved)[name] = value
        expected.get(part, expected)[name] = value if type(default) in fits else default
        if value is MISSING:
            del saved.get(part, saved)[name]
        # A reading needs a percentage and a known status.
        if name in ("last", "percent") or (name, value) == ("status", "now"):
            expected["last"] = None
        path.write_text(json.dumps(saved))
        assert asdict(file.load("client", VIN)) == expected


SAVED_MESSAGE = asdict(MESSAGE)


@pytest.mark.parametrize(
    ("saved", "is_kept"),
    [
        ("text", False),
        ({"news": SAVED_MESSAGE["news"]}, False),
        ({**SAVED_MESSAGE, "news": {**SAVED_MESSAGE["news"], "kind": "a newer one"}}, False),
        ({"address": "NTFY_URL", "body": "Fully charged.", "made_s": 1.8e9}, False),  # of 3.0.0
        ({"address": "NTFY_URL", "news": {"kind": "full", "message": "Full"}}, True),
        ({**SAVED_MESSAGE, "charge": "much", "made_s": {}, "unanswered": None}, True),
    ],
)
def test_message_is_kept_if_it_can_be_told(
    file: MemoryFile, path: Path, saved: object, is_kept: bool
) -> None:
    path.write_text(json.dumps({"outbox": [saved, SAVED_MESSAGE]}))
    assert len(file.load("client", VIN).outbox) == 1 + is_kept


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [1e9, "percent"],
        ["now", "percent", 52],
        [9e10, "percent", 52],  # far in the future, it would outlast what BMW reports
        [1e9, "a newer topic", 52],
        [1e9, {}, 52],
        [1e9, "percent", "52"],
        [1e9, "displayed", 100.1],
        [1e9, "full_at", 1e300],
        [1e9, "status", "A_NEWER_STATUS"],
        [1e9, "plug", {}],
    ],
)
def test_odd_observation_is_left_out_and_the_others_count(
    file: MemoryFile, path: Path, entry: object
) -> None:
    good = [[1e9, "percent", 52], [1e9, "status", "CHARGINGACTIVE"]]
    path.write_text(json.dumps({"vin": VIN, "journal": [good[0], entry, good[1]]}))
    assert [list(each) for each in file.load("client", VIN).journal] == good


PERCENTS = st.integers(0, 100) | st.floats(0, 100).map(lambda percent: round(percent, 1))
RECENT = st.floats(NOW_S - 2e5, NOW_S)
VALUES: dict[i3charge.Topic, st.SearchStrategy[Any]] = {
    **dict.fromkeys(i3charge.TOPICS, PERCENTS),
    **{topic: st.sampled_from(sorted(words)) for topic, words in i3charge.KEYWORDS.items()},
    "full_at": RECENT,
}
GOOD_ENTRIES = st.sampled_from(i3charge.TOPICS).flatmap(
    lambda topic: st.tuples(RECENT, st.just(topic), VALUES[topic])
)
TIMES = RECENT | st.floats(0, 1e11) | ANYTHING
TOPICS = st.sampled_from(i3charge.TOPICS) | ANYTHING
ANY_ENTRIES = ANYTHING | st.tuples(TIMES, TOPICS, st.one_of(*VALUES.values()) | ANYTHING)


def journal_in(text: str) -> list[Observation]:
    return list(i3charge.observations_in(json.loads(text)))


@given(others=st.lists(ANY_ENTRIES), good=st.lists(GOOD_ENTRIES, max_size=6))
def test_start_survives_any_journal(others: list[Any], good: list[Any]) -> None:
    memory = Memory(vin=VIN, journal=journal_in(json.dumps(others + good)))
    assert set(good) <= set(memory.journal)

    watch = i3charge.ChargeWatch(memory, 80, 2400)
    said = [
        Observation(NOW_S, "percent", 62.0),
        Observation(NOW_S, "status", "CHARGINGACTIVE"),
        Observation(NOW_S, "full_at", NOW_S + 3600),
    ]
    _, reading, news = watch.observe(i3charge.Report(NOW_S, NOW_S, said))
    watch.next_poll_s(reading, NOW_S)
    assert i3charge.json_line(reading) and i3charge.text_line(reading, i3charge.DATE_IN_FILE)
    for one in news:
        assert i3charge.text_to_send(Message("NTFY_URL", one, NOW_S), NOW_S + 3600)
    assert journal_in(json.dumps(memory.journal)) == memory.journal


# --- A file that cannot be read or written --------------------------------------------


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff\xfe\x00"], ids=len)
def test_damaged_file_is_put_aside_and_a_new_one_begun(
    file: MemoryFile, path: Path, content: bytes, log: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(content)
    assert file.load("client", VIN) == Memory("client", VIN)
    assert not path.exists()
    assert Path(f"{path}.damaged").read_bytes() == content
    advice = "you will have to sign in again"
    assert log.messages == [f"{path} is damaged, and was renamed to {path.name}.damaged; {advice}"]


@pytest.mark.parametrize(
    ("folder", "why"), [("", "cannot be read"), (".damaged", "is damaged, and cannot be renamed")]
)
def test_file_that_cannot_be_read_or_put_aside_ends_the_program(
    file: MemoryFile, path: Path, folder: str, why: str
) -> None:
    Path(f"{path}{folder}").mkdir()
    if folder:
        path.write_text("[]")
    with pytest.raises(i3charge.CannotGoOn) as caught:
        file.load("client", VIN)
    assert caught.value.lines == (f"{path} {why}: Is a directory",)
    assert path.exists()


def test_failing_disk_is_reported_once_until_it_works_again(
    path: Path, log: pytest.LogCaptureFixture
) -> None:
    """Its folder is missing; there is no lock either, which is no obstacle."""
    folder = path.parent / "later"
    file = MemoryFile(folder / path.name)
    assert [file.save(whole_memory()), file.save(whole_memory())] == [False, False]
    assert len(log.messages) == 1 and not file.works
    folder.mkdir()
    assert file.save(whole_memory()) and file.works
    shutil.rmtree(folder)
    assert not file.save(whole_memory())
    assert len(log.messages) == 2


def test_program_whose_file_cannot_be_written_goes_on_and_tells_news_once(
    portal: Portal, start: Start, kept: Path
) -> None:
    Path(f"{kept}.new").mkdir()
    portal.readings = [car(), full_car()]
    script = start(settings=portal.settings())
    script.wait_for_readings(4)
    script.interrupt()
    assert script.stderr_with("cannot be written (Is a directory)") == 1
    assert script.stderr_with("  Fully charged") == 1
