"""A caller's own JSON Schema: refused if unusable, turned into what the model accepts, and checked against.

The schema describes one question, or a whole answer: an array of questions, or an object that holds one. It is
made self-contained once (references put in place), and nothing is ever fetched. Which of an answer's items are
kept is `questions`' business.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jsonschema import (
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
)
from jsonschema.exceptions import SchemaError as InvalidSchema
from jsonschema.exceptions import best_match
from referencing import Registry

from superexam_rq import strict_json
from superexam_rq.texts import scrub_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jsonschema.protocols import Validator

_MAX_CHARS = 50_000
_MAX_DEPTH = 40
_MAX_NODES = 1_000
# Of the schema once its references are followed: what they lead to counts each time.
_MAX_INLINED_CHARS = 4 * _MAX_CHARS
# jsonschema compares the values of a list pair by pair, to find one that comes twice, where they can't be sorted.
_MAX_MIXED = 32
# An enum of more values makes Gemini refuse the schema ("too many states for serving").
_MAX_ENUM = 100
_MAX_DESCRIPTION_CHARS = 1_000
# Firestore: 20 levels of maps and lists, of which a document's own fields are the first; a document of 1 MiB.
_MAX_ITEM_DEPTH = 15
_MAX_ITEM_CHARS = 200_000
# A pattern takes time by the square of a text's length, or worse.
_MAX_TEXT_CHARS = 10_000
_MAX_NAME_BYTES = 1_500
_GROWS = "the schema grows too large once its references are followed"
_QUANTIFIER = re.compile(r"[*+]|\{(\d*)(,?)(\d*)\}")
_RESERVED_NAME = re.compile(r"__.*__", re.DOTALL)

_DIALECTS: dict[str, type[Validator]] = {
    "http://json-schema.org/draft-04/schema": Draft4Validator,
    "http://json-schema.org/draft-06/schema": Draft6Validator,
    "http://json-schema.org/draft-07/schema": Draft7Validator,
    "https://json-schema.org/draft/2019-09/schema": Draft201909Validator,
    "https://json-schema.org/draft/2020-12/schema": Draft202012Validator,
}
# In these, whatever stands beside a $ref is ignored.
_REF_ALONE = (Draft4Validator, Draft6Validator, Draft7Validator)

_ONE = frozenset(
    [
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    ]
)
_LISTS = frozenset(["allOf", "anyOf", "oneOf", "prefixItems", "items"])
_MAPS = frozenset(["properties", "patternProperties", "dependentSchemas", "dependencies"])
_DEFINITIONS = frozenset(["$schema", "$id", "id", "$defs", "definitions", "$anchor", "$comment", "$vocabulary"])

SOURCE_FIELDS: dict[str, Any] = {
    "sourcePage": {
        "type": "integer",
        "description": "Page of this PDF file that the question is about, counted from 1 within the file.",
    },
    "sourceQuote": {
        "type": "string",
        "description": "The sentence of that page that the question rests on, word for word.",
    },
}


class SchemaError(ValueError):
    """Report why a caller's schema can't be used, and where (a JSON Pointer, empty for the whole)."""

    def __init__(self, pointer: str, reason: str) -> None:
        super().__init__(f"At {pointer}: {reason}" if pointer else reason)
        self.pointer = pointer


@dataclass(frozen=True)
class CallerSchema:
    """Hold a usable schema: the caller's text, one question's schema without references, and the model's."""

    text: str
    item: dict[str, Any]
    response_schema: dict[str, Any]
    _validator: Validator

    @classmethod
    def parse(cls, value: Any) -> CallerSchema:
        """Read a schema, an object or a string that holds one; raises `SchemaError` if it can't be used."""
        schema = _load(value)
        dialect = _dialect(schema)
        _check(dialect, schema)
        inlined = _Inliner(schema, dialect).inline(schema, "", ())
        _check(dialect, inlined)  # what a reference leads to may lie where no schema was looked for
        item, pointer = _item(inlined, "")
        model = _model(item, pointer, 1)
        if not model.get("properties"):
            raise SchemaError(pointer, "it has no properties, so it describes no question")
        return cls(
            text=json.dumps(schema, ensure_ascii=False, separators=(",", ":")),
            item=item,
            response_schema=_wrapped(model),
            # An empty registry, since the default one fetches what it does not know.
            _validator=dialect(item, registry=Registry()),
        )

    @property
    def prompt_notes(self) -> str:
        """Return what the prompt says about a question's form, since the model's own schema can't say it all."""
        schema = json.dumps(self.item, ensure_ascii=False, separators=(",", ":"))
        return (
            "Every element of `questions` must be valid against this JSON Schema, with all its bounds, patterns and "
            f"conditions, once `sourcePage` and `sourceQuote` are taken out unless the schema names them:\n{schema}"
        )

    def own_fields(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return an item without the evidence that the service asked for on top of the caller's schema."""
        own = _flatten(self.item).get("properties", {})
        return {name: value for name, value in item.items() if name in own or name not in SOURCE_FIELDS}

    def check(self, item: Any) -> str | None:
        """Return why an item of the model's answer can't be stored as a question, or None if it can."""
        if not isinstance(item, dict):
            return "it is not an object"
        fields = self.own_fields(item)
        # Before the patterns see it: this bounds every text.
        unfit = unstorable(fields)
        if unfit:
            return unfit
        error = best_match(self._validator.iter_errors(fields))
        return f"{_pointer(error.absolute_path) or '/'}: {error.message[:300]}" if error else None


def unstorable(value: Any, depth: int = 1) -> str | None:
    """Return why Firestore would refuse a value of a document, or None."""
    if depth == 1 and len(json.dumps(value)) > _MAX_ITEM_CHARS:
        return "it is too large to be stored"
    if depth > _MAX_ITEM_DEPTH:
        return "it is nested too deeply to be stored"
    if isinstance(value, dict):
        for name, below in value.items():
            reason = _bad_name(name) or unstorable(below, depth + 1)
            if reason:
                return reason
    elif isinstance(value, list):
        for below in value:
            if isinstance(below, list):
                return "a list directly within a list can't be stored"
            reason = unstorable(below, depth + 1)
            if reason:
                return reason
    elif isinstance(value, str):
        return "a text is too long" if len(value) > _MAX_TEXT_CHARS else None
    elif isinstance(value, int) and not isinstance(value, bool):
        return None if -(2**63) <= value < 2**63 else "a whole number has more than 64 bits"
    elif isinstance(value, float):
        return None if math.isfinite(value) else "a number is not finite"
    return None


def _bad_name(name: str) -> str | None:
    if not name or _RESERVED_NAME.fullmatch(name) or not name.isprintable() or len(name.encode()) > _MAX_NAME_BYTES:
        return f"a field can't be named {name[:50]!r} in Firestore"
    return None


# Reading -------------------------------------------------------------------------------------------------------------


def _load(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        if len(value) > _MAX_CHARS:
            raise SchemaError("", f"The schema is longer than {_MAX_CHARS} characters")
        try:
            value = strict_json.loads(value)
        except RecursionError:
            raise SchemaError("", "The schema is nested too deeply") from None
        except ValueError as error:
            raise SchemaError("", f"The schema is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise SchemaError("", "The schema must be a JSON object, such as one with type and properties")
    if _depth(value) > _MAX_DEPTH:
        raise SchemaError("", f"The schema is nested deeper than {_MAX_DEPTH} levels")
    if len(json.dumps(value, ensure_ascii=False)) > _MAX_CHARS:
        raise SchemaError("", f"The schema is longer than {_MAX_CHARS} characters")
    if any(len(listed) > _MAX_MIXED and not _sortable(listed) for listed in _compared(value)):
        raise SchemaError("", f"A list of more than {_MAX_MIXED} values may hold texts only, or numbers only")
    if scrub_all(value) != value:
        raise SchemaError("", "The schema holds control characters, or text that is no Unicode")
    return value


def _depth(value: Any) -> int:
    """Return how deeply a value is nested, without recursion: it may be deeper than Python's stack."""
    depth = 0
    level = [value]
    while level and depth <= _MAX_DEPTH:
        depth += 1
        level = [
            below
            for above in level
            if isinstance(above, dict | list)
            for below in (above.values() if isinstance(above, dict) else above)
        ]
    return depth


def _compared(value: Any, keyword: str = "") -> Iterator[list[Any]]:
    """Yield the lists whose values may be compared with each other: all but lists of schemas and of examples."""
    if isinstance(value, list):
        if keyword not in _LISTS | {"examples"}:
            yield value
        for below in value:
            yield from _compared(below)
    elif isinstance(value, dict):
        for name, below in value.items():
            # There the names are the caller's own, and no keywords.
            yield from _compared(below, "" if keyword in {"dependencies", "dependentRequired"} else name)


def _sortable(listed: list[Any]) -> bool:
    kinds = {type(value) for value in listed}
    return kinds == {str} or kinds <= {int, float}


def _dialect(schema: dict[str, Any]) -> type[Validator]:
    named = schema.get("$schema")
    if named is None:
        return Draft202012Validator
    dialect = _DIALECTS.get(named.removesuffix("#")) if isinstance(named, str) else None
    if dialect is None:
        raise SchemaError("/$schema", "unknown; leave it out, or name draft 4, 6, 7, 2019-09 or 2020-12")
    return dialect


def _check(dialect: type[Validator], schema: Any) -> None:
    try:
        dialect.check_schema(schema)
    except InvalidSchema as error:
        raise SchemaError(_pointer(error.absolute_path), error.message[:300]) from None


def _pointer(path: Any) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


class _Inliner:
    """Put what a schema refers to in place of the references, and refuse what can't be followed or is not safe."""

    def __init__(self, root: dict[str, Any], dialect: type[Validator]) -> None:
        self._root = root
        self._ref_alone = dialect in _REF_ALONE
        self._nodes = 0
        self._chars = 0
        self._level = 0

    def inline(self, schema: Any, pointer: str, above: tuple[str, ...]) -> Any:
        """Return a schema without references; `above` are those that led here."""
        self._nodes += 1
        self._level += 1
        if self._nodes > _MAX_NODES or self._level > _MAX_DEPTH:
            raise SchemaError(pointer, _GROWS)
        inlined = self._inline(schema, pointer, above) if isinstance(schema, dict) else schema
        self._level -= 1
        return inlined

    def _inline(self, schema: dict[str, Any], pointer: str, above: tuple[str, ...]) -> Any:
        for keyword in ("$dynamicRef", "$recursiveRef", *(("$id",) if pointer else ())):
            if isinstance(schema.get(keyword), str):
                raise SchemaError(f"{pointer}/{keyword}", "not supported here")
        if isinstance(schema.get("pattern"), str):
            _check_pattern(schema["pattern"], f"{pointer}/pattern")
        target = self._target(schema, pointer, above)
        if target is not None and self._ref_alone:
            return target
        inlined = {
            keyword: self._keyword(keyword, value, _join(pointer, keyword), above)
            for keyword, value in schema.items()
            if keyword not in _DEFINITIONS and keyword != "$ref"
        }
        if target is None:
            return inlined
        if not inlined:
            return target
        return {**inlined, "allOf": [target, *inlined.get("allOf", [])]}

    def _keyword(self, keyword: str, value: Any, pointer: str, above: tuple[str, ...]) -> Any:
        if keyword in _LISTS and isinstance(value, list):
            return [self.inline(below, _join(pointer, at), above) for at, below in enumerate(value)]
        if keyword in _ONE:
            return self.inline(value, pointer, above)
        if keyword in _MAPS and isinstance(value, dict):
            if keyword == "patternProperties":
                for pattern in value:
                    _check_pattern(pattern, _join(pointer, pattern))
            # A dependency may also be a list of names.
            return {
                name: below if isinstance(below, list) else self.inline(below, _join(pointer, name), above)
                for name, below in value.items()
            }
        self._chars += len(json.dumps(value))
        if self._chars > _MAX_INLINED_CHARS:
            raise SchemaError(pointer, _GROWS)
        return value

    def _target(self, schema: dict[str, Any], pointer: str, above: tuple[str, ...]) -> Any:
        reference = schema.get("$ref")
        if reference is None:
            return None
        where = f"{pointer}/$ref"
        if not isinstance(reference, str) or not re.fullmatch(r"#(/.*)?", reference, re.DOTALL):
            raise SchemaError(where, "only references within the schema are followed, such as #/$defs/Choice")
        if reference in above or reference == "#":
            raise SchemaError(where, "it refers to itself; a question can't be nested without end")
        target: Any = self._root
        for part in reference[1:].split("/")[1:]:
            name = re.sub(r"%([0-9A-Fa-f]{2})", lambda code: chr(int(code[1], 16)), part)
            name = name.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and name in target:
                target = target[name]
            elif isinstance(target, list) and name.isdecimal() and int(name) < len(target):
                target = target[int(name)]
            else:
                raise SchemaError(where, f"{reference} does not exist")
        if not isinstance(target, dict | bool):
            raise SchemaError(where, f"{reference} is not a schema")
        return self.inline(target, reference[1:], (*above, reference))


def _join(pointer: str, part: Any) -> str:
    return pointer + _pointer([part])


def _check_pattern(pattern: str, pointer: str) -> None:
    """Refuse a pattern that Python can't read, or whose matching may take exponential time."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise SchemaError(pointer, f"the pattern can't be read: {error}") from None
    if _may_explode(pattern):
        raise SchemaError(pointer, "a repeated group may not itself hold repetitions or alternatives")


def _may_explode(pattern: str) -> bool:
    """Return whether a group that repeats without a small bound holds a repetition or an alternative.

    This also meets harmless patterns. Those whose time grows by a power of the text's length pass: texts are bounded,
    and what takes too long all the same is ended with its run, by `JOB_TIMEOUT`.
    """
    groups = [False]
    bare = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", bare)
    at = 0
    while at < len(bare):
        char = bare[at]
        if char == "(":
            groups.append(False)
        elif char == ")" and len(groups) > 1:
            inner = groups.pop()
            if inner and _repeats_much(bare, at + 1):
                return True
            groups[-1] = groups[-1] or inner
        elif char == "|" or _repeats_much(bare, at):
            groups[-1] = True
        at += 1
    return False


def _repeats_much(pattern: str, at: int) -> bool:
    match = _QUANTIFIER.match(pattern, at)
    if match is None:
        return False
    if match[0][0] in "*+":
        return True
    most = match[3] if match[2] else match[1]
    return not most or int(most) > 10


# One question's schema -----------------------------------------------------------------------------------------------


def _item(schema: Any, pointer: str) -> tuple[dict[str, Any], str]:
    """Return the schema of one question, and where it is, from a schema of one question or of the whole answer."""
    flat = _flatten(schema)
    if _is_list(flat) and not flat.get("properties"):
        return _item_of_list(flat, pointer)
    properties = flat.get("properties", {})
    lists = [name for name, below in properties.items() if _is_list(_flatten(below)) and _holds_objects(below)]
    for name in lists:
        if name == "questions" or len(properties) == 1:
            return _item_of_list(_flatten(properties[name]), _join(_join(pointer, "properties"), name))
    if not isinstance(schema, dict) or not properties:
        raise SchemaError(pointer, "it has no properties, so it describes no question")
    return schema, pointer


def _item_of_list(flat: dict[str, Any], pointer: str) -> tuple[dict[str, Any], str]:
    item = flat.get("items")
    pointer = _join(pointer, "items")
    if not isinstance(item, dict) or not _flatten(item).get("properties"):
        raise SchemaError(pointer, "it has no properties, so it describes no question")
    return item, pointer


def _is_list(flat: dict[str, Any]) -> bool:
    return flat.get("type") == "array" or ("type" not in flat and "items" in flat)


def _holds_objects(schema: Any) -> bool:
    return bool(_flatten(_flatten(schema).get("items")).get("properties"))


def _flatten(schema: Any) -> dict[str, Any]:
    """Return a schema with what its combinations have in common merged into it, loosely: for the model, not to check.

    Of `allOf` everything holds; of `anyOf` and `oneOf` any property may occur, and is required if it always is.
    """
    if not isinstance(schema, dict):
        return {}
    flat = {key: value for key, value in schema.items() if key not in {"allOf", "anyOf", "oneOf"}}
    for part in schema.get("allOf", []):
        _merge(flat, _flatten(part))
    for keyword in ("anyOf", "oneOf"):
        parts = [_flatten(part) for part in schema.get(keyword, [])]
        nullable = any(part.get("type") == "null" or part.get("const", 0) is None for part in parts)
        parts = [part for part in parts if part.get("type") != "null" and part.get("const", 0) is not None]
        if parts:
            _merge(flat, _either(parts))
        if nullable:
            flat["nullable"] = True
    return flat


def _merge(flat: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if key == "properties":
            known = flat.setdefault("properties", {})
            flat["properties"] = {**value, **known}
        elif key == "required" and isinstance(value, list):
            flat["required"] = list(dict.fromkeys([*flat.get("required", []), *value]))
        else:
            flat.setdefault(key, value)


def _either(parts: list[dict[str, Any]]) -> dict[str, Any]:
    objects = [part for part in parts if part.get("properties")]
    if objects:
        merged: dict[str, Any] = {"type": "object", "properties": {}}
        for name in dict.fromkeys(name for part in objects for name in part["properties"]):
            several = [part["properties"][name] for part in objects if name in part["properties"]]
            merged["properties"][name] = several[0] if several.count(several[0]) == len(several) else {"anyOf": several}
        merged["required"] = [
            name for name in objects[0].get("required", []) if all(name in part.get("required", []) for part in objects)
        ]
        return merged
    values = [_values(part) for part in parts]
    if all(found is not None for found in values):
        return {"enum": [value for found in values if found is not None for value in found]}
    types = {part.get("type") for part in parts if isinstance(part.get("type"), str)}
    if len(types) == 1:
        return {key: value for key, value in parts[0].items() if key in {"type", "items", "description", "format"}}
    return next((part for part in parts if part.get("type") == "string"), parts[0])


def _values(schema: dict[str, Any]) -> list[Any] | None:
    """Return the values that a schema lists, or None if it lists none."""
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) else None


# The model's schema --------------------------------------------------------------------------------------------------


def _model(schema: Any, pointer: str, depth: int) -> dict[str, Any]:
    """Return what Gemini accepts of a schema: types, nesting, descriptions and short lists of texts."""
    if depth > _MAX_ITEM_DEPTH:
        raise SchemaError(pointer, f"questions nested deeper than {_MAX_ITEM_DEPTH} levels can't be stored")
    flat = _flatten(schema)
    kind, nullable = _kind(flat)
    model: dict[str, Any] = {"type": kind}
    description = flat.get("description") or flat.get("title")
    if isinstance(description, str):
        model["description"] = description[:_MAX_DESCRIPTION_CHARS]
    if nullable:
        model["nullable"] = True
    if kind == "object":
        model.update(_model_object(flat, pointer, depth))
    elif kind == "array":
        model["items"] = _model_items(flat, pointer, depth)
    elif kind == "string":
        values = [value for value in _values(flat) or [] if value is not None]
        # Gemini takes lists of texts only, and no empty text in them.
        if values and len(values) <= _MAX_ENUM and all(isinstance(value, str) and value for value in values):
            model["enum"] = list(dict.fromkeys(values))
        elif flat.get("format") == "date-time":
            model["format"] = "date-time"
    return model


def _kind(flat: dict[str, Any]) -> tuple[str, bool]:
    named = flat.get("type")
    kinds = [named] if isinstance(named, str) else list(named) if isinstance(named, list) else []
    values = _values(flat)
    nullable = "null" in kinds or flat.get("nullable") is True or (values is not None and None in values)
    kinds = [kind for kind in kinds if kind != "null"] or list(_guess(flat, values))
    # Of several types the one that can express most.
    for kind in ("object", "array", "string", "number", "integer", "boolean"):
        if kind in kinds:
            return kind, nullable
    return "string", nullable


def _guess(flat: dict[str, Any], values: list[Any] | None) -> Iterator[str]:
    if flat.get("properties"):
        yield "object"
    elif "items" in flat or "prefixItems" in flat:
        yield "array"
    for value in values or []:
        if isinstance(value, bool):
            yield "boolean"
        elif isinstance(value, int | float):
            yield "integer" if isinstance(value, int) else "number"
        elif isinstance(value, str):
            yield "string"
    if {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"} & flat.keys():
        yield "number"


def _model_object(flat: dict[str, Any], pointer: str, depth: int) -> dict[str, Any]:
    required = [name for name in flat.get("required", []) if isinstance(name, str)]
    properties = {}
    for name, below in flat.get("properties", {}).items():
        where = _join(_join(pointer, "properties"), name)
        bad = _bad_name(name)
        if bad:
            raise SchemaError(where, bad)
        if below is False:
            continue
        if _kind(_flatten(below))[0] == "object" and not _flatten(below).get("properties"):
            if name in required:
                raise SchemaError(where, "the model can't be asked for an object whose properties are not listed")
            continue
        properties[name] = _model(below, where, depth + 1)
    missing = next((name for name in required if name not in flat.get("properties", {})), None)
    if missing is not None:
        raise SchemaError(_join(pointer, "required"), f"{missing!r} is required, but it is not among the properties")
    model: dict[str, Any] = {"properties": properties}
    if required:
        model["required"] = [name for name in required if name in properties]
    return model


def _model_items(flat: dict[str, Any], pointer: str, depth: int) -> dict[str, Any]:
    items = flat.get("items")
    where = _join(pointer, "items")
    if not isinstance(items, dict):
        # In older drafts prefixItems is no keyword, and may hold anything.
        several = next((value for value in (flat.get("prefixItems"), items) if isinstance(value, list) and value), None)
        items = several[0] if several else {"type": "string"}
    kind = _kind(_flatten(items))[0]
    if kind == "array":
        raise SchemaError(where, "a list directly within a list can't be stored in Firestore")
    if kind == "object" and not _flatten(items).get("properties"):
        raise SchemaError(where, "the model can't be asked for an object whose properties are not listed")
    return _model(items, where, depth + 1)


def _wrapped(model: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the whole answer, with the evidence before what rests on it."""
    properties = {
        **{name: model["properties"].get(name, field) for name, field in SOURCE_FIELDS.items()},
        **model["properties"],
    }
    item = {
        **{key: value for key, value in model.items() if key != "nullable"},
        "properties": properties,
        # Required fields are written in this order.
        "required": list(dict.fromkeys([*SOURCE_FIELDS, *model.get("required", [])])),
    }
    return {
        "type": "object",
        "properties": {"questions": {"type": "array", "items": item}},
        "required": ["questions"],
    }
