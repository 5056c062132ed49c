"""GEMINI_RPM=120 with four processes, over two full minutes: run with `pytest tests/bench/test_rpm.py`."""

from __future__ import annotations

import pytest

from superexam_rq.throttle import WINDOW
from tests.integration.test_throttle import arrivals, most_within

RPM = 120
SECONDS = 186.0


@pytest.mark.timeout(300)
def test_120_calls_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    """In no 60 s window there are more than 120 calls, and at least 95 % of them are made."""
    times = arrivals(RPM, WINDOW, SECONDS)
    made = len([arrived for arrived in times if arrived < times[0] + SECONDS])
    most, used = most_within(60.0, times), made / (RPM * SECONDS / 60)
    with capsys.disabled():
        print(f"\nmost in any 60 s: {most} of {RPM}; used over {SECONDS:.0f} s: {used:.1%}")
    assert most <= RPM
    assert used >= 0.95
