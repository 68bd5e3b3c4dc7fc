"""From what a caller asks to jobs for the loop: prompts, parameters, grammars, seeds and ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bestiary.core.answer import TextAnswer
from bestiary.core.beam_job import BeamJob, Beams
from bestiary.core.beam_params import BeamSearchParams
from bestiary.core.errors import RequestError, shown
from bestiary.core.guides import Guides
from bestiary.core.jobs import Job, Part, SamplingJob
from bestiary.core.plugins import PluginHost
from bestiary.core.prompts import as_prompts, read_prompt
from bestiary.core.resolve_params import resolve
from bestiary.core.runtime.beam import BeamSearch
from bestiary.core.runtime.containment import PluginFailure
from bestiary.core.runtime.random_stream import mix
from bestiary.core.runtime.request import Request
from bestiary.core.runtime.restrictions import Guide
from bestiary.core.runtime.tap_rows import Tapped
from bestiary.core.sampling_params import SamplingParams
from bestiary.core.text.chat import ChatTemplate, Message
from bestiary.core.text.generation_config import end_token_ids, load_generation_config
from bestiary.core.text.tokenizer import Tokenizer

#: How the answers to a prompt are found.
Params = SamplingParams | BeamSearchParams


class Submission:
    """Makes jobs for one engine.

    Args:
        model: directory of the engine, for generation_config and the chat template.
        tokenizer: None for token ids only.
        templates: directory of another tokenizer, whose chat template stands above the model's.
        vocab_size: width of the logits.
        max_seq_len: most tokens of a request.
        host: whose grammars and logits processors requests may name.
        seed: of the requests that name none.
        takes_functions: see ``Executor``.
        check_taps: refuses names of tensors that requests can't keep; None where they can't keep any.
    """

    def __init__(
        self,
        model: Path,
        tokenizer: Tokenizer | None,
        *,
        vocab_size: int,
        max_seq_len: int,
        host: PluginHost,
        templates: Path | None = None,
        seed: int = 0,
        takes_functions: bool = True,
        check_taps: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self.tokenizer, self.vocab_size, self.max_seq_len = tokenizer, vocab_size, max_seq_len
        self.generation_config: Mapping[str, Any] = load_generation_config(model)
        own_end = None if tokenizer is None else tokenizer.eos_token_id
        self.end_tokens = end_token_ids(self.generation_config, own_end, vocab_size)
        self._guides = Guides(host, tokenizer, vocab_size, takes_functions=takes_functions)
        places = [model] if templates is None else [templates, model]
        self._template = None if tokenizer is None else ChatTemplate.find(places, tokenizer.special_tokens)
        self._seed, self._count, self._check_taps = seed, 0, check_taps

    def prepare(
        self,
        prompts: object,
        params: Params | Sequence[Params] | None,
        *,
        streams: bool = False,
        on_news: Callable[[], None] | None = None,
        taps: object = None,
    ) -> list[Job]:
        """Jobs, all checked before the first is started.

        Args:
            streams: someone reads along, so long prompts of others are paced.
            on_news: called whenever a token came.
            taps: names of tensors that the requests keep; None: none.

        Raises:
            RequestError: a bad prompt, not one SamplingParams for each prompt, or tensors that can't be kept.
        """
        given = as_prompts(prompts)
        spread = _spread(params, len(given))
        names = self._tap_names(taps, spread)
        return [self._job(prompt, each, streams, on_news, names) for prompt, each in zip(given, spread, strict=True)]

    def _tap_names(self, taps: object, params: Sequence[Params]) -> tuple[str, ...]:
        names = tap_names(taps)
        if not names:
            return ()
        if self._check_taps is None:
            raise RequestError(
                "E-REQ-TAPS",
                "taps",
                "can't be kept by a divided engine, whose ranks run in processes of their own",
                hint="use an engine that runs in one process",
            )
        if not all(isinstance(each, SamplingParams) and each.n == 1 and each.best_of in (None, 1) for each in params):
            raise RequestError(
                "E-REQ-TAPS",
                "taps",
                "are kept of a prompt with one answer",
                found="n or best_of above 1, or a beam search",
                expected="SamplingParams with n = 1",
                hint="give the prompt several times, each with a seed of its own",
            )
        self._check_taps(names)
        return names

    def chat_prompts(
        self, messages: object, template: str | None, options: Mapping[str, Any]
    ) -> list[Mapping[str, Any]]:
        """Token ids of one conversation, or of each of a list of conversations.

        Raises:
            RequestError: no tokenizer, no chat template, or messages the template refuses.
        """
        chosen, tokenizer = self._chat(template)
        several = isinstance(messages, Sequence) and bool(messages) and isinstance(messages[0], Sequence)
        conversations: Sequence[Sequence[Message]] = messages if several else [messages]  # type: ignore[list-item,assignment]
        texts = [chosen.render(conversation, **options) for conversation in conversations]
        # The template writes its own begin token.
        return [{"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)} for text in texts]

    @property
    def chat_template(self) -> str | None:
        """The Jinja text of the model's chat template; None where it has none."""
        return None if self._template is None else self._template.source

    def chat_text(self, messages: Sequence[Message], template: str | None, options: Mapping[str, Any]) -> str:
        """The prompt of one conversation, as text.

        Raises:
            RequestError: no tokenizer, no chat template, or messages the template refuses.
        """
        return self._chat(template)[0].render(messages, **options)

    def _chat(self, template: str | None) -> tuple[ChatTemplate, Tokenizer]:
        if self.tokenizer is None:
            raise RequestError("E-REQ-CHAT", "chat", "needs a tokenizer and there is none")
        chosen = self._template if template is None else ChatTemplate(template, self.tokenizer.special_tokens)
        if chosen is None:
            hint = "pass chat_template=…, or use generate"
            raise RequestError("E-REQ-CHAT", "chat", "the model has no chat template", hint=hint)
        return chosen, self.tokenizer

    def _job(
        self,
        prompt: object,
        params: Params,
        streams: bool,
        on_news: Callable[[], None] | None,
        taps: tuple[str, ...],
    ) -> Job:
        if isinstance(params, BeamSearchParams):
            return self._beam_job(prompt, params, on_news)
        read = read_prompt(
            prompt,
            self.tokenizer,
            vocab_size=self.vocab_size,
            max_seq_len=self.max_seq_len,
            keep=params.truncate_prompt_tokens,
        )
        if self.tokenizer is None and params.stop:
            raise RequestError("E-REQ-STOP", "stop", "stop strings need a tokenizer and there is none")
        number = self._count
        self._count += 1
        resolved = resolve(
            params,
            self.generation_config,
            vocab_size=self.vocab_size,
            eos_token_ids=self.end_tokens,
            seed=mix(mix(self._seed) + number),
            encode=None if self.tokenizer is None else partial(self.tokenizer.encode, add_special_tokens=False),
        )
        self._guides.check_processors(resolved)
        failure: PluginFailure | None = None
        guides = list[Guide | None]([None]) * resolved.best_of
        try:
            guides = self._guides.several(resolved)
        except PluginFailure as error:
            failure = error
        parts: list[Part] = []
        for index in range(resolved.best_of):
            own = resolved.answer(index)
            if resolved.ranked and own.logprobs is None:
                own = replace(own, logprobs=0)
            request = Request(
                str(number) if index == 0 else f"{number}.{index}",
                read.token_ids,
                own,
                max_seq_len=self.max_seq_len,
                sibling=parts[0].request if parts else None,
                streams=streams,
                tapped=Tapped(taps) if taps else None,
            )
            answer = TextAnswer(request, self.tokenizer, index=index, on_news=on_news)
            parts.append(Part(request, answer, guides[index]))
        return SamplingJob(
            read.text,
            parts,
            wanted=resolved.n,
            ranked=resolved.ranked,
            scored=resolved.logprobs is not None,
            failure=failure,
        )

    def _beam_job(self, prompt: object, params: BeamSearchParams, on_news: Callable[[], None] | None) -> Job:
        read = read_prompt(prompt, self.tokenizer, vocab_size=self.vocab_size, max_seq_len=self.max_seq_len)
        number = self._count
        self._count += 1
        # Resolving as for sampling checks the stop tokens and finds the model's end tokens.
        given = SamplingParams(
            temperature=0,
            stop_token_ids=params.stop_token_ids,
            ignore_eos=params.ignore_eos,
            cache_salt=params.cache_salt,
            priority=params.priority,
        )
        resolved = resolve(given, None, vocab_size=self.vocab_size, eos_token_ids=self.end_tokens)
        room = self.max_seq_len - len(read.token_ids)
        max_tokens = room if params.max_tokens is None else min(room, params.max_tokens)
        search = BeamSearch(
            params.beam_width,
            max_tokens=max_tokens,
            end_tokens=resolved.end_token_ids,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
        )
        wanted = min(search.candidates, self.vocab_size)
        one = replace(resolved, max_tokens=1, logprobs=wanted, stop_token_ids=frozenset(), end_token_ids=frozenset())
        beams = Beams(search, one, resolved.end_token_ids, max_tokens, self.max_seq_len)
        return BeamJob(str(number), read.text, read.token_ids, beams, self.tokenizer, on_news)


