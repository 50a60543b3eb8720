"""Markup made here stays as it is; anything else that reaches a page is text."""

from __future__ import annotations

from evaluation.report.html import element, escape, join, plain


def test_text_is_escaped_and_markup_is_not() -> None:
    inner = element("b", "<i>")
    assert element("p", "a & ", inner) == "<p>a &amp; <b>&lt;i&gt;</b></p>"


def test_attributes_are_escaped_and_named_as_html_names_them() -> None:
    made = element("div", class_='"><script>', aria_label="x", hidden=True, title=None, open=False)
    assert made == '<div class="&quot;&gt;&lt;script&gt;" aria-label="x" hidden></div>'


def test_an_attribute_may_be_called_name() -> None:
    assert element("meta", name="viewport") == '<meta name="viewport">'


def test_what_a_page_cannot_hold_is_shown_in_another_way() -> None:
    assert escape("a\x00b\x1b") == "a\ufffdb\ufffd"
    assert escape("bad\udcff.jpg") == "bad\\udcff.jpg"
    assert escape("two\nlines\t") == "two\nlines\t"


def test_joined_pieces_are_markup() -> None:
    joined = join([element("br"), escape("<")])
    assert element("p", joined) == "<p><br>&lt;</p>"


def test_the_text_of_markup_is_what_is_read_of_it() -> None:
    assert plain(element("p", "1 < 2, ", element("b", 'a "b"'), title="a > b")) == '1 < 2, a "b"'
    assert plain("<b> & text") == "<b> & text"
