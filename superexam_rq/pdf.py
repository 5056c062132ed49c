"""PDFium: open a PDF, refuse what can't be read, count its pages, cut it into parts, read a page's text.

Also the grammar of a page selection such as `3-40,55`. Where the bytes come from (uploads) and who asks for
which part (pipeline) is elsewhere.
"""

from __future__ import annotations

import io
import re
import threading
from typing import TYPE_CHECKING

import pypdfium2
from pypdfium2 import PdfDocument, PdfiumError

from superexam_rq.errors import PdfInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

# PDFium keeps state for the whole process and is not thread-safe, not even between two documents.
_PDFIUM = threading.Lock()

_ERROR_PASSWORD = pypdfium2.raw.FPDF_ERR_PASSWORD
_ERROR_SECURITY = pypdfium2.raw.FPDF_ERR_SECURITY

# PDFium, as other readers, takes a header that begins within the first KiB.
_HEADER_SPAN = 1024
# PDFium marks a hyphen that only breaks a line with U+0002 (older versions: U+FFFE).
_SOFT_BREAK = re.compile("[\x02\ufffe]\\s*")
MEGABYTE = 2**20

# Parts that are larger hold more than their pages, if they are that many times their share of the document.
_SMALL_PART = 4 * MEGABYTE
_BLOAT = 3


class Document:
    """Hold one open PDF; a context manager whose methods may be called from several threads."""

    def __init__(self, document: PdfDocument, page_count: int, size: int) -> None:
        self._document = document
        self._bytes_per_page = size / page_count
        self._bloats = False
        self.page_count = page_count

    @classmethod
    def open(cls, data: bytes, *, max_bytes: int, max_pages: int) -> Document:
        """Open a PDF from its bytes; raises `PdfInvalid` with a sentence for the teacher.

        A PDF that opens with an empty password, as any reader opens it, is not locked.
        """
        if not data:
            raise PdfInvalid("The PDF is empty: upload the file again")
        if len(data) > max_bytes:
            raise too_large(len(data), max_bytes)
        if b"%PDF-" not in data[:_HEADER_SPAN]:
            raise PdfInvalid("The file is not a PDF: export it as PDF and upload that")
        with _PDFIUM:
            try:
                document = PdfDocument(data)
            except PdfiumError as error:
                raise _refusal(error, data) from None
            page_count = len(document)
            if not 0 < page_count <= max_pages:
                document.close()
        if page_count < 1:
            raise _no_pages()
        if page_count > max_pages:
            raise PdfInvalid(
                f"The PDF has {page_count} pages, more than the {max_pages} that are taken: upload it in parts"
            )
        return cls(document, page_count, len(data))

    def __enter__(self) -> Document:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the document's memory back."""
        with _PDFIUM:
            self._document.close()

    def readable(self, pages: Iterable[int]) -> tuple[int, ...]:
        """Return those of the pages (1-based) that are not damaged; raises `PdfInvalid` if all of them are."""
        found = tuple(page for page in pages if self._is_readable(page))
        if not found:
            raise PdfInvalid("The PDF is damaged: none of its pages can be read")
        return found

    def _is_readable(self, page: int) -> bool:
        with _PDFIUM:
            try:
                self._document.get_page_size(page - 1)
            except PdfiumError:
                return False
        return True

    def cut(self, pages: Sequence[int]) -> bytes:
        """Return a PDF of just these pages (1-based), unencrypted, in the order given.

        A page that is too damaged to be copied becomes a blank one, so that the others keep their places;
        raises `PdfInvalid` if that is so for all of them. The bytes differ each time: PDFium gives a file a random id.
        """
        with _PDFIUM:
            if not self._bloats:
                part = self._cut(pages)
                expected = max(_SMALL_PART, _BLOAT * self._bytes_per_page * len(pages))
                if len(part) <= expected:
                    return part
                self._bloats = True
            self._trim(pages)
            return self._cut(pages)

    def _cut(self, pages: Sequence[int]) -> bytes:
        part = PdfDocument.new()
        try:
            self._copy(part, pages)
            stream = io.BytesIO()
            part.save(stream)
        finally:
            part.close()
        return stream.getvalue()

    def _trim(self, pages: Sequence[int]) -> None:
        """Let each page hold on to what it shows alone.

        Some programs (FPDF, TCPDF) name all images of a document in one list that all pages share, and every part
        would carry them all. PDFium drops what a page does not use when its content changes: by an empty path here.
        """
        for page in pages:
            try:
                handle = self._document[page - 1]
            except PdfiumError:
                continue
            path = pypdfium2.raw.FPDFPageObj_CreateNewPath(0, 0)
            pypdfium2.raw.FPDFPath_SetDrawMode(path, pypdfium2.raw.FPDF_FILLMODE_NONE, False)
            pypdfium2.raw.FPDFPage_InsertObject(handle, path)
            pypdfium2.raw.FPDFPage_GenerateContent(handle)
            handle.close()

    def _copy(self, part: PdfDocument, pages: Sequence[int]) -> None:
        try:
            part.import_pages(self._document, [page - 1 for page in pages])
        except PdfiumError:
            copied = 0
            for at, page in enumerate(pages):
                try:
                    part.import_pages(self._document, [page - 1], at)
                    copied += 1
                except PdfiumError:
                    part.new_page(595, 842, at).close()
            if not copied:
                raise PdfInvalid(f"The PDF is damaged: {name_pages(pages)} can't be read") from None

    def text(self, page: int) -> str:
        """Return the text of a page (1-based) in reading order; empty for a scan or a damaged page."""
        with _PDFIUM:
            try:
                handle = self._document[page - 1]
            except PdfiumError:
                return ""
            try:
                layer = handle.get_textpage()
                try:
                    text: str = layer.get_text_bounded()
                finally:
                    layer.close()
            except PdfiumError:
                return ""
            finally:
                handle.close()
        return _SOFT_BREAK.sub("", text).replace("\r\n", "\n").replace("\0", "")


