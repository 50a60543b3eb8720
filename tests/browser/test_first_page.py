"""What the page opens on, in a real browser: labelled images, all teachers' labels together, and what the root is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from browser.answers import Answers
from tests.browser.chromium import CHROMIUM, launched, served
from tests.browser.copies import add_calibrated, copied
from tests.browser.test_newest_run import STARTED, write_run
from tests.conftest import World

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"), pytest.mark.timeout(300)]

RECIPE = """
name: street
teachers: {boxes: {}, masks: {}}
student: {thresholds: {boxes: 0.25}}
"""


@pytest.fixture(scope="module")
def answers(world: World, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    answers = copied(world, tmp_path_factory.mktemp("first") / "root")
    root = Path(answers.loading.root.path)
    add_calibrated(root, "boxes")
    write_run(root, "street-20990101-000000", RECIPE, STARTED, {"event": "ended", "error": "the disk is full"})
    answers.loading.refresh()
    return answers


@pytest.fixture(scope="module")
def address(answers: Answers) -> Iterator[str]:
    with served(answers) as found:
        yield found


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    with launched() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, bypass_csp=True)
        opened = context.new_page()
        opened.set_default_timeout(20_000)
        yield opened


def visit(page: Any, address: str, query: str = "") -> None:
    page.goto(f"{address}/{query}")
    page.wait_for_selector("main[aria-busy=false]")


def stores_of(page: Any) -> set[str]:
    """Return the makers whose labels are in the first picture."""
    source = urlsplit(page.locator(".tile img").first.get_attribute("src"))
    return {name.rpartition("-")[0] for name in parse_qs(source.query)["store"] if not name.startswith("true-")}


def test_page_opens_on_labelled_images_with_all_teachers_labels(page: Any, address: str, answers: Answers) -> None:
    visit(page, address)
    assert page.locator("#conditions span").all_inner_texts() == ["labelled=yes"]
    assert "f=" not in page.url
    assert stores_of(page) == set(answers.loading.newest_teachers())
    page.get_by_role("button", name="Remove labelled=yes").click()
    page.wait_for_function("!document.querySelector('#conditions li')")
    assert page.url.endswith("?f="), "a link without conditions is another one"
    page.reload()
    page.wait_for_selector("main[aria-busy=false]")
    assert page.locator("#conditions li").count() == 0


def test_page_toggles_a_teacher_in_the_link_and_by_the_keyboard(page: Any, address: str, answers: Answers) -> None:
    visit(page, address)
    everyone = set(answers.loading.newest_teachers())
    toggle = page.get_by_label("masks", exact=True)
    assert toggle.is_checked()
    toggle.focus()
    page.keyboard.press("Space")
    page.wait_for_function("!document.querySelector('.tile img').src.includes('store=masks')")
    page.wait_for_function("document.activeElement.id === 'show-masks'")
    assert stores_of(page) == everyone - {"masks"}
    visit(page, address, f"?{urlsplit(page.url).query}")
    assert stores_of(page) == everyone - {"masks"}, "the link shows the same"
    assert page.get_by_label("true labels").is_checked()


def test_page_shows_true_labels_of_the_images_own_set(page: Any, address: str) -> None:
    visit(page, address, "?f=set=truth&show=true-labels")
    source = parse_qs(urlsplit(page.locator(".tile img").first.get_attribute("src")).query)["store"]
    assert source
    assert all(name.startswith("true-truth-") for name in source)


def test_page_thresholds_begin_with_the_recipe(page: Any, address: str) -> None:
    visit(page, address)
    slider = page.get_by_label("Threshold of boxes", exact=True)
    assert slider.input_value() == "0.25"
    assert "(recipe street)" in page.locator(".layers").inner_text()
    assert "(the task\u2019s own)" in page.locator(".layers").inner_text()
    slider.fill("0.6")
    slider.dispatch_event("change")
    page.wait_for_selector(".layers:has-text('moved, recipe street: 0.25')")
    assert "t=boxes-" in page.url
    visit(page, address, "?store=boxes")
    assert page.locator("#threshold").input_value() == "0.25"
    assert page.locator("#threshold-origin").inner_text() == "(recipe street)"


def test_page_takes_a_teachers_name_for_its_newest_version(page: Any, address: str, answers: Answers) -> None:
    visit(page, address, "?store=boxes")
    assert page.locator("#store").input_value() == answers.store("boxes").name
    assert page.locator("#error").inner_text() == ""


def test_page_says_which_stores_there_are(page: Any, address: str) -> None:
    visit(page, address, "?store=nobody")
    page.wait_for_selector("#error:has-text('There is no label store “nobody”; there are boxes, boxes-')")
    assert page.locator(".tile").count() == 0
    page.locator("#store").select_option("*")
    page.wait_for_selector(".tile img")
    page.wait_for_function("document.getElementById('error').textContent === ''")


def test_page_header_says_what_the_root_is_and_can_be_folded(page: Any, address: str, answers: Answers) -> None:
    visit(page, address)
    header = page.locator("#overview")
    header.locator("td").first.wait_for()
    text = header.inner_text()
    assert "run street failed" in header.locator("summary").inner_text()
    assert "the disk is full" in text
    for teacher in answers.overview.to_json()["teachers"]:
        assert teacher["name"] in text
        assert teacher["version"] in text
    header.locator("summary").click()
    page.wait_for_function("!document.getElementById('overview').open")
    page.reload()
    page.wait_for_selector("#overview summary")
    assert header.get_attribute("open") is None, "it stays folded"
    header.locator("summary").click()


def test_page_legend_has_the_colors_of_boxes_and_masks(page: Any, address: str) -> None:
    visit(page, address, "?show=masks")
    page.wait_for_selector(".layers .swatch")
    colors = page.locator(".layers .swatch").evaluate_all("all => all.map((each) => each.style.background)")
    assert len(set(colors)) == len(colors)
    visit(page, address, "?show=depth")
    page.wait_for_selector(".layers .note:has-text('violet is near')")
    assert page.locator(".layers .swatch").count() == 0
