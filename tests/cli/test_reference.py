"""The reference of the commands is up to date and complete."""

from __future__ import annotations

import subprocess
import sys

from cli.reference import markdown
from pipeline.errors import PROJECT


def test_cli_reference_page_is_up_to_date() -> None:
    page = PROJECT / "docs" / "reference" / "cli.md"
    assert page.read_text(encoding="utf-8") == markdown(), "run `python -m cli.reference > docs/reference/cli.md`"


def test_cli_reference_has_every_group() -> None:
    text = markdown()
    for heading in ("## must run\n", "## must export labels\n", "## must store sql\n", "## must artifacts gc\n"):
        assert heading in text


def test_app_loads_no_code_of_storages() -> None:
    """Its help is shown at once."""
    program = "import sys, cli.main; assert not {'fsspec', 'pydantic', 'torch', 'prefect'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
