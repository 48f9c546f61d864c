"""The settings: where they come from, and all that is wrong with them, said in one go."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fake_bmw
import hypothesis
import pytest
from conftest import SCRIPT, Script, Start, write_settings
from hypothesis import example, given
from hypothesis import strategies as st

import i3charge

# A loaded machine is no failure.

REQUIRED = ["USERNAME", "PASSWORD", "VEHICLE_IDENTIFICATION_NUMBER", "AUTH_CLIENT_ID"]
BMW_URLS = ["CONNECTED_DRIVE_BASE_URL", "AUTH_BASE_URL"]
PHONE_URLS = ["WEBHOOK_URL", "NTFY_URL"]
NAMES = [*REQUIRED, *BMW_URLS, *PHONE_URLS, "AUTH_REDIRECT_URI", "LOG_INTERVAL"]
GOOD = dict(zip(REQUIRED, ["owner@example.com", "open sesame", fake_bmw.VIN, "web-app"]))
CANARY = "xyzzy plugh"


def portal_of(variables: dict[str, str]) -> i3charge.Portal:
    settings = i3charge.Settings(variables)
    portal = i3charge.Portal(settings, i3charge.Http())
    for name in PHONE_URLS:
        settings.url(name, secure=False)
    settings.check()
    return portal


def problems(**variables: str) -> list[str]:
    try:
        portal_of({**GOOD, **variables})
    except i3charge.SettingsError as error:
        return list(error.args)
    return []


def said(script: Script) -> list[str]:
    """What a script that ended because of its settings said on stderr, line by line."""
    assert script.end() == 2
    assert script.stdout == []
    pairs = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (.+)", x) for x in script.stderr]
    assert all(pairs), script.stderr
    return [pair[1] for pair in pairs if pair]


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


def test_a_value_in_the_file_wins_over_the_environment(
    start: Start, portal: fake_bmw.Portal
) -> None:
    others = {name: f"desktop-{name}" for name in NAMES if name not in PHONE_URLS}
    settings = {**portal.settings(), "AUTH_REDIRECT_URI": fake_bmw.REDIRECT_URI}
    assert start("--once", settings=settings, extra_env=others).end() == 0
    form = portal.logins_seen()[0].form
    assert form["username"] == fake_bmw.USERNAME
    assert form["password"] == fake_bmw.PASSWORD
    assert portal.served == 1


def test_what_the_file_does_not_hold_comes_from_the_environment(
    start: Start, portal: fake_bmw.Portal
) -> None:
    settings = portal.settings()
    in_file = {name: settings.pop(name) for name in ("USERNAME", "LOG_INTERVAL")}
    assert start("--once", settings=in_file, extra_env=settings).end() == 0
    assert portal.served == 1


def test_an_empty_value_in_the_file_is_not_filled_from_the_environment(
    start: Start, portal: fake_bmw.Portal
) -> None:
    settings = {**portal.settings(), "USERNAME": ""}
    lines = said(start("--once", settings=settings, extra_env={"USERNAME": "desktop"}))
    assert lines[0].startswith("USERNAME ")
    assert portal.requests == []


@pytest.mark.parametrize("line", ["X=", "X=''", 'X=""', "X", "export X="])
def test_forms_of_an_empty_value(file: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", "from the desk")
    file.write_text(line)
    assert i3charge.load_variables(file, required=True)["X"] == ""


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("X='pa$HOME #x'", "pa$HOME #x"),
        ('X="pa$HOME #x"', "pa$HOME #x"),
        ("X='${HOME}$$ ${X:-y}'", "${HOME}$$ ${X:-y}"),
        ('X="${HOME}$$ ${X:-y}"', "${HOME}$$ ${X:-y}"),
        ("X='it\\'s # 1 \\\\'", "it's # 1 \\"),
        ('X="say \\"$1\\" # 1 \\\\"', 'say "$1" # 1 \\'),
        ("X='a\"b'", 'a"b'),
        ('X="a\'b"', "a'b"),
        ("X=pa$HOME#x", "pa$HOME#x"),
        ("X='ünï  cödé'", "ünï  cödé"),
        ("  export X = 'a=b&c' # a comment", "a=b&c"),
        ("X=first\nX=second", "second"),
        ("X=windows\r\nY=z", "windows"),
    ],
)
def test_a_value_is_what_is_written(file: Path, line: str, value: str) -> None:
    file.write_bytes(line.encode())
    assert i3charge.load_variables(file, required=True)["X"] == value


@given(st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"]), min_size=1))
def test_any_quoted_password_survives(password: str) -> None:
    quoted = password.replace("\\", "\\\\").replace("'", "\\'")
    with settings_file(f"PASSWORD='{quoted}'\nNEXT=1\n".encode()) as file:
        variables = i3charge.load_variables(file, required=True)
    assert (variables["PASSWORD"], variables["NEXT"]) == (password, "1")


@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_password_with_dollar_and_hash_arrives_as_it_is(
    start: Start, portal: fake_bmw.Portal, file: Path, quote: str
) -> None:
    portal.password = "a$HOME ${USERNAME} $$ # b"
    lines = [f"{name}={value}\n" for name, value in portal.settings().items()]
    file.write_text("".join(lines) + f"PASSWORD={quote}{portal.password}{quote}\n")
    assert start("--once", "--env-file", str(file)).end() == 0


def test_a_byte_order_mark_does_no_harm(start: Start, portal: fake_bmw.Portal, file: Path) -> None:
    portal.password = "plain"
    lines = [f"{name}={value}\n" for name, value in portal.settings().items()]
    assert lines[0].startswith("USERNAME=")
    file.write_text("".join(lines), encoding="utf-8-sig")
    assert start("--once", "--env-file", str(file)).end() == 0


def copy_of_script(folder: Path) -> Path:
    folder.mkdir()
    return Path(shutil.copy(SCRIPT, folder))


def run_copy(script: Path, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), "--once"]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, encoding="utf-8", timeout=30
    )


def test_dot_env_is_the_one_beside_the_script(
    tmp_path: Path, env: dict[str, str], portal: fake_bmw.Portal
) -> None:
    script = copy_of_script(tmp_path / "app")
    write_settings(tmp_path / "app" / ".env", portal.settings())
    write_settings(tmp_path / ".env", dict.fromkeys(NAMES, ""))
    done = run_copy(script, tmp_path, env)
    assert (done.returncode, done.stderr) == (0, "")
    assert portal.served == 1


def test_without_dot_env_the_owner_is_told_what_to_do(
    tmp_path: Path, env: dict[str, str], portal: fake_bmw.Portal
) -> None:
    done = run_copy(copy_of_script(tmp_path / "app"), tmp_path, env)
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (2, "", len(REQUIRED) + 1)
    assert ".env.example" in lines[-1]
    assert "--demo" in lines[-1]
    assert "--env-file" not in done.stderr


class RecordingHttp:
    """Signs in and then says nothing useful."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.redirect_uri = ""

    def send(self, what: str, method: str, url: str, **options: object) -> i3charge.Answer:
        self.requests.append((method, url))
        data = options.get("data")
        if isinstance(data, dict):
            self.redirect_uri = data["redirect_uri"]
            location = f"{self.redirect_uri}#access_token=t&state={data['state']}"
            return i3charge.Answer(what, "host", 302, {"Location": location}, b"")
        return i3charge.Answer(what, "host", 500, {}, b"")


