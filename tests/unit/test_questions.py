"""What `questions` promises: whatever a model answers, what is published can be answered (contract §3)."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from superexam_rq.caller_schema import CallerSchema
from superexam_rq.questions import (
    Question,
    QuestionSchema,
    Report,
    UnreadableAnswer,
    assemble,
    clean,
    number,
    parse_answer,
)
from superexam_rq.texts import fold

PAGES = {
    11: "The mitochondrion is the power-\nhouse of the cell, and it makes ATP from sugar.",
    12: "Ribosomes build proteins from amino acids; some are bound to the endoplasmic reticulum",
    13: "and others swim freely in the cytoplasm of the cell.",
}
TEXTS = ["Mitochondria", "Ribosomes", "Lysosomes", "Vacuoles"]


def item(**changes: Any) -> dict[str, Any]:
    """Return a good item of an answer, changed."""
    good = {
        "sourcePage": 1,
        "sourceQuote": "The mitochondrion is the powerhouse of the cell",
        "questionText": "What makes most of a cell's ATP?",
        "choices": choices(*TEXTS),
        "correctAnswers": ["A"],
        "explanation": "They burn sugar.",
    }
    return {**good, **changes}


def choices(*texts: Any) -> list[dict[str, Any]]:
    """Return choices with these texts, lettered."""
    return [{"index": "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[at % 26], "text": text} for at, text in enumerate(texts)]


def cleaned(*items: Any) -> tuple[list[Question], Report]:
    """Return what remains of a batch of pages 11 to 13, and the report."""
    report = Report()
    return clean(items, tuple(PAGES), PAGES.__getitem__, report), report


def question(text: str, *texts: str, right: str = "A", page: int = 1, explanation: str = "") -> Question:
    """Return a clean question."""
    return {
        "questionText": text,
        "type": "multi_select" if len(right) > 1 else "single_select",
        "choices": choices(*(texts or TEXTS)),
        "correctAnswers": list(right),
        "explanation": explanation,
        "sourcePages": [page],
    }


def right_texts(question: Question) -> list[str]:
    """Return the texts of the right choices."""
    return [choice["text"] for choice in question["choices"] if choice["index"] in question["correctAnswers"]]


class TestParse:
    """An answer is read in whatever wrapping it comes."""

    @pytest.mark.parametrize(
        "wrapping",
        [
            '{"questions": %s}',
            "%s",
            '```json\n{"questions": %s}\n```',
            "```\n%s\n```\n",
            'Here are {some} questions [3]:\n```json\n{"questions": %s}\n```\nGood luck!',
            '\ufeff {"title": "x", "questions": %s}',
        ],
    )
    def test_reads_an_object_a_list_or_a_fence(self, wrapping: str) -> None:
        """The items are the same in each wrapping."""
        items = [item(), item(explanation="Write ```code``` [1] {2}")]
        assert parse_answer(wrapping % json.dumps(items)) == items

    def test_reads_what_can_only_be_meant_as_questions(self) -> None:
        """A question by itself, also one of the caller's own form; a list under another name."""
        assert parse_answer(json.dumps(item())) == [item()]
        own = {"sourcePage": 1, "front": "a", "hints": [{"text": "b"}]}
        assert parse_answer(json.dumps(own)) == [own]
        assert parse_answer(json.dumps({"title": "x", "tags": ["a"], "exam": [item()]})) == [item()]

    def test_a_broken_list_is_not_its_first_question(self) -> None:
        """The caller asks once more."""
        with pytest.raises(UnreadableAnswer):
            parse_answer(json.dumps([item(), item()]).replace("}, {", "} {"))

    def test_reads_raw_line_breaks_in_texts(self) -> None:
        """Models leave out the escape."""
        assert parse_answer('[{"explanation": "one\ntwo"}]') == [{"explanation": "one\ntwo"}]

    def test_numbers_that_are_no_json_become_null(self) -> None:
        """What could not be stored does not come in."""
        assert parse_answer('[{"a": NaN, "b": -Infinity, "c": 1e999}]') == [{"a": None, "b": None, "c": None}]

    @pytest.mark.parametrize(
        "text",
        [
            *("", "I can't help with that.", '{"error": "no"}', '{"questions": 3}', "[" * 100_000, "7", '"[1"'),
            *(
                "I can't read these pages [1].",
                '{"error": "unreadable", "pages": []}',
                '{"questions": ["Why?"]}',
                "[1, 2]",
            ),
            '{"questions": {"choices": [{"text": "a"}]}}',
        ],
    )
    def test_refuses_what_holds_no_questions(self, text: str) -> None:
        """The caller asks once more."""
        with pytest.raises(UnreadableAnswer):
            parse_answer(text)

    @pytest.mark.parametrize("wrapping", ['{"questions": %s}', "%s", "```json\n%s"])
    def test_keeps_the_complete_items_of_a_cut_answer(self, wrapping: str) -> None:
        """Wherever the text was cut, each item that was complete by then is kept, unchanged."""
        items = [item(questionText=f"Question {at} }} ]") for at in range(3)]
        text = wrapping % json.dumps(items)
        kept = [parse_answer(text[:end], complete=False) for end in range(len(text) + 1)]
        assert all(found == items[: len(found)] for found in kept)
        assert sorted({len(found) for found in kept}) == [0, 1, 2, 3]

    @given(st.text(alphabet='[]{},:" \\"questions`1ae\n', max_size=60), st.booleans())
    def test_any_text_is_read_or_refused(self, text: str, complete: bool) -> None:
        """No text makes it fail in another way."""
        try:
            items = parse_answer(text, complete=complete)
        except UnreadableAnswer:
            assert complete
        else:
            assert isinstance(items, list)


