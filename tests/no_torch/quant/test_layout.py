"""Which elements of a quantized weight's stored tensors belong to a slice of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestiary import ConfigError
from bestiary.core.quant.layout import Piece, Stored, sliced

BLOCK = st.none() | st.integers(1, 5)
SHAPE = st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)) | st.tuples(
    st.integers(1, 12), st.integers(1, 12)
)


def blocks(size: int, block: int | None) -> list[int]:
    """The block that each element lies in."""
    return [0 if block is None else place // block for place in range(size)]


@given(SHAPE, st.tuples(BLOCK, BLOCK))
def test_a_stored_tensor_has_an_element_for_each_block(shape, block):
    found = Stored("int8", block).shape(shape)
    assert found == (*shape[:-2], len(set(blocks(shape[-2], block[0]))), len(set(blocks(shape[-1], block[1]))))


@given(st.data(), SHAPE, st.tuples(BLOCK, BLOCK))
def test_a_slice_has_the_blocks_of_its_elements_or_is_refused(data, shape, block):
    axis = data.draw(st.integers(0, len(shape) - 1))
    start = data.draw(st.integers(0, shape[axis] - 1))
    stop = data.draw(st.integers(start + 1, shape[axis]))
    size = 1 if axis < len(shape) - 2 else block[axis - len(shape) + 2]
    where = blocks(shape[axis], size)
    inside, outside = set(where[start:stop]), {*where[:start], *where[stop:]}
    if size is not None and inside & outside:
        with pytest.raises(ConfigError) as raised:
            sliced(Stored("int8", block), shape, axis, start, stop, "down")
        assert raised.value.code == "E-BUILD-SHARD" and f"{start} … {stop} of {shape[axis]}" in str(raised.value)
        return
    piece = sliced(Stored("int8", block), shape, axis, start, stop, "down")
    if size is None:
        assert piece is None
    else:
        assert piece == Piece(axis, min(inside), max(inside) + 1)
        assert piece.stop - piece.start == math.ceil((stop - start) / size)
