"""What `caller_schema` promises: which schemas are refused and where, what the model gets, what is checked."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from superexam_rq.caller_schema import CallerSchema, SchemaError

CARD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "term": {"type": "string", "minLength": 3, "maxLength": 60, "pattern": "^[A-Z]"},
        "weight": {"type": "number", "minimum": 0, "maximum": 1},
        "level": {"enum": ["easy", "hard"]},
        "hints": {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
    },
    "required": ["term", "hints"],
    "additionalProperties": False,
}
GOOD = {"term": "Cell", "weight": 0.5, "level": "easy", "hints": ["small"]}

# What Gemini's Schema message has, less what makes it refuse a schema.
ACCEPTED = {"type", "format", "description", "nullable", "enum", "items", "properties", "required"}


def one_of(schema: CallerSchema) -> dict[str, Any]:
    """Return what the model is asked for: the schema of one question."""
    item: dict[str, Any] = schema.response_schema["properties"]["questions"]["items"]
    return item


def assert_accepted(model: dict[str, Any]) -> None:
    """Assert that a schema is in the form that the model takes."""
    assert set(model) <= ACCEPTED
    assert model["type"] in {"string", "number", "integer", "boolean", "array", "object"}
    assert ("items" in model) == (model["type"] == "array")
    assert ("properties" in model) == (model["type"] == "object")
    assert all(isinstance(value, str) and value for value in model.get("enum", ["x"]))
    assert "enum" not in model or model["type"] == "string"
    assert set(model.get("required", [])) <= set(model.get("properties", {}))
    if model["type"] == "array":
        assert model["items"]["type"] != "array"
        assert_accepted(model["items"])
    if model["type"] == "object":
        assert model["properties"]
        for below in model["properties"].values():
            assert_accepted(below)


@pytest.mark.parametrize(
    "given",
    [
        CARD,
        json.dumps(CARD),
        {"type": "array", "items": CARD},
        {"type": "array", "items": CARD, "minItems": 5},
        {"type": "object", "properties": {"questions": {"type": "array", "items": CARD}}},
        {"type": "object", "properties": {"cards": {"type": "array", "items": CARD}}, "required": ["cards"]},
        {"properties": {"title": {"type": "string"}, "questions": {"items": CARD}}},
        {"$ref": "#/$defs/Card", "$defs": {"Card": CARD}},
        {"type": "array", "items": {"$ref": "#/$defs/Card"}, "$defs": {"Card": CARD}},
        {"type": "array", "items": {"$ref": "#/components/a~1b%20c"}, "components": {"a/b c": CARD}},
        {"allOf": [CARD]},
        {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://example.org/card.json", **CARD},
        {"$schema": "http://json-schema.org/draft-04/schema#", "id": "https://example.org/card.json", **CARD},
    ],
)
def test_reads_a_question_or_a_whole_answer(given: Any) -> None:
    """However the schema is written, the model is asked for the same and the same items pass."""
    schema = CallerSchema.parse(given)
    assert schema.response_schema == CallerSchema.parse(CARD).response_schema
    assert schema.check(GOOD) is None
    assert schema.check({**GOOD, "weight": 2}) == "/weight: 2 is greater than the maximum of 1"
    assert json.loads(schema.text) == (json.loads(given) if isinstance(given, str) else given)


def test_a_question_may_hold_one_list_among_others() -> None:
    """Choices are no whole answer."""
    choices = {"type": "array", "items": {"type": "object", "properties": {"text": {"type": "string"}}}}
    schema = CallerSchema.parse({"properties": {"stem": {"type": "string"}, "choices": choices}})
    assert list(one_of(schema)["properties"]) == ["sourcePage", "sourceQuote", "stem", "choices"]


def test_the_model_gets_types_and_short_lists_only() -> None:
    """No bound, no pattern, no keyword that it refuses; the evidence comes first in the order of writing."""
    item = one_of(CallerSchema.parse(CARD))
    assert_accepted(item)
    assert item["required"] == ["sourcePage", "sourceQuote", "term", "hints"]
    assert item["properties"]["sourcePage"]["type"] == "integer"
    assert item["properties"]["level"] == {"type": "string", "enum": ["easy", "hard"]}
    assert item["properties"]["term"] == {"type": "string"}


def test_the_prompt_carries_the_rest() -> None:
    """Bounds and patterns stand in the prompt, as compact JSON."""
    notes = CallerSchema.parse(CARD).prompt_notes
    assert json.dumps(CARD["properties"]["term"], separators=(",", ":")) in notes


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ({"type": ["string", "null"]}, {"type": "string", "nullable": True}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"type": "integer", "nullable": True}),
        ({"type": "string", "nullable": True}, {"type": "string", "nullable": True}),
        ({"const": "x"}, {"type": "string", "enum": ["x"]}),
        ({"oneOf": [{"const": "x"}, {"const": "y"}]}, {"type": "string", "enum": ["x", "y"]}),
        ({"enum": [1, 2]}, {"type": "integer"}),
        ({"enum": ["x", ""]}, {"type": "string"}),
        ({"enum": ["x", None]}, {"type": "string", "nullable": True, "enum": ["x"]}),
        ({"enum": [f"x{at}" for at in range(101)]}, {"type": "string"}),
        ({"type": ["integer", "string"]}, {"type": "string"}),
        ({"anyOf": [{"type": "number"}, {"type": "string"}]}, {"type": "string"}),
        ({"type": "string", "format": "date-time"}, {"type": "string", "format": "date-time"}),
        ({"type": "string", "format": "uuid"}, {"type": "string"}),
        ({"title": "A", "type": "boolean"}, {"type": "boolean", "description": "A"}),
        ({"minimum": 3}, {"type": "number"}),
        ({}, {"type": "string"}),
        (True, {"type": "string"}),
        ({"type": "array"}, {"type": "array", "items": {"type": "string"}}),
        ({"prefixItems": [{"type": "integer"}]}, {"type": "array", "items": {"type": "integer"}}),
        (
            {"anyOf": [{"properties": {"a": {"type": "string"}}, "required": ["a"]}, {"properties": {"b": {}}}]},
            {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
        ),
        (
            {"allOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}, "required": ["b"]}]},
            {
                "type": "object",
                "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "required": ["a", "b"],
            },
        ),
    ],
)
def test_loosens_what_the_model_does_not_take(given: Any, model: dict[str, Any]) -> None:
    """What can't be said becomes looser, never stricter than the original."""
    item = one_of(CallerSchema.parse({"properties": {"x": given}}))
    assert_accepted(item)
    assert item["properties"]["x"] == model