def tap_names(taps: object) -> tuple[str, ...]:
    """Names of tensors as a caller gives them; None for none.

    Raises:
        RequestError: it is no list of names.
    """
    if taps is None:
        return ()
    given = list(taps) if isinstance(taps, Iterable) and not isinstance(taps, str) else [None]
    names = [name for name in given if isinstance(name, str)]
    if len(names) < len(given):
        raise RequestError("E-REQ-TAPS", "taps", "is no list of names", found=shown(taps), expected='["layers.0", …]')
    return tuple(dict.fromkeys(names))


def _spread(params: Params | Sequence[Params] | None, count: int) -> Sequence[Params]:
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams | BeamSearchParams):
        return [params] * count
    wrong = (
        [each for each in params if not isinstance(each, SamplingParams | BeamSearchParams)]
        if isinstance(params, Sequence)
        else [params]
    )
    if wrong:
        raise RequestError(
            "E-REQ-PARAMS", "sampling_params", "not SamplingParams", found=shown(wrong[0]), expected="SamplingParams"
        )
    if len(params) != count:
        found, expected = f"{len(params)} for {count} prompts", "one for all, or one for each"
        raise RequestError(
            "E-REQ-PARAMS", "sampling_params", "wrong number of SamplingParams", found=found, expected=expected
        )
    return params
