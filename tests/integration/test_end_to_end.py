"""The main job on real input: HTTP in, RQ, Gemini over HTTP, Firestore over gRPC out."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import pytest

from superexam_rq.sandbox.gemini import Fault
from tests import pdfs
from tests.stack import Stack, eventually


@pytest.fixture(scope="module")
def sample() -> bytes:
    """Give the PDF that the demo shows."""
    return (resources.files("superexam_rq.sandbox") / "sample.pdf").read_bytes()


def test_a_pdf_becomes_an_exam(service: Stack, sample: bytes) -> None:
    """A submitted document ends `ready`, with the fields and the questions of the contract."""
    service.add_document("harbour", sample, error="an old error")
    job = service.process("harbour")

    assert (job["status"], job["progress"], job["attempt"], job["max_attempts"]) == ("completed", 100, 1, 4)
    fields = service.fields("harbour")
    questions = service.questions("harbour")
    assert fields["status"] == "ready"
    assert fields["questionCount"] == job["question_count"] == len(questions) > 5
    assert fields["jobId"] == job["job_id"]
    assert (fields["systemPromptId"], fields["customPromptId"]) == ("sys", "cus")
    assert isinstance(fields["updatedAt"], int)
    assert not {"progress", "currentStep", "error", "staging"} & fields.keys()
    for question in questions:
        letters = [choice["index"] for choice in question["choices"]]
        assert letters == ["A", "B", "C", "D", "E", "F"][: len(letters)]
        assert set(question["correctAnswers"]) <= set(letters)
        assert question["type"] == ("single_select" if len(question["correctAnswers"]) == 1 else "multi_select")
        assert isinstance(question["explanation"], str)


def test_questions_are_stored_under_their_own_ids_in_reading_order(service: Stack, sample: bytes) -> None:
    """Ids sort as text in the order of the pages; the field `id` is the Firestore id."""
    service.add_document("order", sample)
    service.process("order")
    found = list(service.document("order").collection("questions").stream())
    assert [snapshot.id for snapshot in found] == [(snapshot.to_dict() or {})["id"] for snapshot in found]
    pages = [(snapshot.to_dict() or {})["sourcePages"][0] for snapshot in found]
    assert pages == sorted(pages)


def test_source_pages_are_pages_of_the_whole_document(service: Stack) -> None:
    """With several batches, `sourcePages` counts in the document, not in the batch that was sent."""
    service.add_document("long", pdfs.prose(45))
    service.process("long")
    questions = service.questions("long")
    assert max(question["sourcePages"][0] for question in questions) > 40
    for question in questions:
        # Page n of this PDF names n in each sentence, and the stand-in blanks at most one term of it.
        named = set(re.findall(r"\d+", question["questionText"] + str(question["choices"])))
        assert str(question["sourcePages"][0]) in named


def test_a_second_run_leaves_only_its_own_questions(service: Stack, sample: bytes) -> None:
    """After a second submission no question of the first run is left, and no id is used again."""
    service.add_document("again", sample)
    service.process("again")
    first = {question["id"] for question in service.questions("again")}
    job = service.process("again")
    second = {question["id"] for question in service.questions("again")}
    assert not first & second
    assert service.fields("again")["questionCount"] == len(second) == job["question_count"]


def test_a_passing_failure_is_retried(service: Stack) -> None:
    """What Gemini can't answer in one run is asked again by the next, and the document is `processing` until then."""
    service.gemini.script(Fault.overloaded(times=4))
    service.add_document("patience", pdfs.prose(1, start=60))
    job_id = service.submit("patience").json()["job_id"]
    waiting = eventually(lambda: (job := service.job(job_id))["retry_at"] and job, "the retry to be scheduled")
    assert re.fullmatch(r"Retrying in \d s \(attempt 2 of 4\)", waiting["current_step"])
    assert service.fields("patience")["status"] == "processing"
    job = service.wait_for_job(job_id)
    assert (job["status"], job["attempt"]) == ("completed", 2)
    assert service.fields("patience")["status"] == "ready"


def test_every_key_is_under_the_prefix(service: Stack, sample: bytes) -> None:
    """After jobs of all kinds, Redis holds no key outside `superexam:`."""
    service.add_document("keys", sample)
    service.process("keys")
    service.add_document("keys-2", b"")
    service.process("keys-2")
    names = {name.decode() for name in service.redis.scan_iter()}
    assert names
    assert {name for name in names if not name.startswith("superexam:")} == set()


