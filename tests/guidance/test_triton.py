"""The Triton kernels equal the row blocks and the dense reference, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from gaguide.guidance import Assignment, GuidancePlan, TokenSet, backend, guide
from gaguide.guidance.losses import ROW_LOSSES
from gaguide.guidance.operations import attend, head_losses
from gaguide.guidance.patterns import Offset
from gaguide.guidance.targets import RowTerms, row_terms
from gaguide.model import checkpoint_activations
from tests.guidance.dense import dense_maps
from tests.guidance.test_kernel import MEANINGS, case, compare, numbers_of
from tests.support.models import tiny_model
from tests.support.patience import patience

# Triton's interpreter runs every kernel element by element.
pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="needs triton (extra: test)")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Triton's interpreter does not support matrix products in bf16.
HALVES = [torch.float16, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float16]


def on(device: torch.device, x: object) -> object:
    """A tensor, or the tensors of row terms, on `device`; anything else as it is."""
    if isinstance(x, RowTerms):
        return replace(x, **{field.name: on(device, getattr(x, field.name)) for field in fields(x)})
    return x.to(device) if isinstance(x, torch.Tensor) else x


def fused(qkv, terms, mask, numbers, *seed) -> tuple[torch.Tensor, ...]:
    """The kernels for CPU tensors, with values or without, run on a GPU if there is one, else interpreted."""
    home = qkv[0].device
    given = [on(DEVICE, x) for x in qkv], on(DEVICE, terms), on(DEVICE, mask)
    run = attend if len(qkv) == 3 else head_losses
    return tuple(x.to(home) for x in run(*given, replace(numbers, fused=True), *seed))


@pytest.mark.parametrize(
    ("meaning", "padding"),
    [
        (("squared", "mean", "indicator"), "none"),
        (("squared", "frobenius", "normalized"), "none"),
        (("squared", "mean", "normalized"), "left"),
        (("squared", "frobenius", "indicator"), "right"),
        *((meaning, "left") for meaning in MEANINGS if meaning[0] != "squared"),
    ],
)
def test_fp32_equals_dense_float64(meaning: tuple[str, str, str], padding: str) -> None:
    """1e-6 relative, as for the row blocks; T is not a multiple of a block, the width not a power of two."""
    made = case(seed=5, B=2, h=4, T=77, D=20, padding=padding, density=0.08)
    compare(torch.float32, 1e-6, meaning, made, (fused, fused))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("seed", [3, 4], ids=["marked keys", "an offset"])
def test_half_precision_and_strided_views(dtype: torch.dtype, seed: int) -> None:
    """q, k and v as transformers passes them: [B, T, h, D] viewed as [B, h, T, D], with shared keys."""
    h = 2 if seed == 3 else 3  # `case` gives the third an offset
    q, k, v, targets, valid_BT, _ = case(seed, 2, h, 150, 16, "none", 0.1)
    assert any(isinstance(target, Offset) for target in targets) == (seed == 4)
    terms = row_terms(targets, valid_BT, None, "mean", "indicator", torch.float32)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    views = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k, v)]
    shared = [views[0], views[1][:, :1].expand_as(q), views[2][:, :1].expand_as(q)]
    out, loss_h, mass_h = fused(shared, terms, None, numbers_of(terms, 0.25))
    got = torch.autograd.grad(out.float().square().sum() + loss_h.sum(), views[:2])

    exact = [views[0].detach().float(), *(x.detach().float() for x in views[1:])]
    exact = [x.requires_grad_() for x in exact]
    wide = [exact[0], exact[1][:, :1].expand_as(q), exact[2][:, :1].expand_as(q)]
    want_out, want_loss_h, want_mass_h = attend(wide, terms, None, numbers_of(terms, 0.25))
    want = torch.autograd.grad(want_out.square().sum() + want_loss_h.sum(), exact[:2])
    assert out.dtype == dtype
    assert loss_h.dtype == torch.float32
    torch.testing.assert_close(loss_h, want_loss_h, rtol=1e-5, atol=0)
    torch.testing.assert_close(mass_h, want_mass_h, rtol=1e-5, atol=0)
    near = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.float(), want_out, rtol=near, atol=near)
    for ours, theirs in zip(got, want):
        torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=1.5 * near * float(theirs.abs().max()))


def test_dropout_acts_on_the_output_and_is_the_same_in_backward() -> None:
    q, k, _, targets, valid_BT, visible_BTT = case(4, 2, 2, 33, 48, "none", 0.2)
    v = torch.eye(33, 48).expand(2, 2, 33, 48)  # so that the output shows H after dropout
    terms = row_terms(targets, valid_BT, None, "mean", "indicator", torch.float32)
    leaves = [x.float().requires_grad_() for x in (q, k, v.clone())]
    out, loss_h, mass_h = fused(leaves, terms, None, numbers_of(terms, 0.2, dropout=0.25), torch.tensor(11))
    _, plain_loss_h, plain_mass_h = fused(leaves, terms, None, numbers_of(terms, 0.2))
    torch.testing.assert_close(loss_h, plain_loss_h)
    torch.testing.assert_close(mass_h, plain_mass_h, equal_nan=True)

    exact = [x.detach().clone().requires_grad_() for x in leaves]
    h_BhTT = dense_maps(exact[0], exact[1], visible_BTT, 0.2)
    kept_BhTT = (out.detach()[..., :33] / h_BhTT.detach().clamp(min=1e-30)).nan_to_num()
    kept_BhTT = torch.where(h_BhTT > 0, kept_BhTT, 0.0)
    values = kept_BhTT[visible_BTT[:, None].expand_as(kept_BhTT)]
    assert torch.all((values < 1e-6) | ((values - 4 / 3).abs() < 1e-3))
    assert 0.2 < (values < 1e-6).float().mean() < 0.3
    assert not torch.equal(kept_BhTT[0, 0], kept_BhTT[0, 1]), "heads drop different entries"
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    got = torch.autograd.grad((out * weight).sum(), leaves)
    want = torch.autograd.grad((((h_BhTT * kept_BhTT) @ exact[2]) * weight).sum(), exact)
    for ours, theirs in zip(got, want):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["joint", "tap"])
def test_a_guided_model_gives_the_same_through_either_kernel(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gpt2").eval()
    plan = GuidancePlan((Assignment(TokenSet("words", frozenset(range(5, 30))), (0, 2)),))
    ids_BT = torch.randint(0, 60, (2, 40), generator=torch.Generator().manual_seed(0))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, 30:] = 0

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        with guide(model, plan, method=method) as guidance:
            out = model(input_ids=ids_BT, attention_mask=mask_BT, labels=ids_BT, use_cache=False)
            (out.loss + guidance.loss()).backward()
            return [out.loss.detach(), guidance.loss().detach(), *(p.grad for p in model.parameters())]

    plain = run()
    calls = []

    def choose(*_: object) -> bool:
        calls.append(1)
        return True

    monkeypatch.setattr(backend, "is_fused", choose)
    for got, want in zip(run(), plain):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert calls


@pytest.mark.parametrize("method", ["joint", "tap"])
def test_the_first_use_may_be_in_a_checkpointed_layer(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with the row blocks neither counts as part of the layer nor is recomputed."""
    monkeypatch.setattr(
        backend, "is_fused", lambda x, loss: backend._is_verified(DEVICE, *signature(len(x)), loss)
    )
    plan = GuidancePlan((Assignment(TokenSet("words", frozenset(range(5, 30))), (0, 2)),))
    ids_BT = torch.randint(0, 60, (2, 40), generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def signature(tensors: int) -> tuple[tuple[torch.dtype, ...], tuple[int, ...]]:
        return (torch.float32,) * tensors, (8,) * tensors

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        backend._is_verified.cache_clear()
        model = tiny_model("gpt2", dropout=0.2).to(DEVICE).train()
        if checkpointing:
            checkpoint_activations(model)
        torch.manual_seed(0)
        with guide(model, plan, method=method) as guidance:
            out = model(input_ids=ids_BT, labels=ids_BT, use_cache=False)
            (out.loss + guidance.loss()).backward()
        tensors = 3 if method == "joint" else 2
        assert backend._is_verified(DEVICE, *signature(tensors), "squared")
        assert backend._is_verified.cache_info().currsize == 1
        return [parameter.grad for parameter in model.parameters()]

    for ours, theirs in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    backend._is_verified.cache_clear()


def test_saved_tensors_may_be_packed_and_unpacked() -> None:
    """Offloading to the host does so, and may change their layout."""
    q, k, v, targets, valid_BT, _ = case(3, 2, 2, 70, 16, "none", 0.1)
    terms = row_terms(targets, valid_BT, None, "mean", "indicator", torch.float32)

    def gradients() -> tuple[torch.Tensor, ...]:
        leaves = [x.float().requires_grad_() for x in (q, k, v)]
        out, loss_h, _ = fused(leaves, terms, None, numbers_of(terms, 0.25))
        return torch.autograd.grad(out.square().sum() + loss_h.sum(), leaves)

    want = gradients()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x.contiguous()):
        got = gradients()
    for ours, theirs in zip(got, want):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("tensors", [2, 3], ids=["alone", "with values"])
