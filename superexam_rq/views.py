"""The HTTP routes, each a few lines: check, call `queueing` or `lifecycle`, dump. Errors have one shape."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Flask, Response, g, jsonify, request
from flask.typing import ResponseReturnValue
from flask_limiter import Limiter, RateLimitExceeded
from marshmallow import ValidationError
from redis.exceptions import RedisError
from werkzeug.exceptions import HTTPException, NotFound, RequestEntityTooLarge
from werkzeug.routing import BaseConverter

from superexam_rq import __version__, auth, bodies, lifecycle, logs, metrics, queueing
from superexam_rq.config import Settings
from superexam_rq.events import Hub, TooManyListeners, event_id, has_ended
from superexam_rq.queueing import JobQueue
from superexam_rq.schemas import JobListQuerySchema, JobSchema, SubmissionSchema, error_code
from superexam_rq.settling import Settler
from superexam_rq.submission import Outcome

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)


_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")
_NO_SUCH_JOB = "There is no such job; it may have ended long ago"
# Of what a caller sent, an answer repeats no more than this: field names, each cut.
_MAX_NAMED_FIELDS = 20
_MAX_NAME_CHARS = 100

# Endpoints that anyone may call (contract §2).
PUBLIC = frozenset(
    {"api.index", "api.health", "api.live", "openapi.openapi", "openapi.docs", "openapi.start", "openapi.asset"}
)

_SECURITY_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cache-Control", "no-store"),
]


class JobIdConverter(BaseConverter):
    """Take any text for a job's id but the name of the one other thing below /jobs."""

    regex = r"(?!process\Z)[^/]+"


def create_blueprint(queue: JobQueue, hub: Hub, settler: Settler, limiter: Limiter, settings: Settings) -> Blueprint:
    """Return the routes of the API, working on `queue`, `hub` and `settler`."""
    routes = Blueprint("api", __name__)
    submission, job_schema, list_query = SubmissionSchema(), JobSchema(), JobListQuerySchema()

    def process() -> ResponseReturnValue:
        key = _idempotency_key()
        job_request, at_front = submission.load(bodies.json_object(request))
        answer = queue.enqueue(job_request, at_front=at_front, caller=g.caller.name, idempotency_key=key)
        if answer.outcome is Outcome.KEY_REUSED:
            raise ValidationError({"Idempotency-Key": ["Was used for another body."]})
        logs.bind(job_id=answer.job_id, doc_id=job_request.doc_id)
        log.info("submitted: %s", answer.outcome.value)
        if answer.outcome is Outcome.EXISTS:
            return jsonify(job_id=answer.job_id, message="Job already queued"), 200
        return _queued(answer.job_id)

    limited = limiter.limit(settings.rate_limit)(process) if settings.rate_limit else process
    routes.add_url_rule("/jobs/process", "process", limited, methods=["POST"])

    @routes.get("/jobs")
    def index_jobs() -> ResponseReturnValue:
        wanted = list_query.load(_query())
        jobs, total = queue.list_jobs(**wanted)
        return jsonify(jobs=job_schema.dump(jobs, many=True), total=total)

    @routes.get("/jobs/<job_id:job_id>")
    def show(job_id: str) -> ResponseReturnValue:
        return jsonify(job_schema.dump(_job(job_id)))

    @routes.delete("/jobs/<job_id:job_id>")
    def cancel(job_id: str) -> ResponseReturnValue:
        how_far = lifecycle.cancel(queue, _checked(job_id))
        log.info("cancelled: %s", how_far.value)
        if how_far is lifecycle.Cancelling.DONE:
            settler.settle(job_id)
        return jsonify(message="Job cancelled")

    @routes.post("/jobs/<job_id:job_id>/retry")
    def retry(job_id: str) -> ResponseReturnValue:
        lifecycle.retry(queue, _checked(job_id))
        log.info("queued again")
        return _queued(job_id)

    @routes.get("/jobs/<job_id:job_id>/events")
    def follow(job_id: str) -> ResponseReturnValue:
        listener = hub.listen(_checked(job_id))
        try:
            job = _job(job_id)
        except BaseException:
            listener.close()
            raise
        seen = request.headers.get("Last-Event-ID")
        if has_ended(job) and seen == event_id(job):
            listener.close()
            return "", 204
        answer = Response(hub.stream(listener, job, seen), mimetype="text/event-stream")
        answer.call_on_close(listener.close)
        # nginx would hold events back.
        answer.headers["X-Accel-Buffering"] = "no"
        return answer

    @routes.get("/health")
    def health() -> ResponseReturnValue:
        try:
            found = queue.health()
        except RedisError as reason:
            text = queueing.away(reason)
            if text is None:
                raise
            log.warning("unhealthy: %s", text)
            body = {"status": "unhealthy", "redis": "disconnected", "error": text}
            return jsonify(body), 503, {"Retry-After": str(queueing.RETRY_AFTER_SECONDS)}
        return jsonify(
            status="healthy",
            redis="connected",
            prefix=settings.redis_key_prefix,
            queue=settings.queue_name,
            queued=found.queued,
            workers=found.workers,
        )

    @routes.get("/health/live")
    def live() -> ResponseReturnValue:
        return jsonify(status="alive")

    @routes.get("/metrics")
    def show_metrics() -> ResponseReturnValue:
        body, content_type = metrics.exposition(queue.queue, request.headers.get("Accept", ""))
        return Response(body, content_type=content_type)

    @routes.get("/")
    def index() -> ResponseReturnValue:
        return jsonify(
            service="SuperExam Processing Service",
            version=__version__,
            status="running",
            redis_prefix=settings.redis_key_prefix,
        )

    def _job(job_id: str) -> queueing.JobObject:
        job = queue.snapshot(_checked(job_id))
        if job is None:
            raise _no_such_job()
        logs.bind(job_id=job.job_id, doc_id=job.doc_id, attempt=job.attempt or None)
        return job

    return routes


