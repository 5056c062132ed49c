"""A second opinion on the wire form: the same job against a Firestore emulator that is not ours."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.api_core.exceptions import GoogleAPICallError

from superexam_rq.sandbox.processes import free_port
from tests import npm, pdfs
from tests.stack import Stack, eventually, firestore_client, stack

SOURCES = Path(__file__).parent / "npm_emulator"


@pytest.fixture(scope="module")
def emulator(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the npm package's server and give its address."""
    folder = npm.install(SOURCES, request)
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(["node", "serve.cjs", address.rpartition(":")[2]], cwd=folder, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        yield address
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def service(emulator: str, tmp_path: Path) -> Iterator[Stack]:
    """Give a running service that keeps its documents in that emulator."""
    with stack(tmp_path, FIRESTORE_EMULATOR_HOST=emulator) as installation:
        installation.db.close()
        installation.db = firestore_client(emulator)
        eventually(lambda: _answers(installation), "the emulator to answer")
        installation.add_prompts()
        installation.start_api()
        installation.start_worker()
        yield installation


def _answers(installation: Stack) -> bool:
    try:
        installation.document("nobody").get(timeout=2)
    except GoogleAPICallError:
        return False
    return True


def test_a_pdf_becomes_an_exam_in_another_emulator(service: Stack) -> None:
    """The service uses nothing of Firestore that this emulator lacks for a document to end `ready`.

    It ignores DELETE_FIELD, so what the end of a run removes is not looked at here.
    """
    service.add_document("second-opinion", pdfs.prose(25))
    job = service.process("second-opinion")
    assert (job["status"], job["error"]) == ("completed", None)
    fields = service.fields("second-opinion")
    assert (fields["status"], fields["questionCount"]) == ("ready", job["question_count"])
    assert len(service.questions("second-opinion")) == job["question_count"]