@pytest.mark.parametrize(
    "given",
    [
        {"enum": [f"x{at}" for at in range(1000)]},
        {"enum": [at / 2 for at in range(1000)]},
        {"anyOf": [{"type": "string", "maxLength": at} for at in range(200)]},
        {"type": "string", "examples": [{}] * 40},
    ],
)
def test_takes_long_lists_of_one_kind(given: Any) -> None:
    """Only lists of mixed values have a bound: to find one that comes twice takes time by the square."""
    assert CallerSchema.parse({"properties": {"x": given}})


@pytest.mark.parametrize("value", [5, True, {"type": "string"}, []])
@pytest.mark.parametrize(
    "draft", ["http://json-schema.org/draft-07/schema#", "http://json-schema.org/draft-04/schema#"]
)
def test_older_drafts_know_no_prefix_items(value: Any, draft: str) -> None:
    """There the word may stand for anything."""
    parsed = CallerSchema.parse({"$schema": draft, "properties": {"x": {"type": "array", "prefixItems": value}}})
    assert one_of(parsed)["properties"]["x"] == {"type": "array", "items": {"type": "string"}}


DEEP: dict[str, Any] = {"type": "string"}
for _ in range(16):
    DEEP = {"type": "object", "properties": {"x": DEEP}}
TOO_DEEP: Any = {}
for _ in range(2000):
    TOO_DEEP = {"not": TOO_DEEP}
