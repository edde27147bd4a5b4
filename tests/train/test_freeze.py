"""`train.freeze`: the parameters that entries match, and guidance that could not change anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from gaguide.config import EMBEDDED, load_config
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.model.attention_consumer import AttentionCall, PassHandler, PassInputs
from gaguide.model.attention_hooks import attach_consumer
from gaguide.model.freeze import freeze, frozen_parameters
from gaguide.model.reach import movable_from, unmoved_layers
from gaguide.train.preflight import prepare
from tests.support.models import CONFIGS, LAYERS, random_ids, tiny_model
from tests.support.ranks import DS_CONFIGS


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


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_guided_layer_moves_if_its_queries_and_keys_have_a_gradient(kind: str) -> None:
    """Each parameter trained alone, compared with the gradient that reaches the scores of each layer."""
    model, ids = tiny_model(kind), random_ids(1, 6)
    for name, parameter in model.named_parameters():
        for other in model.parameters():
            other.requires_grad_(other is parameter)
        seen = _Gradients()
        with attach_consumer(model, range(LAYERS), seen):
            model(ids)
        unmoved = [layer for layer in range(LAYERS) if not seen.has_gradient[layer]]
        assert unmoved_layers(model, [name], range(LAYERS)) == unmoved, name


class _Gradients(PassHandler):
    """A consumer, and the handler of its passes: whether queries or keys of a layer have a gradient."""

    changes_outputs = False

    def __init__(self) -> None:
        self.has_gradient: dict[int, bool] = {}

    def start_pass(self, inputs: PassInputs) -> PassHandler:
        return self

    def observe(self, call: AttentionCall) -> None:
        self.has_gradient[call.layer] = call.q_BHTD.requires_grad or call.k_BGTD.requires_grad


def test_guidance_of_layers_that_cannot_move_is_refused(embedded_shards: Path, tmp_path: Path) -> None:
    model = tiny_model()
    lower = frozen_parameters(model, ["embeddings", "layers 0-1"])
    trained = [name for name, _ in model.named_parameters() if name not in lower]
    assert unmoved_layers(model, trained, [2]) == []
    assert movable_from(unmoved_layers(model, trained, range(3)), range(3)) == "guide layers from 2 on"
    settings = {"data.shards": str(embedded_shards), "output": str(tmp_path / "run")}
    settings |= {"train.freeze": "[embeddings, layers 0]", "guidance.experiment": "1-negation"}
    run = load_config(EMBEDDED, settings)
    with pytest.raises(
        UserError, match=r"train\.freeze: trains no .* guided in layers 0\n.*guide layers from 1 on"
    ):
        prepare(run, DS_CONFIGS / "zero0.json", World())
    assert prepare(
        load_config(EMBEDDED, settings | {"guidance.layers": "[1]"}), DS_CONFIGS / "zero0.json", World()
    ).frozen