@pytest.mark.parametrize("given_values", [{}, dict.fromkeys(NAMES[4:], "")])
def test_defaults(given_values: dict[str, str]) -> None:
    http = RecordingHttp()
    settings = i3charge.Settings({**GOOD, **given_values})
    portal = i3charge.Portal(settings, http)  # type: ignore[arg-type]
    assert [settings.url(name, secure=False) for name in PHONE_URLS] == ["", ""]
    settings.check()
    with pytest.raises(i3charge.TryAgain):
        portal.read()
    assert http.requests == [
        ("POST", "https://customer.bmwgroup.com/gcdm/oauth/authenticate"),
        ("GET", f"https://www.bmw-connecteddrive.nl/api/vehicle/dynamic/v1/{fake_bmw.VIN}"),
    ]
    assert http.redirect_uri == fake_bmw.REDIRECT_URI
    assert portal.interval_s == 60


# --- All in one go --------------------------------------------------------------------------


def test_all_that_is_wrong_is_said_in_one_go_and_nothing_is_sent(
    start: Start, portal: fake_bmw.Portal
) -> None:
    wrong = {
        "USERNAME": "",
        "VEHICLE_IDENTIFICATION_NUMBER": f"{CANARY} vin",
        "AUTH_BASE_URL": f"http://{CANARY}.example/",
        "LOG_INTERVAL": f"{CANARY} minutes",
        "WEBHOOK_URL": f"{CANARY} hook",
        "NTFY_URL": f"{CANARY} topic",
    }
    settings = {**portal.settings(), **wrong}
    del settings["AUTH_CLIENT_ID"]
    script = start("--once", "--verbose", settings=settings)
    *lines, hint = said(script)
    assert sorted(line.split()[0] for line in lines) == sorted([*wrong, "AUTH_CLIENT_ID"])
    assert ".env.example" in hint
    assert "--demo" in hint
    assert CANARY not in script.output
    assert portal.requests == []