def _refusal(error: PdfiumError, data: bytes) -> PdfInvalid:
    if error.err_code == _ERROR_PASSWORD:
        return PdfInvalid("The PDF is locked with a password: remove it and upload the file again")
    if error.err_code == _ERROR_SECURITY:
        return PdfInvalid("The PDF is locked by a protection that can't be read: upload an unprotected copy")
    # PDFium calls a document without any page a format error.
    if re.search(rb"/Count\s+0\b", data) and re.search(rb"/Kids\s*\[\s*\]", data):
        return _no_pages()
    return PdfInvalid("The PDF is damaged and can't be opened: export or scan it again")


def _no_pages() -> PdfInvalid:
    return PdfInvalid("The PDF has no pages: upload the file again")


def too_large(size: int, max_bytes: int) -> PdfInvalid:
    """Return the error for a PDF of `size` bytes where `max_bytes` are taken."""
    shown = max(size, max_bytes + MEGABYTE // 10) / MEGABYTE
    return PdfInvalid(
        f"The PDF is too large: {shown:.1f} MB, and {max_bytes / MEGABYTE:g} MB are taken: upload it in parts"
    )


def batches(pages: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Return the pages in groups of `size`, in order; `Document.cut` makes a PDF of a group when it is needed."""
    return [tuple(pages[start : start + size]) for start in range(0, len(pages), size)]


def name_pages(pages: Sequence[int]) -> str:
    """Return pages as a reader would write them: `page 7`, `pages 3-40, 55`."""
    spans = [str(first) if first == last else f"{first}-{last}" for first, last in _spans(sorted(set(pages)))]
    return f"{'page' if len(set(pages)) == 1 else 'pages'} {', '.join(spans)}"


def _spans(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for at, page in enumerate(pages):
        if at + 1 == len(pages) or pages[at + 1] != page + 1:
            yield pages[start], page
            start = at + 1
