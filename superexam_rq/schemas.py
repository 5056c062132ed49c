"""The shapes of the HTTP contract, as marshmallow schemas: what a submission may hold, a job, an error.

They check and dump, and they are the source of the OpenAPI text (`openapi`); they know neither Flask nor Redis.
"""

from __future__ import annotations

import json
import re
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, post_load, validate

from superexam_rq.caller_schema import CallerSchema, SchemaError
from superexam_rq.pages import MAX_SELECTION_CHARS, SELECTION_PATTERN, check_pages
from superexam_rq.queueing import STATUS_NAMES
from superexam_rq.request import MODEL_PATTERN, JobRequest

# Firestore: at most 1,500 bytes, no slash, not `.`, `..` or `__…__`. The website's ids are of 20 letters and digits.
_FORBIDDEN_ID = re.compile(r"\.\.?|__.*__")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MAX_ID_BYTES = 1500
# The same for readers of the OpenAPI text, in the dialect of JavaScript.
_ID_PATTERN = r"^(?!\.{1,2}$)(?!__.*__$)[^/\u0000-\u001f\u007f-\u009f\u2028\u2029]+$"

STATUSES = tuple(dict.fromkeys(STATUS_NAMES.values()))
MAX_LIMIT = 200
DEFAULT_LIMIT = 50

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


def error_code(status: int) -> str:
    """Return the code that an error of this HTTP status bears."""
    return ERROR_CODES.get(status, "bad_request" if status < 500 else "internal_error")


def check_id(value: str) -> None:
    """Refuse an id that Firestore would refuse, or that would reach another path."""
    if not value or "/" in value or _CONTROL.search(value) or _FORBIDDEN_ID.fullmatch(value):
        raise ValidationError("Must be a Firestore document id: not empty, no slash, no control character.")
    if len(value.encode()) > _MAX_ID_BYTES:
        raise ValidationError(f"Must be at most {_MAX_ID_BYTES} bytes long.")


def check_selection(value: str) -> None:
    """Refuse what is not a list of pages and ranges, such as 3-40,55."""
    try:
        check_pages(value)
    except ValueError as error:
        raise ValidationError(str(error)) from None


def check_schema(value: Any) -> None:
    """Refuse a JSON Schema that no model could be asked for, and say where it is wrong."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValidationError("Must hold no lone surrogates.") from None
    try:
        CallerSchema.parse(value)
    except SchemaError as error:
        raise ValidationError(str(error)) from None
    except RecursionError:
        raise ValidationError("Is nested too deep.") from None


class _Id(fields.String):
    def __init__(self, description: str, **options: Any) -> None:
        shown = {"description": description, "pattern": _ID_PATTERN, "maxLength": _MAX_ID_BYTES, "minLength": 1}
        super().__init__(validate=check_id, metadata=shown, **options)


class SubmissionSchema(Schema):
    """Check the body of POST /jobs/process."""

    class Meta:
        """Refuse unknown fields: a misspelt option must not pass unseen."""

        unknown = RAISE

    doc_id = _Id("The document, in Firestore's collection `documents`.", required=True)
    system_prompt_id = _Id("The prompt in `system-prompts`.", required=True)
    custom_prompt_id = _Id("The prompt in `custom-prompts`.", required=True)
    schema = fields.Raw(
        load_default=None,
        allow_none=True,
        validate=check_schema,
        metadata={
            "description": "A JSON Schema for one question or for the whole answer: an object, or a string of one.",
            "nullable": True,
            "anyOf": [{"type": "object"}, {"type": "string"}],
        },
    )
    pages = fields.String(
        load_default=None,
        allow_none=True,
        validate=check_selection,
        metadata={
            "description": "Only these pages of the PDF, counted from 1.",
            "example": "3-40,55",
            "maxLength": MAX_SELECTION_CHARS,
            "pattern": SELECTION_PATTERN,
        },
    )
    max_questions = fields.Integer(
        load_default=None,
        allow_none=True,
        strict=True,
        validate=validate.Range(min=1, max=10_000),
        metadata={"description": "At most so many questions."},
    )
    model = fields.String(
        load_default=None,
        allow_none=True,
        validate=validate.Regexp(rf"^{MODEL_PATTERN}\Z"),
        metadata={
            "description": "Another model than GEMINI_MODEL.",
            "example": "gemini-flash-latest",
            "pattern": f"^{MODEL_PATTERN}$",
        },
    )
    priority = fields.String(
        load_default="normal",
        allow_none=True,
        validate=validate.OneOf(["normal", "high"]),
        metadata={"description": "`high`: to the front of the queue."},
    )

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> tuple[JobRequest, bool]:
        """Return the request, and whether it goes to the front of the queue."""
        at_front = data.pop("priority") == "high"
        return JobRequest(**data), at_front


class _Count(fields.Integer):
    """Take digits only, where Python's int would take signs, spaces, underscores and other scripts' digits."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", str(value)):
            raise self.make_error("invalid", input=value)
        return int(super()._deserialize(value, attr, data, **options) or 0)


