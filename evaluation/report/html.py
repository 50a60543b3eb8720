"""HTML written from Python: what was made here is markup, any other text is escaped, and every tag is closed."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

VOID = {"br", "hr", "img", "meta"}
_UNSEEN = {code: "\ufffd" for code in (*range(9), 11, 12, *range(14, 32), 127)}
"""Control characters, which no page may hold: file names can."""


class Html(str):
    """Markup: it goes into a page as it is. Any other `str` is text and gets escaped."""

    __slots__ = ()


def escape(text: str) -> Html:
    """Text as markup; `Html` stays what it is. What UTF-8 or a page can't hold is shown in another way."""
    if isinstance(text, Html):
        return text
    storable = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return Html(html.escape(storable.translate(_UNSEEN), quote=True))


def plain(text: str) -> str:
    """Markup as the text that is read of it; other text as it is."""
    return html.unescape(re.sub(r"<[^>]*>", "", text)) if isinstance(text, Html) else text


def join(parts: Iterable[Html]) -> Html:
    """Pieces of markup, one after the other."""
    return Html("".join(parts))


def element(tag: str, /, *content: str, **attributes: str | float | bool | None) -> Html:
    """`<tag attributes>content</tag>`, text escaped.

    In the names of attributes an underscore stands for a hyphen, and one at the end is dropped (`class_`). True
    gives a bare attribute, None and False leave it out.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if tag in VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{''.join(escape(part) for part in content)}</{tag}>")


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
