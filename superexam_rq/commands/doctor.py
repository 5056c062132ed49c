"""The command `doctor`: print what the doctor finds."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red"), "skipped": ("-", "dim")}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Check this installation, part after part, and say what to do about what is wrong.

    Ends with 0 if nothing has failed, 1 otherwise; a warning is no failure.
    """
    # The findings say it better.
    logging.disable()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from superexam_rq.doctor import Finding, Level, examine

    console = Console(highlight=False, soft_wrap=True)
    findings: list[Finding] = []
    for finding in examine(os.environ, Path(".env")):
        findings.append(finding)
        if not as_json:
            _print(console, finding.check, finding.level, finding.text, finding.advice)
    healthy = all(finding.level is not Level.FAILED for finding in findings)
    if as_json:
        click.echo(json.dumps({"healthy": healthy, "checks": [asdict(finding) for finding in findings]}, indent=2))
    sys.stdout.flush()
    # Without waiting for what a check that took too long has left behind.
    os._exit(0 if healthy else 1)


def _print(console: Console, check: str, level: str, text: str, advice: str) -> None:
    sign, style = _SIGNS[level]
    console.print(Text.assemble((f"{sign} {check:17}", style), text))
    if advice:
        console.print(Text(f"{'':19}→ {advice}"))