class TestRepair:
    """What can be put right without guessing is; the rest is dropped, and counted by reason."""

    def test_keeps_a_good_question(self) -> None:
        """A good item loses only the evidence."""
        (kept,), report = cleaned(item())
        expected = {name: value for name, value in item().items() if not name.startswith("source")}
        assert kept == {**expected, "type": "single_select", "sourcePages": [11]}
        assert report.to_json() == {"proposed": 1, "dropped": {}, "noted": {}}

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"questionText": " \u200b\n"}, "empty"),
            ({"questionText": None}, "empty"),
            ({"choices": []}, "too_few_choices"),
            ({"choices": choices("only")}, "too_few_choices"),
            ({"choices": choices("Same", "same ", "SAME"), "correctAnswers": ["A"]}, "too_few_choices"),
            ({"choices": choices("print", "Print", "x"), "correctAnswers": ["A"]}, "too_few_choices"),
            ({"choices": choices(*map(str, range(27)))}, "too_many_choices"),
            ({"correctAnswers": []}, "no_answer"),
            ({"correctAnswers": None}, "no_answer"),
            ({"correctAnswers": ["E"]}, "unknown_answer"),
            ({"correctAnswers": ["A", "Z"]}, "unknown_answer"),
            ({"correctAnswers": "A, Z"}, "unknown_answer"),
            ({"correctAnswers": [2]}, "unknown_answer"),
            ({"correctAnswers": [True]}, "unknown_answer"),
            ({"correctAnswers": ["Golgi"]}, "unknown_answer"),
            ({"correctAnswers": ["A"], "choices": choices("", "x", "y")}, "unknown_answer"),
            ({"choices": [{"index": "A", "text": "x"}, {"index": "A", "text": "y"}]}, "unknown_answer"),
            ({"choices": ["0", "1", "2"], "correctAnswers": ["1"]}, "unknown_answer"),
            ({"choices": choices("x" * 2001, "y")}, "too_long"),
            ({"questionText": "x" * 10_001}, "too_long"),
        ],
    )
    def test_drops_what_can_not_be_answered(self, changes: dict[str, Any], reason: str) -> None:
        """Each kind of unusable question is counted under its reason."""
        kept, report = cleaned(item(**changes))
        assert kept == []
        assert report.dropped == {reason: 1}

    @pytest.mark.parametrize("bad", [None, 3, "text", [], [item()]])
    def test_drops_what_is_no_object(self, bad: Any) -> None:
        """A list may hold anything."""
        assert cleaned(bad)[1].dropped == {"malformed": 1}

    @pytest.mark.parametrize(
        ("answers", "right"),
        [
            (["b"], "B"),
            (["B)"], "B"),
            (["(b)"], "B"),
            (["Option B"], "B"),
            ("B", "B"),
            ("A, C", "AC"),
            ("a and c", "AC"),
            (["C", "A", "C"], "AC"),
            (["ribosomes "], "B"),
            (["B) Ribosomes"], "B"),
            (["2"], "B"),
            ([0], "A"),
            ([4], "D"),
            ([{"index": "B"}], "B"),
        ],
    )
    def test_understands_answers_in_other_words(self, answers: Any, right: str) -> None:
        """An answer that can mean one choice only means that choice."""
        (kept,), _ = cleaned(item(correctAnswers=answers))
        assert kept["correctAnswers"] == list(right)
        assert kept["type"] == ("multi_select" if len(right) > 1 else "single_select")

    @pytest.mark.parametrize(
        "given",
        [
            TEXTS,
            dict(zip("ABCD", TEXTS, strict=True)),
            [{"index": str(at + 1), "text": text} for at, text in enumerate(TEXTS)],
            [{"text": text} for text in TEXTS],
            [f"{letter}) {text}" for letter, text in zip("ABCD", TEXTS, strict=True)],
            choices(*[f"({letter}) {text}" for letter, text in zip("abcd", TEXTS, strict=True)]),
        ],
    )
    def test_letters_choices_of_any_form(self, given: Any) -> None:
        """Choices come out lettered, without a letter in their text."""
        (kept,), _ = cleaned(item(choices=given, correctAnswers=["B"]))
        assert kept["choices"] == choices(*TEXTS)
        assert right_texts(kept) == ["Ribosomes"]

    def test_takes_out_a_repeated_wrong_choice(self) -> None:
        """The rest is lettered anew, and the answer follows its text."""
        (kept,), report = cleaned(item(choices=choices("x", "X ", "", "y"), correctAnswers=["D"]))
        assert kept["choices"] == choices("x", "y")
        assert kept["correctAnswers"] == ["B"]
        assert report.noted["choices_removed"] == 1

    def test_a_right_choice_outlives_its_wrong_copy(self) -> None:
        """The same text, once right and once wrong, is right."""
        (kept,), _ = cleaned(item(choices=choices("x", "x", "y"), correctAnswers=["B"]))
        assert right_texts(kept) == ["x"]

    def test_an_explanation_does_not_outlive_its_letters(self) -> None:
        """Where letters change, an explanation that names one would be wrong."""
        (kept,), _ = cleaned(item(choices=choices("x", "x", "y"), correctAnswers=["C"], explanation="C is right."))
        assert (kept["correctAnswers"], kept["explanation"]) == (["B"], "")

    def test_exponents_tell_choices_apart(self) -> None:
        """Compatibility folding would make 2³ and 23 equal."""
        (kept,), _ = cleaned(item(choices=choices("2³", "23", "x₂"), correctAnswers=["A"]))
        assert len(kept["choices"]) == 3

    def test_numbers_are_taken_as_texts(self) -> None:
        """A model may write a choice as a number."""
        (kept,), _ = cleaned(item(choices=choices(1, 2.5, True)))
        assert [choice["text"] for choice in kept["choices"]] == ["1", "2.5", "true"]

    def test_strips_what_can_not_be_stored(self) -> None:
        """Control characters, lone surrogates and noncharacters are gone; line breaks stay."""
        (kept,), _ = cleaned(item(questionText="\x00What\x07 is\r\nit\ud800\ufffe?\x1b"))
        assert kept["questionText"] == "What is\nit?"

    def test_a_looping_model_takes_no_time(self) -> None:
        """Models are known to write white space up to their limit, anywhere."""
        space = " \n" * 100_000
        looped = item(
            sourceQuote=f"The{space}cell",
            questionText=f"What does the answer{space}do?",
            choices=choices(*[f"{text}{space}A{space}and" for text in TEXTS], "x", "y"),
            explanation=f"The answer{space}is",
            correctAnswers=[f"A,{space}B"],
        )
        start = time.monotonic()
        _, report = cleaned(looped, item(explanation=looped["explanation"]), item(correctAnswers=f"A{space}B"))
        assert report.dropped == {"too_long": 1, "unknown_answer": 1}
        assert time.monotonic() - start < 5

    def test_a_long_explanation_is_cut(self) -> None:
        """An explanation is no reason to lose a question."""
        (kept,), _ = cleaned(item(explanation="x" * 50_000))
        assert len(kept["explanation"]) == 10_000


