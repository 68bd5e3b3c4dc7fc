"""GPTQ against Optimal Brain Quantization column by column, with the inverse Hessian updated after each."""

from __future__ import annotations

import pytest
import torch
from small_layers import small_layer

from bestiary.core.errors import DataError
from bestiary.core.quant.gptq import factorize, gptq
from bestiary.core.quant.rounding import Grid, round_to_nearest, values


def ranges_of(piece, grid):
    """Scale and zero of a group's columns [N, width], as round to nearest has them."""
    codes = round_to_nearest(piece, Grid(grid.bits, None, grid.zeros, grid.dtype))
    return codes.scale[:, 0].double(), None if codes.zero is None else codes.zero[:, 0].double()


def rounded(column, scale, zero, grid):
    low, high = grid.codes
    if grid.zeros == "none":
        return scale * (column / scale).round().clamp(low, high)
    if grid.zeros == "integer":
        return scale * (((column / scale).round() + zero).clamp(low, high) - zero)
    return scale * ((column - zero) / scale).round().clamp(low, high) + zero


def optimal_brain(weight, hessian, grid, damping, order):
    """The paper's equations (2) and (3), one column at a time: no blocks, no Cholesky."""
    w, columns = weight.double().clone(), weight.shape[1]
    width = grid.group or columns
    h = hessian + damping * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverse = torch.linalg.inv(h)
    sequence = hessian.diagonal().argsort(descending=True, stable=True).tolist() if order else list(range(columns))
    fixed = [ranges_of(weight[:, at : at + width], grid) for at in range(0, columns, width)]
    left = set(range(columns))
    for q in sequence:
        if not order and q % width == 0:
            fixed[q // width] = ranges_of(w[:, q : q + width].float(), grid)
        value = rounded(w[:, q], *fixed[q // width], grid)
        error = (w[:, q] - value) / inverse[q, q]
        w[:, q] = value
        left.discard(q)
        others = sorted(left)
        w[:, others] -= error.unsqueeze(1) * inverse[q, others]
        inverse = inverse - torch.outer(inverse[:, q], inverse[q]) / inverse[q, q]
    return w


CASES = [
    (Grid(4, 32), 96, False),
    (Grid(4, 32, "integer"), 96, True),
    (Grid(4, 64, "minimum"), 200, False),  # groups across blocks of columns, a shorter last group
    (Grid(4, 96), 300, False),
    (Grid(4, None, "none", torch.float32), 301, True),  # more than two blocks, an odd size
    (Grid(4, 160), 333, False),  # a group wider than a block
    (Grid(8, None, "none", torch.float32), 33, False),
]


@pytest.mark.parametrize(("grid", "columns", "order"), CASES)
def test_codes_are_those_of_optimal_brain_quantization(grid, columns, order):
    layer = small_layer(outputs=9, inputs=columns, rows=2 * columns)
    right = optimal_brain(layer.weight, layer.hessian, grid, 0.01, order)
    codes = gptq(layer.weight, factorize(layer.hessian, 0.01, order=order), grid)
    made = values(codes, grid.group)
    step = right.abs().amax() / grid.codes[1]
    assert ((made - right).abs() < 0.01 * step).float().mean() > 0.98
    assert layer.error(made) < 1.02 * layer.error(right)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("zeros", ["none", "integer", "minimum"])
def test_outputs_err_much_less_than_rounded_to_nearest(zeros, order):
    layer, grid = small_layer(), Grid(4, 32, zeros)
    codes = gptq(layer.weight, factorize(layer.hessian.float(), order=order), grid)
    plain = round_to_nearest(layer.weight, grid)
    assert codes.codes.dtype == plain.codes.dtype and codes.scale.shape == plain.scale.shape
    assert layer.error(values(codes, 32)) < 0.5 * layer.error(values(plain, 32))


def test_with_an_order_groups_keep_their_scales():
    layer, grid = small_layer(), Grid(4, 32)
    codes = gptq(layer.weight, factorize(layer.hessian, order=True), grid)
    assert torch.equal(codes.scale, round_to_nearest(layer.weight, grid).scale)


@pytest.mark.parametrize("shape", [(1, 96), (1, 1), (3, 5), (2, 129)])
@pytest.mark.parametrize("order", [False, True])
def test_small_shapes(shape, order):
    layer = small_layer(*shape)
    codes = gptq(layer.weight, factorize(layer.hessian.float(), order=order), Grid(4, 64))
    assert codes.codes.shape == shape and codes.scale.shape == (shape[0], -(-shape[1] // 64))
    assert values(codes, 64).isfinite().all()


@pytest.mark.parametrize("order", [False, True])
def test_columns_that_were_never_used_are_rounded_to_nearest(order):
    layer = small_layer(inputs=64)
    layer.x[:, 5:40] = 0
    grid = Grid(8, None, "none", torch.float32)
    codes = gptq(layer.weight, factorize(layer.hessian.float(), order=order), grid)
    plain = round_to_nearest(layer.weight, grid)
    if order:  # else the scale is that of the columns as they are when the row begins, which is the same here
        assert torch.equal(codes.scale, plain.scale)
    assert torch.equal(codes.codes[:, 5:40], plain.codes[:, 5:40])
    nothing = gptq(layer.weight, factorize(torch.zeros(64, 64), order=order), grid)
    assert torch.equal(nothing.codes, plain.codes)


def test_groups_of_zeros_stay_zeros():
    layer = small_layer(inputs=64)
    layer.weight[0] = 0
    made = values(gptq(layer.weight, factorize(layer.hessian), Grid(4, 32)), 32)
    assert made.isfinite().all() and (made[0] == 0).all()


def test_few_rows_leave_a_matrix_that_more_damping_mends():
    layer = small_layer(inputs=96, rows=3)
    codes = gptq(layer.weight, factorize(layer.hessian.float(), damping=0.0), Grid(4, 32))
    assert layer.error(values(codes, 32)) < layer.error(values(round_to_nearest(layer.weight, Grid(4, 32)), 32))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_hessian_that_is_none_is_refused(bad):
    hessian = torch.eye(4)
    hessian[2, 2] = bad
    with pytest.raises(DataError, match="positive definite") as refused:
        factorize(hessian)
    assert refused.value.code == "E-QUANT-HESSIAN"
