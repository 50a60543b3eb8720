"""The page in a real browser, at two widths: clicks, keys, accessibility, and no requests to other machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser.answers import Answers
from pipeline.stores.rejections import read_rejections
from tests.browser.chromium import CHROMIUM, launched, served
from tests.browser.copies import add_calibrated, copied
from tests.conftest import World

SIZES = {"wide": (1280, 900), "narrow": (400, 800)}
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def answers(world: World, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    answers = copied(world, tmp_path_factory.mktemp("page") / "root")
    add_calibrated(Path(answers.loading.root.path), "boxes")
    answers.loading.refresh()
    return answers


@pytest.fixture(scope="module")
def address(answers: Answers) -> Iterator[str]:
    """Serve a copy of the tiny world; yield the address."""
    with served(answers) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as opened:
        yield opened


@pytest.fixture(params=["wide", pytest.param("narrow", marks=pytest.mark.slow)])
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Open the page. Errors in its console and requests to other machines fail the test."""
    width, height = SIZES[request.param]
    # conditions that a test waits for are evaluated by the page, which its own policy forbids
    context = browser.new_context(viewport={"width": width, "height": height}, bypass_csp=True)
    opened = context.new_page()
    opened.set_default_timeout(0)  # pytest's own ends a test that hangs
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if is_wrong(message) else None)
    opened.on("request", lambda sent: None if sent.url.startswith((address, "data:")) else wrong.append(sent.url))
    opened.on("dialog", lambda dialog: dialog.accept())
    opened.goto(address)
    opened.wait_for_selector(".tile img")
    yield opened
    context.close()
    assert wrong == []


def is_wrong(message: Any) -> bool:
    """Return True for an error that the page does not show; a refusal by the server it shows."""
    return message.type == "error" and "status of 400" not in message.text


def total(page: Any) -> int:
    page.wait_for_selector("main[aria-busy=false]")
    return int(page.locator(".pages span").first.inner_text().split(" of ")[1].replace(",", ""))


def narrow_down(page: Any, condition: str) -> None:
    page.locator("body").press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    page.keyboard.type(condition)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#conditions span:text-is('{condition}')")


def test_page_filters_combine_and_are_a_link(page: Any, browser: Any, answers: Answers) -> None:
    everything = total(page)
    narrow_down(page, "key~7")
    some = total(page)
    assert 0 < some < everything
    narrow_down(page, "key~0")
    fewer = total(page)
    assert fewer < some
    other = browser.new_page()
    other.goto(page.url)
    other.wait_for_selector(".tile img")
    assert total(other) == fewer, "the link shows the same"
    other.close()
    page.get_by_role("button", name="Remove key~0").click()
    page.wait_for_function("document.querySelectorAll('#conditions li').length === 2")
    assert total(page) == some
    page.go_back()
    page.wait_for_function("document.querySelectorAll('#conditions li').length === 3")
    assert total(page) == fewer


def test_page_shows_the_error_of_a_filter(page: Any) -> None:
    narrow_down(page, "wdth<3")
    page.wait_for_selector("#error:has-text(\"Did you mean 'width'?\")")
    page.get_by_role("button", name="Remove wdth<3").click()
    page.wait_for_function("document.getElementById('error').textContent === ''")
    assert total(page) > 0


def test_page_shows_reliability_where_a_threshold_is_a_probability(page: Any, answers: Answers) -> None:
    names = [name for name in answers.loading.stores if name.startswith("boxes-")]
    calibrated = next(name for name in names if name.endswith("c" * 12))
    page.locator("#store").select_option(calibrated)
    page.wait_for_selector("#threshold-kind:text-is('probability')")
    page.wait_for_function(
        "[...document.querySelectorAll('.histogram h2')].some((e) => e.textContent === 'probability')"
    )
    assert f"{calibrated}: lowest probability" in page.locator("#order").inner_text()
    page.locator("#threshold-kind").click()
    chart = page.locator("figure.reliability")
    chart.wait_for()
    assert "590 predictions in 30 images of truth/val" in chart.inner_text()
    assert "raw: off by 0.246" in chart.inner_text()
    assert "calibrated: off by 0.02" in chart.inner_text()
    assert chart.locator("circle").count() == 4
    page.locator("#store").select_option(next(name for name in names if name != calibrated))
    page.wait_for_selector("#threshold-kind:text-is('score')")
    page.wait_for_selector("main .note:has-text('The scores are not calibrated')")
    assert chart.count() == 0


