"""Run the whole chaos suite: ``python -m tests.integration.chaos``. Exit code 1 if anything was lost or doubled."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.integration.chaos import faults, scenarios
from tests.integration.chaos.parts import installation
from tests.integration.chaos.report import Report


def main() -> None:
    """Run, print the table and what was wrong."""
    parser = argparse.ArgumentParser("python -m tests.integration.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times each kind of fault, twice (%(default)s)")
    parser.add_argument("--times", type=int, default=3, help="kills at each named step (%(default)s)")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds without Redis (%(default)s)")
    parser.add_argument("--workers", type=int, default=3, help="workers (%(default)s)")
    options = parser.parse_args()
    os.nice(5)
    began = time.monotonic()
    report = Report()
    with (
        tempfile.TemporaryDirectory(prefix="superexam-chaos-") as folder,
        installation(Path(folder), options.workers) as parts,
    ):
        scenarios.at_steps(parts, report, options.times)
        scenarios.under_load(parts, report, options.rounds, list(faults.AT_RANDOM))
        scenarios.under_load(parts, report, options.rounds, list(faults.AT_RANDOM), overlapping=True)
        scenarios.redis_away(parts, report, options.outage)
        documents = len(parts.submitted)
    print(report.table())
    print(
        f"\n{documents} documents. Worst recovery {report.worst:.1f} s; the whole took {time.monotonic() - began:.0f} s."
    )
    for line in report.wrong:
        print(f"WRONG {line}")
    sys.exit(1 if report.wrong else 0)


main()
