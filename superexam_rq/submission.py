"""Submission: decide whether a document gets a new job, and queue it, in one trip to Redis.

What RQ sends to queue a job differs from job to job in a few values only. So RQ is asked once, with redis-py's
pipeline recording its commands, and they become a part of the script that decides: the job is RQ's own, while a
submission neither builds RQ's objects nor sends its commands' words again. `tests/unit/test_submission.py` holds the
result against RQ's own for any job. Looking at jobs is for `queueing`.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from redis.client import Pipeline
from redis.commands.core import Script
from rq import Queue
from rq.job import Job, Retry
from rq.serializers import JSONSerializer
from rq.utils import as_text, now, utcformat

from superexam_rq import metrics
from superexam_rq.config import Settings
from superexam_rq.lifecycle import DOCUMENT_KEY_TTL, LIVE, document_key
from superexam_rq.request import JobRequest

# What RQ imports by name to run a job; the horse resolves it, so that the API never imports the pipeline.
PROCESS = "superexam_rq.jobs.process"

# KEYS: the document's key, the idempotency key (or the document's again: unused). ARGV: the new job's id, its own
# values, and the digest of the body (empty: no idempotency key). The rest is the same for all jobs and is written in.
_SUBMIT = """
local id, at, score, doc_id, data, description, meta, digest = unpack(ARGV)
if digest ~= '' then
    local known = redis.call('HMGET', KEYS[2], 'body', 'outcome', 'job_id')
    if known[1] then
        if known[1] ~= digest then return {'reused', ''} end
        return {known[2], known[3]}
    end
end
local outcome, holder = 'created', redis.call('GET', KEYS[1])
if holder then
    local status = redis.call('HGET', %(jobs)s .. holder, 'status')
    if status and string.find(%(live)s, ' ' .. status .. ' ', 1, true) then
        outcome, id = 'exists', holder
    end
end
if outcome == 'created' then
    local key = %(jobs)s .. id
    %(made)s
else
    %(found)s
end
if digest ~= '' then
    redis.call('HSET', KEYS[2], 'body', digest, 'outcome', outcome, 'job_id', id)
    redis.call('EXPIRE', KEYS[2], %(ttl)s)