class JobListQuerySchema(Schema):
    """Check the query of GET /jobs."""

    class Meta:
        """Refuse unknown parameters: a misspelt filter must not pass unseen."""

        unknown = RAISE

    status = fields.String(load_default=None, validate=validate.OneOf(STATUSES))
    doc_id = _Id("Only jobs of this document.", load_default=None)
    limit = _Count(
        load_default=DEFAULT_LIMIT,
        validate=validate.Range(min=1, max=MAX_LIMIT),
        metadata={"description": "How many jobs at most."},
    )
    offset = _Count(
        load_default=0,
        validate=validate.Range(min=0, max=999_999_999),
        metadata={"description": "How many of the newest to leave out."},
    )


class SubmittedSchema(Schema):
    """Describe the answer to a submission."""

    job_id = fields.String(required=True)
    message = fields.String(required=True)


class MessageSchema(Schema):
    """Describe an answer that only says what was done."""

    message = fields.String(required=True)


class JobSchema(Schema):
    """Describe the job object; times are Unix seconds."""

    job_id = fields.String(required=True)
    doc_id = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(STATUSES))
    attempt = fields.Integer(required=True, metadata={"description": "From 1 once started.", "minimum": 0})
    max_attempts = fields.Integer(required=True, metadata={"description": "1 + retries.", "minimum": 1})
    progress = fields.Integer(required=True, metadata={"minimum": 0, "maximum": 100})
    current_step = fields.String(required=True)
    question_count = fields.Integer(required=True, metadata={"minimum": 0})
    error = fields.String(required=True, allow_none=True)
    error_code = fields.String(required=True, allow_none=True)
    created_at = fields.Float(required=True, allow_none=True)
    started_at = fields.Float(required=True, allow_none=True)
    completed_at = fields.Float(required=True, allow_none=True)
    retry_at = fields.Float(required=True, allow_none=True)
    queue_position = fields.Integer(
        required=True, allow_none=True, metadata={"description": "From 1; only while pending."}
    )
    usage = fields.Dict(
        metadata={"description": "What all runs of the job asked the model for: calls, tokens, an estimate in USD."}
    )


class JobListSchema(Schema):
    """Describe a page of jobs, newest first."""

    jobs = fields.List(fields.Nested(JobSchema), required=True)
    total = fields.Integer(required=True, metadata={"description": "How many jobs match in all.", "minimum": 0})


class HealthSchema(Schema):
    """Describe the answer of GET /health while Redis answers."""

    status = fields.String(required=True, validate=validate.OneOf(["healthy"]))
    redis = fields.String(required=True, validate=validate.OneOf(["connected"]))
    prefix = fields.String(required=True)
    queue = fields.String(required=True)
    queued = fields.Integer(required=True, metadata={"description": "Jobs waiting in the queue's list."})
    workers = fields.Integer(required=True, metadata={"description": "Live workers."})


class UnhealthySchema(Schema):
    """Describe the answer of GET /health while Redis is away."""

    status = fields.String(required=True, validate=validate.OneOf(["unhealthy"]))
    redis = fields.String(required=True, validate=validate.OneOf(["disconnected"]))
    error = fields.String(required=True)


class LiveSchema(Schema):
    """Describe the answer of GET /health/live."""

    status = fields.String(required=True)


class ServiceSchema(Schema):
    """Describe the answer of GET /."""

    service = fields.String(required=True)
    version = fields.String(required=True)
    status = fields.String(required=True)
    redis_prefix = fields.String(required=True)


class ErrorSchema(Schema):
    """Describe the one shape of every error."""

    error = fields.String(required=True, validate=validate.OneOf([*ERROR_CODES.values()]))
    message = fields.String(required=True)
    details = fields.Dict(keys=fields.String(), values=fields.List(fields.String()), required=True)
