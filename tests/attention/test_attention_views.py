"""Panels, labels and pictures; the command on saved models with GPT-2's real vocabulary."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from matplotlib.image import imread
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from gaguide.attention import (
    collect,
    draw_difference,
    draw_heatmaps,
    draw_lines,
    draw_overview,
    make_panels,
    save_figure,
)
from gaguide.attention.panels import EARLIER, attention_mass
from gaguide.cli import attention as command
from gaguide.data.format.token_text import token_labels
from gaguide.errors import UserError
from gaguide.figures import GUIDED, render
from gaguide.guidance import FixedOffset, TokenSet
from tests.support.gpt2_tokenizer import MERGES, gpt2_tokenizer_folder
from tests.support.models import random_ids, tiny_model

TEXT = "The cat did not sleep, but it cost $5 and $6:\n<script>naïve 日</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a tiny GPT-2 and a real vocabulary."""
    run = tmp_path_factory.mktemp("runs") / "a run"
    (run / "model").mkdir(parents=True)
    gpt2_tokenizer_folder(run / "model", MERGES)
    torch.manual_seed(0)
    end = 256 + MERGES
    config = GPT2Config(
        n_layer=2, n_head=4, n_embd=16, vocab_size=end + 1, bos_token_id=end, eos_token_id=end
    )
    GPT2LMHeadModel(config).save_pretrained(run / "model")
    (run / "summary.json").write_text("{}")
    return run


def _invoke(*args: object) -> object:
    app = typer.Typer()
    app.command()(command.attention)
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_labels_show_spaces_newlines_and_bytes(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    labels = token_labels(tokenizer, tokenizer(TEXT)["input_ids"])
    assert labels[:6] == ["The", "␣cat", "␣did", "␣not", "␣sleep", ","]
    assert {"↵", "␣$"} <= set(labels)
    assert "".join(labels).endswith("ve␣日[1/3]日[2/3]日[3/3]</script>")
    assert not any("Ġ" in label or "Ċ" in label for label in labels)
    assert token_labels(tokenizer, [256 + MERGES]) == ["<|endoftext|>"]


def test_mass_is_averaged_over_queries_that_see_a_target() -> None:
    map_QT = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0.2, 0.5, 0.3]])
    target = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 1, 0]]).bool()
    assert attention_mass(map_QT, target) == pytest.approx((0.75 + 0.5) / 2)
    assert attention_mass(map_QT, torch.zeros(3, 3).bool()) is None


def test_panels_mark_guided_words_and_sum_up_earlier_keys() -> None:
    model, ids_BT = tiny_model("gpt2"), random_ids(1, 12)
    ids_BT[0, [2, 7]] = 40
    words = TokenSet("words", frozenset({40}))
    labels = [str(int(token)) for token in ids_BT[0]]
    whole = make_panels("m", collect(model, ids_BT, [1], [0]), ids_BT[0], labels, {(1, 0): words})[0]
    assert whole.guided_keys == {2, 7} and whole.key_labels == tuple(labels)
    assert whole.guided_QK.sum() == 10 + 5
    part = make_panels(
        "m", collect(model, ids_BT, [1], [0], queries=(5, 9)), ids_BT[0], labels, {(1, 0): words}
    )[0]
    assert part.key_labels == (EARLIER, *labels[5:9]) and part.query_labels == tuple(labels[5:9])
    assert part.guided_keys == {3} and part.first_key == 1
    torch.testing.assert_close(part.weights_QK.sum(-1), torch.ones(4))
    torch.testing.assert_close(part.weights_QK[:, 0], whole.weights_QK[5:9, :5].sum(-1))
    expected = (whole.weights_QK * whole.guided_QK).sum(-1)[5:9].mean()
    assert part.mass == pytest.approx(float(expected))


