"""Triton kernels for attention and loss of guided heads; triton_attention.py launches them.

The mathematics is that of kernel.py's and losses.py's headers, three kernels a layer:

    forward   a sweep over the keys computes O, the row's log-sum-exp and the loss's sums over keys that are
              not targets; a second sweep over the blocks with targets computes the rest (a sum over
              differences, which needs the finished softmax: sum H^2 - 2 t sum H c + t^2 n would cancel), then
              the row's loss and the coefficients of its derivative
    backward  one kernel computes dq by blocks of queries, and the rows' delta_p for the next one, which
              computes dk and dv by blocks of keys: no atomics, so that results are bit-identical between runs

Softmax, loss and row sums are fp32, with exponents to base 2. As in flash attention, H and dS are rounded to
the model's dtype for matrix products with V, K and Q; for fp32 models nothing is rounded unless torch may use
tf32. Outputs have the memory layout [B, T, h, D], which the projections read and write. LOSS is the place of
the loss in losses.py. Without VALUES the loss is computed alone, in addition to the model's own attention:
v, dO and the output are not read, and the output and dv are not written.

Shapes: R rows (queries), C columns (keys), D the head width rounded up to a power of two.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
_TINY: tl.constexpr = tl.constexpr(1.1754943508222875e-38)
_EPSILON: tl.constexpr = tl.constexpr(1.1920928955078125e-07)
_SQUARED: tl.constexpr = tl.constexpr(0)
_LOG_MASS: tl.constexpr = tl.constexpr(1)
_KL: tl.constexpr = tl.constexpr(2)
_HINGE: tl.constexpr = tl.constexpr(3)
_AVOID: tl.constexpr = tl.constexpr(4)


@triton.jit
def _load_rows(base, rows_R, stride, T, width, D: tl.constexpr):
    """Rows of a [T, width] matrix with last stride 1, as [R, D]; 0 outside of the matrix."""
    columns_D = tl.arange(0, D)
    inside_RD = (rows_R[:, None] < T) & (columns_D[None, :] < width)
    return tl.load(base + rows_R[:, None] * stride + columns_D[None, :], mask=inside_RD, other=0.0)


@triton.jit
def _store_rows(base, x_RD, rows_R, stride, T, width, D: tl.constexpr):
    columns_D = tl.arange(0, D)
    inside_RD = (rows_R[:, None] < T) & (columns_D[None, :] < width)
    at_RD = base + rows_R[:, None] * stride + columns_D[None, :]
    tl.store(at_RD, x_RD.to(base.dtype.element_ty), mask=inside_RD)


@triton.jit
def _load_row_term(base, rows_R, T):
    return tl.load(base + rows_R, mask=rows_R < T, other=0.0)


@triton.jit
def _visible(mask, rows_R, columns_C, T, HAS_MASK: tl.constexpr):
    """Keys that the queries may see: causal, or a mask that is a subset of causal."""
    visible_RC = (rows_R[:, None] >= columns_C[None, :]) & (rows_R[:, None] < T)
    if HAS_MASK:
        at_RC = mask + rows_R[:, None].to(tl.int64) * T + columns_C[None, :]
        visible_RC = visible_RC & (tl.load(at_RC, mask=visible_RC, other=0) != 0)
    return visible_RC


@triton.jit
def _targets(columns, offset, rows_R, columns_C, T, HAS_OFFSETS: tl.constexpr):
    """c_pq as [R or 1, C]: the head's marked keys, or for a head with an offset the key that far before."""
    c_RC = tl.load(columns + columns_C, mask=columns_C < T, other=0.0)[None, :]
    if HAS_OFFSETS:
        behind_RC = rows_R[:, None] - columns_C[None, :] == offset
        c_RC = tl.where(offset >= 0, behind_RC.to(tl.float32), c_RC)
    return c_RC