end
return {outcome, id}
"""
# The fields of RQ's hash that differ from job to job, and the script's names for their values.
_OWN_FIELDS = {"created_at": "at", "enqueued_at": "at", "data": "data", "description": "description", "meta": "meta"}


class Outcome(enum.Enum):
    """Say what came of a submission."""

    CREATED = "created"
    EXISTS = "exists"
    KEY_REUSED = "reused"


@dataclass(frozen=True)
class Submission:
    """Say what came of a submission, and which job stands for it (none if the key was used for another body)."""

    outcome: Outcome
    job_id: str


class Name(str):
    """Be a word of a command that stands for a value known only to the script: one of its names."""

    __slots__ = ()


Command = Sequence[Any]


def retry_intervals(settings: Settings) -> list[int]:
    """Return one interval in seconds for each retry: the last is repeated, the rest unused.

    RQ itself repeats the first (`rq.job.Job.get_retry_interval`), so it is given a list of the right length.
    """
    given = list(settings.retry_intervals)
    wanted = settings.max_retry_attempts
    return (given + given[-1:] * wanted)[:wanted]


class Submitter:
    """Submit jobs to one queue."""

    def __init__(self, queue: Queue, settings: Settings) -> None:
        self._queue = queue
        self._settings = settings
        self._max_attempts = 1 + settings.max_retry_attempts
        self._scripts: dict[bool, Script] = {}

    def submit(self, request: JobRequest, *, at_front: bool, caller: str, idempotency_key: str) -> Submission:
        """Queue a job for a document, or find the one that lives; with a known key, tell the first answer again.

        Atomic. Keys are kept apart by `caller`, and live as long as an ended job. Raises redis' errors.
        """
        job_id, begun = str(uuid.uuid4()), now()
        digest, keys = "", [document_key(self._settings, request.doc_id)] * 2
        if idempotency_key:
            body = json.dumps([asdict(request), at_front], sort_keys=True)
            digest = hashlib.sha256(body.encode()).hexdigest()
            name = json.dumps([caller, idempotency_key])
            keys[1] = self._settings.key("idempotency", hashlib.sha256(name.encode()).hexdigest())
        args = (job_id, utcformat(begun), begun.timestamp(), request.doc_id, *self._own_values(request), digest)
        outcome, job_id = self._script(at_front)(keys=keys, args=args)
        return Submission(Outcome(as_text(outcome)), as_text(job_id))

    def _own_values(self, request: JobRequest) -> tuple[bytes, str, bytes]:
        """Return a job's data, description and meta as RQ writes them."""
        data = JSONSerializer.dumps((PROCESS, None, (), vars(request)))
        meta = JSONSerializer.dumps({"doc_id": request.doc_id, "max_attempts": self._max_attempts})
        return zlib.compress(data), f"document {request.doc_id}", meta

    def _script(self, at_front: bool) -> Script:
        script = self._scripts.get(at_front)
        if script is None:
            # Two threads may do so at once, with the same result.
            text = self._compiled(at_front)
            script = self._scripts[at_front] = self._queue.connection.register_script(text)
        return script

    def _compiled(self, at_front: bool) -> str:
        settings = self._settings
        index = settings.key("jobs")
        made: list[Command] = [
            *self._rq_commands(at_front),
            ("HSET", Name("key"), "doc_id", Name("doc_id")),
            ("SET", Name("KEYS[1]"), Name("id"), "EX", DOCUMENT_KEY_TTL),
            ("ZADD", index, Name("score"), Name("id")),
            ("EXPIRE", index, DOCUMENT_KEY_TTL),
            *self._counting("queued"),
        ]
        return _SUBMIT % {
            "jobs": self._lua(Job.key_for("")),
            "live": self._lua(f" {' '.join(status.value for status in LIVE)} "),
            "made": self._calls(made),
            "found": self._calls(self._counting("duplicate")),
            "ttl": self._lua(settings.job_ttl),
        }

    def _calls(self, commands: Sequence[Command]) -> str:
        return "\n    ".join(f"redis.call({', '.join(map(self._lua, words))})" for words in commands)

    def _lua(self, word: Any) -> str:
        """Return a word of a command as the script spells it: a name, or Lua text of the bytes that redis-py sends."""
        if isinstance(word, Name):
            return str(word)
        raw = self._queue.connection.get_encoder().encode(word)
        return "'" + re.sub(rb"[^A-Za-z0-9 :_{}-]", lambda found: b"\\%03d" % found[0][0], raw).decode() + "'"

    def _rq_commands(self, at_front: bool) -> list[Command]:
        """Return what RQ sends to queue a job, with names for the values that are a job's own."""
        settings, retries = self._settings, self._settings.max_retry_attempts
        job = self._queue.create_job(
            PROCESS,
            job_id=str(uuid.uuid4()),
            description="",
            timeout=settings.job_timeout,
            result_ttl=settings.job_ttl,
            failure_ttl=settings.job_ttl,
            retry=Retry(max=retries, interval=retry_intervals(settings)) if retries else None,
            meta={"doc_id": "", "max_attempts": self._max_attempts},
        )
        with self._queue.connection.pipeline() as record:
            self._queue.enqueue_job(job, pipeline=record, at_front=at_front)
            return [_named(words, job) for words in _recorded(record)]

    def _counting(self, outcome: str) -> list[Command]:
        with self._queue.connection.pipeline() as record:
            metrics.record_submission(record, outcome)
            return _recorded(record)


def _named(words: Command, job: Job) -> Command:
    names = {job.key: Name("key"), job.id: Name("id")}
    named = [names.get(word, word) if isinstance(word, str) else word for word in words]
    if words[0] == "HSET" and words[1] == job.key:
        for at in range(2, len(words), 2):
            own = _OWN_FIELDS.get(words[at])
            if own:
                named[at + 1] = Name(own)
    return named


def _recorded(pipe: Pipeline) -> list[Command]:
    """Return the commands that a pipeline would send."""
    return [words for words, _ in pipe.command_stack]