def test_offset_patterns_have_target_cells_but_no_marked_words() -> None:
    ids_BT = random_ids(1, 6)
    maps = collect(tiny_model("gpt2"), ids_BT, [0], [0])
    panel = make_panels("m", maps, ids_BT[0], list("abcdef"), {(0, 0): FixedOffset(1)})[0]
    assert not panel.guided_keys
    assert panel.mass == pytest.approx(float(maps.head(0, 0).diagonal(-1).mean()), rel=1e-5)


def test_a_text_too_long_for_a_picture_is_refused_with_a_window_to_choose() -> None:
    ids_BT = random_ids(1, 90)
    maps = collect(tiny_model("gpt2"), ids_BT, [0], [0])
    with pytest.raises(UserError, match="--window 0:64"):
        make_panels("m", maps, ids_BT[0], ["x"] * 90)


@pytest.mark.parametrize("draw", [draw_heatmaps, draw_lines])
def test_pictures_are_deterministic_and_show_the_marked_words(draw) -> None:
    ids_BT = random_ids(1, 10)
    ids_BT[0, 4] = 40
    words = TokenSet("words", frozenset({40}))

    def picture(pattern):
        maps = collect(tiny_model("gpt2"), ids_BT, [0, 2], [1])
        guided = {(0, 1): pattern, (2, 1): pattern} if pattern else None
        return draw(make_panels("model", maps, ids_BT[0], ["$x$ & <b>"] * 10, guided))

    svg = render(picture(words), ".svg")
    assert svg == render(picture(words), ".svg")
    assert GUIDED.lower() in svg.decode() and GUIDED.lower() not in render(picture(None), ".svg").decode()
    assert render(picture(words), ".png") == render(picture(words), ".png")


def test_faint_attention_has_no_line() -> None:
    ids_BT = random_ids(1, 10)
    panel = make_panels("m", collect(tiny_model("gpt2"), ids_BT, [0], [0]), ids_BT[0], list("abcdefghij"))[0]
    lines = draw_lines([panel]).axes[0].collections[0]
    assert len(lines.get_segments()) == int((panel.weights_QK >= 0.01).sum())
    np.testing.assert_allclose(
        np.sort(lines.get_colors()[:, 3]), np.sort(panel.weights_QK[panel.weights_QK >= 0.01].numpy())
    )


def test_too_many_panels_are_refused() -> None:
    ids_BT = random_ids(1, 3)
    panels = make_panels("m", collect(tiny_model("gpt2"), ids_BT), ids_BT[0], list("abc"))
    with pytest.raises(UserError, match="fewer layers or heads"):
        draw_heatmaps(panels * 5)


def test_an_overview_has_every_head_and_frames_those_with_a_pattern() -> None:
    ids_BT = random_ids(1, 10)
    model = tiny_model("gpt2")
    plain = make_panels("m", collect(model, ids_BT), ids_BT[0], list("abcdefghij"))
    assert len(draw_overview(plain).axes) == 3 * 4
    words = TokenSet("words", frozenset({int(ids_BT[0, 2])}))
    framed = make_panels("m", collect(model, ids_BT), ids_BT[0], list("abcdefghij"), {(1, 2): words})
    ((text,),) = [ax.texts for ax in draw_overview(framed).axes if ax.texts]
    (mass,) = [panel.mass for panel in framed if panel.pattern]
    assert mass is not None and text.get_text() == f"{mass:.2f}"
    with pytest.raises(UserError, match="fewer models, layers or heads"):
        draw_overview(plain * 101)


def test_texts_of_an_overview_are_whole_and_apart() -> None:
    ids_BT = random_ids(1, 5)
    maps, words = collect(tiny_model("gpt2"), ids_BT, heads=[0]), TokenSet("words", frozenset({1}))
    names = ("a model with a rather long name", "another one")
    panels = [
        panel
        for name in names
        for panel in make_panels(name, maps, ids_BT[0], list("abcde"), {(1, 0): words})
    ]
    figure = draw_overview(panels)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.texts]
    assert all(0 < box.x0 < box.x1 < figure.bbox.x1 for box in boxes)
    assert boxes[0].x1 < boxes[1].x0


