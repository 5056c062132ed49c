"""What the chaos suite does: faults at named steps, at random moments under load, an outage of a minute."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial

from redis.exceptions import RedisError

from tests.breaking import horse_pid, worker_pid
from tests.integration.chaos import faults
from tests.integration.chaos.parts import PAGES, Installation, settle_down
from tests.integration.chaos.report import Report, Row
from tests.stack import eventually

ENDED = {"finished", "failed", "canceled"}
STEPS = ["before the first call", "between batches", "before publication", "inside publication", "after publication"]


def at_steps(parts: Installation, report: Report, times: int) -> None:
    """Kill the horse, then the whole worker, at each named step of a job."""
    for step in STEPS:
        for whole in (False, True):
            row = report.row(f"SIGKILL {'worker and horse' if whole else 'horse'} {step}")
            for number in range(times):
                _kill_at(parts, row, step, f"step-{STEPS.index(step)}-{whole}-{number}", whole=whole)


def _kill_at(parts: Installation, row: Row, step: str, doc_id: str, *, whole: bool) -> None:
    parts.gemini.clear_calls()
    if step == "inside publication":
        parts.gemini.latency = 0.5
    job_id = parts.submit_document(doc_id)
    name, horse = eventually(lambda: _horse(parts), "a horse", 60)
    if step == "between batches":
        eventually(lambda: any(call.status for call in parts.gemini.calls()), "the first answer")
    elif step == "before publication":
        eventually(lambda: _answered(parts), "all answers")
    elif step == "inside publication":
        eventually(lambda: _answered(parts), "all answers")
        parts.firestore_server.faults.delay("Commit", 0.6, times=2)
        time.sleep(parts.random.uniform(0.1, 1.2))
    elif step == "after publication":
        eventually(lambda: parts.fields(doc_id)["status"] == "ready", "the publication")
    before, killed = parts.runs(job_id), time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.kill(horse, signal.SIGKILL)
    if whole:
        os.kill(worker_pid(parts, name), signal.SIGKILL)
    row.injected += 1
    row.jobs.add(job_id)
    _recovered(parts, row, {job_id: before}, killed)
    eventually(lambda: parts.status(job_id) in ENDED, f"{doc_id} to end", 60)
    parts.firestore_server.faults.clear()
    parts.replace_dead_workers()
    _judge(parts, row, [doc_id])


def _horse(parts: Installation) -> tuple[str, int] | None:
    for name in parts.workers():
        pid = horse_pid(parts, name)
        if pid is not None:
            return name, pid
    return None


def _answered(parts: Installation) -> bool:
    return sum(call.status == 200 for call in parts.gemini.calls()) >= PAGES


def _recovered(parts: Installation, row: Row, hit: dict[str, int], since: float) -> None:
    """Wait until each job that was hit goes on, and note how long that took.

    It goes on with another run; or it has ended; or, after an outage that killed nobody, its run shows that it lives.
    """
    began = time.time()

    def look() -> bool:
        with contextlib.suppress(RedisError):
            return all(
                parts.runs(job_id) > runs
                or parts.status(job_id) in ENDED
                or (row.kind not in faults.DEADLY and parts.last_heartbeat(job_id) > began)
                for job_id, runs in hit.items()
            )
        return False

    eventually(look, f"{row.kind}: jobs to go on", 120)
    row.recoveries.append(time.monotonic() - since)


def under_load(
    parts: Installation, report: Report, rounds: int, kinds: Sequence[str], *, overlapping: bool = False
) -> None:
    """Keep the workers busy with documents, and inject faults of these kinds in turn, at random moments.

    One fault after the other, each when the jobs that it hit have gone on; or `overlapping`, which counts as one kind.
    """
    stop = threading.Event()
    doc_ids: list[str] = []
    feeder = threading.Thread(target=_feed, args=(parts, doc_ids, stop), daemon=True)
    feeder.start()
    waiters: list[threading.Thread] = []
    for kind in list(kinds) * rounds:
        row = report.row("all of these at once" if overlapping else kind)
        hit = eventually(partial(_inject, parts, kind), f"a job to be hit by {kind}", 120)
        row.injected += 1
        row.jobs |= hit.keys()
        waiters.append(threading.Thread(target=_recovered, args=(parts, row, hit, parts.since), daemon=True))
        waiters[-1].start()
        parts.replace_dead_workers()
        if not overlapping:
            waiters[-1].join()
        time.sleep(parts.random.uniform(0, 1.5))
        parts.replace_dead_workers()
    stop.set()
    feeder.join()
    parts.firestore_server.faults.clear()
    parts.gemini.clear_faults()
    settle_down(parts, 120)
    for waiter in waiters:
        waiter.join()
    for doc_id in doc_ids:
        hit_by = [row for row in report.rows.values() if parts.submitted[doc_id] in row.jobs]
        row = hit_by[0] if hit_by else report.row("no fault")
        row.jobs.add(parts.submitted[doc_id])
        _judge(parts, row, [doc_id])


def _feed(parts: Installation, doc_ids: list[str], stop: threading.Event) -> None:
    """Submit documents, so that there are always some more than workers."""
    while not stop.is_set():
        if sum(not _ended(parts, doc_id) for doc_id in doc_ids[-30:]) > len(parts.workers()) + 2:
            stop.wait(0.1)
            continue
        doc_id = f"load-{len(parts.submitted)}"
        while doc_id not in doc_ids:
            try:
                parts.submit_document(doc_id)
                doc_ids.append(doc_id)
            except Exception:  # noqa: BLE001 - the website's user tries again
                stop.wait(0.5)


def _ended(parts: Installation, doc_id: str) -> bool:
    if doc_id not in parts.submitted:
        return False
    with contextlib.suppress(RedisError):
        return parts.status(parts.submitted[doc_id]) in ENDED
    return False


def _inject(parts: Installation, kind: str) -> dict[str, int]:
    """Inject a fault; return the jobs that it hit with the number of their runs before, none if there was none."""
    try:
        before = {job_id: parts.runs(job_id) for job_id in parts.running()}
        parts.since = time.monotonic()
        hit = faults.AT_RANDOM[kind](parts)
    except RedisError:
        return {}
    return {job_id: before.get(job_id, 0) for job_id in hit}


def _judge(parts: Installation, row: Row, doc_ids: Sequence[str]) -> None:
    for doc_id in doc_ids:
        wrong = parts.faulty(doc_id)
        if wrong.startswith("lost"):
            row.lost.append(f"{doc_id} {wrong}")
        elif wrong:
            row.doubled.append(f"{doc_id} {wrong}")


def redis_away(parts: Installation, report: Report, seconds: float) -> None:
    """Take Redis away while jobs run; no living run may get a second one beside it."""
    row = report.row(f"Redis away for {seconds:.0f} s, runs alive")
    parts.gemini.latency = seconds / 2
    parts.configure(GEMINI_TIMEOUT="600")
    names = [parts.add_worker() for _ in range(2)]
    parts.wait_for_workers()
    doc_ids = [f"outage-{number}" for number in range(2)]
    for doc_id in doc_ids:
        row.jobs.add(parts.submit_document(doc_id))
    eventually(lambda: len(parts.running()) == len(doc_ids), "both jobs to run")
    parts.restartable_redis.kill()
    row.injected += 1
    time.sleep(seconds)
    parts.gemini.latency = 1.0
    parts.restartable_redis.start()
    back = time.monotonic()
    settle_down(parts, 90)
    row.recoveries.append(time.monotonic() - back)
    row.doubled += [f"{job_id} was run {parts.runs(job_id)} times" for job_id in row.jobs if parts.runs(job_id) != 1]
    _judge(parts, row, doc_ids)
    parts.children.stop(*(name for name in names if name in parts.children.running))
