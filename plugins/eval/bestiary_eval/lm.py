"""What lm-eval asks of a language model, answered by an engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bestiary import LLM, EngineError, RequestError, RequestOutput, SamplingParams
from bestiary.tools import Progress

from .generation import DEFAULT_MAX_TOKENS, sampling

log = logging.getLogger("bestiary.eval")

# Requests handed to the engine at once: enough to keep it full, few enough that their log-probabilities fit in memory.
_AT_ONCE = 512

T = TypeVar("T")
Scored = tuple[float, bool]
Pair = tuple[Any, list[int], list[int]]


class EngineLM(TemplateLM):  # type: ignore[misc]
    """An engine behind lm-eval's interface. Tokens are made, joined and cut as lm-eval's class for transformers does it.

    Args:
        llm: with a tokenizer.
        name: the model's, for lm-eval's caches.
        progress: told about each kind of request.

    Attributes:
        max_length: most tokens before the last one of a text that is scored; two less than the engine's ``max_seq_len``,
            which counts the token that every request generates.
        truncated: prompts that lost tokens on their left.

    Raises:
        RequestError: the engine has no tokenizer, or no token that could stand before an empty context.
    """

    def __init__(self, llm: LLM, name: str, progress: Progress) -> None:
        super().__init__()
        if llm.tokenizer is None:
            hint = "--tokenizer names another's"
            raise RequestError("E-EVAL-TOKENIZER", name, "tasks are text, and the model has no tokenizer", hint=hint)
        self._llm, self._words, self._name, self._progress = llm, llm.tokenizer, name, progress
        self.max_length, self.truncated = llm.max_seq_len - 2, 0
        bos, eos = self._words.bos_token_id, self._words.eos_token_id
        if bos is None and eos is None:
            problem = "neither a begin nor an end token is known, and one must stand before an empty context"
            raise RequestError("E-EVAL-TOKENIZER", name, problem, hint="--tokenizer names another's")
        self._prefix = bos if bos is not None else eos
        self._prefix_text = self._words.decode([self.prefix_token_id], skip_special_tokens=False)

    @property
    def eot_token_id(self) -> int:
        """The end token; the begin token where there is none."""
        eos = self._words.eos_token_id
        return self.prefix_token_id if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        """What stands before an empty context: the begin token, else the end token."""
        assert self._prefix is not None
        return self._prefix

    @property
    def max_gen_toks(self) -> int:
        """Most tokens of an answer whose task names no number."""
        return DEFAULT_MAX_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """The model's name, which must be part of no path."""
        return self._name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The Jinja text; None where it is not wanted or not there."""
        return self._llm.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as a prompt; without ``add_generation_prompt`` it ends within its last message.

        Raises:
            RequestError: no chat template, or messages it refuses, also without their system messages.
        """
        try:
            text = self._llm.chat_text(chat_history, add_generation_prompt=add_generation_prompt)
        except RequestError:
            users = [message for message in chat_history if message["role"] != "system"]
            if len(users) == len(chat_history):
                raise
            log.warning("the chat template takes no system message: it is left out")
            text = self._llm.chat_text(users, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids. The begin token is not written twice before a text that has it already, as chat templates' have."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self._prefix_text)
        return self._llm.encode(string, add_special_tokens=add_special_tokens)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Scored]:
        """Log-likelihood of each continuation after its context, and whether it is what the model would say."""
        scored: list[Scored] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scored

    def _loglikelihood_tokens(self, requests: list[Pair], **kwargs: Any) -> list[Scored]:
        """Natural log-probability of each continuation, and whether it is what the model would say."""
        texts = [self._fitting(context, continuation) for _, context, continuation in requests]

        def ask(index: int) -> tuple[list[int], SamplingParams]:
            tokens, scored = texts[index]
            if scored == 1:
                # The only token allowed is generated: of the context only the last logits are needed, and contexts are reused.
                return tokens[:-1], _one_token(allowed_token_ids=[tokens[-1]], logprobs=0)
            return tokens, _one_token(prompt_logprobs=0)

        def read(index: int, output: RequestOutput) -> Scored:
            tokens, scored = texts[index]
            entries = output.outputs[0].logprobs if scored == 1 else (output.prompt_logprobs or [])[-scored:]
            found = [entry[token] for entry, token in zip(entries or [], tokens[-scored:], strict=True) if entry]
            return float(sum(one.logprob for one in found)), all(one.rank == 1 for one in found)

        asked = [index for index, (_, scored) in enumerate(texts) if scored]
        answers = self._answers("loglikelihood", asked, ask, read)
        for index, answer in answers.items():
            if requests[index][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
        return [answers.get(index, (0.0, True)) for index in range(len(requests))]

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[list[int], int]:
        """The tokens of both, cut on the left, and how many of them are scored."""
        most = self.max_length + 1
        if len(continuation) >= most:
            found, expected = f"{len(continuation)} tokens", f"at most {most - 1}"
            hint = "raise --max-seq-len, or rebuild the engine with more"
            problem = "a continuation is longer than the context"
            raise RequestError("E-EVAL-LENGTH", "loglikelihood", problem, found=found, expected=expected, hint=hint)
        self.truncated += len(context) + len(continuation) > most
        return (context + continuation)[-most:], len(continuation)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token once and with as much before it as fits."""
        windows: list[Pair] = []
        owners: list[int] = []
        for number, (text,) in enumerate(request.args for request in requests):
            tokens = self.tok_encode(text)
            cut = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1) if tokens else ()
            for context, scored in map(make_disjoint_window, cut):
                windows.append((None, list(context), list(scored)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (total, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, each ending before its stop strings."""
        end = self._words.decode([self.eot_token_id], skip_special_tokens=False)
        stops = [handle_stop_sequences(dict(request.args[1]).get("until"), eos=end) for request in requests]

        def ask(index: int) -> tuple[list[int], SamplingParams]:
            context, options = requests[index].args
            params = sampling(options, [text for text in stops[index] if text], room=self.max_length)
            assert isinstance(params.max_tokens, int)
            tokens, most = self.tok_encode(context) or [self.prefix_token_id], self.max_length - params.max_tokens
            self.truncated += len(tokens) > most
            return tokens[-most:], params

        def read(index: int, output: RequestOutput) -> str:
            return output.outputs[0].text

        answers = self._answers("generate", range(len(requests)), ask, read)
        for index, answer in answers.items():
            self.cache_hook.add_partial("generate_until", requests[index].args, answer)
        return [answers[index] for index in range(len(requests))]

    def _answers(
        self,
        step: str,
        indices: Sequence[int],
        ask: Callable[[int], tuple[list[int], SamplingParams]],
        read: Callable[[int, RequestOutput], T],
    ) -> Mapping[int, T]:
        """What the engine says to each request, by its index."""
        self._progress.start(step, len(indices), "requests")
        answers: dict[int, T] = {}
        asked = {index: ask(index) for index in indices}
        # Equal beginnings next to each other, so that the engine still has them.
        for group in _groups(sorted(indices, key=lambda index: asked[index][0])):
            prompts = [{"prompt_token_ids": asked[index][0]} for index in group]
            outputs = self._llm.generate(prompts, [asked[index][1] for index in group], use_tqdm=False)
            for index, output in zip(group, outputs, strict=True):
                _check(step, output)
                answers[index] = read(index, output)
            self._progress.advance(len(group))
        self._progress.finish(f"{len(indices)} requests")
        return answers


def _one_token(**options: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False, **options)


def _groups(indices: Sequence[int]) -> Iterator[Sequence[int]]:
    return (indices[start : start + _AT_ONCE] for start in range(0, len(indices), _AT_ONCE))


def _check(step: str, output: RequestOutput) -> None:
    answer = output.outputs[0]
    if answer.finish_reason not in ("stop", "length"):
        subject = f"{step} request of {len(output.prompt_token_ids)} tokens"
        problem, hint = str(answer.stop_reason or f"ended with {answer.finish_reason}"), "the log says more"
        raise EngineError("E-EVAL-REQUEST", subject, problem, hint=hint)