# Each case: a document's id, its PDF, fields over the usual ones, options, the code, words of the error.
BROKEN: dict[str, tuple[bytes | None, dict[str, Any], dict[str, Any], str, str]] = {
    "no-file-path": (None, {"filePath": None}, {}, "pdf_missing", "PDF file not found"),
    "no-such-file": (None, {}, {}, "pdf_missing", "PDF file not found: no-such-file.pdf"),
    "outside": (None, {"filePath": "../../etc/passwd"}, {}, "pdf_missing", "PDF file not found"),
    "absolute": (None, {"filePath": "/etc/passwd"}, {}, "pdf_missing", "PDF file not found"),
    "not-a-pdf": (b"MZ this is a program", {}, {}, "pdf_invalid", "PDF"),
    "empty": (b"", {}, {}, "pdf_invalid", "PDF"),
    "damaged": (b"%PDF-1.7\n1 0 obj\n<<", {}, {}, "pdf_invalid", "PDF"),
    "locked": (pdfs.from_texts(["secret"], password="open"), {}, {}, "pdf_invalid", "PDF"),
    "no-system-prompt": (pdfs.prose(1), {}, {"system_prompt_id": "none"}, "prompt_missing", "system prompt 'none'"),
    "no-custom-prompt": (pdfs.prose(1), {}, {"custom_prompt_id": "none"}, "prompt_missing", "custom prompt 'none'"),
    "empty-prompt": (pdfs.prose(1), {}, {"custom_prompt_id": "blank"}, "prompt_missing", "custom prompt 'blank'"),
    "no-words": (pdfs.from_texts([""]), {}, {}, "no_questions", "nothing in this document"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_input_fails_at_once_with_a_sentence(service: Stack, case: str) -> None:
    """What can't be read fails in its first attempt, with the contract's code and words a teacher understands."""
    pdf, fields, options, code, words = BROKEN[case]
    service.db.document("superexam-custom-prompts", "blank").set({"content": "  "})
    service.add_document(case, pdf, **fields)
    job = service.process(case, **options)
    assert (job["status"], job["attempt"], job["error_code"]) == ("failed", 1, code)
    assert words in job["error"]
    document = service.fields(case)
    assert (document["status"], document["error"]) == ("failed", job["error"])
    assert not {"progress", "currentStep"} & document.keys()
    assert str(service.folder) not in job["error"]


def test_a_link_out_of_the_uploads_is_refused(service: Stack) -> None:
    """A symbolic link that leaves UPLOADS_DIR is no PDF file of ours."""
    target = service.folder / "outside.pdf"
    target.write_bytes(pdfs.prose(1))
    (service.uploads / "link.pdf").symlink_to(target)
    service.add_document("link", None, filePath="link.pdf")
    assert service.process("link")["error_code"] == "pdf_missing"


def test_an_unknown_document_ends_the_job(service: Stack) -> None:
    """A job for a document that does not exist fails without a retry and creates nothing."""
    job = service.process("nobody")
    assert (job["status"], job["attempt"], job["error_code"]) == ("failed", 1, "document_gone")
    assert not service.document("nobody").get().exists


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault.bad_key(times=None), "gemini_key", "API key"),
        (Fault.unauthenticated(times=None), "gemini_key", "API key"),
        (Fault.no_model(times=None), "gemini_model", "model"),
        (Fault.answer("I am sorry.", times=None), "no_questions", "no usable answer"),
        (Fault.answer('{"questions": [{"questionText": ""}]}', times=None), "no_questions", "No usable question"),
    ],
    ids=["key-400", "key-401", "model", "not-json", "nothing-usable"],
)
def test_what_gemini_refuses_for_good_fails_at_once(
    service: Stack, fault: Fault, code: str, words: str, request: pytest.FixtureRequest
) -> None:
    """A refused key, an unknown model and useless answers are permanent, and say what is wrong."""
    doc_id = f"refused-{request.node.callspec.id}"
    service.gemini.script(fault)
    try:
        service.add_document(doc_id, pdfs.prose(2, start=70))
        job = service.process(doc_id)
    finally:
        service.gemini.clear_faults()
    assert (job["status"], job["attempt"], job["error_code"]) == ("failed", 1, code)
    assert words in job["error"]
    assert service.fields(doc_id)["error"] == job["error"]