def test_a_difference_is_each_further_model_minus_the_first() -> None:
    ids_BT = random_ids(1, 6)
    labels = list("abcdef")
    words = {(0, 1): TokenSet("words", frozenset({int(ids_BT[0, 2])}))}
    one, two = (
        make_panels(
            f"m{seed}", collect(tiny_model("gpt2", seed=seed), ids_BT, [0], [1]), ids_BT[0], labels, words
        )
        for seed in (0, 1)
    )
    figure = draw_difference([*one, *two])
    shown = np.asarray(figure.axes[0].images[0].get_array().filled(0))
    np.testing.assert_allclose(shown, (two[0].weights_QK - one[0].weights_QK).numpy(), atol=1e-7)
    assert two[0].mass is not None and one[0].mass is not None
    title = figure.axes[0].get_title(loc="left")
    assert "m1 − m0" in title and f"{two[0].mass - one[0].mass:+.3f}" in title
    with pytest.raises(UserError, match="two models"):
        draw_difference(one)
    other = make_panels(
        "m2", collect(tiny_model("gpt2"), ids_BT[:, :4], [0], [1]), ids_BT[0, :4], list("abcd")
    )
    with pytest.raises(UserError, match="different tokens"):
        draw_difference([*one, *other])


def test_figures_need_a_known_suffix_and_an_existing_folder(tmp_path: Path) -> None:
    figure = draw_lines(make_panels("m", collect(tiny_model("gpt2"), random_ids(1, 3), [0], [0]),
                                    random_ids(1, 3)[0], list("abc")))  # fmt: skip
    with pytest.raises(UserError, match=re.escape(".png, .svg, .pdf")):
        save_figure(figure, tmp_path / "a.gif")
    with pytest.raises(UserError, match="does not exist"):
        save_figure(figure, tmp_path / "none" / "a.png")
    for suffix in (".png", ".svg", ".pdf"):
        save_figure(figure, tmp_path / f"a{suffix}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "a.svg"]


@pytest.mark.parametrize("view", ["heatmap", "lines"])
def test_the_command_draws_two_models_side_by_side(folder: Path, tmp_path: Path, view: str) -> None:
    result = _invoke("--model", folder, "--model", folder / "model", "--text", TEXT, "--layers", "1",
                     "--experiment", "1-negation", "--view", view,
                     "--output", tmp_path / "a.png")  # fmt: skip
    assert result.exit_code == 0, result.output
    image = imread(tmp_path / "a.png")[..., :3]
    guided = np.array([0xC0, 0x4A, 0x00]) / 255
    assert (np.abs(image - guided).max(-1) < 0.02).sum() > 100
    assert "contrast" in result.output and "wrote" in result.output


def test_the_command_writes_pictures_and_a_page_at_once(folder: Path, tmp_path: Path) -> None:
    outputs = [part for name in ("a.svg", "a.html") for part in ("--output", tmp_path / name)]
    result = _invoke("--model", folder, "--text", TEXT, "--layers", "1", *outputs)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "a.html").read_text("utf-8")
    assert "<svg" in (tmp_path / "a.svg").read_text("utf-8") and "\\u003c" in page
    assert "<script>naïve" not in page


