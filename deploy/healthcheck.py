"""The health check of the container image: it tells whether this container's API or worker is alive.

The API must answer on its own address. A worker must be registered in Redis: RQ lets the registration expire when
heartbeats stay away. Where Redis can't be asked the worker counts as healthy: it waits for Redis by itself, and a
restart would only throw its job away. Exit code 0 or 1, with one line that says why.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Started as a script, Python looks for modules beside this file; the package is in the working directory.
sys.path.insert(0, str(Path.cwd()))

import requests
from redis import Redis
from redis.exceptions import RedisError

from superexam_rq.client import base_url
from superexam_rq.config import Settings

TIMEOUT_SECONDS = 4
PROCESSES = Path("/proc")


def arguments(process: Path) -> list[str]:
    """Return the command line of a process; empty if it has ended."""
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def is_worker(processes: Path = PROCESSES) -> bool:
    """Tell whether this container was started as a worker; on the host's network any API would answer here."""
    return "worker" in arguments(processes / "1")


def worker_name(processes: Path = PROCESSES) -> str | None:
    """Return the name of the RQ worker that runs in this container, or None while it starts, or waits to."""
    for process in processes.glob("[0-9]*"):
        words = arguments(process)
        if "rq.cli" in words and "--name" in words[:-1]:
            return words[words.index("--name") + 1]
    return None


def check_worker(settings: Settings, name: str | None) -> str | None:
    """Return what is wrong with the worker's registration, or None."""
    connection = Redis.from_url(settings.redis_url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=2)
    try:
        if name is not None:
            registered = connection.exists(settings.key("worker", name))
            return None if registered else f"the worker {name} is not registered in Redis"
        if not connection.exists(settings.key("suspended")):
            return "the worker is starting"
        print("the worker waits for `rq resume` to start")
    except RedisError as error:
        print(f"Redis can't be asked ({type(error).__name__}); the worker waits for it")
    finally:
        connection.close()
    return None


def check_api(settings: Settings) -> str | None:
    """Return what is wrong with the API, or None where it answers."""
    with requests.Session() as session:
        session.trust_env = False  # no proxy is on the way to this machine itself
        try:
            answer = session.get(f"{base_url(settings)}/health/live", timeout=TIMEOUT_SECONDS)
        except requests.RequestException as error:
            return f"the API does not answer ({type(error).__name__})"
    # The stand-alone dashboard asks for its password, or has no such page: it answers.
    return None if answer.status_code < 500 else f"the API answers {answer.status_code}"


def main() -> int:
    """Check this container's role and return the exit code."""
    settings = Settings.from_env(os.environ, Path(".env"))
    wrong = check_worker(settings, worker_name()) if is_worker() else check_api(settings)
    print(wrong or "healthy")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
