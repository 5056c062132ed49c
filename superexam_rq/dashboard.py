"""rq-dashboard as a WSGI app of its own: login, no writes from other origins, and what RQ 3 with JSON jobs needs.

The pages and scripts are rq-dashboard's own. Some of its view functions are replaced on this app only, at Flask's
own table, since as they stand they read jobs as pickles, page wrongly, answer 500 for what is not there, open a
connection for each request, hand users' text to scripts that write it as HTML, or bring a job back without its
retries. What the actions do to a job is `queueing`'s and RQ's.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, abort, current_app, jsonify, request
from flask.typing import ResponseReturnValue
from markupsafe import escape
from redis.exceptions import RedisError
from rq import Queue, Worker
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.job import Job, JobStatus
from rq.registry import BaseRegistry
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker
from rq_dashboard import web

from superexam_rq import auth, lifecycle, queueing
from superexam_rq.config import Settings

log = logging.getLogger(__name__)

POLL_INTERVAL_MS = 10_000
MAX_PER_PAGE = 200
REGISTRIES = ("queued", "scheduled", "deferred", "started", "finished", "failed", "canceled")
ORDERS = ("asc", "dsc")

# The one endpoint that needs no login: a container's health check asks it.
LIVE = "live"

# The pages hold inline scripts, and Underscore compiles its templates.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)


def create_dashboard(settings: Settings) -> Flask:
    """Return the dashboard for these settings; it works under any mount point and opens no connection yet."""
    # The pages ask for the icon as a static file of the app, for the rest as the blueprint's: it is one folder.
    app = Flask("superexam_rq.dashboard", static_folder=web.blueprint.static_folder)
    jobs = queueing.JobQueue(queueing.connect(settings), settings)
    app.redis_conn = jobs.connection  # type: ignore[attr-defined]  # where rq-dashboard's own views look for it
    app.config["RQ_DASHBOARD_REDIS_URL"] = (_shown_address(settings.redis_url),)
    app.config["RQ_DASHBOARD_POLL_INTERVAL"] = POLL_INTERVAL_MS
    app.register_blueprint(web.blueprint)
    # rq-dashboard's own hook opens a pool for each request.
    app.before_request_funcs[web.blueprint.name] = []
    app.before_request(partial(_check_login, settings))
    app.before_request(_check_origin)
    app.before_request(partial(_check_arguments, settings))
    app.after_request(_harden)
    app.view_functions.update({f"{web.blueprint.name}.{name}": view for name, view in _views(jobs).items()})
    app.add_url_rule("/health/live", LIVE, lambda: {"status": "alive"})
    app.register_error_handler(NoSuchJobError, _no_such_job)
    app.register_error_handler(RedisError, _redis_away)
    return app


def _shown_address(url: str) -> str:
    """Return where Redis is, for the pages: no login, and no query, which can hold one too."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _check_login(settings: Settings) -> ResponseReturnValue | None:
    if request.endpoint == LIVE:
        return None
    if not settings.dashboard_password:
        if auth.is_on_this_machine(request.environ, settings.trusted_proxies):
            return None
        return _text(403, "The dashboard is open to this machine only: set DASHBOARD_PASSWORD to log in from elsewhere")
    login = request.authorization
    given = (login.username or "", login.password or "") if login is not None and login.type == "basic" else ("", "")
    wanted = (settings.dashboard_username, settings.dashboard_password)
    # Both are compared in full, whatever the first one gives.
    same = [hmac.compare_digest(a.encode(), b.encode()) for a, b in zip(given, wanted, strict=True)]
    if all(same):
        return None
    answer = _text(401, "Log in with DASHBOARD_USERNAME and DASHBOARD_PASSWORD")
    answer.headers["WWW-Authenticate"] = 'Basic realm="SuperExam dashboard", charset="UTF-8"'
    return answer


