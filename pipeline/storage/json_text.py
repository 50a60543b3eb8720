"""Read JSON that may come from anybody."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json


def load_json(data: bytes | str) -> Any:
    """Return the content of JSON; bytes are in UTF-8, UTF-16 or UTF-32, as they show.

    Raises ValueError for anything else, values that lie in one another too deeply among it.
    """
    return from_json(decode_json(data) if isinstance(data, bytes) else data)


def decode_json(data: bytes) -> str:
    """Return the text of JSON. Raises ValueError if it is in no encoding that JSON may have."""
    return data.decode(json.detect_encoding(data))
