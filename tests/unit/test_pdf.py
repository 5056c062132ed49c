"""What `pdf` promises: which files it refuses and in which words, what a part holds."""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pypdfium2
import pytest
from fpdf import FPDF

from superexam_rq import pdf
from superexam_rq.errors import PdfInvalid

LIMITS = {"max_bytes": 1_000_000, "max_pages": 50}

NO_PAGES = b"""%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj
trailer<</Root 1 0 R/Size 3>>
%%EOF"""


def make_pdf(pages: int, *, user_password: str | None = None) -> bytes:
    """Return a PDF whose pages say their number; a user password locks it, an empty one only encrypts it."""
    document = FPDF()
    for page in range(1, pages + 1):
        document.add_page()
        document.set_font("Helvetica", size=12)
        document.cell(text=f"This is page number {page}.")
    if user_password is not None:
        document.set_encryption(owner_password="owner", user_password=user_password)
    return bytes(document.output())


def broken_page(data: bytes, page: int) -> bytes:
    """Return the PDF with a page that can't be read, at the same length."""
    kids = re.search(rb"/Kids \[([^\]]*)\]", data)
    assert kids
    numbers = kids[1].split()
    numbers[3 * (page - 1)] = b"0" * len(numbers[3 * (page - 1)])
    return data[: kids.start(1)] + b" ".join(numbers).ljust(len(kids[1])) + data[kids.end(1) :]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "PDF is empty"),
        (b"Dear Sir or Madam", "not a PDF"),
        (b"PK\x03\x04 word/document.xml", "not a PDF"),
        (b"%PDF-1.4\n", "PDF is damaged"),
        (make_pdf(3)[:400], "PDF is damaged"),
        (NO_PAGES, "PDF has no pages"),
        (make_pdf(2, user_password="secret"), "PDF is locked with a password"),
        (make_pdf(51), "PDF has 51 pages"),
        (make_pdf(1).ljust(1_000_001), "PDF is too large"),
    ],
)
def test_refuses_what_can_not_be_read(data: bytes, words: str) -> None:
    """Each unreadable file gets a sentence for the teacher whose useful words, and PDF, come first."""
    with pytest.raises(PdfInvalid) as caught:
        pdf.Document.open(data, **LIMITS)
    assert words in str(caught.value)[:60]


def test_a_size_over_the_limit_is_never_shown_as_the_limit() -> None:
    """One byte too many is not told as `100.0 MB, and 100 MB are taken`."""
    assert "100.1 MB, and 100 MB" in str(pdf.too_large(100 * 2**20 + 1, 100 * 2**20))


def test_takes_junk_before_the_header() -> None:
    """A mail header before `%PDF` within the first KiB is passed over, as every reader does."""
    with pdf.Document.open(b"X-Mail: 1\n" + make_pdf(2), **LIMITS) as document:
        assert document.page_count == 2


def test_reads_the_text_of_a_page() -> None:
    """Pages count from 1."""
    with pdf.Document.open(make_pdf(3), **LIMITS) as document:
        assert document.text(2) == "This is page number 2."


def test_a_part_holds_just_its_pages_in_order() -> None:
    """A part is a PDF of its own with the pages asked for."""
    with pdf.Document.open(make_pdf(9), **LIMITS) as document:
        part = document.cut((2, 5, 9))
    with pdf.Document.open(part, **LIMITS) as cut:
        assert [cut.text(page) for page in (1, 2, 3)] == [f"This is page number {page}." for page in (2, 5, 9)]
        assert cut.page_count == 3


def test_parts_of_a_protected_pdf_are_not_encrypted() -> None:
    """A PDF that opens without a password is read, and Gemini, which takes no encrypted PDF, gets plain parts."""
    data = make_pdf(3, user_password="")
    assert b"/Encrypt" in data
    with pdf.Document.open(data, **LIMITS) as document:
        part = document.cut((2, 3))
    assert b"/Encrypt" not in part
    with pdf.Document.open(part, **LIMITS) as cut:
        assert cut.text(1) == "This is page number 2."


