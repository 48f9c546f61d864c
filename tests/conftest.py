"""What the tests share: servers that are closed, and scripts that are watched and ended."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import fake_bmw
import fake_cardata
import hypothesis
import pytest
from hypothesis import strategies as st

import i3charge

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "i3charge.py"

# What ends the script, and its exit status then.
ENDINGS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]

# Runs the script with other constants (a time-out of seconds, not of minutes), of the module or
# as "Class.NAME" of a class, and, for pync, on what looks like a Mac.
LAUNCHER = """
import json, sys
constants, macos = json.loads(sys.argv.pop(1))
if macos:
    import platform
    platform.system = lambda: "Darwin"
    platform.mac_ver = lambda: (macos, ("", "", ""), "arm64")
sys.path.insert(0, sys.argv.pop(1))
import i3charge
for path, value in constants.items():
    *owner, name = path.split(".")
    thing = getattr(i3charge, owner[0]) if owner else i3charge
    assert hasattr(thing, name), path
    setattr(thing, name, tuple(value) if isinstance(value, list) else value)
sys.argv[0] = "i3charge.py"
sys.exit(i3charge.main())
"""


class Script:
    """The running script, its two outputs read line by line as they come."""

    def __init__(self, command: list[str], env: dict[str, str], **options: Any) -> None:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, encoding="utf-8", **options
        )
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self.changed = threading.Condition()
        self.readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr))
            if pair[0]
        ]
        for reader in self.readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        with stream:
            for line in stream:
                with self.changed:
                    lines.append(line.rstrip("\n"))
                    self.changed.notify_all()

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 30) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, seconds), (
                f"waited in vain for {what}\n{self.stdout[-9:]}\n{self.stderr[-9:]}"
            )

    def wait_for_readings(self, count: int) -> None:
        self.wait_for(lambda: len(self.stdout) >= count, f"{count} readings")

    def wait_for_stderr(self, text: str, count: int = 1) -> None:
        self.wait_for(lambda: self.stderr_with(text) >= count, f"{text!r} on stderr")

    def stderr_with(self, text: str) -> int:
        return sum(text in line for line in self.stderr)

    def end(self, seconds: float = 30) -> int:
        """Wait until it has ended by itself; returns the exit status."""
        status = self.process.wait(seconds)
        for reader in self.readers:
            reader.join(seconds)
        return status

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.end()

    @property
    def news(self) -> list[str]:
        """What stderr says beside the first line, of what is armed."""
        return [line for line in list(self.stderr) if "Phone: " not in line]

    @property
    def output(self) -> str:
        return "\n".join([*self.stdout, *self.stderr])


Start = Callable[..., Script]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A clean environment for the script, with nothing of the desk's that runs the tests."""
    home = tmp_path / "home"
    home.mkdir()
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "TZ": "Europe/Amsterdam", "LANG": "C.UTF-8"}


def write_settings(path: Path, variables: dict[str, str]) -> Path:
    """A settings file that only its owner can read."""
    quoted = {
        name: value.replace("\\", "\\\\").replace("'", "\\'") for name, value in variables.items()
    }
    path.write_text("".join(f"{n}='{v}'\n" for n, v in quoted.items()), encoding="utf-8")
    path.chmod(0o600)
    return path


@pytest.fixture
def start(tmp_path: Path, env: dict[str, str]) -> Iterator[Start]:
    """Starts the script, and checks at the end that no secret and no traceback came out."""
    scripts: list[Script] = []
    hidden = {fake_bmw.USERNAME, fake_bmw.PASSWORD, fake_bmw.VIN, "secret", "Traceback"}

    def start(
        *arguments: str,
        settings: dict[str, str] | None = None,
        constants: dict[str, Any] | None = None,
        macos: str = "",
        extra_env: dict[str, str] | None = None,
        **options: Any,
    ) -> Script:
        command = [sys.executable, str(SCRIPT)]
        if constants or macos:
            patches = json.dumps([constants or {}, macos])
            command = [sys.executable, "-c", LAUNCHER, patches, str(ROOT)]
        if settings is not None:
            file = write_settings(tmp_path / "i3.env", settings)
            command += ["--env-file", str(file)]
        script = Script([*command, *arguments], {**env, **(extra_env or {})}, **options)
        scripts.append(script)
        return script

    yield start
    for script in scripts:
        script.process.kill()
        script.end()
    output = "".join(script.output for script in scripts)
    assert [text for text in hidden if text in output] == []