LONG = {"$ref": "#/$defs/x"}
LAUGHS = {f"d{at}": {"allOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 10} for at in range(9)} | {"d9": {}}


@pytest.mark.parametrize(
    ("given", "pointer", "words"),
    [
        ("not json", "", "not JSON"),
        ("[" * 100_000, "", "nested too deeply|longer"),
        ('{"minimum": NaN}', "", "NaN"),
        ('{"minimum": 1e999}', "", "too large"),
        ('{"title": "a", "title": "b"}', "", "given twice"),
        ("[]", "", "JSON object"),
        ('{"title": "\\ud800"}', "", "no Unicode"),
        ("true", "", "JSON object"),
        (7, "", "JSON object"),
        ({}, "", "no properties"),
        ({"type": "string"}, "", "no properties"),
        ({"type": "object"}, "", "no properties"),
        ({"type": "array", "items": {"type": "string"}}, "/items", "no properties"),
        ({"properties": {"questions": {"type": "array"}}, "type": "nothing"}, "/type", "nothing"),
        ({"properties": {"x": {"type": "strin"}}}, "/properties/x/type", "strin"),
        ({"properties": {"a/b~c": {"minLength": -1}}}, "/properties/a~1b~0c/minLength", "minimum"),
        ({"properties": {"x": {"pattern": "("}}}, "/properties/x/pattern", "pattern"),
        ({"properties": {"x": {"pattern": "^(a+)+$"}}}, "/properties/x/pattern", "repeated group"),
        ({"properties": {"x": {"pattern": "(a|a)*b"}}}, "/properties/x/pattern", "repeated group"),
        ({"properties": {"x": {"pattern": "((\\w*)x){2,}"}}}, "/properties/x/pattern", "repeated group"),
        ({"properties": {"x": {}}, "patternProperties": {"(x*)*": {}}}, "/patternProperties/(x*)*", "repeated group"),
        ({"properties": {"x": {"$ref": "https://example.org/x.json"}}}, "/properties/x/$ref", "within the schema"),
        ({"properties": {"x": {"$ref": "file:///etc/passwd"}}}, "/properties/x/$ref", "within the schema"),
        ({"properties": {"x": {"$ref": "#/$defs/none"}}}, "/properties/x/$ref", "does not exist"),
        ({"properties": {"x": {"$ref": "#/title"}}, "title": "t"}, "/properties/x/$ref", "not a schema"),
        ({"properties": {"x": {"$ref": "#"}}}, "/properties/x/$ref", "itself"),
        (
            {"properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}}}},
            "/$defs/n/properties/n/$ref",
            "itself",
        ),
        ({"properties": {"x": {"$dynamicRef": "#x"}}}, "/properties/x/$dynamicRef", "not supported"),
        ({"properties": {"x": {"$id": "https://example.org/y"}}}, "/properties/x/$id", "not supported"),
        ({"$schema": "https://example.org/mine", "properties": {"x": {}}}, "/$schema", "unknown"),
        ({"properties": {"x": {"$ref": "#/odd"}}, "odd": {"properties": []}}, "/properties/x/properties", "object"),
        ({"properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": LAUGHS}, None, "too large"),
        (
            {"properties": {f"x{at}": LONG for at in range(100)}, "$defs": {"x": {"title": "x" * 9_000}}},
            None,
            "too large",
        ),
        ({"properties": {"x": {"enum": [*range(32), "x"]}}}, "", "more than 32 values"),
        ({"properties": {"x": {"enum": [{}] * 33}}}, "", "more than 32 values"),
        ({"properties": {"x": {}}, "dependencies": {"anyOf": [{}] * 33}}, "", "more than 32 values"),
        ({"properties": {"x": {"description": "x" * 60_000}}}, "", "longer"),
        (TOO_DEEP, "", "nested"),
        (DEEP, None, "nested deeper"),
        ({"properties": {"__x__": {}}}, "/properties/__x__", "named"),
        ({"properties": {"": {}}}, "/properties/", "named"),
        ({"properties": {"x": {"items": {"type": "array"}}}}, "/properties/x/items", "list directly within a list"),
        (
            {"properties": {"x": {"type": "object"}}, "required": ["x"]},
            "/properties/x",
            "properties are not listed",
        ),
        ({"properties": {"x": {}}, "required": ["y"]}, "/required", "'y' is required"),
    ],
)
def test_refuses_an_unusable_schema_and_says_where(given: Any, pointer: str | None, words: str) -> None:
    """The error names the place as a JSON Pointer, and what is wrong there."""
    with pytest.raises(SchemaError, match=words) as caught:
        CallerSchema.parse(given)
    if pointer is not None:
        assert caught.value.pointer == pointer
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "pattern", ["^[A-Z]+(-[a-z]{2})?$", r"^\d{1,3}(\.\d{1,3}){3}$", "^(yes|no)$", r"[(a+)+]", r"\(a+\)+", "^.*foo.*$"]
)
def test_takes_patterns_that_end(pattern: str) -> None:
    """Ordinary patterns are no reason to refuse a schema."""
    assert CallerSchema.parse({"properties": {"x": {"pattern": pattern}}}).response_schema


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"term": "ce"}, "/term"),
        ({"term": "cell"}, "/term"),
        ({"hints": []}, "/hints"),
        ({"hints": ["a", "a"]}, "/hints"),
        ({"level": "odd"}, "/level"),
        ({"extra": 1}, "Additional properties"),
        ({"weight": "1"}, "/weight"),
        ({"weight": 10**400}, "64 bits"),
        ({"weight": float("inf")}, "not finite"),
        ({"term": "X" * 10_001}, "too long"),
        ({"hints": [["a"]]}, "list directly within a list"),
        ({"__x__": 1}, "named"),
    ],
)
def test_checks_an_item_against_the_original(changes: dict[str, Any], words: str) -> None:
    """Bounds, patterns and lists count, and so does what Firestore can't store."""
    found = CallerSchema.parse(CARD).check({**GOOD, **changes})
    assert found is not None
    assert words in found