class TestSource:
    """The quote, looked for in the text of the pages, corrects the page that the model named."""

    @pytest.mark.parametrize(
        ("page", "quote", "found"),
        [
            (1, "The mitochondrion is the powerhouse of the cell", [11]),
            (3, "the mitochondrion is the power\u00adhouse of the cell", [11]),
            (2, "The mitochondrion … is the power-house of the cell, and it makes", [11]),
            (1, "Ribosomes build protiens from amino acid; some are bound", [12]),
            (1, "bound to the endoplasmic reticulum and others swim freely", [12, 13]),
            (3, "nothing of the kind stands anywhere in this book", [13]),
            (2, "", [12]),
            (2, None, [12]),
            (2, "cell", [12]),
            (1, "cytoplasm", [13]),
            (None, "Ribosomes build proteins from amino acids", [12]),
            (12, "nothing of the kind stands anywhere in this book", [12]),
            (99, "", [13]),
            (0, "", [11]),
            ("2", "", [12]),
            (2.0, "", [12]),
            ([2], "", [12]),
            (float("inf"), "", [11]),
            ("x", "", [11]),
        ],
    )
    def test_finds_the_page(self, page: Any, quote: Any, found: list[int]) -> None:
        """Hyphens, case, typing errors, ellipses and page breaks do not matter; without a find the page counts."""
        (kept,), _ = cleaned(item(sourcePage=page, sourceQuote=quote))
        assert kept["sourcePages"] == found

    def test_a_sentence_on_several_pages_is_the_nearest(self) -> None:
        """A running head stands on every page."""
        texts = dict.fromkeys(range(1, 8), "The same sentence stands on many a page.")
        kept = clean([item(sourcePage=5, sourceQuote=texts[1])], tuple(texts), texts.__getitem__, Report())
        assert kept[0]["sourcePages"] == [5]

    def test_counts_what_it_corrects(self) -> None:
        """The log tells how far the model's page numbers can be trusted."""
        _, report = cleaned(item(sourcePage=3), item(sourceQuote="nothing of the kind stands anywhere"))
        assert report.noted == {"page_corrected": 1, "quote_not_found": 1}


