"""Dynamic rope beyond its first length, where one pass over a sequence is not what generation does."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bestiary import LLM, SamplingParams
from bestiary_llama.conformance import LlamaConformance


def test_it_follows_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt longer than the original context, then tokens one by one, as transformers generates with its cache."""
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LlamaConformance.configs["rope_dynamic"])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path / "hf")
    prompt = torch.randint(3, 96, (50,), generator=torch.Generator().manual_seed(5)).tolist()
    with LLM(tmp_path / "hf", tokenizer=None, device="cpu", kv_cache_memory=2**24) as llm:
        params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True, logprobs=0)
        (answer,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    theirs = model.generate(
        torch.tensor([prompt]), max_new_tokens=32, min_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert list(answer.outputs[0].token_ids) == theirs[0, 50:].tolist()
