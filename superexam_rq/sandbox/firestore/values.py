"""Order, size, limits and transforms of Firestore values, and fields addressed by path.

Works on protobuf messages (``google.firestore.v1.Value``, ``Document.fields``) and keeps nothing. Sources:
https://firebase.google.com/docs/firestore/storage-size,
https://firebase.google.com/docs/firestore/manage-data/data-types, and the comments of
``google/firestore/v1/*.proto``.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from google.cloud.firestore_v1 import types
from google.protobuf.timestamp_pb2 import Timestamp

from superexam_rq.sandbox.firestore.names import invalid, is_reserved, parse_field_path, relative

if TYPE_CHECKING:
    from collections.abc import Iterable

# Protobuf classes made at run time; no type checker can see into them.
Message: TypeAlias = Any
Fields: TypeAlias = Any  # MutableMapping[str, Value] of a protobuf map
SortKey: TypeAlias = tuple[Any, ...]

Value = types.Value.pb()
Document = types.Document.pb()

MAX_DOCUMENT_BYTES = 1_048_576
MAX_VALUE_BYTES = MAX_DOCUMENT_BYTES - 89
MAX_FIELD_DEPTH = 20
# Nobody can store such an id, but recursive queries start and end at one.
_NUMERIC_ID = re.compile(r"__id(-?\d+)__")
_MAX_INT, _MIN_INT = 2**63 - 1, -(2**63)
_TYPE_ORDER = {
    "null_value": 0,
    "boolean_value": 1,
    "integer_value": 2,
    "double_value": 2,
    "timestamp_value": 3,
    "string_value": 4,
    "bytes_value": 5,
    "reference_value": 6,
    "geo_point_value": 7,
    "array_value": 8,
    "map_value": 10,
}
_VECTOR_ORDER = 9


def to_timestamp(micros: int) -> Timestamp:
    """Return a protobuf timestamp for microseconds since 1970."""
    seconds, rest = divmod(micros, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def to_micros(timestamp: Timestamp) -> int:
    """Return microseconds since 1970."""
    return timestamp.seconds * 1_000_000 + timestamp.nanos // 1000


def name_key(name: str) -> SortKey:
    """Return what document names are sorted by: id for id, numeric ones (``__id7__``) first, others as UTF-8."""
    numbers = ((_NUMERIC_ID.fullmatch(part), part) for part in name.split("/"))
    return tuple((0, int(match[1])) if match else (1, part.encode()) for match, part in numbers)


def _is_vector(value: Message) -> bool:
    fields = value.map_value.fields
    return "__type__" in fields and fields["__type__"].string_value == "__vector__"


def sort_key(value: Message) -> SortKey:
    """Return a key that sorts and compares values as Firestore does; its first item is the type's rank."""
    kind = value.WhichOneof("value_type")
    if kind is None:
        raise invalid("A value has no type.")
    rank = _TYPE_ORDER[kind]
    if kind == "null_value":
        return (rank,)
    if kind == "double_value":
        number = value.double_value
        return (rank, 0, 0) if math.isnan(number) else (rank, 1, number)
    if kind == "integer_value":
        return (rank, 1, value.integer_value)
    if kind == "timestamp_value":
        return (rank, value.timestamp_value.seconds, value.timestamp_value.nanos)
    if kind == "string_value":
        return (rank, value.string_value.encode())
    if kind == "reference_value":
        return (rank, name_key(value.reference_value))
    if kind == "geo_point_value":
        return (rank, value.geo_point_value.latitude, value.geo_point_value.longitude)
    if kind == "array_value":
        return (rank, tuple(sort_key(item) for item in value.array_value.values))
    if kind == "map_value":
        if _is_vector(value):
            items = value.map_value.fields["value"].array_value.values
            return (_VECTOR_ORDER, len(items), tuple(sort_key(item) for item in items))
        entries = ((name.encode(), sort_key(item)) for name, item in value.map_value.fields.items())
        return (rank, tuple(sorted(entries, key=lambda entry: entry[0])))
    return (rank, getattr(value, kind))


def _text_size(text: str) -> int:
    return len(text.encode()) + 1


def _name_size(name: str) -> int:
    return sum(_text_size(part) for part in relative(name)) + 16


def _value_size(field: str, value: Message, depth: int) -> int:
    kind = value.WhichOneof("value_type")
    if kind == "map_value":
        if _is_vector(value):
            return 8 * len(value.map_value.fields["value"].array_value.values)
        return _fields_size(value.map_value.fields, depth + 1)
    if kind == "array_value":
        if any(item.WhichOneof("value_type") == "array_value" for item in value.array_value.values):
            raise invalid("Cannot convert an array value in an array value.")
        return sum(_value_size(field, item, depth + 1) for item in value.array_value.values)
    if kind in ("string_value", "bytes_value"):
        size = _text_size(value.string_value) if kind == "string_value" else len(value.bytes_value)
        if size > MAX_VALUE_BYTES:
            raise invalid(f'The value of property "{field}" is longer than {MAX_VALUE_BYTES} bytes.')
        return size
    if kind == "reference_value":
        return _name_size(value.reference_value)
    if kind is None:
        raise invalid(f'The value of property "{field}" has no type.')
    return {"null_value": 1, "boolean_value": 1, "geo_point_value": 16}.get(kind, 8)