def test_the_kernel_is_used_only_after_it_agreed_with_the_row_blocks(tensors: int) -> None:
    assert not backend.is_fused([torch.zeros(1, 1, 1, 16)] * tensors, "squared")
    widths = (16,) * tensors
    for dtype in (torch.float32, *HALVES):
        assert backend.disagreement(DEVICE, (dtype,) * tensors, widths) < 10 * torch.finfo(dtype).eps

    def wrong(*arguments):
        *out, loss_h, mass_h = (attend if tensors == 3 else head_losses)(*arguments)
        return *out, 1.01 * loss_h, mass_h

    fp32 = (torch.float32,) * tensors
    assert backend.disagreement(DEVICE, fp32, widths, kernels=wrong) > 1e-3
    backend._is_verified.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend._is_verified(DEVICE, fp32, widths, "squared")
    assert not backend._is_verified(DEVICE, fp32, (512,) * tensors, "squared"), "wider than they support"
    backend._is_verified.cache_clear()


def test_values_of_another_dtype_are_compared_as_they_are() -> None:
    """Under autocast rotated queries and keys may be in fp32, and values in 16 bits."""
    mixed = (torch.float32, torch.float32, HALVES[0])
    assert backend.disagreement(DEVICE, mixed, (16, 16, 16)) < 10 * torch.finfo(HALVES[0]).eps


