"""One structured query: which documents it covers, which it keeps, in which order.

Follows the documented meaning of ``google.firestore.v1.StructuredQuery``; reads documents, stores nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import grpc
from google.cloud.firestore_v1 import types

from superexam_rq.sandbox.firestore.names import (
    FirestoreError,
    check_id,
    collection_of,
    invalid,
    parse_field_path,
)
from superexam_rq.sandbox.firestore.values import (
    Message,
    SortKey,
    Value,
    get_field,
    name_key,
    select,
    sort_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Test: TypeAlias = Callable[[Message], bool]

_KEY = "__name__"
_MAX_DISJUNCTIONS = 30
_Op = types.StructuredQuery.FieldFilter.Operator
_UnaryOp = types.StructuredQuery.UnaryFilter.Operator
_DESCENDING = types.StructuredQuery.Direction.DESCENDING
_AND = types.StructuredQuery.CompositeFilter.Operator.AND
_INEQUALITIES = {
    _Op.LESS_THAN,
    _Op.LESS_THAN_OR_EQUAL,
    _Op.GREATER_THAN,
    _Op.GREATER_THAN_OR_EQUAL,
    _Op.NOT_EQUAL,
    _Op.NOT_IN,
}
_NULL: SortKey = (0,)
_NAN: SortKey = (2, 0, 0)


def _getter(text: str) -> Callable[[Message], SortKey | None]:
    """Return a function from a document to the sort key of one field, None where the field is missing."""
    if text == _KEY:
        return lambda document: (6, name_key(document.name))
    path = parse_field_path(text)

    def get(document: Message) -> SortKey | None:
        value = get_field(document.fields, path)
        return None if value is None else sort_key(value)

    return get


def _field_test(condition: Message) -> Test:
    op, operand = _Op(condition.op), condition.value
    get, wanted = _getter(condition.field.field_path), sort_key(operand)
    several: set[SortKey] = set()
    if op in (_Op.IN, _Op.NOT_IN, _Op.ARRAY_CONTAINS_ANY):
        if not operand.array_value.values:
            raise invalid(f"'{op.name}' requires a non-empty ArrayValue.")
        if len(operand.array_value.values) > _MAX_DISJUNCTIONS:
            raise invalid(f"'{op.name}' supports up to {_MAX_DISJUNCTIONS} comparison values.")
        several = {sort_key(item) for item in operand.array_value.values}

    def compare(key: SortKey) -> bool:
        if op == _Op.EQUAL:
            return key == wanted
        if op == _Op.NOT_EQUAL:
            return key not in (wanted, _NULL)
        if op == _Op.IN:
            return key in several
        if op == _Op.NOT_IN:
            return key not in several and key != _NULL and _NULL not in several
        if op in (_Op.ARRAY_CONTAINS, _Op.ARRAY_CONTAINS_ANY):
            return key[0] == 8 and any(item == wanted or item in several for item in key[1])
        if key[0] != wanted[0] or _NAN in (key, wanted):
            return key == wanted and op in (_Op.LESS_THAN_OR_EQUAL, _Op.GREATER_THAN_OR_EQUAL)
        if op == _Op.LESS_THAN:
            return key < wanted
        if op == _Op.LESS_THAN_OR_EQUAL:
            return key <= wanted
        if op == _Op.GREATER_THAN:
            return key > wanted
        return key >= wanted

    if op == _Op.OPERATOR_UNSPECIFIED:
        raise invalid("A field filter has no operator.")
    return lambda document: (key := get(document)) is not None and compare(key)


def _unary_test(condition: Message) -> Test:
    op, get = _UnaryOp(condition.op), _getter(condition.field.field_path)
    wanted = _NULL if op in (_UnaryOp.IS_NULL, _UnaryOp.IS_NOT_NULL) else _NAN
    if op in (_UnaryOp.IS_NULL, _UnaryOp.IS_NAN):
        return lambda document: get(document) == wanted
    return lambda document: get(document) not in (None, _NULL, wanted)


def _test(condition: Message) -> Test:
    kind = condition.WhichOneof("filter_type")
    if kind == "field_filter":
        return _field_test(condition.field_filter)
    if kind == "unary_filter":
        return _unary_test(condition.unary_filter)
    if kind != "composite_filter":
        return lambda _: True
    tests = [_test(part) for part in condition.composite_filter.filters]
    if condition.composite_filter.op == _AND:
        return lambda document: all(test(document) for test in tests)
    return lambda document: any(test(document) for test in tests)


def _inequality_fields(condition: Message) -> set[str]:
    kind = condition.WhichOneof("filter_type")
    if kind == "composite_filter":
        return set().union(*map(_inequality_fields, condition.composite_filter.filters))
    if kind == "field_filter" and condition.field_filter.op in _INEQUALITIES:
        return {condition.field_filter.field.field_path}
    if kind == "unary_filter" and condition.unary_filter.op in (_UnaryOp.IS_NOT_NULL, _UnaryOp.IS_NOT_NAN):
        return {condition.unary_filter.field.field_path}
    return set()


class Query:
    """A structured query below one parent (the root or a document).

    Raises ``FirestoreError`` for a query that Firestore refuses.
    """

    def __init__(self, parent: str, structured: Message) -> None:
        if structured.HasField("find_nearest"):
            raise FirestoreError(grpc.StatusCode.UNIMPLEMENTED, "find_nearest is not part of this stand-in.")
        sources = structured.from_
        if len(sources) != 1:
            raise invalid("A query needs exactly one collection selector.")
        self.parent = parent
        self.collection_id = sources[0].collection_id
        self.all_descendants = sources[0].all_descendants
        if self.collection_id:
            check_id(self.collection_id)
        elif not self.all_descendants:
            raise invalid("A query without a collection id must select all descendants.")
        self._structured = structured
        self._test = _test(structured.where)
        orders = [(order.field.field_path, order.direction == _DESCENDING) for order in structured.order_by]
        named = {field for field, _ in orders}
        last_descending = orders[-1][1] if orders else False
        orders += [(field, last_descending) for field in sorted(_inequality_fields(structured.where) - named)]
        if _KEY not in {field for field, _ in orders}:
            orders.append((_KEY, last_descending))
        self._orders = [(_getter(field), descending) for field, descending in orders]
        for cursor in (structured.start_at, structured.end_at):
            if len(cursor.values) > len(orders):
                raise invalid("Cursor has too many values.")
        if structured.offset < 0 or structured.limit.value < 0:
            raise invalid("Limit and offset must not be negative.")

    def covers(self, collection: str) -> bool:
        """Tell whether documents of the collection with this path can be in the result."""
        if not self.all_descendants:
            return collection == f"{self.parent}/{self.collection_id}"
        if not collection.startswith(f"{self.parent}/"):
            return False
        return not self.collection_id or collection.rpartition("/")[2] == self.collection_id

    def covers_document(self, name: str) -> bool:
        """Tell whether the document with this name can be in the result."""
        return self.covers(collection_of(name))

    def run(self, documents: Iterable[Message]) -> list[Message]:
        """Return the matching ones of the covered documents, in order, between the cursors, unprojected."""
        rows: list[tuple[list[SortKey], Message]] = []
        for document in documents:
            if self._test(document):
                keys = [key for get, _ in self._orders if (key := get(document)) is not None]
                if len(keys) == len(self._orders) and self._between_cursors(keys):
                    rows.append((keys, document))
        for index in reversed(range(len(self._orders))):
            rows.sort(key=lambda row: row[0][index], reverse=self._orders[index][1])
        start = self._structured.offset
        stop = start + self._structured.limit.value if self._structured.HasField("limit") else None
        return [document for _, document in rows[start:stop]]

    def project(self, document: Message) -> Message:
        """Return the document with the selected fields only."""
        if not self._structured.HasField("select"):
            return document
        return select(document, (field.field_path for field in self._structured.select.fields))

    def _between_cursors(self, keys: list[SortKey]) -> bool:
        start, end = self._structured.start_at, self._structured.end_at
        if self._structured.HasField("start_at"):
            position = self._position(keys, start)
            if position < 0 or (position == 0 and not start.before):
                return False
        if self._structured.HasField("end_at"):
            position = self._position(keys, end)
            if position > 0 or (position == 0 and end.before):
                return False
        return True

    def _position(self, keys: list[SortKey], cursor: Message) -> int:
        """Return -1, 0 or 1: the document comes before, at or after the cursor."""
        for key, value, (_, descending) in zip(keys, cursor.values, self._orders, strict=False):
            wanted = sort_key(value)
            if key != wanted:
                return -1 if (key < wanted) != descending else 1
        return 0


def aggregate(aggregation: Message, documents: list[Message]) -> Message:
    """Return the value of one count, sum or average over a query's documents."""
    kind = aggregation.WhichOneof("operator")
    if kind == "count":
        up_to = aggregation.count.up_to.value
        return Value(integer_value=min(len(documents), up_to) if up_to else len(documents))
    if kind not in ("sum", "avg"):
        raise invalid("An aggregation has no operator.")
    path = parse_field_path(getattr(aggregation, kind).field.field_path)
    found = (get_field(document.fields, path) for document in documents)
    numbers = [
        value.integer_value if value.HasField("integer_value") else value.double_value
        for value in found
        if value is not None and value.WhichOneof("value_type") in ("integer_value", "double_value")
    ]
    if kind == "avg":
        return Value(double_value=sum(numbers) / len(numbers)) if numbers else Value(null_value=0)
    total = sum(numbers)
    if isinstance(total, int) and -(2**63) <= total < 2**63:
        return Value(integer_value=total)
    return Value(double_value=float(total))