def _fields_size(fields: Fields, depth: int) -> int:
    if depth > MAX_FIELD_DEPTH:
        raise invalid(f"A property is nested deeper than {MAX_FIELD_DEPTH} levels.")
    size = 32
    for name, value in fields.items():
        if not name or (is_reserved(name) and name != "__type__"):
            raise invalid(f'Property name "{name}" is empty or reserved.')
        if len(name.encode()) > 1500:
            raise invalid("A property name is longer than 1500 bytes.")
        size += _text_size(name) + _value_size(name, value, depth)
    return size


def check_document(document: Message) -> None:
    """Refuse a document whose fields or size Firestore refuses."""
    size = _name_size(document.name) + _fields_size(document.fields, 0)
    if size > MAX_DOCUMENT_BYTES:
        raise invalid(
            f"Document '{document.name}' cannot be written because its size ({size:,} bytes) exceeds the "
            f"maximum allowed size of {MAX_DOCUMENT_BYTES:,} bytes."
        )


def get_field(fields: Fields, path: tuple[str, ...]) -> Message | None:
    """Return the value at a path, or None."""
    for part in path[:-1]:
        if part not in fields:
            return None
        fields = fields[part].map_value.fields  # empty for any other type
    return fields.get(path[-1])


def set_field(fields: Fields, path: tuple[str, ...], value: Message) -> None:
    """Put a copy of a value at a path; whatever is in the way and no map becomes one."""
    for part in path[:-1]:
        fields[part].map_value.SetInParent()
        fields = fields[part].map_value.fields
    fields[path[-1]].CopyFrom(value)


def delete_field(fields: Fields, path: tuple[str, ...]) -> None:
    """Remove the value at a path, if there is one."""
    if get_field(fields, path) is not None:
        for part in path[:-1]:
            fields = fields[part].map_value.fields
        del fields[path[-1]]


def copy_masked(source: Fields, target: Fields, paths: Iterable[str]) -> None:
    """Make the target like the source at the given paths only: copy what is there, delete what is not."""
    for text in paths:
        path = parse_field_path(text)
        value = get_field(source, path)
        if value is None:
            delete_field(target, path)
        else:
            set_field(target, path, value)


def select(document: Message, paths: Iterable[str]) -> Message:
    """Return a copy of a document with these fields only (``__name__`` alone: with none)."""
    chosen = Document(name=document.name, create_time=document.create_time, update_time=document.update_time)
    copy_masked(document.fields, chosen.fields, (path for path in paths if path != "__name__"))
    return chosen


def _number(value: Message | None) -> int | float | None:
    kind = value.WhichOneof("value_type") if value is not None else None
    return getattr(value, kind) if kind in ("integer_value", "double_value") else None


def _add(current: Message | None, operand: Message) -> Message:
    a, b = _number(current), _number(operand)
    if a is None or b is None:
        return operand
    if isinstance(a, int) and isinstance(b, int):
        return Value(integer_value=max(_MIN_INT, min(_MAX_INT, a + b)))
    return Value(double_value=float(a) + float(b))


def _extreme(current: Message | None, operand: Message, *, largest: bool) -> Message:
    a, b = _number(current), _number(operand)
    if a is None or b is None or math.isnan(b):
        return operand
    if math.isnan(a):
        return current
    return operand if (b > a if largest else b < a) else current


def transform(current: Message | None, change: Message, micros: int) -> tuple[Message, Message]:
    """Apply one ``FieldTransform``; return the field's new value and the transform's result."""
    kind = change.WhichOneof("transform_type")
    if kind == "set_to_server_value":
        new = Value(timestamp_value=to_timestamp(micros - micros % 1000))
        return new, new
    if kind in ("increment", "maximum", "minimum"):
        operand = getattr(change, kind)
        if _number(operand) is None:
            raise invalid(f"The operand of {kind} must be an integer or a double.")
        new = _add(current, operand) if kind == "increment" else _extreme(current, operand, largest=kind == "maximum")
        return new, new
    if kind not in ("append_missing_elements", "remove_all_from_array"):
        raise invalid("A field transform has no type.")
    old = list(current.array_value.values) if current is not None else []
    operands = getattr(change, kind).values
    if kind == "append_missing_elements":
        known = {sort_key(item) for item in old}
        for item in operands:
            if (key := sort_key(item)) not in known:
                known.add(key)
                old.append(item)
    else:
        unwanted = {sort_key(item) for item in operands}
        old = [item for item in old if sort_key(item) not in unwanted]
    return Value(array_value={"values": old}), Value(null_value=0)
