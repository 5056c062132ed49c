"""Request bodies, read strictly: UTF-8 JSON, one object, every name once, every number finite.

What the object may hold is for `schemas` to say.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from typing import Any

from flask import Request
from marshmallow import ValidationError
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

# A larger body is refused with 413 (contract §2).
MAX_BODY_BYTES = 2**20
# A client that is still sending reads no answer: so much of a refused body is read and dropped first.
MAX_DRAIN_BYTES = 8 * 2**20
_DRAIN_SECONDS = 5.0
_CHUNK_BYTES = 2**16


def json_object(request: Request) -> dict[str, Any]:
    """Return the body's JSON object.

    Raises the HTTP errors 400 (not JSON), 413 and 415, and `ValidationError` where it is JSON but no object, or a
    name comes twice.
    """
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send the body as application/json")
    if request.mimetype_params.get("charset", "utf-8").lower() not in {"utf-8", "utf8", "us-ascii"}:
        raise UnsupportedMediaType("Send the body as UTF-8")
    try:
        data = request.get_data(cache=False)
    except OSError:
        raise BadRequest("The body ended too early, or its chunks are malformed") from None
    try:
        # Some editors put a byte order mark before the text.
        text = data.decode("utf-8-sig")
        body = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON" if data else "The body is empty: send JSON") from None
    if not isinstance(body, dict):
        raise ValidationError({"body": ["Must be a JSON object."]})
    return body


def drain(request: Request) -> None:
    """Read on in a body that was refused, so that its sender comes to read the answer; bounded in bytes and time."""
    stream = request.environ["wsgi.input"]
    # The server's own stream ends with the request where the length is stated or the body is chunked.
    left = min(request.content_length or MAX_DRAIN_BYTES, MAX_DRAIN_BYTES)
    give_up = time.monotonic() + _DRAIN_SECONDS
    with contextlib.suppress(OSError):
        while left > 0 and time.monotonic() < give_up:
            dropped = len(stream.read(min(_CHUNK_BYTES, left)))
            if not dropped:
                return
            left -= dropped


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValidationError({twice: ["Is given twice."]})
    return members
