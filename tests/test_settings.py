"""The settings: where they come from, and all problems with them, reported at once."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
from conftest import ROOT, SCRIPT, Script, Start, write_settings
from fake_bmw import PASSWORD, USERNAME, VIN, Portal
from fake_cardata import saved
from hypothesis import strategies as st

import i3charge
from i3charge import CannotGoOn, Settings

VIN_NAME = "VEHICLE_IDENTIFICATION_NUMBER"
CARDATA = ["CARDATA_CLIENT_ID", VIN_NAME]
PORTAL = ["USERNAME", "PASSWORD", "AUTH_CLIENT_ID", VIN_NAME]
CANARY = "xyzzy plugh"
FIELDS = {each.metadata["name"]: each for each in dataclasses.fields(Settings)}
Log = pytest.LogCaptureFixture


def good(names: list[str], **variables: str) -> dict[str, str]:
    """What a door requires, with other values if there are any."""
    return {**dict.fromkeys(names, "owner"), VIN_NAME: VIN, **variables}


def load(variables: dict[str, str]) -> Settings:
    return i3charge.load_settings(variables, i3charge.door_for(variables), "the advice")


def problems(variables: dict[str, str]) -> list[str]:
    try:
        load(variables)
    except CannotGoOn as problem:
        return list(problem.lines)
    return []


def read(name: str, value: str) -> object:
    """What becomes of a value, or "No: " and the one problem with it."""
    names = CARDATA if "CarData" in FIELDS[name].metadata["doors"] else PORTAL
    variables = good(names, **{name: value})
    for problem in problems(variables):
        assert problem.startswith(f"{name} ") and problems(variables) == [problem]
        return problem.replace(name, "No:")
    return getattr(load(variables), FIELDS[name].name)


def said(stderr: list[str]) -> list[str]:
    """The lines without the time of day."""
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
    # Names in the environment are not checked.
    assert script.stderr_with("NTFY_TOPIC is not a setting of i3charge") == 1
    assert script.stderr_with("is not a setting") == 1


def test_value_is_what_is_written(file: Path) -> None:
    values = {
        "\ufeffA='ünï $HOME #x'": "ünï $HOME #x",
        "B=pa$HOME#x": "pa$HOME#x",
        "  export C = 'a=b&c' # a comment": "a=b&c",
        "D=first\nD=second\r": "second",
        "E=": "",
        r"F='it\'s # 1 \\'": "it's # 1 \\",
    }
    file.write_bytes("\n".join(values).encode())
    assert i3charge.read_settings_file(file) == dict(zip("ABCDEF", values.values()))


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


def test_empty_value_in_the_file_wins_over_the_environment(start: Start, file: Path) -> None:
    write_settings(file, good(CARDATA, CARDATA_CLIENT_ID=""))
    script = start("--env-file", str(file), extra_env=good(CARDATA))
    assert script.end() == 2
    missing, advice = said(script.stderr)
    assert missing == "CARDATA_CLIENT_ID is missing or empty"
    assert advice.startswith(f'fill in {file}; "Your own car" in README.md has the steps')


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


@pytest.mark.parametrize("name", i3charge.ALL)
def test_each_door_reads_its_own_settings_only(name: i3charge.DoorName) -> None:
    """A leftover of another door is no problem. The demo needs no setting at all."""
    required = {"CarData": good(CARDATA), "portal": good(PORTAL), "demo": {}}
    unread = [each for each in FIELDS if name not in FIELDS[each].metadata["doors"]]
    others = {**dict.fromkeys(unread, CANARY), **required[name]}
    plain = i3charge.load_settings(required[name], name, "")
    assert i3charge.load_settings(others, name, "") == plain
    with pytest.raises(CannotGoOn, match="NTFY_URL should be an address"):
        i3charge.load_settings({**others, "NTFY_URL": "ntfy"}, name, "")


@pytest.mark.parametrize("is_bmws", [True, False])
def test_owner_of_old_settings_hears_that_bmw_has_closed_this_door(
    portal: Portal, log: Log, is_bmws: bool
) -> None:
    variables = portal.settings()
    if is_bmws:
        del variables["AUTH_BASE_URL"]
    store = i3charge.Store(i3charge.Memory(), saved)
    i3charge.open_door("portal", load(variables), store, once=True)
    closed = "BMW has closed the ConnectedDrive portal"
    assert [line.startswith(closed) for line in log.messages] == [True] * is_bmws


# --- All at once ----------------------------------------------------------------------


def test_all_problems_are_said_at_once_and_nothing_is_sent(start: Start, portal: Portal) -> None:
    wrong = {
        VIN_NAME: f"{CANARY} vin",
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


def test_misspelt_name_is_an_error_and_any_other_unknown_name_a_warning(log: Log) -> None:
    names = ["DATABASE_URL", "NOTIFY_URL", "VIN", "cardata_client_id", *FIELDS]
    with pytest.raises(CannotGoOn) as raised:
        i3charge.load_settings(good(CARDATA), "CarData", "", names)
    assert raised.value.lines == (
        "NOTIFY_URL is not a setting; did you mean NTFY_URL?",
        "cardata_client_id is not a setting; did you mean CARDATA_CLIENT_ID?",
    )
    unknown = ["DATABASE_URL", "VIN"]
    assert log.messages == [f"{name} is not a setting of i3charge" for name in unknown]


# --- Each of them ---------------------------------------------------------------------


LETTERS = "No: should be 17 letters and digits, none of them I, O or Q"
MILLISECONDS = "No: should be a whole number of milliseconds, such as 2400000 for 40 minutes"
PERCENTAGE = "No: should be a whole number from 1 to 99"
UUID = "ABCDEF01-2345-6789-ABCD-EF0123456789"
HYPHENS = "No: should be letters, digits and hyphens"
TOPIC = "No: should end with a topic, such as 20 random letters"
MANY_NINES = "9" * 5000


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (VIN_NAME, {f" {VIN.lower()} ": VIN, VIN[:6]: "No: should be 17 characters (this has 6)"}),
        (VIN_NAME, {VIN[:-1] + "O": LETTERS, VIN[:-1] + "é": LETTERS}),
        # BMW may show a UUID in upper case, but does not accept it.
        ("CARDATA_CLIENT_ID", {f" {UUID} ": UUID.lower(), "Not-a-UUID": "Not-a-UUID"}),
        ("CARDATA_CLIENT_ID", {"my_id": HYPHENS, "m\xfdid": HYPHENS}),
        ("NOTIFY_AT", {" 80% ": 80, "1": 1, "99": 99, "0": 0, "": 0}),
        ("NOTIFY_AT", dict.fromkeys(["100", "x"], PERCENTAGE)),
        ("LOG_INTERVAL", dict.fromkeys(["-60000", "0", "60000.5", "6\uff10"], MILLISECONDS)),
        ("LOG_INTERVAL", {MANY_NINES: MILLISECONDS}),
        ("PASSWORD", {"\u201cp\u00a0w\u201d": "\u201cp\u00a0w\u201d"}),  # any character
        ("NTFY_URL", {"https://ntfy.sh": TOPIC, "http://ntfy.sh//": TOPIC}),
    ],
)
def test_value_is_tidied_up_or_refused(name: str, values: dict[str, object]) -> None:
    assert {value: read(name, value) for value in values} == values


@pytest.mark.parametrize(
    ("names", "url", "value", "interval_s", "raised"),
    [
        (CARDATA, "https://bmw.example", "", 2400, ""),
        (PORTAL, "https://bmw.example", "", 60, ""),
        (CARDATA, "https://bmw.example", "60000", 2400, "2400000 milliseconds (40 min)"),
        (CARDATA, "http://127.0.0.1:80", "50", 0.05, ""),
        (PORTAL, "https://bmw.example", "9999", 10, "10000 milliseconds (10 s)"),
        (PORTAL, "https://bmw.example", " 0060000 ", 60, ""),
        (PORTAL, "http://[::1]", "1", 0.001, ""),
    ],
)
def test_short_interval_is_raised_but_not_for_a_simulated_bmw(
    names: list[str], url: str, value: str, interval_s: float, raised: str, log: Log
) -> None:
    name = "CARDATA_BASE_URL" if names == CARDATA else "CONNECTED_DRIVE_BASE_URL"
    assert load(good(names, LOG_INTERVAL=value, **{name: url})).interval_s == interval_s
    assert len(log.messages) == bool(raised)
    assert all(line.startswith(f"LOG_INTERVAL is raised to {raised}: ") for line in log.messages)


# A zero width space, a no-break space, a quotation mark, a non-breaking hyphen and a tab.
STRAYS = "\u200b\u00a0\u201d\u2011\t"


@pytest.mark.parametrize("name", sorted({*FIELDS} - {"PASSWORD", "NOTIFY_AT", "LOG_INTERVAL"}))
def test_stray_character_is_reported_without_the_value(name: str) -> None:
    for stray in STRAYS:
        value = ("https://x.example/" if "URL" in name else "") + f"{VIN[:8]}{stray}{VIN[8:]}"
        assert read(name, value) == "No: contains a stray character: type it by hand"


SECURE_URLS = ["https://bmw.example/api/", "HTTPS://BMW.example/", "https://bmw.example "]
SECURE_URLS += ["http://127.0.0.1:8080/", "http://LOCALHOST/", "http://[::1]:8000/x"]
PLAIN_URLS = ["http://bmw.example/", "http://10.0.0.1/", "http://127.0.0.1.evil.example/"]
PLAIN_URLS += ["http://127.0.0.1@evil.example/", "http://evil.example#@127.0.0.1/"]
BROKEN_URLS = ["ftp://127.0.0.1/", "bmw.example/api/", "https:///api/", "https://[::1/"]
BROKEN_URLS += ["https://bmw.example:topic"]


@pytest.mark.parametrize("name", [name for name in FIELDS if "BASE_URL" in name])
def test_secrets_go_to_https_or_this_computer_only(name: str) -> None:
    for url in SECURE_URLS:
        assert read(name, url) == url.strip()
    for url in (*PLAIN_URLS, *BROKEN_URLS):
        assert read(name, url) == "No: should be an address that begins with https://"


def test_own_addresses_may_be_plain() -> None:
    telegram = "https://api.telegram.org/bot1:secret/sendMessage?chat_id=@channel#@"
    for url in (*SECURE_URLS, *PLAIN_URLS, telegram):
        assert read("WEBHOOK_URL", url) == url.strip()
    for url in BROKEN_URLS:
        assert str(read("WEBHOOK_URL", url)).startswith("No: should be an address")


def test_password_in_ones_own_address_is_percent_encoded() -> None:
    for user in ("https://me", "https://me:p@ss", "http://me:пароль", "https://me:%23%2F%3F%5B"):
        url = f"{user}@host.example/topic"
        assert read("NTFY_URL", url) == url
    encoded = "a password in it has to be percent-encoded: # is %23, / is %2F"
    for user in ("https://me:pa#ss", "http://me:pa/ss", "https://me:pa?ss", "HTTPS://me:pa[ss"):
        assert (
            read("NTFY_URL", f"{user}@host.example/topic") == f"No: is no valid address: {encoded}"
        )


ADDRESS_PARTS = ["https://", "http://", "//", "me:", "@", "[", "]", "::1", "#", "?", "%", " ", "é"]


@hypothesis.given(
    st.sampled_from([*FIELDS]),
    st.text() | st.lists(st.sampled_from(ADDRESS_PARTS) | st.text(max_size=2)).map("".join),
    st.text() | st.sampled_from(ADDRESS_PARTS),
)
def test_any_value_is_taken_or_gets_one_line_without_it(name: str, before: str, after: str) -> None:
    doors = FIELDS[name].metadata["doors"]
    variables = {**good([*CARDATA, *PORTAL]), name: before + CANARY + after}
    try:
        i3charge.load_settings(variables, doors[0], "")
    except CannotGoOn as problem:
        (line,) = problem.lines
        assert line.startswith(f"{name} ")
        assert CANARY not in line


# --- The file -------------------------------------------------------------------------


def test_unreadable_file_is_named(file: Path) -> None:
    file.write_bytes(b"X='w\xf6rd'\n")
    for why in ("it should be UTF-8 text", "No such file or directory"):
        with pytest.raises(CannotGoOn) as raised:
            i3charge.read_settings_file(file)
        assert raised.value.lines == (f"{file} cannot be read: {why}",)
        file.unlink(missing_ok=True)


def test_malformed_lines_are_named_by_their_numbers(file: Path) -> None:
    file.write_text(
        "USERNAME=x\nPASSWORD='secret\nLOG_INTERVAL=1\n\n# X\n\nhunter2\n"
        "WEBHOOK_URL=\nhttps://api.telegram.org/bot1:secret/sendMessage?chat_id=42\n"
    )
    with pytest.raises(CannotGoOn) as raised:
        i3charge.read_settings_file(file)
    assert raised.value.lines == tuple(
        f"{file}, line {line}: should be NAME=value (is a quote missing?)" for line in (2, 7, 9)
    )


@pytest.mark.parametrize("mode", [0o640, 0o602])
def test_file_others_can_read_or_write_gets_a_warning(tmp_path: Path, mode: int, log: Log) -> None:
    file = write_settings(tmp_path / "my own.env", {})
    file.chmod(mode)
    i3charge.read_settings_file(file)
    (line,) = log.messages
    subprocess.run(shlex.split(line[line.index("chmod ") :]), check=True)
    i3charge.read_settings_file(file)
    assert log.messages == [line]  # the command in the warning mends it


def test_pipe_or_device_gets_no_warning(log: Log) -> None:
    """As in --env-file <(pass show i3charge)."""
    assert i3charge.read_settings_file(Path("/dev/null")) == {}
    assert log.messages == []


# --- The texts about them -------------------------------------------------------------


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_example_manual_and_readme_explain_all_settings() -> None:
    in_example = re.findall("^#?([A-Z_]+)=", text_of(".env.example"), re.MULTILINE)
    in_manual = re.findall(r"^  ([A-Z_]+)  +\w.+", i3charge.MANUAL, re.MULTILINE)
    assert sorted(in_example) == sorted(in_manual) == sorted(FIELDS)
    readme = text_of("README.md")
    assert set(FIELDS) <= set(re.findall("`([A-Z]+(?:_[A-Z]+)*)`", readme))
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\w[^|]+) \| (\w[^|]*) \|$", readme, re.MULTILINE)
    assert {name for name, _, default in rows if default == "required"} == set(CARDATA)
    of_every_day = {"NTFY_URL", "WEBHOOK_URL", "NOTIFY_AT", "LOG_INTERVAL"}
    assert {name for name, _, _ in rows} == {*CARDATA, *of_every_day}


def test_defaults_in_the_example_are_those_of_the_code() -> None:
    text = text_of(".env.example")
    defaults = dict(re.findall(r"^#([A-Z_]+_URI|[A-Z_]+_URL)=(\S+)", text, re.MULTILINE))
    assert len(defaults) == 5
    for names in (CARDATA, PORTAL):
        assert load(good(names, **defaults)) == load(good(names))


def test_default_interval_is_the_same_everywhere() -> None:
    milliseconds = f"{i3charge.PACES['CarData'].default_s * 1000:.0f}"
    for text in (i3charge.MANUAL, text_of("README.md"), text_of(".env.example")):
        assert re.search(rf"LOG_INTERVAL\W.*\b{milliseconds}\b", text)
    portal = i3charge.PACES["portal"]
    shown = f"{portal.default_s * 1000:.0f} (a minute), and at least {portal.min_s * 1000:.0f}"
    assert f"LOG_INTERVAL is {shown}" in text_of(".env.example")


def test_help_shows_the_manual(start: Start) -> None:
    script = start("--help", extra_env={"COLUMNS": "80"})
    assert script.end() == 0
    text = "\n".join(script.stdout)
    assert max(map(len, script.stdout)) <= 80
    assert i3charge.MANUAL.rstrip() in text
    for example in re.findall(r"^  python i3charge\.py (--\S+)", text, re.MULTILINE):
        assert f"  {example}" in text.split("settings, in")[0]
    assert text.count("\n  python i3charge.py") == 3
