"""From model output to exam questions: read, repair, check, place, deduplicate, choose, shuffle, number.

Pure functions over plain JSON. A question on its way is a dict of contract §3 without `id`; `clean` makes them
from one batch's answer, `assemble` makes the exam from all batches, `number` gives the ids. What follows a
caller's own schema takes the same way. Asking the model is `gemini`'s business, storing
is `store`'s.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Any

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from superexam_rq.duplicates import deduplicate
from superexam_rq.ordering import LETTERS, names_letters, refer_to_others, shuffle
from superexam_rq.sources import Source
from superexam_rq.texts import fold, scrub, scrub_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from superexam_rq.caller_schema import CallerSchema

Question = dict[str, Any]

# A question of this size at most weighs about 350 KB; a Firestore document may hold 1 MiB.
MAX_QUESTION_CHARS = 10_000
MAX_CHOICE_CHARS = 2_000
MAX_EXPLANATION_CHARS = 10_000


class UnreadableAnswer(ValueError):
    """Report a model's answer that holds no list of questions."""


# What the reasons of a report mean, for the sentence that a teacher reads.
_REASONS = {
    "malformed": "were not in the form of a question",
    "empty": "had no text",
    "too_long": "were far too long",
    "too_few_choices": "had fewer than two different choices",
    "too_many_choices": "had more than 26 choices",
    "no_answer": "had no answer",
    "unknown_answer": "had an answer that is none of the choices",
    "schema": "did not fit the schema",
}


class Report:
    """Count what was dropped, repaired and noticed on the way, by reason; batches' reports add up."""

    def __init__(self) -> None:
        self.proposed = 0
        self.dropped: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()

    def add(self, other: Report) -> None:
        """Add the counts of another report."""
        self.proposed += other.proposed
        self.dropped.update(other.dropped)
        self.noted.update(other.noted)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain JSON, for a log line."""
        return {"proposed": self.proposed, "dropped": dict(self.dropped), "noted": dict(self.noted)}

    def warnings(self) -> list[str]:
        """Return what a teacher should know: at most one sentence, about questions that could not be used.

        A repeated question is no loss and is not mentioned.
        """
        reasons = [(count, _REASONS[reason]) for reason, count in self.dropped.most_common() if reason in _REASONS]
        if not reasons:
            return []
        lost = sum(count for count, _ in reasons)
        listed = ", ".join(f"{count} {words}" for count, words in reasons)
        return [f"{lost} of {self.proposed} proposed questions could not be used: {listed}."]


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _decoder() -> json.JSONDecoder:
    # Not strict: models leave raw line breaks in strings. NaN and infinities are no JSON and can't be stored.
    return json.JSONDecoder(strict=False, parse_float=_finite, parse_constant=lambda _: None)


def parse_answer(text: str, *, complete: bool = True) -> list[Any]:
    """Return the items of an answer: an object with `questions`, or a bare list, also inside a Markdown fence.

    With `complete=False` the text was cut off: its complete items are returned, possibly none. Otherwise raises
    `UnreadableAnswer` if the text is not such an answer.
    """
    decoder = _decoder()
    read: list[range] = []
    whole = complete
    for start in _openings(text):
        if any(start in place for place in read):
            continue
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            whole = False  # what is found further on may be a part of it
            continue
        read.append(range(start, end))
        items = _listed(value)
        if items is None and whole:
            items = _meant(value)
        if items is not None:
            return items
    if not complete:
        return list(_salvage(text, decoder))
    raise UnreadableAnswer("The model's answer is not JSON with questions")


def _listed(value: Any) -> list[Any] | None:
    """Return the questions of an answer in one of the forms that were asked for, or None."""
    items = value.get("questions") if isinstance(value, dict) else value
    if isinstance(items, list) and (not items or any(isinstance(item, dict) for item in items)):
        return items
    return None


def _meant(value: Any) -> list[Any] | None:
    """Return what must be meant as questions in an object without such a list: itself, or its only list of objects."""
    if not isinstance(value, dict) or "questions" in value:
        return None
    if {"questionText", "sourcePage"} & value.keys():
        return [value]
    lists = [items for below in value.values() if isinstance(below, list) and (items := _listed(below))]
    return lists[0] if len(lists) == 1 else None


def _openings(text: str) -> list[int]:
    """Return where JSON may begin: at the text's first brace or bracket, but after prose rather in a Markdown fence."""
    whole = sorted(at for at in (text.find("{"), text.find("[")) if at >= 0)
    fence = text.find("```")
    if fence < 0 or text.lstrip("\ufeff \t\r\n").startswith(("{", "[")):
        return whole
    return sorted(at for at in (text.find("{", fence), text.find("[", fence)) if at >= 0) + whole


