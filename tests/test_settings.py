"""The settings: where they come from, and all that is wrong with them, said in one go."""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SCRIPT, Start, write_settings
from fake_bmw import PASSWORD, USERNAME, VIN, Portal
from hypothesis import example, given
from hypothesis import strategies as st

import i3charge
from i3charge import SettingsError, load_variables

CARDATA = ["CARDATA_CLIENT_ID", "VEHICLE_IDENTIFICATION_NUMBER"]
PORTAL = ["USERNAME", "PASSWORD", "AUTH_CLIENT_ID", "VEHICLE_IDENTIFICATION_NUMBER"]
BMW_URLS = {
    "CARDATA_BASE_URL": CARDATA,
    "CARDATA_AUTH_BASE_URL": CARDATA,
    "CONNECTED_DRIVE_BASE_URL": PORTAL,
    "AUTH_BASE_URL": PORTAL,
}
PHONE_URLS = ["WEBHOOK_URL", "NTFY_URL"]
CANARY = "xyzzy plugh"


def good(names: list[str], **variables: str) -> dict[str, str]:
    """What is required at a door, with other values where there are any."""
    return {**dict.fromkeys(names, "owner@example.com"), names[-1]: VIN, **variables}


def started(variables: dict[str, str], path: Path = Path("/nowhere/.env")) -> dict[str, Any]:
    """What the program would run with; nothing is sent. Raises SettingsError."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        parts: dict[str, Any] = {}
        names = ("door", "store", "watch", "charge_log", "desktop", "phone")
        monkeypatch.setattr(i3charge, "run", lambda *a, **_: parts.update(zip(names, a)) or 0)
        arguments = argparse.Namespace(once=True, demo=False, json=False)
        i3charge.start(arguments, i3charge.Settings(variables), path)
    return parts


def problems(variables: dict[str, str], path: Path = Path("/nowhere/.env")) -> list[str]:
    try:
        started(variables, path)
    except SettingsError as error:
        return list(error.args)
    return []


def first_words(lines: list[str]) -> list[str]:
    return sorted(line.split()[0] for line in lines)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_settings(tmp_path / "own.env", {})


@contextmanager
def settings_file(content: bytes) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield Path(file.name)


# --- Where they come from -------------------------------------------------------------------


def test_a_value_in_the_file_wins_over_the_environment(start: Start, portal: Portal) -> None:
    """A password with a quote, a dollar and a hash in it, and a name that desktops export."""
    settings = portal.settings()
    in_environment = {name: settings.pop(name) for name in ("AUTH_CLIENT_ID", "LOG_INTERVAL")}
    others = {"USERNAME": "desktop", "PASSWORD": "desktop", **in_environment}
    assert start("--once", settings=settings, extra_env=others).end() == 0
    form = portal.logins_seen()[0].form
    assert (form["username"], form["password"]) == (USERNAME, PASSWORD)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("X='pa$HOME #x'", "pa$HOME #x"),
        ('X="pa$HOME #x"', "pa$HOME #x"),
        ("X='${HOME}$$ ${X:-y}'", "${HOME}$$ ${X:-y}"),
        ("X='it\\'s # 1 \\\\'", "it's # 1 \\"),
        ('X="say \\"$1\\" # 1 \\\\"', 'say "$1" # 1 \\'),
        ("X=pa$HOME#x", "pa$HOME#x"),
        ("X='ünï  cödé'", "ünï  cödé"),
        ("\ufeffX=1", "1"),
        ("  export X = 'a=b&c' # a comment", "a=b&c"),
        ("X=first\nX=second", "second"),
        ("X=windows\r\nY=z", "windows"),
        *[(line, "") for line in ("X=", "X=''", 'X=""', "X", "export X=")],
        ("", "desktop"),
    ],
)
def test_a_value_is_what_is_written(
    file: Path, line: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("X", "desktop")
    file.write_bytes(line.encode())
    assert load_variables(file, required=True)[0]["X"] == value


@given(st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"]), min_size=1))
def test_any_quoted_password_survives(password: str) -> None:
    quoted = password.replace("\\", "\\\\").replace("'", "\\'")
    with settings_file(f"PASSWORD='{quoted}'\nNEXT=1\n".encode()) as file:
        variables, typos = load_variables(file, required=True)
    assert (variables["PASSWORD"], variables["NEXT"], typos) == (password, "1", [])


@pytest.mark.parametrize("beside_it", [True, False])
def test_dot_env_is_the_one_beside_the_script(
    tmp_path: Path, env: dict[str, str], portal: Portal, beside_it: bool
) -> None:
    """Where there is none, the owner hears of both things that are needed, and how to begin."""
    folder = tmp_path / "app"
    folder.mkdir()
    script = shutil.copy(SCRIPT, folder)
    other = folder if beside_it else tmp_path
    write_settings(other / ".env", portal.settings())
    command = [sys.executable, script, "--once"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=30
    )
    if beside_it:
        assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
        assert portal.served == 1
    else:
        assert (done.returncode, done.stdout, portal.requests) == (2, "", [])
        *missing, hint = [line.split("  ", 1)[1] for line in done.stderr.splitlines()]
        assert first_words(missing) == CARDATA
        assert "copy .env.example" in hint


# --- The door -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "door"),
    [
        ([], CARDATA),
        (["USERNAME"], CARDATA),  # desktops export one
        (["USERNAME", "AUTH_BASE_URL"], CARDATA),
        (["PASSWORD"], PORTAL),
        (["AUTH_CLIENT_ID"], PORTAL),
        (["USERNAME", "PASSWORD", "AUTH_CLIENT_ID", "CARDATA_CLIENT_ID"], CARDATA),
    ],
)
def test_cardata_is_the_door_unless_the_settings_are_for_the_other(
    variables: list[str], door: list[str]
) -> None:
    empty = dict.fromkeys([*CARDATA, *PORTAL], "")
    missing = sorted(set(door) - set(variables))
    for unset in ({}, empty):
        *lines, hint = problems({**unset, **dict.fromkeys(variables, "https://bmw.example/")})
        assert first_words(lines) == missing
        assert all("missing" in line for line in lines)
        assert "--demo" in hint


@pytest.mark.parametrize("names", [CARDATA, PORTAL])
def test_copying_the_example_is_advised_only_where_there_is_no_file(
    file: Path, names: list[str]
) -> None:
    variables = good(names, **{names[-1]: ""})
    for path, advised in ((file.with_name("nothing"), True), (file, False)):
        _, hint = problems(variables, path)
        assert (".env.example" in hint) is advised
        assert "README.md" in hint
    assert len(problems({**variables, names[-1]: "x"})) == 1


@pytest.mark.parametrize("names", [CARDATA, PORTAL])
def test_what_is_required_is_enough(names: list[str]) -> None:
    optional = [name for name in i3charge.NAMES if name not in {*CARDATA, *PORTAL}]
    for unset in ({}, dict.fromkeys(optional, "")):
        parts = started(good(names, **unset))
        door = parts["door"]
        assert (type(door), door.interval_s, door.vin) == (
            (i3charge.CarData, 2400, VIN) if names == CARDATA else (i3charge.Portal, 60, VIN)
        )


# --- All in one go --------------------------------------------------------------------------


def test_all_that_is_wrong_is_said_in_one_go_and_nothing_is_sent(
    start: Start, portal: Portal
) -> None:
    wrong = {
        "VEHICLE_IDENTIFICATION_NUMBER": f"{CANARY} vin",
        "AUTH_BASE_URL": f"http://{CANARY}.example/",
        "LOG_INTERVAL": f"{CANARY} minutes",
        "NOTIFY_AT": f"{CANARY} percent",
        "WEBHOOK_URL": f"{CANARY} hook",
        "NTFY_URL": "https://ntfy.example/",
        "CARDATA_CLIENTID": CANARY,
    }
    settings = {**portal.settings(), **wrong, "USERNAME": ""}
    del settings["AUTH_CLIENT_ID"]
    script = start("--verbose", settings=settings)
    assert (script.end(), script.stdout) == (2, [])
    pairs = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (.+)", x) for x in script.stderr]
    *lines, hint = [pair[1] for pair in pairs if pair]
    assert len(lines) + 1 == len(script.stderr)
    assert first_words(lines) == sorted([*wrong, "USERNAME", "AUTH_CLIENT_ID"])
    assert "--demo" in hint
    assert ".env.example" not in hint
    assert CANARY not in script.output
    assert portal.requests == []


@given(st.sets(st.sampled_from(i3charge.NAMES)), st.sampled_from([CARDATA, PORTAL]))
def test_no_message_holds_a_value(wrong: set[str], names: list[str]) -> None:
    lines = problems({**good(names), **dict.fromkeys(wrong, CANARY)})
    assert {line.split()[0] for line in lines} <= wrong
    assert CANARY not in "".join(lines)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CARDATA_CLIENTID", "CARDATA_CLIENT_ID"),
        ("cardata_client_id", "CARDATA_CLIENT_ID"),
        ("USER_NAME", "USERNAME"),
        ("NOTIFY_URL", "NTFY_URL"),
        ("VEHICLE_IDENTIFICATON_NUMBER", "VEHICLE_IDENTIFICATION_NUMBER"),
        *[(name, "") for name in ("HOME", "BASE_URL", "CLIENT_ID", "NTFY_TOKEN", "", "VIN")],
        *[(name, "") for name in i3charge.NAMES],
    ],
)
def test_a_name_that_is_almost_one_of_ours_is_an_error(file: Path, name: str, meant: str) -> None:
    file.write_text(f"{name}={CANARY}\n" if name else "# PASWORD=1\n")
    _, typos = load_variables(file, required=True)
    assert len(typos) == bool(meant)
    for line in typos:
        assert line.startswith(f"{name} is not a setting")
        assert line.endswith(f"did you mean {meant}?")


def test_almost_our_names_in_the_environment_are_another_programs(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARDATA_CLIENTID", "x")
    assert load_variables(file, required=True)[1] == []


# --- Each of them ---------------------------------------------------------------------------


def test_a_vin_in_lower_case_is_taken_in_upper_case() -> None:
    variables = good(CARDATA, VEHICLE_IDENTIFICATION_NUMBER=VIN.lower())
    assert started(variables)["door"].vin == VIN


@pytest.mark.parametrize(
    "vin",
    [
        *[f"WBY1Z21040V30790{letter}" for letter in "IOQioqé٣ "],
        *["WBY1Z21040V30790", "WBY1Z21040V3079055", "V307905", "WBY1Z-1040V307905"],
        *["WBY1Z21040V307905\n", "../../../../../.."],
    ],
)
def test_a_vin_of_the_wrong_form_is_refused(vin: str) -> None:
    (line,) = problems(good(CARDATA, VEHICLE_IDENTIFICATION_NUMBER=vin))
    assert line.startswith("VEHICLE_IDENTIFICATION_NUMBER ")
    assert "17" in line


@pytest.mark.parametrize(
    "value",
    [
        *["a minute", "-60000", "0", "000", "1e3", "60000.5", "60 000", "60_000", "0xffff"],
        *["6\uff10\uff10\uff10\uff10", "NaN", "inf", "²", "9" * 30],
        pytest.param("9" * 5000, id="5000 digits"),
    ],
)
@pytest.mark.parametrize("names", [CARDATA, PORTAL])
def test_an_interval_that_is_no_sensible_whole_number_is_refused(
    names: list[str], value: str
) -> None:
    (line,) = problems(good(names, LOG_INTERVAL=value))
    assert line.startswith("LOG_INTERVAL ")
    assert "milliseconds" in line


@pytest.mark.parametrize(
    ("url", "least_s"), [("CARDATA_BASE_URL", 2400), ("CONNECTED_DRIVE_BASE_URL", 10)]
)
@pytest.mark.parametrize("host", ["https://bmw.example", "http://127.0.0.1:80", "http://[::1]"])
@pytest.mark.parametrize("value", ["1", "0060", "9999", "10000", "2399999", "2400000", "86400000"])
def test_a_short_interval_is_raised_with_one_line_but_not_on_this_computer(
    url: str, least_s: float, host: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    variables = good(BMW_URLS[url], LOG_INTERVAL=value, **{url: host})
    with caplog.at_level(logging.INFO, "i3charge"):
        interval_s = started(variables)["door"].interval_s
    asked_s = int(value) / 1000
    raised = asked_s < least_s and host.startswith("https")
    assert interval_s == (least_s if raised else asked_s)
    lines = [line for line in caplog.messages if "LOG_INTERVAL" in line]
    assert len(lines) == raised
    assert all(f"{least_s * 1000}: " in line for line in lines)


@pytest.mark.parametrize(
    ("value", "goal"),
    [
        *[("80", 80), ("80%", 80), ("1", 1), ("99%", 99), ("0", 0), ("", 0)],
        *[(value, None) for value in ("100", "0%", "x", "%", "-5", "080", "80.5", "80 %", "٨٠")],
    ],
)
def test_a_charge_of_ones_own(value: str, goal: float | None) -> None:
    variables = good(CARDATA, NOTIFY_AT=value)
    if goal is None:
        assert first_words(problems(variables)) == ["NOTIFY_AT"]
    else:
        watch, news = started(variables)["watch"], []
        for charge in range(100):
            reading = i3charge.Reading(charge, "charging")
            news += watch.news(reading, i3charge.local_time())
        reached = [message for kind, message in news if kind == "reached"]
        assert reached == ([f"{goal}% reached"] if goal else [])


ACCEPTED_URLS = [
    *["https://bmw.example/api/", "https://bmw.example:8443", "HTTPS://BMW.example/"],
    *["http://127.0.0.1:8080/", "http://localhost:1/"],
    *["http://LOCALHOST/", "http://[::1]:8000/x", "https://127.0.0.1/"],
]
PLAIN_URLS = [
    *["http://bmw.example/", "HTTP://bmw.example/", "http://10.0.0.1/", "http://0.0.0.0/"],
    *["http://127.0.0.1.evil.example/", "http://localhost.evil.example/", "http://1127.0.0.1/"],
    *["http://127.0.0.1@evil.example/", "http://evil.example/@127.0.0.1/"],
    *["http://evil.example#@127.0.0.1/", "http://evil.example?@127.0.0.1/"],
    *["http://xlocalhost/", "http://[::2]/"],
]
BROKEN_URLS = [
    *["ftp://127.0.0.1/", "file:///dev/null", "bmw.example/api/", "//bmw.example/", "https://"],
    *["https:///api/", "https://[::1/", "https:/x", "my-topic", "http://"],
]


@pytest.mark.parametrize("url", [*ACCEPTED_URLS, *PLAIN_URLS, *BROKEN_URLS])
def test_where_secrets_are_sent_to_is_https_or_this_computer(url: str) -> None:
    for secure, allowed in ((True, ACCEPTED_URLS), (False, ACCEPTED_URLS + PLAIN_URLS)):
        settings = i3charge.Settings({"X": url})
        taken = settings.url("X", secure=secure)
        assert settings.problems == [] if url in allowed else len(settings.problems) == 1
        assert (taken == url) is (url in allowed)


def test_blanks_around_an_address_do_not_matter() -> None:
    assert i3charge.Settings({"X": " https://bmw.example/ "}).url("X") == "https://bmw.example/"


@pytest.mark.parametrize("name", [*BMW_URLS, *PHONE_URLS])
def test_only_home_servers_have_http(name: str) -> None:
    variables = good(BMW_URLS.get(name, CARDATA))
    lines = problems({**variables, name: "http://home.example/topic"})
    assert first_words(lines) == ([name] if name in BMW_URLS else [])
    assert problems({**variables, name: "https://home.example/topic"}) == []


@pytest.mark.parametrize("url", ["https://ntfy.sh", "https://ntfy.sh/", "http://ntfy.sh//"])
def test_ntfy_without_a_topic_is_refused(url: str) -> None:
    (line,) = problems(good(CARDATA, NTFY_URL=url))
    assert line.startswith("NTFY_URL ")
    assert "topic" in line
    assert problems(good(CARDATA, NTFY_URL=f"{url}/t", WEBHOOK_URL=url)) == []


@pytest.mark.parametrize("ending", ["", "/"])
def test_the_last_slash_of_the_base_url_does_not_matter(portal: Portal, ending: str) -> None:
    variables = {**portal.settings(), "CONNECTED_DRIVE_BASE_URL": f"{portal.url}api{ending}"}
    started(variables)["door"].poll()
    assert [r.path for r in portal.polls_seen()] == [f"/api/vehicle/dynamic/v1/{VIN}"]


# --- The file -------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "folder", b"X='w\xf6rd'\n", "X='x'".encode("utf-16")])
def test_a_file_that_is_of_no_use(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "own.env"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_variables(path, required=True)
    (line,) = caught.value.args
    assert str(path) in line
    assert ("UTF-8" in line) is isinstance(content, bytes)


def test_a_line_without_closing_quote(start: Start, portal: Portal, file: Path) -> None:
    file.write_text(f"USERNAME=x\nPASSWORD='{CANARY}\nLOG_INTERVAL=1\n{CANARY}\n")
    script = start("--once", "--env-file", str(file), extra_env=portal.settings())
    assert script.end() == 2
    first, second = script.stderr
    assert f"{file}, line 2" in first
    assert "quote" in first
    assert f"{file}, line 4" in second
    assert CANARY not in script.output
    assert portal.requests == []


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700, 0o640, 0o604, 0o644, 0o444])
def test_a_file_that_others_can_read_is_warned_of(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The command in the warning mends it."""
    file = write_settings(tmp_path / "my own.env", {})
    file.chmod(mode)
    load_variables(file, required=True)
    assert len(caplog.messages) == bool(mode & 0o044)
    for line in caplog.messages:
        subprocess.run(shlex.split(line[line.index("chmod ") :]), check=True)
    caplog.clear()
    load_variables(file, required=True)
    assert caplog.messages == []


