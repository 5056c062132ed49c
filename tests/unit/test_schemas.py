"""What a submission may hold, and what it is told where it may not."""

from __future__ import annotations

from typing import Any

import pytest
from marshmallow import ValidationError

from superexam_rq.request import JobRequest
from superexam_rq.schemas import JobListQuerySchema, SubmissionSchema

IDS: dict[str, Any] = {"doc_id": "doc", "system_prompt_id": "sys", "custom_prompt_id": "cus"}
QUESTION = {"type": "object", "properties": {"word": {"type": "string"}}}


def load(**fields: Any) -> tuple[JobRequest, bool]:
    """Read a submission with these fields besides the ids."""
    loaded: tuple[JobRequest, bool] = SubmissionSchema().load({**IDS, **fields})
    return loaded


def refusal(**fields: Any) -> dict[str, list[str]]:
    """Return what a submission is told that is refused."""
    with pytest.raises(ValidationError) as caught:
        load(**fields)
    found: dict[str, list[str]] = caught.value.normalized_messages()
    return found


def test_three_ids_are_enough() -> None:
    """What the website sends is a whole submission."""
    assert load() == (JobRequest(**IDS), False)


def test_null_means_left_out() -> None:
    """Optional fields may be null."""
    assert load(schema=None, pages=None, max_questions=None, model=None) == load()


@pytest.mark.parametrize("name", list(IDS))
def test_every_id_is_required(name: str) -> None:
    """A submission without one of the three says which."""
    with pytest.raises(ValidationError) as caught:
        SubmissionSchema().load({key: value for key, value in IDS.items() if key != name})
    assert list(caught.value.normalized_messages()) == [name]


@pytest.mark.parametrize("name", list(IDS))
@pytest.mark.parametrize(
    "value",
    [
        *("", "/", "a/b", ".", "..", "__x__", "____", "a\x00b", "a\nb", "\x7f", "\x85", "\u2028", "\ud800"),
        *("x" * 1501, "é" * 751, 7, True, None, [], {}, 1.5),
    ],
)
def test_an_id_that_firestore_forbids_is_refused(name: str, value: Any) -> None:
    """Also one that would reach another path, or holds control characters, or is no text."""
    assert list(refusal(**{name: value})) == [name]


@pytest.mark.parametrize(
    "value", ["x" * 1500, "é" * 750, "...", ".a", "_x_", "__x", "a b", "ö", "🙂", "a:b", "%2F", "'"]
)
def test_any_other_id_is_taken(value: str) -> None:
    """Firestore's own rules are the only ones."""
    assert load(doc_id=value)[0].doc_id == value


@pytest.mark.parametrize("value", ["3", "3-40", "3-40,55", " 1 - 2 , 4 ", "1-1"])
def test_pages_and_ranges_are_taken(value: str) -> None:
    """As the contract writes them; spaces do no harm."""
    assert load(pages=value)[0].pages == value


@pytest.mark.parametrize(
    "value", ["", "0", "5-3", "1-", "-1", "a", "1;2", "1,,2", "1-2-3", "٣", "1" * 9, "1," * 600 + "1", 3]
)
def test_other_pages_are_refused(value: Any) -> None:
    """Neither page 0 nor backwards, nor digits of other scripts."""
    assert list(refusal(pages=value)) == ["pages"]


@pytest.mark.parametrize("value", [0, -1, 10_001, "5", 1.5, True, float("inf"), 10**400])
def test_max_questions_is_a_count(value: Any) -> None:
    """A whole number, in bounds, not in quotes."""
    assert list(refusal(max_questions=value)) == ["max_questions"]


@pytest.mark.parametrize("value", ["gemini-flash-latest", "models/gemini-2.5-pro", "tunedModels/abc"])
def test_models_are_named_as_google_does(value: str) -> None:
    """With or without their collection."""
    assert load(model=value)[0].model == value


@pytest.mark.parametrize("value", ["", "a/b/c", "../x", "a b", "a\n", "x" * 200, "models/", "a?b", 3])
def test_other_model_names_are_refused(value: Any) -> None:
    """A name becomes part of a URL."""
    assert list(refusal(model=value)) == ["model"]


def test_high_priority_goes_to_the_front() -> None:
    """It is no field of the job."""
    assert load(priority="high") == (JobRequest(**IDS), True)
    assert list(refusal(priority="urgent")) == ["priority"]


@pytest.mark.parametrize("value", [QUESTION, '{"type": "object", "properties": {"word": {"type": "string"}}}'])
def test_a_schema_is_an_object_or_a_text(value: Any) -> None:
    """It goes on as it was given."""
    assert load(schema=value)[0].schema == value


def _deep(levels: int) -> Any:
    value: Any = {"type": "string"}
    for _ in range(levels):
        value = {"type": "object", "properties": {"a": value}}
    return value


@pytest.mark.parametrize(
    "value",
    [
        *("", "no json", "[]", [], 7, True, {}, {"type": "nonsense"}, {"$ref": "https://evil.example/schema"}),
        *({**QUESTION, "title": "\ud800"}, _deep(300), "[" * 100_000, {"type": "string"}),
    ],
)
def test_an_unusable_schema_is_refused(value: Any) -> None:
    """Before anything is queued, and with a word on where it is wrong."""
    found = refusal(schema=value)
    assert list(found) == ["schema"]
    assert all(isinstance(text, str) and text for text in found["schema"])


def test_a_wrong_place_in_a_schema_is_named() -> None:
    """The message holds the pointer."""
    assert "/properties/word" in refusal(schema={"type": "object", "properties": {"word": {"type": 5}}})["schema"][0]


def test_unknown_fields_are_refused() -> None:
    """A misspelt option must not pass unseen."""
    assert list(refusal(max_question=5)) == ["max_question"]


class TestListQuery:
    def test_nothing_means_the_newest_fifty(self) -> None:
        """The defaults of the contract."""
        assert JobListQuerySchema().load({}) == {"status": None, "doc_id": None, "limit": 50, "offset": 0}

    @pytest.mark.parametrize(
        "query",
        [
            *({"status": "done"}, {"status": ""}, {"limit": "0"}, {"limit": "201"}, {"limit": "-1"}, {"limit": "1_0"}),
            *({"limit": "+5"}, {"limit": "٣"}, {"limit": "1e1"}, {"limit": ""}, {"offset": "-1"}, {"offset": "9" * 30}),
            *({"state": "failed"}, {"doc_id": "a/b"}),
        ],
        ids=str,
    )
    def test_anything_else_is_refused(self, query: dict[str, str]) -> None:
        """Bounds, digits, known names."""
        with pytest.raises(ValidationError) as caught:
            JobListQuerySchema().load(query)
        assert list(caught.value.normalized_messages()) == list(query)
