"""The report's templates and SVG elements: markup stays as it is, any other text is escaped."""

from __future__ import annotations

from markupsafe import Markup

from evaluation.report.charts import element
from evaluation.report.html import ENVIRONMENT, ReportTable, StyledText, storable


def macro(name: str, *values: object) -> str:
    """Call a macro of the templates."""
    return str(getattr(ENVIRONMENT.get_template("macros.html").module, name)(*values))


def test_element_escapes_text_but_not_markup() -> None:
    inner = element("b", "<i>")
    assert element("p", "a & ", inner) == "<p>a &amp; <b>&lt;i&gt;</b></p>"


def test_element_escapes_attributes_and_names_them_as_html_does() -> None:
    made = element("div", class_='"><script>', aria_label="x", title=None)
    assert made == '<div class="&#34;&gt;&lt;script&gt;" aria-label="x"></div>'


def test_element_may_have_an_attribute_called_name() -> None:
    assert element("path", name="viewport") == '<path name="viewport"></path>'


def test_storable_replaces_what_a_page_cannot_hold() -> None:
    assert storable("a\x00b\x1b") == "a\ufffdb\ufffd"
    assert storable("bad\udcff.jpg") == "bad\\udcff.jpg"
    assert storable("two\nlines\t") == "two\nlines\t"


def test_table_escapes_cells_and_keeps_line_breaks_in_its_head() -> None:
    table = macro("table", ReportTable(["a\n<b>", "n"], [["<", StyledText("1 & 2", "good")]], {1}))
    assert "<th>a<br>&lt;b&gt;</th>" in table
    assert '<th class="n">n</th>' in table
    assert '<tr><td>&lt;</td><td class="n"><span class="good">1 &amp; 2</span></td></tr>' in table


def test_templates_escape_text_but_not_markup() -> None:
    template = ENVIRONMENT.from_string("<p title='{{ text }}'>{{ text }}{{ markup }}</p>")
    made = template.render(text="<\"'&", markup=Markup("<br>"))
    assert made == "<p title='&lt;&#34;&#39;&amp;'>&lt;&#34;&#39;&amp;<br></p>"


def test_bar_is_filled_by_its_share() -> None:
    assert "width:25.0%" in macro("bar", 0.25)
    assert "width:100.0%" in macro("bar", 1.7)