def test_the_evidence_is_no_part_of_an_item() -> None:
    """The service asked for it on top, so a schema that allows nothing else still fits; what it names stays."""
    found = {**GOOD, "sourcePage": 2, "sourceQuote": "A cell."}
    schema = CallerSchema.parse(CARD)
    assert schema.check(found) is None
    assert schema.own_fields(found) == GOOD
    own = CallerSchema.parse(
        {"allOf": [{"properties": {"sourcePage": {"type": "string"}}, "required": ["sourcePage"]}]}
    )
    assert one_of(own)["properties"]["sourcePage"] == {"type": "string"}
    assert own.check({"sourcePage": 2}) is not None
    assert own.own_fields({"sourcePage": "2", "sourceQuote": "x"}) == {"sourcePage": "2"}


def test_a_slow_pattern_sees_short_texts_only() -> None:
    """A pattern of quadratic time is held by the bound on every text."""
    schema = CallerSchema.parse({"properties": {"x": {"type": "string", "pattern": "a*b"}}})
    start = time.monotonic()
    assert schema.check({"x": "a" * 1_000_000}) is not None
    assert schema.check({"x": "a" * 10_000}) is not None
    assert time.monotonic() - start < 5


names = st.sampled_from(["a", "b", "sourcePage", "id", "questions"])
leaf = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer", "minimum": 0},
        {"type": ["number", "null"]},
        {"enum": ["x", "y"]},
        {"const": 3},
        {"$ref": "#/$defs/d"},
        True,
        {},
    ]
)
schemas = st.recursive(
    leaf,
    lambda below: st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": below}),
        st.fixed_dictionaries(
            {"properties": st.dictionaries(names, below, min_size=1, max_size=3)},
            optional={"required": st.lists(names, max_size=2, unique=True), "type": st.just("object")},
        ),
        st.fixed_dictionaries(
            {}, optional={word: st.lists(below, min_size=1, max_size=3) for word in ("allOf", "anyOf", "oneOf")}
        ),
    ),
    max_leaves=10,
)


@given(schemas)
def test_any_schema_is_refused_or_made_fit_for_the_model(given: Any) -> None:
    """Whatever is accepted gives the model a schema that it takes, and agrees with the original on what fits."""
    root = {"$defs": {"d": {"type": "string", "maxLength": 5}}, **(given if isinstance(given, dict) else {})}
    try:
        schema = CallerSchema.parse(root)
    except SchemaError:
        return
    assert_accepted(schema.response_schema)
    Draft202012Validator.check_schema(schema.item)
    for value in ({}, {"a": "x"}, {"a": 3, "b": "y"}, {"id": None, "a": ["x"]}):
        if schema.item == {name: below for name, below in root.items() if name != "$defs"}:
            assert (schema.check(value) is None) == Draft202012Validator(root).is_valid(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda below: (
            st.lists(below, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "properties", "items", "$ref", "allOf", "required", "enum", "x"])
                | st.text(max_size=3),
                below,
                max_size=4,
            )
        ),
        max_leaves=15,
    )
)
def test_any_json_is_a_schema_or_refused(given: Any) -> None:
    """No JSON makes it fail in another way."""
    with contextlib.suppress(SchemaError):
        assert_accepted(CallerSchema.parse(given).response_schema)