def test_each_missing_one_is_named(start: Start) -> None:
    *lines, hint = said(start(settings={}))
    assert sorted(line.split()[0] for line in lines) == sorted(REQUIRED)
    assert all("missing" in line for line in lines)
    assert ".env.example" in hint
    assert "--demo" in hint


@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_one_is_missed(name: str) -> None:
    line, hint = problems(**{name: ""})
    assert line.startswith(f"{name} ")
    assert ".env.example" in hint


def test_no_hint_where_nothing_is_missing() -> None:
    assert problems() == []
    assert len(problems(LOG_INTERVAL="x")) == 1


@given(st.sets(st.sampled_from(NAMES)))
def test_one_line_for_each_wrong_one_and_no_value_in_any(wrong: set[str]) -> None:
    checked = wrong - {"USERNAME", "PASSWORD", "AUTH_CLIENT_ID", "AUTH_REDIRECT_URI"}
    lines = problems(**dict.fromkeys(wrong, CANARY))
    assert sorted(line.split()[0] for line in lines) == sorted(checked)
    assert CANARY not in "".join(lines)


# --- Each of them ---------------------------------------------------------------------------


def test_a_vin_in_lower_case_is_sent_in_upper_case(start: Start, portal: fake_bmw.Portal) -> None:
    settings = {**portal.settings(), "VEHICLE_IDENTIFICATION_NUMBER": fake_bmw.VIN.lower()}
    assert start("--once", settings=settings).end() == 0
    assert portal.polls_seen()[0].path.endswith(f"/{fake_bmw.VIN}")


@pytest.mark.parametrize(
    "vin",
    [
        *[f"WBY1Z21040V30790{letter}" for letter in "IOQioq"],
        "WBY1Z21040V30790",
        "WBY1Z21040V3079055",
        "V307905",
        "WBY1Z21040V30790 ",
        "WBY1Z-1040V307905",
        "WBY1Z21040V30790é",
        "WBY1Z21040V30790٣",
        "WBY1Z21040V307905\n",
        "../../../../../..",
    ],
)
def test_a_vin_of_the_wrong_form_is_refused(vin: str) -> None:
    (line,) = problems(VEHICLE_IDENTIFICATION_NUMBER=vin)
    assert line.startswith("VEHICLE_IDENTIFICATION_NUMBER ")
    assert "17" in line
    assert vin.strip() not in line


@hypothesis.settings(max_examples=30)
@given(st.from_regex(r"[A-HJ-NPR-Za-hj-npr-z0-9]{17}", fullmatch=True))
def test_a_vin_of_the_right_form_is_accepted(vin: str) -> None:
    assert problems(VEHICLE_IDENTIFICATION_NUMBER=vin) == []


