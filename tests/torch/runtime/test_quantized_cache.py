"""A cache of few bits: chunks, prefixes, preemption and company change no answer; ranks, plans and errors know it."""

from __future__ import annotations

import json
import random
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import canary_model
import meeting_kernels
import pytest
import queue_kernels
import torch
from safetensors.torch import save_file
from tiny import SMALL, make_engine, whole

from bestiary import LLM, ConfigError, SamplingParams
from bestiary.core.checkpoint import kv_scales
from bestiary.core.checkpoint.files import digest_file
from bestiary.core.checkpoint.manifest import FileDigest, Manifest
from bestiary.core.checkpoint.parameters import parse_config
from bestiary.core.checkpoint.weights import INDEX
from bestiary.core.engine.build import build
from bestiary.core.engine.load import load_engine
from bestiary.core.engine.network import make_network
from bestiary.core.engine.options import BuildOptions
from bestiary.core.kv_format import KINDS, BlockFormat
from bestiary.core.ops.collective import UNDIVIDED, Place, Ranks
from bestiary.core.ops.kv_blocks import scales_of
from bestiary.core.planning import plan_memory
from bestiary.core.plugins import PluginHost
from bestiary.core.program.program import Program
from bestiary.core.runtime.kv_store import block_bytes
from bestiary.layers.cache import CacheSpec

CONFIG = {
    **SMALL,
    "num_hidden_layers": 2,
    "head_dim": 10,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "float32",
}
LONGEST = 96
RNG = random.Random(5)
SHARED = [RNG.randrange(3, 96) for _ in range(40)]
PROMPTS = [[*SHARED[:n], *(RNG.randrange(3, 96) for _ in range(5 + 3 * n % 17))] for n in (0, 33, 40, 8, 17, 40)]
PARAMS = [
    SamplingParams(temperature=0.9 * (n % 3 == 2), seed=n, max_tokens=5 + n % 3, ignore_eos=True, logprobs=2)
    for n in range(len(PROMPTS))
]
#: How else the same requests can be run: options, and whether the second time they reuse what the first one left.
WAYS: dict[str, dict[str, Any]] = {
    "chunks of 1": {"max_num_tokens": 1},
    "chunks of 7": {"max_num_tokens": 7},
    "chunks of 64": {"max_num_tokens": 64},
    "whole": {},
    "prefixes": {"prefix_caching": True, "block_size": 8, "max_num_tokens": 50},
    "preempted": {"prefix_caching": True, "block_size": 1, "capacity": "max-utilization"},
}
#: How far log-probabilities may lie apart where products round differently: a number may then take the code beside its own.
APART = {"int8": 0.01, "fp8": 0.05, "int4": 0.1}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("config")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


