"""Set the sandbox's sample text as a PDF: `python tests/make_sample_pdf.py` writes it beside its source.

Only the PDF ships in use; this script is kept so that the text can be corrected and set again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from fpdf import FPDF

SANDBOX = Path(__file__).resolve().parent.parent / "superexam_rq" / "sandbox"


class _Course(FPDF):
    def footer(self) -> None:
        """Print the number of the page."""
        self.set_y(-15)
        self.set_font("Helvetica", size=9)
        self.cell(0, 10, str(self.page_no()), align="C")


def make_pdf(text: str) -> bytes:
    """Set a text with `# title` and `## heading` lines, one page for each heading; always the same bytes."""
    pdf = _Course(format="A4")
    pdf.set_creation_date(datetime(2000, 1, 1, tzinfo=UTC))
    pdf.set_margins(24, 22, 24)
    pdf.set_auto_page_break(True, 20)
    pdf.add_page()
    title, _, rest = text.partition("\n\n")
    subtitle, *sections = rest.split("## ")
    pdf.set_title(title.removeprefix("# "))
    pdf.set_font("Helvetica", "B", 24)
    pdf.multi_cell(0, 12, title.removeprefix("# "), new_x="LMARGIN", new_y="NEXT")
    pdf.set_font("Helvetica", size=13)
    pdf.multi_cell(0, 8, subtitle.strip(), new_x="LMARGIN", new_y="NEXT")
    pdf.ln(4)
    for number, section in enumerate(sections):
        heading, _, body = section.partition("\n\n")
        if number:
            pdf.add_page()
        pdf.set_font("Helvetica", "B", 15)
        pdf.multi_cell(0, 10, heading, new_x="LMARGIN", new_y="NEXT")
        pdf.set_font("Times", size=12)
        for paragraph in body.strip().split("\n\n"):
            pdf.ln(2)
            pdf.multi_cell(0, 6, " ".join(paragraph.split()), align="L", new_x="LMARGIN", new_y="NEXT")
    return bytes(pdf.output())


if __name__ == "__main__":
    source = (SANDBOX / "sample.md").read_text(encoding="utf-8")
    (SANDBOX / "sample.pdf").write_bytes(make_pdf(source))
