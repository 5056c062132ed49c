"""The Firestore stand-in through the Node client, which is what the website uses; the checks are in `node/`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from superexam_rq.sandbox.firestore import FirestoreServer
from tests import npm

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def node_folder(request: pytest.FixtureRequest) -> Path:
    """Install the locked Node client, once for each lock file, with the script beside it."""
    return npm.install(SOURCES, request)


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
