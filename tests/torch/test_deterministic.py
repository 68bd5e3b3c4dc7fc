"""Deterministic mode on whole models: tokens and log-probabilities, bit for bit, whatever else the engine does."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL, make_engine

from bestiary import LLM, ConfigError, Kernel, SamplingParams, hookimpl
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost

LENGTHS = [1, 2, 8, 16, 17, 33, 64, 90, 127, 128, 129, 130, 40, 45, 160, 40]
# Odd sizes, at which libraries go their own ways for one row and for many.
SIZES = {"num_hidden_layers": 2, "hidden_size": 97, "head_dim": 22, "intermediate_size": 81, "vocab_size": 131}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products are faster on one thread than spread over several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("config")
    said = {**SMALL, **SIZES, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (directory / "config.json").write_text(json.dumps(said))
    return directory


def requests() -> tuple[list[Any], list[SamplingParams]]:
    rng = random.Random(3)
    shared = [rng.randrange(3, 96) for _ in range(100)]
    prompts = [(shared[: i * 9 % 70] + [rng.randrange(3, 96) for _ in range(200)])[:n] for i, n in enumerate(LENGTHS)]
    params = [
        SamplingParams(
            temperature=0.9 * (i % 2),
            top_p=0.95,
            seed=i,
            max_tokens=5 + i % 4,
            ignore_eos=True,
            logprobs=3,
            prompt_logprobs=2 if i % 5 == 4 else None,
        )
        for i in range(len(prompts))
    ]
    return [{"prompt_token_ids": prompt} for prompt in prompts], params


def opened(config: Path, **options: Any) -> LLM:
    said = {"max_batch_size": 16, "max_num_tokens": 4096, "max_seq_len": 256, "kv_cache_memory": 2**26, **options}
    return LLM(config, weights="random", tokenizer=None, device="cpu", **said)


def answers(llm: LLM, *, alone: bool = False, every: int = 1) -> list[Any]:
    """What must not change: tokens and every log-probability, of every so manieth request."""
    prompts, params = (some[::every] for some in requests())
    if alone:
        outs = [llm.generate([p], s, use_tqdm=False)[0] for p, s in zip(prompts, params, strict=True)]
    else:
        outs = llm.generate(prompts, params, use_tqdm=False)
    return [(out.outputs[0].token_ids, out.outputs[0].logprobs, out.prompt_logprobs) for out in outs]


@pytest.fixture(params=["float32", "bfloat16"], scope="module")
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def alone(config: Path, dtype: str) -> list[Any]:
    with opened(config, deterministic=True, dtype=dtype, prefix_caching=False) as llm:
        return answers(llm, alone=True)


@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
def test_a_request_alone_is_the_request_among_others_in_chunks(
    config: Path, dtype: str, alone: list[Any], chunk: int
) -> None:
    every = 3 if chunk == 1 else 1
    with opened(config, deterministic=True, dtype=dtype, prefix_caching=False, max_num_tokens=chunk) as llm:
        assert answers(llm, every=every) == alone[::every]


def test_reused_prefixes_and_other_blocks_change_nothing(config: Path, dtype: str, alone: list[Any]) -> None:
    with opened(config, deterministic=True, dtype=dtype, max_num_tokens=50, block_size=8) as llm:
        assert answers(llm) == alone
        assert answers(llm) == alone
        prompts, params = requests()
        assert llm.generate(prompts, params, use_tqdm=False)[13].num_cached_tokens >= 40
    with opened(config, deterministic=True, dtype=dtype, max_batch_size=5) as llm:
        assert answers(llm) == alone


@pytest.mark.parametrize("caching", [True, False])
def test_preemption_changes_nothing(config: Path, dtype: str, alone: list[Any], caching: bool) -> None:
    token = 2 * SIZES["num_hidden_layers"] * SMALL["num_key_value_heads"] * SIZES["head_dim"]  # numbers in the cache
    cache = token * (4 if dtype == "float32" else 2) * 260  # a longest request and little more
    options: dict[str, Any] = {"capacity": "max-utilization", "prefix_caching": caching, "block_size": 1}
    with opened(config, deterministic=True, dtype=dtype, kv_cache_memory=cache, **options) as llm:
        assert answers(llm) == alone
        assert llm.stats().preemptions > 0


def test_the_number_of_threads_changes_nothing(config: Path, dtype: str, alone: list[Any]) -> None:
    torch.set_num_threads(2)
    try:
        with opened(config, deterministic=True, dtype=dtype) as llm:
            assert answers(llm, every=5) == alone[::5]
    finally:
        torch.set_num_threads(1)


def test_the_ordinary_mode_fails_the_same_test(config: Path) -> None:
    with opened(config, prefix_caching=False) as llm:
        together = answers(llm)
        assert together != answers(llm, alone=True)
    with opened(config, prefix_caching=False, max_num_tokens=7) as llm:
        assert together != answers(llm)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("built")
    make_engine(directory, PluginHost.load(), BuildOptions(device="cpu", deterministic=True, max_batch_size=16))
    return directory


def test_a_built_engine_keeps_its_mode_and_its_plan_says_so(built: Path) -> None:
    with LLM(built / "engine", tokenizer=None, kv_cache_memory=2**26, max_seq_len=256) as llm:
        assert answers(llm) == answers(llm, alone=True)
        plan = llm.engine.plan
    assert plan.deterministic and plan.table().startswith("deterministic:")
    assert all(len(choices) == 1 and choices[0].rows is None for choices in plan.choices.values())
    assert {c.kernel for choices in plan.choices.values() for c in choices} == {"torch", "invariant"}
    with pytest.raises(ConfigError, match=r"deterministic: engine engine was built with another value"):
        LLM(built / "engine", tokenizer=None, deterministic=False)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("linear=torch", r"linear=torch: is not batch-invariant.*expected invariant"),
        ("linear=reference", r"linear=reference: is not batch-invariant"),
        ("*=torch", r"found torch of add_rms_norm, .*linear.*expected .*invariant"),
    ],
)
def test_kernels_that_are_not_batch_invariant_are_refused(config: Path, name: str, complaint: str) -> None:
    op, kernel = name.split("=")
    with pytest.raises(ConfigError, match=complaint):
        opened(config, deterministic=True, kernels={op: kernel})
    with pytest.raises(ConfigError, match="not batch-invariant"):
        opened(config, deterministic=True, reference=True)


def test_kernels_that_are_can_be_named(config: Path, alone: list[Any], dtype: str) -> None:
    with opened(config, deterministic=True, dtype=dtype, kernels={"*": "invariant"}) as llm:
        assert answers(llm) == alone


class _Without:
    """All of the SDK's kernels for one op made variant, by hiding what they say."""

    def __init__(self, op: str) -> None:
        self.op = op

    def kernels(self, host: PluginHost) -> Any:
        from dataclasses import replace

        ordinary = host.kernels
        return lambda op=None: [replace(k, batch_invariant=k.batch_invariant and k.op != self.op) for k in ordinary(op)]


