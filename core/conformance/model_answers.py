"""Checks through ``LLM``: what is generated, alone and in company, against the reference and bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_case import BLOCK, Case
from bestiary.core.conformance.model_logits import FLOAT32
from bestiary.core.llm import LLM
from bestiary.core.outputs import RequestOutput
from bestiary.core.program.plan import Plan
from bestiary.core.runtime.kv_store import demands
from bestiary.core.sampling_params import SamplingParams

#: Tokens in a step of the engines that compute in pieces. What a window keeps of a sequence depends on it too: with few,
#: a cache for one sequence is small even where all layers have short windows.
_FEW = 9


class _Request(NamedTuple):
    prompt: list[int]
    params: SamplingParams


def greedy(case: Case, findings: Findings) -> None:
    """Each generated token is the reference's likeliest, or a tie: within 1e-4 of it."""
    (request,) = _requests(case)[:1]
    with case.llm() as llm:
        _check(case, [request], _answers(llm, [request]), findings)


def prompt_logprobs(case: Case, findings: Findings) -> None:
    """The log-probability of every prompt token."""
    tokens = case.tokens(case.length - 1, seed=11)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, ignore_eos=True)
    with case.llm() as llm:
        (out,) = llm.generate([{"prompt_token_ids": tokens}], params, use_tqdm=False)
    found = out.prompt_logprobs
    assert found is not None and len(found) == len(tokens), "a log-probability for every token of the prompt"
    wanted = case.expected(tokens).log_softmax(-1)
    for place in range(1, len(tokens)):
        of_token = found[place]
        assert of_token is not None
        error = abs(of_token[tokens[place]].logprob - float(wanted[place - 1, tokens[place]]))
        findings.within(f"log-probability of the prompt's token at {place}", error, FLOAT32)


def batch_composition(case: Case, findings: Findings) -> None:
    """Requests alone, together and in small steps say the same."""
    requests = _requests(case)
    with case.llm(prefix_caching=False) as llm:
        alone = [_answers(llm, [request])[0] for request in requests]
        together = _answers(llm, requests)
    with case.llm(build={"max_num_tokens": _FEW}, prefix_caching=False) as llm:
        narrow = _answers(llm, requests)
    for answers in (alone, together, narrow):
        _check(case, requests, answers, findings)


def prefix_reuse(case: Case, findings: Findings) -> None:
    """A prompt whose beginning is in the cache says what it says without."""
    requests = _requests(case)
    with case.llm() as llm:
        for _ in range(2):
            answers = _answers(llm, requests)
            _check(case, requests, answers, findings)
        reused = sum(answer.num_cached_tokens or 0 for answer in answers)
        if not llm.engine.prefix_caching:
            findings.note("keys depend on the prompt's length: prefixes are not reused")
            assert reused == 0
        else:
            assert reused >= BLOCK, f"no prefix was reused the second time ({reused} tokens)"


def preemption(case: Case, findings: Findings) -> None:
    """A request that gave up its blocks and came back says what it would have said."""
    requests = _requests(case, crowd=True)
    for answers in _crowded(case, requests, build={"max_num_tokens": _FEW}):
        _check(case, requests, answers, findings)


def deterministic(case: Case, findings: Findings, *, thorough: bool) -> None:
    """In deterministic mode alone, together, from the cache and after preemption are equal bit for bit.

    Args:
        thorough: in bfloat16 as well as in float32.
    """
    requests = _requests(case, crowd=True, answer=8, logprobs=3, temperature=0.8)
    for dtype in ("float32", "bfloat16") if thorough else ("float32",):
        build = {"deterministic": True, "dtype": dtype}
        # The promise is that of one engine: of two builds each may measure another kernel to be the fastest.
        kernels = _one_kernel_each(case.load(build=build).plan)
        with case.llm(build=build, kernels=kernels, prefix_caching=False) as llm:
            alone = [_exact(_answers(llm, [request])[0]) for request in requests]
        with case.llm(build=build, kernels=kernels) as llm:
            for how in ("together", "from the cache"):
                said = [_exact(a) for a in _answers(llm, requests)]
                findings.require(said == alone, f"{dtype}, {how}: not what it is alone")
        for answers in _crowded(case, requests, build={**build, "max_num_tokens": _FEW}, kernels=kernels):
            said = [_exact(a) for a in answers]
            findings.require(said == alone, f"{dtype}, in chunks and preempted: not what it is alone")


