"""Uploads in Cloud Storage: the real client against an emulator in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import requests
from google.cloud.storage import Bucket, Client

from superexam_rq import uploads
from superexam_rq.config import Settings
from superexam_rq.errors import PdfInvalid, PdfMissing
from superexam_rq.sandbox.processes import free_port
from tests.stack import eventually

BUCKET = "exam-uploads"
SETTINGS = Settings(gcs_bucket_name=BUCKET, max_pdf_mb=1)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of an emulator that lives as long as this module's tests."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "gcp_storage_emulator", "start", "-H", "127.0.0.1", f"--port={port}", "-M", "-q"]
    with subprocess.Popen(
        [sys.executable, *command, f"--default-bucket={BUCKET}"], cwd=tmp_path_factory.mktemp("emulator")
    ) as process:
        try:
            eventually(lambda: _answers(url), "the storage emulator")
            yield url
        finally:
            process.kill()


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/storage/v1/b/{BUCKET}", timeout=1).ok
    except requests.RequestException:
        return False


@pytest.fixture
def bucket(emulator: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give the bucket as the website's side sees it; the service finds the emulator by Google's variable."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    with closing(Client()) as client:
        yield client.bucket(BUCKET)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("1763900000000-notes.pdf", "1763900000000-notes.pdf"),
        ("school/notes.pdf", "school/notes.pdf"),
        ("school/notes.pdf", f"gs://{BUCKET}/school/notes.pdf"),
        ("uploads/notes.pdf", "/uploads/notes.pdf"),
        # Not with a percent sign: the emulator's download links leave it unescaped.
        ("notes (1) + more.pdf", "notes (1) + more.pdf"),
        ("Prüfung 试卷.pdf", "Prüfung 试卷.pdf"),
        (unicodedata.normalize("NFD", "Été.pdf"), unicodedata.normalize("NFC", "Été.pdf")),
    ],
)
def test_reads_an_object(bucket: Bucket, name: str, path: str) -> None:
    """The name is taken as it is, or behind `gs://` and the bucket, or behind a slash."""
    bucket.blob(name).upload_from_string(b"%PDF-1.7 " + name.encode())
    assert uploads.read_upload(path, SETTINGS) == b"%PDF-1.7 " + name.encode()


@pytest.mark.parametrize(
    "path", ["missing.pdf", "gs://other/school/notes.pdf", f"gs://{BUCKET}/", "../x.pdf", "/", "n" * 2000, "a\nb"]
)
def test_finds_nothing_else(bucket: Bucket, path: str) -> None:
    """No object, or one of another bucket, is a missing PDF; the text shows no bucket and no path."""
    with pytest.raises(PdfMissing) as caught:
        uploads.read_upload(path, SETTINGS)
    assert str(caught.value).startswith("PDF file not found")
    assert "/" not in str(caught.value)


def test_a_bucket_that_does_not_exist_holds_nothing(bucket: Bucket) -> None:
    """Google answers 404 for it as for an object."""
    with pytest.raises(PdfMissing):
        uploads.read_upload("a.pdf", Settings(gcs_bucket_name="no-such-bucket"))


def test_refuses_a_large_object_before_loading_it(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size in the object's metadata decides."""
    bucket.blob("large.pdf").upload_from_string(b"x" * (2**20 + 1))

    def load(*_arguments: object, **_options: object) -> bytes:
        raise AssertionError("it was loaded")

    monkeypatch.setattr("google.cloud.storage.Blob.download_as_bytes", load)
    with pytest.raises(PdfInvalid, match=r"PDF is too large: 1\.1 MB"):
        uploads.read_upload("large.pdf", SETTINGS)


def test_a_storage_that_is_away_is_worth_another_try(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens: transient within bounded time, and the text names no address."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(uploads, "_STORAGE_RETRY_SECONDS", 1.0)
    with pytest.raises(uploads.UploadsUnavailable) as caught:
        uploads.read_upload("a.pdf", SETTINGS)
    assert caught.value.code == "internal"
    assert "127.0.0.1" not in str(caught.value)
