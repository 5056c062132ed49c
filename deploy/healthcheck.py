"""The health check of the container image: it tells whether this container's API or worker is alive.

The API must answer on its own address. A worker must be registered in Redis: RQ lets the registration expire when
heartbeats stay away. Where Redis can't be asked the worker counts as healthy: it waits for Redis by itself, and a
restart would only throw its job away. Exit code 0 or 1, with one line that says why.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

# Started as a script, Python looks for modules beside this file; the package is in the working directory.
sys.path.insert(0, str(Path.cwd()))

from redis import Redis
from redis.exceptions import RedisError

from superexam_rq.config import Settings

TIMEOUT_SECONDS = 4
PROCESSES = Path("/proc")
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}


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
    """Return the name of the RQ worker that runs in this container, or None while it starts."""
    for process in processes.glob("[0-9]*"):
        words = arguments(process)
        if "rq.cli" in words and "--name" in words[:-1]:
            return words[words.index("--name") + 1]
    return None


def check_worker(settings: Settings, name: str | None) -> str | None:
    """Return what is wrong with the worker's registration, or None."""
    if name is None:
        return "the worker is starting"
    connection = Redis.from_url(settings.redis_url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=2)
    try:
        registered = bool(connection.exists(settings.key("worker", name)))
    except RedisError as error:
        print(f"Redis can't be asked ({type(error).__name__}); the worker {name} runs")
        return None
    finally:
        connection.close()
    return None if registered else f"the worker {name} is not registered in Redis"


def check_api(settings: Settings) -> str | None:
    """Return what is wrong with the API, or None where it answers."""
    url = f"http://{ANY_ADDRESS.get(settings.host, settings.host)}:{settings.port}/health/live"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        # The stand-alone dashboard asks for its password, or has no such page: it answers.
        return None if error.code < 500 else f"the API answers {error.code}"
    except OSError as error:
        return f"the API does not answer ({type(error).__name__})"


def main() -> int:
    """Check this container's role and return the exit code."""
    settings = Settings.from_env(os.environ, Path(".env"))
    wrong = check_worker(settings, worker_name()) if is_worker() else check_api(settings)
    print(wrong or "healthy")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
