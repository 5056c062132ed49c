"""Request bodies, read strictly: UTF-8 JSON, one object, every name once, every number finite.

What the object may hold is for `schemas` to say.
"""

from __future__ import annotations

import time
from typing import IO, Any

from flask import Request
from marshmallow import ValidationError
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType

from superexam_rq import strict_json

# A larger body is refused with 413 (contract §2).
MAX_BODY_BYTES = 2**20
# A client that is still sending reads no answer: so much of a refused body is read and dropped first.
MAX_DRAIN_BYTES = 8 * 2**20
_DRAIN_SECONDS = 5.0
_CHUNK_BYTES = 2**16
_EMPTY = "The body is empty: send JSON"


def json_object(request: Request) -> dict[str, Any]:
    """Return the body's JSON object.

    Raises the HTTP errors 400 (not JSON), 413 and 415, and `ValidationError` where it is JSON but no object, or a
    name comes twice.
    """
    if not request.content_length and "HTTP_TRANSFER_ENCODING" not in request.environ:
        raise BadRequest(_EMPTY)
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send the body as application/json")
    if request.mimetype_params.get("charset", "utf-8").lower() not in {"utf-8", "utf8", "us-ascii"}:
        raise UnsupportedMediaType("Send the body as UTF-8")
    data = _read(request)
    try:
        # Some editors put a byte order mark before the text.
        text = data.decode("utf-8-sig")
        body = strict_json.loads(text)
    except strict_json.NameGivenTwice as error:
        raise ValidationError({error.name: ["Is given twice."]}) from None
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON" if data else _EMPTY) from None
    if not isinstance(body, dict):
        raise ValidationError({"body": ["Must be a JSON object."]})
    return body


def drain(stream: IO[bytes]) -> None:
    """Read on in a body that was refused, so that its sender comes to read the answer; bounded in bytes and time."""
    left = MAX_DRAIN_BYTES
    give_up = time.monotonic() + _DRAIN_SECONDS
    while left > 0 and time.monotonic() < give_up:
        # The stream ends with the request: gunicorn sees to that.
        dropped = len(_part(stream, min(_CHUNK_BYTES, left)))
        if not dropped:
            return
        left -= dropped


def _read(request: Request) -> bytes:
    """Return the body, of a stated length or in chunks; raises the HTTP errors 400 and 413."""
    stream = request.environ["wsgi.input"]
    length = request.content_length
    if length is None and "wsgi.input_terminated" not in request.environ:
        return b""
    left = MAX_BODY_BYTES + 1 if length is None else length
    if left > MAX_BODY_BYTES + 1:
        raise RequestEntityTooLarge
    parts = []
    while left > 0:
        part = _part(stream, min(_CHUNK_BYTES, left))
        if not part:
            break
        parts.append(part)
        left -= len(part)
    data = b"".join(parts)
    if len(data) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    if length is not None and left:
        raise BadRequest("The body is shorter than its Content-Length")
    return data


def _part(stream: IO[bytes], size: int) -> bytes:
    try:
        return stream.read(size)
    except Exception:  # noqa: BLE001 (malformed chunks: each server has error classes of its own)
        raise BadRequest("The body can't be read: it broke off, or its chunks are malformed") from None
