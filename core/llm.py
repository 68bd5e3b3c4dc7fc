"""``LLM``: a model in this process, offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from bestiary.core import logs
from bestiary.core.async_answer import AsyncAnswer
from bestiary.core.beam_params import BeamSearchParams
from bestiary.core.calls import Calls, Params
from bestiary.core.driver import Driver
from bestiary.core.engine.start import start
from bestiary.core.errors import EngineError, UsageError, shown
from bestiary.core.home import bytes_of
from bestiary.core.llm_options import check_options
from bestiary.core.opening import check_name, open_engine, open_tokenizer
from bestiary.core.outputs import RequestOutput, StreamPiece
from bestiary.core.progress import Progress, Silent
from bestiary.core.runtime import policies
from bestiary.core.runtime.blocks import CacheEvent
from bestiary.core.runtime.stats import EngineStats
from bestiary.core.sampling_params import SamplingParams
from bestiary.core.submission import Submission
from bestiary.core.text.tokenizer import Tokenizer
from bestiary.core.watchdog import StepLimits, seconds

if TYPE_CHECKING:
    from bestiary.core.engine.load import LoadedEngine
    from bestiary.core.runtime.loop import EngineLoop


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
        memory_limit: most memory of the device that the process may hold with this engine, in bytes or as ``"4GiB"``; the
            KV cache gets what the plan leaves of it.
        quantization: rules of which method each module gets, such as ``"int4:group=64, lm_head=int8, *.down_proj=none"``;
            an engine whose weights are plain gets them as it is loaded. None leaves the weights as they are.
        kv_dtype: what keys and values are stored in: a dtype, or ``"int8"``, ``"fp8"`` or ``"int4"`` for codes and a scale for
            each token and head; ``"auto"``: what the engine was built for, for a new one ``dtype``'s.
        block_size: tokens in a KV block, at most 1024; None: the engine's, 16 for a new one.
        prefix_caching: reuse keys and values of equal prompt beginnings.
        capacity: ``"no-evict"`` runs a request when all it can ever need of the KV cache is free; ``"max-utilization"``
            runs more of them, and takes blocks back from the latest when there are none left.
        queue_order: ``"first-come"``, or ``"priority"`` by ``SamplingParams.priority``.
        tensor_parallel: ranks that share each layer.
        pipeline_parallel: stages that the layers are divided among.
        seed: of random weights and of requests without a seed.
        reference: run the model's own forward on the ops' references: slow, and what everything is compared with.
        kernels: op → name of the kernel to use.
        deterministic: tokens and log-probabilities that don't depend on what else runs, at a cost in speed; None: as the
            engine was built, False for a new one.
        graphs: run steps that only decode as recorded graphs, on devices that record them; None: as the engine was built.
        step_warning: seconds that a step may take before the log says where every thread is, and ``stats().stalled`` that
            requests wait for it; None for no limit.
        step_timeout: seconds after which a step is thought to hang: the engine is dead, and everyone who waits for it is
            told; None for no limit.
        start_timeout: seconds that the ranks of a divided engine have to load in; None for no limit.
        plugins: modules, objects or module names to load besides the installed plugins.
        prefer: name → distribution, where two plugins claim one name.
        strict_plugins: a broken plugin is an error at once.
        lock: a file that ``bestiary lock`` wrote; plugins that differ from it, and an engine that was built with others,
            are refused. None: the file in ``BESTIARY_LOCKED``, if it is set.
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
        memory_limit: int | str | None = None,
        quantization: str | None = None,
        kv_dtype: str = "auto",
        block_size: int | None = None,
        prefix_caching: bool = True,
        capacity: str = "no-evict",
        queue_order: str = "first-come",
        tensor_parallel: int | None = None,
        pipeline_parallel: int | None = None,
        seed: int = 0,
        reference: bool = False,
        kernels: Mapping[str, str] | None = None,
        deterministic: bool | None = None,
        graphs: bool | None = None,
        step_warning: float | None = 30.0,
        step_timeout: float | None = 120.0,
        start_timeout: float | None = 600.0,
        plugins: Sequence[str | ModuleType | object] = (),
        prefer: Mapping[str, str] | None = None,
        strict_plugins: bool = False,
        lock: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        from bestiary.core.plugins import PluginHost

        logs.configure_library()
        flags = {"prefix_caching": prefix_caching, "reference": reference, "strict_plugins": strict_plugins}
        check_options(plugins=plugins, prefer=prefer, kernels=kernels, lock=lock, progress=progress, flags=flags)
        limits = StepLimits.checked(step_warning, step_timeout)
        policies.capacity(capacity)
        policies.order(queue_order)
        host = PluginHost.load(
            plugins=tuple(plugins),
            strict=strict_plugins,
            prefer=prefer,
            locked=Path(lock) if lock is not None else None,
        )
        said = {
            "device": device,
            "dtype": dtype,
            "kv_dtype": kv_dtype,
            "max_batch_size": max_batch_size,
            "max_seq_len": max_seq_len,
            "max_num_tokens": max_num_tokens,
            "block_size": block_size,
            "tensor_parallel": tensor_parallel,
            "pipeline_parallel": pipeline_parallel,
            "quantization": quantization,
            "kernels": dict(kernels or {}),
            "deterministic": deterministic,
            "graphs": graphs,
        }
        check_name("model", model)
        named = open_tokenizer(tokenizer)
        opened = open_engine(
            model,
            host=host,
            said={name: value for name, value in said.items() if value not in (None, "auto", {})},
            weights=weights,
            seed=seed,
            kv_cache_memory=kv_cache_memory,
            memory_limit=None if memory_limit is None else bytes_of(memory_limit, "memory_limit"),
            reference=reference,
            progress=progress or Silent(),
            start_timeout=seconds("start_timeout", start_timeout),
        )
        self._engine = opened.engine
        self.tokenizer = Tokenizer.load(opened.directory) if tokenizer == "auto" else named
        self._submission = Submission(
            opened.directory,
            self.tokenizer,
            vocab_size=opened.facts.vocab_size,
            max_seq_len=opened.facts.max_seq_len,
            host=host,
            templates=None if tokenizer is None or tokenizer == "auto" else Path(tokenizer),
            seed=seed,
            takes_functions=opened.executor.takes_functions,
            check_taps=None if opened.engine is None else opened.engine.taps.check,
        )
        self._driver = Driver(
            start(
                opened.facts,
                opened.executor,
                prefix_caching=prefix_caching,
                capacity=capacity,
                order=queue_order,
            ),
            limits,
        )
        self._calls = Calls(self._driver, self._submission)

    @property
    def engine(self) -> LoadedEngine:
        """The loaded engine, in this process.

        Raises:
            EngineError: after ``close``, or where the ranks of a divided engine run in processes of their own.
        """
        self._calls.refuse_if_closed()
        if self._engine is None:
            raise EngineError("E-RUN-RANKS", "LLM.engine", "its ranks run in processes of their own")
        return self._engine

    @property
    def max_seq_len(self) -> int:
        """Most tokens of a request, prompt and answer."""
        return self._submission.max_seq_len

    @property
    def chat_template(self) -> str | None:
        """The Jinja text of the chat template that ``chat`` uses; None where the model has none."""
        return self._submission.chat_template

    def generate(
        self,
        prompts: object,
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
        taps: Sequence[str] | None = None,
    ) -> list[RequestOutput]:
        """Answers to prompts, in their order, run together.

        Args:
            prompts: text, token ids, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``, or a list of these.
            sampling_params: one for all, or one for each; a ``BeamSearchParams`` searches instead of drawing.
            use_tqdm: show a bar of finished requests.
            taps: names of tensors to keep of every token that is computed (``"layers.3.attention.output"``); they come back
                in ``RequestOutput.taps``.

        Raises:
            RequestError: a bad prompt or parameter, or a tensor that can't be kept; nothing has run then.
            EngineError: the model failed.
        """
        return self._calls.whole(prompts, sampling_params, shown=use_tqdm, taps=taps)

    def generate_async(
        self,
        prompt: object,
        sampling_params: SamplingParams | BeamSearchParams | None = None,
        *,
        taps: Sequence[str] | None = None,
    ) -> AsyncAnswer:
        """One answer, in asyncio: ``await`` it, or read it with ``async for``. To be called where an event loop runs.

        Args:
            prompt: as for ``generate``, or a conversation as for ``chat``.
            taps: as for ``generate``; the output that is awaited has them.

        Raises:
            RequestError: a bad prompt or parameter.
            EngineError: the engine is dead.
        """
        return self._calls.awaited(prompt, sampling_params, taps)

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
        taps: Sequence[str] | None = None,
    ) -> list[RequestOutput]:
        """Answers to a conversation, or to each of a list of conversations.

        Args:
            messages: ``[{"role": "user", "content": "…"}, …]``, or a list of such lists.
            chat_template: Jinja text in place of the model's.
            tools: JSON schemas that the template may show.
            chat_template_kwargs: other variables of the template.
            taps: as for ``generate``.

        Raises:
            RequestError: no chat template, messages it refuses, or a bad parameter.
        """
        options = {**(chat_template_kwargs or {}), "add_generation_prompt": add_generation_prompt, "tools": tools}
        prompts = self._submission.chat_prompts(messages, chat_template, options)
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, taps=taps)

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that ``chat`` would make of a conversation, as text. Its begin token, if any, is written in it.

        Args:
            messages: ``[{"role": "user", "content": "…"}, …]``; the others as for ``chat``.

        Raises:
            RequestError: no chat template, or messages it refuses.
        """
        options = {**(chat_template_kwargs or {}), "add_generation_prompt": add_generation_prompt, "tools": tools}
        return self._submission.chat_text(messages, chat_template, options)

    def stream(
        self,
        prompt: object,
        sampling_params: SamplingParams | BeamSearchParams | None = None,
        *,
        taps: Sequence[str] | None = None,
    ) -> Iterator[StreamPiece]:
        """One answer as it comes: pieces whose texts concatenate to the whole. Leaving the iterator ends the request.

        Args:
            prompt: as for ``generate``, or a conversation as for ``chat``.
            taps: as for ``generate``; the last piece has them.

        Raises:
            RequestError: a bad prompt or parameter, when called.
            EngineError: the model failed.
        """
        return self._calls.pieces(prompt, sampling_params, taps)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Raises:
            UsageError: there is no tokenizer, or ``text`` is no text.
        """
        if not isinstance(text, str):
            raise UsageError("E-USE-TYPE", "text", "of the wrong type", found=shown(text), expected="a string")
        if self.tokenizer is None:
            raise UsageError("E-REQ-TOKENIZER", "encode", "needs a tokenizer and there is none")
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def reset_prefix_cache(self) -> None:
        """Forget the prefixes of earlier requests."""
        self._calls.refuse_if_closed()
        self._driver.post(lambda loop: loop.scheduler.reset_prefix_cache())

    def stats(self) -> EngineStats:
        """What runs and waits, what was computed and reused, how full the cache is, how long steps take."""
        return self._driver.loop.stats()

    def cache_events(self) -> list[CacheEvent]:
        """What the prefix cache stored and removed since the last call; the first call begins the record."""
        found: list[CacheEvent] = []
        for pool in self._driver.loop.scheduler.tables.pools:
            pool.watch()
            while pool.events:
                found.append(pool.events.popleft())
        return found

    def close(self) -> None:
        """End all requests and let go of the engine's memory. May be called again."""
        self._driver.close()
        self._engine, self._calls.closed = None, True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Inside(NamedTuple):
    """What the SDK's own tools watch of an ``LLM``; no part of its API.

    Args:
        loop: decides its steps.
        engine: None where the ranks of a divided engine run in processes of their own.
        vocab_size: how many token ids there are.
    """

    loop: EngineLoop
    engine: LoadedEngine | None
    vocab_size: int

    @classmethod
    def of(cls, llm: LLM) -> Inside:
        """Of an open one."""
        return cls(llm._driver.loop, llm._engine, llm._submission.vocab_size)
