"""What outlasts the program: one file, and one process that owns it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SCRIPT, Script, Start, write_settings
from fake_bmw import VIN, Portal, Recorder
from fake_cardata import CarData, full, telematic

import i3charge
from i3charge import ChargingSession, Container, Memory, Message, News, Reading, SignIn


def memory(path: Path) -> Memory:
    """With something in every part."""
    return Memory(
        client_id="client",
        vin=VIN,
        sign_in=SignIn("secret-access", 4e9, "secret-refresh", 1),
        container=Container("S1", i3charge.FULL_SET, next_search_s=5.5),
        requests_s=[1.5, 2],
        last=Reading(61.5, 1e9, "charging", plugged=True, range=101, car_said=41),
        session=ChargingSession(9e8, "41%", told=["soon"]),
        told_s={"sign-in": 1e9},
        outbox=[Message("NTFY_URL", News("full", "Full"), 1e9, 61.5, True, "full")],
        path=path,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".i3charge.json"


def load(path: Path, client_id: str = "client", vin: str = VIN) -> Memory:
    return i3charge.load_memory(path, client_id, vin)


# --- The file -------------------------------------------------------------------------


def test_everything_is_kept(path: Path) -> None:
    assert memory(path).save()
    assert load(path) == memory(path)


def test_only_its_owner_can_read_it_from_its_first_moment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        modes.append(os.fstat(descriptor).st_mode & 0o777)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    old_mask = os.umask(0)
    try:
        memory(path).save()
    finally:
        os.umask(old_mask)
    assert modes == [0o600] and path.stat().st_mode & 0o777 == 0o600


def test_it_is_written_aside_and_renamed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory(path).save()
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert not dataclasses.replace(memory(path), vin="other").save()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "name"), [(".env", ".i3charge.json"), ("b.env", ".i3charge-b.env.json")]
)
def test_it_is_named_after_the_settings_file_and_git_ignores_it(settings: str, name: str) -> None:
    path = i3charge.memory_path(ROOT / settings)
    assert path == ROOT / name
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    for ending in ("", ".new", ".lock", ".damaged"):
        command = ["git", "check-ignore", "-q", f"{path}{ending}"]
        assert subprocess.run(command, cwd=ROOT).returncode == 0


def test_it_is_beside_the_script_where_the_settings_come_from_a_pipe(
    portal: Portal, env: dict[str, str], tmp_path: Path
) -> None:
    copy = shutil.copy(SCRIPT, tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    script = Script([sys.executable, str(copy), "--once", "--env-file", str(pipe)], env)
    write_settings(pipe, portal.settings())
    assert script.end() == 0
    assert (tmp_path / ".i3charge.json").exists()


def test_nothing_is_needed_to_start(path: Path) -> None:
    assert load(path) == Memory("client", VIN, path=path)


def test_another_client_id_starts_the_sign_in_anew_but_not_the_request_times(path: Path) -> None:
    memory(path).save()
    loaded = load(path, client_id="another")
    assert (loaded.sign_in, loaded.container) == (SignIn(), Container())
    assert (loaded.requests_s, loaded.session) == ([1.5, 2], memory(path).session)


def test_portal_has_no_client_id_and_keeps_the_sign_in_at_cardata(path: Path) -> None:
    memory(path).save()
    assert load(path, client_id="").sign_in == memory(path).sign_in


def test_another_car_starts_the_charge_anew(path: Path) -> None:
    memory(path).save()
    loaded = load(path, vin="WBY00000000000000")
    assert (loaded.last, loaded.session) == (None, ChargingSession())
    assert loaded.sign_in == memory(path).sign_in


# --- A file of another version ----------------------------------------------------------

VERSION_3_0_0: dict[str, Any] = {
    "version": 1,
    "client_id": "client",
    "vin": VIN,
    "sign_in": {
        "access_token": "secret-access",
        "expires_s": 4e9,
        "refresh_token": "secret-refresh",
        "refusals": -1,
        "has_worked": True,
        "outage_told": False,
        "owner_told_s": 0.0,
        "an unknown field": {},
    },
    "container": {"id": "S1", "purpose": "descriptors 3", "next_full_try_s": 0.0},
    "requests_s": [1.5],
    "session": {
        "seen_s": 1.8e9,
        "status": "charging",
        "charge": 61.5,
        "is_on": True,
        "began_s": 1.79e9,
        "ended_s": 0.0,
        "highest": 61.5,
        "told": ["soon"],
    },
    "outbox": [{"address": "NTFY_URL", "body": "Fully charged.", "headers": {}, "made_s": 1.8e9}],
}


def test_what_an_older_version_has_kept_is_read_as_far_as_it_fits(path: Path) -> None:
    path.write_text(json.dumps(VERSION_3_0_0))
    loaded = load(path)
    assert loaded.sign_in.refresh_token == "secret-refresh"
    assert (loaded.sign_in.access_token, loaded.sign_in.refusals) == ("secret-access", 0)
    assert (loaded.container, loaded.requests_s) == (Container("S1", i3charge.FULL_SET), [1.5])
    assert loaded.session.is_on and loaded.session.told == ["soon"]
    assert loaded.last is None
    assert loaded.outbox == []  # what it says cannot be told any more


ODD: list[Any] = [None, True, -1, 1e300, float("nan"), "now", [], [1], {}, {"a": []}]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_odd_value_costs_its_field_and_nothing_else(path: Path, value: Any) -> None:
    whole = dataclasses.asdict(memory(path))
    del whole["path"], whole["is_kept"]
    for part in ("sign_in", "container", "last", "session"):
        for name in whole[part]:
            kept = {**whole, part: {**whole[part], name: value}}
            path.write_text(json.dumps(kept))
            loaded = dataclasses.asdict(load(path))
            for other, expected in whole.items():
                assert other == part or loaded[other] == expected
            if (part, name) != ("last", "charge"):  # without one it is no reading
                rest = {**loaded[part], name: whole[part][name]}
                assert rest == whole[part]


def test_missing_value_costs_its_field_and_nothing_else(path: Path) -> None:
    whole = dataclasses.asdict(memory(path))
    del whole["path"], whole["is_kept"]
    for part, record in (
        ("sign_in", SignIn()),
        ("container", Container()),
        ("last", Reading(61.5)),
        ("session", ChargingSession()),
    ):
        for name in set(whole[part]) - {"charge"}:
            rest = {each: value for each, value in whole[part].items() if each != name}
            path.write_text(json.dumps({**whole, part: rest}))
            loaded = dataclasses.asdict(load(path))
            assert loaded == {
                **dataclasses.asdict(memory(path)),
                part: {**rest, name: getattr(record, name)},
            }


def test_message_is_kept_where_it_can_be_told(path: Path) -> None:
    (whole,) = dataclasses.asdict(memory(path))["outbox"]
    news = whole["news"]
    cases = [
        ({}, 0),
        ({"news": news}, 0),
        ({**whole, "address": 1}, 0),
        ({**whole, "news": {**news, "kind": "a newer one"}}, 0),
        ({**whole, "news": {"kind": "full"}}, 0),
        ({"address": "NTFY_URL", "news": {"kind": "full", "message": "Full"}}, 1),
        ({**whole, "charge": "much", "status": "unheard of"}, 1),
    ]
    for message, kept in cases:
        path.write_text(json.dumps({"outbox": [message]}))
        assert len(load(path).outbox) == kept


PARTS = ["sign_in", "container", "requests_s", "last", "session", "told_s", "outbox"]


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("part", PARTS)
def test_odd_part_is_begun_anew_and_the_others_stay(path: Path, part: str, value: Any) -> None:
    assert memory(path).save()
    kept = {**json.loads(path.read_text()), part: value}
    path.write_text(json.dumps(kept))
    loaded, blank = load(path), Memory()
    assert loaded.vin == VIN
    if part != "outbox" or not isinstance(value, list):
        assert getattr(loaded, part) in (getattr(blank, part), value)
    assert loaded.sign_in == (SignIn() if part == "sign_in" else memory(path).sign_in)


def test_time_stamp_of_the_year_1_costs_no_memory(cardata: CarData, start: Start) -> None:
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
def test_damaged_file_is_put_aside_said_and_begun_anew(
    path: Path, name: str, log: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(DAMAGED[name])
    assert load(path) == Memory("client", VIN, path=path)
    assert not path.exists()
    assert Path(f"{path}.damaged").read_bytes() == DAMAGED[name]
    begun = "and a new one is begun, without the sign-in"
    assert log.messages == [f"{path} is damaged; it is now {path.name}.damaged, {begun}"]


def test_damaged_file_is_said_once_and_the_program_runs(
    cardata: CarData, start: Start, kept: Path
) -> None:
    kept.write_text("[1]")
    script = start(settings=cardata.settings())
    script.wait_for_readings(3)
    script.interrupt()
    assert script.stderr_with("is damaged") == 1
    assert script.stderr_with("fault") == 0


def test_file_that_cannot_be_read_ends_the_program_and_stays(
    cardata: CarData, start: Start, kept: Path
) -> None:
    kept.mkdir()
    script = start(settings=cardata.settings())
    assert script.end() == 2
    assert script.stderr_with(f"{kept} cannot be read: Is a directory") == 1
    assert kept.is_dir() and cardata.requests == []


# --- A file that cannot be written ----------------------------------------------------


def test_it_is_said_once_until_it_works_again(path: Path, log: pytest.LogCaptureFixture) -> None:
    kept = memory(path.parent / "nowhere" / path.name)
    assert [kept.save(), kept.save()] == [False, False]
    assert len(log.messages) == 1
    kept.path = path
    assert kept.save() and kept.is_kept


def test_folder_that_is_moved_while_it_runs_loses_and_repeats_no_news(
    cardata: CarData, start: Start, tmp_path: Path, ntfy: Recorder, env: dict[str, str]
) -> None:
    folder, moved = tmp_path / "folder", tmp_path / "moved"
    folder.mkdir()
    settings = {**cardata.settings(), "NTFY_URL": ntfy.url + "secret-topic"}
    file = folder / "b.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    file.chmod(0o600)
    cardata.keep(folder / ".i3charge-b.env.json")

    def move(handler: Any) -> None:
        folder.rename(moved)
        handler.reply(200, telematic(predicted="90"))

    cardata.readings = [telematic(predicted="61"), move, full()]
    script = start("--env-file", str(file))
    script.wait_for_readings(20)
    script.interrupt()
    assert script.stderr_with("cannot be written") == 1
    assert script.stderr_with("  Fully charged.") == 1
    assert [m for m in ntfy.messages() if "Fully" in m] == [
        "Fully charged. The charging station can be freed."
    ]
    assert json.loads((moved / ".i3charge-b.env.json").read_text())["last"]["charge"] < 100


# --- One process ----------------------------------------------------------------------


def test_second_process_ends_at_once_and_names_the_first(
    cardata: CarData, start: Start, kept: Path
) -> None:
    cardata.keep(kept)
    first = start(settings=cardata.settings())
    first.wait_for_readings(1)
    second = start("--once", settings=cardata.settings())
    assert second.end() == 1
    assert second.stderr_with(f"i3charge is already running (process {first.process.pid})")
    first.interrupt()
    third = start("--once", settings=cardata.settings())
    assert third.end() == 0


def test_where_no_lock_can_be_had_it_goes_on_without(tmp_path: Path) -> None:
    assert i3charge.lock_memory(tmp_path / "nowhere" / ".i3charge.json") is None
