"""Attention of guided heads and their guidance loss, in row blocks: O(T) memory, one softmax for both.

Each block of query rows computes its rows of H once and uses them for the output H V *and* for the row sums
of the loss. Backward recomputes the rows and adds the loss, in the coefficients of losses.py and with g its
gradient, to the gradient that attention needs anyway:

    dS = H * (dO V^T + g square H + g target c - dO_p . O_p - g shift) + g direct c

so guidance adds elementwise passes and no matrix product to a guided head's backward. H is before dropout
(the study's Eq. 1 has none). Arithmetic is fp32 for fp32, fp16 and bf16 models and fp64 for fp64 models.
Without values, the loss is computed alone. operations.py makes differentiable operations of these functions.

Shapes: B batch, h guided heads, T positions, R rows of a block, C columns it can see, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gaguide.guidance.losses import ROW_LOSSES, RowSums
from gaguide.guidance.row_blocks import rows_of_block
from gaguide.guidance.targets import RowTerms


@dataclass(frozen=True)
class Numbers:
    """A kernel's arguments other than tensors; the same for forward and backward."""

    offsets: tuple[int, ...]
    """For each head the distance of a target that moves with the query, -1 for a head with target columns."""
    loss: str
    """Name of the loss in `ROW_LOSSES`."""
    scale: float
    """Factor of the scores."""
    causal: bool = True
    """Whether no query sees a later key. Otherwise there is a mask, and blocks have all columns."""
    dropout: float = 0.0
    """Probability with which an entry of H is dropped from the output."""
    rows: int = 0
    """Rows of a block; 0 chooses the number that was measured to be fastest."""
    fused: bool = False
    """Whether Triton kernels compute instead of the row blocks; decided by `backend.is_fused`."""


def guidance_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that guidance computes in for a model of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Results:
    """Results of a forward pass through guided heads."""

    out_BhTD: torch.Tensor | None
    """Attention output in the guidance dtype; None without values."""
    loss_h: torch.Tensor
    """Loss of each head."""
    mass_h: torch.Tensor
    """Attention mass of each head on its targets, averaged over the rows that see one; NaN without any."""
    coefficients_NBhT: torch.Tensor
    """Coefficients of the loss's derivative, N for each row; Triton kernels put the row's log-sum-exp
    first."""


def forward(
    qkv_BhTD: Sequence[torch.Tensor],
    terms: RowTerms,
    mask_BQK: torch.Tensor | None,
    seed: torch.Tensor | None,
    numbers: Numbers,
) -> Results:
    """Loss and mass of queries and keys; with values also their attention output.

    mask_BQK: bool [B or 1, T, T], True where visible; None is causal. seed: int64 scalar on the CPU, for
    dropout.
    """
    q_BhTD, k_BhTD = qkv_BhTD[:2]
    with torch.autocast(q_BhTD.device.type, enabled=False):
        rows = _Rows(q_BhTD, k_BhTD, mask_BQK, numbers)
        out_BhTD, use = None, None
        if len(qkv_BhTD) == 3:
            v_BhTD = qkv_BhTD[2].to(rows.k_BhTD.dtype)
            out_BhTD = torch.empty_like(v_BhTD, memory_format=torch.contiguous_format)

            def use(block: _Block, h_BhRC: torch.Tensor) -> None:
                dropped = h_BhRC if seed is None else h_BhRC * _keep(h_BhRC, numbers, seed, block.start)
                torch.matmul(dropped, v_BhTD[:, :, block.columns], out=out_BhTD[:, :, block.rows])

        loss = ROW_LOSSES[numbers.loss]
        sums = _row_sums(rows, terms, loss.needs, use)
        loss_h, coefficients_NBhT = loss.reduce(sums, terms)
        return Results(out_BhTD, loss_h, terms.mean_mass(sums.mass_BhT), coefficients_NBhT)