@pytest.fixture(params=KINDS, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(config: Path, kind: str, **options: Any) -> LLM:
    said = {"kv_cache_memory": 2**22, "max_seq_len": LONGEST, "max_batch_size": 8, "prefix_caching": False, **options}
    if "capacity" in said:  # a longest request and little more
        said["kv_cache_memory"] = 110 * 2 * block_bytes(CacheSpec(2, 10, 10), 1, kind)
    return LLM(config, weights="random", tokenizer=None, device="cpu", kv_dtype=kind, **said)


def answers(llm: LLM, *, alone: bool = False) -> list[Any]:
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    if alone:
        outs = [llm.generate([p], s, use_tqdm=False)[0] for p, s in zip(prompts, PARAMS, strict=True)]
    else:
        outs = llm.generate(prompts, PARAMS, use_tqdm=False)
    return [(out.outputs[0].token_ids, out.outputs[0].logprobs) for out in outs]


def ran(llm: LLM, way: str) -> list[list[Any]]:
    """Answers; where prefixes are reused, also those of a second time. What is tested has happened then."""
    found = [answers(llm) for _ in range(2 if "prefix_caching" in WAYS[way] else 1)]
    assert (llm.stats().cached_tokens > 0) == ("prefix_caching" in WAYS[way])
    assert (llm.stats().preemptions > 0) == ("capacity" in WAYS[way])
    return found


@pytest.fixture(scope="module")
def alone(config: Path, kind: str) -> dict[bool, list[Any]]:
    made = {}
    for deterministic in (False, True):
        with opened(config, kind, deterministic=deterministic) as llm:
            made[deterministic] = answers(llm, alone=True)
    return made


@pytest.mark.parametrize("way", WAYS)
def test_deterministic_to_the_bit(config: Path, kind: str, alone: dict[bool, list[Any]], way: str) -> None:
    with opened(config, kind, deterministic=True, **WAYS[way]) as llm:
        assert all(found == alone[True] for found in ran(llm, way))


@pytest.mark.parametrize("way", WAYS)
def test_in_the_ordinary_mode(config: Path, kind: str, alone: dict[bool, list[Any]], way: str) -> None:
    with opened(config, kind, **WAYS[way]) as llm:
        for found in ran(llm, way):
            near(found, alone[False], APART[kind])


def near(found: list[Any], expected: list[Any], apart: float) -> None:
    """Log-probabilities as expected, up to where two tokens were as likely as each other."""
    for (tokens, logprobs), (wanted, known) in zip(found, expected, strict=True):
        for token, other, mine, theirs in zip(tokens, wanted, logprobs, known, strict=True):
            for one in mine.keys() & theirs.keys():
                assert abs(mine[one].logprob - theirs[one].logprob) <= apart
            if token != other:
                assert abs(mine[token].logprob - theirs[other].logprob) <= 2 * apart
                break


@pytest.mark.parametrize(("way", "window"), [("prefixes", 20), ("preempted", None)])
def test_blocks_that_are_free_are_never_read(kind: str, tmp_path: Path, way: str, window: int | None) -> None:
    """Behind a window blocks become free while their request goes on; after each step all free ones are made NaN."""
    said = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **said}))
    with opened(tmp_path, kind, deterministic=True) as llm:
        expected = answers(llm, alone=True)
    with opened(tmp_path, kind, deterministic=True, **WAYS[way]) as llm:
        loop, store = llm._driver.loop, llm.engine.runner.inputs.store
        ordinary, broken = loop.step, 0

        def step() -> Any:
            nonlocal broken
            ended = ordinary()
            for members, pool in zip(store._members, loop.scheduler.tables.pools, strict=True):
                for tensor in members:
                    tensor[torch.tensor(list(pool._free), dtype=torch.int64)] = 255
                broken += len(pool._free)
            return ended

        loop.step = step  # type: ignore[method-assign]
        assert all(found == expected for found in ran(llm, way))
        assert broken


#: Root mean square of what logits lie from those over an fp32 cache, as a part of their deviation; bfloat16's is 0.008.
ERRORS = {"int8": 0.03, "fp8": 0.15, "int4": 0.4}


def test_logits_near_those_over_an_fp32_cache(kind: str, tiny: Path) -> None:
    host = PluginHost.load()
    plain = load_engine(tiny / "engine", host=host, num_blocks=8)
    tokens = list(range(3, 60))
    expected = plain.runner.forward(whole(tokens, range(4)))["logits"].clone()
    engine = load_engine(tiny / "engine", host=host, num_blocks=8, kv_dtype=kind)
    found = engine.runner.forward(whole(tokens, range(4)))["logits"]
    error = float((found - expected).square().mean().sqrt() / expected.std())
    assert ERRORS[kind] / 4 < error < ERRORS[kind]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    make_engine(directory, PluginHost.load(), BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64))
    return directory


def test_pipeline_stages_in_turn_are_the_whole(kind: str, tiny: Path, tmp_path: Path) -> None:
    host = PluginHost.load(plugins=[queue_kernels])
    kernels = {"*": "torch", **queue_kernels.CHOSEN}
    options = BuildOptions(device="cpu", max_num_tokens=64, pipeline_parallel=2, kernels=kernels, kv_dtype=kind)
    build(tiny / "ckpt", tmp_path / "divided", host=host, options=options)
    queue: deque[torch.Tensor] = deque()
    stages = [
        load_engine(tmp_path / "divided", host=host, num_blocks=8, place=Place(stage=Ranks(stage, 2, queue)))
        for stage in range(2)
    ]
    undivided = load_engine(tiny / "engine", host=host, num_blocks=8, kv_dtype=kind, kernels={"*": "torch"})
    message = whole(list(range(3, 33)), [5, 2])
    results = [engine.runner.forward(message) for engine in stages]
    assert torch.equal(results[1]["logits"], undivided.runner.forward(message)["logits"])


