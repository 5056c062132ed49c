"""Take the pictures of the documentation: `python -m tests.screenshots` (needs chromium and chromium-driver).

The demo runs for real, in a terminal of its own; the dashboard shows that same installation after a second job
failed for want of its file. Written are `deploy/screenshots/*.png`.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import tempfile
from pathlib import Path

import requests
from rich.console import Console
from rich.text import Text

from superexam_rq.sandbox.processes import free_port
from tests.browser import chromium
from tests.stack import ROOT, eventually, firestore_client

FOLDER = ROOT / "deploy" / "screenshots"
COLUMNS, LINES = 100, 60
# What a terminal does with a line that is written again: only its last state stays.
_REWRITTEN = re.compile(r"(\x1b\[\d*[AK]|\x1b\[\?25[lh]|\r(?!\n))")


class Terminal:
    """Run a command in a terminal and collect what it shows."""

    def __init__(self, *command: str, **variables: str) -> None:
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.environ |= {"COLUMNS": str(COLUMNS), "LINES": str(LINES), "TERM": "xterm-256color", **variables}
            os.execv(command[0], command)
        self.shown = ""

    def read_until(self, words: str, seconds: float = 60) -> None:
        """Collect until the words are shown."""
        eventually(lambda: self._more(words), f"{words!r} in the terminal", seconds)

    def _more(self, words: str) -> bool:
        while select.select([self._descriptor], [], [], 0)[0]:
            self.shown += os.read(self._descriptor, 65536).decode(errors="replace")
        return words in self.shown

    def end(self) -> None:
        """Press Ctrl-C and wait for the end."""
        os.kill(self.pid, signal.SIGINT)
        os.waitpid(self.pid, 0)
        os.close(self._descriptor)

    def page(self, title: str) -> str:
        """Return what was shown as an HTML page."""
        console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
        for line in self.shown.replace("\r\n", "\n").split("\n"):
            console.print(Text.from_ansi(_REWRITTEN.split(line)[-1]))
        return console.export_svg(title=title)


def main() -> None:
    """Take all pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    port = free_port()
    demo = Terminal(sys.executable, "-m", "superexam_rq", "demo", PORT=str(port))
    try:
        demo.read_until("until Ctrl-C")
        with chromium(width=1100, height=1150) as browser, tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "demo.html"
            picture.write_text(f"<body style='margin:0'>{demo.page('python -m superexam_rq demo')}</body>")
            browser.open(picture.as_uri())
            browser.screenshot(FOLDER / "demo.png")
        base = f"http://127.0.0.1:{port}"
        failed = _fail_a_job(base, re.search(r"FIRESTORE_EMULATOR_HOST=(\S+)", demo.shown))
        # Not higher: a traceback further down would show where this checkout lies.
        with chromium(width=1100, height=700) as browser:
            for name, path, words in (
                ("dashboard-queues", "/dashboard/", "superexam"),
                ("dashboard-workers", "/dashboard/0/view/workers", "superexam"),
                ("dashboard-failed", f"/dashboard/0/view/job/{failed}", "PDF file not found"),
                ("docs", "/docs", "/jobs/process"),
            ):
                browser.open(base + path)
                browser.wait_for_text(words)
                browser.screenshot(FOLDER / f"{name}.png")
    finally:
        demo.end()
    for taken in sorted(FOLDER.iterdir()):
        print(taken.relative_to(ROOT))


def _fail_a_job(base: str, address: re.Match[str] | None) -> str:
    assert address is not None
    db = firestore_client(address[1], "superexam-demo")
    db.document("superexam-documents", "biology").set({"title": "Biology", "filePath": "lost.pdf"})
    for kind in ("system", "custom"):
        db.document(f"superexam-{kind}-prompts", "any").set({"content": "Write questions."})
    body = {"doc_id": "biology", "system_prompt_id": "any", "custom_prompt_id": "any"}
    job = requests.post(f"{base}/jobs/process", json=body, timeout=10).json()
    url = f"{base}/jobs/{job['job_id']}"
    eventually(lambda: requests.get(url, timeout=10).json()["status"] == "failed", "the job to fail")
    return str(job["job_id"])


if __name__ == "__main__":
    main()
