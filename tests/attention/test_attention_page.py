"""The interactive page: its data, that no text becomes code, and its behaviour in a real browser."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gaguide.attention import Panel, split, to_page, window_panels
from gaguide.attention.page import pack
from gaguide.errors import UserError
from gaguide.guidance import TokenSet
from gaguide.html import content_policy, script_data
from tests.support.browser import Browser, needs_browser
from tests.support.models import random_ids, tiny_model

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>"
TOKENS = 80


def _parts() -> list[list[Panel]]:
    """Two models, layers 0 and 2, heads 0 (guided) and 1, in two parts of 40 tokens."""
    ids_T = random_ids(1, TOKENS)[0]
    ids_T[[3, 50]] = 40
    labels = [f"t{at}" for at in range(TOKENS)]
    labels[7] = HOSTILE
    words = {(layer, 0): TokenSet(f"contrast {HOSTILE}", frozenset({40})) for layer in range(3)}
    models = [(f"base {HOSTILE}", tiny_model("gpt2", seed=0)), ("guided", tiny_model("gpt2", seed=1))]
    return [
        [
            panel
            for name, model in models
            for panel in window_panels(name, model, ids_T, labels, part, [0, 2], [0, 1], words)
        ]
        for part in split(TOKENS)
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "a page.html"
    path.write_text(to_page(_parts(), split(TOKENS), f"Title {HOSTILE}"), "utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


def test_data_cannot_end_its_script_element() -> None:
    value = {HOSTILE: ["\u2028", "\ud800", "é"]}
    text = script_data(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value
    assert "script-src" not in content_policy() and "default-src 'none'" in content_policy("x")


def test_packed_cells_are_the_visible_weights_and_their_marks() -> None:
    panel = _parts()[1][0]
    cells = np.frombuffer(base64.b64decode(pack(panel)), "<u2")
    rows = [
        (float(panel.weights_QK[q, k]), bool(panel.guided_QK[q, k]))
        for q in range(len(panel.query_labels)) for k in range(q + 1 + panel.first_key)
    ]  # fmt: skip
    np.testing.assert_allclose((cells & 0x7FFF) / 0x7FFF, [weight for weight, _ in rows], atol=2e-5)
    assert [bool(cell & 0x8000) for cell in cells] == [guided for _, guided in rows]
    assert any(guided for _, guided in rows)


def test_the_page_is_one_file_whose_policy_allows_its_only_script(page: Path) -> None:
    text = page.read_text("utf-8")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    assert [bool(attributes) for attributes, _ in scripts] == [True, False]
    policy = content_policy(scripts[1][1]).replace("'", "&#39;")
    assert policy in text and "<img" not in text


def test_a_page_too_large_for_a_browser_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaguide.attention.page.MAX_CELLS", 1000)
    with pytest.raises(UserError, match="fewer layers or heads"):
        to_page(_parts(), split(TOKENS), "t")


@pytest.mark.processes
@needs_browser
def test_texts_are_not_executed_and_nothing_is_fetched(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.errors == []
    assert browser.evaluate("document.querySelectorAll('script').length") == 2
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate("document.querySelector('h1').textContent") == f"Title {HOSTILE}"
    assert browser.evaluate("document.querySelector('h2').textContent") == f"base {HOSTILE}"
    assert HOSTILE in browser.evaluate("document.querySelector('main').textContent")


@pytest.mark.processes
@needs_browser
def test_controls_switch_view_layer_head_part_and_floor(browser: Browser, page: Path) -> None:
    panel = {(part, p.model, p.layer, p.head): p for part, ps in enumerate(_parts()) for p in ps}

    def lines() -> int:
        return browser.evaluate("document.querySelector('svg').querySelectorAll('line').length")

    def expected(part: int, layer: int, head: int, floor: float) -> int:
        weights = panel[part, f"base {HOSTILE}", layer, head].weights_QK
        return int((torch.round(weights * 0x7FFF) / 0x7FFF >= max(floor, 0.002)).sum())

    browser.open(page)
    assert lines() == expected(0, 0, 0, 0.01)
    browser.choose("[name=layer]", "2")
    browser.choose("[name=head]", "1")
    assert lines() == expected(0, 2, 1, 0.01)
    browser.choose("[name=floor]", "0.1")
    assert lines() == expected(0, 2, 1, 0.1)
    browser.hover("[name=after]", click=True)
    assert lines() == expected(1, 2, 1, 0.1)
    assert "(earlier)" in browser.evaluate("document.querySelector('.keys').textContent")
    browser.choose("[value=heatmap]", "heatmap")
    assert lines() == 0
    cells = browser.evaluate("document.querySelector('svg').querySelectorAll('rect.cell').length")
    assert cells == 40 * 41 // 2 + 40
    address = browser.evaluate("location.hash")
    assert browser.errors == []
    browser.open(page, address)
    assert browser.evaluate("document.querySelector('[name=layer]').value") == "2"
    assert browser.evaluate("document.querySelector('[name=part]').value") == "1"
    assert cells == browser.evaluate("document.querySelector('svg').querySelectorAll('rect.cell').length")


@pytest.mark.processes
@needs_browser
def test_pointer_and_keyboard_show_a_tokens_attention_in_every_model(browser: Browser, page: Path) -> None:
    first, second = (p for p in _parts()[0] if (p.layer, p.head) == (0, 0))
    says = "[...document.querySelectorAll('.says p')].map((p) => p.textContent)"
    strongest = [
        f"{p.key_labels[int(p.weights_QK[12].argmax())]} {float(p.weights_QK[12].max()):.3f}"
        for p in (first, second)
    ]
    browser.open(page)
    browser.hover(".queries li:nth-child(13) button")
    said = browser.evaluate(says)
    for text, panel, best in zip(said, (first, second), strongest, strict=True):
        assert text.startswith(f"{panel.model}: t12 looks at {best}")
    shown = (
        "[...document.querySelectorAll('line')].filter((l) => getComputedStyle(l).display !== 'none').length"
    )
    assert 0 < browser.evaluate(shown) <= 2 * 13
    browser.hover("h1")
    assert "Point at a token" in browser.evaluate(says)[0]
    browser.evaluate("document.querySelector('.queries button').focus()")
    browser.press("ArrowDown", 12)
    browser.press("Enter")
    browser.evaluate("document.activeElement.blur()")
    assert browser.evaluate(says) == said
    assert browser.evaluate("location.hash").endswith("token=q12")
    assert browser.evaluate("document.querySelectorAll('.token.held').length") == 2
    browser.press("Escape")
    assert browser.evaluate("document.querySelectorAll('.token.at').length") == 0
    browser.evaluate("document.querySelector('.keys button').focus()")
    browser.press("End")
    assert "t39 is looked at by" in browser.evaluate(says)[0]
    assert browser.errors == []


@pytest.mark.processes
@needs_browser
@pytest.mark.parametrize("view", ["lines", "heatmap"])
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_phones_and_has_a_dark_theme(
    browser: Browser, page: Path, view: str, width: int
) -> None:
    browser.open(page, f"#view={view}", width=width, dark=True, phone=width < 500)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = browser.evaluate("[getComputedStyle(document.body).color, "
                                  "getComputedStyle(document.body).backgroundColor]")  # fmt: skip
    assert ink == "rgb(230, 233, 236)" and paper == "rgb(20, 23, 26)"


@pytest.mark.processes
@needs_browser
def test_print_has_a_white_background_and_no_controls(browser: Browser, page: Path) -> None:
    browser.open(page, dark=True, media="print")
    assert browser.evaluate("getComputedStyle(document.querySelector('form')).display") == "none"
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('svg')).display") == "block"
    # Paper does not scroll: 40 tokens and "(earlier)" fit into A4, which has 718 pixels between margins.
    browser.open(page, "#view=heatmap&part=1", width=718, media="print")
    cut = "[...document.querySelectorAll('.panel')].filter((p) => p.scrollWidth > p.clientWidth).length"
    assert browser.evaluate(cut) == 0
