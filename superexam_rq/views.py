"""The HTTP routes, each a few lines: check, call `queueing`, dump. Errors have one shape (contract §2)."""

from __future__ import annotations

import json
import logging
from typing import Any

from flask import Blueprint, Flask, Response, jsonify, request, url_for
from flask.typing import ResponseReturnValue
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException

from superexam_rq import __version__
from superexam_rq.config import Settings
from superexam_rq.queueing import REDIS_AWAY, JobQueue
from superexam_rq.schemas import JobSchema, SubmissionSchema

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 5

ERROR_CODES = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "validation_error",
    429: "too_many_requests",
    500: "internal_error",
    503: "service_unavailable",
}


def create_blueprint(queue: JobQueue, settings: Settings) -> Blueprint:
    """Return the routes of the API, working on `queue`."""
    routes = Blueprint("api", __name__)
    submission, job_schema = SubmissionSchema(), JobSchema()

    @routes.post("/jobs/process")
    def process() -> ResponseReturnValue:
        job_request, at_front = submission.load(_json_object())
        job_id, created = queue.enqueue(job_request, at_front=at_front)
        log.info("job %s: %s for document %s", job_id, "queued" if created else "already queued", job_request.doc_id)
        if not created:
            return jsonify(job_id=job_id, message="Job already queued"), 200
        location = url_for("api.show", job_id=job_id, _external=False)
        return jsonify(job_id=job_id, message="Job queued successfully"), 202, {"Location": location}

    @routes.get("/jobs/<job_id>")
    def show(job_id: str) -> ResponseReturnValue:
        job = queue.snapshot(job_id)
        if job is None:
            return error(404, "There is no such job; it may have ended long ago")
        return jsonify(job_schema.dump(job))

    @routes.get("/health")
    def health() -> ResponseReturnValue:
        try:
            found = queue.health()
        except REDIS_AWAY as reason:
            body = {"status": "unhealthy", "redis": "disconnected", "error": _redis_error(reason)}
            return jsonify(body), 503, {"Retry-After": str(RETRY_AFTER_SECONDS)}
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

    @routes.get("/")
    def index() -> ResponseReturnValue:
        return jsonify(
            service="SuperExam Processing Service",
            version=__version__,
            status="running",
            redis_prefix=settings.redis_key_prefix,
        )

    return routes


def register_errors(app: Flask) -> None:
    """Give every error the one shape."""

    @app.errorhandler(ValidationError)
    def invalid(reason: ValidationError) -> ResponseReturnValue:
        details = reason.normalized_messages()
        return error(422, f"Invalid: {', '.join(str(name) for name in details)}", details)

    @app.errorhandler(HTTPException)
    def http(reason: HTTPException) -> ResponseReturnValue:
        answer = error(reason.code or 500, reason.description or reason.name)
        for name, value in reason.get_headers():
            if name not in {"Content-Type", "Content-Length"}:
                answer.headers[name] = value
        return answer

    def away(reason: Exception) -> ResponseReturnValue:
        log.warning("Redis is away: %s", _redis_error(reason))
        return error(503, "Redis is away; nothing was queued, try again soon")

    for kind in REDIS_AWAY:
        app.register_error_handler(kind, away)


def error(status: int, message: str, details: dict[str, Any] | None = None) -> Response:
    """Return an answer in the one shape of errors."""
    answer = jsonify(error=ERROR_CODES.get(status, "error"), message=message, details=details or {})
    answer.status_code = status
    if status == 503:
        answer.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return answer


def _json_object() -> dict[str, Any]:
    """Return the body's JSON object: 415, 400 or 422 where it is none."""
    if request.mimetype != "application/json":
        raise _problem(415, "Send the body as application/json")
    try:
        body = json.loads(request.get_data(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _problem(400, "The body is not JSON") from None
    if not isinstance(body, dict):
        raise ValidationError({"body": ["Must be a JSON object."]})
    return body


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _problem(status: int, message: str) -> HTTPException:
    problem = HTTPException(message)
    problem.code = status
    return problem


def _redis_error(reason: Exception) -> str:
    # The client's own text names host and port, which an anonymous caller of /health need not know.
    return f"Redis can't be reached ({type(reason).__name__})"