@pytest.mark.parametrize(
    "value",
    [
        *["a minute", "-60000", "0", "000", "1e3", "1e5", "60000.5", "60 000", "60_000"],
        *["6\uff10\uff10\uff10\uff10", "0xffff", "NaN", "inf", "²", "9" * 30],
        pytest.param("9" * 5000, id="5000 digits"),
    ],
)
@pytest.mark.parametrize("base", ["https://bmw.example/", "http://127.0.0.1:1/"])
def test_an_interval_that_is_no_sensible_whole_number_is_refused(base: str, value: str) -> None:
    (line,) = problems(LOG_INTERVAL=value, CONNECTED_DRIVE_BASE_URL=base)
    assert line.startswith("LOG_INTERVAL ")
    assert "whole number" in line
    assert "milliseconds" in line


@pytest.mark.parametrize("value", ["1", "60", "9999", "0060"])
def test_a_short_interval_is_for_loopback_only(value: str) -> None:
    (line,) = problems(LOG_INTERVAL=value)
    assert line.startswith("LOG_INTERVAL ")
    assert "10000" in line
    assert "milliseconds" in line
    for host in ("127.0.0.1:80", "localhost", "[::1]:80"):
        url = f"http://{host}/"
        assert problems(LOG_INTERVAL=value, CONNECTED_DRIVE_BASE_URL=url) == []


@pytest.mark.parametrize(("value", "seconds"), [("10000", 10), ("60000", 60), ("86400000", 86400)])
def test_an_interval_is_in_milliseconds(value: str, seconds: float) -> None:
    assert portal_of({**GOOD, "LOG_INTERVAL": value}).interval_s == seconds


def test_http_and_60_are_refused_before_anything_is_sent(
    start: Start, portal: fake_bmw.Portal
) -> None:
    settings = {
        **portal.settings(),
        "LOG_INTERVAL": "60",
        "CONNECTED_DRIVE_BASE_URL": "http://127.0.0.1.evil.example/",
    }
    lines = said(start("--once", settings=settings))
    assert [line.split()[0] for line in lines] == ["CONNECTED_DRIVE_BASE_URL", "LOG_INTERVAL"]
    assert portal.requests == []


@pytest.mark.parametrize("name", BMW_URLS)
@pytest.mark.parametrize(
    "url",
    [
        *["https://bmw.example/api/", "https://bmw.example:8443", "HTTPS://BMW.example/"],
        *["http://127.0.0.1:8080/", "http://127.1.2.3/", "http://localhost:1/"],
        *["http://LOCALHOST/", "http://[::1]:8000/x", "https://127.0.0.1/"],
    ],
)
def test_bmw_urls_that_are_accepted(name: str, url: str) -> None:
    assert problems(**{name: url}) == []


@pytest.mark.parametrize("name", BMW_URLS)
@pytest.mark.parametrize(
    "url",
    [
        *["http://bmw.example/", "HTTP://bmw.example/", "http://10.0.0.1/", "http://0.0.0.0/"],
        *["http://127.0.0.1.evil.example/", "http://localhost.evil.example/", "http://1127.0.0.1/"],
        *["http://127.0.0.1@evil.example/", "http://evil.example/@127.0.0.1/"],
        *["http://evil.example#@127.0.0.1/", "http://evil.example?@127.0.0.1/"],
        *["http://evil.example\\@127.0.0.1/", "http://xlocalhost/", "http://[::2]/"],
        *["ftp://127.0.0.1/", "file:///dev/null", "bmw.example/api/", "//bmw.example/", "https://"],
        *["https:///api/", "https://[::1/", "https://bmw.example:99999/", "https://bmw.example:x/"],
        *["https://bmw example/", "https://bmw.example/\nx", " https://bmw.example/", "https:/x"],
    ],
)
def test_bmw_urls_that_are_refused(name: str, url: str) -> None:
    (line,) = problems(**{name: url})
    assert line.startswith(f"{name} ")
    assert "https" in line
    assert url not in line.replace("begins with https://", "")


@pytest.mark.parametrize("name", PHONE_URLS)
def test_home_servers_have_http(name: str) -> None:
    for url in ("http://home.local:8123/hook", "https://ntfy.sh/topic"):
        assert problems(**{name: url}) == []
    for url in ("home.local/hook", "ftp://home.local/", "http://", "my-topic"):
        (line,) = problems(**{name: url})
        assert line.startswith(f"{name} ")


