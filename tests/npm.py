"""Node packages for tests: installed from a lock file, outside the tree."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_OFFLINE = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH")


def install(sources: Path, request: pytest.FixtureRequest) -> Path:
    """Return a folder that holds `sources` and the packages of its lock file; installs once for each lock file.

    Skips the test where Node is not installed, and where the registry can't be reached, unless this is CI.
    """
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    assert request.config.cache is not None
    folder = Path(request.config.cache.mkdir(f"npm-{sources.name}"))
    for source in sources.iterdir():
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