def _check_origin() -> ResponseReturnValue | None:
    """Refuse changes that a page of another origin asks for; a browser sends the login with them by itself.

    Browsers send `Sec-Fetch-Site` to https and to localhost, `Origin` everywhere; other programs send neither.
    """
    if request.endpoint == f"{web.blueprint.name}.requeue_all" and request.method != "POST":
        return _text(405, "Send this as a POST")
    if request.method in {"GET", "HEAD", "OPTIONS"}:
        return None
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    foreign = site not in {None, "same-origin"} or (origin is not None and urlsplit(origin).netloc != request.host)
    return _text(403, "Changes are taken from the dashboard's own pages only") if foreign else None


def _check_arguments(settings: Settings) -> None:
    """Answer 404 for an address that no page links to, where rq-dashboard would fail with a 500."""
    arguments = request.view_args or {}
    if arguments.get("instance_number", 0) != 0:
        abort(404)
    for name, words in (("registry_name", REGISTRIES), ("order", ORDERS)):
        if arguments.get(name, words[0]) not in words:
            abort(404)
    for name, most in (("page", 10**9), ("per_page", MAX_PER_PAGE)):
        text = str(arguments.get(name, 1))
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
            abort(404)
    if "queue_name" in arguments and arguments["queue_name"] is None:
        # The Jobs tab: RQ's default queue is not in use here.
        arguments["queue_name"] = settings.queue_name


def _harden(answer: Response) -> Response:
    answer.headers["Content-Security-Policy"] = CONTENT_POLICY
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Referrer-Policy"] = "same-origin"
    return answer


def _no_such_job(_error: Exception) -> ResponseReturnValue:
    return _text(404, "There is no such job; it may have ended long ago")


def _redis_away(error: RedisError) -> ResponseReturnValue:
    reason = queueing.away(error)
    if reason is None:
        raise error
    log.warning("dashboard: %s", reason)
    answer = _text(503, f"{reason}; try again soon")
    answer.headers["Retry-After"] = str(queueing.RETRY_AFTER_SECONDS)
    return answer


def _text(status: int, text: str) -> Response:
    return Response(f"{text}\n", status, mimetype="text/plain")


def describe(job: Job) -> str:
    """Return which document, step and attempt a job is, in one line; for a job that is not ours, RQ's description."""
    meta = _meta(job)
    about = job.description or job.id
    if "doc_id" not in meta:
        return about
    parts = [str(meta.get("step") or "Waiting in the queue")]
    if meta.get("progress") and job.get_status(refresh=False) is JobStatus.STARTED:
        parts.append(f"{meta['progress']} %")
    if meta.get("attempt"):
        parts.append(f"attempt {meta['attempt']} of {meta.get('max_attempts', '?')}")
    waits = job.get_status(refresh=False) in {JobStatus.QUEUED, JobStatus.SCHEDULED}
    reason = meta.get("error") or (meta.get("last_error") if waits else None)
    if reason:
        parts.append(f"{meta['error_code']}: {reason}" if meta.get("error_code") else str(reason))
    return f"{about}: {', '.join(parts)}"


def _meta(job: Job) -> Mapping[str, Any]:
    try:
        return job.meta if isinstance(job.meta, dict) else {}
    except (ValueError, DeserializationError):
        return {}


def _restored(jobs: queueing.JobQueue, job_id: str, raw: Mapping[bytes, bytes]) -> Job | None:
    try:
        return lifecycle.restored(jobs.connection, job_id, raw)
    except NoSuchJobError:  # also one that another program has spoilt
        return None


