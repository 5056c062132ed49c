"""The load of test_agreement at size: not part of the suite, run with `pytest tests/bench/test_load.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import load
from tests.stack import stack


@pytest.mark.timeout(900)
def test_all_mirrors_agree_on_two_hundred_jobs(tmp_path: Path) -> None:
    """Two hundred jobs on a pool of eight workers: in the middle, meanwhile and in the end all count the same."""
    with stack(tmp_path, RATE_LIMIT="") as installation:
        installation.add_prompts()
        installation.gemini.latency = 1.0
        installation.start_api()
        load.run(installation, jobs=200, workers=8, seconds=600)
