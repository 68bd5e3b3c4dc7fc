"""What errors of a known size in its products do to a model's logits: the measure of all quantization methods."""

from __future__ import annotations

import torch
from torch import Tensor

from bestiary.core.conformance.model_case import Case
from bestiary.core.engine.load import LoadedEngine
from bestiary.core.engine.steps import logits, whole
from bestiary.core.quant.bound import ALLOWED, relative
from bestiary.core.quant.choose import by_default
from bestiary.core.quant.tensors import Plain

_SEEDS = range(20, 24)


def allowed(case: Case, size: float) -> float:
    """The error of logits that products may cause that are off by ``size``."""
    known = case.suite.shared.setdefault("noise", {})
    if (case.name, size) not in known:
        names = by_default(case.suite.model, case.config)
        engine = case.load(plain=Plain(names, noise=dict.fromkeys(names, size)))
        known[case.name, size] = ALLOWED * error(case, engine)
    found: float = known[case.name, size]
    return found


def error(case: Case, engine: LoadedEngine) -> float:
    """The median over the tokens of a few sequences of how far an engine's logits are from the reference's."""
    errors = [relative(found, case.expected(tokens)) for tokens, found in answers(case, engine)]
    return float(torch.cat(errors).median())


def answers(case: Case, engine: LoadedEngine) -> list[tuple[list[int], Tensor]]:
    """The sequences that methods are measured on, and an engine's logits for each."""
    sequences = [(case.tokens(case.length, seed=seed), case.blocks(seed)) for seed in _SEEDS]
    return [(tokens, logits(engine, whole(tokens, *blocks)).clone()) for tokens, blocks in sequences]