@pytest.mark.parametrize("ending", ["", "/"])
def test_the_last_slash_of_the_base_url_does_not_matter(
    start: Start, portal: fake_bmw.Portal, ending: str
) -> None:
    settings = {**portal.settings(), "CONNECTED_DRIVE_BASE_URL": f"{portal.url}api{ending}"}
    assert start("--once", settings=settings).end() == 0
    assert [r.path for r in portal.polls_seen()] == [f"/api/vehicle/dynamic/v1/{fake_bmw.VIN}"]


# --- The file -------------------------------------------------------------------------------


def test_an_env_file_that_does_not_exist(
    start: Start, portal: fake_bmw.Portal, tmp_path: Path
) -> None:
    path = tmp_path / "nowhere.env"
    script = start("--once", "--env-file", str(path), extra_env=portal.settings())
    (line,) = said(script)
    assert "--env-file" in line
    assert str(path) in line
    assert portal.requests == []


@pytest.mark.parametrize("content", [b"PASSWORD='w\xf6rd'\n", "PASSWORD='x'".encode("utf-16")])
def test_an_env_file_that_is_not_utf_8(
    start: Start, portal: fake_bmw.Portal, file: Path, content: bytes
) -> None:
    file.write_bytes(content)
    script = start("--once", "--env-file", str(file), extra_env=portal.settings())
    (line,) = said(script)
    assert "UTF-8" in line
    assert str(file) in line
    assert portal.requests == []


def test_an_env_file_that_is_a_directory(
    start: Start, portal: fake_bmw.Portal, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    (line,) = said(start("--once", "--env-file", str(folder), extra_env=portal.settings()))
    assert str(folder) in line
    assert portal.requests == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_env_file_that_may_not_be_read(start: Start, file: Path) -> None:
    file.chmod(0)
    (line,) = said(start("--once", "--env-file", str(file)))
    assert str(file) in line


def test_a_line_without_closing_quote(start: Start, portal: fake_bmw.Portal, file: Path) -> None:
    file.write_text(f"USERNAME=x\nPASSWORD='{CANARY}\nLOG_INTERVAL=1\n{CANARY}\n")
    script = start("--once", "--env-file", str(file), extra_env=portal.settings())
    first, second = said(script)
    assert f"{file}, line 2" in first
    assert "quote" in first
    assert f"{file}, line 4" in second
    assert CANARY not in script.output
    assert portal.requests == []


def test_others_can_read_the_file(start: Start, portal: fake_bmw.Portal, tmp_path: Path) -> None:
    path = write_settings(tmp_path / "my own.env", portal.settings())
    path.chmod(0o644)
    script = start("--once", "--env-file", str(path))
    assert script.end() == 0
    (line,) = script.stderr
    command = line[line.index("chmod 600 ") :]
    subprocess.run(shlex.split(command), check=True)
    script = start("--once", "--env-file", str(path))
    assert script.end() == 0
    assert script.stderr == []
    assert portal.served == 2


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700, 0o640, 0o604, 0o644, 0o444])
def test_the_mode_bits_that_are_warned_of(
    file: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    file.chmod(mode)
    with caplog.at_level(logging.WARNING, "i3charge"):
        i3charge.load_variables(file, required=True)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (1 if mode & 0o044 else 0)
    assert all(warning.endswith(f"chmod 600 {file}") for warning in warnings)


LINES = st.builds(
    "{}{}{}".format,
    st.sampled_from([*NAMES, "export USERNAME", "'X'", "", "#"]),
    st.sampled_from(["=", " = ", "='", '="', "", "=https://", "=http://[", "=http://127.0.0.1"]),
    st.text(max_size=20) | st.sampled_from(["'", '"', "\\", "1", "9" * 5000, fake_bmw.VIN]),
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
            portal_of(i3charge.load_variables(file, required=True))
        except i3charge.SettingsError as error:
            lines = list(error.args)
    assert all(len(line.splitlines()) == 1 for line in lines)