@pytest.mark.parametrize("calibrated", [False, True], ids=["dynamic", "calibrated"])
def test_two_tensor_parallel_ranks_are_one(kind: str, tiny: Path, tmp_path: Path, calibrated: bool) -> None:
    """Each has heads of its own, and their scales."""
    host, checkpoint = PluginHost.load(plugins=[meeting_kernels]), tiny / "ckpt"
    if calibrated:
        shutil.copytree(checkpoint, checkpoint := tmp_path / "ckpt")
        scales = {"k": torch.tensor([0.25, 0.5]), "v": torch.tensor([0.125, 1.0])}
        with_scales(checkpoint, "layers.1.attention.cache", kind, scales)
    for ranks in (1, 2):
        kernels = {"*": "torch", **meeting_kernels.CHOSEN}
        options = BuildOptions(device="cpu", max_num_tokens=64, tensor_parallel=ranks, kv_dtype=kind, kernels=kernels)
        build(checkpoint, tmp_path / f"engine-{ranks}", host=host, options=options)
    message = whole(list(range(3, 33)), [5, 2])
    one = meeting_kernels.undivided(tmp_path / "engine-1", host, message)
    two = meeting_kernels.divided(tmp_path / "engine-2", host, message, quantization="int8:group=32")
    weights = meeting_kernels.undivided(tmp_path / "engine-1", host, message, quantization="int8:group=32")
    assert float((two - weights).abs().max()) < APART[kind]
    assert float((two - one).abs().max()) > 1e-3, "with weights of few bits as well"