def fixture_of(server_type: type[fake_bmw.Server]) -> Any:
    """A fixture: a server that is closed after the test."""

    @pytest.fixture
    def server() -> Iterator[fake_bmw.Server]:
        server = server_type()
        yield server
        server.close()

    return server


portal = fixture_of(fake_bmw.Portal)
cardata = fixture_of(fake_cardata.CarData)
webhook = fixture_of(fake_bmw.Recorder)
ntfy = fixture_of(fake_bmw.Recorder)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Where a started script remembers: beside the settings file."""
    return tmp_path / ".i3charge-i3.env.json"


class Clock:
    """In the place of the module `time`: nothing but sleeping moves it.

    `Over` is raised where sleeping goes beyond `ends_s`; `naps` are the sleeps.
    """

    class Over(BaseException):
        """The end of a simulation; no Exception, for those the script survives."""

    def __init__(self, now_s: float | None = None, ends_s: float = math.inf) -> None:
        self.now_s = time.time() if now_s is None else now_s
        self.ends_s = ends_s
        self.naps: list[float] = []
        self.slept_s = 0.0

    def time(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        """Stands still while the computer sleeps: a test moves `now_s` for that."""
        return self.slept_s

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.slept_s += seconds
        self.now_s += max(seconds, 0.001)  # less would be lost in the rounding
        if self.now_s >= self.ends_s:
            raise self.Over


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The script's clock, in this process."""
    clock = Clock()
    monkeypatch.setattr(i3charge, "time", clock)
    return clock


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the script logs, in this process."""
    with caplog.at_level(logging.INFO, logger="i3charge"):
        yield caplog


@pytest.fixture(autouse=True)
def amsterdam(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The local time zone in this process, as in those that are started."""
    monkeypatch.setenv("TZ", "Europe/Amsterdam")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


class Notifier:
    """A recording program on the PATH: each call's arguments are a line of JSON in a file."""

    def __init__(self, folder: Path, name: str, env: dict[str, str]) -> None:
        self.name = name
        self.folder = folder / f"bin-{name}"
        self.folder.mkdir()
        self.file = folder / f"{name}.calls"
        env["PATH"] = os.pathsep.join([str(self.folder), env["PATH"]])
        self.does("")

    def does(self, what: str) -> None:
        """Let it record its call and then do `what`, in Python."""
        program = self.folder / self.name
        # Arguments end with a unit separator, calls with a record separator.
        record = f"printf '%s\\037' \"$@\" >> '{self.file}'; printf '\\036' >> '{self.file}'"
        then = f"exec '{sys.executable}' '{program}.py' \"$0\" \"$@\"" if what else ""
        program.with_name(f"{self.name}.py").write_text(
            f"import json, os, sys, time\nsys.argv.pop(0)\n{what}\n"
        )
        program.write_text(f"#!/bin/sh\n{record}\n{then}\n")
        program.chmod(0o700)

    def calls(self) -> list[list[str]]:
        text = self.file.read_text() if self.file.exists() else ""
        return [call.split("\x1f")[:-1] for call in text.split("\x1e")[:-1]]

    def messages(self) -> list[str]:
        return [call[call.index("-message") + 1] for call in self.calls()]

    def wait_for_calls(self, count: int, seconds: float = 30) -> None:
        limit = time.monotonic() + seconds
        while len(self.calls()) < count:
            assert time.monotonic() < limit, f"waited in vain for {count} calls: {self.calls()}"
            time.sleep(0.01)


@pytest.fixture
def terminal_notifier(tmp_path: Path, env: dict[str, str]) -> Notifier:
    return Notifier(tmp_path, "terminal-notifier", env)


hypothesis.settings.register_profile("default", deadline=None, max_examples=150)
hypothesis.settings.register_profile("long", deadline=None, max_examples=50_000)
hypothesis.settings.load_profile("default")

# Anything that JSON can hold.
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