def _requests(
    case: Case, *, crowd: bool = False, answer: int | None = None, temperature: float = 0.0, logprobs: int = 0
) -> list[_Request]:
    """Five requests, four of which begin alike; each prompt and answer fill at most the case's length.

    Args:
        answer: tokens of each of the five; None, as for the others: half of the length.
        crowd: six more before them that begin with a block each and grow, so that a small cache runs out.
    """
    total = case.length
    room = [answer or total // 2] * 5
    shared = case.tokens(total, seed=12)
    prompts = [shared[: total // 2]] + [
        shared[:same] + case.tokens(total, seed=13 + same)[:own]
        for same, own in ((total // 2 - 2, 2), (total // 3 + 1, 4), (total // 2, 0), (0, 1))
    ]
    if crowd:
        prompts = [case.tokens(2 + seed % 3, seed=50 + seed) for seed in range(6)] + prompts
        room = [total // 2] * 6 + room
    return [
        _Request(
            prompt,
            SamplingParams(
                temperature=temperature, seed=seed, max_tokens=room[seed], ignore_eos=True, logprobs=logprobs
            ),
        )
        for seed, prompt in enumerate(prompts)
    ]


def _answers(llm: LLM, requests: Sequence[_Request]) -> list[RequestOutput]:
    prompts = [{"prompt_token_ids": request.prompt} for request in requests]
    return llm.generate(prompts, [request.params for request in requests], use_tqdm=False)


def _check(case: Case, requests: Sequence[_Request], answers: Sequence[RequestOutput], findings: Findings) -> None:
    """Teacher-forced on our own tokens: each is the reference's likeliest or a tie, with its log-probability."""
    for request, answer in zip(requests, answers, strict=True):
        chosen = list(answer.outputs[0].token_ids)
        assert len(chosen) == request.params.max_tokens
        rows = case.expected(request.prompt + chosen)[len(request.prompt) - 1 : -1]
        picked = torch.tensor(chosen).unsqueeze(1)
        gaps = rows.max(-1).values - rows.gather(1, picked).squeeze(1)
        findings.within("logit of a greedy token below the reference's best", float(gaps.max()), FLOAT32)
        findings.ties(int((gaps > 0).sum()), len(chosen))
        said = torch.tensor(
            [of[token].logprob for token, of in zip(chosen, answer.outputs[0].logprobs or (), strict=True)]
        )
        wanted = rows.log_softmax(-1).gather(1, picked).squeeze(1)
        findings.within("log-probability of a greedy token", float((said - wanted).abs().max()), FLOAT32)


def _exact(answer: RequestOutput) -> Any:
    return answer.outputs[0].token_ids, answer.outputs[0].logprobs


def _one_kernel_each(plan: Plan) -> dict[str, str]:
    """For each op the kernel that most of its calls have."""
    found: dict[str, list[str]] = {}
    for call, choices in plan.choices.items():
        found.setdefault(call.partition("(")[0], []).extend(choice.kernel for choice in choices)
    return {op: max(sorted(set(names)), key=names.count) for op, names in found.items()}


def _crowded(
    case: Case, requests: Sequence[_Request], build: dict[str, Any], kernels: Mapping[str, str] | None = None
) -> Iterator[list[RequestOutput]]:
    """Answers of engines that overbook a cache for one of the longest sequences, or a few blocks more, until somebody
    was preempted: which sizes do that depends on the windows.
    """
    network = case.load(build=build).network
    geometry = network.geometry
    needs = demands(
        network.program.caches,
        block_size=geometry.block_size,
        dtype=geometry.kv_dtype,
        max_seq_len=case.length,
        max_num_tokens=network.limits.tokens,
    )
    for spare in range(4):
        memory = sum(need.nbytes(1) + spare * need.block_bytes for need in needs)
        said: dict[str, Any] = {"kv_cache_memory": memory, "max_seq_len": case.length, "capacity": "max-utilization"}
        said["kernels"] = kernels
        with case.llm(build=build, **said) as llm:
            yield _answers(llm, requests)
            if llm.stats().preemptions > 0:
                return
    # Who sees one token holds one block, which never becomes two: nobody has to give any up.
    assert all(need.window == 1 for need in needs), "nobody was preempted"
    case.findings.note("windows of one token: nobody is ever preempted")
