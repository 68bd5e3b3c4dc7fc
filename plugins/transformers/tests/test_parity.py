"""Logits and tokens are transformers' own, whatever the batch; files come back bit for bit."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import load, logits, opened, step, whole
from unported_models import CONFIGS, save, tokens

from bestiary import LLM, SamplingParams
from bestiary.converters.convert import convert
from bestiary.converters.export import export
from bestiary.core.checkpoint.verify import verify
from bestiary.testing import check_op, op_cases

PLUGIN = "bestiary_transformers.plugin"


@pytest.fixture(autouse=True)
def only_this_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTIARY_PLUGINS", "")


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> Any:
    return request.param


def reference(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def test_logits_of_a_prompt(name: str, made: Any, host: Any) -> None:
    directory, model = made(name)
    ids = tokens(30)
    for mode in (False, True):
        found = logits(load(directory, host, reference=mode), whole(ids, [5, 2, 9, 7]))
        assert (found - reference(model, ids)).abs().max() < 1e-4


def test_logits_in_chunks_mixed_with_decodes(name: str, made: Any, host: Any) -> None:
    """Two requests in scattered blocks, one decoding while the other's prompt comes in pieces."""
    directory, model = made(name)
    engine = load(directory, host)
    first, second = tokens(24), tokens(20, seed=2)
    logits(engine, step((0, first[:22]), new=[opened(0, first)], blocks={0: [[7, 3, 5]]}))
    new = [opened(1, second)]
    a = logits(engine, step((0, first[22:23]), (1, second[:9]), new=new, blocks={1: [[1, 4, 9]]}, rows=[0])).clone()
    engine.runner.inputs.state.last[0] = first[23]
    b = logits(engine, step((1, second[9:]), decodes=[0])).clone()
    for found, ids in ((a[0], first[:23]), (b[0], first), (b[1], second)):
        assert (found - reference(model, ids)[-1]).abs().max() < 1e-4


def test_files_come_back_bit_for_bit(name: str, made: Any, host: Any, tmp_path: Any) -> None:
    directory, _ = made(name)
    assert verify(directory / "ckpt", host=host).model == "transformers"
    export(directory / "ckpt", tmp_path / "back", host=host)
    before, after = (load_file(place / "model.safetensors") for place in (directory / "hf", tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    configs = [json.loads((place / "config.json").read_text()) for place in (directory / "hf", tmp_path / "back")]
    assert configs[0] == configs[1]


def llm(directory: Any, **options: Any) -> LLM:
    return LLM(directory / "engine", tokenizer=None, plugins=[PLUGIN], **{"kv_cache_memory": 2**22, **options})


def ask(model: LLM, prompts: list[list[int]], **said: Any) -> list[Any]:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, **said})
    return model.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "olmoe"])
def test_greedy_tokens_alone_together_reused_and_preempted(name: str, made: Any) -> None:
    directory, model = made(name)
    prompts = [tokens(17 + 3 * seed, seed) for seed in range(4)]
    with llm(directory) as engine:
        alone = [ask(engine, [ids])[0].outputs[0].token_ids for ids in prompts]
        assert [out.outputs[0].token_ids for out in ask(engine, prompts)] == alone
        assert all(out.num_cached_tokens for out in ask(engine, prompts))
    for ids, chosen in zip(prompts, alone, strict=True):
        rows = reference(model, ids + list(chosen))[len(ids) - 1 : -1]
        assert (rows.max(-1).values - rows.gather(1, torch.tensor([chosen]).T)[:, 0]).max() < 1e-4
    blocks = {"gpt2": 12, "gemma2": 12, "olmoe": 12}[name]
    per_block = 8 * 2 * 4 * (2 * 48 if name != "gemma2" else 2 * 32)
    with llm(directory, kv_cache_memory=blocks * per_block, max_seq_len=64, capacity="max-utilization") as engine:
        assert [out.outputs[0].token_ids for out in ask(engine, prompts)] == alone
        assert engine.stats().preemptions > 0


def test_log_probabilities_samples_and_streams(made: Any) -> None:
    directory, model = made("gpt2")
    ids = tokens(70)  # more than a step holds: two chunks
    with llm(directory) as engine:
        (out,) = ask(engine, [ids], prompt_logprobs=1, logprobs=1, max_tokens=3)
        expected = torch.log_softmax(reference(model, ids), -1)
        for place, entry in enumerate(out.prompt_logprobs[1:]):
            assert abs(entry[ids[place + 1]].logprob - expected[place, ids[place + 1]].item()) < 1e-4
        first = out.outputs[0].token_ids[0]
        assert abs(out.outputs[0].logprobs[0][first].logprob - expected[-1, first].item()) < 1e-4
        said = {"temperature": 1.0, "seed": 7, "n": 2}
        (one,), (again, _) = ask(engine, [ids], **said), ask(engine, [ids, ids[:9]], **said)
        assert [o.token_ids for o in one.outputs] == [o.token_ids for o in again.outputs]
        assert one.outputs[0].token_ids != one.outputs[1].token_ids
        params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
        pieces = engine.stream({"prompt_token_ids": ids}, params)
        assert list(next(pieces).token_ids) == [first]
        pieces.close()  # ends the request
        assert engine.stats().running == 0


def test_in_bfloat16_it_is_near(tmp_path: Any, host: Any) -> None:
    model = save(tmp_path, "gemma2")
    convert(tmp_path / "hf", tmp_path / "ckpt", host=host, dtype="bfloat16")
    with LLM(tmp_path / "ckpt", tokenizer=None, plugins=[PLUGIN], kv_cache_memory=2**22) as engine:
        ids = tokens(20)
        (out,) = ask(engine, [ids], prompt_logprobs=1, max_tokens=1)
    expected = torch.log_softmax(reference(model, ids), -1)
    found = torch.tensor([entry[ids[place + 1]].logprob for place, entry in enumerate(out.prompt_logprobs[1:])])
    assert (found - expected[:-1].gather(1, torch.tensor([ids[1:]]).T)[:, 0]).abs().max() < 0.25


def test_a_base_models_files_lack_the_prefix_and_carry_masks(made: Any, host: Any, tmp_path: Any) -> None:
    """As OpenAI's own GPT-2 is stored."""
    directory, _ = made("gpt2")
    stored = load_file(directory / "hf" / "model.safetensors")
    bare = {key.removeprefix("transformer."): tensor for key, tensor in stored.items()}
    bare |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8) for layer in range(2)}
    (tmp_path / "hf").mkdir()
    save_file(bare, tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "config.json").write_text((directory / "hf" / "config.json").read_text())
    report = convert(tmp_path / "hf", tmp_path / "ckpt", host=host)
    assert report.dropped == ("h.0.attn.bias", "h.1.attn.bias")
    weights = [load_file(place / "weights-00001.safetensors") for place in (directory / "ckpt", tmp_path / "ckpt")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_the_op_keeps_its_declaration(host: Any) -> None:
    (case,) = op_cases(host, ["transformers::forward"])
    check_op(case)