def register_guard(app: Flask, guard: auth.Guard, settings: Settings) -> None:
    """Let nobody past who is not known."""

    @app.before_request
    def identify() -> None:
        if request.endpoint in PUBLIC or _is_preflight(settings):
            return
        g.caller = guard.identify(request.environ)
        logs.bind(caller=g.caller.name)


def secured(application: WSGIApplication) -> WSGIApplication:
    """Return the WSGI application with the security headers on every answer that does not state its own.

    Here and not in Flask's `after_request`: four calls of `Headers.setdefault` take longer than all checks of a body.
    """

    def answering(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            given = {name.lower() for name, _ in headers}
            added = [header for header in _SECURITY_HEADERS if header[0].lower() not in given]
            return start_response(status, headers + added, exc_info)

        return application(environ, start)

    return answering


def _is_preflight(settings: Settings) -> bool:
    # A browser asks without credentials whether a page of another origin may send them.
    return request.method == "OPTIONS" and bool(settings.cors_origins) and "Origin" in request.headers


def register_errors(app: Flask, limiter: Limiter) -> None:
    """Give every error the one shape."""

    @app.errorhandler(ValidationError)
    def invalid(reason: ValidationError) -> ResponseReturnValue:
        found = list(reason.normalized_messages().items())[:_MAX_NAMED_FIELDS]
        details = {str(name)[:_MAX_NAME_CHARS]: texts for name, texts in found}
        return error(422, f"Invalid: {', '.join(details)}", details)

    @app.errorhandler(auth.Refused)
    def refused(reason: auth.Refused) -> ResponseReturnValue:
        answer = error(401, str(reason))
        why = ', error="invalid_token"' if reason.token_given else ""
        answer.headers["WWW-Authenticate"] = f'Bearer realm="superexam"{why}'
        return answer

    @app.errorhandler(auth.CertificatesAway)
    def unchecked(reason: auth.CertificatesAway) -> ResponseReturnValue:
        return error(503, str(reason))

    @app.errorhandler(lifecycle.NotFound)
    def unknown(_: lifecycle.NotFound) -> ResponseReturnValue:
        return error(404, _NO_SUCH_JOB)

    @app.errorhandler(lifecycle.NotCancellable)
    def ended(_: lifecycle.NotCancellable) -> ResponseReturnValue:
        return error(409, "The job has ended, so it can't be cancelled")

    @app.errorhandler(lifecycle.NotRetryable)
    def not_failed(_: lifecycle.NotRetryable) -> ResponseReturnValue:
        return error(409, "Only a failed or cancelled job can be run again")

    @app.errorhandler(lifecycle.DocumentBusy)
    def busy(reason: lifecycle.DocumentBusy) -> ResponseReturnValue:
        return error(409, f"The document has another job that has not ended: {reason.job_id}")

    @app.errorhandler(TooManyListeners)
    def crowded(_: TooManyListeners) -> ResponseReturnValue:
        return error(503, "Too many event streams are open: try again soon, or poll the job instead")

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(_: RequestEntityTooLarge) -> ResponseReturnValue:
        bodies.drain(request.environ["wsgi.input"])
        return error(413, f"The body is larger than {bodies.MAX_BODY_BYTES // 2**20} MiB")

    @app.errorhandler(RateLimitExceeded)
    def too_often(reason: RateLimitExceeded) -> ResponseReturnValue:
        seconds = _seconds_to_wait(limiter)
        most = reason.limit.limit if reason.limit else "the allowed"
        answer = error(429, f"More submissions than {most}: try again in {seconds} s")
        answer.headers["Retry-After"] = str(seconds)
        return answer

    @app.errorhandler(RedisError)
    def redis(reason: RedisError) -> ResponseReturnValue:
        text = queueing.away(reason)
        if text is None:
            raise reason
        log.warning("answered 503: %s", text)
        # It may have done what it could not answer any more.
        return error(503, f"{text}; try again soon, nothing is done twice")

    @app.errorhandler(HTTPException)
    def http(reason: HTTPException) -> ResponseReturnValue:
        answer = error(reason.code or 500, reason.description or reason.name)
        for name, value in reason.get_headers():
            if name not in {"Content-Type", "Content-Length"}:
                answer.headers[name] = value
        return answer


def error(status: int, message: str, details: dict[str, Any] | None = None) -> Response:
    """Return an answer in the one shape of errors."""
    answer = jsonify(error=error_code(status), message=message, details=details or {})
    answer.status_code = status
    if status == 503:
        answer.headers["Retry-After"] = str(queueing.RETRY_AFTER_SECONDS)
    return answer


def _queued(job_id: str) -> ResponseReturnValue:
    # Written out: url_for takes longer than all of the checks.
    return jsonify(job_id=job_id, message="Job queued successfully"), 202, {"Location": f"/jobs/{job_id}"}


def _checked(job_id: str) -> str:
    if not _JOB_ID.fullmatch(job_id):
        raise _no_such_job()
    logs.bind(job_id=job_id)
    return job_id


def _no_such_job() -> NotFound:
    return NotFound(_NO_SUCH_JOB)


def _idempotency_key() -> str:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise ValidationError({"Idempotency-Key": ["Must be 1 to 255 visible ASCII characters."]})
    return key or ""


def _query() -> dict[str, str]:
    query = request.args.to_dict(flat=False)
    twice = {name: ["Is given twice."] for name, values in query.items() if len(values) > 1}
    if twice:
        raise ValidationError(twice)
    return {name: values[0] for name, values in query.items()}


def _seconds_to_wait(limiter: Limiter) -> int:
    limit = limiter.current_limit
    try:
        return max(1, int(limit.reset_at - time.time())) if limit else queueing.RETRY_AFTER_SECONDS
    except RedisError:
        return queueing.RETRY_AFTER_SECONDS