def test_a_damaged_page_becomes_a_blank_one() -> None:
    """The other pages of the part keep their places, so that page numbers stay right."""
    with pdf.Document.open(broken_page(make_pdf(4), 2), **LIMITS) as document:
        part = document.cut((1, 2, 3))
        assert document.text(2) == ""
    with pdf.Document.open(part, **LIMITS) as cut:
        assert [cut.text(page) for page in (1, 2, 3)] == ["This is page number 1.", "", "This is page number 3."]


def test_a_part_of_damaged_pages_alone_is_refused() -> None:
    """Nothing is sent to Gemini that holds no page of the document."""
    with (
        pdf.Document.open(broken_page(make_pdf(4), 2), **LIMITS) as document,
        pytest.raises(PdfInvalid, match="PDF is damaged: page 2 can't be read"),
    ):
        document.cut((2,))


def test_damaged_pages_are_known_before_anything_is_cut() -> None:
    """What can be read is kept; nothing but damage is refused."""
    with pdf.Document.open(broken_page(make_pdf(4), 2), **LIMITS) as document:
        assert document.readable(range(1, 5)) == (1, 3, 4)
        with pytest.raises(PdfInvalid, match="PDF is damaged"):
            document.readable((2,))


def sharing_pdf(pages: int, image_bytes: int) -> bytes:
    """Return a PDF whose pages show one image each, and share one list of all images, as FPDF writes it."""
    catalog, tree, shared = 1, 2, 3
    images = [
        b"<</Type/XObject/Subtype/Image/Width 9/Height 9/ColorSpace/DeviceGray/BitsPerComponent 8/Length %d>>"
        b"stream\n%s\nendstream" % (image_bytes, random.Random(page).randbytes(image_bytes))
        for page in range(pages)
    ]
    contents = [b"<</Length 27>>stream\nq 9 0 0 9 0 0 cm /I%03d Do Q\nendstream" % page for page in range(pages)]
    leaves = [
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Resources 3 0 R/Contents %d 0 R>>" % (shared + pages + page)
        for page in range(1, pages + 1)
    ]
    names = b"".join(b"/I%03d %d 0 R" % (page, shared + 1 + page) for page in range(pages))
    kids = b" ".join(b"%d 0 R" % (shared + 2 * pages + page) for page in range(1, pages + 1))
    objects = {
        catalog: b"<</Type/Catalog/Pages 2 0 R>>",
        tree: b"<</Type/Pages/Count %d/Kids[%s]>>" % (pages, kids),
        shared: b"<</XObject<<%s>>>>" % names,
        **dict(enumerate([*images, *contents, *leaves], start=shared + 1)),
    }
    body = b"".join(b"%d 0 obj%s endobj\n" % entry for entry in objects.items())
    return b"%%PDF-1.4\n%strailer<</Root 1 0 R/Size %d>>\n%%%%EOF" % (body, len(objects) + 1)


def shown(data: bytes, page: int) -> bytes:
    """Return a page as pixels."""
    with closing(pypdfium2.PdfDocument(data)) as document:
        return bytes(document[page - 1].render().buffer)


def test_a_part_does_not_carry_the_images_of_other_pages() -> None:
    """Also where all pages share one list of images; the pages look the same."""
    data = sharing_pdf(50, 200_000)
    with pdf.Document.open(data, max_bytes=2**24, max_pages=50) as document:
        parts = [document.cut(batch) for batch in pdf.batches(range(1, 51), 10)]
    assert max(map(len, parts)) < 2_200_000
    assert shown(parts[4], 10) == shown(data, 50) != shown(data, 49)


def test_one_document_serves_many_threads() -> None:
    """PDFium is not thread-safe, so the document takes one caller at a time; each gets its own pages."""
    with pdf.Document.open(make_pdf(40), **LIMITS) as document, ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(document.cut, [(page,) for page in range(1, 41)]))
        texts = list(pool.map(document.text, range(1, 41)))
    assert texts == [f"This is page number {page}." for page in range(1, 41)]
    assert all(len(pypdfium2.PdfDocument(part)) == 1 for part in parts)


def test_batches_cover_the_pages_in_order() -> None:
    """The last batch may be smaller."""
    assert pdf.batches((3, 4, 5, 9, 10), 2) == [(3, 4), (5, 9), (10,)]
