"""Puts questions into the form that a response schema asks for, whatever schema that is.

The names of the fields tell what to put into them; where they tell nothing, any valid value of the right type does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from superexam_rq.sandbox.gemini.questions import Question, number

LETTERS = "ABCDEFGHIJ"

DEFAULT_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["questions"],
    "properties": {
        "questions": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    "sourcePage",
                    "sourceQuote",
                    "questionText",
                    "choices",
                    "correctAnswers",
                    "explanation",
                ],
                "properties": {
                    "sourcePage": {"type": "integer"},
                    "sourceQuote": {"type": "string"},
                    "questionText": {"type": "string"},
                    "choices": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["index", "text"],
                            "properties": {"index": {"type": "string"}, "text": {"type": "string"}},
                        },
                    },
                    "correctAnswers": {"type": "array", "items": {"type": "string"}},
                    "explanation": {"type": "string"},
                },
            },
        }
    },
}
"""What is answered when the request brings no schema: the service's own form of an answer."""

_TYPES = {1: "string", 2: "number", 3: "integer", 4: "boolean", 5: "array", 6: "object", 7: "null"}
_OF_PAGE = frozenset({"page", "pages", "pagenumber", "sourcepage", "sourcepages", "pageindex", "pageno"})
_OF_QUOTE = frozenset({"quote", "sourcequote", "evidence", "excerpt", "sourcetext", "context", "passage", "source"})
_OF_TEXT = frozenset({"question", "questiontext", "text", "stem", "prompt", "statement", "title", "q", "front"})
_OF_CHOICES = frozenset({"choices", "options", "answers", "alternatives", "answeroptions", "possibleanswers"})
_OF_RIGHT = frozenset(
    {"correctanswers", "correctanswer", "correct", "answer", "rightanswer", "rightanswers", "correctchoice",
     "correctchoices", "correctoption", "correctoptions", "correctindex", "answerindex", "correctindexes",
     "correctanswerindex", "solution", "istrue", "iscorrect", "a", "back"}
)  # fmt: skip
_OF_WHY = frozenset({"explanation", "rationale", "reason", "feedback", "why", "justification"})
_OF_LETTER = frozenset({"index", "label", "letter", "id", "key", "name", "option", "value"})
_ONE_CHOICE = re.compile(r"(?:option|choice|answer)?([a-e1-5])")


def fill(schema: Mapping[str, Any], questions: Sequence[Question]) -> Any:
    """Answer in the form of `schema` with the material of `questions`.

    `schema` is an OpenAPI subset (Gemini's `responseSchema`, types as names or as numbers) or a JSON Schema.
    An array at the top, or arrays of objects in an object at the top, get one item for each question; any
    other schema gets one value, made from the first question.
    """
    return _Form(schema).answer(questions)