def test_page_filters_by_a_click_on_a_histogram(page: Any) -> None:
    page.locator("#store").select_option(index=2)
    before = total(page)
    bars = page.locator(".histogram .bars button")
    page.wait_for_function("document.querySelectorAll('.histogram .bars button').length > 0")
    counts = [int(text.rsplit(": ", 1)[1].replace(",", "")) for text in bars.evaluate_all("e => e.map(x => x.title)")]
    chosen = max(range(len(counts)), key=counts.__getitem__)
    bars.nth(chosen).click()
    page.wait_for_function("document.querySelectorAll('#conditions li').length === 3")
    assert 0 < total(page) <= before
    assert total(page) == pytest.approx(counts[chosen], abs=1)


def test_page_draws_labels_with_another_threshold(page: Any, answers: Answers) -> None:
    store = next(store for store in answers.loading.stores.values() if store.label.space.task == "detection")
    page.select_option("#store", store.name)
    page.wait_for_function("name => document.querySelector('.tile img').src.includes(name)", arg=store.name)
    page.locator("#threshold").fill("0.9")
    page.locator("#threshold").dispatch_event("change")
    page.wait_for_function("document.querySelector('.tile img').src.includes('threshold=0.9')")
    assert "t=" in page.url


def test_page_dialog_shows_an_image_with_its_label_in_every_store(page: Any, answers: Answers) -> None:
    total(page)
    page.locator(".tile").first.click()
    page.wait_for_selector("dialog[open] .panel")
    key = page.locator("dialog code").inner_text()
    assert f"image={key}" in page.url
    titles = page.locator("dialog figcaption strong").all_inner_texts()
    image = answers.image_id(key)
    expected = [name for name in answers.loading.stores if answers.loading.label_file(name, image)]
    assert set(titles) >= {"image"}
    assert set(titles) - {"image"} <= set(expected)
    view = page.locator("dialog .view").nth(1)
    view.scroll_into_view_if_needed()
    view.hover()
    page.wait_for_timeout(300)
    page.keyboard.press("+")
    picture = page.locator("dialog .view img").first
    assert "scale(1.4)" in picture.get_attribute("style")
    zoomed = picture.get_attribute("style")
    page.mouse.down()
    box = view.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 20, box["y"] + box["height"] / 2 + 10)
    page.mouse.up()
    assert picture.get_attribute("style") != zoomed, "dragging moves all panels"
    page.keyboard.press("ArrowRight")
    page.wait_for_function("key => document.querySelector('dialog code').textContent !== key", arg=key)
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('dialog').open")
    assert "image=" not in page.url