class TestDuplicates:
    """A repeated question is asked once; a different one is never taken for it."""

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("What is the capital of France?", "what is  the CAPITAL of France?"),
            ("What is the capital of France?", "Which is the capital of France?"),
            ("What is the capital of France?", "What is the capital city of France?"),
            ("Which cell organelle produces most ATP?", "Which cell organelles produce most ATP?"),
        ],
    )
    def test_drops_what_asks_the_same(self, one: str, other: str) -> None:
        """Small words, endings and additions make no new question."""
        report = Report()
        kept = assemble([question(one), question(other, page=2)], max_questions=None, report=report)
        assert [entry["sourcePages"] for entry in kept] == [[1]]
        assert report.dropped == {"duplicate": 1}

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (question("What is 12 + 30?"), question("What is 12 + 31?")),
            (question("What takes 2.5 hours to grow?"), question("What takes 5.2 hours to grow?")),
            (question("The solver ode15i uses what method?"), question("The solver ode15s uses what method?")),
            (question("What is x + y in this case?"), question("What is x - y in this case?")),
            (question("Which of these cells has a nucleus?"), question("Which of these cells has no nucleus?")),
            (question("Which of these is true of mammals?"), question("Which of these isn't true of mammals?")),
            (question("Who wrote the famous play Hamlet?"), question("Who wrote the famous play Macbeth?")),
            (question("Which drug treats hypertension best?"), question("Which drug treats hypotension best?")),
            (question("What does the command print?", "x", "y"), question("What does the command print?", "z", "w")),
            (
                question("The ____ of a cell makes its energy.", "mitochondrion", "wall"),
                question("The ____ of a cell makes its protein.", "ribosome", "wall"),
            ),
            (
                question("Heat flows from warm bodies to cold bodies.", "True", "False"),
                question("Heat flows from cold bodies to warm bodies.", "True", "False"),
            ),
            (
                question("Water boils at a lower temperature.", "True", "False"),
                question("Water boils at a lower temperature on mountains.", "True", "False"),
            ),
        ],
    )
    def test_keeps_what_asks_something_else(self, one: Question, other: Question) -> None:
        """Numbers, signs, negations, names and other answers make another question."""
        report = Report()
        assert len(assemble([one, other], max_questions=None, report=report)) == 2
        assert not report.dropped

    def test_a_contradicting_copy_is_dropped(self) -> None:
        """The same question with the same choices and another answer can't be asked beside the first."""
        pair = [question("What makes most ATP?", right="A"), question("What makes most ATP?", right="B")]
        assert len(assemble(pair, max_questions=None, report=Report())) == 1