def test_another_loss_is_compared_too() -> None:
    assert backend.disagreement(DEVICE, (torch.float32,) * 3, (16,) * 3, "kl") < 1e-6
    assert backend.disagreement(DEVICE, (torch.float32,) * 2, (16,) * 2, "kl") < 1e-6


def compile_for(*options: str, cache: Path) -> None:
    """Compile the kernels for a GPU that this machine may not have."""
    script = Path(__file__).with_name("compile_triton.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), *options],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=patience(600),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("shared") == 3


@pytest.mark.processes
@pytest.mark.parametrize(("dtype", "features"), [("bf16", "plain"), ("fp32", "plain"), ("bf16", "alone")])
def test_kernels_compile_for_a_gpu(dtype: str, features: str, tmp_path: Path) -> None:
    compile_for("80", dtype, "64", features, "squared", cache=tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize("arch", ["80", "90"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("width", ["64", "128", "256"])
@pytest.mark.parametrize("features", ["plain", "mask-dropout", "alone"])
def test_every_variant_compiles(arch: str, dtype: str, width: str, features: str, tmp_path: Path) -> None:
    for loss in ROW_LOSSES:
        compile_for(arch, dtype, width, features, loss, cache=tmp_path)


@pytest.mark.parametrize("widths", [(24, 16), (16, 40), (20, 20)])
def test_values_may_be_wider_or_narrower_than_queries(widths: tuple[int, int]) -> None:
    """Multi-head latent attention; the first-use check covers such widths."""
    width, value_width = widths
    q, k, _, targets, valid_BT, _ = case(4, 2, 3, 70, width, "none", 0.1)
    v = torch.randn(2, 3, 70, value_width, generator=torch.Generator().manual_seed(1))
    terms = row_terms(targets, valid_BT, None, "mean", "indicator", torch.float32)

    def results(kernel: backend.Attention) -> list[torch.Tensor]:
        leaves = [x.float().requires_grad_() for x in (q, k, v)]
        out, loss_h, mass_h = kernel(leaves, terms, None, numbers_of(terms, 0.25))
        gradients = torch.autograd.grad(out.square().sum() + loss_h.sum(), leaves)
        return [out.detach(), loss_h.detach(), mass_h, *gradients]

    got, want = results(fused), results(attend)
    assert got[0].shape == (2, 3, 70, value_width)
    for ours, theirs in zip(got, want, strict=True):
        largest = float(theirs.abs().max())  # what a row's sum rounds by, also where it is 0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=16 * torch.finfo(torch.float32).eps * largest)
    assert backend.disagreement(DEVICE, (torch.float32,) * 3, (width, *widths)) < 1e-5
    with pytest.raises(ValueError, match="do not belong together"):
        fused([q, k[:, :, 1:], v], terms, None, numbers_of(terms, 0.25))
