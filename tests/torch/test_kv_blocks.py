"""Blocks of few bits: bytes counted by hand, what rounding loses at most, and numbers that are none."""

from __future__ import annotations

import math

import pytest
import torch

from bestiary import ops
from bestiary.core.errors import DataError
from bestiary.core.kv_format import KINDS, BlockFormat
from bestiary.core.ops.kv_blocks import blocks_of, codes_of, dequantize, numbers_of, quantize, scales_of
from bestiary.core.quant.kv_ranges import CacheRange
from bestiary.core.quant.kv_ranges import scales_of as calibrated_scales

SIZES = [1, 2, 9, 16, 64, 65]


def deviates(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


def bound(kind: str, x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Half a step at x, and what rounding the arithmetic itself adds."""
    if kind == "int4":
        step, lowest = scales.float().unsqueeze(-2).unbind(-1)
        return step / 2 + 2**-11 * (lowest.abs() + 15 * step) + 2**-21
    step = scales.unsqueeze(-1)
    half = step / 2 if kind == "int8" else torch.maximum(x.float().abs() * 2**-4, step * 2**-10)
    return half * (1 + 1e-5)


@pytest.mark.parametrize(
    ("kind", "size", "code_bytes", "scales_at", "nbytes"),
    [
        ("int8", 64, 64, 16 * 3 * 64, 16 * 3 * (64 + 4)),
        ("fp8", 5, 5, 16 * 3 * 5, 16 * 3 * (5 + 4)),
        ("int4", 64, 32, 16 * 3 * 32, 16 * 3 * (32 + 4)),
        ("int4", 5, 3, 16 * 3 * 3, 16 * 3 * (3 + 4)),
    ],
)
def test_what_a_block_takes(kind: str, size: int, code_bytes: int, scales_at: int, nbytes: int) -> None:
    form = BlockFormat(kind, 16, 3, size)
    assert (form.code_bytes, form.scales_at, form.nbytes) == (code_bytes, scales_at, nbytes)


def test_codes_and_scales_begin_at_sixteens() -> None:
    # 3 tokens × 1 head × 5 bytes of codes, at 16 three scales
    assert (BlockFormat("int8", 3, 1, 5).scales_at, BlockFormat("int8", 3, 1, 5).nbytes) == (16, 32)


def test_int8_to_the_byte() -> None:
    (block,) = blocks_of(torch.tensor([[[[127.0, -1.0, 63.5]], [[0.5, 0.25, 0.0]]]]), "int8")
    first = [127, 255, 64]  # 63.5 goes to the even one
    second = [127, 64, 0]  # 63.5 again: 0.25 / (0.5 / 127)
    scales = torch.tensor([1.0, 0.5 / 127]).view(torch.uint8).tolist()
    assert block.tolist() == [*first, *second, *[0] * 10, *scales, *[0] * 8]


def test_fp8_to_the_byte() -> None:
    (block,) = blocks_of(torch.tensor([[[[448.0, 1.0, -0.0625, 17.0]]]]), "fp8")
    # sign, four bits of exponent (bias 7), three of mantissa; 17 lies between 16 and 18 and goes to the even mantissa
    codes = [0b0_1111_110, 0b0_0111_000, 0b1_0011_000, 0b0_1011_000]
    assert block.tolist() == [*codes, *[0] * 12, *torch.tensor([1.0]).view(torch.uint8).tolist(), *[0] * 12]


def test_int4_to_the_byte() -> None:
    (block,) = blocks_of(torch.tensor([[[[-1.0, 0.0, 14.0, 6.4, 2.5]]]]), "int4")
    # minimum −1, scale 1: the codes 0, 1, 15, 7, and 3.5 goes to the even 4; the sixth half byte is empty
    scales = torch.tensor([1.0, -1.0], dtype=torch.float16).view(torch.uint8).tolist()
    assert block.tolist() == [0x10, 0x7F, 0x04, *[0] * 13, *scales, *[0] * 12]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_loses_half_a_step_at_most(kind: str, dtype: torch.dtype) -> None:
    for seed, size in enumerate(SIZES):
        for factor in (1.0, 1e-3, 1e3):
            x = (deviates(seed, 7, 5, 3, size) * factor).to(dtype)
            x[0] = 0.0
            x[1] += 30 * factor  # far from zero on one side
            codes, scales = quantize(x, kind)
            found = dequantize(codes, scales, kind, size)
            assert ((found - x.float()).abs() <= bound(kind, x, scales)).all(), f"{size} features × {factor}"
            assert (found[0] == 0).all()
            assert torch.equal(numbers_of(blocks_of(x, kind), BlockFormat(kind, *x.shape[1:])), found)
            again, same = quantize(found, kind)
            if kind != "int4":
                assert torch.equal(again, codes) and (same - scales).abs().le(scales * 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_token_leaves_depends_on_nothing_but_itself(kind: str) -> None:
    k, v = deviates(1, 9, 2, 7), deviates(2, 9, 2, 6)
    forms = [BlockFormat(kind, 4, 2, size) for size in (7, 6)]
    together, apart = ([torch.zeros(4, form.nbytes, dtype=torch.uint8) for form in forms] for _ in range(2))
    slots = torch.tensor([11, 2, 7, 0, 5, 1, 3, 10, -1])
    ops.quantized_kv_write(k, v, *together, slots, kind, 4)
    for row in torch.randperm(9).split(2):
        ops.quantized_kv_write(k[row], v[row], *apart, slots[row], kind, 4)
    assert all(torch.equal(one, other) for one, other in zip(together, apart, strict=True))
    # Slot 11 is the last of block 2; padding's is the last of all.
    for x, cache, form in zip((k, v), together, forms, strict=True):
        codes, scales = quantize(x, kind)
        assert torch.equal(codes_of(cache, form)[2, 3], codes[0])
        assert torch.equal(scales_of(cache, form)[3, 3], scales[8])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("fixed", [False, True], ids=["dynamic", "calibrated"])
def test_a_number_that_is_none_spoils_its_own_head_only(kind: str, bad: float, fixed: bool) -> None:
    x = deviates(3, 6, 2, 5)
    scale = torch.tensor([0.05, 0.1]) if fixed else None
    sound = dequantize(*quantize(x, kind, scale), kind, 5)
    x[2, 1, 3] = bad
    found = dequantize(*quantize(x, kind, scale), kind, 5)
    assert found[2, 1].isnan().all()
    found[2, 1] = sound[2, 1]
    assert torch.equal(found, sound)


@pytest.mark.parametrize("kind", KINDS)
def test_extremes_stay_finite(kind: str) -> None:
    for size in (1e-42, 1e-30, 3e38):
        x = torch.tensor([[size, -size, 0.0]])
        found = dequantize(*quantize(x, kind), kind, 3)
        assert found.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_calibrated_scales_hold_what_was_observed_and_clip_what_is_beyond(kind: str) -> None:
    x = deviates(4, 20, 3, 8)
    x[:, 2] = 0.0
    largest = x.abs().amax((0, 2))
    made = calibrated_scales({"cache": CacheRange(largest, largest * 2)}, ["cache"], kind)
    scale = made["cache.k_scale"]
    assert torch.equal(made["cache.v_scale"][:2], scale[:2] * 2)
    assert scale.dtype is torch.float32 and scale[2] == 1.0
    codes, scales = quantize(x, kind, scale)
    assert torch.equal(scales.float(), scales[:1].float().expand_as(scales)), "each token stores the fixed ones"
    found = dequantize(codes, scales, kind, 8)
    assert ((found - x).abs() <= bound(kind, x, scales)).all()
    beyond = dequantize(*quantize(x * 100, kind, scale), kind, 8)
    # int4 reaches one step further below zero than above.
    assert (beyond.abs() <= largest.unsqueeze(-1) * (8 / 7 + 1e-3 if kind == "int4" else 1 + 1e-6)).all()


def test_ranges_need_numbers() -> None:
    with pytest.raises(DataError, match=r"cache layers\.3: has shown no keys and values"):
        calibrated_scales({}, ["layers.3"], "int8")
    seen = CacheRange(torch.tensor([1.0]), torch.tensor([math.nan]))
    with pytest.raises(DataError, match=r"cache layers\.3: has shown numbers that are not finite"):
        calibrated_scales({"layers.3": seen}, ["layers.3"], "int8")


@pytest.mark.parametrize("name", ["torch", "invariant", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_of_nan_reaches_no_other(kind: str, name: str) -> None:
    from bestiary.core.kernels import invariant_quantized_cache, quantized_cache

    k, v = deviates(5, 12, 2, 8), deviates(6, 12, 2, 8)
    # Sequence 0 has the blocks 0 and 3, sequence 1 the block 1, whose last slot holds what another has left.
    slots = torch.tensor([0, 1, 2, 3, 12, 4, 5, 6, 7, 13, 14, 15])
    tables, starts = torch.tensor([[0, 3], [1, 2]], dtype=torch.int32), torch.tensor([0, 2, 4], dtype=torch.int32)
    lengths = torch.tensor([5, 3], dtype=torch.int32)
    q = deviates(7, 4, 4, 8)

    def attended() -> torch.Tensor:
        caches = [torch.zeros(5, BlockFormat(kind, 4, 2, 8).nbytes, dtype=torch.uint8) for _ in "kv"]
        ops.quantized_kv_write(k, v, *caches, slots, kind, 4)
        args = (q, *caches, tables, starts, lengths, 0.3, None, kind, 4, 2, 8)
        if name == "reference":
            return ops.quantized_paged_attention(*args)
        out = torch.empty(4, 4, 8)
        module = {"torch": quantized_cache, "invariant": invariant_quantized_cache}[name]
        module.quantized_paged_attention(*args, out=out)
        return out

    sound = attended()
    k[2, 0, 1] = v[8, 1, 2] = torch.nan  # of sequence 0, and behind the end of sequence 1
    found = attended()
    assert found[:2, :2].isnan().any(-1).all(), "its own queries see it in the heads that read it"
    assert torch.equal(found[2:], sound[2:]) and found[2:].isfinite().all()


def test_attention_over_int8_is_near_attention_over_numbers() -> None:
    """Scores are off by half a step of every feature at most, weights by as much in the exponent, values by half a step."""
    k, v, q = deviates(8, 3, 4, 2, 16) / 3, deviates(9, 3, 4, 2, 16), deviates(10, 2, 4, 16) / 3
    tables, starts = torch.tensor([[2, 0]], dtype=torch.int32), torch.tensor([0, 2], dtype=torch.int32)
    others = (tables, starts, torch.tensor([7], dtype=torch.int32), 0.25, None)
    expected = ops.paged_attention(q, k, v, *others)
    found = ops.quantized_paged_attention(q, blocks_of(k, "int8"), blocks_of(v, "int8"), *others, "int8", 4, 2, 16)
    steps = [scales_of(blocks_of(x, "int8"), BlockFormat("int8", 4, 2, 16)).amax((0, 1)) for x in (k, v)]
    off = 0.25 * q.abs().sum(-1) * (steps[0] / 2).repeat_interleave(2)  # of scores, [T, H]
    most = (2 * off).expm1() * v.abs().max() + steps[1].repeat_interleave(2) / 2
    difference = (found - expected).abs().amax(-1)
    assert (difference <= most + 1e-6).all() and difference.max() > 1e-4
