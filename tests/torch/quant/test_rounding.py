"""Round to nearest, against every value of each group's grid tried one by one."""

from __future__ import annotations

import pytest
import torch
from small_layers import small_layer

from bestiary.core.quant.rounding import Codes, Grid, clipped, output_error, round_to_nearest, values

GRIDS = [
    Grid(bits, group, zeros, dtype)
    for bits, group, dtype in ((4, 32, torch.float16), (4, None, torch.float32), (8, None, torch.float32), (8, 7, torch.float16))
    for zeros in ("none", "integer", "minimum")
]  # fmt: skip


def nearest(weight, codes: Codes, grid: Grid):
    """The value of the grid nearest to each weight, found by trying all of them."""
    low, high = grid.codes
    width = grid.group or weight.shape[1]
    made = torch.empty_like(weight)
    for n in range(weight.shape[0]):
        for k in range(weight.shape[1]):
            scale = float(codes.scale[n, k // width])
            zero = 0.0 if codes.zero is None else float(codes.zero[n, k // width])
            every = torch.arange(low, high + 1, dtype=torch.float64)
            every = (every - zero) * scale if grid.zeros == "integer" else every * scale + zero
            made[n, k] = every[(every - weight[n, k]).abs().argmin()]
    return made


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("shape", [(3, 96), (1, 33), (2, 5), (4, 1)])
def test_each_weight_gets_the_nearest_value_of_its_group(grid, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    codes = round_to_nearest(weight, grid)
    groups = -(-shape[1] // (grid.group or shape[1]))
    assert codes.codes.shape == shape and codes.scale.shape == (shape[0], groups) and codes.scale.dtype == grid.dtype
    assert codes.codes.dtype == (torch.int8 if grid.zeros == "none" else torch.uint8)
    low, high = grid.codes
    assert codes.codes.min() >= low and codes.codes.max() <= high
    torch.testing.assert_close(values(codes, grid.group), nearest(weight, codes, grid), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_weight_is_farther_from_its_value_than_half_a_step(grid):
    weight = torch.randn(8, 70, generator=torch.Generator().manual_seed(2))
    codes = round_to_nearest(weight, grid)
    width = grid.group or 70
    step = codes.scale.float().abs().repeat_interleave(width, 1)[:, :70]
    beyond = ((values(codes, grid.group) - weight).abs() / step - 0.5).clamp(min=0)
    # Symmetric int4 has one code less on the side away from the largest weight; a rounded zero shifts a range by half.
    assert beyond.max() <= (0.51 if grid.zeros == "integer" else 1.01 if grid.zeros == "none" else 0.02)
    assert beyond.count_nonzero() < 0.05 * beyond.numel()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-12])
def test_rows_of_zeros_stay_zeros(grid, size):
    weight = torch.randn(3, 70, generator=torch.Generator().manual_seed(5))
    weight[1] *= size
    made = values(round_to_nearest(weight, grid), grid.group)
    assert made.isfinite().all() and (made[1].abs() <= size * 10).all()


@pytest.mark.parametrize("zeros", ["none", "integer", "minimum"])
def test_a_group_of_zeros_stays_zeros_in_a_row_of_others(zeros):
    weight = torch.randn(3, 70, generator=torch.Generator().manual_seed(5))
    weight[:, 32:64] = 0
    made = values(round_to_nearest(weight, Grid(4, 32, zeros)), 32)
    assert (made[:, 32:64] == 0).all() and made[:, 64:].any()


def test_a_constant_group_is_its_minimum():
    weight = torch.full((2, 64), 0.75)
    assert (values(round_to_nearest(weight, Grid(4, 32, "minimum")), 32) == 0.75).all()


def test_scales_beyond_their_dtype_saturate():
    for zeros in ("none", "integer", "minimum"):
        made = values(round_to_nearest(torch.tensor([[1e7, -1e7, 3.0]]), Grid(4, 3, zeros)), 3)
        assert made.isfinite().all()


def test_the_largest_weight_of_a_symmetric_group_is_kept():
    weight = torch.tensor([[1.0, -0.2, 0.5, 0.1], [0.2, -1.0, 0.5, 0.1]])
    codes = round_to_nearest(weight, Grid(4, 4))
    assert codes.scale.tolist() == [[-0.125], [0.125]]
    assert codes.codes.tolist() == [[-8, 2, -4, -1], [2, -8, 4, 1]]


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.bits == 4], ids=str)
def test_a_clip_search_errs_less_and_never_more(grid):
    generator = torch.Generator().manual_seed(4)
    sign = torch.randn(16, 96, generator=generator).sign()
    weight = sign * torch.empty(16, 96).exponential_(generator=generator)
    plain, cut = (f(weight, grid) for f in (round_to_nearest, clipped))
    before, after = ((values(codes, grid.group) - weight).square().sum(1) for codes in (plain, cut))
    assert (after <= before * 1.0001).all() and after.sum() < 0.97 * before.sum()


def test_a_groups_output_error_is_that_of_its_columns():
    layer = small_layer(inputs=45)
    difference = torch.randn(24, 45, generator=torch.Generator().manual_seed(3))
    found = output_error(layer.x, 32)(difference)
    for group, columns in enumerate((slice(0, 32), slice(32, 45))):
        made = (layer.x[:, columns] @ difference[:, columns].t()).square().mean(0)
        torch.testing.assert_close(found[:, group], made, rtol=1e-3, atol=1e-4)
