"""How much of a prompt runs beside streams."""

from __future__ import annotations

import pytest

from bestiary.core.runtime.pace import LOOK_EVERY, Pace


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


def test_few_tokens_tell_nothing_of_the_cost_of_one_unless_their_step_was_too_long():
    assert saw((8, 0, 1.0), (8, 15, 2.0)).chunk() == saw((0, 15, 9.0)).chunk() == 16
    assert saw((8, 0, 1.0), (8, 100, 1.5), (8, 15, 2.0)).chunk() == 200
    assert saw((8, 0, 1.0), (8, 15, 2.5)).chunk() == 10


def test_a_prompt_comes_to_its_end_whatever_it_costs():
    assert saw((8, 0, 1.0), (8, 100, 1000.0)).chunk() == 4


def test_now_and_then_a_step_only_decodes_so_that_its_cost_is_known():
    pace = saw((8, 0, 1.0), *[(8, 100, 2.0)] * LOOK_EVERY)
    assert pace.chunk() == 0
    pace.saw(8, 0, 3.0)
    assert pace.chunk() == 140


def test_prompts_alone_need_no_look_at_decodes():
    assert saw((8, 0, 1.0), *[(0, 100, 1.0)] * (LOOK_EVERY + 1)).chunk() == 100
