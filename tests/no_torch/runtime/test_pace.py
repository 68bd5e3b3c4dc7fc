"""How much of a prompt runs beside streams."""

from __future__ import annotations

import pytest

from bestiary.core.runtime.pace import Pace


def saw(*steps):
    pace = Pace()
    for decodes, prompt_tokens, seconds in steps:
        pace.saw(decodes, prompt_tokens, seconds)
    return pace


def test_chunks_are_small_until_the_costs_are_known():
    assert saw().chunk() == saw((8, 0, 1.0)).chunk() == saw((0, 100, 1.0)).chunk() == 16


def test_a_chunk_takes_as_long_as_the_decodes_beside_it():
    assert saw((8, 0, 1.0), (8, 100, 1.5)).chunk() == 200


def test_what_seems_to_cost_nothing_is_not_known():
    pace = saw((8, 0, 1.0), (8, 100, 0.5))
    assert pace.chunk() == 16
    pace.saw(8, 100, 2.0)
    assert pace.chunk() == 100


def test_a_dearer_token_is_believed_at_once_and_a_cheaper_one_slowly():
    pace = saw((8, 0, 1.0), (8, 100, 1.5), (8, 100, 2.0))
    assert pace.chunk() == 100
    pace.saw(8, 100, 1.5)
    assert pace.chunk() == pytest.approx(111, abs=1)


def test_the_cost_of_few_tokens_is_not_measured():
    assert saw((8, 0, 1.0), (8, 15, 100.0)).chunk() == 16
