"""The commands `process` and `jobs` as a user runs them: processes of their own, against a running service."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from superexam_rq.sandbox.gemini import Fault
from superexam_rq.sandbox.processes import free_port
from tests import pdfs
from tests.stack import Stack, eventually


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    """Give a PDF of three pages, with a name that needs to be cleaned."""
    path = tmp_path / "My notes (1).pdf"
    path.write_bytes(pdfs.prose(3))
    return path


def only_document(stack: Stack, title: str) -> Any:
    """Return the snapshot of the newest document with a title."""
    found = [item for item in stack.db.collection("superexam-documents").stream() if item.get("title") == title]
    return max(found, key=lambda item: item.get("createdAt"))


class TestProcess:
    """The command `process FILE.pdf`."""

    def test_an_exam_is_made_and_printed(self, service: Stack, pdf: Path) -> None:
        """The questions go to standard output, the progress to standard error; the code is 0."""
        done = service.command("process", str(pdf))
        assert done.returncode == 0, done.stderr
        snapshot = only_document(service, "My notes (1)")
        count = snapshot.get("questionCount")
        assert snapshot.get("status") == "ready"
        assert done.stdout.rstrip().endswith(f"{count} questions")
        assert "✓" in done.stdout
        assert snapshot.id in done.stderr
        assert snapshot.get("jobId") in done.stderr

    def test_the_pdf_is_stored_as_the_website_stores_it(self, service: Stack, pdf: Path) -> None:
        """`filePath` is the bare name of a file in the uploads: a time, and the name without odd characters."""
        service.command("process", str(pdf))
        name = only_document(service, "My notes (1)").get("filePath")
        assert name.split("-", 1)[1] == "My_notes__1_.pdf"
        assert (service.uploads / name).read_bytes() == pdf.read_bytes()

    def test_json_is_one_object_alone_on_standard_output(self, service: Stack, pdf: Path) -> None:
        """With --json a script can read all that came of it."""
        done = service.command("process", str(pdf), "--json", "--pages", "2", "--max-questions", "1")
        result = json.loads(done.stdout)
        assert (done.returncode, result["status"], result["error"]) == (0, "ready", None)
        assert result["question_count"] == len(result["questions"]) == 1
        assert result["questions"][0]["sourcePages"] == [2]
        assert service.job(result["job_id"])["doc_id"] == result["doc_id"]

    def test_prompts_are_stored_once(self, service: Stack, pdf: Path, tmp_path: Path) -> None:
        """--prompt takes a text or @FILE; the same text is the same prompt, whose id the document has."""
        (tmp_path / "prompt.txt").write_text("Ask about harbours.")
        prompts = []
        for given in ("Ask about harbours.", f"@{tmp_path / 'prompt.txt'}"):
            done = service.command("process", str(pdf), "--json", "--prompt", given, "--system", "Be brief.")
            fields = service.fields(json.loads(done.stdout)["doc_id"])
            prompts.append((fields["systemPromptId"], fields["customPromptId"]))
        assert prompts[0] == prompts[1]
        for name, prompt_id, text in zip(
            ("system", "custom"), prompts[0], ("Be brief.", "Ask about harbours."), strict=True
        ):
            stored = service.db.document(f"superexam-{name}-prompts", prompt_id).get().to_dict() or {}
            assert stored["content"] == text

    def test_a_schema_of_the_caller_s_is_followed(self, service: Stack, pdf: Path, tmp_path: Path) -> None:
        """--schema names a file; questions of another shape are printed as they are."""
        schema = {"type": "object", "properties": {"riddle": {"type": "string"}}, "required": ["riddle"]}
        (tmp_path / "schema.json").write_text(json.dumps(schema))
        done = service.command("process", str(pdf), "--schema", str(tmp_path / "schema.json"))
        assert done.returncode == 0, done.stderr
        assert '"riddle"' in done.stdout

    def test_a_failed_job_is_told_and_ends_with_1(self, service: Stack, tmp_path: Path) -> None:
        """The reason is on standard error, or in the object."""
        broken = tmp_path / "broken.pdf"
        broken.write_bytes(b"not a PDF")
        done = service.command("process", str(broken))
        assert (done.returncode, done.stdout) == (1, "")
        assert "Failed: " in done.stderr
        done = service.command("process", str(broken), "--json")
        result = json.loads(done.stdout)
        assert (done.returncode, result["status"], result["error_code"]) == (1, "failed", "pdf_invalid")

    @pytest.mark.parametrize(
        "arguments",
        [
            ("no-such.pdf",),
            ("PDF", "--prompt", "@no-such-file"),
            ("PDF", "--prompt", " "),
            ("PDF", "--schema", "no-such-file"),
            ("PDF", "--max-questions", "0"),
            ("PDF", "--pages", "nine"),
        ],
    )
    def test_a_wrong_command_ends_with_2(self, service: Stack, pdf: Path, arguments: tuple[str, ...]) -> None:
        """Nothing is left stored, also where it is the service that refuses an option."""
        uploads = set(service.uploads.iterdir())
        documents = len(list(service.db.collection("superexam-documents").stream()))
        given = [str(pdf) if word == "PDF" else word for word in arguments]
        done = service.command("process", *given)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Error: " in done.stderr
        assert set(service.uploads.iterdir()) == uploads
        assert len(list(service.db.collection("superexam-documents").stream())) == documents

    def test_ctrl_c_leaves_the_job_running_and_says_how_to_go_on(self, service: Stack, pdf: Path) -> None:
        """The message names the job, and the commands to look at it and to cancel it."""
        service.gemini.script(Fault.wait(4))
        command = [sys.executable, "-m", "superexam_rq", "process", str(pdf)]
        with subprocess.Popen(
            command,
            env=service.environment,
            cwd=service.folder,
            stderr=subprocess.PIPE,
            text=True,
            # A shell in the background has it ignored, and so had we.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as running:
            assert running.stderr is not None
            # Before the command itself, gRPC in this process may have had a word to say about the fork.
            line = next(line for line in running.stderr if line.startswith("document "))
            job_id = line.rpartition(" ")[2].strip()
            eventually(lambda: service.job(job_id)["status"] == "processing", "the job to run")
            running.send_signal(signal.SIGINT)
            told = running.stderr.read()
            assert running.wait(10) == 130
        assert f"python -m superexam_rq jobs show {job_id}" in told
        assert f"python -m superexam_rq jobs cancel {job_id}" in told
        assert "Traceback" not in told
        assert service.wait_for_job(job_id)["status"] == "completed"


class TestRefusals:
    """What stands in the way is one line."""

    def test_no_service(self, service: Stack, pdf: Path) -> None:
        """Where nothing listens, the line names the address."""
        url = f"http://127.0.0.1:{free_port()}"
        done = service.command("process", str(pdf), "--url", url)
        assert done.returncode == 1
        assert done.stderr.startswith(f"Error: {url} can't be reached")

    def test_no_firestore(self, service: Stack, pdf: Path) -> None:
        """Nothing is submitted where the document can't be stored, and no PDF is left where the uploads are."""
        uploads = set(service.uploads.iterdir())
        total = service.http.get(f"{service.url}/jobs").json()["total"]
        done = service.command("process", str(pdf), FIRESTORE_EMULATOR_HOST=f"127.0.0.1:{free_port()}")
        assert done.returncode == 1
        assert done.stderr.startswith("Error: Firestore can't be used: ")
        assert len(done.stderr.splitlines()) == 1
        assert service.http.get(f"{service.url}/jobs").json()["total"] == total
        assert set(service.uploads.iterdir()) == uploads

    def test_another_service(self, service: Stack) -> None:
        """What answers, but not as this service would, is named too."""
        done = service.command("jobs", "list", "--url", service.gemini.url)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr

    def test_uploads_that_can_not_be_written(self, service: Stack, pdf: Path) -> None:
        """The line names the directory and the way out."""
        done = service.command("process", str(pdf), UPLOADS_DIR="/no/such/place")
        assert done.returncode == 1
        assert "can't be put into UPLOADS_DIR, /no/such/place" in done.stderr

    def test_a_wrong_setting(self, service: Stack) -> None:
        """A setting that can't be used is named before anything is done."""
        done = service.command("jobs", "list", PORT="many")
        assert done.returncode == 1
        assert done.stderr.startswith("Error: PORT takes")

    @pytest.mark.parametrize("command", ["api", "worker", "env", "doctor"])
    def test_a_prefix_that_rq_does_not_take(self, service: Stack, command: str) -> None:
        """RQ would refuse it with a traceback, before any setting is read."""
        done = service.command(command, REDIS_KEY_PREFIX="a b:", RQ_KEY_PREFIX="")
        told = done.stderr + done.stdout
        assert done.returncode == 1
        assert "REDIS_KEY_PREFIX takes letters, digits" in told
        assert "Traceback" not in told


