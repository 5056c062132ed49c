"""Whoever looks at a load of jobs sees the same: Prometheus, `rq info`, the dashboard, Firestore."""

from __future__ import annotations

from tests import load
from tests.stack import Stack


def test_all_mirrors_agree_on_a_small_load(installation: Stack) -> None:
    """Twenty jobs on a pool of two: in the middle, meanwhile and in the end all count the same jobs."""
    installation.gemini.latency = 0.2
    installation.start_api()
    load.run(installation, jobs=20, workers=2, seconds=90)
