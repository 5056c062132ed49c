"""The Firestore stand-in through the Node client, which is what the website uses; the checks are in `node/`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from superexam_rq.sandbox.firestore import FirestoreServer

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(__file__).parent / "node"
_OFFLINE = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH")


@pytest.fixture(scope="module")
def node_folder(request: pytest.FixtureRequest) -> Path:
    """Install the locked Node client outside the tree, once for each lock file, and put the script beside it."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    folder = Path(request.config.cache.mkdir("firestore-node"))
    for source in SOURCES.iterdir():
        shutil.copy(source, folder)
    lock = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
    installed = folder / "installed"
    if not installed.exists() or installed.read_text() != lock:
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        if done.returncode and _OFFLINE.search(done.stderr) and os.environ.get("CI") != "true":
            pytest.skip("the npm registry can't be reached")
        assert done.returncode == 0, done.stderr
        installed.write_text(lock)
    return folder


@pytest.fixture
def address() -> Iterator[str]:
    """Run a stand-in of its own."""
    with FirestoreServer() as server:
        yield server.address


def test_node_client(node_folder: Path, address: str) -> None:
    """Every check of the Node script passes: masks, transforms, errors, queries, transactions, snapshots."""
    environment = os.environ | {"FIRESTORE_EMULATOR_HOST": address, "METADATA_SERVER_DETECTION": "none"}
    command = ["node", "--test", "--test-reporter=tap", "firestore.mjs"]
    done = subprocess.run(command, cwd=node_folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = (SOURCES / "firestore.mjs").read_text().count("\ntest(")
    assert f"# pass {checks}\n" in done.stdout
