"""`train.freeze`: the parameters that entries match, and guidance that could not change anything."""

from __future__ import annotations

import pytest

from gaguide.config import EMBEDDED, load_config
from gaguide.errors import UserError
from gaguide.model.freeze import check_guidance_moves, freeze, frozen_parameters
from tests.support.models import CONFIGS, LAYERS, tiny_model


@pytest.mark.parametrize("kind", CONFIGS)
def test_parts_of_every_architecture(kind: str) -> None:
    model = tiny_model(kind)
    names = dict(model.named_parameters())
    embeddings = frozen_parameters(model, ["embeddings"])
    assert embeddings and all("emb" in name or "wte" in name or "wpe" in name for name in embeddings)
    layers = frozen_parameters(model, ["layers 0-1"])
    assert layers == frozen_parameters(model, ["layers 0,1"]) == frozen_parameters(model, [r"\.[01]\."])
    assert len(layers) * LAYERS == 2 * len(
        [name for name in names if any(p.isdigit() for p in name.split("."))]
    )
    assert set(frozen_parameters(model, ["embeddings", "layer 2"])) == {
        *embeddings,
        *frozen_parameters(model, ["layers 2"]),
    }
    freeze(model, layers)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == set(layers)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["embedings"], "did you mean 'embeddings'?"),
        (["layers 2-3"], "matches no parameter"),
        (["nothing"], "matches no parameter"),
        (["(["], "not a valid regular expression"),
        (["."], "freezes every parameter"),
    ],
)
def test_refused(entries: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        frozen_parameters(tiny_model(), entries)


def test_what_is_trained_may_be_named_instead() -> None:
    model = tiny_model()
    lower = frozen_parameters(model, (), ["layers 1-2", "ln_f"])
    assert lower == frozen_parameters(model, ["embeddings", "layers 0"])
    assert frozen_parameters(model, ()) == ()
    for entries, message in (
        (["nothing"], r"train\.trainable = 'nothing'"),
        (["."], "names every parameter"),
    ):
        with pytest.raises(UserError, match=message):
            frozen_parameters(model, (), entries)
    for more in ({"train.freeze": "embeddings"}, {"train.lora.rank": "2", "model.init": "pretrained"}):
        with pytest.raises(UserError, match="must have only one of"):
            load_config(EMBEDDED, {"train.trainable": "layers 1"} | more)


def test_guidance_needs_trained_parameters_below_it() -> None:
    model = tiny_model()
    lower = frozen_parameters(model, ["embeddings", "layers 0-1"])
    check_guidance_moves(model, frozen_parameters(model, ["layers 0-2"]), 2)  # the embeddings are trained
    check_guidance_moves(model, lower, 2)
    with pytest.raises(UserError, match="no trained parameter influences the guided heads"):
        check_guidance_moves(model, lower, 1)
