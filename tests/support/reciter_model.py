"""A model plugin that recites a text after any prompt, then ends, so that every token is known.

It counts in its cache how many tokens of the answer there are: a prompt's tokens but the last know a longer context.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from text_models import byte_level
from torch import Tensor, nn

from bestiary import Model, Op, hookimpl, ops
from bestiary.layers import CacheSpec, CausalLM, KVCache, LayerStack, Step
from bestiary.ops import Tolerance, op
from bestiary.spec import ModelConfig

TOKENIZER = byte_level()
VOCAB = TOKENIZER.vocab_size + 4  # logits may be wider than the tokenizer
TEXT = "hello 日本語 STOP world"
END = TOKENIZER.eos_token_id or 0
SCRIPT = [*TOKENIZER.encode(TEXT, add_special_tokens=False), END]
TEMPLATE = "{% for m in messages %}<bos>{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"


@hookimpl
def bestiary_register_models(register: Callable[[Model], None]) -> None:
    register(
        Model(
            name="reciter",
            architectures=("ReciterForCausalLM",),
            config="bestiary.spec:ModelConfig",
            model="reciter_model:Reciter",
            weights={},
        )
    )


@hookimpl
def bestiary_register_ops(register: Callable[[Op], None]) -> None:
    for name in ("count", "logits"):
        register(Op(name=f"reciter::{name}", declaration=f"reciter_model:{name}"))


def write_model(directory: Path) -> Path:
    """A directory that ``LLM(…, weights="random")`` opens as a reciter, with its tokenizer."""
    config = {
        "architectures": ["ReciterForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": 1,
        "num_hidden_layers": 1,
        "max_position_embeddings": 128,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    TOKENIZER.backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "eos_token": "<end>"}))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "max_new_tokens": 100}))
    return directory


def _no_cases(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    yield from ()


def _one_number(positions: Tensor, lengths: Tensor, k_cache: Tensor, *rest: Any) -> Tensor:
    return k_cache.new_empty(len(positions), 1)


@op(
    inputs=_no_cases,
    tolerances={"float32": Tolerance(0.0, 0.0)},
    mutates=("k_cache",),
    fake=_one_number,
    name="reciter::count",
)
def count(
    positions: Tensor,
    lengths: Tensor,
    k_cache: Tensor,
    slots: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
) -> Tensor:
    """How many tokens of the answer a token ends, ``[T, 1]``: the one before's and one, 0 before the prompt's last."""
    size, starts, memory = k_cache.shape[1], query_starts.tolist(), k_cache.view(-1)
    counts = k_cache.new_zeros(len(positions), 1)
    for n in range(len(kv_lengths)):
        for row in range(starts[n], starts[n + 1]):
            before = int(positions[row]) - 1
            known = 0.0 if before < 0 else float(memory[int(block_tables[n, before // size]) * size + before % size])
            counts[row] = 0.0 if lengths[row] > before + 2 else known + 1
            memory[slots[row]] = counts[row]
    return counts


def _wide(counts: Tensor, vocab: int) -> Tensor:
    return counts.new_empty(len(counts), vocab)


@op(inputs=_no_cases, tolerances={"float32": Tolerance(0.0, 0.0)}, fake=_wide, name="reciter::logits")
def logits(counts: Tensor, vocab: int) -> Tensor:
    """40 at the next token of the text, 0 elsewhere: counts ``[R, 1]`` → ``[R, vocab]``."""
    places = (counts[:, 0].long() - 1).clamp(0, len(SCRIPT) - 1)
    tokens = torch.tensor(SCRIPT, device=counts.device)[places]
    return torch.nn.functional.one_hot(tokens, vocab).float() * 40


class ReciterLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(CacheSpec(1, 1, 1))

    def forward(self, step: Step) -> Tensor:
        memory = step.cache(self.cache)
        indices = (memory.slots, memory.block_tables, step.query_starts, step.kv_lengths)
        return count(step.positions, step.lengths, memory.k, *indices)


class Reciter(CausalLM):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.layers = LayerStack(1, lambda index: ReciterLayer())
        self.vocab = c.vocab_size

    def forward(self, step: Step) -> Tensor:
        return logits(ops.select_rows(self.layers[0](step), step.logit_rows), self.vocab)