def _salvage(text: str, decoder: json.JSONDecoder) -> Iterator[Any]:
    named = text.find('"questions"')
    at = text.find("[", max(named, 0)) + 1
    while at:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        try:
            item, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        # A number at the very end may go on in what was cut off; whatever else is complete is an object.
        if isinstance(item, dict):
            yield item


class _Unusable(Exception):
    """Tell why an item is no question: a key of `_REASONS`."""


class ChoiceSchema(Schema):
    """Describe one choice, contract §3."""

    index = fields.String(required=True, validate=validate.OneOf(list(LETTERS)))
    text = fields.String(required=True, validate=validate.Length(1, MAX_CHOICE_CHARS))


class QuestionSchema(Schema):
    """Describe a question as it is published, contract §3, before it has its id."""

    questionText = fields.String(required=True, validate=validate.Length(1, MAX_QUESTION_CHARS))  # noqa: N815
    type = fields.String(required=True, validate=validate.OneOf(["single_select", "multi_select"]))
    choices = fields.List(fields.Nested(ChoiceSchema), required=True, validate=validate.Length(2, len(LETTERS)))
    correctAnswers = fields.List(fields.String(), required=True, validate=validate.Length(1))  # noqa: N815
    explanation = fields.String(required=True, validate=validate.Length(0, MAX_EXPLANATION_CHARS))
    sourcePages = fields.List(  # noqa: N815
        fields.Integer(strict=True, validate=validate.Range(1)), required=True, validate=validate.Length(1)
    )

    @validates_schema
    def answerable(self, data: Question, **_kwargs: Any) -> None:
        """Check what spans several fields."""
        indexes = [choice["index"] for choice in data["choices"]]
        answers = data["correctAnswers"]
        if indexes != list(LETTERS[: len(indexes)]):
            raise ValidationError("Choices are lettered A, B, C and so on.", "choices")
        if len({fold(choice["text"]) for choice in data["choices"]} - {""}) != len(indexes):
            raise ValidationError("Choices differ in more than case and white space.", "choices")
        if answers != sorted(set(answers)) or not set(answers) <= set(indexes):
            raise ValidationError("Answers name choices, in order, each once.", "correctAnswers")
        if (data["type"] == "multi_select") != (len(answers) > 1):
            raise ValidationError("The type follows from the number of right answers.", "type")


def clean(
    items: Iterable[Any],
    pages: Sequence[int],
    page_text: Callable[[int], str],
    report: Report,
    schema: CallerSchema | None = None,
) -> list[Question]:
    """Return the usable questions of one batch's answer, repaired; `report` counts the rest by reason.

    `pages` are the document's pages (1-based) that the batch was made of, `page_text` returns the text of one.
    With a caller's `schema` the items are checked against it and keep their own fields; nothing is repaired.
    """
    source = Source(pages, page_text)
    published = QuestionSchema()
    questions = []
    for item in items:
        report.proposed += 1
        try:
            question = _repair(item, report) if schema is None else _own(item, schema)
            question["sourcePages"] = source.locate(item, report.noted)
            if isinstance(question.get("sourcePage"), int):
                # A field of the caller's own: a page of the document says more than one of a batch.
                question["sourcePage"] = question["sourcePages"][0]
            if schema is None and published.validate(question):
                raise _Unusable("malformed")
        except _Unusable as reason:
            report.dropped[str(reason)] += 1
            continue
        questions.append(question)
    return questions


def _own(item: Any, schema: CallerSchema) -> Question:
    fit = scrub_all(item)
    if schema.check(fit) is not None:
        raise _Unusable("schema")
    return schema.own_fields(fit)


