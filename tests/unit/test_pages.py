"""What a page selection means, and which are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superexam_rq.errors import PdfInvalid
from superexam_rq.pages import check_pages, parse_pages
from superexam_rq.pdf import name_pages


@pytest.mark.parametrize(
    ("selection", "pages"),
    [
        ("3-5,9", (3, 4, 5, 9)),
        (" 9 , 3 - 5 ", (3, 4, 5, 9)),
        ("4,2-4", (2, 3, 4)),
        ("9-999999", (9, 10)),
    ],
)
def test_reads_a_selection(selection: str, pages: tuple[int, ...]) -> None:
    """Pages come out ascending and once; what lies behind the end is left out."""
    assert parse_pages(selection, 10) == pages


@pytest.mark.parametrize("selection", ["", " ", "a", "1-", "-3", "0", "0-4", "5-3", "1;2", "1,,2", "1" * 7, "1," * 600])
def test_refuses_a_selection_that_says_nothing(selection: str) -> None:
    """The syntax is checked before there is a PDF; the text tells the caller what to write."""
    with pytest.raises(ValueError, match=r"[Pp]age|range"):
        check_pages(selection)


def test_a_selection_outside_the_document_names_its_length() -> None:
    """The teacher learns how many pages there are."""
    with pytest.raises(PdfInvalid, match="PDF has 10 pages"):
        parse_pages("11-20", 10)


@given(st.sets(st.integers(1, 60), min_size=1))
def test_names_pages_as_a_selection_that_means_them(pages: set[int]) -> None:
    """What a warning calls `pages 3-40, 55` can be typed as a selection."""
    named = name_pages(sorted(pages))
    assert parse_pages(named.split(" ", 1)[1], 60) == tuple(sorted(pages))


@given(st.text(alphabet="0123456789-, x", max_size=30))
def test_any_selection_is_read_or_refused(selection: str) -> None:
    """No text makes anything but a selection, or an error that says what is wrong."""
    try:
        check_pages(selection)
    except ValueError:
        return
    try:
        pages = parse_pages(selection, 30)
    except PdfInvalid:
        return
    assert pages
    assert set(pages) <= set(range(1, 31))
