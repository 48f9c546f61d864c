"""The settings: where they come from, and all that is wrong with them, said in one go."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SCRIPT, Script, Start, write_settings
from fake_bmw import PASSWORD, USERNAME, VIN, Portal

import i3charge
from i3charge import CannotStart, Settings

CARDATA = list(i3charge.REQUIRED_SETTINGS)
PORTAL = ["USERNAME", "PASSWORD", "AUTH_CLIENT_ID", "VEHICLE_IDENTIFICATION_NUMBER"]
CANARY = "xyzzy plugh"
Log = pytest.LogCaptureFixture


def good(names: list[str], **variables: str) -> dict[str, str]:
    """What is required at a door, with other values where there are any."""
    required = {**dict.fromkeys(names, "owner"), "VEHICLE_IDENTIFICATION_NUMBER": VIN}
    return {**required, **variables}


def load(variables: dict[str, str]) -> Settings:
    return i3charge.load_settings(variables, [], "the advice")


def problems(variables: dict[str, str]) -> list[str]:
    try:
        load(variables)
    except CannotStart as problem:
        return problem.lines
    return []


def said(stderr: list[str]) -> list[str]:
    """Without the time of day."""
    return [line.split("  ", 1)[1] for line in stderr]


def first_words(lines: list[str]) -> list[str]:
    return sorted(line.split()[0] for line in lines)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_settings(tmp_path / "own.env", {})


# --- Where they come from -------------------------------------------------------------


def test_value_in_the_file_wins_over_the_environment(start: Start, portal: Portal) -> None:
    settings = {**portal.settings(), "NTFY_TOPIC": "secret"}
    in_environment = {name: settings.pop(name) for name in ("AUTH_CLIENT_ID", "LOG_INTERVAL")}
    others = {"USERNAME": "desktop", "PASSWORD": "desktop", **in_environment}
    script = start("--once", settings=settings, extra_env=others)
    assert script.end() == 0
    form = portal.logins_seen()[0].form
    assert (form["username"], form["password"]) == (USERNAME, PASSWORD)
    # Of the names in the environment, none is ours to judge.
    assert script.stderr_with("NTFY_TOPIC is not a setting of i3charge") == 1
    assert script.stderr_with("is not a setting") == 1


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("X='pa$HOME #x'", "pa$HOME #x"),
        ("X='it\\'s # 1 \\\\'", "it's # 1 \\"),
        ("X=pa$HOME#x", "pa$HOME#x"),
        ("\ufeffX='ünï  cödé'", "ünï  cödé"),
        ("  export X = 'a=b&c' # a comment", "a=b&c"),
        ("X=first\nX=second", "second"),
        ("X=windows\r\nY=z", "windows"),
        ("X=", ""),
    ],
)
def test_value_is_what_is_written(file: Path, line: str, value: str) -> None:
    file.write_bytes(line.encode())
    assert i3charge.read_settings_file(file)["X"] == value


@pytest.mark.parametrize("is_beside", [True, False])
def test_dot_env_is_the_one_beside_the_script(
    tmp_path: Path, env: dict[str, str], portal: Portal, is_beside: bool
) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    command = [sys.executable, str(shutil.copy(SCRIPT, folder)), "--once"]
    write_settings((folder if is_beside else tmp_path) / ".env", portal.settings())
    script = Script(command, env, cwd=tmp_path)
    if is_beside:
        assert (script.end(), portal.served) == (0, 1)
        assert (folder / ".i3charge.json").exists()
    else:
        assert (script.end(), script.stdout, portal.requests) == (2, [], [])
        *missing, advice = said(script.stderr)
        assert first_words(missing) == sorted(CARDATA)
        assert advice.startswith("copy .env.example to .env and fill it in; ")


@pytest.mark.parametrize("content", ["", "CARDATA_CLIENT_ID=x\n"])
def test_file_that_is_empty_or_incomplete_is_named(start: Start, file: Path, content: str) -> None:
    file.write_text(content)
    script = start("--env-file", str(file))
    assert script.end() == 2
    assert f"  fill in {file}; README.md has the steps" in script.stderr[-1]
    assert "--demo needs no account" in script.stderr[-1]


def test_empty_value_in_the_file_wins_and_is_named(
    start: Start, portal: Portal, file: Path
) -> None:
    write_settings(file, {**portal.settings(), "PASSWORD": "", "AUTH_CLIENT_ID": ""})
    script = start("--once", "--env-file", str(file), extra_env={"PASSWORD": PASSWORD})
    assert script.end() == 2
    assert script.stderr_with("CARDATA_CLIENT_ID is missing or empty") == 1
    write_settings(file, {**portal.settings(), "PASSWORD": ""})
    script = start("--once", "--env-file", str(file), extra_env={"PASSWORD": PASSWORD})
    assert script.end() == 2
    assert script.stderr_with("PASSWORD is missing or empty (it is empty in the file)") == 1


# --- The door -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "required"),
    [
        ([], CARDATA),
        (["USERNAME", "AUTH_BASE_URL"], CARDATA),  # desktops export a USERNAME
        (["PASSWORD"], PORTAL),
        (["AUTH_CLIENT_ID"], PORTAL),
        (["USERNAME", "PASSWORD", "AUTH_CLIENT_ID", "CARDATA_CLIENT_ID"], CARDATA),
    ],
)
def test_cardata_is_the_door_unless_the_settings_are_for_the_portal(
    given: list[str], required: list[str]
) -> None:
    variables = {name: "https://x.example/" if "URL" in name else "owner" for name in given}
    for unset in ("", " "):
        others = dict.fromkeys([*CARDATA, *PORTAL], unset)
        assert problems({**others, **variables}) == problems(variables)
        *missing, advice = problems(variables)
        assert first_words(missing) == sorted(set(required) - set(given))
        assert advice == "the advice"


def test_what_is_required_is_enough() -> None:
    cardata, portal = load(good(CARDATA)), load(good(PORTAL))
    assert (cardata.client_id, cardata.interval_s, cardata.vin) == ("owner", 2400, VIN)
    assert (portal.username, portal.interval_s, portal.vin) == ("owner", 60, VIN)
    assert (portal.client_id, cardata.username) == ("", "")


@pytest.mark.parametrize("is_bmws", [True, False])
def test_owner_of_old_settings_hears_that_bmw_has_closed_this_door(
    start: Start, portal: Portal, tmp_path: Path, is_bmws: bool
) -> None:
    settings = portal.settings()
    if is_bmws:
        del settings["AUTH_BASE_URL"]
    lock = i3charge.lock_memory(tmp_path / ".i3charge-i3.env.json")
    assert lock  # so that it ends before it asks BMW
    script = start(settings=settings)
    assert script.end() == 1
    lock.close()
    assert script.stderr_with("BMW has closed this door, the ConnectedDrive portal") == is_bmws


# --- All in one go --------------------------------------------------------------------


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
    *lines, advice = said(script.stderr)
    assert first_words(lines) == sorted([*wrong, "USERNAME", "AUTH_CLIENT_ID"])
    assert "a portal that BMW has closed: fill in CARDATA_CLIENT_ID instead" in advice
    assert "--demo" in advice
    assert CANARY not in script.output
    assert portal.requests == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CARDATA_CLIENTID", "CARDATA_CLIENT_ID"),
        ("cardata_client_id", "CARDATA_CLIENT_ID"),
        ("USER_NAME", "USERNAME"),
        ("NOTIFY_URL", "NTFY_URL"),
    ],
)
def test_name_that_is_almost_one_of_ours_is_an_error(name: str, meant: str) -> None:
    assert i3charge.check_names([name]) == [f"{name} is not a setting; did you mean {meant}?"]


@pytest.mark.parametrize("name", ["NTFY_TOPIC", "VIN", "DATABASE_URL"])
def test_any_other_name_that_is_none_of_ours_has_a_line(name: str, log: Log) -> None:
    assert i3charge.check_names([name, *i3charge.SETTING_NAMES]) == []
    assert log.messages == [f"{name} is not a setting of i3charge"]


# --- Each of them ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vin", "problem"),
    [
        (VIN, ""),
        (VIN.lower(), ""),
        (f" {VIN} ", ""),
        ("307905", "17 characters (this has 6)"),
        (f"{VIN}5", "17 characters (this has 18)"),
        ("WBY1Z21040V30790O", "17 letters and digits, none of them I, O or Q"),
        ("WBY1Z21040V30790é", "17 letters and digits, none of them I, O or Q"),
        ("WBY1Z-1040V307905", "17 letters and digits, none of them I, O or Q"),
    ],
)
def test_vin(vin: str, problem: str) -> None:
    variables = good(CARDATA, VEHICLE_IDENTIFICATION_NUMBER=vin)
    name = "VEHICLE_IDENTIFICATION_NUMBER"
    assert problems(variables) == ([f"{name} should be {problem}"] if problem else [])
    if not problem:
        assert load(variables).vin == VIN


@pytest.mark.parametrize(
    "value", ["a minute", "-60000", "0", "1e3", "60000.5", "60 000", "6\uff10", "9" * 5000]
)
def test_interval_that_is_no_sensible_whole_number_is_refused(value: str) -> None:
    (line,) = problems(good(CARDATA, LOG_INTERVAL=value))
    assert line.startswith("LOG_INTERVAL should be a whole number of milliseconds")


@pytest.mark.parametrize(
    ("names", "url", "value", "interval_s", "raised"),
    [
        (CARDATA, "https://bmw.example", "60000", 2400, "2400000 milliseconds (40 min)"),
        (CARDATA, "https://bmw.example", "2400000", 2400, ""),
        (CARDATA, "http://127.0.0.1:80", "50", 0.05, ""),
        (PORTAL, "https://bmw.example", "9999", 10, "10000 milliseconds (10 s)"),
        (PORTAL, "https://bmw.example", " 0060000 ", 60, ""),
        (PORTAL, "http://[::1]", "1", 0.001, ""),
    ],
)
def test_short_interval_is_raised_with_one_line_but_not_for_a_simulated_bmw(
    names: list[str], url: str, value: str, interval_s: float, raised: str, log: Log
) -> None:
    name = "CARDATA_BASE_URL" if names == CARDATA else "CONNECTED_DRIVE_BASE_URL"
    assert load(good(names, LOG_INTERVAL=value, **{name: url})).interval_s == interval_s
    assert len(log.messages) == bool(raised)
    assert all(line.startswith(f"LOG_INTERVAL is raised to {raised}: ") for line in log.messages)


@pytest.mark.parametrize(
    ("value", "goal"),
    [
        ("80", 80),
        (" 80% ", 80),
        ("1", 1),
        ("99", 99),
        ("0", 0),
        ("", 0),
        ("100", None),
        ("x", None),
    ],
)
def test_charge_of_the_owners_own(value: str, goal: float | None) -> None:
    variables = good(CARDATA, NOTIFY_AT=value)
    if goal is None:
        assert problems(variables) == ["NOTIFY_AT should be a whole number from 1 to 99"]
    else:
        assert load(variables).notify_at == goal


@pytest.mark.parametrize("client_id", ["my id", "my_id", "m\xfdid", "id;", "id/"])
def test_client_id_is_letters_digits_and_hyphens(client_id: str) -> None:
    (line,) = problems(good(CARDATA, CARDATA_CLIENT_ID=client_id))
    assert line == "CARDATA_CLIENT_ID should be letters, digits and hyphens"


STRAYS = {
    "\u200b": "zero width space",
    "\u00a0": "no-break space",
    "\u201d": "right double quotation mark",
    "\u2011": "non-breaking hyphen",
    "\u00ad": "soft hyphen",
    "\ufeff": "zero width no-break space",
    "\t": "control character",
}


@pytest.mark.parametrize("stray", STRAYS, ids=STRAYS.values())
@pytest.mark.parametrize(
    ("names", "name", "value"),
    [
        (CARDATA, "CARDATA_CLIENT_ID", f"{CANARY[:5]}{{}}x"),
        (CARDATA, "VEHICLE_IDENTIFICATION_NUMBER", f"{VIN[:8]}{{}}{VIN[8:]}"),
        (CARDATA, "NTFY_URL", f"https://ntfy.example/{CANARY[:5]}{{}}x"),
        (CARDATA, "WEBHOOK_URL", "https://hook{}.example/"),
        (CARDATA, "CARDATA_BASE_URL", "https://bmw{}.example/"),
        (PORTAL, "AUTH_CLIENT_ID", f"{CANARY[:5]}{{}}x"),
        (PORTAL, "AUTH_BASE_URL", "https://bmw.example/{}x"),
        (PORTAL, "AUTH_REDIRECT_URI", "https://bmw.example/{}x"),
        (PORTAL, "USERNAME", f"{CANARY[:5]}{{}}@x.example"),
    ],
)
def test_character_that_was_copied_along_is_named_but_not_the_value(
    names: list[str], name: str, value: str, stray: str
) -> None:
    (line,) = problems(good(names, **{name: value.format(stray)}))
    strayed = f"a stray character ({STRAYS[stray]}), perhaps copied with it"
    assert line == f"{name} holds {strayed}: type it anew"


def test_password_may_hold_any_character() -> None:
    assert load(good(PORTAL, PASSWORD="\u201cp\u00a0w\u201d")).password == "\u201cp\u00a0w\u201d"


def test_client_id_is_in_lower_case_where_it_is_a_uuid() -> None:
    uuid = " ABCDEF01-2345-6789-ABCD-EF0123456789 "
    assert load(good(CARDATA, CARDATA_CLIENT_ID=uuid)).client_id == uuid.strip().lower()
    assert load(good(CARDATA, CARDATA_CLIENT_ID="Not-a-UUID")).client_id == "Not-a-UUID"


SECURE_URLS = ["https://bmw.example/api/", "HTTPS://BMW.example/", "https://bmw.example "]
SECURE_URLS += ["http://127.0.0.1:8080/", "http://LOCALHOST/", "http://[::1]:8000/x"]
PLAIN_URLS = ["http://bmw.example/", "http://10.0.0.1/", "http://127.0.0.1.evil.example/"]
PLAIN_URLS += ["http://127.0.0.1@evil.example/", "http://evil.example#@127.0.0.1/"]
BROKEN_URLS = [
    "ftp://127.0.0.1/",
    "bmw.example/api/",
    "https:///api/",
    "https://[::1/",
    "x",
    "https://bmw.example:topic",
]


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("CARDATA_BASE_URL", CARDATA),
        ("CARDATA_AUTH_BASE_URL", CARDATA),
        ("CONNECTED_DRIVE_BASE_URL", PORTAL),
        ("AUTH_BASE_URL", PORTAL),
    ],
)
def test_secrets_go_to_https_or_this_computer_only(name: str, names: list[str]) -> None:
    for url in SECURE_URLS:
        assert problems(good(names, **{name: url})) == []
    for url in (*PLAIN_URLS, *BROKEN_URLS):
        (line,) = problems(good(names, **{name: url}))
        assert line == f"{name} should be an address that begins with https://"


def test_own_addresses_may_be_plain() -> None:
    for url in (*SECURE_URLS, *PLAIN_URLS):
        assert load(good(CARDATA, WEBHOOK_URL=url)).webhook_url == url.strip()
    for url in BROKEN_URLS:
        assert first_words(problems(good(CARDATA, WEBHOOK_URL=url))) == ["WEBHOOK_URL"]


@pytest.mark.parametrize("url", ["https://ntfy.sh", "http://ntfy.sh//"])
def test_ntfy_without_a_topic_is_refused(url: str) -> None:
    (line,) = problems(good(CARDATA, NTFY_URL=url))
    assert line.startswith("NTFY_URL should end with a topic")
    assert problems(good(CARDATA, NTFY_URL=f"{url}/t", WEBHOOK_URL=url)) == []


# --- The file -------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "folder", b"X='w\xf6rd'\n", "X='x'".encode("utf-16")])
def test_file_that_is_of_no_use_is_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "own.env"
    if content == "folder":
        path.mkdir()
    elif content:
        path.write_bytes(content)
    with pytest.raises(CannotStart) as raised:
        i3charge.read_settings_file(path)
    (line,) = raised.value.lines
    assert line.startswith(f"{path} cannot be read: ")
    assert ("UTF-8" in line) == isinstance(content, bytes)


def test_lines_that_are_no_settings_are_named_by_their_numbers(
    start: Start, portal: Portal, file: Path
) -> None:
    file.write_text(f"USERNAME=x\nPASSWORD='{CANARY}\nLOG_INTERVAL=1\n\n# X\n\nhunter2\n")
    script = start("--once", "--env-file", str(file), extra_env=portal.settings())
    assert script.end() == 2
    first, second = script.stderr
    assert f"{file}, line 2: should be NAME=value (is a quote missing?)" in first
    assert f"{file}, line 7: " in second
    assert CANARY not in script.output and "hunter2" not in script.output


@pytest.mark.parametrize(("mode", "is_warned_of"), [(0o600, 0), (0o700, 0), (0o640, 1), (0o602, 1)])
def test_file_that_others_can_read_or_write_is_warned_of(
    tmp_path: Path, mode: int, is_warned_of: int, log: Log
) -> None:
    file = write_settings(tmp_path / "my own.env", {})
    file.chmod(mode)
    i3charge.read_settings_file(file)
    assert len(log.messages) == is_warned_of
    for line in log.messages:
        subprocess.run(shlex.split(line[line.index("chmod ") :]), check=True)
    log.clear()
    i3charge.read_settings_file(file)
    assert log.messages == []  # the command in the warning mends it


def test_what_is_no_file_is_not_warned_of(log: Log) -> None:
    """As in --env-file <(pass show i3charge)."""
    assert i3charge.read_settings_file(Path("/dev/null")) == {}
    assert log.messages == []


# --- What is written of them ----------------------------------------------------------


def test_example_names_all_settings() -> None:
    names = re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(i3charge.SETTING_NAMES)


@pytest.mark.parametrize("names", [CARDATA, PORTAL])
def test_defaults_in_the_example_are_those_of_the_code(names: list[str]) -> None:
    text = (ROOT / ".env.example").read_text()
    defaults = dict(re.findall(r"^#([A-Z_]+_URI|[A-Z_]+_URL)=(\S+)", text, re.MULTILINE))
    assert len(defaults) == 5
    assert load(good(names, **defaults)) == load(good(names))


def test_readme_names_all_settings() -> None:
    names = re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", (ROOT / "README.md").read_text())
    assert set(i3charge.SETTING_NAMES) <= set(names)


def test_help_is_the_manual(start: Start) -> None:
    script = start("--help", extra_env={"COLUMNS": "80"})
    assert script.end() == 0
    text = "\n".join(script.stdout)
    assert max(map(len, script.stdout)) <= 80
    for name in i3charge.SETTING_NAMES:
        assert re.search(rf"^  {name}  +\S", text, re.MULTILINE)
    for option in ("--once", "--json", "--demo", "--env-file", "--verbose", "--version"):
        assert option in text
    for words in (".i3charge.json", "exit status:", "130", "143", "examples:"):
        assert words in text
    for example in re.findall(r"^  python i3charge\.py (--\S+)", text, re.MULTILINE):
        assert f"  {example}" in text.split("settings, in")[0]
    assert text.count("\n  python i3charge.py") == 3