def test_the_command_shows_a_long_text_in_parts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("word " * 1500)
    result = _invoke("--model", folder, "--text-file", tmp_path / "t.txt", "--layers", "1",
                     "--output", tmp_path / "a.html")  # fmt: skip
    assert result.exit_code == 0, result.output
    parts = (tmp_path / "a.html").read_text("utf-8").count('"start":')
    assert parts == -(-1501 // 64) or parts == -(-1500 // 64)


def test_the_command_needs_exactly_one_text(folder: Path, tmp_path: Path) -> None:
    for given in ([], ["--text", "a", "--text-file", tmp_path / "none"]):
        result = _invoke("--model", folder, *given, "--output", tmp_path / "a.png")
        assert isinstance(result.exception, UserError) and "not both" in str(result.exception)
    result = _invoke("--model", folder, "--text-file", tmp_path / "none", "--output", tmp_path / "a.png")
    assert isinstance(result.exception, UserError) and "No such file" in str(result.exception)


def test_the_command_reports_every_mistake_at_once(folder: Path, tmp_path: Path) -> None:
    result = _invoke("--model", folder, "--text", " ", "--layers", "0,x", "--experiment", "4-trans",
                     "--view", "heat", "--window", "5", "--output", tmp_path / "a.gif")  # fmt: skip
    assert isinstance(result.exception, UserError)
    assert {fault.field for fault in result.exception.faults} == {
        "--text", "--layers", "--experiment", "--view", "--window", "--output",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "word " * 70], "--window 0:64"),
        (["--text", "word", "--layers", "2"], "the model has 2 layers"),
        (["--text", "word", "--heads", "4"], "the model has 4 heads"),
        (["--text", "word", "--window", "0:9"], "the text has 1 tokens"),
    ],
)
def test_the_command_refuses_layers_heads_and_windows_out_of_range(
    folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = _invoke("--model", folder, *arguments, "--output", tmp_path / "a.png")
    assert isinstance(result.exception, UserError) and message in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_attention_that_is_not_finite(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    with torch.no_grad():
        model.transformer.h[1].attn.c_attn.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "diverged")
    AutoTokenizer.from_pretrained(folder / "model").save_pretrained(tmp_path / "diverged")
    result = _invoke("--model", tmp_path / "diverged", "--text", TEXT, "--output", tmp_path / "a.png")
    assert isinstance(result.exception, UserError)
    assert "its attention is not finite in layer 1" in str(result.exception)
    assert not (tmp_path / "a.png").exists()


def test_the_command_explains_what_a_model_may_be(tmp_path: Path) -> None:
    result = _invoke("--model", tmp_path, "--text", "word", "--output", tmp_path / "a.png")
    assert isinstance(result.exception, UserError) and "save_pretrained" in str(result.exception)


def test_the_command_shows_all_layers_and_heads(folder: Path, tmp_path: Path) -> None:
    result = _invoke("--model", folder, "--text", "a word", "--layers", "all", "--heads", "all",
                     "--output", tmp_path / "a.html")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.html").read_text("utf-8").count('"layer":') == 2 * 4


def test_the_command_names_the_export_of_a_run_that_has_not_ended(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("name: x\n")
    result = _invoke("--model", run, "--text", "word", "--output", tmp_path / "a.png")
    assert isinstance(result.exception, UserError)
    assert f"gaguide checkpoint export {run} --output" in str(result.exception)


def test_labels_of_split_characters_and_white_space(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2_tokenizer_folder(tmp_path / "gpt2"))

    def labels(text: str) -> list[str]:
        return token_labels(tokenizer, tokenizer(text)["input_ids"])

    assert labels("a 😀鸡") == ["a", "␣😀[1/2]", "😀[2/2]", "鸡[1/3]", "鸡[2/3]", "鸡[3/3]"]
    assert labels("a\u00a0b\u2003\t\r\n") == [
        "a",
        "⍽",
        "b",
        "<2003>[1/2]",
        "<2003>[2/2]⇥",
        "<0D>",
        "↵",
    ] or all(mark in "".join(labels("a\u00a0b\u2003\t\n")) for mark in ("⍽", "<2003>", "⇥", "↵"))
    half = tokenizer("鸡")["input_ids"][:2]
    assert all(label.startswith("<") for label in token_labels(tokenizer, half))


def test_a_byte_order_mark_is_dropped(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\ufeffThe word", "utf-8")
    result = _invoke("--model", folder, "--text-file", tmp_path / "t.txt", "--output", tmp_path / "a.html")
    assert result.exit_code == 0, result.output
    assert "FEFF" not in (tmp_path / "a.html").read_text("utf-8").split("<script", 2)[1]
