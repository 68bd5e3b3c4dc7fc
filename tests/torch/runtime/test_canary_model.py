"""The canary on the real engine: its answers are those of plain Python, and any fault of the cache changes them."""

from __future__ import annotations

import math

import canary_model
import pytest
from canary_model import poison
from canary_numbers import VOCAB, alone

from bestiary import LLM, SamplingParams
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.testing import check_kernel, check_op, kernel_cases, load_plugins, op_cases

HOST = load_plugins(canary_model)
GREEDY = SamplingParams(temperature=0, max_tokens=8)
PROMPTS = [[(11 * i + 7 * kind + 3) % VOCAB for i in range(9 + 5 * kind)] for kind in range(6)]
WINDOWS = {"one group": (None,), "two groups": (None, 6), "window first": (5, None)}


@pytest.fixture
def make(tmp_path):
    opened = []

    def llm(windows=(None,), **options):
        directory = canary_model.write_config(tmp_path / "canary", windows=windows)
        small = {
            "block_size": 4,
            "max_batch_size": 8,
            "max_num_tokens": 16,
            "kv_cache_memory": 1 << 14,
            "max_seq_len": 64,
        }
        made = LLM(directory, weights="random", tokenizer=None, plugins=[canary_model], **{**small, **options})
        opened.append(made)
        return made

    yield llm
    for each in opened:
        each.close()


def tight(windows):
    """Bytes for little more than one longest request."""
    return 560 if len(windows) == 1 else 1200


def expected(windows, prompt, length=8):
    return alone([CacheGroup(1, 1, window) for window in windows], prompt, length)


def answers(llm, prompts=PROMPTS, params=GREEDY):
    return [out.outputs[0].token_ids for out in llm.generate(prompts, params, use_tqdm=False)]


@pytest.mark.parametrize("case", op_cases(HOST, ["canary::store", "canary::checksum", "canary::logits"]), ids=str)
def test_its_ops_keep_their_declarations(case):
    check_op(case)


def test_its_kernel_is_its_op():
    cases = [case for case in kernel_cases(HOST) if case.op.name == "canary::checksum"]
    assert [check_kernel(case) for case in cases] == [2]


@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("reference", [False, True], ids=["program", "reference"])
@pytest.mark.parametrize("overlaps", [False, True], ids=["one by one", "ahead"])
def test_together_each_gives_what_it_gives_alone(make, windows, reference, overlaps):
    llm = make(windows, reference=reference, capacity="max-utilization", kv_cache_memory=tight(windows))
    llm._driver.loop.executor.overlaps = overlaps
    assert answers(llm) == [expected(windows, prompt) for prompt in PROMPTS]
    assert answers(llm) == [expected(windows, prompt) for prompt in PROMPTS]


def stale(k, v, block):
    k[block, 1], v[block, 1] = k[block, 0].clone(), v[block, 0].clone()


def shifted(k, v, block):
    k[block], v[block] = k[block].roll(1, 0), v[block].roll(1, 0)


def foreign(k, v, block):
    k[block], v[block] = k[block - 1].clone() + 1, v[block - 1].clone()


def zeroed(k, v, block):
    k[block] = v[block] = 0


def poisoned(k, v, block):
    k[block, 3] = math.nan


@pytest.mark.parametrize("fault", [stale, shifted, foreign, zeroed, poisoned], ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("windows", [(None,), (None, 12)], ids=["one group", "two groups"])
@pytest.mark.parametrize("layer", [0, -1], ids=["first layer", "last layer"])
def test_a_fault_in_any_layer_changes_the_answer(make, fault, windows, layer):
    """In the middle block of a running request; a prompt that has been stored is not written again."""
    llm = make(windows)
    stream, pieces = llm.stream([PROMPTS[0]], GREEDY), []
    pieces.append(next(stream))
    tensors = llm.engine.runner.inputs.store.tensors
    paths = [name.removeprefix("k.") for name in tensors if name.startswith("k.")]
    request = llm._driver.loop.scheduler.running[0]
    fault(tensors[f"k.{paths[layer]}"], tensors[f"v.{paths[layer]}"], request.blocks[layer][1])
    pieces += list(stream)
    found = [token for piece in pieces for token in piece.token_ids]
    assert found != expected(windows, PROMPTS[0])


def test_a_wrong_block_in_the_table_changes_the_answer(make):
    llm = make()
    stream = llm.stream([PROMPTS[1]], GREEDY)
    found = next(stream).token_ids
    state, request = llm.engine.runner.inputs.state, llm._driver.loop.scheduler.running[0]
    state.tables[0][request.slot, [0, 1]] = state.tables[0][request.slot, [1, 0]]
    found += [token for piece in stream for token in piece.token_ids]
    assert found != expected((None,), PROMPTS[1])


@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("overlaps", [False, True], ids=["one by one", "ahead"])
@pytest.mark.parametrize("capacity", ["no-evict", "max-utilization"])
def test_what_freed_blocks_hold_is_read_by_nobody(make, windows, overlaps, capacity):
    llm = make(windows, capacity=capacity, kv_cache_memory=tight(windows))
    loop = llm._driver.loop
    loop.executor.overlaps = overlaps
    step = loop.step

    def then_poison():
        ended = step()
        poison(llm)
        return ended

    loop.step = then_poison
    poison(llm)
    for _ in range(2):
        assert answers(llm) == [expected(windows, prompt) for prompt in PROMPTS]
    assert (llm.stats().preemptions > 0) == (capacity == "max-utilization") or len(windows) > 1
