"""What `submission` promises of its script: the job is RQ's own. What a submission does is told in `test_queueing`."""

from __future__ import annotations

from typing import Any

import pytest
from fakeredis import FakeRedis
from hypothesis import given
from hypothesis import strategies as st
from rq import Queue
from rq.job import Job, Retry
from rq.serializers import JSONSerializer

from superexam_rq.config import Settings
from superexam_rq.lifecycle import ExamJob
from superexam_rq.request import JobRequest
from superexam_rq.submission import PROCESS, Submitter, retry_intervals

# What a job's hash holds beyond RQ's own fields, and those that tell the moment.
OURS, MOMENTS = {b"doc_id"}, {b"created_at", b"enqueued_at"}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
requests = st.builds(
    JobRequest,
    doc_id=texts,
    system_prompt_id=texts,
    custom_prompt_id=texts,
    schema=st.none() | st.dictionaries(texts, texts | st.integers() | st.booleans(), max_size=3),
    max_questions=st.none() | st.integers(1, 100),
)


def queue_on(redis: FakeRedis) -> Queue:
    """Return a queue on this Redis."""
    return Queue("superexam", connection=redis, job_class=ExamJob, serializer=JSONSerializer)


def written(redis: FakeRedis, job_id: str) -> dict[Any, Any]:
    """Return the fields of a job's hash but those that tell the moment."""
    fields: dict[Any, Any] = redis.hgetall(Job.key_for(job_id))
    return {name: value for name, value in fields.items() if name not in MOMENTS}


@given(request=requests, at_front=st.booleans(), retries=st.integers(0, 3))
def test_the_job_is_what_rq_itself_would_write(request: JobRequest, at_front: bool, retries: int) -> None:
    """Field for field, byte for byte, and in the same place, whatever the values hold."""
    settings = Settings(rq_key_prefix="superexam", max_retry_attempts=retries, job_timeout=77, job_ttl=88)
    with FakeRedis() as redis, FakeRedis() as stock:
        Submitter(queue_on(redis), settings).submit(
            JobRequest(doc_id="first", system_prompt_id="s", custom_prompt_id="c"),
            at_front=False,
            caller="",
            idempotency_key="",
        )
        job_id = (
            Submitter(queue_on(redis), settings)
            .submit(request, at_front=at_front, caller="", idempotency_key="")
            .job_id
        )
        options: dict[str, Any] = {"timeout": 77, "result_ttl": 88, "failure_ttl": 88}
        job = queue_on(stock).create_job(
            PROCESS,
            kwargs=vars(request),
            job_id=job_id,
            description=f"document {request.doc_id}",
            retry=Retry(max=retries, interval=retry_intervals(settings)) if retries else None,
            meta={"doc_id": request.doc_id, "max_attempts": 1 + retries},
            **options,
        )
        queue_on(stock).enqueue_job(job, at_front=at_front)
        ours = written(redis, job_id)
        assert {ours.pop(name) for name in OURS} == {request.doc_id.encode()}
        assert ours == written(stock, job_id)
        waiting = queue_on(redis).job_ids
        assert waiting[0 if at_front else -1] == job_id
        assert stock.smembers("superexam:queues") == redis.smembers("superexam:queues")


def test_a_job_tells_when_it_was_submitted() -> None:
    """Not when the script was made."""
    with FakeRedis() as redis:
        submitter = Submitter(queue_on(redis), Settings(rq_key_prefix="superexam"))
        found = []
        for doc_id in "ab":
            request = JobRequest(doc_id=doc_id, system_prompt_id="s", custom_prompt_id="c")
            job_id = submitter.submit(request, at_front=False, caller="", idempotency_key="").job_id
            job = ExamJob.fetch(job_id, redis, serializer=JSONSerializer)
            assert job.created_at == job.enqueued_at
            assert redis.zscore("superexam:jobs", job_id) == pytest.approx(job.created_at.timestamp())
            found.append(job.created_at)
        assert found[0] < found[1]


def test_the_last_interval_is_repeated_and_the_rest_unused() -> None:
    """RQ is given one interval for each retry."""
    assert retry_intervals(Settings(max_retry_attempts=5, retry_intervals=(1, 2))) == [1, 2, 2, 2, 2]
    assert retry_intervals(Settings(max_retry_attempts=1, retry_intervals=(1, 2))) == [1]
    assert retry_intervals(Settings(max_retry_attempts=0)) == []