def _repair(item: Any, report: Report) -> Question:
    if not isinstance(item, dict):
        raise _Unusable("malformed")
    text = _as_text(item.get("questionText"))
    if not fold(text):
        raise _Unusable("empty")
    labels, texts = _choices(item.get("choices"))
    different = len({fold(choice) for choice in texts} - {""})
    if different < 2:
        raise _Unusable("too_few_choices")
    if different > len(LETTERS):
        raise _Unusable("too_many_choices")
    right = _right_choices(item.get("correctAnswers"), labels, texts)
    kept = _distinct(texts, right)
    if len(kept) < len(texts):
        report.noted["choices_removed"] += 1
    if len(text) > MAX_QUESTION_CHARS or any(len(texts[at]) > MAX_CHOICE_CHARS for at in kept):
        raise _Unusable("too_long")
    explanation = _as_text(item.get("explanation"))
    if len(explanation) > MAX_EXPLANATION_CHARS:
        explanation = explanation[: MAX_EXPLANATION_CHARS - 1].rstrip() + "…"
        report.noted["explanation_cut"] += 1
    if any(labels[at] and labels[at].upper() != LETTERS[place] for place, at in enumerate(kept)):
        # The letters change, and a text that names one would be wrong.
        if names_letters(text, explanation, len(texts)):
            report.noted["explanation_removed"] += 1
            explanation = ""
        if names_letters(text, "", len(texts)) or refer_to_others(texts):
            raise _Unusable("malformed")
    answers = [LETTERS[place] for place, at in enumerate(kept) if at in right]
    return {
        "questionText": text,
        "type": "multi_select" if len(answers) > 1 else "single_select",
        "choices": [{"index": LETTERS[place], "text": texts[at]} for place, at in enumerate(kept)],
        "correctAnswers": answers,
        "explanation": explanation,
    }


_LABEL = re.compile(r"[(\[]?\s*([A-Za-z]|[0-9]{1,2})\s*[).:\]]\s+(?=\S)")


def _choices(value: Any) -> tuple[list[str], list[str]]:
    """Return the labels that the model gave its choices ("" for none), and the texts."""
    if isinstance(value, dict):
        value = [{"index": index, "text": text} for index, text in value.items()]
    if not isinstance(value, list):
        raise _Unusable("too_few_choices")
    labels, texts = [], []
    for choice in value:
        if isinstance(choice, dict):
            labels.append(_as_text(choice.get("index")))
            texts.append(_as_text(choice.get("text")))
        else:
            labels.append("")
            texts.append(_as_text(choice))
    # "A) Paris", "B) Rome": the letters are the page's business, and would be wrong after a shuffle.
    matches = [_LABEL.match(text) for text in texts]
    if len(texts) > 1 and all(
        match is not None and match[1].upper() in {LETTERS[place % len(LETTERS)], str(place + 1)}
        for place, match in enumerate(matches)
    ):
        texts = [text[match.end() :] for text, match in zip(texts, matches, strict=True) if match is not None]
    return labels, texts


def _right_choices(value: Any, labels: list[str], texts: list[str]) -> set[int]:
    """Return the places of the right choices; raises `_Unusable` unless each answer names exactly one choice."""
    if value is None or value in ("", [], {}):
        raise _Unusable("no_answer")
    answers = value if isinstance(value, list) else [value]
    if len(answers) == 1 and isinstance(answers[0], str):
        answers = _split_letters(answers[0], texts)
    return {_place(answer, labels, texts) for answer in answers}


def _split_letters(answer: str, texts: list[str]) -> list[Any]:
    """Return the letters of `A, C` or `a and c`; any other text as it is."""
    parts = re.split(r" ?(?:[,;/&]|\band\b) ?", " ".join(answer.split()))
    if len(parts) > 1 and all(re.fullmatch(r"[A-Za-z]", part) for part in parts) and not _same(answer, texts):
        return list(parts)
    return [answer]


def _same(text: str, candidates: list[str]) -> list[int]:
    folded = fold(text)
    return [place for place, candidate in enumerate(candidates) if folded and fold(candidate) == folded]


def _place(answer: Any, labels: list[str], texts: list[str]) -> int:
    """Return the place of the choice that an answer names; raises `_Unusable` if it is none or several."""
    if isinstance(answer, dict):
        answer = answer.get("index")
    text = _as_text(answer)
    if not text or isinstance(answer, bool | float):
        raise _Unusable("unknown_answer")
    bare = re.fullmatch(r"[(\[]?\s*(?:(?:option|choice|answer)\s+)?(\w{1,2})\s*[).:\]]*", text, re.IGNORECASE)
    for given in dict.fromkeys([text, bare[1] if bare else text]):
        named = _same(given, labels)
        if named:
            return _only(named, texts)
    spelled = _same(text, texts)
    counted = _counted(bare[1] if bare else "", answer, labels, texts)
    labelled = _LABEL.match(text)
    if labelled and not spelled:
        # "B) Rome": the letter counts only if the text behind it is that choice's.
        spelled = _same(text[labelled.end() :], texts)
        counted = []
    if spelled and counted and not set(spelled) & set(counted):
        raise _Unusable("unknown_answer")
    return _only(spelled or counted, texts)


