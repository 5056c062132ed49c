"""The stand-in's questions: what they rest on, and how they fill the form that a schema asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superexam_rq.gemini import DEFAULT_RESPONSE_SCHEMA
from superexam_rq.pdf import Document
from superexam_rq.sandbox.gemini.faults import BLOCK_REASONS, FINISH_REASONS, KINDS, Fault
from superexam_rq.sandbox.gemini.forms import DEFAULT_SCHEMA, fill
from superexam_rq.sandbox.gemini.questions import MARK, fold, make_questions, sentences
from tests.make_sample_pdf import SANDBOX, make_pdf
from tests.pdfs import prose

ROOT = Path(__file__).resolve().parents[2]


def texts_of(pdf: bytes) -> list[str]:
    """Read the text of each page."""
    with Document.open(pdf, max_bytes=10**8, max_pages=1000) as document:
        return [document.text(page) for page in range(1, document.page_count + 1)]


@pytest.fixture(scope="module")
def pages() -> list[str]:
    """Read the sample."""
    return texts_of((SANDBOX / "sample.pdf").read_bytes())


def test_every_page_of_prose_gives_a_question_whose_quote_stands_on_it(pages: list[str]) -> None:
    """One question for each page, in order; its quote is a sentence of that page, word for word."""
    questions = make_questions(pages)
    assert [question.page for question in questions] == list(range(1, len(pages) + 1))
    for question in questions:
        assert question.quote in fold(pages[question.page - 1])


def test_a_question_can_be_answered_from_its_sentence(pages: list[str]) -> None:
    """Put into the blank, the right terms give the sentence back, and no wrong choice is a word of it."""
    for question in make_questions(pages):
        statement = question.text.partition("“")[2].removesuffix("”")
        for term in sorted(question.right_texts, key=question.quote.index):
            statement = statement.replace("_____", term, 1)
        assert statement == question.quote
        assert 3 <= len(question.choices) == len({choice.lower() for choice in question.choices})
        wrong = set(question.choices).difference(question.right_texts)
        assert wrong
        assert not wrong.intersection(question.quote.split())


def test_a_term_that_a_sentence_defines_is_what_is_asked() -> None:
    """Of "…, and it is called a glacier" the glacier is left out, with other defined terms as wrong choices."""
    page = (
        "When the ice begins to flow under its own weight, it is called a glacier. "
        "The heaps of stones that the ice leaves behind in the valley are called moraines. "
        "A layer of sand that holds water and lets it pass through is called an aquifer. "
        "The curved lake that a river leaves behind in its plain is called an oxbow lake."
    )
    asked = make_questions([page, page.replace("valley", "plain of the north")] + [page] * 3)[0]
    assert {*asked.choices} == {"glacier", "moraines", "aquifer", "oxbow lake"}


def test_some_questions_have_two_right_answers(pages: list[str]) -> None:
    """Among many questions some ask for two terms, and those have wrong choices too."""
    asked = [question for page in pages for question in make_questions([page])]
    two = [question for question in asked if len(question.right) == 2]
    assert 0 < len(two) < len(asked) / 2
    assert all(len(question.choices) > 2 for question in two)


def test_headings_code_and_cut_sentences_make_no_questions() -> None:
    """Only whole sentences of prose are used, without the heading that stands above them."""
    page = (
        "5. THE FROZEN STORE\n"
        "Where more snow falls in winter than melts in summer, the snow grows deeper from year to\n"
        "year.\n"
        "for (int i = 0; i < n; i++) { total_sum += values[i]; printf(total_sum); return all; }\n"
        "Contents . . . . . . . . . . . . . . . . . . . . . . . . . . . . . . . . . . . 17.\n"
        "A sentence that goes on over the end of the page and has therefore no full"
    )
    assert sentences(page) == [
        "Where more snow falls in winter than melts in summer, the snow grows deeper from year to year."
    ]


@pytest.mark.parametrize("empty", [[], [""], ["", "   "], ["17"], ["Contents\n1 2 3 4 5"]])
def test_pages_without_prose_give_no_question(empty: list[str]) -> None:
    """A scan, a blank page or a table of contents gives no question, and the answer is still in form."""
    assert make_questions(empty) == []
    assert fill(DEFAULT_SCHEMA, []) == {"questions": []}


def test_long_documents_are_covered_evenly() -> None:
    """More than twenty pages give twenty questions from the whole length."""
    found = [question.page for question in make_questions(texts_of(prose(60)))]
    assert len(found) == 20
    assert min(found) <= 3
    assert max(found) >= 57
    assert found == sorted(set(found))


def test_the_same_pages_give_the_same_questions_in_every_process(pages: list[str]) -> None:
    """Nothing depends on the order of sets, which differs from process to process."""
    code = (
        "import sys, json; from superexam_rq.sandbox.gemini.forms import DEFAULT_SCHEMA, fill;"
        "from superexam_rq.sandbox.gemini.questions import make_questions;"
        "print(json.dumps(fill(DEFAULT_SCHEMA, make_questions(json.load(sys.stdin)))))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(pages),
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == fill(DEFAULT_SCHEMA, make_questions(pages))


def test_the_service_s_own_form(pages: list[str]) -> None:
    """Asked for, or by default: page, quote, text, lettered choices, the right letters and an open mark."""
    answer = fill(DEFAULT_SCHEMA, make_questions(pages))
    assert fill(DEFAULT_RESPONSE_SCHEMA, make_questions(pages)) == answer
    jsonschema.validate(answer, DEFAULT_RESPONSE_SCHEMA)
    for item in answer["questions"]:
        letters = [choice["index"] for choice in item["choices"]]
        assert letters == list("ABCDE"[: len(letters)])
        assert item["correctAnswers"]
        assert set(item["correctAnswers"]) < set(letters)
        assert item["explanation"].endswith(MARK)
        assert all(c["text"] in item["explanation"] for c in item["choices"] if c["index"] in item["correctAnswers"])


def test_fields_come_in_the_order_in_which_they_are_required(pages: list[str]) -> None:
    """Required fields come first and in order, as a model writes them."""
    schema = {
        "type": "object",
        "properties": {"tip": {"type": "string"}, "answer": {"type": "string"}, "quote": {"type": "string"}},
        "required": ["quote", "answer"],
    }
    assert list(fill(schema, make_questions(pages))) == ["quote", "answer", "tip"]


def test_a_schema_of_true_or_false_questions(pages: list[str]) -> None:
    """With a boolean answer and no choices the text is a statement, true exactly if it stands in the document."""
    item = {
        "type": "object",
        "properties": {
            "question": {"type": "string"},
            "answer": {"type": "boolean"},
            "difficulty": {"type": "string", "enum": ["easy", "medium", "hard"]},
        },
    }
    whole = fold(" ".join(pages))
    answers = fill({"type": "array", "items": item}, make_questions(pages))
    assert {answer["answer"] for answer in answers} == {True, False}
    assert len({answer["difficulty"] for answer in answers}) > 1
    for answer in answers:
        assert (answer["question"].removeprefix("True or false: ") in whole) == answer["answer"]


@pytest.mark.parametrize("ints", [False, True])
def test_types_may_be_names_or_numbers(pages: list[str], ints: bool) -> None:
    """google-generativeai sends the types of a schema as numbers, google-genai as names in capitals."""
    types: dict[str, Any] = {"STRING": 1, "NUMBER": 2, "INTEGER": 3, "BOOLEAN": 4, "ARRAY": 5, "OBJECT": 6}

    def kind(name: str) -> Any:
        return types[name] if ints else name

    fields = {"text": kind("STRING"), "page": kind("INTEGER"), "weight": kind("NUMBER"), "hard": kind("BOOLEAN")}
    item = {"type": kind("OBJECT"), "properties": {name: {"type": value} for name, value in fields.items()}}
    schema = {"type": kind("OBJECT"), "properties": {"cards": {"type": kind("ARRAY"), "items": item}}}
    card = fill(schema, make_questions(pages))["cards"][0]
    assert [type(card[name]) for name in fields] == [str, int, int, bool]
    assert card["page"] == 1


FORMS: dict[str, tuple[dict[str, Any], Any]] = {
    "index of the right choice": (
        {"options": {"type": "array", "items": {"type": "string"}}, "correct_index": {"type": "integer"}},
        lambda item, q: item["options"][item["correct_index"]] in q.right_texts,
    ),
    "text of the right choice": (
        {"options": {"type": "array", "items": {"type": "string"}}, "answer": {"type": "string"}},
        lambda item, q: set(item["answer"].split(", ")) == set(q.right_texts),
    ),
    "a field for each choice": (
        {"option_a": {"type": "string"}, "option_b": {"type": "string"}, "answer": {"type": "string"}},
        lambda item, q: [item["option_a"], item["option_b"], item["answer"]] == [*q.choices[:2], "ABCDE"[q.right[0]]],
    ),
    "a letter from an enum": (
        {
            "choices": {"type": "array", "items": {"type": "string"}},
            "answer": {"type": "string", "enum": ["A", "B", "C", "D", "E"]},
        },
        lambda item, q: item["choices"]["ABCDE".index(item["answer"])] in q.right_texts,
    ),
    "a mark on each choice": (
        {
            "answers": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"text": {"type": "string"}, "isCorrect": {"type": "boolean"}},
                },
            }
        },
        lambda item, q: tuple(a["text"] for a in item["answers"] if a["isCorrect"]) == q.right_texts,
    ),
    "kind of question": (
        {"type": {"type": "string", "enum": ["single_select", "multi_select"]}},
        lambda item, q: item["type"] == ("single_select" if len(q.right) == 1 else "multi_select"),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_common_forms_of_a_question_agree_with_themselves(pages: list[str], name: str) -> None:
    """Whatever way a caller's schema names the right answer, it is the right one."""
    properties, agrees = FORMS[name]
    questions = make_questions(pages)
    schema = {"type": "array", "items": {"type": "object", "properties": properties}}
    for item, question in zip(fill(schema, questions), questions, strict=True):
        assert agrees(item, question)


