"""What `uploads` promises of a directory: which paths are read, and that no other file ever is."""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest

from superexam_rq.config import Settings
from superexam_rq.errors import PdfInvalid, PdfMissing
from superexam_rq.uploads import UploadsUnavailable, read_upload

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """Return a directory with uploads, beside a file that is none."""
    (tmp_path / "secret.pdf").write_bytes(b"secret")
    directory = tmp_path / "uploads"
    (directory / "school").mkdir(parents=True)
    (directory / "a.pdf").write_bytes(b"a")
    (directory / "school" / "b.pdf").write_bytes(b"b")
    return directory


@pytest.fixture
def settings(uploads: Path) -> Settings:
    """Return settings that look for uploads there."""
    return Settings(uploads_dir=uploads, max_pdf_mb=1)


@pytest.mark.parametrize(("path", "content"), [("a.pdf", b"a"), ("./a.pdf", b"a"), ("school/b.pdf", b"b")])
def test_reads_a_file_below_the_directory(settings: Settings, path: str, content: bytes) -> None:
    """A path is looked up below UPLOADS_DIR."""
    assert read_upload(path, settings) == content


def test_reads_an_absolute_path_inside_the_directory(settings: Settings, uploads: Path) -> None:
    """The seed's documents hold `/uploads/...`."""
    assert read_upload(f"{uploads}/school/b.pdf", settings) == b"b"


@pytest.mark.parametrize("name", ["100% sure + more.pdf", "a%20b.pdf", "Prüfung 试卷.pdf", 'été\'s "final".pdf'])
def test_reads_unusual_names(settings: Settings, uploads: Path, name: str) -> None:
    """Nothing in a name is decoded or escaped."""
    (uploads / name).write_bytes(b"x")
    assert read_upload(name, settings) == b"x"


@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_reads_names_in_the_other_normal_form(settings: Settings, uploads: Path, stored: Any, asked: Any) -> None:
    """A browser on a Mac writes é as two characters where the disk may have one."""
    (uploads / unicodedata.normalize(stored, "Été.pdf")).write_bytes(b"x")
    assert read_upload(unicodedata.normalize(asked, "Été.pdf"), settings) == b"x"


def test_follows_links_that_stay_inside(settings: Settings, uploads: Path) -> None:
    """A link is fine as long as it leads to an upload."""
    (uploads / "link.pdf").symlink_to("school/b.pdf")
    assert read_upload("link.pdf", settings) == b"b"


@pytest.mark.parametrize(
    "path",
    [
        "../secret.pdf",
        "school/../../secret.pdf",
        "school/../a.pdf",
        "{outside}",
        "leaves.pdf",
        "away/secret.pdf",
        "loop.pdf",
        "fifo.pdf",
        "school",
        ".",
        "/",
        "{inside}",
        "/dev/zero",
        "/etc/passwd",
        "missing.pdf",
        "a.pdf/b.pdf",
        "a.pdf\0.txt",
        "a\n.pdf",
        "\ud800.pdf",
        "n" * 300 + ".pdf",
        "d/" * 3000 + "a.pdf",
        "gs://bucket/a.pdf",
    ],
)
def test_finds_nothing_elsewhere(settings: Settings, uploads: Path, path: str) -> None:
    """Whatever is no regular file below the directory is not found, and the text shows no path."""
    (uploads / "leaves.pdf").symlink_to("../secret.pdf")
    (uploads / "away").symlink_to("..")
    (uploads / "loop.pdf").symlink_to("loop.pdf")
    os.mkfifo(uploads / "fifo.pdf")
    path = path.format(outside=uploads.parent / "secret.pdf", inside=uploads)
    with pytest.raises(PdfMissing) as caught:
        read_upload(path, settings)
    text = str(caught.value)
    assert text.startswith("PDF file not found")
    assert "/" not in text
    assert text.isprintable()
    assert len(text) < 150


@pytest.mark.parametrize("path", [None, "", "  ", 7, ["a.pdf"], {"a.pdf": 1}])
def test_a_document_without_a_path_has_no_pdf(settings: Settings, path: Any) -> None:
    """A missing or odd `filePath` is a missing PDF."""
    with pytest.raises(PdfMissing, match="PDF file not found: the document has none"):
        read_upload(path, settings)


def test_a_directory_that_does_not_exist_holds_nothing(settings: Settings, tmp_path: Path) -> None:
    """A service without its volume says that the file is missing."""
    with pytest.raises(PdfMissing, match=r"PDF file not found: a\.pdf"):
        read_upload("a.pdf", Settings(uploads_dir=tmp_path / "none"))


def test_refuses_a_large_file_before_reading_it(settings: Settings, uploads: Path) -> None:
    """The size decides; a sparse file of a terabyte takes no memory."""
    with (uploads / "large.pdf").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(PdfInvalid, match="PDF is too large"):
        read_upload("large.pdf", settings)


def test_reads_a_file_of_the_largest_size(settings: Settings, uploads: Path) -> None:
    """The limit itself is taken; one byte more is not."""
    (uploads / "full.pdf").write_bytes(b"x" * 2**20)
    assert len(read_upload("full.pdf", settings)) == 2**20
    (uploads / "full.pdf").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(PdfInvalid):
        read_upload("full.pdf", settings)


def test_a_disk_that_fails_is_worth_another_try(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An input/output error is transient, and the text names no path."""

    def fail(_descriptor: int, _size: int) -> bytes:
        raise OSError(5, "Input/output error", "/secret/place")

    monkeypatch.setattr(os, "read", fail)
    with pytest.raises(UploadsUnavailable) as caught:
        read_upload("a.pdf", settings)
    assert caught.value.retryable
    assert "/" not in str(caught.value).replace("Input/output", "")
    assert "a.pdf" in caplog.text