def test_an_engine_is_loaded_with_another_cache_than_it_was_built_for(tiny: Path) -> None:
    prompt, params = {"prompt_token_ids": [5, 6, 7]}, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    blocks = {}
    for said, op in ((None, "paged_attention"), ("int8", "quantized_paged_attention"), ("float16", "paged_attention")):
        kv_dtype: Any = {} if said is None else {"kv_dtype": said}
        with LLM(tiny / "engine", tokenizer=None, kv_cache_memory=2**19, max_batch_size=64, **kv_dtype) as llm:
            assert op in {i.target.name for i in llm.engine.network.program.instructions}
            assert len(llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids) == 3
            blocks[said] = llm.engine.cache_groups[0].num_blocks
    # 12 features of fp32, of fp16, or a byte each and 4 of the scale
    assert blocks[None] < blocks["float16"] < blocks["int8"] == pytest.approx(blocks[None] * 48 / 16, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_calibrated_scales_of_a_checkpoint_are_stored_with_every_token(tiny: Path, tmp_path: Path, kind: str) -> None:
    host, options = PluginHost.load(), BuildOptions(device="cpu", max_num_tokens=64, kv_dtype=kind)
    path = "layers.1.attention.cache"
    scales = {"k": torch.tensor([0.25, 0.5]), "v": torch.tensor([0.125, 1.0])}
    shutil.copytree(tiny / "ckpt", tmp_path / "ckpt")
    with_scales(tmp_path / "ckpt", path, kind, scales)
    build(tmp_path / "ckpt", tmp_path / "engine", host=host, options=options)
    engine = load_engine(tmp_path / "engine", host=host, num_blocks=4)
    engine.runner.forward(whole(list(range(3, 23)), [2, 0]))
    form = BlockFormat(kind, 16, 2, 12)
    for name, expected in scales.items():
        stored = scales_of(engine.runner.inputs.store.tensors[f"{name}.{path}"], form)
        stored = (stored[..., 0] if kind == "int4" else stored)[[2, 0]].flatten(0, 1)
        assert torch.equal(stored[:20].float(), expected.expand(20, 2)) and not stored[20:].any()
        dynamic = scales_of(engine.runner.inputs.store.tensors[f"{name}.layers.0.attention.cache"], form)
        assert len(dynamic[2].flatten().unique()) > 8
    # Each rank of a divided engine has the scales of its own heads, and another kind of cache does without.
    other = make(tmp_path / "ckpt", kind, host, Place(tensor=Ranks(1, 2)))
    parts = {p.parameter: (p.axis, p.start, p.stop) for weight in other.weights() for p in weight.parts}
    assert parts[f"{path}.k_scale"] == parts[f"{path}.v_scale"] == (0, 1, 2)
    none = make(tmp_path / "ckpt", "int8" if kind != "int8" else "fp8", host)
    assert not [weight for weight in none.weights() if "scale" in weight.name]


def with_scales(checkpoint: Path, path: str, kind: str, scales: dict[str, torch.Tensor]) -> None:
    """Add a cache's scales to a checkpoint, in a file of their own."""
    index = json.loads((checkpoint / INDEX).read_text())
    tensors = dict(zip(kv_scales.names_of(path), (scales["k"], scales["v"]), strict=True))
    save_file(tensors, checkpoint / "scales.safetensors")
    index["weight_map"] |= dict.fromkeys(tensors, "scales.safetensors")
    (checkpoint / INDEX).write_text(json.dumps(index))
    manifest = Manifest.read(checkpoint)
    files = {name: digest_file(checkpoint, name) for name in (*manifest.files, "scales.safetensors")}
    said = {
        "quantization": {path: kv_scales.record(kind)},
        "files": {name: FileDigest(size=size, sha256=sha) for name, (size, sha) in files.items()},
    }
    manifest.model_copy(update=said).write(checkpoint)


def make(checkpoint: Path, kind: str, host: PluginHost, place: Place = UNDIVIDED) -> Program:
    """The program of a checkpoint's engine with this kind of cache."""
    manifest = Manifest.read(checkpoint)
    model = host.model(manifest.model)
    network = make_network(
        model,
        parse_config(model, manifest.config),
        BuildOptions(device="cpu", kv_dtype=kind, tensor_parallel=place.tensor.size),
        checkpoint_dtype="float32",
        host=host,
        place=place,
        kv_scales=kv_scales.calibrated(manifest.quantization, kind),
    )
    assert {spec.kv_heads for spec in network.program.caches.values()} == {2 // place.tensor.size}
    return network.program


def test_the_reference_mode_keeps_elements(config: Path, tiny: Path) -> None:
    with opened(config, "int8", reference=True) as llm, opened(config, "auto", reference=True) as plain:
        assert answers(llm) == answers(plain)
        assert llm.engine.network.geometry.kv_dtype is torch.float32
    engine = load_engine(tiny / "engine", host=PluginHost.load(), num_blocks=2, kv_dtype="int4", reference=True)
    assert engine.network.geometry.kv_dtype is torch.float32


def test_plans_count_bytes_of_blocks(tiny: Path) -> None:
    host = PluginHost.load()
    said: dict[str, Any] = {"device": "cpu", "max_batch_size": 4, "max_seq_len": 128}
    sizes = {
        kv: plan_memory(tiny / "ckpt", host=host, said={**said, "kv_dtype": kv}).shares.kv_cache
        for kv in ("float32", *KINDS)
    }
    # 3 layers, 4 sequences of 8 blocks and the scrap of 16 tokens, 2 heads of keys and values
    heads = 3 * (4 * 8 + 1) * 16 * 2 * 2
    assert sizes == {"float32": heads * 48, "int8": heads * 16, "fp8": heads * 16, "int4": heads * 10}


def test_an_op_that_knows_no_codes_is_named(tmp_path: Path) -> None:
    directory = canary_model.write_config(tmp_path / "canary", windows=(None,))
    refused = r"kv_dtype: canary::store \(.*canary_model.*\) in .*takes a cache of elements.*found int8.*E-BUILD-OPTION"
    with pytest.raises(ConfigError, match=refused):
        LLM(directory, weights="random", tokenizer=None, plugins=[canary_model], kv_dtype="int8")


def test_other_names_are_refused(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"kv_dtype: unknown dtype; found 'int5', expected auto, .*int8, fp8, int4"):
        opened(config, "int5")
