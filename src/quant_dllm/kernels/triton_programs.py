# pyright: reportMissingImports=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false
"""What runs on the GPU; imported only where Triton is.

Symbols, all of them sizes or indices of a tile:
    n  output channels    m  tokens    j  channels of a group    p  planes, over all groups

    words    [p, GROUP / 32, out] int32: signs of 32 channels of a row, see `triton_weight`
    rows     [p, out] float16         columns  [p, GROUP] float16
    groups   [p] int32: the group of a plane     counts  [orders] int32: groups of each order

Planes are sorted by the order of their group, so that the loop over the groups of one order has no
loop inside: a compiler then keeps the tile in registers and fetches ahead.

Tiles are [n, m]: the weight stands on the left, where a tensor core takes it from registers, and
few tokens make a narrow tile in place of a padded one. Triton's interpreter multiplies the bits of
bfloat16 numbers, so that it is given float32 (UPCAST). No program is compiled anew for another
number of tokens.

Reference: the split of a product over its inner axis, Osama et al., arXiv:2301.03598.
"""

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _sign_tile(words, p, n, outputs, ONES: tl.constexpr, GROUP: tl.constexpr, N: tl.constexpr):
    """±1 of one plane [N, GROUP]: a shift and a three-input operation make two 16-bit floats."""
    at = p * (GROUP // 32) + tl.arange(0, GROUP // 32)
    word = tl.load(words + at[None, :] * outputs + n[:, None])
    pairs = word[:, :, None] << tl.arange(0, 16)[None, None, :]
    pairs = (pairs & -2147450880) | ONES  # 0x80008000: both signs
    halves = tl.join(pairs.to(tl.int16), (pairs >> 16).to(tl.int16))
    return tl.reshape(halves, (N, GROUP))


@triton.jit
def _weight_tile(
    words, rows, columns, first, n, outputs, ORDER: tl.constexpr, GROUP: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """The planes of one group, scaled and summed: [N, GROUP] float32."""
    j = tl.arange(0, GROUP)
    tile = tl.zeros((N, GROUP), tl.float32)
    for k in tl.static_range(ORDER):
        p = first + k
        at = p * (GROUP // 32) + tl.arange(0, GROUP // 32)
        word = tl.load(words + at[None, :] * outputs + n[:, None])
        pairs = word[:, :, None] << tl.arange(0, 16)[None, None, :]
        sign = tl.join((pairs << 16) & -2147483648, pairs & -2147483648)
        c = tl.load(columns + p * GROUP + j).to(tl.float32)
        a = tl.load(rows + p * outputs + n).to(tl.float32)
        signed = c.to(tl.int32, bitcast=True)[None, :] ^ tl.reshape(sign, (N, GROUP))
        tile += a[:, None] * signed.to(tl.float32, bitcast=True)
    return tile


@triton.jit
def _store(sums, bias, y, n, m, split, tokens, outputs, HAS_BIAS: tl.constexpr):
    """Write a tile of y, or of the share of one split; the first split carries the bias."""
    inside = (n < outputs)[:, None] & (m < tokens)[None, :]
    if HAS_BIAS:
        if split == 0:
            sums += tl.load(bias + n, mask=n < outputs, other=0).to(tl.float32)[:, None]
    at = (split * tokens + m).to(tl.int64)[None, :] * outputs + n[:, None]
    tl.store(y + at, sums.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def scale_inputs(x, columns, groups, scaled, tokens, inputs, GROUP: tl.constexpr, M: tl.constexpr):
    """``scaled[p, m, j] = x[m, j of the group of p] c[p, j]``; grid (p, m)."""
    p, j = tl.program_id(0), tl.arange(0, GROUP)
    m = tl.program_id(1) * M + tl.arange(0, M)
    channel = tl.load(groups + p) * GROUP + j
    inside = (m < tokens)[:, None] & (channel < inputs)[None, :]
    value = tl.load(x + m[:, None] * inputs + channel[None, :], mask=inside, other=0)
    value = value.to(tl.float32) * tl.load(columns + p * GROUP + j).to(tl.float32)[None, :]
    at = (p * tokens + m)[:, None] * GROUP + j[None, :]
    tl.store(scaled + at, value.to(scaled.dtype.element_ty), mask=(m < tokens)[:, None])


@triton.jit(do_not_specialize=["tokens"])
def multiply_planes(
    scaled, words, rows, bias, y, tokens, outputs, planes, each, HAS_BIAS: tl.constexpr,
    ONES: tl.constexpr, UPCAST: tl.constexpr, GROUP: tl.constexpr, N: tl.constexpr,
    M: tl.constexpr,
):  # fmt: skip
    """Few tokens: a product of ±1 for each plane, row scales on the sums; grid (n, m, split)."""
    n = tl.program_id(0) * N + tl.arange(0, N)
    m = tl.program_id(1) * M + tl.arange(0, M)
    j, split = tl.arange(0, GROUP), tl.program_id(2)
    row, token = tl.minimum(n, outputs - 1), tl.minimum(m, tokens - 1)
    sums = tl.zeros((N, M), tl.float32)
    for p in range(split * each, tl.minimum(split * each + each, planes)):
        signs = _sign_tile(words, p, row, outputs, ONES, GROUP, N)
        signs = signs.to(scaled.dtype.element_ty, bitcast=True)
        v = tl.load(scaled + (p * tokens + token)[None, :] * GROUP + j[:, None])
        if UPCAST:
            product = tl.dot(signs.to(tl.float32), v.to(tl.float32))
        else:
            product = tl.dot(signs, v)
        a = tl.load(rows + p * outputs + row).to(tl.float32)
        sums += product * a[:, None]
    _store(sums, bias, y, n, m, split, tokens, outputs, HAS_BIAS)


@triton.jit(do_not_specialize=["tokens"])
def multiply_groups(
    x, words, rows, columns, groups, counts, bias, y, tokens, inputs, outputs, each,
    HAS_BIAS: tl.constexpr, DTYPE: tl.constexpr, UPCAST: tl.constexpr, MOST: tl.constexpr,
    GROUP: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Many tokens: the planes of a group become one tile, one product; grid (n, m, split)."""
    n = tl.program_id(0) * N + tl.arange(0, N)
    m = tl.program_id(1) * M + tl.arange(0, M)
    j, split = tl.arange(0, GROUP), tl.program_id(2)
    row, token = tl.minimum(n, outputs - 1), tl.minimum(m, tokens - 1)
    sums = tl.zeros((N, M), tl.float32)
    before, first = 0, 0  # groups and planes of lower orders
    for order in tl.static_range(1, MOST + 1):
        count = tl.load(counts + order)
        end = tl.minimum(split * each + each, before + count)
        for i in range(tl.maximum(split * each, before), end):
            p = first + (i - before) * order
            weight = _weight_tile(words, rows, columns, p, row, outputs, order, GROUP, N)
            channel = tl.load(groups + p) * GROUP + j
            v = tl.load(
                x + token[None, :] * inputs + channel[:, None],
                mask=(channel < inputs)[:, None], other=0,
            )  # fmt: skip
            if UPCAST:
                sums = tl.dot(weight, v.to(tl.float32), sums)
            else:
                sums = tl.dot(weight.to(DTYPE), v.to(DTYPE), sums)
        before += count
        first += count * order
    _store(sums, bias, y, n, m, split, tokens, outputs, HAS_BIAS)


@triton.jit(do_not_specialize=["splits"])
def add_splits(shares, y, count, splits, BLOCK: tl.constexpr):
    """Add the shares of all splits; grid (elements)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    share = shares + at
    for _ in range(splits):
        total += tl.load(share, mask=at < count, other=0)
        share += count
    tl.store(y + at, total.to(y.dtype.element_ty), mask=at < count)


@triton.jit
def dequantize(
    words, rows, columns, groups, weight, first, inputs, outputs, ORDER: tl.constexpr,
    GROUP: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write the groups of one order, whose planes begin at ``first``; grid (n, group)."""
    n, p = tl.program_id(0) * N + tl.arange(0, N), first + tl.program_id(1) * ORDER
    channel = tl.load(groups + p) * GROUP + tl.arange(0, GROUP)
    row = tl.minimum(n, outputs - 1)
    tile = _weight_tile(words, rows, columns, p, row, outputs, ORDER, GROUP, N)
    inside = (n < outputs)[:, None] & (channel < inputs)[None, :]
    at = n.to(tl.int64)[:, None] * inputs + channel[None, :]
    tl.store(weight + at, tile.to(weight.dtype.element_ty), mask=inside)