@pytest.mark.parametrize("through", ["load", "build"])
def test_an_op_without_a_batch_invariant_kernel_is_named(
    built: Path, config: Path, through: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = PluginHost.load()
    monkeypatch.setattr(host, "kernels", _Without("gated_activation").kernels(host))
    message = r"op gated_activation: deterministic mode has no kernel.*invariant: it is not batch-invariant.*install"
    options = BuildOptions(device="cpu", deterministic=True)
    with pytest.raises(ConfigError, match=message):
        if through == "build":
            build(built / "ckpt", tmp_path / "engine", host=host, options=options)
        else:
            from bestiary.core.engine.load import random_engine

            random_engine(config, host=host, options=options, num_blocks=4)
    assert not (tmp_path / "engine").exists()


def some_rows(x: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor) -> None:
    raise AssertionError("it runs small calls only, and one kernel has to run all")


class _SmallOnly:
    @hookimpl
    def bestiary_register_kernels(self, register: Any) -> None:
        def supports(call: Any) -> str | None:
            return None if call.arguments["x"].shape[0] <= 8 else "it runs eight rows"

        run = f"{__name__}:some_rows"
        register(Kernel(op="rms_norm", name="small", run=run, supports=supports, batch_invariant=True))


def test_one_kernel_runs_all_sizes(built: Path, config: Path, tmp_path: Path) -> None:
    host = PluginHost.load(plugins=[_SmallOnly()])
    options = BuildOptions(device="cpu", deterministic=True)
    plan = build(built / "ckpt", tmp_path / "engine", host=host, options=options).plan
    (norm,) = next(choices for name, choices in plan.choices.items() if name.startswith("rms_norm"))
    assert norm.kernel == "invariant" and "it runs eight rows" in {trial.refused for trial in norm.trials}
    with opened(config, deterministic=True, plugins=[_SmallOnly()]) as llm:
        llm.generate([{"prompt_token_ids": [5, 6]}], SamplingParams(max_tokens=2), use_tqdm=False)


def test_torch_functions_besides_the_ops_are_refused() -> None:
    from bestiary.core.program.deterministic import check_calls
    from bestiary.core.program.program import Input, Instruction, Program, Result, TorchCall
    from bestiary.core.program.shapes import Dim, Shape

    x, y = Input("x"), Result("y")
    shape = Shape((Dim(0, 1),), torch.float32)
    for function, refused in ((torch.softmax, True), (torch.mul, False)):
        program = Program({"x": x}, [Instruction(TorchCall(function), (x, 2), (y,), "layers.0")], {"logits": y})
        if refused:
            with pytest.raises(ConfigError, match=r"torch\.softmax in layers\.0.*deterministic mode can't tell"):
                check_calls(program, {x: shape, y: shape})
        else:
            check_calls(program, {x: shape, y: shape})