class _Form:
    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.root = schema

    def answer(self, questions: Sequence[Question]) -> Any:
        schema = self.resolve(self.root)
        if _kind(schema) == "array":
            return [self.value(schema.get("items") or {}, "", q, ()) for q in questions]
        if _kind(schema) != "object":
            return self.value(schema, "", questions[0], ()) if questions else _nothing(schema)
        lists = [
            name
            for name, part in _properties(schema)
            if _kind(self.resolve(part)) == "array"
            and _kind(self.resolve(self.resolve(part).get("items") or {})) == "object"
            and _plain(name) not in _OF_CHOICES
        ]
        if not lists:
            return self.value(schema, "", questions[0], ()) if questions else {}
        return {
            name: [self.value(self.resolve(part)["items"], "", q, ()) for q in questions]
            if name in lists
            else self.value(part, name, questions[0], ())
            if questions
            else _nothing(self.resolve(part))
            for name, part in _properties(schema)
        }

    def resolve(self, schema: Any) -> Mapping[str, Any]:
        for _ in range(16):
            if not isinstance(schema, Mapping):
                return {}
            reference = schema.get("$ref") or schema.get("ref")
            union = schema.get("anyOf") or schema.get("oneOf") or schema.get("any_of") or schema.get("allOf")
            if isinstance(reference, str):
                target: Any = self.root
                for step in reference.lstrip("#/").split("/"):
                    if step:
                        target = target.get(step, {}) if isinstance(target, Mapping) else {}
                schema = target
            elif union and "properties" not in schema:
                schema = next((part for part in union if _kind(part) != "null"), union[0])
            else:
                return schema
        return {}

    def value(self, schema: Any, name: str, q: Question, siblings: Sequence[tuple[str, Any]], depth: int = 0) -> Any:
        schema = self.resolve(schema)
        if "const" in schema:
            return schema["const"]
        plain, kind = _plain(name), _kind(schema)
        if depth > 8:
            return _nothing(schema)
        if schema.get("enum"):
            return self.choose(list(schema["enum"]), plain, q)
        if kind == "object":
            inside = list(_properties(schema))
            return {key: self.value(part, key, q, inside, depth + 1) for key, part in inside}
        if kind == "array":
            return self.items(schema, plain, q, siblings, depth)
        if kind == "boolean":
            return q.statement_holds if _has_no_choices(siblings, self) else number(q.quote, plain) % 2 == 0
        if kind in ("integer", "number"):
            if plain in _OF_PAGE:
                return q.page
            if plain in _OF_RIGHT:
                return q.right[0]
            return 1 + number(q.quote, plain) % 5
        if kind == "null":
            return None
        return self.string(plain, schema, q, siblings)

    def choose(self, values: list[Any], plain: str, q: Question) -> Any:
        if plain in _OF_RIGHT and [str(v).upper() for v in values[:2]] == ["A", "B"]:
            return values[min(q.right[0], len(values) - 1)]
        by_kind = {"single": len(q.right) == 1, "multi": len(q.right) > 1}
        for value in values:
            if plain in ("type", "kind", "questiontype") and any(
                holds and str(value).lower().startswith(word) for word, holds in by_kind.items()
            ):
                return value
        if plain in _OF_RIGHT and sorted(str(v).lower() for v in values) == ["false", "true"]:
            return next(v for v in values if str(v).lower() == str(q.statement_holds).lower())
        return values[number(q.quote, plain) % len(values)]

    def items(
        self,
        schema: Mapping[str, Any],
        plain: str,
        q: Question,
        siblings: Sequence[tuple[str, Any]],
        depth: int,
    ) -> list[Any]:
        item = self.resolve(schema.get("items") or {})
        if _kind(item) == "object":
            if plain in _OF_CHOICES or any(_plain(key) in _OF_LETTER for key, _ in _properties(item)):
                return [self.choice(item, i, q, depth) for i in range(len(q.choices))]
            return [self.value(item, "", q, (), depth + 1)]
        if _kind(item) in ("integer", "number"):
            return [q.page] if plain in _OF_PAGE else list(q.right) if plain in _OF_RIGHT else [1]
        if item.get("enum"):
            return [self.choose(list(item["enum"]), plain, q)]
        if _kind(item) != "string":
            return [self.value(item, plain, q, siblings, depth + 1)]
        if plain in _OF_RIGHT:
            return [LETTERS[i] if self.lettered(siblings) else q.choices[i] for i in q.right]
        if plain in _OF_CHOICES:
            return list(q.choices)
        return list(q.right_texts)

    def choice(self, item: Mapping[str, Any], i: int, q: Question, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, part in _properties(item):
            plain, kind = _plain(name), _kind(self.resolve(part))
            if kind == "boolean":
                made[name] = i in q.right
            elif kind in ("integer", "number"):
                made[name] = i
            elif kind == "string" and plain in _OF_WHY:
                made[name] = f"{'Right' if i in q.right else 'Wrong'}: the sentence is “{q.quote}”"
            elif kind == "string" and plain in _OF_LETTER and self.has_text(item, name):
                made[name] = LETTERS[i]
            elif kind == "string" and not self.resolve(part).get("enum"):
                made[name] = q.choices[i]
            else:
                made[name] = self.value(part, name, q, (), depth + 1)
        return made

    def has_text(self, item: Mapping[str, Any], name: str) -> bool:
        """Whether another string of a choice can hold its text, so that `name` may hold its letter."""
        order = ["text", "content", "value", "option", "name", "label"]
        strings = [_plain(key) for key, part in _properties(item) if _kind(self.resolve(part)) == "string"]
        text = next((key for key in order if key in strings), None)
        return text is not None and text != _plain(name)

    def lettered(self, siblings: Sequence[tuple[str, Any]]) -> bool:
        """Whether the choices beside a field carry letters, so that the right answers are named by letter."""
        for name, part in siblings:
            if _plain(name) in _OF_CHOICES and _kind(self.resolve(part)) == "array":
                item = self.resolve(self.resolve(part).get("items") or {})
                return any(
                    _plain(key) in _OF_LETTER and self.has_text(item, key)
                    for key, value in _properties(item)
                    if _kind(self.resolve(value)) == "string"
                )
        return sum(_ONE_CHOICE.fullmatch(_plain(name)) is not None for name, _ in siblings) > 1

    def string(self, plain: str, schema: Mapping[str, Any], q: Question, siblings: Sequence[tuple[str, Any]]) -> str:
        if schema.get("format") in ("date-time", "date"):
            return "2000-01-01T00:00:00Z" if schema["format"] == "date-time" else "2000-01-01"
        one = _ONE_CHOICE.fullmatch(plain)
        several = sum(_ONE_CHOICE.fullmatch(_plain(name)) is not None for name, _ in siblings) > 1
        if one is not None and several:
            place = "abcde".find(one[1]) if one[1].isalpha() else int(one[1]) - 1
            return q.choices[place] if place < len(q.choices) else f"none of these {place}"
        if plain in _OF_PAGE:
            return str(q.page)
        if plain in _OF_QUOTE:
            return q.quote
        if plain in _OF_WHY:
            return q.explanation
        if plain in _OF_RIGHT:
            return LETTERS[q.right[0]] if self.lettered(siblings) else ", ".join(q.right_texts)
        if plain in _OF_TEXT:
            truth = _has_no_choices(siblings, self) and any(
                _kind(self.resolve(part)) == "boolean" for _, part in siblings
            )
            return f"True or false: {q.statement}" if truth else q.text
        return q.right_texts[0]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _kind(schema: Any) -> str:
    """Name the type of a schema in lower case; a missing type is read off the other keywords."""
    if not isinstance(schema, Mapping):
        return "string"
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    if isinstance(kind, int):
        return _TYPES.get(kind, "string")
    if isinstance(kind, str) and kind.lower() in _TYPES.values():
        return kind.lower()
    return "object" if "properties" in schema else "array" if "items" in schema else "string"


def _properties(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the properties of an object in the order a model writes them: the required ones first."""
    properties = schema.get("properties") or {}
    first = [name for name in schema.get("required") or () if name in properties]
    for name in (*first, *(name for name in properties if name not in first)):
        yield name, properties[name]


def _has_no_choices(siblings: Sequence[tuple[str, Any]], form: _Form) -> bool:
    return not any(_plain(name) in _OF_CHOICES and _kind(form.resolve(part)) == "array" for name, part in siblings)


def _nothing(schema: Mapping[str, Any]) -> Any:
    empty: dict[str, Any] = {
        "object": {},
        "array": [],
        "boolean": False,
        "integer": 0,
        "number": 0,
        "null": None,
    }
    return empty.get(_kind(schema), "")
