"""One function for each way to break an installation; each returns the jobs that it hit, once the fault is over.

A recovery is counted from `Installation.since`: the injection, or for an outage its end.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import grpc

from superexam_rq.sandbox.gemini import Fault
from tests.breaking import worker_pid
from tests.integration.chaos.parts import Installation

Hit = list[str]


def horse_killed(parts: Installation) -> Hit:
    """Kill a work-horse, as the kernel does for lack of memory."""
    found = parts.busy_worker()
    if found is None:
        return []
    _, horse, job_id = found
    os.kill(horse, signal.SIGKILL)
    return [job_id]


def worker_killed(parts: Installation) -> Hit:
    """Kill a worker; its horse is to die with it."""
    found = parts.busy_worker()
    if found is None:
        return []
    os.kill(worker_pid(parts, found[0]), signal.SIGKILL)
    return [found[2]]


def both_killed(parts: Installation) -> Hit:
    """Kill a worker and its horse at once, as a machine that vanishes does."""
    found = parts.busy_worker()
    if found is None:
        return []
    parts.kill_group(found[0], found[1], signal.SIGKILL)
    return [found[2]]


def paused(parts: Installation) -> Hit:
    """Stop a worker and its horse for longer than others wait for it, then let both go on."""
    found = parts.busy_worker()
    if found is None:
        return []
    parts.kill_group(found[0], found[1], signal.SIGSTOP)
    try:
        before, began = parts.runs(found[2]), time.monotonic()
        while time.monotonic() - began < 35 and parts.runs(found[2]) == before:
            time.sleep(0.1)
    finally:
        parts.kill_group(found[0], found[1], signal.SIGCONT)
    return [found[2]]


def told_to_stop(parts: Installation) -> Hit:
    """Tell a busy worker to stop: `docker stop`, a rolling update."""
    found = parts.busy_worker()
    if found is None:
        return []
    os.kill(worker_pid(parts, found[0]), signal.SIGTERM)
    parts.children.running[found[0]].wait(30)
    return [found[2]]


def redis_killed(parts: Installation) -> Hit:
    """Kill Redis, and start it again on its append-only file after some seconds."""
    hit = parts.running()
    parts.restartable_redis.kill()
    time.sleep(parts.random.uniform(1, 6))
    parts.restartable_redis.start()
    parts.since = time.monotonic()
    return hit


def redis_connections_dropped(parts: Installation) -> Hit:
    """Close every connection to Redis."""
    hit = parts.running()
    parts.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    parts.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    return hit


def firestore_killed(parts: Installation) -> Hit:
    """End Firestore in the middle of its calls, and start it again after some seconds."""
    hit = parts.running()
    parts.firestore_server.stop()
    time.sleep(parts.random.uniform(1, 6))
    parts.firestore_server.start()
    parts.since = time.monotonic()
    return hit


def firestore_fails(code: grpc.StatusCode) -> Callable[[Installation], Hit]:
    """Return a fault: Firestore answers some calls with an error, some of them after doing what was asked."""

    def fail(parts: Installation) -> Hit:
        hit = parts.running()
        for method in ("Commit", "BatchGetDocuments", "RunQuery"):
            after = method == "Commit" and parts.random.random() < 0.5
            parts.firestore_server.faults.fail(method, code, times=parts.random.randint(1, 4), after=after)
        return hit

    return fail


def gemini_fails(parts: Installation) -> Hit:
    """Let Gemini fail in some of its ways, for some calls."""
    hit = parts.running()
    ways: list[Callable[..., Fault]] = [
        Fault.overloaded,
        Fault.bad_gateway,
        lambda times: Fault.per_minute(1.0, times=times),
        Fault.dropped,
        Fault.html,
        Fault.cut_json,
        Fault.empty_body,
        Fault.no_candidates,
        lambda times: Fault.slow(6.0, times=times),
    ]
    for way in parts.random.sample(ways, 3):
        parts.gemini.script(way(times=parts.random.randint(1, 3)))
    return hit


AT_RANDOM: dict[str, Callable[[Installation], Hit]] = {
    "SIGKILL horse": horse_killed,
    "SIGKILL worker": worker_killed,
    "SIGKILL worker and horse": both_killed,
    "SIGSTOP, SIGCONT worker and horse": paused,
    "SIGTERM worker": told_to_stop,
    "Redis kill -9, restart from AOF": redis_killed,
    "Redis connections dropped": redis_connections_dropped,
    "Firestore stopped, restarted": firestore_killed,
    "Firestore UNAVAILABLE": firestore_fails(grpc.StatusCode.UNAVAILABLE),
    "Firestore ABORTED": firestore_fails(grpc.StatusCode.ABORTED),
    "Firestore DEADLINE_EXCEEDED": firestore_fails(grpc.StatusCode.DEADLINE_EXCEEDED),
    "Gemini fails": gemini_fails,
}

# They end a run; after the others the same run goes on.
DEADLY = {"SIGKILL horse", "SIGKILL worker", "SIGKILL worker and horse", "all of these at once"}