@triton.jit
def _keep(seed, rows_R, columns_C, T, dropout):
    """Dropout factor of each entry, the same in forward and backward; it repeats after 2^31 entries."""
    random_RC = tl.rand(seed, rows_R[:, None] * T + columns_C[None, :])
    return tl.where(random_RC >= dropout, 1.0 / (1.0 - dropout), 0.0)


@triton.jit
def _attend(
    sums, q_RD, k, v, mask, columns, offset, rows_R, begin, end, k_t, v_t, scale, dropout, seed, T, width,
    C: tl.constexpr, D: tl.constexpr, LOSS: tl.constexpr, VALUES: tl.constexpr, HIDES: tl.constexpr,
    HAS_MASK: tl.constexpr, DROPS: tl.constexpr, HAS_OFFSETS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Online softmax over the keys from `begin` to `end`.

    sums: the highest score so far and, relative to it, sum e, for some losses a sum over keys that are not
    targets (of e^2, or of e), and e V.
    HIDES: whether some of these keys are hidden from some of the rows.
    """
    highest_R, total_R, others_R, out_RD = sums
    for at in range(begin, end, C):
        columns_C = at + tl.arange(0, C)
        k_CD = _load_rows(k, columns_C, k_t, T, width, D)
        s_RC = tl.dot(q_RD, tl.trans(k_CD), input_precision=PRECISION) * (scale * _LOG2_E)
        if HIDES:
            s_RC = tl.where(_visible(mask, rows_R, columns_C, T, HAS_MASK), s_RC, -float("inf"))
        higher_R = tl.maximum(highest_R, tl.max(s_RC, 1))
        # For a row without any key so far subtract 0, so that exp(-inf) is 0 and not NaN.
        shift_R = tl.where(higher_R == -float("inf"), 0.0, higher_R)
        fade_R = tl.exp2(highest_R - shift_R)
        e_RC = tl.exp2(s_RC - shift_R[:, None])
        total_R = total_R * fade_R + tl.sum(e_RC, 1)
        if LOSS == _SQUARED:
            other_RC = e_RC * (1.0 - _targets(columns, offset, rows_R, columns_C, T, HAS_OFFSETS))
            others_R = others_R * fade_R * fade_R + tl.sum(other_RC * other_RC, 1)
        if LOSS == _AVOID:
            other_RC = e_RC * (1.0 - _targets(columns, offset, rows_R, columns_C, T, HAS_OFFSETS))
            others_R = others_R * fade_R + tl.sum(other_RC, 1)
        if VALUES:
            if DROPS:
                e_RC *= _keep(seed, rows_R, columns_C, T, dropout)
            v_CD = _load_rows(v, columns_C, v_t, T, width, D)
            out_RD = out_RD * fade_R[:, None] + tl.dot(e_RC.to(v_CD.dtype), v_CD, input_precision=PRECISION)
        highest_R = higher_R
    return highest_R, total_R, others_R, out_RD


@triton.jit
def _row_loss(mass_R, others_R, square_R, distance_R, log_R, level_R, LOSS: tl.constexpr):
    """Loss of each row, and the coefficients pull (`target` or `direct`) and shift of its derivative, all
    before the row's weight. The coefficient `square` is 2 for the loss squared."""
    mass_R = tl.maximum(mass_R, _TINY)
    if LOSS == _SQUARED:
        loss_R = others_R + distance_R
        pull_R = -2 * level_R
        shift_R = 2 * (others_R + square_R - level_R * mass_R)
    elif LOSS == _KL:
        loss_R = tl.log2(level_R) * _LN_2 - level_R * log_R
        pull_R = -level_R
        shift_R = tl.full(mass_R.shape, -1.0, tl.float32)
    elif LOSS == _AVOID:
        rest_R = tl.maximum(others_R, _EPSILON)
        loss_R = -tl.log2(rest_R) * _LN_2
        pull_R = 1.0 / rest_R
        shift_R = mass_R / rest_R
    else:
        loss_R = -tl.log2(mass_R) * _LN_2
        pull_R = -1.0 / mass_R
        shift_R = tl.full(mass_R.shape, -1.0, tl.float32)
        if LOSS == _HINGE:
            below_R = (mass_R < level_R).to(tl.float32)
            loss_R = (loss_R + tl.log2(level_R) * _LN_2) * below_R
            pull_R *= below_R
            shift_R *= below_R
    return loss_R, pull_R, shift_R


@triton.jit(do_not_specialize=["seed"])
def forward(
    q, k, v, mask, columns, offsets, levels, weights, seen,
    out, logsum, squares, pulls, shifts, losses, seen_masses,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, mask_b, scale, dropout, seed, heads, T, width,
    R: tl.constexpr, C: tl.constexpr, D: tl.constexpr, LOSS: tl.constexpr, VALUES: tl.constexpr,
    HAS_MASK: tl.constexpr, DROPS: tl.constexpr, HAS_OFFSETS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(1)
    b, head = (pair // heads).to(tl.int64), pair % heads
    start = tl.program_id(0) * R
    rows_R = start + tl.arange(0, R)
    k += b * k_b + head * k_h
    v += b * v_b + head * v_h
    mask += b * mask_b
    row = pair.to(tl.int64) * T
    columns += row
    offset = tl.load(offsets + head)
    q_RD = _load_rows(q + b * q_b + head * q_h, rows_R, q_t, T, width, D)
    whole, end = start // C * C, tl.minimum(start + R, T)  # up to `whole` all rows see all keys

    lowest_R = tl.full([R], -float("inf"), tl.float32)
    sums = (lowest_R, tl.zeros([R], tl.float32), tl.zeros([R], tl.float32), tl.zeros([R, D], tl.float32))
    sums = _attend(
        sums, q_RD, k, v, mask, columns, offset, rows_R, 0, whole, k_t, v_t, scale, dropout, seed + pair, T,
        width, C, D, LOSS, VALUES, HAS_MASK, HAS_MASK, DROPS, HAS_OFFSETS, PRECISION,
    )  # fmt: skip
    highest_R, total_R, others_R, out_RD = _attend(
        sums, q_RD, k, v, mask, columns, offset, rows_R, whole, end, k_t, v_t, scale, dropout, seed + pair, T,
        width, C, D, LOSS, VALUES, True, HAS_MASK, DROPS, HAS_OFFSETS, PRECISION,
    )  # fmt: skip
    seen_R = total_R > 0
    total_R = tl.where(seen_R, total_R, 1.0)
    if VALUES:
        made = b * T * heads * width + head * width
        _store_rows(out + made, out_RD / total_R[:, None], rows_R, heads * width, T, width, D)
    # +inf makes every entry of a row without keys exp(-inf) = 0, here and in backward.
    logsum_R = tl.where(seen_R, highest_R + tl.log2(total_R), float("inf"))
    tl.store(logsum + row + rows_R, logsum_R, mask=rows_R < T)

    if LOSS == _SQUARED:
        others_R /= total_R * total_R
    else:
        others_R /= total_R
    level_R = tl.load(levels + row + rows_R, mask=rows_R < T, other=1.0)
    square_R = tl.zeros([R], tl.float32)
    distance_R = tl.zeros([R], tl.float32)
    mass_R = tl.zeros([R], tl.float32)
    log_R = tl.zeros([R], tl.float32)
    for at in range(0, end, C):
        columns_C = at + tl.arange(0, C)
        c_RC = _targets(columns, offset, rows_R, columns_C, T, HAS_OFFSETS)
        if tl.max(tl.max(c_RC, 1), 0) > 0:
            k_CD = _load_rows(k, columns_C, k_t, T, width, D)
            s_RC = tl.dot(q_RD, tl.trans(k_CD), input_precision=PRECISION) * (scale * _LOG2_E)
            hit_RC = _visible(mask, rows_R, columns_C, T, HAS_MASK) & (c_RC > 0)
            h_RC = tl.exp2(tl.where(hit_RC, s_RC - logsum_R[:, None], -float("inf")))
            mass_R += tl.sum(h_RC, 1)
            if LOSS == _SQUARED:
                difference_RC = tl.where(hit_RC, h_RC - level_R[:, None], 0.0)
                square_R += tl.sum(h_RC * h_RC, 1)
                distance_R += tl.sum(difference_RC * difference_RC, 1)
            if LOSS == _KL:
                log_R += tl.sum(tl.where(hit_RC, s_RC - logsum_R[:, None], 0.0), 1) * _LN_2
    loss_R, pull_R, shift_R = _row_loss(mass_R, others_R, square_R, distance_R, log_R, level_R, LOSS)
    weight_R = _load_row_term(weights + row, rows_R, T)
    if LOSS == _SQUARED:
        tl.store(squares + row + rows_R, 2 * weight_R, mask=rows_R < T)
    tl.store(pulls + row + rows_R, pull_R * weight_R, mask=rows_R < T)
    tl.store(shifts + row + rows_R, shift_R * weight_R, mask=rows_R < T)
    tl.store(losses + row + rows_R, loss_R * weight_R, mask=rows_R < T)
    tl.store(seen_masses + row + rows_R, mass_R * _load_row_term(seen + row, rows_R, T), mask=rows_R < T)


@triton.jit
def _scores_gradient(
    q_RD, k_CD, v_CD, do_RD, rows_R, columns_C, mask, columns, offset, logsum_R, square_R, pull_R, delta_R,
    scale, dropout, seed, T, LOSS: tl.constexpr, VALUES: tl.constexpr, HIDES: tl.constexpr,
    HAS_MASK: tl.constexpr, DROPS: tl.constexpr, HAS_OFFSETS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(H after dropout, dS) of one block, fp32; 0 where the query may not see the key."""
    s_RC = tl.dot(q_RD, tl.trans(k_CD), input_precision=PRECISION) * (scale * _LOG2_E)
    h_RC = tl.exp2(s_RC - logsum_R[:, None])
    if HIDES:
        h_RC = tl.where(_visible(mask, rows_R, columns_C, T, HAS_MASK), h_RC, 0.0)
    dh_RC = tl.zeros_like(h_RC)
    if VALUES:
        dh_RC = tl.dot(do_RD, tl.trans(v_CD), input_precision=PRECISION)
    dropped_RC = h_RC
    if DROPS:
        keep_RC = _keep(seed, rows_R, columns_C, T, dropout)
        dropped_RC = h_RC * keep_RC
        dh_RC *= keep_RC
    pull_RC = pull_R[:, None] * _targets(columns, offset, rows_R, columns_C, T, HAS_OFFSETS)
    if LOSS == _SQUARED:
        dh_RC += square_R[:, None] * h_RC
    if LOSS == _KL:
        ds_RC = h_RC * (dh_RC - delta_R[:, None])
        if HIDES:
            pull_RC = tl.where(_visible(mask, rows_R, columns_C, T, HAS_MASK), pull_RC, 0.0)
        ds_RC += pull_RC
    else:
        ds_RC = h_RC * (dh_RC + pull_RC - delta_R[:, None])
    return dropped_RC, ds_RC


@triton.jit
def _add_keys(
    dq_RD, q_RD, k, v, do_RD, rows_R, mask, columns, offset, logsum_R, square_R, pull_R, delta_R, begin, end,
    k_t, v_t, scale, dropout, seed, T, width, C: tl.constexpr, D: tl.constexpr, LOSS: tl.constexpr,
    VALUES: tl.constexpr, HIDES: tl.constexpr, HAS_MASK: tl.constexpr, DROPS: tl.constexpr,
    HAS_OFFSETS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq plus the contribution of the keys from `begin` to `end`."""
    for at in range(begin, end, C):
        columns_C = at + tl.arange(0, C)
        k_CD = _load_rows(k, columns_C, k_t, T, width, D)
        v_CD = k_CD
        if VALUES:
            v_CD = _load_rows(v, columns_C, v_t, T, width, D)
        _, ds_RC = _scores_gradient(
            q_RD, k_CD, v_CD, do_RD, rows_R, columns_C, mask, columns, offset, logsum_R, square_R, pull_R,
            delta_R, scale, dropout, seed, T, LOSS, VALUES, HIDES, HAS_MASK, DROPS, HAS_OFFSETS, PRECISION,
        )  # fmt: skip
        dq_RD += tl.dot(ds_RC.to(k_CD.dtype), k_CD, input_precision=PRECISION)
    return dq_RD


@triton.jit(do_not_specialize=["seed"])
def backward_queries(
    q, k, v, do, mask, columns, offsets, logsum, grads, squares, pulls, deltas, shifts, out, dq,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, do_b, do_h, do_t, mask_b, scale, dropout, seed, heads, T,
    width, R: tl.constexpr, C: tl.constexpr, D: tl.constexpr, LOSS: tl.constexpr, VALUES: tl.constexpr,
    HAS_MASK: tl.constexpr, DROPS: tl.constexpr, HAS_OFFSETS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq; also deltas, which softmax's backward subtracts from each row of dH."""
    pair = tl.program_id(1)
    b, head = (pair // heads).to(tl.int64), pair % heads
    start = tl.program_id(0) * R
    rows_R = start + tl.arange(0, R)
    k += b * k_b + head * k_h
    v += b * v_b + head * v_h
    mask += b * mask_b
    row = pair.to(tl.int64) * T
    made = b * T * heads * width + head * width
    offset = tl.load(offsets + head)
    grad = tl.load(grads + head)
    q_RD = _load_rows(q + b * q_b + head * q_h, rows_R, q_t, T, width, D)
    logsum_R = tl.load(logsum + row + rows_R, mask=rows_R < T, other=float("inf"))
    square_R = grad * _load_row_term(squares + row, rows_R, T)
    pull_R = grad * _load_row_term(pulls + row, rows_R, T)
    shift_R = grad * _load_row_term(shifts + row, rows_R, T)
    delta_R = shift_R
    do_RD = q_RD
    if VALUES:
        do_RD = _load_rows(do + b * do_b + head * do_h, rows_R, do_t, T, width, D)
        out_RD = _load_rows(out + made, rows_R, heads * width, T, width, D)
        delta_R += tl.sum(do_RD.to(tl.float32) * out_RD.to(tl.float32), 1)
    tl.store(deltas + row + rows_R, delta_R, mask=rows_R < T)

    whole, end = start // C * C, tl.minimum(start + R, T)
    dq_RD = _add_keys(
        tl.zeros([R, D], tl.float32), q_RD, k, v, do_RD, rows_R, mask, columns + row, offset, logsum_R,
        square_R, pull_R, delta_R, 0, whole, k_t, v_t, scale, dropout, seed + pair, T, width, C, D, LOSS,
        VALUES, HAS_MASK, HAS_MASK, DROPS, HAS_OFFSETS, PRECISION,
    )  # fmt: skip
    dq_RD = _add_keys(
        dq_RD, q_RD, k, v, do_RD, rows_R, mask, columns + row, offset, logsum_R, square_R, pull_R, delta_R,
        whole, end, k_t, v_t, scale, dropout, seed + pair, T, width, C, D, LOSS, VALUES, True, HAS_MASK,
        DROPS, HAS_OFFSETS, PRECISION,
    )  # fmt: skip
    _store_rows(dq + made, dq_RD * scale, rows_R, heads * width, T, width, D)


@triton.jit
def _add_queries(
    dk_CD, dv_CD, q, k_CD, v_CD, do, columns_C, mask, columns, offset, logsum, grad, squares, pulls, deltas,
    begin, end, q_t, do_t, scale, dropout, seed, T, width, R: tl.constexpr, D: tl.constexpr,
    LOSS: tl.constexpr, VALUES: tl.constexpr, HIDES: tl.constexpr, HAS_MASK: tl.constexpr,
    DROPS: tl.constexpr, HAS_OFFSETS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(dk, dv) plus the contributions of the queries from `begin` to `end`."""
    for at in range(begin, end, R):
        rows_R = at + tl.arange(0, R)
        q_RD = _load_rows(q, rows_R, q_t, T, width, D)
        do_RD = q_RD
        if VALUES:
            do_RD = _load_rows(do, rows_R, do_t, T, width, D)
        logsum_R = tl.load(logsum + rows_R, mask=rows_R < T, other=float("inf"))
        square_R = grad * _load_row_term(squares, rows_R, T)
        pull_R = grad * _load_row_term(pulls, rows_R, T)
        delta_R = _load_row_term(deltas, rows_R, T)
        dropped_RC, ds_RC = _scores_gradient(
            q_RD, k_CD, v_CD, do_RD, rows_R, columns_C, mask, columns, offset, logsum_R, square_R, pull_R,
            delta_R, scale, dropout, seed, T, LOSS, VALUES, HIDES, HAS_MASK, DROPS, HAS_OFFSETS, PRECISION,
        )  # fmt: skip
        if VALUES:
            dv_CD += tl.dot(tl.trans(dropped_RC).to(do_RD.dtype), do_RD, input_precision=PRECISION)
        dk_CD += tl.dot(tl.trans(ds_RC).to(q_RD.dtype), q_RD, input_precision=PRECISION)
    return dk_CD, dv_CD


@triton.jit(do_not_specialize=["seed"])
def backward_keys(
    q, k, v, do, mask, columns, offsets, logsum, grads, squares, pulls, deltas, dk, dv,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, do_b, do_h, do_t, mask_b, scale, dropout, seed, heads, T,
    width, R: tl.constexpr, C: tl.constexpr, D: tl.constexpr, LOSS: tl.constexpr, VALUES: tl.constexpr,
    HAS_MASK: tl.constexpr, DROPS: tl.constexpr, HAS_OFFSETS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(1)
    b, head = (pair // heads).to(tl.int64), pair % heads
    start = tl.program_id(0) * C
    columns_C = start + tl.arange(0, C)
    q += b * q_b + head * q_h
    do += b * do_b + head * do_h
    mask += b * mask_b
    row = pair.to(tl.int64) * T
    offset = tl.load(offsets + head)
    grad = tl.load(grads + head)
    k_CD = _load_rows(k + b * k_b + head * k_h, columns_C, k_t, T, width, D)
    v_CD = k_CD
    if VALUES:
        v_CD = _load_rows(v + b * v_b + head * v_h, columns_C, v_t, T, width, D)
    first = start // R * R  # earlier queries see none of these keys, those from `whole` on see all
    whole = tl.minimum(tl.cdiv(start + C, R) * R, T)
    dk_CD, dv_CD = _add_queries(
        tl.zeros([C, D], tl.float32), tl.zeros([C, D], tl.float32), q, k_CD, v_CD, do, columns_C, mask,
        columns + row, offset, logsum + row, grad, squares + row, pulls + row, deltas + row, first, whole,
        q_t, do_t, scale, dropout, seed + pair, T, width, R, D, LOSS, VALUES, True, HAS_MASK, DROPS,
        HAS_OFFSETS, PRECISION,
    )  # fmt: skip
    dk_CD, dv_CD = _add_queries(
        dk_CD, dv_CD, q, k_CD, v_CD, do, columns_C, mask, columns + row, offset, logsum + row, grad,
        squares + row, pulls + row, deltas + row, whole, T, q_t, do_t, scale, dropout, seed + pair, T, width,
        R, D, LOSS, VALUES, HAS_MASK, HAS_MASK, DROPS, HAS_OFFSETS, PRECISION,
    )  # fmt: skip
    made = b * T * heads * width + head * width
    _store_rows(dk + made, dk_CD * scale, columns_C, heads * width, T, width, D)
    if VALUES:
        _store_rows(dv + made, dv_CD, columns_C, heads * width, T, width, D)
