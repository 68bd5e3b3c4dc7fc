"""The memory plan against what is really allocated, part by part; the cap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_hf

from bestiary import LLM, ConfigError, SamplingParams, UsageError, ops
from bestiary.converters.convert import convert
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.device import peak_allocation
from bestiary.core.engine.build import build
from bestiary.core.engine.facts import EngineFacts
from bestiary.core.engine.load import LoadedEngine, load_engine
from bestiary.core.engine.memory import MemoryPlanner, Shares
from bestiary.core.engine.options import BuildOptions
from bestiary.core.engine.start import in_process, start
from bestiary.core.engine.step_bytes import graph_bytes, sampler_bytes
from bestiary.core.kv_format import KINDS
from bestiary.core.ops.kv_blocks import blocks_of
from bestiary.core.plugins import PluginHost
from bestiary.core.program.program import TorchCall
from bestiary.core.program.shapes import Sizes
from bestiary.core.runtime.loop import EngineLoop
from bestiary.core.runtime.sampler import Sampler

BASE: dict[str, Any] = {"device": "cpu", "max_batch_size": 4, "max_num_tokens": 64, "max_seq_len": 128}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"dtype": "bfloat16", "block_size": 8},
    "narrow_cache": {"kv_dtype": "float16", "max_batch_size": 7, "max_seq_len": 100},
    "few_bits": {"kv_dtype": "int8", "dtype": "bfloat16", "max_seq_len": 100},
    "quantized": {"quantization": "int4:group=32, lm_head=int8, *.down_proj=w8a8", "kv_dtype": "int4"},
    "restored_at_load": {"quantization": "fp8", "dtype": "bfloat16"},
    "deterministic": {"deterministic": True},
    "more_requests_than_tokens": {"max_batch_size": 9, "max_num_tokens": 5, "max_seq_len": 33},
}


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.load()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, host: PluginHost) -> Path:
    """``hf`` and ``ckpt`` of a model with few layers and a vocabulary that is large beside them."""
    directory = tmp_path_factory.mktemp("models")
    make_hf(directory / "hf", vocab_size=4000, num_hidden_layers=2, tie_word_embeddings=True)
    convert(directory / "hf", directory / "ckpt", host=host)
    return directory


@pytest.fixture(scope="module", params=OPTIONS)
def loaded(request: pytest.FixtureRequest, models: Path, host: PluginHost) -> LoadedEngine:
    target = models / request.param
    build(models / "ckpt", target, host=host, options=BuildOptions(**{**BASE, **OPTIONS[request.param]}))
    return load_engine(target, host=host, kv_cache_memory=2**28)


def planner_of(engine: LoadedEngine, host: PluginHost, stored: dict[str, str] | None = None) -> MemoryPlanner:
    if stored is None:
        stored = {name: entry.dtype for name, entry in Weights.open(engine.directory).entries.items()}
    return MemoryPlanner(engine.network, engine.options, host, stored=stored, longest=512, held=0)


def shares_of(engine: LoadedEngine, host: PluginHost) -> Shares:
    return planner_of(engine, host).shares(engine.options.max_batch_size, engine.max_seq_len)


def peak(run: Callable[[], Any]) -> int:
    """Most bytes that it allocated on the processor at a time."""
    return peak_allocation(run, torch.device("cpu"))


def mapped_ranges() -> list[tuple[int, int]]:
    """Where this process has weight files mapped."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    found = [line[0].split("-") for line in lines if line[-1].endswith(".safetensors")]
    return [(int(start, 16), int(stop, 16)) for start, stop in found]


def tensors_in(thing: Any, seen: set[int]) -> int:
    """Bytes of the tensors that an object holds, each once."""
    if isinstance(thing, np.ndarray):
        thing = torch.from_numpy(thing)
    if isinstance(thing, torch.Tensor):
        new = thing.data_ptr() not in seen
        seen.add(thing.data_ptr())
        return thing.untyped_storage().nbytes() if new else 0
    if isinstance(thing, (list, tuple)):
        return sum(tensors_in(one, seen) for one in thing)
    inside = getattr(thing, "__dict__", None)
    return sum(tensors_in(one, seen) for one in inside.values()) if inside else 0


def state_of(engine: LoadedEngine, host: PluginHost) -> int:
    """Bytes of the inputs' tensors, the slots', and the tokens that the host keeps."""
    loop = loop_of(engine, host)
    inputs = engine.runner.inputs
    params = sampler_of(loop)._params
    tensors = [params.numbers, params.top_k, params.seeds, loop.scheduler.slots.tokens]
    return tensors_in([inputs, tensors], {tensor.data_ptr() for tensor in inputs.store.tensors.values()})


def loop_of(engine: LoadedEngine, host: PluginHost) -> EngineLoop:
    return start(EngineFacts.of(engine), in_process(engine, host))