@pytest.fixture
def ended(service: Stack) -> dict[str, dict[str, Any]]:
    """Give a completed and a failed job, the newest of all."""
    service.add_document("jobs-good", pdfs.prose(1))
    service.add_document("jobs-bad", b"")
    return {name: service.process(f"jobs-{name}") for name in ("good", "bad")}


class TestJobs:
    """The command `jobs …`."""

    def test_jobs_are_listed_newest_first(self, service: Stack, ended: dict[str, dict[str, Any]]) -> None:
        """Each line tells job, document, status, attempt and what came of it."""
        done = service.command("jobs", "list")
        assert done.returncode == 0, done.stderr
        newest, older = done.stdout.splitlines()[1:3]
        assert newest.split()[:4] == [ended["bad"]["job_id"], "jobs-bad", "failed", "1/4"]
        assert "pdf_invalid: The PDF is empty" in newest
        assert older.split()[:3] == [ended["good"]["job_id"], "jobs-good", "completed"]
        assert older.rstrip().endswith(f"{ended['good']['question_count']} questions")

    def test_the_list_can_be_narrowed(self, service: Stack, ended: dict[str, dict[str, Any]]) -> None:
        """--status, --doc and --limit are the API's; --json prints its answer."""
        done = service.command("jobs", "list", "--status", "failed", "--doc", "jobs-bad", "--limit", "1", "--json")
        found = json.loads(done.stdout)
        assert [job["job_id"] for job in found["jobs"]] == [ended["bad"]["job_id"]]
        assert service.command("jobs", "list", "--doc", "none").stdout.rstrip().endswith("No jobs")

    def test_one_job_is_shown(self, service: Stack, ended: dict[str, dict[str, Any]]) -> None:
        """All that is known, or the job object."""
        job_id = ended["bad"]["job_id"]
        shown = service.command("jobs", "show", job_id).stdout
        assert "The PDF is empty" in shown
        assert "pdf_invalid" in shown
        assert json.loads(service.command("jobs", "show", job_id, "--json").stdout) == service.job(job_id)

    @pytest.mark.parametrize("command", ["show", "cancel", "retry"])
    def test_an_unknown_job_is_told(self, service: Stack, command: str) -> None:
        """One line and code 1; odd ids reach no other path."""
        for job_id in ("no-such-job", "../health", "a b"):
            done = service.command("jobs", command, job_id)
            assert done.returncode == 1
            assert done.stderr.startswith("Error: ")
            assert len(done.stderr.splitlines()) == 1

    def test_a_waiting_job_is_cancelled_and_run_again(self, service: Stack) -> None:
        """`cancel` and `retry` say what they did, and refuse what can't be done in one line."""
        service.gemini.script(Fault.wait(3))
        service.add_document("jobs-first", pdfs.prose(1, start=500))
        service.add_document("jobs-second", pdfs.prose(1))
        first, second = (service.submit(f"jobs-{name}").json()["job_id"] for name in ("first", "second"))
        done = service.command("jobs", "cancel", second)
        assert (done.returncode, done.stdout) == (0, f"Job cancelled: {second}\n")
        assert service.job(second)["status"] == "cancelled"
        again = service.command("jobs", "cancel", second)
        assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)
        done = service.command("jobs", "retry", second)
        assert (done.returncode, done.stdout) == (0, f"Job queued successfully: {second}\n")
        assert service.wait_for_job(second)["status"] == "completed"
        assert service.wait_for_job(first)["status"] == "completed"
        again = service.command("jobs", "retry", second, "--json")
        assert (again.returncode, again.stdout, len(again.stderr.splitlines())) == (1, "", 1)


