"""How much of a prompt runs beside streams."""

from __future__ import annotations

import pytest

from bestiary.core.runtime.pace import LOOK_EVERY, Pace


def saw(*steps):
    pace = Pace()
    for decodes, prompt_tokens, seconds in steps:
        pace.saw(decodes, prompt_tokens, seconds)
    return pace


def settle(pace, cost, steps=60, decode=1.0):
    """Run so many steps with whole chunks, of which ``cost`` tells the seconds, and return the chunks."""
    chunks = []
    for _ in range(steps):
        chunk = pace.chunk()
        chunks.append(chunk)
        pace.saw(8, chunk, decode + cost(chunk) if chunk else decode)
    return chunks


def test_chunks_are_small_until_the_costs_are_known():
    assert saw().chunk() == saw((8, 0, 1.0)).chunk() == saw((0, 100, 1.0)).chunk() == 16


def test_a_chunk_takes_as_long_as_the_decodes_beside_it():
    chunks = settle(saw((8, 0, 1.0)), lambda chunk: chunk / 500)
    assert max(chunks) <= 500 and chunks[-1] == pytest.approx(500, rel=0.02)


def test_a_chunks_fixed_cost_keeps_it_from_growing_only_for_a_while():
    chunks = settle(saw((8, 0, 1.0)), lambda chunk: 0.5 + chunk / 500)
    assert chunks[-1] == pytest.approx(250, rel=0.05)


def test_a_context_that_grows_stretches_no_step_much():
    pace, behind, worst = saw((8, 0, 1.0)), 0, 0.0
    while behind < 8000:
        chunk = pace.chunk()
        seconds = 1.0 + chunk * (1 + behind / 1000) / 100
        pace.saw(8, chunk, seconds)
        behind, worst = behind + chunk, max(worst, seconds)
    assert worst < 2.2


def test_streams_that_grow_are_held_to_what_they_were_when_the_prompt_came():
    pace, behind, decode, worst = saw((8, 0, 1.0)), 0, 1.0, 0.0
    pace.admitted()
    while behind < 8000:
        chunk, decode = pace.chunk(), decode + 0.004
        seconds = decode + chunk * (1 + behind / 1000) / 200
        pace.saw(8, chunk, seconds)
        behind, worst = behind + chunk, max(worst, seconds)
    assert decode > 1.5 and worst < 2.6


def test_another_prompt_is_held_to_what_streams_were_when_it_came():
    pace = saw((8, 0, 1.0))
    pace.admitted()
    for _ in range(40):
        pace.saw(8, 0, 3.0)
    assert settle(pace, lambda chunk: chunk / 500, decode=3.0)[-1] == pytest.approx(375, rel=0.05)  # a quarter of 3 s
    pace.admitted()
    assert settle(pace, lambda chunk: chunk / 500, decode=3.0)[-1] == pytest.approx(1500, rel=0.05)


def test_one_slow_step_is_forgotten():
    pace = saw((8, 0, 1.0))
    settle(pace, lambda chunk: chunk / 500)
    pace.saw(8, 500, 50.0)
    assert 200 <= pace.chunk() <= 260
    assert settle(pace, lambda chunk: chunk / 500, 20)[-1] > 450


def test_the_end_of_a_prompt_tells_nothing_unless_its_step_was_too_long():
    pace = saw((8, 0, 1.0))
    pace.saw(8, 5, 1.9)
    assert pace.chunk() == 16
    pace.saw(8, 5, 2.5)
    assert pace.chunk() == 8


def test_a_step_quicker_than_its_decodes_alone_does_not_prove_that_tokens_are_free():
    assert saw((8, 0, 1.0), (8, 16, 0.5)).chunk() == 24


def test_a_prompt_comes_to_its_end_whatever_it_costs():
    assert settle(saw((8, 0, 1.0)), lambda chunk: 1000.0)[-1] == 4


def test_now_and_then_a_step_only_decodes_so_that_its_cost_is_known():
    pace = saw((8, 0, 1.0), *[(8, 16, 2.0)] * LOOK_EVERY)
    assert pace.chunk() == 0
    pace.saw(8, 0, 3.0)
    assert pace.chunk() == 16
    pace.saw(8, 16, 3.9)  # a decode step takes 2 s by now, so that is less than a chunk may add
    assert pace.chunk() == 16
    pace.saw(8, 16, 3.0)
    assert pace.chunk() == 24


def test_prompts_alone_need_no_look_at_decodes():
    assert saw((8, 0, 1.0), *[(0, 100, 1.0)] * (LOOK_EVERY + 1)).chunk() > 16