def _views(jobs: queueing.JobQueue) -> dict[str, Callable[..., ResponseReturnValue]]:
    """Return the views that stand in for rq-dashboard's, by their names there."""
    connection = jobs.connection

    def fetch(job_id: str) -> Job:
        return lifecycle.fetch(jobs.queue, job_id)

    def fetch_many(job_ids: list[str]) -> list[Job | None]:
        with connection.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(Job.key_for(job_id))
            return [_restored(jobs, job_id, raw) for job_id, raw in zip(job_ids, pipe.execute(), strict=True)]

    def queue_of(name: str) -> Queue:
        return Queue(name, connection=connection, serializer=JSONSerializer)

    def queues_overview(**arguments: int) -> ResponseReturnValue:
        connection.ping()  # rq-dashboard's own view answers 200 where Redis is away
        return web.queues_overview(**arguments)  # type: ignore[no-any-return]

    def list_jobs(
        instance_number: int, queue_name: str, registry_name: str, per_page: str, order: str, page: str
    ) -> ResponseReturnValue:
        size, number = int(per_page), int(page)
        total, job_ids = _page(queue_of(queue_name), registry_name, (number - 1) * size, size, order == "dsc")
        found = fetch_many(job_ids)
        link = partial(
            _link, instance_number=instance_number, queue_name=queue_name, registry_name=registry_name,
            per_page=per_page, order=order,
        )  # fmt: skip
        last = -(-total // size)
        pagination: dict[str, Any] = {
            "current_page": number,
            "num_pages": last,
            "pages_in_window": [{"number": n, **link(n)} for n in web.pagination_window(total, number, size)],
            "first_page": link(1),
            "last_page": link(max(last, 1)),
        }
        if number > 1:
            pagination["prev_page"] = link(number - 1)
        if number < last:
            pagination["next_page"] = link(number + 1)
        rows = [_list_row(job) for job in found if job is not None]
        return _json(name=queue_name, registry_name=registry_name, jobs=rows, pagination=pagination)

    def job_info(job_id: str, **_instance: int) -> ResponseReturnValue:
        job = fetch(job_id)
        result = job.latest_result()
        depends_on = job.dependency_ids
        body = {
            "id": job.id,
            "created_at": _date(job.created_at),
            "enqueued_at": _date(job.enqueued_at),
            "started_at": _date(job.started_at),
            "ended_at": _date(job.ended_at),
            "origin": job.origin,
            "status": job.get_status(refresh=False).value,
            "result": result.return_value if result is not None else None,
            "exc_info": _traceback(job),
            "description": describe(job),
            "metadata": json.dumps(dict(_meta(job)), ensure_ascii=False),
        }
        if depends_on:
            body["depends_on"] = depends_on
            body["depends_on_status"] = [
                "active" if Job.exists(other, connection=connection) else "expired" for other in depends_on
            ]
        # The page writes these into itself as HTML.
        return _json(**_escaped(body))

    def list_workers(**_instance: int) -> ResponseReturnValue:
        workers = Worker.all(connection=connection, serializer=JSONSerializer)
        rows = [_worker_row(worker) for worker in workers]
        return _json(workers=sorted(_escaped(rows), key=lambda row: (row["state"], row["name"])))

    def delete_job_view(job_id: str) -> ResponseReturnValue:
        _delete(jobs, fetch(job_id))
        return _json(status="OK")

    def requeue_job_view(job_id: str) -> ResponseReturnValue:
        job = fetch(job_id)
        if not _requeue(jobs, job):
            return _text(409, "Only a failed job whose document has no other live job can be queued again")
        return _json(status="OK")

    def requeue_all(queue_name: str) -> ResponseReturnValue:
        job_ids = queue_of(queue_name).failed_job_registry.get_job_ids(cleanup=False)
        failed = fetch_many(job_ids)
        count = sum(_requeue(jobs, job) for job in failed if job is not None)
        return _json(status="OK", count=count)

    def empty_queue(queue_name: str, registry_name: str) -> ResponseReturnValue:
        queue = queue_of(queue_name)
        _total, job_ids = _page(queue, registry_name, 0, 0, newest_first=False)
        found = fetch_many(job_ids)
        for job_id, job in zip(job_ids, found, strict=True):
            if job is not None:
                _delete(jobs, job)
            elif registry_name == "queued":
                queue.remove(job_id)
            else:
                connection.zrem(_registry(queue, registry_name).key, job_id)
        return _json(status="OK")

    def compact_queue(queue_name: str) -> ResponseReturnValue:
        queue = queue_of(queue_name)
        # RQ renames the list, which fails where it is empty and loses it where this process ends half-way.
        for job_id in queue.get_job_ids():
            if not Job.exists(job_id, connection=connection):
                queue.remove(job_id)
        return _json(status="OK")

    views = (
        queues_overview, list_jobs, job_info, list_workers,
        delete_job_view, requeue_job_view, requeue_all, empty_queue, compact_queue,
    )  # fmt: skip
    return {view.__name__: view for view in views}


def _registry(queue: Queue, name: str) -> BaseRegistry:
    registry: BaseRegistry = getattr(queue, f"{name}_job_registry")
    return registry


def _page(queue: Queue, registry: str, offset: int, size: int, newest_first: bool) -> tuple[int, list[str]]:
    """Return how many jobs there are, and the ids of one page; a size of 0 means all."""
    total = queue.count if registry == "queued" else _registry(queue, registry).get_job_count(cleanup=False)
    first, end = offset, offset + size if size else total
    if newest_first:
        first, end = max(total - end, 0), total - offset
    if end <= first:
        return total, []
    if registry == "queued":
        job_ids = queue.get_job_ids(first, end - first)
    else:
        job_ids = _registry(queue, registry).get_job_ids(first, end - 1, cleanup=False)
    return total, job_ids[::-1] if newest_first else job_ids


def _link(page: int, **arguments: Any) -> dict[str, str]:
    return {"url": current_app.url_for("rq_dashboard.jobs_overview", page=page, **arguments)}


def _list_row(job: Job) -> dict[str, Any]:
    # This page alone escapes what it shows, but for the id, which is not a user's text.
    return {
        "id": escape(job.id),
        "created_at": _date(job.created_at),
        "started_at": _date(job.started_at),
        "ended_at": _date(job.ended_at),
        "exc_info": _traceback(job),
        "description": describe(job),
    }


def _worker_row(worker: BaseWorker) -> dict[str, Any]:
    return {
        "name": worker.name,
        "pid": worker.pid,
        "queues": worker.queue_names(),
        "state": str(worker.get_state()),
        "current_job": _current_job(worker),
        "last_heartbeat": _date(worker.last_heartbeat),
        "birth_date": _date(worker.birth_date),
        "successful_job_count": worker.successful_job_count,
        "failed_job_count": worker.failed_job_count,
        "total_working_time": worker.total_working_time,
        "version": worker.version or "",
        "python_version": worker.python_version or "",
    }


def _current_job(worker: BaseWorker) -> dict[str, Any] | str:
    try:
        job = worker.get_current_job()
    except NoSuchJobError:  # it was deleted under the worker
        job = None
    if job is None:
        return "idle"
    about = describe(job)
    return {"job_id": job.id, "description": about, "created_at": _date(job.created_at), "call_string": about}


def _traceback(job: Job) -> str | None:
    """Return a failed job's traceback; an earlier failure of a job that is queued again is none."""
    if job.get_status(refresh=False) is not JobStatus.FAILED:
        return None
    result = job.latest_result()
    return result.exc_string if result is not None else None


def _requeue(jobs: queueing.JobQueue, job: Job) -> bool:
    """Queue a failed job of ours again with all its retries; False for any other job."""
    if job.get_status() is not JobStatus.FAILED or job.origin != jobs.queue.name:
        return False
    try:
        lifecycle.retry(jobs, job.id)
    except (lifecycle.NotFound, lifecycle.NotRetryable, lifecycle.DocumentBusy):
        return False
    return True


def _delete(jobs: queueing.JobQueue, job: Job) -> None:
    """Delete a job; a running one is cancelled instead, since without its hash it would run on unseen."""
    if job.get_status() is JobStatus.STARTED:
        try:
            lifecycle.cancel(jobs, job.id)
        except (lifecycle.NotFound, lifecycle.NotCancellable):
            pass  # it ended in the meantime
        else:
            return
    job.delete(delete_dependents=True)


def _escaped(value: Any) -> Any:
    """Return the value with every text in it safe to be written as HTML."""
    if isinstance(value, str):
        return str(escape(value))
    if isinstance(value, Mapping):
        return {str(escape(name)): _escaped(item) for name, item in value.items()}
    if isinstance(value, Iterable):
        return [_escaped(item) for item in value]
    return value


def _date(value: datetime | None) -> str | None:
    return web.serialize_date(value)  # type: ignore[no-any-return]


def _json(**body: Any) -> ResponseReturnValue:
    return jsonify(**body), {"Cache-Control": "no-store"}