def test_references_unions_and_nullable_types_of_a_json_schema(pages: list[str]) -> None:
    """`$ref`, `anyOf`, lists of types and `const`, also where a schema refers to itself."""
    schema = {
        "$defs": {
            "card": {
                "type": "object",
                "required": ["front", "back", "version"],
                "properties": {
                    "front": {"type": ["string", "null"]},
                    "back": {"anyOf": [{"type": "null"}, {"type": "string"}]},
                    "version": {"const": 2},
                    "sub": {"type": "array", "items": {"$ref": "#/$defs/card"}},
                },
            }
        },
        "type": "object",
        "properties": {"cards": {"type": "array", "items": {"$ref": "#/$defs/card"}}},
    }
    answer = fill(schema, make_questions(pages))
    jsonschema.validate(answer, schema)
    assert len(answer["cards"]) == len(pages)
    assert all(card["front"] and card["back"] for card in answer["cards"])


LEAVES = st.sampled_from(["string", "integer", "number", "boolean", "null"]).map(
    lambda kind: {"type": kind}
) | st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True).map(
    lambda values: {"type": "string", "enum": values}
)
NAMES = st.sampled_from(
    [
        "question",
        "answer",
        "choices",
        "options",
        "correct",
        "page",
        "sourceQuote",
        "id",
        "tags",
        "x y",
        "a",
        "b",
        "type",
    ]
)