@pytest.fixture(scope="module")
def keyed_url(service: Stack) -> str:
    """Give the address of a second API process, which wants a key."""
    port = free_port()
    environment = {"PORT": str(port), "API_KEYS": "first-key,second-key"}
    service.children.start("keyed-api", "superexam_rq", "api", environment=environment)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return service.http.get(f"{url}/health/live", timeout=1).ok
        except requests.RequestException:
            return False

    service.children.wait_for("the keyed API", answers)
    return url


class TestKeys:
    """Which key is sent."""

    @pytest.mark.parametrize(
        ("variables", "code"),
        [
            ({}, 1),
            ({"API_KEYS": "first-key,second-key"}, 0),
            ({"API_KEYS": "wrong-key", "SUPEREXAM_KEY": "second-key"}, 0),
            ({"API_KEYS": "first-key", "SUPEREXAM_KEY": "wrong-key"}, 1),
        ],
    )
    def test_the_first_key_of_the_settings_unless_another_is_named(
        self, service: Stack, keyed_url: str, variables: dict[str, str], code: int
    ) -> None:
        """SUPEREXAM_KEY wins over API_KEYS; no message repeats a key."""
        done = service.command("jobs", "list", SUPEREXAM_URL=keyed_url, **variables)
        assert done.returncode == code
        assert "-key" not in done.stderr
        assert bool(done.stderr) is bool(code)
