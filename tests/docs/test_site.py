"""The documentation site builds without a warning, has every page, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import PROJECT
from tests.docs.pages import DOCS, PAGES, local_links, resolve

LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
"""Elements whose address a browser fetches by itself, and the attribute that holds it."""
NAMED = re.compile(
    r"`((?:benchmarks|browser|cli|docs|evaluation|flows|ingest|pipeline|recipes|selfsup|student|tasks|teachers|tests)"
    r"/[\w./-]*)`"
)


class Elements(HTMLParser):
    """Collects what a page loads, and where its links lead."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADING and (address := values.get(LOADING[tag])) and values.get("rel") != "canonical":
            self.loads.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    config = (PROJECT / "mkdocs.yml").read_text("utf-8")
    assert "paths: [.]" in config
    (folder / "mkdocs.yml").write_text(config.replace("paths: [.]", f"paths: [{PROJECT}]"), "utf-8")
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder / "site"


def nav(entries: list[Any]) -> Iterator[str]:
    """Yield the pages of the site's navigation."""
    for entry in entries:
        for target in entry.values():
            if isinstance(target, list):
                yield from nav(target)
            else:
                yield target


def test_site_has_every_page_once() -> None:
    config = yaml.safe_load((PROJECT / "mkdocs.yml").read_text("utf-8"))
    pages = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    assert sorted(nav(config["nav"])) == pages, "add the page to `nav` in mkdocs.yml"


def test_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    for page in pages:
        for address in Elements(page).loads:
            assert not re.match(r"(https?:)?//", address), f"{page.name} loads {address}"
            file = page.parent / address.partition("?")[0].partition("#")[0]
            assert page.name == "404.html" or file.exists(), f"{page.name}: {address} is missing"


def test_site_has_the_plug_in_base_classes(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text("utf-8")
    for name in ("must.run", "pipeline.errors.ConfigError", "pipeline.sources.BaseSource", "tasks.task.Task"):
        assert f'id="{name}"' in page


@pytest.mark.parametrize("page", PAGES)
def test_links_of_pages_lead_to_files(page: str) -> None:
    missing = [path for path, _ in local_links(page) if not resolve(page, path).exists()]
    assert not missing, missing


@pytest.mark.parametrize("page", PAGES)
def test_files_named_on_pages_exist(page: str) -> None:
    text = (PROJECT / page).read_text("utf-8")
    missing = [name for name in NAMED.findall(text) if not (PROJECT / name).exists()]
    assert not missing, missing