def sampler_of(loop: EngineLoop) -> Sampler:
    return loop.executor.worker._sampler


def test_weights_are_as_planned(loaded, host):
    ranges, mapped, made = mapped_ranges(), 0, 0
    for tensor in {t.data_ptr(): t for t in loaded.runner.program._weights.values()}.values():
        if any(start <= tensor.data_ptr() < stop for start, stop in ranges):
            mapped += tensor.nbytes
        else:
            made += tensor.nbytes
    shares = shares_of(loaded, host)
    assert (mapped, made) == (shares.weights_mapped, shares.weights_made)
    assert mapped > 0 or loaded.options.dtype == "bfloat16"


def test_the_cache_is_as_planned(loaded, host):
    assert loaded.runner.inputs.store.nbytes == shares_of(loaded, host).kv_cache


def test_inputs_and_slots_are_as_planned(loaded, host):
    assert state_of(loaded, host) == shares_of(loaded, host).inputs


def test_activations_of_the_largest_steps_stay_within_the_plan(loaded, host):
    planned, program = shares_of(loaded, host).activations, loaded.runner.program
    limits = loaded.network.limits
    # Many sequences with few rows, one with a row a token, and the largest of all: in any order.
    for sizes in (Sizes(limits.tokens, limits.sequences, 1), Sizes(limits.tokens, 1, limits.tokens), limits):
        program.bind(sizes)
        assert program.activation_bytes <= planned
    assert planned <= 1.3 * program.activation_bytes


