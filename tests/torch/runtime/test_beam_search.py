"""Beam search, driven by a naive forward of tiny random Llamas, gives transformers' sequences and scores."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bestiary.core.runtime.beam import BeamSearch

V, PAD = 40, 39
PROMPTS = ([1, 7, 3], [1, 20, 11, 9, 30, 4])


@functools.cache
def model(eos_bias):
    """A Llama that ends often: the logits of tokens 2 and 5 are ``eos_bias`` higher."""
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, bos_token_id=1, eos_token_id=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(3)
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        bias = torch.zeros(V)
        bias[[2, 5]] = eos_bias
        made.lm_head.bias = torch.nn.Parameter(bias)
    return made


@torch.inference_mode()
def ours(eos_bias, prompt, width, **options):
    search = BeamSearch(width, **options)
    beams = [[]]
    while not search.done:
        logits = model(eos_bias)(torch.tensor([[*prompt, *beam] for beam in beams])).logits[:, -1]
        best = torch.log_softmax(logits, dim=-1).topk(min(search.candidates, V))
        following = search.advance(best.indices.numpy(), best.values.double().numpy())
        beams = [[*beams[parent], token] for parent, token in following]
    return search.results()


def theirs(eos_bias, prompt, width, *, max_tokens, end_tokens, length_penalty, early_stopping):
    found = model(eos_bias).generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), do_sample=False,
        num_beams=width, num_return_sequences=width, max_new_tokens=max_tokens, eos_token_id=sorted(end_tokens) or None,
        pad_token_id=PAD, length_penalty=length_penalty, early_stopping=early_stopping,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    return found.sequences[:, len(prompt) :].tolist(), found.sequences_scores.tolist()


GRID = list(itertools.product((-8.0, 0.0, 4.0), (-1.0, 0.0, 1.0, 2.5), (False, True, "never")))


@pytest.mark.parametrize(("eos_bias", "length_penalty", "early_stopping"), GRID)
def test_sequences_and_scores_are_those_of_transformers(eos_bias, length_penalty, early_stopping):
    cases = [(PROMPTS[0], 2, 12, {2}), (PROMPTS[1], 4, 9, {2, 5}), (PROMPTS[0], 5, 1, {2}), (PROMPTS[1], 3, 6, set())]
    for prompt, width, max_tokens, ends in cases:
        options = {"max_tokens": max_tokens, "end_tokens": ends, "length_penalty": length_penalty}
        mine = ours(eos_bias, prompt, width, early_stopping=early_stopping, **options)
        sequences, scores = theirs(eos_bias, prompt, width, early_stopping=early_stopping, **options)
        length = len(sequences[0])
        padded = [[*answer.tokens, *[PAD] * (length - len(answer.tokens))] for answer in mine]
        assert padded == sequences, (width, max_tokens, ends)
        assert [answer.score for answer in mine] == pytest.approx(scores, rel=2e-5, abs=1e-6)


def test_the_grid_has_beams_that_end_early_and_late():
    options = {"max_tokens": 12, "end_tokens": {2, 5}}
    assert {len(answer.tokens) for answer in ours(0.0, PROMPTS[0], 4, **options)} == {1, 2, 4, 5}
    late = ours(0.0, PROMPTS[0], 4, length_penalty=2.5, early_stopping="never", **options)
    assert {len(answer.tokens) for answer in late} == {12}
    assert {len(answer.tokens) for answer in ours(-8.0, PROMPTS[0], 4, **options)} == {12}
