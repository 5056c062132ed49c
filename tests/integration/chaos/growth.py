"""Measure what jobs leave in Redis: ``python -m tests.integration.chaos.growth --jobs 10000``.

Nearly half of them are cancelled while they wait, nearly half fail, the rest becomes exams. Prints keys and memory
on the way, and what is left after `JOB_TTL`; exit code 1 if a key of a job is left, or any key without an end grows.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from superexam_rq import lifecycle
from superexam_rq.queueing import JobQueue
from superexam_rq.request import JobRequest
from tests import pdfs
from tests.stack import Stack, eventually, stack

JOB_TTL = 60
OF_JOBS = re.compile(rb":(job|results|execution|executions):")


def keys(service: Stack) -> Counter[str]:
    """Count the keys of each kind."""
    names: list[bytes] = list(service.redis.scan_iter("*", count=1000))
    return Counter(name.decode().split(":")[1] for name in names)


def show(service: Stack, what: str) -> None:
    """Print keys and memory."""
    memory = int(service.redis.info("memory")["used_memory"]) / 2**20
    print(f"{what:32} {service.redis.dbsize():6} keys {memory:6.1f} MiB  {dict(keys(service))}", flush=True)


def submit(service: Stack, jobs: JobQueue, count: int) -> None:
    """Submit jobs of all kinds."""
    pdf = pdfs.prose(1)
    for number in range(count):
        doc_id = f"doc-{number}"
        if number % 20 == 0:
            service.add_document(doc_id, pdf)
        job_id = jobs.enqueue(JobRequest(doc_id=doc_id, system_prompt_id="sys", custom_prompt_id="cus")).job_id
        if number % 20 >= 11:
            lifecycle.cancel(jobs, job_id)
        if number % 2000 == 1999:
            show(service, f"{number + 1} jobs submitted")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser("python -m tests.integration.chaos.growth", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=3)
    options = parser.parse_args()
    os.nice(5)
    with tempfile.TemporaryDirectory() as folder, stack(Path(folder), JOB_TTL=str(JOB_TTL)) as service:
        service.add_prompts()
        jobs = JobQueue(service.redis, service.settings())
        show(service, "before")
        for number in range(options.workers):
            service.start_worker(f"worker-{number}")
        began = time.monotonic()
        submit(service, jobs, options.jobs)
        eventually(lambda: not service.redis.llen(jobs.queue.key), "the queue to be empty", 3600)
        eventually(lambda: not service.redis.zcard("superexam:wip:superexam"), "all jobs to end", 60)
        show(service, f"all ended, {time.monotonic() - began:.0f} s")
        time.sleep(JOB_TTL + 35)  # a sweep comes every 30 s
        show(service, f"{JOB_TTL + 35} s later")
        names: list[bytes] = list(service.redis.scan_iter("*", count=1000))
        left = [name.decode() for name in names if OF_JOBS.search(name)]
        endless = [name.decode() for name in names if service.redis.ttl(name) == -1]
        index = service.redis.zcard("superexam:jobs")
    print(f"keys of jobs left: {len(left)}; entries in the index: {index}; keys without an end: {sorted(endless)}")
    sys.exit(1 if left or index or len(endless) > 10 else 0)


main()