def backward(
    grad_loss_h: torch.Tensor,
    qk_BhTD: Sequence[torch.Tensor],
    attention: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    coefficients_NBhT: torch.Tensor,
    mask_BQK: torch.Tensor | None,
    seed: torch.Tensor | None,
    numbers: Numbers,
) -> tuple[torch.Tensor, ...]:
    """Gradients of q, k and, where there are values, of v.

    attention: values, their output and its gradient; nothing without values. targets: `columns_BhT` and
    `offsets_h` of the terms.
    """
    (q_BhTD, k_BhTD), columns_BhT = qk_BhTD, targets[0]
    with torch.autocast(q_BhTD.device.type, enabled=False):
        rows = _Rows(q_BhTD, k_BhTD, mask_BQK, numbers)
        given = [x.to(rows.k_BhTD.dtype) for x in attention]
        grads = [_zeros(x) for x in (rows.q_BhTD, rows.k_BhTD, *given[:1])]
        dq_BhTD, dk_BhTD = grads[:2]
        by_name = ROW_LOSSES[numbers.loss].named(coefficients_NBhT * grad_loss_h[:, None])
        # Subtracted from every entry of a row by softmax's backward.
        delta_BhT = by_name["shift"]
        if given:
            v_BhTD, out_BhTD, do_BhTD = given
            delta_BhT = (do_BhTD * out_BhTD).sum(-1) + delta_BhT
        for block in rows.blocks:
            here, seen = (slice(None), slice(None), block.rows), (slice(None), slice(None), block.columns)
            h_BhRC = rows.softmax(rows.scores(block), block)
            if given:
                dh_BhRC = do_BhTD[here] @ v_BhTD[seen].mT
                dropped = h_BhRC
                if seed is not None:
                    keep = _keep(h_BhRC, numbers, seed, block.start)
                    dropped, dh_BhRC = h_BhRC * keep, dh_BhRC * keep
                grads[2][seen] += dropped.mT @ do_BhTD[here]
            else:
                dh_BhRC = torch.zeros_like(h_BhRC)
            if "square" in by_name:
                dh_BhRC.addcmul_(h_BhRC, by_name["square"][here][..., None])
            if "target" in by_name:
                _add_targets(dh_BhRC, by_name["target"][here], columns_BhT, numbers, block)
            ds_BhRC = dh_BhRC.sub_(delta_BhT[here][..., None]).mul_(h_BhRC)
            if "direct" in by_name:
                _add_targets(ds_BhRC, by_name["direct"][here], columns_BhT, numbers, block)
                rows.hide(ds_BhRC, block, 0)
            torch.matmul(ds_BhRC, rows.k_BhTD[seen], out=dq_BhTD[here])
            dk_BhTD[seen] += ds_BhRC.mT @ rows.q_BhTD[here]
        dq_BhTD *= numbers.scale
        return tuple(grad.to(x.dtype) for grad, x in zip(grads, [*qk_BhTD, *attention[:1]]))


@dataclass(frozen=True)
class _Block:
    """Queries, and the keys that some of them may see."""

    rows: slice
    """Queries."""
    columns: slice
    """Keys."""

    @property
    def start(self) -> int:
        """The first query."""
        return int(self.rows.start)

    @property
    def lead(self) -> int:
        """Keys of the block before its first query; its entries (p, p - d) are on the diagonal lead - d."""
        return int(self.rows.start - self.columns.start)


class _Rows:
    """Computes blocks of rows of H from q and k, in the guidance dtype."""

    def __init__(
        self, q_BhTD: torch.Tensor, k_BhTD: torch.Tensor, mask_BQK: torch.Tensor | None, numbers: Numbers
    ) -> None:
        if mask_BQK is None and not numbers.causal:
            raise ValueError("attention that is not causal needs a mask")
        dtype = guidance_dtype(q_BhTD.dtype)
        # Scaling q costs T x D, scaling the scores T x T.
        self.q_BhTD = q_BhTD.to(dtype) * numbers.scale
        self.k_BhTD = k_BhTD.to(dtype)
        self.mask_BQK = mask_BQK
        self.numbers = numbers
        T = q_BhTD.shape[2]
        rows = numbers.rows or rows_of_block(T)
        # Only the square on the diagonal contains keys that come after their query.
        size = min(rows, T)
        self.later_RR = torch.ones(size, size, dtype=torch.bool, device=q_BhTD.device).triu_(1)
        starts = range(0, T, rows)
        self.blocks = [
            _Block(slice(start, stop), slice(first, stop if numbers.causal else T))
            for start, stop, first in zip(starts, [*starts[1:], T], _first_columns(mask_BQK, starts))
        ]

    def scores(self, block: _Block) -> torch.Tensor:
        """Scores [B, h, R, C] of a block."""
        s_BhRC = self.q_BhTD[:, :, block.rows] @ self.k_BhTD[:, :, block.columns].mT
        # The lowest finite value instead of -inf: a padding row that sees no key must not become NaN.
        self.hide(s_BhRC, block, torch.finfo(s_BhRC.dtype).min)
        return s_BhRC

    def softmax(self, s_BhRC: torch.Tensor, block: _Block) -> torch.Tensor:
        """The block of H with these scores; hidden entries are zero."""
        h_BhRC = torch.softmax(s_BhRC, -1)
        if self.mask_BQK is not None:
            self.hide(h_BhRC, block, 0)  # a row that sees no key has no attention, nor a gradient
        return h_BhRC

    def log_softmax(self, s_BhRC: torch.Tensor, block: _Block) -> torch.Tensor:
        """The logarithm of that block; hidden entries are zero."""
        log_BhRC = torch.log_softmax(s_BhRC, -1)
        self.hide(log_BhRC, block, 0)
        return log_BhRC

    def hide(self, x_BhRC: torch.Tensor, block: _Block, value: float) -> None:
        """Write `value` where the query may not see the key."""
        if self.mask_BQK is not None:
            x_BhRC.masked_fill_(~self.mask_BQK[:, None, block.rows, block.columns], value)
        else:
            size = x_BhRC.shape[2]
            x_BhRC[..., block.rows].masked_fill_(self.later_RR[:size, :size], value)


