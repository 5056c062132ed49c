"""The commands of `python -m superexam_rq` (installed also as `superexam`).

`api` and `worker` only prepare the environment and then become gunicorn and RQ's own worker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click

from superexam_rq import __version__
from superexam_rq.commands.doctor import doctor
from superexam_rq.commands.jobs import jobs
from superexam_rq.commands.options import load_settings
from superexam_rq.commands.process import process
from superexam_rq.config import Settings
from superexam_rq.errors import ConfigError

GUNICORN_CONFIG = Path("deploy/gunicorn.conf.py")


def _exports(settings: Settings) -> dict[str, str]:
    return {
        "RQ_KEY_PREFIX": settings.rq_key_prefix,
        "RQ_REDIS_URL": settings.redis_url,
        "RQ_DASHBOARD_REDIS_URL": settings.redis_url,
        "RQ_DASHBOARD_JSON": "1",
    }


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


def _become(settings: Settings, *arguments: str) -> NoReturn:
    # Here and not at the top: the other commands need no RQ.
    from superexam_rq import queueing

    with _one_line():
        queueing.connect(settings).close()
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", *arguments], os.environ | _exports(settings))


def _become_gunicorn(door: str) -> NoReturn:
    settings = load_settings()
    if not GUNICORN_CONFIG.is_file():
        raise click.ClickException(f"{GUNICORN_CONFIG} is not here: run this from the project's root")
    _become(settings, "gunicorn", "-c", str(GUNICORN_CONFIG), door)


def _wait_for_redis(settings: Settings) -> None:
    """Wait until Redis serves, and `rq suspend` is no more in force: RQ's own worker would end at once."""
    from redis.exceptions import AuthenticationError, RedisError
    from rq.suspension import is_suspended

    from superexam_rq import logs, queueing

    logs.configure(settings)
    log = logging.getLogger("superexam_rq.worker")
    # Of the first process in a container the kernel drops a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    told = ""
    with _one_line():
        redis = queueing.connect(settings)
    with contextlib.closing(redis):
        while True:
            try:
                redis.set(settings.key("start"), "", ex=10)  # a replica, or a full Redis, lets read only
                reason = "suspended, run `rq resume` to resume" if is_suspended(redis) else ""
            except RedisError as error:
                reason = queueing.away(error) or str(error)
                if isinstance(error, AuthenticationError):
                    raise click.ClickException(reason) from None
            if not reason:
                return
            if reason != told:
                log.warning("Waiting to start: %s", reason)
            told = reason
            time.sleep(1)


@click.group()
@click.version_option(__version__)
def main() -> None:
    """SuperExam's processing service: a PDF becomes exam questions in Firestore."""


@main.command()
def api() -> None:
    """Start the HTTP API: gunicorn with deploy/gunicorn.conf.py."""
    _become_gunicorn("wsgi:app")


@main.command()
def dashboard() -> None:
    """Start rq-dashboard alone, at / on PORT; the API serves it too, at /dashboard/."""
    _become_gunicorn("wsgi:dashboard")


@main.command()
def worker() -> None:
    """Start one worker: RQ's own `rq worker` with what this service needs."""
    settings = load_settings()
    # The name tells an operator the machine, and a container's health check which registration is its own.
    name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
    with _one_line():
        settings.require_gemini_key()
    _wait_for_redis(settings)
    options = ("-S", "json", "-w", "superexam_rq.worker.ExamWorker", "--name", name, "--with-scheduler")
    _become(settings, "rq.cli", "worker", *options, settings.queue_name)


@main.command()
def env() -> None:
    """Print exports for the stock tools: eval "$(python -m superexam_rq env)"."""
    for name, value in _exports(load_settings()).items():
        click.echo(f"export {name}={shlex.quote(value)}")


@main.command()
@click.argument("pdf", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--once", is_flag=True, help="Leave when the exam is ready.")
def demo(pdf: Path | None, once: bool) -> None:
    """Show the whole path on this machine: PDF to exam, without cloud or keys."""
    from superexam_rq.sandbox.demo import DemoError, run

    try:
        run(load_settings(), pdf, once=once)
    except DemoError as error:
        raise click.ClickException(str(error)) from None


main.add_command(process)
main.add_command(jobs)
main.add_command(doctor)
