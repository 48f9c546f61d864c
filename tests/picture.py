"""Draw the README's picture: the demo, as it looks in a dark terminal of 80 columns.

By hand: python tests/picture.py, which runs the demo and writes .github/demo.svg.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 80
# A charge is a row of lines that look alike: these readings are left out of the picture.
LEFT_OUT = range(8, 22)


def run_demo() -> str:
    """All that the demo writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    # Nothing of one's own: neither colours switched off, nor a phone that would be told.
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    command = [sys.executable, str(ROOT / "i3charge.py"), "--demo", "--env-file", os.devnull]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # so Linux says that it has ended
            break
        if not chunk:
            break
        written += chunk
    assert process.wait() == 0
    return written.decode()


def lines_to_show(written: str) -> list[str]:
    """Without titles and bells, without what is said of this computer, and shorter."""
    text = re.sub("\033]2;[^\a]*\a|\033\\[2[23];2t|\a|\r", "", written)
    shown = ["\033[2m$ \033[0mpython i3charge.py --demo"]
    readings = 0
    for line in text.splitlines():
        is_reading = " km" in line
        readings += is_reading
        if is_reading and readings in LEFT_OUT:
            if readings == LEFT_OUT.start:
                shown.append("\033[2m…\033[0m")
        elif "no notifications on this computer" not in line:
            shown.append(line)
    return shown


def draw(lines: list[str]) -> str:
    """As SVG, with the fonts of whoever looks at it, stretched to the cells of a terminal."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line), soft_wrap=True)
    svg = console.export_svg(title="i3charge", theme=MONOKAI)
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    # Else the bar has gaps in a narrow font, for its cells are only moved apart.
    svg = svg.replace("textLength=", 'lengthAdjust="spacingAndGlyphs" textLength=')
    return svg.replace("Fira Code", "Menlo, Consolas, DejaVu Sans Mono")


def main() -> None:
    file = ROOT / ".github" / "demo.svg"
    file.write_text(draw(lines_to_show(run_demo())), encoding="utf-8")
    print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