def test_page_rejects_the_focused_tile_with_space_and_undoes_it(page: Any, answers: Answers) -> None:
    total(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    key = page.evaluate("document.activeElement.dataset.key")
    assert key == page.locator(".tile").nth(1).get_attribute("data-key")
    page.locator("#reason").fill("blurred")
    page.locator(f"[data-key='{key}']").focus()
    page.keyboard.press("Space")
    page.wait_for_selector(f".tile.rejected[data-key='{key}']")
    rows = read_rejections(answers.loading.root).to_pylist()
    assert [(row["key"], row["reason"]) for row in rows] == [(key, "blurred")]
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector(f".tile:not(.rejected)[data-key='{key}']")
    assert len(read_rejections(answers.loading.root)) == 0


def test_page_rejects_the_focused_tile_though_histograms_fail(page: Any, answers: Answers) -> None:
    total(page)
    page.route("**/api/histogram*", lambda route: route.fulfill(status=400, json={"error": "no histogram today"}))
    narrow_down(page, "key~7")
    page.wait_for_selector("#error:has-text('no histogram today')")
    tile = page.locator(".tile").first
    key = tile.get_attribute("data-key")
    tile.focus()
    page.keyboard.press(" ")
    page.wait_for_selector(".tile.rejected")
    assert {row["key"] for row in read_rejections(answers.loading.root).to_pylist()} == {key}
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function("!document.querySelector('.tile.rejected')")


def test_page_rejects_all_images_of_a_filter(page: Any, answers: Answers) -> None:
    page.get_by_role("button", name="Remove labelled=yes").click()
    narrow_down(page, "split=val")
    count = total(page)
    page.select_option("#scope", "")
    page.get_by_role("button", name="Reject all").click()
    page.wait_for_selector("#done:has-text('Rejected')")
    assert len(read_rejections(answers.loading.root)) == count
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector("#done:has-text('Undone')")
    assert len(read_rejections(answers.loading.root)) == 0


def test_page_compares_two_stores(page: Any, answers: Answers) -> None:
    stores = list(answers.loading.stores.values())
    one, other = next(
        (one, other) for one in stores for other in stores if one is not other and one.label.space == other.label.space
    )
    page.select_option("#store", one.name)
    page.wait_for_function("!document.getElementById('other').disabled")
    page.select_option("#other", other.name)
    page.wait_for_selector(".grid.wide .pair img:nth-child(2)")
    assert "differ" in page.url


def test_page_sql_view_runs_a_select(page: Any) -> None:
    page.get_by_role("link", name="SQL", exact=True).click()
    page.wait_for_selector("textarea")
    page.locator("textarea").fill("SELECT 'there are ' || count(*) AS said FROM images")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector("section[aria-label=Answer] td:has-text('there are')")
    page.locator("textarea").fill("DROP TABLE image_rows")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector("#error:has-text('Only one SELECT')")


@pytest.mark.parametrize("view", ["Balance", "Left out", "Health"])
def test_page_opens_the_other_views(page: Any, view: str) -> None:
    page.get_by_role("link", name=view, exact=True).click()
    page.wait_for_selector("main h2, main .note")
    page.wait_for_selector("main[aria-busy=false]")
    assert page.locator("#error").inner_text() == ""


def test_page_health_view_links_to_the_images_of_a_shard(page: Any) -> None:
    page.get_by_role("link", name="Health", exact=True).click()
    page.wait_for_selector("main td a")
    row = page.locator("main tr:has(td a)").first.locator("td").all_inner_texts()
    page.locator("main td a").first.click()
    page.wait_for_function("document.querySelectorAll('#conditions li').length === 3")
    assert total(page) == int(row[3].replace(",", ""))


def test_page_left_out_view_can_be_searched(page: Any) -> None:
    page.get_by_role("link", name="Left out", exact=True).click()
    page.get_by_label("Name or reason has").fill("nobody.png")
    page.keyboard.press("Enter")
    page.wait_for_selector("main .note:has-text('Nothing that was left out is called so.')")
    assert "has=nobody.png" in page.url


def test_page_focus_follows_the_document(page: Any) -> None:
    """Tab goes from control to control in their order in the document, into an opened image, and back to its tile."""
    page.wait_for_selector("main[aria-busy=false]")
    focusable = (
        "summary, a[href], button:not([disabled]), input:not([disabled]), select:not([disabled]), [tabindex='0']"
    )
    expected = page.evaluate(
        """selector => [...document.querySelectorAll(selector)].filter((each) => each.offsetParent !== null)
          .map((each, place) => (each.dataset.place = place, place))""",
        focusable,
    )
    page.evaluate("document.activeElement.blur()")
    passed = []
    for _ in expected:
        page.keyboard.press("Tab")
        passed.append(page.evaluate("Number(document.activeElement.dataset.place)"))
    assert passed == expected
    tile = page.locator(".tile").nth(1)
    key = tile.get_attribute("data-key")
    tile.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] .panel")
    for _ in range(8):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('dialog').open")
    assert page.evaluate("document.activeElement.dataset.key") == key


def test_page_has_nothing_wider_than_itself(page: Any) -> None:
    for view in ("images", "balance", "sql", "health", "left"):
        page.goto(page.url.split("?")[0] + f"?view={view}")
        page.wait_for_selector("main[aria-busy=false]")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view


def test_page_keeps_to_its_own_content_security_policy(browser: Any, address: str) -> None:
    page = browser.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    for view in ("images", "balance", "sql", "health", "left"):
        page.goto(f"{address}/?view={view}")
        page.wait_for_selector("main[aria-busy=false]")
    page.close()
    assert messages == []


def test_page_controls_have_names(page: Any) -> None:
    page.wait_for_selector("main[aria-busy=false]")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('input, select, button, textarea, a, img')].filter((each) => {
          if (each.tagName === 'IMG') return !each.hasAttribute('alt');
          const label = each.labels?.length || each.getAttribute('aria-label') || each.textContent.trim() || each.title;
          return !label;
        }).map((each) => each.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_text_has_enough_contrast(browser: Any, address: str, scheme: str) -> None:
    """The page's colors have WCAG's contrast for text, 4.5 to 1."""
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    colors = page.evaluate(
        """() => Object.fromEntries(['paper', 'ink', 'soft', 'accent', 'on-accent', 'bad', 'faint'].map((name) =>
          [name, getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()]))"""
    )
    pairs = [("ink", "paper"), ("soft", "paper"), ("accent", "paper"), ("bad", "paper"), ("on-accent", "accent")]
    for text, ground in [*pairs, ("ink", "faint"), ("soft", "faint")]:
        assert contrast(colors[text], colors[ground]) >= 4.5, (scheme, text, ground)
    context.close()


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