def _only(places: list[int], texts: list[str]) -> int:
    """Return the one place; several are one if their choices have the same text."""
    if not places or len({texts[place] for place in places}) > 1:
        raise _Unusable("unknown_answer")
    return places[0]


def _counted(bare: str, answer: Any, labels: list[str], texts: list[str]) -> list[int]:
    """Return the place that a letter or number means by counting, where the choices bear no labels of that kind."""
    if re.fullmatch(r"[A-Za-z]", bare) and not any(re.fullmatch(r"[A-Za-z]", label) for label in labels):
        place = LETTERS.index(bare.upper())
    elif re.fullmatch(r"[0-9]{1,2}", bare) and not any(label.isdecimal() for label in labels):
        place = int(bare) - 1
        # "1" is a label and counts from 1; a number in JSON may count from 0 as well, and only the ends tell.
        if not isinstance(answer, str) and place + 1 != len(texts):
            place = 0 if place == -1 else len(texts)
    else:
        return []
    return [place] if 0 <= place < len(texts) else []


def _distinct(texts: list[str], right: set[int]) -> list[int]:
    """Return the places of choices that have a text and differ from those before, the right ones first to stay.

    Raises `_Unusable` if a right and a wrong choice differ in nothing that counts.
    """
    first: dict[str, int] = {}
    for place, text in enumerate(texts):
        folded = fold(text)
        if not folded:
            if place in right:
                raise _Unusable("unknown_answer")
            continue
        known = first.setdefault(folded, place)
        if (known in right) != (place in right):
            if " ".join(texts[known].split()) != " ".join(text.split()):
                # `Print` against `print`: the question is about case, and can't be asked here.
                raise _Unusable("too_few_choices")
            first[folded] = known if known in right else place
    return sorted(first.values())


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return scrub(value).strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    return ""


def assemble(
    questions: Iterable[Question], *, max_questions: int | None, report: Report, schema: CallerSchema | None = None
) -> list[Question]:
    """Return the exam made of all batches' questions: in reading order, none twice, chosen evenly, shuffled.

    What follows a caller's `schema` is not shuffled, and repeats another only if it is the same in every field.
    """
    ordered = sorted(questions, key=lambda question: question["sourcePages"][0])
    unique = deduplicate(ordered) if schema is None else _without_copies(ordered)
    if len(unique) < len(ordered):
        report.dropped["duplicate"] += len(ordered) - len(unique)
    chosen = pick(unique, max_questions, report)
    return shuffle(chosen) if schema is None else chosen


def _without_copies(questions: Iterable[Question]) -> list[Question]:
    first: dict[str, Question] = {}
    for question in questions:
        own = {name: _folded(value) for name, value in question.items() if name not in {"id", "sourcePages"}}
        first.setdefault(json.dumps(own, sort_keys=True), question)
    return list(first.values())


def _folded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _folded(below) for name, below in value.items()}
    if isinstance(value, list):
        return [_folded(below) for below in value]
    return fold(value) if isinstance(value, str) else value


def pick(questions: Sequence[Question], count: int | None, report: Report) -> list[Question]:
    """Return at most `count` questions, spread evenly over the pages that have any, in the same order."""
    if count is None or len(questions) <= count:
        return list(questions)
    report.noted["not_picked"] += len(questions) - count
    on_page = Counter(question["sourcePages"][0] for question in questions)
    seen: Counter[int] = Counter()
    left: list[tuple[float, int]] = []
    for place, question in enumerate(questions):
        page = question["sourcePages"][0]
        left.append((page + seen[page] / on_page[page], place))
        seen[page] += 1
    first, last = left[0][0], left[-1][0]
    chosen = []
    for turn in range(count):
        target = first + (last - first) * (turn + 0.5) / count
        at = bisect_left(left, (target, 0))
        if at == len(left) or (at and target - left[at - 1][0] <= left[at][0] - target):
            at -= 1
        chosen.append(left.pop(at)[1])
    return [questions[place] for place in sorted(chosen)]


def number(questions: Sequence[Question], token: str) -> list[Question]:
    """Return the questions with ids that sort in reading order as text; `token` sets one run's ids apart."""
    width = max(5, len(str(len(questions))))
    return [{**question, "id": f"q{place:0{width}d}-{token}"} for place, question in enumerate(questions, start=1)]
