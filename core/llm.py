"""``LLM``: a model in this process, offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from bestiary.core.answer import TextAnswer
from bestiary.core.errors import EngineError, UsageError
from bestiary.core.opening import open_engine, open_tokenizer
from bestiary.core.outputs import RequestOutput, StreamPiece
from bestiary.core.progress import Progress, Silent
from bestiary.core.runtime.batch import Batch
from bestiary.core.runtime.loop import EngineLoop
from bestiary.core.runtime.request import Request
from bestiary.core.runtime.scheduler import Scheduler
from bestiary.core.sampling_params import SamplingParams
from bestiary.core.submission import Submission

if TYPE_CHECKING:
    from bestiary.core.engine.load import LoadedEngine

Params = SamplingParams | Sequence[SamplingParams] | None


class _Closed:
    """What is left of an engine after ``close``; the real one's memory is free."""

    def forward(self, batch: Batch) -> NoReturn:
        raise EngineError("E-RUN-CLOSED", "LLM", "it has been closed")


class LLM:
    """A language model, ready to generate.

    Args:
        model: a Hugging Face directory, GGUF file, hub id, checkpoint or engine; what is missing is converted and built
            into the cache. With ``weights="random"`` a directory with a config.json is enough.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        dtype: what to compute in; ``"auto"`` takes the model's.
        tokenizer: ``"auto"`` takes the model's; another directory; None works on token ids only.
        weights: ``"auto"`` reads the model's; ``"random"`` makes some of its shape on the device.
        max_batch_size: most requests that run at a time; None: what the engine was built for, 64 for a new one.
        max_seq_len: most tokens of a request, prompt and output; None: the engine's; for a new one the model's, up to
            4096.
        max_num_tokens: most tokens in a step; None: the engine's, 2048 for a new one.
        kv_cache_memory: a float is the part of the free memory that the KV cache takes, an int is bytes.
        quantization: a method that a plugin provides; None leaves the weights as they are.
        kv_dtype: what keys and values are stored in.
        block_size: tokens in a KV block; None: the engine's, 16 for a new one.
        prefix_caching: reuse keys and values of equal prompt beginnings.
        tensor_parallel: ranks that share the model.
        seed: of random weights and of requests without a seed.
        reference: run the model's own forward on the ops' references: slow, and what everything is compared with.
        kernels: op → name of the kernel to use.
        deterministic: tokens and log-probabilities that don't depend on what else runs, at a cost in speed; None: as the
            engine was built, False for a new one.
        plugins: modules, objects or module names to load besides the installed plugins.
        prefer: name → distribution, where two plugins claim one name.
        strict_plugins: a broken plugin is an error at once.
        progress: told about conversion, build and load.

    Raises:
        BestiaryError: with a code, for anything that can't be loaded or built.

    Example::

        llm = LLM("path-or-id")
        print(llm.generate("Once upon a time", SamplingParams(temperature=0))[0].outputs[0].text)
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        tokenizer: str | Path | None = "auto",
        weights: Literal["auto", "random"] = "auto",
        max_batch_size: int | None = None,
        max_seq_len: int | None = None,
        max_num_tokens: int | None = None,
        kv_cache_memory: float | int = 0.9,
        quantization: str | None = None,
        kv_dtype: str = "auto",
        block_size: int | None = None,
        prefix_caching: bool = True,
        tensor_parallel: int | None = None,
        seed: int = 0,
        reference: bool = False,
        kernels: Mapping[str, str] | None = None,
        deterministic: bool | None = None,
        plugins: Sequence[str | ModuleType | object] = (),
        prefer: Mapping[str, str] | None = None,
        strict_plugins: bool = False,
        progress: Progress | None = None,
    ) -> None:
        from bestiary.core.plugins import PluginHost

        host = PluginHost.load(plugins=plugins, strict=strict_plugins, prefer=prefer)
        said = {
            "device": device,
            "dtype": dtype,
            "kv_dtype": kv_dtype,
            "max_batch_size": max_batch_size,
            "max_seq_len": max_seq_len,
            "max_num_tokens": max_num_tokens,
            "block_size": block_size,
            "tensor_parallel": tensor_parallel,
            "quantization": quantization,
            "kernels": dict(kernels or {}),
            "deterministic": deterministic,
        }
        engine = open_engine(
            model,
            host=host,
            said={name: value for name, value in said.items() if value not in (None, "auto", {})},
            weights=weights,
            seed=seed,
            kv_cache_memory=kv_cache_memory,
            reference=reference,
            progress=progress or Silent(),
        )
        self._engine: LoadedEngine | None = engine
        self.tokenizer = open_tokenizer(tokenizer, engine.directory)
        self._submission = Submission(
            engine.directory,
            self.tokenizer,
            vocab_size=engine.vocab_size,
            max_seq_len=engine.max_seq_len,
            seed=seed,
        )
        scheduler = Scheduler(
            engine.cache_groups,
            max_batch_size=engine.options.max_batch_size,
            max_num_tokens=engine.options.max_num_tokens,
            prefix_caching=prefix_caching and engine.prefix_caching,
        )
        self._loop = EngineLoop(engine.runner, scheduler)

    @property
    def engine(self) -> LoadedEngine:
        """The loaded engine.

        Raises:
            EngineError: after ``close``.
        """
        if self._engine is None:
            raise EngineError("E-RUN-CLOSED", "LLM", "it has been closed")
        return self._engine

    def generate(
        self, prompts: object, sampling_params: Params = None, *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        """Answers to prompts, in their order, run together.

        Args:
            prompts: text, token ids, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``, or a list of these.
            sampling_params: one for all, or one for each.
            use_tqdm: show a bar of finished requests.

        Raises:
            RequestError: a bad prompt or parameter; nothing has run then.
            EngineError: the model failed.
        """
        prepared = self._prepare(prompts, sampling_params)
        loop = self._loop
        try:
            for request, answer in prepared:
                loop.submit(request, answer)
            self._run([answer for _, answer in prepared], use_tqdm)
        finally:
            # Whatever ended the call early, nothing of it stays in the engine.
            for request, _ in prepared:
                loop.abort(request)
        return [answer.output() for _, answer in prepared]

    def chat(
        self,
        messages: object,
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers to a conversation, or to each of a list of conversations.

        Args:
            messages: ``[{"role": "user", "content": "…"}, …]``, or a list of such lists.
            chat_template: Jinja text in place of the model's.
            tools: JSON schemas that the template may show.
            chat_template_kwargs: other variables of the template.

        Raises:
            RequestError: no chat template, messages it refuses, or a bad parameter.
        """
        options = {**(chat_template_kwargs or {}), "add_generation_prompt": add_generation_prompt, "tools": tools}
        prompts = self._submission.chat_prompts(messages, chat_template, options)
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def stream(self, prompt: object, sampling_params: SamplingParams | None = None) -> Iterator[StreamPiece]:
        """One answer as it comes: pieces whose texts concatenate to the whole. Leaving the iterator ends the request.

        Args:
            prompt: as for ``generate``, or a conversation as for ``chat``.

        Raises:
            RequestError: a bad prompt or parameter, when called.
            EngineError: the model failed.
        """
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], Mapping) and "role" in prompt[0]:
            prompt = self._submission.chat_prompts(prompt, None, {})
        prepared = self._prepare(prompt, sampling_params)
        if len(prepared) != 1:
            raise UsageError("E-REQ-STREAM", "stream", "takes one prompt", found=f"{len(prepared)} prompts")
        return self._pieces(*prepared[0])

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Raises:
            UsageError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise UsageError("E-REQ-TOKENIZER", "encode", "needs a tokenizer and there is none")
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def reset_prefix_cache(self) -> None:
        """Forget the prefixes of earlier requests."""
        _ = self.engine  # refuses after close
        self._loop.scheduler.reset_prefix_cache()

    def close(self) -> None:
        """End all requests and let go of the engine's memory. May be called again."""
        if self._engine is not None:
            self._loop.abort_all()
            self._loop.runner = _Closed()
            self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, prompts: object, params: Params) -> list[tuple[Request, TextAnswer]]:
        _ = self.engine  # refuses after close
        prepared = self._submission.prepare(prompts, params)
        for request, _ in prepared:
            self._loop.scheduler.admissible(request)
        return prepared

    def _run(self, answers: list[TextAnswer], use_tqdm: bool) -> None:
        from tqdm import tqdm

        with tqdm(total=len(answers), desc="requests", disable=not use_tqdm) as bar:
            done = 0
            while done < len(answers):
                if self._loop.step():
                    now = sum(answer.finished for answer in answers)
                    bar.update(now - done)
                    done = now

    def _pieces(self, request: Request, answer: TextAnswer) -> Iterator[StreamPiece]:
        loop = self._loop
        loop.submit(request, answer)
        try:
            done = False
            while not done:
                if not answer.finished:
                    loop.step()
                # Another call's steps may have finished it.
                done = answer.finished
                if done or answer.has_news():
                    yield answer.piece()
        finally:
            loop.abort(request)
