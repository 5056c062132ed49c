"""Ways to break an installation, and what must hold afterwards."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Any

import psutil

from tests.stack import Stack, eventually


def worker_pid(service: Stack, name: str = "worker-1") -> int:
    """Return the process id of a worker's parent."""
    return service.children.running[name].pid


def horse_pid(service: Stack, name: str = "worker-1") -> int | None:
    """Return the process id of a worker's horse, the one child with a process group of its own; None while idle."""
    try:
        for child in psutil.Process(worker_pid(service, name)).children():
            if os.getpgid(child.pid) == child.pid and child.status() != psutil.STATUS_ZOMBIE:
                return child.pid
    except (psutil.NoSuchProcess, ProcessLookupError):
        pass
    return None


def wait_for_horse(service: Stack, name: str = "worker-1") -> int:
    """Wait until a worker runs a job, and return its horse."""
    return eventually(lambda: horse_pid(service, name), f"{name} to run a job")


def kill_worker(service: Stack, name: str) -> None:
    """Kill a worker's parent, and its horse with it, as a machine that vanishes does."""
    process = service.children.running.pop(name)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_call(service: Stack, count: int = 1) -> None:
    """Wait until Gemini has been asked so often."""
    eventually(lambda: len(service.gemini.calls()) >= count, f"{count} calls of Gemini")


def check_exam(service: Stack, doc_id: str) -> list[dict[str, Any]]:
    """Assert that a document is `ready` with exactly one run's questions, and return them."""
    fields, questions = service.fields(doc_id), service.questions(doc_id)
    assert fields["status"] == "ready", fields
    assert not {"progress", "currentStep", "error", "staging"} & fields.keys()
    assert fields["questionCount"] == len(questions) > 0
    assert len({question["id"].rpartition("-")[2] for question in questions}) == 1
    texts = Counter(question["questionText"] for question in questions)
    assert texts.most_common(1)[0][1] == 1
    return questions


def held(service: Stack, job_id: str) -> dict[str, bool]:
    """Say which of RQ's lists and registries hold a job."""
    redis = service.redis
    name = job_id.encode()
    entries: list[Any] = redis.zrange("superexam:wip:superexam", 0, -1)
    started = [entry.partition(b":")[0] for entry in entries]
    return {
        "queue": name in redis.lrange("superexam:queue:superexam", 0, -1),
        "popped": name in redis.lrange("superexam:queue:superexam:intermediate", 0, -1),
        "started": name in started,
        "scheduled": redis.zscore("superexam:scheduled:superexam", job_id) is not None,
        "failed": redis.zscore("superexam:failed:superexam", job_id) is not None,
        "canceled": redis.zscore("superexam:canceled:superexam", job_id) is not None,
    }
