"""PDF files for tests, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence

from fpdf import FPDF

SENTENCES = (
    "The harbour pilot of station {n} boards every vessel that draws more than {n} metres.",
    "Chlorophyll number {n} absorbs mostly red light and blue light near the surface.",
    "The treaty of article {n} obliges each member state to publish its annual figures.",
)


def prose(pages: int, *, start: int = 1) -> bytes:
    """Return a PDF whose page `i` holds sentences that name `i` and stand on no other page."""
    return from_texts([" ".join(text.format(n=number) for text in SENTENCES) for number in range(start, start + pages)])


def from_texts(texts: Sequence[str], *, password: str | None = None) -> bytes:
    """Return a PDF with one page for each text; with a password, one that needs it to be opened."""
    pdf = FPDF()
    pdf.set_font("Helvetica", size=12)
    if password is not None:
        pdf.set_encryption(owner_password=password + "-owner", user_password=password)
    for text in texts:
        pdf.add_page()
        pdf.multi_cell(0, 8, text)
    return bytes(pdf.output())