def _first_columns(mask_BQK: torch.Tensor | None, starts: Sequence[int]) -> list[int]:
    """For each block of rows the first key that any row sees; 0 on a GPU, which would have to be waited
    for."""
    if mask_BQK is None or mask_BQK.device.type != "cpu":
        return [0] * len(starts)
    seen_QK = mask_BQK.any(0)
    ends = [*starts[1:], len(seen_QK)]
    return [int(seen_QK[start:end].any(0).to(torch.uint8).argmax()) for start, end in zip(starts, ends)]


def _row_sums(
    rows: _Rows, terms: RowTerms, needs: frozenset[str], use: Callable[[_Block, torch.Tensor], None] | None
) -> RowSums:
    """Row sums, block by block; `use(block, h_BhRC)` is called with each while it exists."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in ("mass", *needs)}
    for block in rows.blocks:
        s_BhRC = rows.scores(block)
        h_BhRC = rows.softmax(s_BhRC, block)
        if use is not None:
            use(block, h_BhRC)
        found["mass"].append(_sum_targets(h_BhRC, terms, block))
        if "logs" in needs:
            found["logs"].append(_sum_targets(rows.log_softmax(s_BhRC, block), terms, block))
        del s_BhRC
        if "squares" in needs:
            found["squares"].append(torch.linalg.vector_norm(h_BhRC, dim=-1).square_())
        if "rest" in needs:
            found["rest"].append(_sum_others(h_BhRC, terms, block))
        if "distances" in needs:  # the last one: it changes the block
            _add_targets(h_BhRC, -terms.level_BhT[:, :, block.rows], terms.columns_BhT, rows.numbers, block)
            rows.hide(h_BhRC, block, 0)
            found["distances"].append(torch.linalg.vector_norm(h_BhRC, dim=-1).square_())
    return RowSums(**{f"{name}_BhT": torch.cat(parts, -1) for name, parts in found.items()})


def _zeros(x_BhTD: torch.Tensor) -> torch.Tensor:
    """Zeros of the same shape and dtype in the memory layout [B, T, h, D], which the projections read."""
    B, h, T, D = x_BhTD.shape
    return x_BhTD.new_zeros(B, T, h, D).transpose(1, 2)


def _moving(numbers: Numbers) -> list[tuple[int, int]]:
    """(index in h, distance) of the heads whose target moves with the query."""
    return [(slot, distance) for slot, distance in enumerate(numbers.offsets) if distance >= 0]


def _diagonal(x_BhRC: torch.Tensor, slot: int, distance: int, block: _Block) -> tuple[torch.Tensor, int]:
    """View of the entries (p, p - distance) of a block, and the first row in which there is one."""
    return x_BhRC[:, slot].diagonal(block.lead - distance, 1, 2), max(distance - block.lead, 0)


def _sum_targets(x_BhRC: torch.Tensor, terms: RowTerms, block: _Block) -> torch.Tensor:
    """Sum of x c by row, for column targets and for offsets."""
    sum_BhR = (x_BhRC @ terms.columns_BhT[:, :, block.columns, None]).squeeze(-1)
    for slot, distance in terms.moving:
        diagonal_BN, first = _diagonal(x_BhRC, slot, distance, block)
        sum_BhR[:, slot, first : first + diagonal_BN.shape[1]] = diagonal_BN
    return sum_BhR


def _sum_others(x_BhRC: torch.Tensor, terms: RowTerms, block: _Block) -> torch.Tensor:
    """Sum of x (1 - c) by row, for column targets and for offsets."""
    others_BhC = 1 - terms.columns_BhT[:, :, block.columns]
    if terms.moving:
        x_BhRC = x_BhRC.clone()
        for slot, distance in terms.moving:
            _diagonal(x_BhRC, slot, distance, block)[0].zero_()
    return (x_BhRC @ others_BhC[..., None]).squeeze(-1)


def _add_targets(
    x_BhRC: torch.Tensor, factor_BhR: torch.Tensor, columns_BhT: torch.Tensor, numbers: Numbers, block: _Block
) -> None:
    """Add factor_p c to x in place, for column targets and for offsets."""
    moving = _moving(numbers)
    if len(moving) < x_BhRC.shape[1]:
        x_BhRC.addcmul_(factor_BhR[..., None], columns_BhT[:, :, None, block.columns])
    for slot, distance in moving:
        diagonal_BN, first = _diagonal(x_BhRC, slot, distance, block)
        diagonal_BN += factor_BhR[:, slot, first : first + diagonal_BN.shape[1]]


def _keep(h_BhRC: torch.Tensor, numbers: Numbers, seed: torch.Tensor, start: int) -> torch.Tensor:
    """Dropout's factor of each entry of the block whose first row is `start`."""
    generator = torch.Generator(h_BhRC.device).manual_seed(int(seed) + start)
    kept = 1 - numbers.dropout
    return torch.empty_like(h_BhRC).bernoulli_(kept, generator=generator).div_(kept)