class TestOrder:
    """The right answer stands in each place equally often, wherever the texts allow another order."""

    def test_the_right_answer_is_in_each_place_equally_often(self) -> None:
        """A model that always answers A gives an exam that does not."""
        made = [
            question(f"What is number {at}?", *[f"{at} {text}" for text in TEXTS], page=at + 1) for at in range(400)
        ]
        shuffled = assemble(made, max_questions=None, report=Report())
        assert Counter(entry["correctAnswers"][0] for entry in shuffled) == dict.fromkeys("ABCD", 100)

    def test_the_right_answer_stays_right(self) -> None:
        """Only places change: the texts, and which of them are right, stay."""
        made = [question(f"What is number {at}?", *TEXTS, right="BD", page=at + 1) for at in range(20)]
        shuffled = assemble(made, max_questions=None, report=Report())
        assert all(sorted(right_texts(entry)) == ["Ribosomes", "Vacuoles"] for entry in shuffled)
        assert len({tuple(choice["text"] for choice in entry["choices"]) for entry in shuffled}) > 1

    def test_the_order_is_the_same_each_time(self) -> None:
        """A run that is repeated publishes the same exam, also if the model gave the choices in another order."""
        made = [question(f"What is number {at}?", page=at + 1) for at in range(20)]
        turned = [{**entry, "choices": choices(*reversed(TEXTS)), "correctAnswers": ["D"]} for entry in made]
        once = assemble(made, max_questions=None, report=Report())
        assert once == assemble(turned, max_questions=None, report=Report())

    @pytest.mark.parametrize(
        "last",
        [
            "All of the above",
            "none of these",
            "Both A and C",
            "A and B",
            "(a) or (c)",
            "Only B",
            "B only",
            "Neither",
            "Options 1 and 2",
            "Toate cele de mai sus",
            "Niciuna dintre acestea",
            "Ninguna de las anteriores",
            "Aucune de ces réponses",
            "Keine der genannten",
            "Nessuna delle precedenti",
            "\u0412\u0441\u0435 вышеперечисленное",  # Russian: all of the above
        ],
    )
    def test_choices_that_mean_others_stay(self, last: str) -> None:
        """`All of the above` is only right at the end."""
        made = [question(f"What is number {at}?", "x", "y", "z", last, right="D", page=at + 1) for at in range(8)]
        assert assemble(made, max_questions=None, report=Report()) == made

    @pytest.mark.parametrize(
        "explanation",
        [
            "Option B is right because of ATP.",
            "A is correct.",
            "The others are wrong; B and C are organelles.",
            "As (b) says, it is so.",
            "A describes the process.",
            "The second option is wrong.",
            "Varianta C este corectă.",
            "Antwort D stimmt.",
            "\u041e\u0442\u0432\u0435\u0442 \u0412.",  # Russian: answer V
            "See choice 2.",
        ],
    )
    def test_choices_named_in_the_explanation_stay(self, explanation: str) -> None:
        """An explanation that names a letter must not become wrong."""
        made = [question(f"What is number {at}?", page=at + 1, explanation=explanation) for at in range(8)]
        assert assemble(made, max_questions=None, report=Report()) == made

    @pytest.mark.parametrize(
        ("text", "explanation"),
        [
            ("What does a cell do?", "A cell makes ATP."),
            ("What does malloc return in C?", "In C, malloc returns a pointer."),
            ("Which answer would a doctor give?", "I think so."),
        ],
    )
    def test_letters_that_mean_no_choice_do_not_matter(self, text: str, explanation: str) -> None:
        """An article or the name of a language is no reason to leave the answer at A."""
        made = [question(f"{text} {at}", page=at + 1, explanation=explanation) for at in range(8)]
        assert assemble(made, max_questions=None, report=Report()) != made