def test_what_is_no_file_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """As in --env-file <(pass show i3charge)."""
    assert load_variables(Path("/dev/null"), required=True)[1] == []
    assert caplog.messages == []


def test_the_example_names_all_settings() -> None:
    names = re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(i3charge.NAMES)


LINES = st.builds(
    "{}{}{}".format,
    st.sampled_from([*i3charge.NAMES, "export USERNAME", "PASWORD", "'X'", "", "#"]),
    st.sampled_from(["=", " = ", "='", '="', "", "=https://", "=http://[", "=http://127.0.0.1"]),
    st.text(max_size=20) | st.sampled_from(["'", '"', "\\", "1", "9" * 5000, VIN]),
)
FILES = st.binary() | st.lists(LINES).map(
    lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
)


@given(FILES)
@example(b"\xff\xfe")
@example(b"\x00=\x00")
@example(b"CONNECTED_DRIVE_BASE_URL=https://[x]/")
@example("AUTH_BASE_URL=https://\u2100.example/".encode())
def test_any_file_is_used_or_refused(content: bytes) -> None:
    lines: list[str] = []
    with settings_file(content) as file:
        try:
            variables, _ = load_variables(file, required=True)
            lines = problems(variables)
        except SettingsError as error:
            lines = list(error.args)
    assert all(line.isprintable() for line in lines)
