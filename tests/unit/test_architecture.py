"""The house stays a house: what may import what, and what importing does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.stack import ROOT


def _fresh(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("module", "strangers"),
    [
        ("superexam_rq.pipeline", ("flask", "rq")),
        ("superexam_rq.store", ("flask", "rq")),
        ("superexam_rq.generation", ("flask", "rq", "google.cloud.firestore")),
        ("superexam_rq.queueing", ("flask", "google.cloud", "google.generativeai", "pypdfium2")),
        ("superexam_rq.app", ("google.cloud", "google.generativeai", "google.genai", "pypdfium2")),
        ("superexam_rq.config", ("flask", "rq", "redis", "google.cloud")),
    ],
)
def test_a_room_does_not_load_what_it_must_not_know(module: str, strangers: tuple[str, ...]) -> None:
    """A fresh interpreter that imports the module has loaded none of the strangers."""
    code = f"import sys, {module}; print([name for name in {strangers!r} if name in sys.modules])"
    assert _fresh(code) == "[]"


@pytest.mark.parametrize("module", ["superexam_rq.app", "superexam_rq.jobs", "superexam_rq.sandbox.demo"])
def test_importing_starts_nothing(module: str) -> None:
    """Importing opens no socket and starts no thread of Python's."""
    code = (
        "import socket, threading\n"
        "def refuse(*_, **__): raise AssertionError('a socket at import')\n"
        "socket.socket.connect = refuse\n"
        f"import {module}\n"
        "print(threading.active_count())"
    )
    assert _fresh(code) == "1"


def test_nothing_but_the_commands_knows_the_sandbox() -> None:
    """The service's own rooms never import the stand-ins: they are other addresses, not other code."""
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "superexam_rq").rglob("*.py")
        if "superexam_rq.sandbox" in path.read_text() and "sandbox" not in path.parts
    }
    assert importers <= {"superexam_rq/cli.py"}