class TestExam:
    """The exam is in reading order, of the size asked for, with ids that are never used again."""

    def test_reads_in_the_order_of_the_pages(self) -> None:
        """Corrected pages decide; on one page the model's order stays."""
        made = [question(f"What is number {at}?", page=page) for at, page in enumerate([3, 1, 2, 1])]
        kept = assemble(made, max_questions=None, report=Report())
        assert [entry["questionText"][-2] for entry in kept] == ["1", "3", "2", "0"]

    def test_picks_evenly_over_the_document(self) -> None:
        """A chapter with many questions does not crowd out the others."""
        pages = [1] * 80 + list(range(2, 101))
        made = [question(f"What is number {at}?", page=page) for at, page in enumerate(pages)]
        report = Report()
        picked = assemble(made, max_questions=10, report=report)
        assert len(picked) == 10
        per_fifth = Counter((entry["sourcePages"][0] - 1) // 20 for entry in picked)
        assert per_fifth == dict.fromkeys(range(5), 2)
        assert report.noted["not_picked"] == 169

    @given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 50))
    def test_picks_as_many_as_asked_for(self, pages: list[int], count: int) -> None:
        """All if there are fewer."""
        made = [question(f"What is number {at}?", page=page) for at, page in enumerate(pages)]
        picked = assemble(made, max_questions=count, report=Report())
        assert len(picked) == min(count, len(pages))

    def test_ids_sort_in_reading_order(self) -> None:
        """Also past ten, as text; the field is the document's id."""
        made = number([question(f"What is number {at}?") for at in range(120)], "t0k-en_1")
        ids = [entry["id"] for entry in made]
        assert ids[0] == "q00001-t0k-en_1"
        assert ids == sorted(ids)
        assert len(set(ids)) == 120

    def test_no_question_is_left_without_an_id(self) -> None:
        """However many there are, the ids sort."""
        made = number([{}] * 100_001, "t")
        ids = [entry["id"] for entry in made]
        assert len(set(ids)) == 100_001
        assert ids == sorted(ids)

    def test_the_report_says_what_was_lost_and_why(self) -> None:
        """One sentence, most frequent reason first; repetitions are no loss."""
        _, report = cleaned(item(), item(choices=[]), item(choices=[]), item(correctAnswers=[]))
        report.dropped["duplicate"] += 5
        assert report.warnings() == [
            "3 of 4 proposed questions could not be used: 2 had fewer than two different choices, 1 had no answer."
        ]
        assert Report().warnings() == []

    def test_reports_add_up(self) -> None:
        """The document's report is the sum of its batches'."""
        total = Report()
        for _ in range(2):
            _, report = cleaned(item(), item(choices=[]))
            total.add(report)
        assert (total.proposed, total.dropped) == (4, {"too_few_choices": 2})


class TestCallersSchema:
    """With a caller's schema, items keep their own fields and are checked against it."""

    SCHEMA = CallerSchema.parse(
        {
            "type": "object",
            "properties": {"term": {"type": "string", "minLength": 3}, "level": {"enum": ["easy", "hard"]}},
            "required": ["term"],
            "additionalProperties": False,
        }
    )

    def exam(self, *items: Any, max_questions: int | None = None) -> tuple[list[Question], Report]:
        """Return the exam made of one batch."""
        report = Report()
        kept = clean(items, tuple(PAGES), PAGES.__getitem__, report, self.SCHEMA)
        return number(assemble(kept, max_questions=max_questions, report=report, schema=self.SCHEMA), "t"), report

    def test_own_fields_are_stored_as_they_are(self) -> None:
        """Only `id` and `sourcePages` are added; the evidence goes."""
        made, _ = self.exam({"sourcePage": 1, "sourceQuote": "Ribosomes build proteins from", "term": "  ribosome\n"})
        assert made == [{"term": "  ribosome\n", "sourcePages": [12], "id": "q00001-t"}]

    def test_what_does_not_fit_is_dropped_and_counted(self) -> None:
        """The original schema decides, bounds included."""
        made, report = self.exam({"term": "ab"}, {"term": "abc", "level": "odd"}, {"term": "abc", "x": 1}, [], None)
        assert made == []
        assert report.dropped == {"schema": 5}

    def test_the_services_fields_win(self) -> None:
        """A caller's own `id` and `sourcePages` give way, and its own `sourcePage` becomes the document's page."""
        names = {name: {"type": "integer"} for name in ("id", "sourcePages", "sourcePage")}
        schema = CallerSchema.parse({"properties": names, "required": list(names)})
        answer = [{"id": 7, "sourcePages": 1, "sourcePage": 2}]
        kept = clean(answer, tuple(PAGES), PAGES.__getitem__, Report(), schema)
        made = number(assemble(kept, max_questions=None, report=Report(), schema=schema), "t")
        assert made == [{"id": "q00001-t", "sourcePages": [12], "sourcePage": 12}]

    def test_copies_are_dropped(self) -> None:
        """The same item from another page is no second question."""
        made, report = self.exam({"sourcePage": 1, "term": "Cell"}, {"sourcePage": 3, "term": "cell "})
        assert [entry["sourcePages"] for entry in made] == [[11]]
        assert report.dropped == {"duplicate": 1}


