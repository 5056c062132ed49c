"""The command `jobs …`: look at jobs, cancel them, run them again, over the HTTP API."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from superexam_rq.client import ServiceClient, ServiceError
from superexam_rq.commands.options import load_settings, service, service_options

STATUSES = ("pending", "processing", "completed", "failed", "cancelled")
_STYLES = {"completed": "green", "failed": "red", "cancelled": "yellow", "processing": "cyan"}
_TIMES = frozenset({"created_at", "started_at", "completed_at", "retry_at"})
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))

_as_json = click.option("--json", "as_json", is_flag=True, help="Print what the API answered.")


@click.group()
def jobs() -> None:
    """Look at jobs, cancel them, run them again."""


@jobs.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only jobs in this state.")
@click.option("--doc", "doc_id", help="Only jobs of this document.")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@_as_json
@service_options
def list_jobs(
    status: str | None, doc_id: str | None, limit: int, as_json: bool, url: str | None, key: str | None
) -> None:
    """List jobs, newest first."""
    with _service(url, key) as api:
        found = api.jobs(status=status, doc_id=doc_id, limit=limit)
    if as_json:
        _print_json(found)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("job", "document", "status", "attempt", "age", "what"):
        table.add_column(name, no_wrap=name != "what", overflow="fold")
    for job in found["jobs"]:
        table.add_row(
            job["job_id"],
            Text(job["doc_id"]),
            _status(job),
            f"{job['attempt']}/{job['max_attempts']}",
            _ago(job["created_at"]),
            Text(_what(job)),
        )
    console = _console()
    console.print(table)
    if found["total"] > len(found["jobs"]):
        console.print(f"{len(found['jobs'])} of {found['total']} jobs; --limit shows more")
    elif not found["jobs"]:
        console.print("No jobs")


@jobs.command()
@click.argument("job_id")
@_as_json
@service_options
def show(job_id: str, as_json: bool, url: str | None, key: str | None) -> None:
    """Show all that is known about one job."""
    with _service(url, key) as api:
        job = api.job(job_id)
    if as_json:
        _print_json(job)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in job.items():
        if value not in (None, "", {}):
            table.add_row(name.replace("_", " "), _status(job) if name == "status" else Text(_value(name, value)))
    _console().print(table)


@jobs.command()
@click.argument("job_id")
@_as_json
@service_options
def cancel(job_id: str, as_json: bool, url: str | None, key: str | None) -> None:
    """Cancel a job that waits or runs; a running one ends within 5 s."""
    with _service(url, key) as api:
        answer = api.cancel(job_id)
    _print_json(answer) if as_json else click.echo(f"{answer.get('message', 'Job cancelled')}: {job_id}")


@jobs.command()
@click.argument("job_id")
@_as_json
@service_options
def retry(job_id: str, as_json: bool, url: str | None, key: str | None) -> None:
    """Run a failed or cancelled job again; what Gemini has answered already is not paid for twice."""
    with _service(url, key) as api:
        answer = api.retry(job_id)
    _print_json(answer) if as_json else click.echo(f"{answer.get('message', 'Job queued')}: {job_id}")


@contextmanager
def _service(url: str | None, key: str | None) -> Iterator[ServiceClient]:
    with closing(service(load_settings(), url, key)) as api:
        try:
            yield api
        except ServiceError as error:
            raise click.ClickException(str(error)) from None


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        # In a pipe nothing is cut off at 80 columns.
        console.width = 250
    return console


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _status(job: Mapping[str, Any]) -> Text:
    return Text(job["status"], style=_STYLES.get(job["status"], ""))


def _what(job: Mapping[str, Any]) -> str:
    if job["error"]:
        return f"{job['error_code']}: {job['error']}"
    if job["status"] == "completed":
        return f"{job['question_count']} questions"
    if job["status"] == "processing":
        return f"{job['progress']} % {job['current_step']}"
    if job["queue_position"]:
        return f"number {job['queue_position']} in the queue"
    return str(job["current_step"])


def _value(name: str, value: Any) -> str:
    if name in _TIMES:
        return (
            f"{datetime.fromtimestamp(value, UTC).astimezone().isoformat(sep=' ', timespec='seconds')} ({_ago(value)})"
        )
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {item}" for key, item in value.items())
    return str(value)


def _ago(moment: float | None) -> str:
    """Return how long ago a moment was, or how far it is, in its largest unit."""
    if moment is None:
        return ""
    seconds = round(time.time() - moment)
    size, unit = next(((size, unit) for size, unit in _UNITS if abs(seconds) >= size), (1, "s"))
    text = f"{abs(seconds) // size} {unit}"
    return f"in {text}" if seconds < 0 else text
