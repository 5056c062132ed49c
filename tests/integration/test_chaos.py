"""A small part of the chaos suite; `python -m tests.integration.chaos` runs the whole."""

from __future__ import annotations

from pathlib import Path

from tests.integration.chaos import scenarios
from tests.integration.chaos.parts import installation
from tests.integration.chaos.report import Report

KINDS = ["SIGKILL horse", "Redis connections dropped", "SIGTERM worker", "Firestore UNAVAILABLE", "SIGKILL worker"]


def test_nothing_is_lost_and_nothing_is_done_twice(tmp_path: Path) -> None:
    """Documents under faults of several kinds all end `ready` with one run's questions."""
    report = Report()
    with installation(tmp_path, 2) as parts:
        scenarios.under_load(parts, report, 1, KINDS)
    print(report.table())
    assert not report.wrong
    assert report.worst < 30
