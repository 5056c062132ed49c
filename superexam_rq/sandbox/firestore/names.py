"""Resource names, ids and field paths as Firestore spells them, and the error that carries a status code.

Nothing here knows a document's content. Rules: https://firebase.google.com/docs/firestore/quotas
"""

from __future__ import annotations

import re

import grpc

MAX_ID_BYTES = 1500
MAX_NAME_BYTES = 6 * 1024
MAX_DEPTH = 100  # of subcollections

_NAME = re.compile(r"(projects/[^/]+/databases/([^/]+)/documents)(?:/(.+))?", re.DOTALL)
_RESERVED = re.compile(r"__.*__", re.DOTALL)
_PATH_PART = re.compile(r"([_a-zA-Z][_a-zA-Z0-9]*)|`((?:[^`\\]|\\.)+)`", re.DOTALL)


class FirestoreError(Exception):
    """An answer with a gRPC status code; the text is what the client sees."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> FirestoreError:
    """Return an INVALID_ARGUMENT error."""
    return FirestoreError(grpc.StatusCode.INVALID_ARGUMENT, message)


def check_id(text: str) -> None:
    """Refuse a collection or document id that Firestore refuses."""
    if not text:
        raise invalid("A resource id must not be empty.")
    if text in (".", ".."):
        raise invalid(f'Resource id "{text}" is invalid because it is "." or "..".')
    if _RESERVED.fullmatch(text):
        raise invalid(f'Resource id "{text}" is invalid because it is reserved.')
    if len(text.encode()) > MAX_ID_BYTES:
        raise invalid(f"A resource id is longer than {MAX_ID_BYTES} bytes.")


def _segments(name: str) -> list[str]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise invalid(f'Name "{name}" lacks "projects/P/databases/(default)/documents" at its beginning.')
    if match[2] != "(default)":
        raise FirestoreError(grpc.StatusCode.NOT_FOUND, f'The database {match[2]} does not exist; use "(default)".')
    segments = match[3].split("/") if match[3] else []
    for segment in segments:
        check_id(segment)
    if len(name.encode()) > MAX_NAME_BYTES or len(segments) > 2 * MAX_DEPTH:
        raise invalid(f"A name is longer than {MAX_NAME_BYTES} bytes or deeper than {MAX_DEPTH} levels.")
    return segments


def check_document_name(name: str) -> None:
    """Refuse a name that is not a document's."""
    segments = _segments(name)
    if not segments or len(segments) % 2:
        raise invalid(f'Document name "{name}" must have an even number of segments after "documents".')


def check_parent(name: str) -> None:
    """Refuse a name that is neither the database's root nor a document's."""
    if len(_segments(name)) % 2:
        raise invalid(f'Parent name "{name}" must be the root or a document.')


def check_database(name: str) -> None:
    """Refuse a database that is not served here."""
    if _segments(f"{name}/documents"):
        raise invalid(f'Database name "{name}" is not "projects/P/databases/(default)".')


def is_reserved(field: str) -> bool:
    """Tell whether Firestore keeps this field name for itself."""
    return _RESERVED.fullmatch(field) is not None


def relative(name: str) -> list[str]:
    """Return the ids of a valid name, from the root collection on."""
    return name.split("/")[5:]


def collection_of(name: str) -> str:
    """Return the path of the collection that a document is in."""
    return name.rpartition("/")[0]


def parse_field_path(text: str) -> tuple[str, ...]:
    """Return the parts of a field path: simple names, or backquoted ones with backslash escapes."""
    parts: list[str] = []
    position = 0
    while match := _PATH_PART.match(text, position):
        parts.append(match[1] or re.sub(r"\\(.)", r"\1", match[2], flags=re.DOTALL))
        position = match.end()
        if position == len(text):
            return tuple(parts)
        if text[position] != ".":
            break
        position += 1
    raise invalid(f'Invalid property path "{text}".')
