"""Read XML that may come from anybody: no entities, no other files, no more than a stated size."""

from __future__ import annotations

from typing import Any, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from pipeline.errors import DataError
from pipeline.storage.path import StoragePath

MEBIBYTE = 1 << 20


def read_xml(file: StoragePath, root: str, most_bytes: int) -> Element:
    """Return the outermost element, which is to have the name `root`.

    Raises DataError, which does not name the file, for others: larger ones, and those with a document type, in which
    entities that grow without end, or stand for other files, would be declared.
    """
    size = file.stamp()[0]
    if size > most_bytes:
        raise DataError(f"has {size:,} bytes; {most_bytes:,} are read")
    found = parse_xml(file.read())
    if found.tag != root:
        raise DataError(f"begins with <{found.tag:.40}>, where <{root}> is expected")
    return found


def parse_xml(data: bytes) -> Element:
    """Return the outermost element of XML. Raises DataError if it is none."""
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler, parser.buffer_text = builder.data, True
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, LookupError, ValueError, AssertionError) as error:
        raise DataError(f"can't be read as XML ({error})") from error


def _refuse_doctype(*declared: Any) -> NoReturn:
    raise ValueError("it declares a document type, which is not read: delete <!DOCTYPE ...>")


def text_of(element: Element, path: str) -> str | None:
    """Return the text of the first element at `path` below, without outer spaces; None if it is missing or blank."""
    return (element.findtext(path) or "").strip() or None
