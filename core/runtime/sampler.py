"""From a step's logits to its tokens, the whole batch at once; a row pays only for what its request uses.

In order: ``logit_bias`` is added; end tokens are removed before ``min_tokens``; penalties; then the argmax where the
temperature is 0, else division by the temperature, ``top_k``, ``top_p``, ``min_p`` and a draw. Each step acts on what the one
before left (transformers' order). Log-probabilities are of the logits as the model gave them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bestiary.core.outputs import LogprobDict
from bestiary.core.runtime import logits as rows_of
from bestiary.core.runtime.batch import Batch
from bestiary.core.runtime.logprobs import logprobs
from bestiary.core.runtime.random_stream import uniform
from bestiary.core.runtime.request import Request


@dataclass(slots=True)
class Sampled:
    """A step's results, by segment.

    Args:
        tokens: the sampled token; None where none was to be sampled or the row's logits were unusable.
        unusable: segments whose logits had no finite maximum (NaN, infinite, or all removed).
        logprobs: of the sampled token, for segments that want them.
        prompt_logprobs: of the prompt tokens after each of the segment's positions, for segments that want them.
    """

    tokens: list[int | None]
    unusable: list[int] = field(default_factory=list)
    logprobs: dict[int, LogprobDict] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[LogprobDict]] = field(default_factory=dict)


class _Counts:
    """Which tokens a request has seen, kept on the device and brought up to date by what is new."""

    def __init__(self, request: Request, width: int, device: torch.device) -> None:
        self.seen = torch.zeros(width, dtype=torch.bool, device=device)
        self.output = torch.zeros(width, dtype=torch.int32, device=device)
        self.seen[torch.tensor(request.prompt, device=device)] = True
        self._counted = request.prompt_length

    def update(self, request: Request) -> None:
        fresh = torch.tensor(request.tokens[self._counted :], dtype=torch.int64, device=self.seen.device)
        if len(fresh):
            self.seen[fresh] = True
            self.output.index_add_(0, fresh, torch.ones_like(fresh, dtype=torch.int32))
            self._counted = len(request.tokens)


class Sampler:
    """Chooses tokens. Holds token counts of penalized requests until ``forget``."""

    def __init__(self) -> None:
        self._counts: dict[str, _Counts] = {}

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self._counts.pop(request.id, None)

    def sample(self, logits: Tensor, batch: Batch) -> Sampled:
        """Tokens and log-probabilities of a step.

        Args:
            logits: [num_rows, V] in the model's dtype, as ``Runner.forward`` gives them.
            batch: the step.
        """
        if len(logits) == len(batch.segments) and all(segment.request.plain for segment in batch.segments):
            # Steady greedy decoding: a row a request, and nothing per request to do.
            tokens = _listed(rows_of.likeliest(logits))
            if min(tokens) >= 0:
                return Sampled([*tokens])
        result = Sampled([None] * len(batch.segments))
        where: list[int] = []  # segments that sample
        rows: list[int] = []  # and their rows of logits
        prompts: list[tuple[int, int]] = []
        row = 0
        for index, segment in enumerate(batch.segments):
            if segment.request.params.prompt_logprobs is not None and segment.start < segment.request.prompt_length - 1:
                prompts.append((index, row))
            row += len(segment.rows)
            if segment.samples:
                where.append(index)
                rows.append(row - 1)
        if where:
            self._choose(logits, batch, where, rows, result)
        for index, first in prompts:
            result.prompt_logprobs[index] = _prompt_logprobs(logits, batch, index, first)
        return result

    def _choose(self, logits: Tensor, batch: Batch, where: list[int], rows: list[int], result: Sampled) -> None:
        wanted = logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)]
        requests = [batch.segments[index].request for index in where]
        tokens = self._tokens(wanted, requests)
        for index, token in zip(where, tokens, strict=True):
            if token < 0:
                result.unusable.append(index)
            else:
                result.tokens[index] = token
        listed = [i for i, r in enumerate(requests) if r.params.logprobs is not None and tokens[i] >= 0]
        if listed:
            counts = [requests[i].params.logprobs or 0 for i in listed]
            picked = wanted if len(listed) == len(wanted) else wanted[torch.tensor(listed, device=wanted.device)]
            found = logprobs(picked, [tokens[i] for i in listed], counts)
            result.logprobs.update(zip([where[i] for i in listed], found, strict=True))

    def _tokens(self, logits: Tensor, requests: list[Request]) -> list[int]:
        """One token a row, -1 where there is none. logits: [R, V]."""
        plain: list[int] = []
        other: list[int] = []
        for i, request in enumerate(requests):
            params = request.params
            simple = params.greedy and not (params.penalized or params.logit_bias or _banned(request))
            (plain if simple else other).append(i)
        if not other:
            return _listed(rows_of.likeliest(logits))
        if not plain:
            return self._processed_tokens(logits, requests)
        tokens = [-1] * len(requests)
        for group, choose in ((plain, None), (other, self._processed_tokens)):
            some = logits[torch.tensor(group, device=logits.device)]
            found = choose(some, [requests[i] for i in group]) if choose else _listed(rows_of.likeliest(some))
            for i, token in zip(group, found, strict=True):
                tokens[i] = token
        return tokens

    def _processed_tokens(self, logits: Tensor, requests: list[Request]) -> list[int]:
        logits = self._processed(logits.float(), requests)
        greedy = [i for i, request in enumerate(requests) if request.params.greedy]
        drawn = [i for i, request in enumerate(requests) if not request.params.greedy]
        tokens = [-1] * len(requests)
        for group, choose in ((greedy, None), (drawn, _draw)):
            if group:
                some = logits if len(group) == len(requests) else logits[torch.tensor(group, device=logits.device)]
                found = choose(some, [requests[i] for i in group]) if choose else rows_of.likeliest(some)
                for i, token in zip(group, _listed(found), strict=True):
                    tokens[i] = token
        return tokens

    def _processed(self, logits: Tensor, requests: list[Request]) -> Tensor:
        """Bias, bans and penalties. logits: [R, V] float32."""
        biased = [i for i, request in enumerate(requests) if request.params.logit_bias]
        banned = [i for i, request in enumerate(requests) if _banned(request)]
        penalized = [i for i, request in enumerate(requests) if request.params.penalized]
        if biased:
            bias = [(i, token, value) for i in biased for token, value in requests[i].params.logit_bias.items()]
            at_row, at_token, values = zip(*bias, strict=True)
            where = (_ids(at_row, logits), _ids(at_token, logits))
            logits = logits.index_put(where, torch.tensor(values, device=logits.device), accumulate=True)
        if banned:
            ban = [(i, token) for i in banned for token in sorted(requests[i].params.end_token_ids)]
            at_row, at_token = zip(*ban, strict=True)
            where = (_ids(at_row, logits), _ids(at_token, logits))
            logits = logits.index_put(where, torch.tensor(-torch.inf, device=logits.device))
        if penalized:
            rows = _ids(penalized, logits)
            logits = logits.index_copy(0, rows, self._penalized(logits[rows], [requests[i] for i in penalized]))
        return logits

    def _penalized(self, logits: Tensor, requests: list[Request]) -> Tensor:
        counts = []
        for request in requests:
            own = self._counts.get(request.id)
            if own is None:
                own = self._counts[request.id] = _Counts(request, logits.shape[-1], logits.device)
            own.update(request)
            counts.append(own)
        values = [
            (r.params.repetition_penalty, r.params.presence_penalty, r.params.frequency_penalty) for r in requests
        ]
        repetition, presence, frequency = torch.tensor(values, device=logits.device).unsqueeze(2).unbind(dim=1)
        seen = torch.stack([own.seen for own in counts])
        output = torch.stack([own.output for own in counts])
        return rows_of.penalize(logits, seen, output, repetition, presence, frequency)


def _draw(logits: Tensor, requests: list[Request]) -> Tensor:
    """[R] tokens of requests with a temperature. logits: [R, V] float32, bias to penalties applied."""
    params = [request.params for request in requests]
    temperature = torch.tensor([p.temperature for p in params], device=logits.device).unsqueeze(1)
    logits = rows_of.keep_top(logits / temperature, [p.top_k for p in params], [p.top_p for p in params])
    numbers = [[p.min_p, uniform(p.seed, request.num_output)] for p, request in zip(params, requests, strict=True)]
    min_p, number = torch.tensor(numbers, dtype=torch.float64, device=logits.device).unsqueeze(2).unbind(dim=1)
    return rows_of.draw(logits, min_p, number)


def _banned(request: Request) -> bool:
    params = request.params
    return bool(params.min_tokens and params.end_token_ids) and request.num_output < params.min_tokens


def _prompt_logprobs(logits: Tensor, batch: Batch, index: int, first: int) -> list[LogprobDict]:
    """Of the prompt tokens that follow the segment's positions; the last prompt token is followed by the output."""
    segment = batch.segments[index]
    request = segment.request
    end = min(segment.start + segment.count, request.prompt_length - 1)
    wanted = request.params.prompt_logprobs or 0
    targets = request.tokens[segment.start + 1 : end + 1]
    return logprobs(logits[first : first + len(targets)], targets, [wanted] * len(targets))


def _ids(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)


def _listed(tokens: Tensor) -> list[int]:
    found: list[int] = tokens.tolist()
    return found
