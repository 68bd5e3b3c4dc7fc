"""Checks of the step program alone: logits of hand-made steps against the reference's."""

from __future__ import annotations

import torch
from torch import Tensor

from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_case import Case
from bestiary.core.conformance.model_reference import logits as reference_logits
from bestiary.core.conformance.model_reference import narrowed
from bestiary.core.engine.steps import logits, opened, step, whole

#: Largest difference of logits in float32.
FLOAT32 = 1e-4
#: Largest difference of the step program's logits from the eager reference mode's: merged products sum in another order.
PROGRAM = 2e-5
#: How much farther from float32 the logits in bfloat16 may be than the reference's own in bfloat16.
BFLOAT16 = 1.25


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest, NaN if one of the numbers is."""
    return float((found.float() - wanted.float()).abs().max())


def prefill(case: Case, findings: Findings) -> None:
    """A prompt in one step."""
    tokens = case.tokens(case.length)
    found = logits(case.load(), whole(tokens, *case.blocks(1)))
    findings.within("logits of a prompt", difference(found, case.expected(tokens)), FLOAT32)


def decode(case: Case, findings: Findings) -> None:
    """Half a sequence as the prompt, the rest token by token."""
    tokens = case.tokens(case.length, seed=2)
    half = case.length // 2
    engine, wanted = case.load(), case.expected(tokens)
    logits(engine, step((0, tokens[:half]), new=[opened(0, tokens[:half])], blocks={0: case.blocks(2)}))
    for place in range(half, case.length):
        engine.runner.inputs.state.last[0] = tokens[place]
        found = logits(engine, step(decodes=[0]))
        findings.within(f"logits of the token at {place}, decoded", difference(found[0], wanted[place]), FLOAT32)


def chunked_prefill(case: Case, findings: Findings) -> None:
    """A prompt in pieces of 1, 2, 3, … tokens, with borders inside of blocks."""
    tokens = case.tokens(case.length, seed=3)
    engine, wanted = case.load(), case.expected(tokens)
    done, size = 0, 1
    while done < len(tokens):
        chunk = tokens[done : done + size]
        first = {"new": [opened(0, tokens)], "blocks": {0: case.blocks(3)}} if done == 0 else {}
        found = logits(engine, step((0, chunk), rows=range(len(chunk)), **first))  # type: ignore[arg-type]
        error = difference(found, wanted[done : done + len(chunk)])
        findings.within(f"logits of the chunk from {done} to {done + len(chunk)}", error, FLOAT32)
        done, size = done + len(chunk), size + 1


def mixed_batch(case: Case, findings: Findings) -> None:
    """Two requests in scattered blocks, one decoding while the other's prompt comes in pieces."""
    first, second = case.tokens(case.length - 4, seed=4), case.tokens(case.length - 9, seed=5)
    engine, half, third = case.load(), len(first) - 3, len(second) // 3
    logits(engine, step((0, first[:half]), new=[opened(0, first[:half])], blocks={0: case.blocks(4)}))
    engine.runner.inputs.state.last[0] = first[half]
    new = [opened(1, second)]
    one = logits(engine, step((1, second[:third]), decodes=[0], new=new, blocks={1: case.blocks(5)}))
    engine.runner.inputs.state.last[0] = first[half + 1]
    two = logits(engine, step((1, second[third:]), decodes=[0]))
    engine.runner.inputs.state.last[0] = first[half + 2]
    engine.runner.inputs.state.last[1] = 3
    three = logits(engine, step(decodes=[1, 0]))
    a, b = case.expected(first), case.expected([*second, 3])
    pairs = ((one[0], a[half]), (two[0], a[half + 1]), (two[1], b[-2]), (three[1], a[half + 2]), (three[0], b[-1]))
    for number, (found, wanted) in enumerate(pairs):
        findings.within(f"logits of a mixed batch, row {number}", difference(found, wanted), FLOAT32)


def reference_mode(case: Case, findings: Findings) -> None:
    """The step program, with the chosen kernels and with the references, against the module run eagerly."""
    tokens = case.tokens(case.length)
    message = whole(tokens, *case.blocks(1))
    eager = logits(case.load(reference=True), message)
    findings.within("logits of the eager module", difference(eager, case.expected(tokens)), FLOAT32)
    for kernels in ({}, {"*": "reference"}):
        error = difference(logits(case.load(kernels=kernels), message), eager)
        findings.within("the step program against the eager module", error, PROGRAM)


def bfloat16(case: Case, findings: Findings) -> None:
    """In bfloat16 our logits are about as far from float32 as the reference's own in bfloat16."""
    engine, theirs = case.load(build={"dtype": "bfloat16"}), narrowed(case.module, torch.bfloat16)
    ours_off, theirs_off = [], []
    # One sequence of a small model says little: where experts are chosen, ratios of single ones lie between 0.3 and 2.
    for seed in range(6, 22):
        tokens = case.tokens(case.length, seed=seed)
        exact = case.expected(tokens)
        found = logits(engine, whole(tokens, *case.blocks(seed)))
        assert found.dtype is torch.float32, "logits keep their precision"
        ours_off.append(_off(found, exact))
        theirs_off.append(_off(reference_logits(theirs, tokens), exact))
    # The median row: where an expert is chosen by a hair, single rows are far off on either side.
    ratio = float(torch.cat(ours_off).median() / torch.cat(theirs_off).median())
    findings.within("distance from float32 over the reference's own", ratio, BFLOAT16)


def _off(found: Tensor, exact: Tensor) -> Tensor:
    """Root mean square error of each row."""
    return (found - exact).square().mean(-1).sqrt()
