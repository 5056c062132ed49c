"""The house stays a house: what may import what, and what importing does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path

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


def test_imports_go_one_way() -> None:
    """No module imports, at its top or later, one that needs it; what is for the type checker alone does not count."""
    package = ROOT / "superexam_rq"
    names = {_name(path): path for path in package.rglob("*.py")}
    graph = {name: _imported(path, names.keys()) for name, path in names.items()}
    assert graph["superexam_rq.queueing"] >= {"superexam_rq.lifecycle", "superexam_rq.config"}
    # `__init__` is loaded with every module.
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("superexam_rq.errors") < order.index("superexam_rq.store") < order.index("superexam_rq.worker")


@pytest.mark.parametrize("door", ["views", "dashboard", "jobs", "worker", "cli", "app", "server"])
def test_nothing_but_doors_imports_a_door(door: str) -> None:
    """What is behind a door can be used without it."""
    names = {_name(path): path for path in (ROOT / "superexam_rq").rglob("*.py")}
    importers = {name for name, path in names.items() if f"superexam_rq.{door}" in _imported(path, names.keys())}
    allowed = {"views": {"app"}, "jobs": {"worker"}, "cli": {"__main__"}}.get(door, set())
    assert importers == {f"superexam_rq.{name}" for name in allowed}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imported(path: Path, known: Iterable[str]) -> set[str]:
    """Return which of the known modules a file imports."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            # A name out of a package is a module of its own, or else defined in the package.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if names <= set(known) else names | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & set(known)) - {_name(path), "superexam_rq"}