# Arbitrary answers: any JSON, and JSON that comes near a question in every way we could think of.
words = st.text(max_size=6) | st.sampled_from(["", " ", "A", "b", "a", "x", "X ", "\u200b", "²", "2", "\x00", "\ud800"])
plain = st.none() | st.booleans() | st.integers(-3, 5) | st.floats() | words
anything = st.recursive(
    plain, lambda below: st.lists(below, max_size=4) | st.dictionaries(words, below, max_size=4), max_leaves=12
)
labels = st.sampled_from(["A", "B", "C", "a", "1", "2", "", "AA", "é"]) | plain
near_choices = st.lists(st.fixed_dictionaries({"index": labels, "text": words}) | words | anything, max_size=6)
near = st.fixed_dictionaries(
    {},
    optional={
        "sourcePage": st.integers(-2, 20) | anything,
        "sourceQuote": st.sampled_from(list(PAGES.values())) | anything,
        "questionText": st.sampled_from(["What?", "What? 1", "not what?"]) | anything,
        "choices": near_choices | st.dictionaries(labels.filter(lambda v: isinstance(v, str)), words) | anything,
        "correctAnswers": st.lists(labels, max_size=3) | anything,
        "explanation": anything,
    },
)


@given(st.lists(near | anything, max_size=8), st.none() | st.integers(1, 4))
def test_whatever_the_model_answers_the_exam_can_be_answered(items: list[Any], count: int | None) -> None:
    """Everything published satisfies contract §3, and every item is published, dropped or left out for a reason."""
    text = json.dumps({"questions": items})
    assume(not items or any(isinstance(one, dict) for one in items))  # else it is no answer: see TestParse
    report = Report()
    kept = clean(parse_answer(text), tuple(PAGES), PAGES.__getitem__, report)
    made = number(assemble(kept, max_questions=count, report=report), "tok")
    for entry in made:
        published(entry)
    lost = sum(report.dropped.values()) + report.noted["not_picked"]
    assert len(made) + lost == report.proposed == len(items)
    assert [entry["sourcePages"][0] for entry in made] == sorted(entry["sourcePages"][0] for entry in made)


@given(st.text())
def test_whatever_text_the_model_writes_the_exam_can_be_answered(text: str) -> None:
    """Also a text that is not JSON at all."""
    for entry in clean(parse_answer(text, complete=False), tuple(PAGES), PAGES.__getitem__, Report()):
        published({**entry, "id": "q00001-t"})


def published(entry: Question) -> None:
    """Assert contract §3, written down a second time and independently of the code's own schema."""
    fields = {"id", "questionText", "type", "choices", "correctAnswers", "explanation", "sourcePages"}
    assert set(entry) == fields
    assert re.fullmatch(r"[A-Za-z0-9_-]+", entry["id"])
    texts = [choice["text"] for choice in entry["choices"]]
    letters = [choice["index"] for choice in entry["choices"]]
    assert letters == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")[: len(letters)]
    assert 2 <= len(letters) == len({fold(text) for text in texts})
    assert all(text.strip() for text in [entry["questionText"], *texts])
    assert entry["correctAnswers"]
    assert set(entry["correctAnswers"]) <= set(letters)
    assert len(entry["correctAnswers"]) == len(set(entry["correctAnswers"]))
    assert entry["type"] == ("multi_select" if len(entry["correctAnswers"]) > 1 else "single_select")
    assert isinstance(entry["explanation"], str)
    assert entry["sourcePages"]
    assert set(entry["sourcePages"]) <= set(PAGES)
    assert len(json.dumps(entry, ensure_ascii=False, allow_nan=False).encode("utf-8")) < 500_000
    assert not QuestionSchema(exclude=()).validate({name: entry[name] for name in fields - {"id"}})


def test_the_largest_question_fits_a_firestore_document() -> None:
    """Every text at its limit, in the widest characters, stays under half of 1 MiB."""
    widest = "\U0001f600"
    largest = item(
        questionText=widest * 10_000,
        choices=choices(*[widest * 1_990 + f"{at:010}" for at in range(26)]),
        explanation=widest * 10_000,
    )
    (kept,), _ = cleaned(largest)
    published({**kept, "id": "q00001-t"})
