"""AWQ's and SmoothQuant's scales against the papers' formulas."""

from __future__ import annotations

import pytest
import torch
from small_layers import small_layer

from bestiary.core.quant.awq import Reader, clip, error_of, search_scales
from bestiary.core.quant.rounding import Grid, round_to_nearest, values
from bestiary.core.quant.smooth import smooth_scales

GRID = Grid(4, 32)


def searched(readers, magnitude, grid, steps=20):
    """Plainly: every alpha, the whole error of each."""
    width = grid.group or len(magnitude)
    relative = []
    for weight, _ in readers:
        for row in weight.abs():
            relative.append(torch.cat([piece / piece.max() for piece in row.split(width)]))
    height = torch.stack(relative).mean(0)
    found = [(error(readers, torch.ones_like(magnitude), grid), torch.ones_like(magnitude))]
    for alpha in (step / steps for step in range(steps)):
        scale = (magnitude**alpha / (height ** (1 - alpha) + 1e-4)).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        found.append((error(readers, scale, grid), scale))
    return min(found, key=lambda pair: pair[0])


def error(readers, scale, grid):
    total = 0.0
    for weight, x in readers:
        rounded = values(round_to_nearest(weight * scale, grid), grid.group)
        total += float(((x / scale) @ rounded.t() - x @ weight.t()).square().sum())
    return total


@pytest.mark.parametrize("grid", [GRID, Grid(4, 64, "integer"), Grid(4, None, "none", torch.float32)], ids=str)
def test_the_search_finds_the_least_error(grid):
    first, second = small_layer(), small_layer(outputs=7, seed=1)
    readers = [Reader(first.weight, first.x), Reader(second.weight, first.x)]
    magnitude = first.x.abs().mean(0)
    scale = search_scales(readers, magnitude, grid)
    least, right = searched(readers, magnitude, grid)
    torch.testing.assert_close(scale, right)
    assert error_of(readers, scale, grid) == pytest.approx(least, rel=1e-3)


def test_outputs_err_clearly_less_than_rounded_to_nearest():
    layer = small_layer()
    scale = search_scales([Reader(layer.weight, layer.x)], layer.x.abs().mean(0), GRID)
    plain = layer.error(values(round_to_nearest(layer.weight, GRID), 32))
    scaled = layer.error(values(round_to_nearest(layer.weight * scale, GRID), 32), scale)
    cut = layer.error(values(clip(layer.weight * scale, layer.x / scale, GRID), 32), scale)
    assert scaled < 0.8 * plain
    assert cut < scaled


def test_clipping_shrinks_each_group_to_its_least_output_error():
    layer = small_layer(outputs=5, inputs=70)
    codes = clip(layer.weight, layer.x, GRID)
    for n in range(5):
        for group, columns in enumerate((slice(0, 32), slice(32, 64), slice(64, 70))):
            piece, x = layer.weight[n : n + 1, columns], layer.x[:, columns]
            tried = [round_to_nearest(piece, GRID, torch.tensor([[1 - part / 40]])) for part in range(21)]
            errors = [float((x @ (values(one, 32) - piece).t()).square().sum()) for one in tried]
            mine = values(codes, 32)[n : n + 1, columns]
            assert float((x @ (mine - piece).t()).square().sum()) <= min(errors) * 1.001 + 1e-9, (n, group)


def test_channels_without_inputs_or_weights_give_finite_scales():
    layer = small_layer(outputs=1, inputs=33)
    layer.x[:, 3] = 0
    layer.weight[:, 4] = 0
    layer.weight[:, :2] = 0
    for weight in (layer.weight, torch.zeros(2, 33)):
        scale = search_scales([Reader(weight, layer.x)], layer.x.abs().mean(0), GRID)
        assert scale.isfinite().all() and (scale > 0).all()
        assert values(clip(weight * scale, layer.x / scale, GRID), 32).isfinite().all()


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.8, 1.0])
def test_smoothing_is_the_papers_formula(strength):
    first, second = small_layer(), small_layer(outputs=3, seed=1)
    largest = first.x.abs().amax(0)
    scale = smooth_scales([first.weight, second.weight], largest, strength)
    for j in range(96):
        height = max(first.weight[:, j].abs().max(), second.weight[:, j].abs().max())
        assert float(scale[j]) == pytest.approx(float(largest[j] ** strength / height ** (1 - strength)), rel=1e-4)
    torch.testing.assert_close((first.x / scale) @ (first.weight * scale).t(), first.x @ first.weight.t())


def test_channels_of_zeros_are_not_smoothed():
    layer = small_layer()
    largest = layer.x.abs().amax(0)
    largest[3] = 0
    layer.weight[:, 4] = 0
    scale = smooth_scales([layer.weight], largest)
    assert scale[3] == scale[4] == 1 and scale.isfinite().all()