def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Build objects and arrays around schemas."""
    objects = st.dictionaries(NAMES, inner, max_size=4).map(
        lambda properties: {"type": "object", "properties": properties, "required": list(properties)}
    )
    return objects | inner.map(lambda items: {"type": "array", "items": items})


@given(schema=st.recursive(LEAVES, nested, max_leaves=12))
def test_any_schema_is_filled_with_valid_values(schema: dict[str, Any]) -> None:
    """Whatever the schema, the answer is valid under it."""
    sentence = "The {} of the harbour shows every vessel the depth of the channel at low tide."
    page = " ".join(sentence.format(word) for word in ("keeper", "tower", "pilot", "captain", "board", "lantern"))
    questions = make_questions([page])
    assert questions
    jsonschema.validate(fill(schema, questions), schema)


def test_the_sample_is_set_from_its_source() -> None:
    """Setting `sample.md` again gives the page texts of `sample.pdf`: several pages of prose, small enough to ship."""
    shipped = (SANDBOX / "sample.pdf").read_bytes()
    source = (SANDBOX / "sample.md").read_text(encoding="utf-8")
    assert texts_of(make_pdf(source)) == texts_of(shipped)
    assert len(texts_of(shipped)) >= 8
    assert len(source.split()) > 3000
    assert len(shipped) < 80_000


ARGUMENTS: dict[str, dict[str, Any]] = {
    "http": {"status": 418},
    "finished": {"reason": "SAFETY"},
    "answer": {"text": "[]"},
    "slow": {"seconds": 1},
    "wait": {"seconds": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_can_be_written_as_json(kind: str) -> None:
    """`{"kind": …, its arguments}` builds the fault that the class method builds."""
    arguments = {**ARGUMENTS.get(kind, {}), "times": None}
    fault = Fault.from_json({"kind": kind, **arguments})
    assert fault == getattr(Fault, kind)(**arguments)
    assert fault.kind == kind
    assert fault.times is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "nope"}, "unknown kind of fault 'nope'"),
        ({}, "unknown kind of fault None"),
        ({"kind": "from_json"}, "unknown kind"),
        ({"kind": "overloaded", "tims": 2}, "tims"),
        ({"kind": "overloaded", "times": 0}, "times is 0"),
        ({"kind": "finished", "reason": "TIRED"}, "unknown finish reason 'TIRED'"),
        ({"kind": "finished", "reason": "STOP", "parts": "most"}, "unknown parts"),
        ({"kind": "blocked", "reason": "TIRED"}, "unknown block reason"),
        ({"kind": "answer", "text": "", "finish": "TIRED"}, "unknown finish reason"),
        ({"kind": "dropped", "when": "later"}, "later"),
        ({"kind": "dropped", "when": "unread", "match": "x"}, "cannot match"),
    ],
)
def test_a_wrong_fault_says_what_is_wrong(wrong: dict[str, Any], says: str) -> None:
    """A fault that would never fire, or fire differently than meant, is refused when it is built."""
    with pytest.raises(ValueError, match=says):
        Fault.from_json(wrong)


def test_reasons_have_numbers_of_their_own() -> None:
    """No two reasons share a number on the wire."""
    assert len(set(FINISH_REASONS.values())) == len(FINISH_REASONS)
    assert len(set(BLOCK_REASONS.values())) == len(BLOCK_REASONS)
