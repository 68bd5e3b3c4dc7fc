"""On a CUDA device: the SDK's own kernels, a tiny engine, and its tokens against the processor's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faulty_kernels
import mixture_model
import pytest
import torch
from tiny import CONFIGS, load, logits, make_engine, whole

from bestiary import LLM, SamplingParams, ops
from bestiary.core.conformance.kernel_worker import KernelChecker
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.testing import KernelCase, check_kernel, kernel_cases, load_plugins

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
OPTIONS = BuildOptions(device="cuda", max_batch_size=8, max_num_tokens=128)


@pytest.mark.parametrize("case", kernel_cases(load_plugins(), device="cuda"), ids=str)
def test_kernel(case: KernelCase) -> None:
    ran = check_kernel(case)
    # The others are for processors, and grouped products for bfloat16 on some architectures.
    elsewhere = ("moe=torch", "moe=grouped", "scaled_linear=integers")
    assert ran or case.kernel.name.endswith("widened") or str(case).startswith(elsewhere)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() not in ((9, 0), (10, 0)),
    reason="torch has grouped products on some architectures",
)
def test_grouped_products() -> None:
    (kernel,) = (kernel for kernel in load_plugins().kernels("moe") if kernel.name == "grouped")
    assert check_kernel(KernelCase(ops.moe, kernel, "cuda", torch.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", mixture_model.CONFIGS)
def test_mixtures_of_experts(name: str, dtype: str, tmp_path: Path) -> None:
    """Alone and together, recorded and not; in fp32 as the references say."""
    config = mixture_model.write_config(tmp_path, **mixture_model.CONFIGS[name])
    prompts: list[Any] = [{"prompt_token_ids": [3 + i * i % 90 for i in range(n)]} for n in (1, 7, 40, 100)]
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, prompt_logprobs=0)

    def answers(**options: Any) -> tuple[list[Any], int]:
        said: Any = {"dtype": dtype, "device": "cuda", "tokenizer": None, "kv_cache_memory": 2**24, **options}
        with LLM(config, weights="random", plugins=[mixture_model], **said) as llm:
            outs = llm.generate(prompts, params, use_tqdm=False)
            assert all(len(out.outputs[0].token_ids) == 16 for out in outs)
            graphs = 0 if options.get("reference") else llm.engine.runner.num_graphs
        return [[one for row in out.prompt_logprobs[1:] for one in row.values()] for out in outs], graphs

    (found, graphs), (plain, none) = answers(), answers(graphs=False)
    assert graphs > 0 and none == 0
    assert [[one.logprob for one in row] for row in found] == [[one.logprob for one in row] for row in plain]
    if dtype == "float32":
        expected, _ = answers(reference=True)
        for row, other in zip(found, expected, strict=True):
            assert all(abs(a.logprob - b.logprob) < 1e-3 for a, b in zip(row, other, strict=True))
    exact = [answers(deterministic=True, max_num_tokens=chunk)[0] for chunk in (7, 256)]
    assert exact[0] == exact[1]


def test_a_lost_device_and_a_false_claim_to_be_recordable_are_results() -> None:
    host = load_plugins(faulty_kernels)
    cases = {case.kernel.name: case for case in kernel_cases(host, ["faulty_kernels"], device="cuda")}
    with KernelChecker(host) as checker:
        reports = {name: checker.kernel(cases[name]) for name in ("outside", "waits", "right")}
    assert {name: report.verdict for name, report in reports.items()} == {
        "outside": "fail", "waits": "fail", "right": "pass",
    }  # fmt: skip
    assert [reports[name].findings[0].check for name in ("outside", "waits")] == ["crash", "graph"]
    assert "graph" in reports["right"].done


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers_in_float32(name: str, tmp_path: Path) -> None:
    model = make_engine(tmp_path, PluginHost.load(), OPTIONS, **CONFIGS[name])
    tokens = torch.randint(3, 96, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    found = logits(load(tmp_path, PluginHost.load()), whole(tokens, [5, 2]))
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    assert found.device.type == "cuda"
    assert (found.cpu() - expected).abs().max() < 1e-4


def test_a_batch_gives_what_its_requests_give_alone(tmp_path: Path) -> None:
    make_engine(tmp_path, PluginHost.load(), OPTIONS)
    prompts: list[Any] = [{"prompt_token_ids": list(range(3, 3 + 7 * n))} for n in range(1, 9)]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    with LLM(tmp_path / "engine", tokenizer=None, kv_cache_memory=2**24) as llm:
        together = [out.outputs[0].token_ids for out in llm.generate(prompts, params, use_tqdm=False)]
        alone = [llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids for prompt in prompts]
    assert together == alone


def test_random_weights_are_made_on_the_device(tmp_path: Path) -> None:
    make_engine(tmp_path, PluginHost.load(), OPTIONS)
    with LLM(tmp_path / "hf", weights="random", tokenizer=None, device="cuda", kv_cache_memory=2**24) as llm:
        (answer,) = llm.generate(
            [[5, 6, 7]], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), use_tqdm=False
        )
        assert len(answer.outputs[0].token_ids) == 4
        (memory, *_) = llm.engine.runner.inputs.views(llm.engine.network.limits).values()
        assert memory.device.type == "cuda"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_mode_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    make_engine(tmp_path, PluginHost.load(), OPTIONS)
    prompts: list[Any] = [{"prompt_token_ids": [3 + i % 90 for i in range(n)]} for n in (1, 5, 64, 127, 129, 200)]
    params = SamplingParams(temperature=0.9, seed=1, max_tokens=8, ignore_eos=True, logprobs=3)

    def answers(chunk: int, alone: bool = False) -> list[Any]:
        options: Any = {"deterministic": True, "dtype": dtype, "device": "cuda", "max_num_tokens": chunk}
        with LLM(tmp_path / "hf", weights="random", tokenizer=None, kv_cache_memory=2**26, **options) as llm:
            batches = [[prompt] for prompt in prompts] if alone else [prompts, prompts]
            outs = [out for batch in batches for out in llm.generate(batch, params, use_tqdm=False)]
        return [(out.outputs[0].token_ids, out.outputs[0].logprobs) for out in outs]

    expected = answers(512, alone=True)
    for chunk in (7, 64, 512):
        assert answers(chunk) == expected * 2
