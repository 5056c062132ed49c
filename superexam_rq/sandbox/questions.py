"""Makes exam questions from the text of pages, and puts them into the form that a response schema asks for.

Pure functions: the same pages and the same schema give the same answer, on every machine. What a call or a
PDF is stays in `gemini.py`. The questions are cloze questions (a sentence with a term left out, other terms
of the same pages as wrong choices): enough to try the service with, and no claim to a model's quality.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

MARK = "(made by the sandbox, not by Gemini)"
LETTERS = "ABCDEFGHIJ"
BLANK = "_____"

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

_WORD = re.compile(r"[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”\u2019)]?\s+(?=[\"“\u2018(]?[^\W\d_a-z])")
# What stands between a determiner or a preposition and a verb or a comma is mostly a noun.
_AFTER = r"\b(?:the|a|an|of|its|their|this|each|every|into|by|from|with|between)\s+"
_NOUN = re.compile(
    _AFTER + r"([a-z]{4,})\b"
    r"(?=[,.;:)]|\s+(?:is|are|was|were|of|in|on|and|or|that|which|to|from|by|has|have|can|at|with|for|as)\b)"
)
_NOUN_AFTER_ADJECTIVE = re.compile(
    _AFTER + r"[a-z]{3,12}\s+([a-z]{4,})\b(?=[,.;:)]|\s+(?:is|are|was|were|of|and|that|which)\b)"
)
_NAME = re.compile(r"(?<=[a-z,;:] )[A-Z][a-z]{3,}\b")
# What a text defines is what a reader should remember.
_DEFINED = re.compile(r"\bcalled (?:an? |the )?([a-z]{4,}(?: [a-z]{4,})?)(?=[,.;])")
_STOP_WORDS = """
    about above after again also among another because been before being below between both called
    cannot case chapter could does done down during each either else even ever every example figure
    first following from further given have having here however instead into itself just kind last least
    less like made make makes many might more most much must need needs next none often once only other
    others otherwise over page part rather same second section several shall should since some such
    table than that their them then there therefore these they thing things this those through thus time
    under unless until upon used user uses using value very want well were what when where whether which
    while whose will with within without would your
"""
_STOP = frozenset(_STOP_WORDS.split())
_LEANING = "and but hence her here his it its she so such that their there these they this those thus also he"
_LEANS_BACK = frozenset(_LEANING.split())
_EXPLAINS = re.compile(r"\b(?:is the|are the|is an?|because|means|consists? of|causes?|since)\b")
_UNUSABLE = re.compile(r"[\ufffe\ufffd\x02_={}|\\]|\. ?\.|//")


@dataclass(frozen=True)
class Question:
    """One question with what it rests on.

    `page` counts from 1; `quote` is the whole sentence, `statement` the same sentence with the term or, if
    `statement_holds` is false, with a wrong one; `right` holds places in `choices`, from 0.
    """

    page: int
    quote: str
    text: str
    choices: tuple[str, ...]
    right: tuple[int, ...]
    explanation: str
    statement: str
    statement_holds: bool

    @property
    def right_texts(self) -> tuple[str, ...]:
        """The texts of the right choices."""
        return tuple(self.choices[i] for i in self.right)


def fold(text: str) -> str:
    """Collapse every run of white space to one space, as quotes and pages are compared."""
    return " ".join(text.split())


def number(*parts: object) -> int:
    """Draw a number that depends on `parts` alone, the same in every process."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=6).digest())


def sentences(page: str) -> list[str]:
    """List the whole sentences of a page that a question can be made of, white space collapsed.

    Headings, lists of numbers, code, cut sentences and hyphenated line ends are left out.
    """
    lines = [line.strip() for line in page.splitlines()]
    width = max((len(line) for line in lines), default=0)
    blocks: list[list[str]] = [[]]
    for line in lines:
        if not line:
            blocks.append([])
            continue
        blocks[-1].append(line)
        # A short line ends a paragraph or is a heading, which must not head the next sentence.
        if len(line) < 0.72 * width:
            blocks.append([])
    found: list[str] = []
    for block in blocks:
        found.extend(s.strip() for s in _SENTENCE_END.split(fold(" ".join(block))) if _usable(s.strip()))
    return found


def _usable(sentence: str) -> bool:
    if not 45 <= len(sentence) <= 280 or sentence[-1] not in ".!?" or not sentence[0].isupper():
        return False
    if _UNUSABLE.search(sentence):
        return False
    if sentence.count("(") != sentence.count(")"):
        return False
    letters = sum(c.isalpha() or c == " " for c in sentence)
    return letters >= 0.88 * len(sentence) and len(_WORD.findall(sentence)) >= 8


def terms(text: str) -> Counter[str]:
    """Count the words of a text that look like nouns or names; few of them if it is not English."""
    counted = Counter(
        word
        for pattern in (_NOUN, _NOUN_AFTER_ADJECTIVE)
        for word in pattern.findall(text)
        if word not in _STOP and not word.endswith(("ed", "ing", "ly"))
    )
    counted.update(word for word in _NAME.findall(text) if word.lower() not in _STOP)
    return counted


def _any_long_words(text: str) -> Counter[str]:
    return Counter(w for w in _WORD.findall(text) if len(w) >= 6 and w.islower() and w not in _STOP)