def test_no_call_of_a_largest_step_takes_more_workspace_than_planned(loaded, host):
    planned, limits = shares_of(loaded, host).workspace, loaded.network.limits
    sequences, length = limits.sequences, loaded.max_seq_len
    table = torch.arange(sequences * -(-length // loaded.options.block_size), dtype=torch.int32).view(sequences, -1)
    for tokens in (sequences, limits.tokens):  # all decode, or one has a chunk
        sizes = Sizes(tokens, sequences, tokens)
        given = loaded.runner.inputs.views(sizes)
        given["block_tables.0"].copy_(table)
        given["query_starts"].copy_(torch.tensor([*range(sequences), tokens]))
        given["kv_lengths"].copy_(torch.full((sequences,), length) - torch.arange(sequences).flip(0))
        given["kv_lengths"][-1] = length
        for call in loaded.runner.program.bind(sizes)[0]:
            assert peak(call) <= planned


@pytest.mark.parametrize("mode", [{}, {"deterministic": True}], ids=["usual", "deterministic"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_kernels_state_is_near_what_they_take(models, host, dtype, mode, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    options = {"weights": "random", "tokenizer": None, "device": "cpu", "max_num_tokens": 256, "max_seq_len": 256}
    with LLM(models / "hf", dtype=dtype, **options, **mode) as llm:
        engine, takes = llm.engine, planner_of(llm.engine, host, {}).takes
        sizes = Sizes(256, 16, 16)
        calls = iter(engine.runner.program.bind(sizes)[0])
        for instruction in engine.network.program.instructions:
            target = instruction.target
            if isinstance(target, TorchCall):  # views make no calls
                continue
            call = next(calls)
            if target.name in ("paged_attention", "rotary_table"):  # own tests; a reference states nothing
                continue
            able = next(able for i, able in takes._able if i.target is target)
            kernel = next(k for k in able if k.name == engine.runner.program.kernel(instruction, sizes).name)
            stated = kernel.workspace(takes._facts(instruction, target, engine.network.shapes, sizes))
            took = peak(call)
            tiles = 200_000 if target.name == "linear" and dtype == "bfloat16" else 4096
            assert took <= stated <= 2 * took + tiles, f"{target.name}={kernel.name} took {took} and states {stated}"


@pytest.mark.parametrize("name", ["torch", "invariant"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_states_what_decodes_and_prompts_take(host, dtype, name, monkeypatch):
    from bestiary.core.kernels import attention, invariant_attention
    from bestiary.spec import Call, TensorFacts

    run = {"torch": attention, "invariant": invariant_attention}[name].paged_attention
    kernel = next(k for k in host.kernels("paged_attention") if k.name == name)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    wide = getattr(torch, dtype)
    for sequences, tokens, length, window in ((16, 16, 512, None), (1, 512, 1024, None), (16, 16, 512, 100)):
        q = torch.randn(tokens, 4, 32).to(wide)
        caches = [torch.randn(sequences * length // 16 + 1, 16, 2, 32).to(wide) for _ in "kv"]
        tables = torch.arange(sequences * length // 16, dtype=torch.int32).view(sequences, -1)
        starts = torch.tensor([*range(sequences), tokens], dtype=torch.int32)
        lengths = torch.tensor([length - 1] * (sequences - 1) + [length], dtype=torch.int32)
        out = torch.empty_like(q)
        took = peak(lambda: run(q, *caches, tables, starts, lengths, 0.2, window, out=out))  # noqa: B023
        named = {"q": q, "k_cache": caches[0], "v_cache": caches[1], "block_tables": tables}
        facts = {name: TensorFacts(tuple(tensor.shape), dtype) for name, tensor in named.items()}
        stated = kernel.workspace(Call("paged_attention", {**facts, "window": window}, "cpu"))
        assert took <= stated <= 2 * took + 2**20, f"{(sequences, tokens, window)}: took {took}, states {stated}"


@pytest.mark.parametrize("name", ["torch", "invariant"])
@pytest.mark.parametrize("kind", KINDS)
def test_attention_over_few_bits_states_what_it_takes(host, kind, name, monkeypatch):
    from bestiary.core.conformance.kernel_cases import describe_call
    from bestiary.core.program.calls import load_kernel

    op = ops.quantized_paged_attention
    kernel = next(k for k in host.kernels(op.name) if k.name == name)
    run = load_kernel(kernel, op)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    for sequences, tokens, length, window in ((16, 16, 512, None), (1, 512, 1024, None), (16, 16, 512, 100)):
        q = torch.randn(tokens, 4, 32).bfloat16()
        caches = [blocks_of(torch.randn(sequences * length // 16 + 1, 16, 2, 32), kind) for _ in "kv"]
        tables = torch.arange(sequences * length // 16, dtype=torch.int32).view(sequences, -1)
        starts = torch.tensor([*range(sequences), tokens], dtype=torch.int32)
        lengths = torch.tensor([length - 1] * (sequences - 1) + [length], dtype=torch.int32)
        args = (q, *caches, tables, starts, lengths, 0.2, window, kind, 16, 2, 32)
        took = peak(lambda: run(*args, out=torch.empty_like(q)))  # noqa: B023
        stated = kernel.workspace(describe_call(op, args, torch.device("cpu")))
        assert took <= stated <= 2 * took + 2**20, f"{(sequences, tokens, window)}: took {took}, states {stated}"


def most_while_sampling(llm: LLM, params: list[SamplingParams], prompts: list[list[int]]) -> int:
    """Most bytes that the sampler held at a time: its counts, and what a choice takes."""
    loop, most = llm._driver.loop, 0
    sample = loop.executor.sample

    def measured(wanted: Any) -> Any:
        nonlocal most
        before, found = tensors_in(sampler_of(loop)._counts, set()), []
        most = max(most, before + peak(lambda: found.append(sample(wanted))))
        return found[0]

    loop.executor.sample = measured
    llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return most


@pytest.mark.parametrize("count", [5, 33])
def test_the_hungriest_sampling_stays_within_the_plan(models, host, count):
    everything = SamplingParams(
        temperature=100, top_p=0.9, top_k=3000, min_p=0.01, repetition_penalty=1.2, presence_penalty=0.1, logit_bias={3: 1.0},
        logprobs=5, no_repeat_ngram_size=2, allowed_token_ids=range(4000), max_tokens=3, ignore_eos=True,
    )  # fmt: skip
    # One that is plainly greedy beside them makes the sampler divide the rows.
    params = [everything] * (count - 1) + [SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)]
    options = {"weights": "random", "tokenizer": None, **BASE, "max_batch_size": count, "max_num_tokens": 4 * count}
    with LLM(models / "hf", **options) as llm:
        took = most_while_sampling(llm, params, [[n, 7, n, 8] for n in range(count)])
        sizes = llm.engine.network.limits
        assert took <= sampler_bytes(llm.engine.network, sizes._replace(rows=0)) <= 1.6 * took


def test_scoring_a_prompt_stays_within_the_plan(models, host):
    options = {"weights": "random", "tokenizer": None, **BASE, "max_num_tokens": 500, "max_seq_len": 400}
    with LLM(models / "hf", **options) as llm:
        params = SamplingParams(prompt_logprobs=5, temperature=0, max_tokens=1)
        took = most_while_sampling(llm, [params], [[n % 4000 for n in range(399)]])
        counts = sampler_bytes(llm.engine.network, llm.engine.network.limits._replace(sequences=1, rows=0))
        assert took <= shares_of(llm.engine, host).sampler <= 1.6 * took + counts


def test_what_the_largest_batch_and_sequence_mean(loaded, host):
    planner = planner_of(loaded, host)
    batch, length = loaded.options.max_batch_size, loaded.max_seq_len
    asked = planner.shares(batch, length).total
    plan = planner.plan(asked)
    assert plan.fits and plan.shortage is None and plan.largest_batch >= min(batch, plan.max_num_tokens)
    less = planner.plan(asked - 1)
    assert not less.fits and "left for it" in less.shortage
    assert (
        planner.shares(less.largest_batch, length).total < asked <= planner.shares(less.largest_batch + 1, length).total
        or less.largest_batch == plan.max_num_tokens
    )
    assert planner.shares(batch, less.largest_seq).total < asked <= planner.shares(batch, less.largest_seq + 1).total
    none = planner.plan(1000)
    assert (none.largest_batch, none.largest_seq) == (0, 0)
    assert none.shortage.startswith("without any cache it takes")


def test_an_engine_keeps_to_its_limit(models, host, monkeypatch):
    monkeypatch.setattr("bestiary.core.device.held_memory", lambda device: 1_000_000)
    options = {"weights": "random", "tokenizer": None, **BASE, "max_num_tokens": 40}
    with LLM(models / "hf", **options, kv_cache_memory=2**28) as llm:
        planner = planner_of(llm.engine, host, {})
        shares = planner.shares(4, 128)
    limit = 1_000_000 + shares.total - shares.kv_cache + planner.kv_bytes(2, 128) + 100
    with LLM(models / "hf", **options, memory_limit=limit) as llm:
        assert llm.engine.runner.program.activation_bytes == shares.activations  # taken at once
        prompts = [[(7 * n + k) % 4000 for k in range(70 + n)] for n in range(8)]
        params = SamplingParams(max_tokens=20, seed=1, top_p=0.9, prompt_logprobs=2, ignore_eos=True)
        answers = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        assert [len(answer.outputs[0].token_ids) for answer in answers] == [20] * 8
        program, store = llm.engine.runner.program, llm.engine.runner.inputs.store
        assert planner.kv_bytes(1, 128) < store.nbytes <= planner.kv_bytes(2, 128) + 100
        weights = sum({t.data_ptr(): t.nbytes for t in program._weights.values()}.values())
        held = state_of(llm.engine, host)
        real = weights + store.nbytes + program.activation_bytes + held
        assert real + shares.sampler + shares.workspace + 1_000_000 <= limit
        assert program.activation_bytes == shares.activations
    with pytest.raises(ConfigError, match="one sequence") as refused:
        LLM(models / "hf", **options, memory_limit=limit - planner.kv_bytes(2, 128))
    assert refused.value.code == "E-MEMORY-LIMIT"
    total, _, terms = refused.value.expected.removeprefix("at least ").partition(" bytes (")
    assert sum(int(term.split()[-1].replace(",", "")) for term in terms.strip(")").split(" + ")) == int(
        total.replace(",", "")
    )


def test_what_a_limit_can_not_be(models, host, loaded):
    with pytest.raises(UsageError, match="E-USE-BYTES"):
        LLM(models / "hf", weights="random", memory_limit="lots")
    with pytest.raises(ConfigError, match="reference mode"):
        LLM(models / "hf", weights="random", memory_limit="4GiB", reference=True)
    with pytest.raises(ConfigError, match="num_blocks"):
        load_engine(loaded.directory, host=host, num_blocks=2**24, memory_limit=2**32)


def test_plans_are_for_the_options_asked_for(loaded, host):
    planner = planner_of(loaded, host)
    more = MemoryPlanner(
        loaded.network, replace(loaded.options, max_num_tokens=4 * loaded.options.max_num_tokens), host,
        stored={}, longest=512, held=0,
    )  # fmt: skip
    batch, length = 4, loaded.max_seq_len
    assert more.shares(batch, length).activations > planner.shares(batch, length).activations
    longer, asked = planner.shares(batch, 2 * length), planner.shares(batch, length)
    assert longer.inputs > asked.inputs and longer.workspace >= asked.workspace
    larger = planner.shares(batch + 1, length)
    assert larger.kv_cache > asked.kv_cache and larger.activations >= asked.activations


def test_graphs_are_planned_where_they_are_recorded(loaded, host, monkeypatch):
    monkeypatch.setattr("bestiary.core.device.records", lambda device: True)
    assert bool(shares_of(loaded, host).graphs) is not loaded.options.deterministic  # its attention waits for the host
    planner = planner_of(loaded, host)
    planner.options = replace(loaded.options, graphs=False)
    assert planner.shares(1, 8).graphs == 0


def test_graphs_are_planned_for_every_size_and_width_that_may_be_recorded(loaded):
    network = loaded.network
    few, many = (graph_bytes(network, sequences, 8, 0) for sequences in (1, 16))
    assert many == 7 * few  # 1, 2, 3, 4, 8, 12, 16
    block = network.geometry.block_size
    for blocks, widths in ((16, 1), (17, 2), (32, 2), (33, 3)):
        assert graph_bytes(network, 1, blocks * block, 0) == widths * few
    assert graph_bytes(network, 1, 8, 1000) == few + 1000
