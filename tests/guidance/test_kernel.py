"""The row blocks equal the dense reference: output, loss, gradients, attention mass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gaguide.guidance.backend import Attention
from gaguide.guidance.kernel import Numbers
from gaguide.guidance.losses import ROW_LOSSES
from gaguide.guidance.operations import attend, head_losses
from gaguide.guidance.patterns import Columns, Offset, Target
from gaguide.guidance.targets import RowTerms, row_terms
from tests.guidance.dense import THRESHOLD, dense_loss, dense_maps

REDUCTIONS = ("mean", "frobenius")
KINDS = ("indicator", "normalized")
MEANINGS = [
    *(("squared", reduction, kind) for reduction in REDUCTIONS for kind in KINDS),
    *((loss, "mean", "indicator") for loss in ROW_LOSSES if loss != "squared"),
]


def numbers_of(terms: RowTerms, scale: float, loss: str = "squared", dropout: float = 0.0) -> Numbers:
    return Numbers(terms.offsets, loss, scale, dropout=dropout)


def case(seed: int, B: int, h: int, T: int, D: int, padding: str, density: float):
    """Random q, k, v, targets (columns and offsets mixed), validity and visibility."""
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, h, T, D, generator=rng, dtype=torch.float64) for _ in range(3))
    targets: list[Target] = []
    for head in range(h):
        if (seed + head) % 3 == 2:
            targets.append(Offset(int(torch.randint(0, T + 2, (), generator=rng))))
        else:
            targets.append(Columns(torch.rand(B, T, generator=rng) < density))
    valid_BT = torch.ones(B, T, dtype=torch.bool)
    visible_BTT = torch.ones(T, T, dtype=torch.bool).tril().expand(B, T, T).clone()
    if padding != "none":
        for row, length in enumerate(torch.randint(1, T + 1, (B,), generator=rng).tolist()):
            where = slice(length, None) if padding == "right" else slice(0, T - length)
            valid_BT[row, where] = False
            visible_BTT[row, :, where] = False
    return q, k, v, targets, valid_BT, visible_BTT


def compare(
    dtype: torch.dtype,
    rtol: float,
    meaning: tuple[str, str, str],
    made,
    kernels: tuple[Attention, Attention] = (attend, head_losses),
    rows: int = 0,
    loss_rtol: float | None = None,
) -> None:
    """Every result of the kernels, with values and without, against the dense reference."""
    loss, reduction, kind = meaning
    q, k, v, targets, valid_BT, visible_BTT = made
    scale = q.shape[-1] ** -0.5
    weights_h = torch.linspace(0.5, 2, q.shape[1], dtype=torch.float64)
    grad_out = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad_out = grad_out * valid_BT[:, None, :, None]  # outputs at padding are undefined

    exact = [x.clone().requires_grad_() for x in (q, k, v)]
    maps = dense_maps(exact[0], exact[1], visible_BTT, scale)
    want_loss = torch.stack(
        [
            dense_loss(maps[:, j], target, valid_BT, visible_BTT, reduction, kind, loss) + 0 * maps.sum()
            for j, target in enumerate(targets)
        ]
    )
    want_out = maps @ exact[2]
    want_alone = torch.autograd.grad((weights_h * want_loss).sum(), exact[:2], retain_graph=True)
    ((want_out * grad_out).sum() + (weights_h * want_loss).sum()).backward()

    ours = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    mask = None if bool(valid_BT.all()) else visible_BTT
    terms = row_terms(targets, valid_BT, mask, reduction, kind, dtype, loss, THRESHOLD)
    numbers = replace(numbers_of(terms, scale, loss), rows=rows)
    out, loss_h, mass_h = kernels[0](ours, terms, mask, numbers)
    ((out * grad_out.to(dtype)).sum() + (weights_h.to(dtype) * loss_h).sum()).backward()

    def close(got: torch.Tensor, want: torch.Tensor, rtol: float = rtol) -> None:
        size = max(float(want.abs().max()), 1e-4)  # a loss may be 0 but for rounding
        torch.testing.assert_close(got.double(), want, rtol=rtol, atol=rtol * size)

    close(loss_h.detach(), want_loss.detach(), loss_rtol or rtol)
    close(out.detach() * valid_BT[:, None, :, None], (want_out * valid_BT[:, None, :, None]).detach())
    for got, want in zip(ours, exact):
        close(got.grad, want.grad)
    alone = [x.detach().requires_grad_() for x in ours[:2]]
    measured_loss, measured_mass = kernels[1](alone, terms, mask, numbers)
    close(measured_loss.detach(), want_loss.detach(), loss_rtol or rtol)
    torch.testing.assert_close(measured_mass, mass_h, equal_nan=True)
    for got, want in zip(torch.autograd.grad((weights_h.to(dtype) * measured_loss).sum(), alone), want_alone):
        close(got, want)
    for j, target in enumerate(targets):
        close_mass(mass_h[j], maps[:, j].detach(), target, valid_BT, visible_BTT, rtol)


def close_mass(got, maps_BTT, target, valid_BT, visible_BTT, rtol) -> None:
    from tests.guidance.dense import pattern_matrix

    p_BTT = pattern_matrix(target, valid_BT) * visible_BTT
    seen_BT = (p_BTT.sum(-1) > 0) & valid_BT
    if not seen_BT.any():
        assert got.isnan()
        return
    want = (maps_BTT * p_BTT).sum(-1)[seen_BT].mean()
    torch.testing.assert_close(got.double(), want, rtol=10 * rtol, atol=rtol)


@pytest.mark.parametrize("meaning", MEANINGS, ids="-".join)
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_fp32_equals_dense_float64(meaning: tuple[str, str, str], padding: str) -> None:
    """1e-6 relative, with T not a multiple of the row block and targets of both kinds."""
    made = case(seed=5, B=3, h=4, T=77, D=16, padding=padding, density=0.08)
    compare(torch.float32, 1e-6, meaning, made, rows=32)


@pytest.mark.parametrize("meaning", MEANINGS, ids="-".join)
def test_fp64_is_exact(meaning: tuple[str, str, str]) -> None:
    """Losses to 1e-14 and gradients to 1e-13 relative, with the output and alone."""
    made = case(seed=5, B=3, h=4, T=77, D=16, padding="left", density=0.08)
    compare(torch.float64, 1e-13, meaning, made, rows=32, loss_rtol=1e-14)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    B=st.integers(1, 3),
    h=st.integers(1, 4),
    T=st.integers(1, 40),
    D=st.integers(1, 9),
    rows=st.integers(1, 48),
    padding=st.sampled_from(["none", "right", "left"]),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    meaning=st.sampled_from(MEANINGS),
)
def test_any_shape_equals_dense(seed, B, h, T, D, rows, padding, density, meaning) -> None:
    made = case(seed, B, h, T, D, padding, density)
    compare(torch.float64, 1e-10, meaning, made, rows=rows)


def test_terms_are_counted_in_the_guidance_dtype_under_autocast() -> None:
    """700 keys marked: a count in bf16 would be 696 or 704."""
    valid_BT = torch.ones(1, 800, dtype=torch.bool)
    valid_BT[:, :100] = False
    mask_BQK = torch.ones(800, 800, dtype=torch.bool).tril() & valid_BT[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        terms = row_terms([Columns(valid_BT)], valid_BT, mask_BQK, "mean", "normalized", torch.float32)
    assert terms.level_BhT.dtype == torch.float32
    assert 1 / terms.level_BhT[0, 0, 798] == pytest.approx(699, rel=1e-6)


@pytest.mark.parametrize("meaning", MEANINGS, ids="-".join)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradcheck(meaning: tuple[str, str, str], dropout: float) -> None:
    q, k, v, targets, valid_BT, _ = case(2, 1, 2, 7, 3, "none", 0.3)
    loss, reduction, kind = meaning
    terms = row_terms(targets, valid_BT, None, reduction, kind, torch.float64, loss, THRESHOLD)
    numbers = replace(numbers_of(terms, 0.5, loss, dropout), rows=4)

    def run(q, k, v):
        return attend((q, k, v), terms, None, numbers, torch.tensor(0))[:2]

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in (q, k, v)])


@pytest.mark.parametrize("loss", ["log-mass", "kl", "hinge", "avoid"])
def test_rows_at_the_limits_have_finite_losses_and_gradients(loss: str) -> None:
    """A mass that underflows, and one within rounding of 1."""
    T, D = 16, 4
    for sign in (-1, 1):
        k = torch.zeros(1, 1, T, D)
        k[:, :, 1] = 60.0 * sign
        leaves = [torch.ones(1, 1, T, D), k, torch.randn(1, 1, T, D)]
        leaves = [x.requires_grad_() for x in leaves]
        marked = torch.zeros(1, T, dtype=torch.bool)
        marked[:, 1] = True
        terms = row_terms(
            [Columns(marked)], marked | True, None, "mean", "indicator", torch.float32, loss, 0.5
        )
        out, loss_h, mass_h = attend(leaves, terms, None, numbers_of(terms, 1.0, loss))
        (out.sum() + loss_h.sum()).backward()
        assert mass_h.item() == (1.0 if sign > 0 else 0.0)
        assert loss_h.isfinite() and all(x.grad.isfinite().all() for x in leaves)
        if (loss == "avoid") == (sign > 0):
            assert loss_h.item() > 10
        if loss == "kl" and sign < 0:
            assert loss_h.item() == pytest.approx(240, rel=0.02), "from the scores, H is 0"
            assert leaves[1].grad[0, 0, 1].sum() < -1, "which do not stop where H is 0"


def test_hinge_is_zero_where_the_mass_is_enough() -> None:
    q, k, v, targets, valid_BT, _ = case(6, 1, 2, 20, 4, "none", 0.5)
    for threshold in (1e-9, 1.0):
        terms = row_terms(targets, valid_BT, None, "mean", "indicator", torch.float64, "hinge", threshold)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        loss_h = attend(leaves, terms, None, numbers_of(terms, 0.5, "hinge"))[1]
        (gradient,) = torch.autograd.grad(loss_h.sum(), leaves[:1])
        assert bool((loss_h == 0).all()) == bool((gradient == 0).all()) == (threshold < 0.5)


def test_loss_stays_positive_when_a_head_attends_to_its_targets() -> None:
    """sum H^2 - 2 t mass + t^2 n would cancel to noise here."""
    T, D = 64, 8
    k = torch.zeros(1, 1, T, D)
    k[:, :, 0, 0] = 22.0
    q = torch.zeros(1, 1, T, D)
    q[..., 0] = 1.0
    marked = torch.zeros(1, T, dtype=torch.bool)
    marked[:, 0] = True
    terms = row_terms([Columns(marked)], marked | True, None, "mean", "indicator", torch.float32)
    loss_h, mass_h = head_losses((q, k), terms, None, numbers_of(terms, 0.5))
    exact = dense_loss(
        dense_maps(q.double(), k.double(), torch.ones(1, T, T).tril().bool(), 0.5)[:, 0],
        Columns(marked),
        marked | True,
        torch.ones(1, T, T).tril().bool(),
        "mean",
        "indicator",
    )
    assert mass_h.item() > 0.999
    torch.testing.assert_close(loss_h[0].double(), exact, rtol=1e-3, atol=0)


def test_half_precision_inputs_are_computed_in_fp32() -> None:
    q, k, v, targets, valid_BT, _ = case(3, 2, 2, 50, 8, "none", 0.1)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    terms = row_terms(targets, valid_BT, None, "mean", "indicator", torch.float32)
    out, loss_h, _ = attend((q, k, v), terms, None, numbers_of(terms, 0.3))
    exact = row_terms(targets, valid_BT, None, "mean", "indicator", torch.float64)
    _, want_h, _ = attend((q.double(), k.double(), v.double()), exact, None, numbers_of(exact, 0.3))
    assert out.dtype == torch.bfloat16
    assert loss_h.dtype == torch.float32
    torch.testing.assert_close(loss_h.double(), want_h, rtol=1e-6, atol=0)


def test_dropout_leaves_loss_and_mass_alone() -> None:
    """H in the study is before dropout."""
    q, k, v, targets, valid_BT, _ = case(4, 2, 3, 30, 8, "none", 0.2)
    terms = row_terms(targets, valid_BT, None, "mean", "indicator", torch.float64)
    plain = attend((q, k, v), terms, None, numbers_of(terms, 0.3))
    dropped = attend((q, k, v), terms, None, numbers_of(terms, 0.3, dropout=0.5))
    torch.testing.assert_close(dropped[1], plain[1])
    torch.testing.assert_close(dropped[2], plain[2], equal_nan=True)
    assert not torch.allclose(dropped[0], plain[0])