@dataclass(frozen=True)
class _Terms:
    """The words to choose from: how often each occurs, those of one page, those the text defines."""

    everywhere: Mapping[str, int]
    here: Collection[str]
    defined: Collection[str]


def make_questions(pages: Sequence[str], most: int = 20) -> list[Question]:
    """Make questions from the texts of `pages`: one a page (two if there are few), at most `most`, in order.

    Pages without a usable sentence are skipped; if there are more than `most`, questions are spread evenly.
    """
    of_page = [sentences(page) for page in pages]
    prose = " ".join(sentence for found in of_page for sentence in found)
    everywhere = terms(prose)
    if len(everywhere) < 8:
        everywhere.update(_any_long_words(prose))
    defined = {term for term in _DEFINED.findall(prose) if not _STOP.intersection(term.split())}
    a_page = 2 if len(pages) <= 4 else 1
    seen: set[str] = set()
    made: list[Question] = []
    for n in _spread([n for n, found in enumerate(of_page) if found], most):
        new = [sentence for sentence in dict.fromkeys(of_page[n]) if sentence not in seen]
        seen.update(new)
        vocabulary = _Terms(everywhere, terms(" ".join(new)), defined)
        ranked = sorted(new, key=lambda s: (-_promise(s, vocabulary), number(s)))
        best = list(islice(filter(None, (_cloze(s, n + 1, vocabulary) for s in ranked)), a_page))
        made.extend(sorted(best, key=lambda q: new.index(q.quote)))
    return made[:most]


def _spread(items: list[int], most: int) -> list[int]:
    if len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


def _promise(sentence: str, vocabulary: _Terms) -> float:
    """Rate how good a question a sentence would make: self-contained, not too long, saying what is what."""
    words = _WORD.findall(sentence)
    rate = 3.0 - abs(len(words) - 20) / 8
    if words[0].lower() in _LEANS_BACK:
        rate -= 2
    if any(term in vocabulary.defined for term in _DEFINED.findall(sentence)):
        rate += 2
    elif _EXPLAINS.search(sentence):
        rate += 1
    return rate + min(2, sum(vocabulary.everywhere.get(word, 0) > 1 for word in words)) * 0.5


def _cloze(sentence: str, page: int, vocabulary: _Terms) -> Question | None:
    """Leave a term (of some sentences two) out of `sentence`; None without a term or a wrong choice."""
    chosen = _blanks(sentence, vocabulary)
    wrong = _wrong(chosen[0], sentence, vocabulary)[:3] if chosen else []
    if not wrong:
        return None
    text = sentence
    for term in chosen:
        text = _put(text, term, BLANK)
    choices = sorted((*chosen, *wrong), key=lambda term: number(sentence, "order", term))
    holds = number(sentence, "holds") % 2 == 0
    named = " and ".join(f"“{term}”" for term in chosen)
    which = "Which two terms complete" if len(chosen) == 2 else "Which term completes"
    return Question(
        page=page,
        quote=sentence,
        text=f"{which} this sentence: “{text}”",
        choices=tuple(choices),
        right=tuple(i for i, choice in enumerate(choices) if choice in chosen),
        explanation=f"The text has {named} in this place. {MARK}",
        statement=sentence if holds else _put(sentence, chosen[0], wrong[0]),
        statement_holds=holds,
    )


def _put(sentence: str, term: str, instead: str) -> str:
    return re.sub(rf"\b{re.escape(term)}\b", instead, sentence)


def _blanks(sentence: str, vocabulary: _Terms) -> list[str]:
    """Pick the terms to leave out, in the order of the sentence: what it defines, else what it is about."""
    words = _WORD.findall(sentence)
    for term in _DEFINED.findall(sentence):
        if term in vocabulary.defined and sentence.count(term) == 1:
            return [term]
    once = [word for word in words[1:] if words.count(word) == 1 and vocabulary.everywhere.get(word)]
    # The commonest words of a text are guessed without having read it.
    ranked = sorted(once, key=lambda w: (vocabulary.everywhere[w] > 12, w.islower(), -len(w), number(sentence, w)))
    wanted = 2 if number(sentence, "two") % 5 == 0 else 1
    return sorted(ranked[:wanted], key=words.index)


def _wrong(term: str, sentence: str, vocabulary: _Terms) -> list[str]:
    """List terms that could stand where `term` stands, the likeliest first, none that is in the sentence."""
    stems = {word.lower().rstrip("s") for word in _WORD.findall(sentence)}
    defined = term in vocabulary.defined

    def unlike(other: str) -> tuple[bool, bool, bool, bool, int]:
        return (
            defined and other not in vocabulary.defined,
            other[0].isupper() != term[0].isupper(),
            other.endswith("s") != term.endswith("s"),
            other not in vocabulary.here,
            number(term, other),
        )

    found: dict[str, str] = {}
    candidates = {*vocabulary.everywhere, *(vocabulary.defined if defined else ())}
    for other in sorted(candidates, key=unlike):
        stem = other.lower().rstrip("s")
        if stem not in stems and not stems.issuperset(stem.split()):
            found.setdefault(stem, other)
    return list(found.values())


# --- the form of the answer ---------------------------------------------------------------------------------

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
