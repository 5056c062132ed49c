"""The shapes of the HTTP contract, as marshmallow schemas: what a submission may hold, a job, an error.

They check and dump; they know neither Flask nor Redis.
"""

from __future__ import annotations

import re
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, post_load, validate

from superexam_rq.queueing import JobRequest

# Firestore: at most 1,500 bytes, no slash, not `.`, `..` or `__…__`. The website's ids are of 20 letters and digits.
_FORBIDDEN_ID = re.compile(r"\.\.?|__.*__")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MAX_ID_BYTES = 1500
# A model's name as Google writes it: gemini-3.8-flash, models/gemini-flash-latest, tunedModels/abc.
_MODEL = re.compile(r"(?:[A-Za-z]+/)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PAGES = re.compile(r"\s*\d{1,6}\s*(-\s*\d{1,6}\s*)?(,\s*\d{1,6}\s*(-\s*\d{1,6}\s*)?)*")


def check_id(value: str) -> None:
    """Refuse an id that Firestore would refuse, or that would reach another path."""
    if not value or "/" in value or _CONTROL.search(value) or _FORBIDDEN_ID.fullmatch(value):
        raise ValidationError("Must be a Firestore document id: not empty, no slash, no control character.")
    if len(value.encode()) > _MAX_ID_BYTES:
        raise ValidationError(f"Must be at most {_MAX_ID_BYTES} bytes long.")


def check_pages(value: str) -> None:
    """Refuse what is not a list of pages and ranges, such as 3-40,55."""
    if len(value) > 1000 or not _PAGES.fullmatch(value):
        raise ValidationError("Must be pages and ranges, such as 3-40,55.")
    for part in value.split(","):
        first, _, last = part.partition("-")
        if int(first) < 1 or (last and int(last) < int(first)):
            raise ValidationError(f"Must count from 1 and rise: {part.strip()}.")


class SubmissionSchema(Schema):
    """Check the body of POST /jobs/process."""

    class Meta:
        """Refuse unknown fields: a misspelt option must not pass unseen."""

        unknown = RAISE

    doc_id = fields.String(required=True, validate=check_id)
    system_prompt_id = fields.String(required=True, validate=check_id)
    custom_prompt_id = fields.String(required=True, validate=check_id)
    schema = fields.Raw(load_default=None, allow_none=True)
    pages = fields.String(load_default=None, allow_none=True, validate=check_pages)
    max_questions = fields.Integer(
        load_default=None, allow_none=True, strict=True, validate=validate.Range(min=1, max=10_000)
    )
    model = fields.String(load_default=None, allow_none=True, validate=validate.Regexp(_MODEL.pattern + r"\Z"))
    priority = fields.String(load_default="normal", validate=validate.OneOf(["normal", "high"]))

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> tuple[JobRequest, bool]:
        """Return the request, and whether it goes to the front of the queue."""
        at_front = data.pop("priority") == "high"
        return JobRequest(**data), at_front


class SubmittedSchema(Schema):
    """Describe the answer to a submission."""

    job_id = fields.String(required=True)
    message = fields.String(required=True)


class JobSchema(Schema):
    """Describe the job object."""

    job_id = fields.String(required=True)
    doc_id = fields.String(required=True)
    status = fields.String(
        required=True, validate=validate.OneOf(["pending", "processing", "completed", "failed", "cancelled"])
    )
    attempt = fields.Integer(required=True)
    max_attempts = fields.Integer(required=True)
    progress = fields.Integer(required=True)
    current_step = fields.String(required=True)
    question_count = fields.Integer(required=True)
    error = fields.String(required=True, allow_none=True)
    error_code = fields.String(required=True, allow_none=True)
    created_at = fields.Float(required=True, allow_none=True)
    started_at = fields.Float(required=True, allow_none=True)
    completed_at = fields.Float(required=True, allow_none=True)
    retry_at = fields.Float(required=True, allow_none=True)
    queue_position = fields.Integer(required=True, allow_none=True)
    usage = fields.Dict()


class ErrorSchema(Schema):
    """Describe the one shape of every error."""

    error = fields.String(required=True)
    message = fields.String(required=True)
    details = fields.Dict(keys=fields.String(), values=fields.List(fields.String()))
