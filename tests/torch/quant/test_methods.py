"""The SDK's methods: what they store, how far what they restore is from the weight, and how their weights are divided."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary import ConfigError
from bestiary.core.ops.quantized import spread, unpacked
from bestiary.core.plugins import PluginHost
from bestiary.core.program.passes.quantize import Quantizer
from bestiary.core.program.program import Part, Weight
from bestiary.core.quant.affine import Affine, pack
from bestiary.core.quant.choose import check_rules
from bestiary.core.quant.method import Method
from bestiary.quant import FP8, W8A8, Int4, Int8

METHODS: dict[str, Method] = {
    "int8": Int8(),
    "int8-group": Int8(group=32),
    "int8-clip": Int8(clip=True),
    "int4": Int4(),
    "int4-32": Int4(group=32),
    "int4-integer": Int4(group=32, zeros="integer"),
    "int4-minimum": Int4(group=128, zeros="minimum"),
    "w8a8": W8A8(),
    "w8a8-static": W8A8(activations="static"),
    "fp8": FP8(),
    "fp8-tensor": FP8(weights="tensor"),
    "fp8-block": FP8(weights="block"),
}
SHAPES = [(8, 64), (5, 33), (1, 1), (3, 200), (130, 131), (2, 6, 70), (1, 4, 5)]


def restored(method: Method, stored, shape, dtype="float32"):
    return method.weight(stored, shape, dtype)


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_what_is_stored_is_what_the_layout_says(name, shape):
    method = METHODS[name]
    stored, layout = method.quantize(random(shape)), method.layout(shape)
    assert stored.keys() == layout.keys()
    for part, one in layout.items():
        assert (str(stored[part].dtype), tuple(stored[part].shape)) == (f"torch.{one.dtype}", one.shape(shape)), part


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [name for name in METHODS if "clip" not in name])
def test_no_weight_is_farther_than_half_a_step(name, shape):
    method, weight = METHODS[name], random(shape)
    stored = method.quantize(weight)
    off = (restored(method, stored, shape) - weight).abs()
    rows, columns = (
        (128, 128)
        if name == "fp8-block"
        else (1, method.grid.width(shape[-1]) if isinstance(method, Affine) else shape[-1])
    )
    rows = shape[-2] if name == "fp8-tensor" else rows
    scale = spread(stored["scale"].float(), (rows, columns), *shape[-2:])
    step, steps = scale.abs(), weight / scale
    if isinstance(method, FP8):  # 3 bits behind the point; below 2⁻⁶ the steps are even
        step = torch.maximum(weight.abs() / 8, step * 2**-9)
    allowed = step / 2
    if isinstance(method, Int4) and method.zeros == "none":  # codes reach from −8 to 7, and the largest weight has −8
        allowed = torch.maximum(allowed, (steps - 7) * step)
    # Scales, and minima, are rounded to what they are stored in; the codes' ends then lie a little inside or outside.
    assert (off <= allowed + 0.01 * step).all(), f"{(off / allowed).max()} of what is allowed"


@pytest.mark.parametrize("name", METHODS)
def test_rows_of_zeros_stay_zeros_and_extremes_stay_numbers(name):
    method = METHODS[name]
    weight = torch.zeros(4, 64)
    weight[1, 5], weight[2, 40], weight[3] = 3e-7, 6e4, 1e-30
    found = restored(method, method.quantize(weight), (4, 64))
    assert found.isfinite().all()
    if name not in ("fp8-tensor", "fp8-block"):
        assert not found[0].any()
    torch.testing.assert_close(found[2, 40], weight[2, 40], rtol=0.07, atol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_weight_is_the_wide_one_rounded_once(name, dtype):
    method, shape = METHODS[name], (6, 70)
    stored = method.quantize(random(shape))
    narrow = restored(method, stored, shape, dtype)
    assert torch.equal(narrow, restored(method, stored, shape).to(getattr(torch, dtype)))


@pytest.mark.parametrize("name", METHODS)
def test_experts_are_quantized_each_for_itself(name):
    method, weight = METHODS[name], random((3, 6, 70))
    together = method.quantize(weight)
    for expert in range(3):
        alone = method.quantize(weight[expert])
        for part in together:
            if part != "input_scale":
                assert torch.equal(together[part][expert].float(), alone[part].float()), part


@given(st.integers(1, 5), st.integers(1, 9), st.data())
def test_two_codes_of_four_bits_lie_in_a_byte(rows, columns, data):
    codes = torch.tensor(data.draw(st.lists(st.integers(0, 15), min_size=rows * columns, max_size=rows * columns)))
    codes = codes.reshape(rows, columns)
    packed = pack(codes)
    assert packed.dtype is torch.uint8 and packed.shape == (rows, -(-columns // 2))
    assert torch.equal(unpacked(packed, columns), codes.to(torch.uint8))
    assert packed[0, 0] & 15 == codes[0, 0], "the even column is the low one"


SHAPE = st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 150)) | st.tuples(
    st.sampled_from([1, 7, 128, 256]), st.integers(1, 300)
)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(sorted(METHODS)), SHAPE)
def test_a_slice_of_what_is_stored_is_the_slice_of_the_weight(data, name, shape):
    method = METHODS[name]
    axis = data.draw(st.integers(0, len(shape) - 1))
    start = data.draw(st.integers(0, shape[axis] - 1))
    stop = data.draw(st.integers(start + 1, shape[axis]))
    stored = method.quantize(random(shape))
    whole = restored(method, stored, shape).narrow(axis, start, stop - start)
    try:
        cut, pieces = method.cut(shape, axis, start, stop, "down")
    except ConfigError as error:
        assert error.code == "E-BUILD-SHARD" and f"{start} … {stop} of {shape[axis]}" in str(error)
        # Two columns of 4 bits share a byte, and blocks of 128 a scale; all else can be divided anywhere.
        odd = isinstance(method, Int4) and axis == len(shape) - 1 and (start % 2 or stop % 2)
        assert odd or (name == "fp8-block" and axis >= len(shape) - 2)
        return
    sliced = {}
    for part, tensor in stored.items():
        if part in pieces:
            piece = pieces[part]
            tensor = tensor.repeat_interleave(piece.repeat, piece.axis) if piece.repeat > 1 else tensor
            tensor = tensor.narrow(piece.axis, piece.start, piece.stop - piece.start)
        sliced[part] = tensor
    found = restored(cut, sliced, tuple(whole.shape))
    assert torch.equal(found, whole)


@pytest.mark.parametrize(("start", "group"), [(24, 8), (32, 32), (40, 8), (64, 64), (2, 2), (96, 32)])
def test_a_group_that_is_cut_in_two_makes_smaller_ones_of_the_same_scale(start, group):
    method, shape = Int4(), (4, 200)
    cut, pieces = method.cut(shape, 1, start, 200, "down")
    assert isinstance(cut, Int4) and cut.group == group
    assert (pieces["scale"].start * group, pieces["scale"].repeat * group) == (start, 64)


@pytest.mark.parametrize(
    ("method", "rows", "stacks"),
    [(Int8(), 3, True), (Int4(), 5, True), (W8A8(), 7, True), (W8A8(activations="static"), 8, False),
     (FP8(), 3, True), (FP8(weights="tensor"), 8, False), (FP8(weights="block"), 256, True), (FP8(weights="block"), 130, False)],
)  # fmt: skip
def test_rows_are_stacked_where_no_scale_covers_two_weights(method, rows, stacks):
    quantizer = Quantizer({"q": method}, {"q": (rows, 200)}, torch.float32, "cuda")
    assert (quantizer.form(Weight("q", (Part("q", (rows, 200)),))) is not None) is stacks


@pytest.mark.parametrize(
    ("method", "options", "problem"),
    [
        (Int4, {"group": "48"}, "group must be one of 32, 64, 128, got 48; found group=48 "),
        (Int4, {"group": "none"}, "option group: can't have this value; found none, expected an integer "),
        (Int4, {"group": "-32"}, "group must be one of"),
        (Int4, {"zeros": "half"}, "option zeros: .*found half, expected 'none', 'integer' or 'minimum' "),
        (Int4, {"bits": "3"}, "option bits: there is no such option.*options: quantizer, clip, order, group, zeros"),
        (Int4, {"quantizer": "magic"}, "option quantizer"),
        (Int4, {"order": "true"}, "order is for quantizer=gptq; found order=true "),
        (Int4, {"clip": "true", "quantizer": "awq"}, "clip is for quantizer=nearest"),
        (Int4, {"clip": "perhaps"}, "option clip: .*expected true or false "),
        (Int8, {"zeros": "integer"}, "there is no such option"),
        (W8A8, {"smooth": "1.5"}, "option smooth: .*less than or equal to 1"),
        (W8A8, {"smooth": "nan"}, "option smooth"),
        (W8A8, {"weights": "block"}, "there is no such option"),
        (FP8, {"weights": "half"}, "option weights: .*row"),
        (FP8, {"activations": "maybe"}, "option activations"),
    ],
)
def test_options_that_are_none_are_refused_with_a_sentence(method, options, problem):
    with pytest.raises(ConfigError, match=f"quantization mine.*{problem}") as raised:
        method.of("mine", options)
    assert raised.value.code == "E-BUILD-QUANTIZATION" and next(iter(options.values())) in str(raised.value)


@pytest.mark.parametrize(
    ("method", "wants"),
    [
        (Int4(), set()),
        (Int4(clip=True), set()),
        (Int4(quantizer="awq"), {"inputs"}),
        (Int8(quantizer="gptq", order=True), {"inputs", "hessian"}),
        (W8A8(), set()),
        (W8A8(smooth=0.5), {"inputs"}),
        (W8A8(activations="static"), {"inputs"}),
        (FP8(activations="static", weights="block"), {"inputs"}),
    ],
)
def test_calibration_is_wanted_by_those_that_need_it(method, wants):
    assert method.wants == wants


def test_options_are_as_they_were_written_or_recorded():
    assert Int4.of("int4", {"group": "32", "zeros": "minimum", "clip": "true"}) == Int4(
        group=32, zeros="minimum", clip=True
    )
    for method in METHODS.values():
        assert type(method).of("same", method.model_dump()) == method


def test_an_option_after_a_comma_is_told_from_a_method() -> None:
    with pytest.raises(ConfigError, match="colons stand before options: METHOD:zeros=integer"):
        check_rules("int4:group=64, zeros=integer", PluginHost.load())
