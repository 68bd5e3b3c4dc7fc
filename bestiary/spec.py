"""What a plugin registers: frozen, keyword-only descriptors whose heavy parts are import strings ``"module:attribute"``.

A new field always has a default, so adding one is a minor change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy

    from bestiary.core.config import ModelConfig, Rope
    from bestiary.core.grouped_query import GroupedQueryConfig
    from bestiary.core.guided import Guided

__all__ = [
    "Call",
    "Command",
    "Executor",
    "Fusion",
    "Grammar",
    "GrammarMatcher",
    "GrammarProvider",
    "GrammarVocabulary",
    "GroupedQueryConfig",
    "Kernel",
    "LogitsProcessor",
    "Model",
    "ModelConfig",
    "Op",
    "Quantization",
    "Reader",
    "Rope",
    "TensorFacts",
]


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model family: its config, its module, and a weight map for every foreign format.

    Args:
        name: the family's name, ``llama``.
        architectures: the names in ``config.json``'s ``architectures`` that this model serves.
        gguf: the values of a GGUF file's ``general.architecture`` that it serves; ``"llama+experts"`` are the files of
            one that have experts (an ``expert_count`` above 0), where the name alone serves both kinds.
        config: a :class:`ModelConfig` subclass.
        model: a ``bestiary.layers.CausalLM`` subclass, constructed from the config alone.
        weights: by format, ``{"hf": …, "gguf": …}``, a ``bestiary.converters.WeightMap`` or a function of the config that
            gives one.
        gguf_config: a function from GGUF metadata to a dict in the spelling of ``config.json``; needed with ``gguf``.
        format: number of the zoo's tensor names, as stored in checkpoints.
        conformance: the family's ``bestiary.testing.ModelConformance`` subclass, which ``bestiary check`` runs.
        fallback: a function of a name in ``architectures`` and the config's ``model_type`` (or None). It is asked about
            architectures that no plugin claims, and answers None where this model can stand in, else why not, as a short
            clause. A fallback runs in one process and as it is: no parallelism, quantization, deterministic mode or
            memory limit.
    """

    name: str
    architectures: tuple[str, ...]
    config: str
    model: str
    weights: Mapping[str, str]
    gguf: tuple[str, ...] = ()
    gguf_config: str | None = None
    format: int = 1
    conformance: str | None = None
    fallback: str | None = None


@dataclass(frozen=True, kw_only=True)
class Op:
    """An operation: ``declaration`` is an object made by ``bestiary.ops.op``. A plugin's own are called ``plugin::name``."""

    name: str
    declaration: str


@dataclass(frozen=True)
class TensorFacts:
    """What may be known of a tensor without touching it: ``shape``, ``dtype`` as in ``"bfloat16"``, ``contiguous``."""

    shape: tuple[int, ...]
    dtype: str
    contiguous: bool = True


@dataclass(frozen=True)
class Call:
    """A call of an op as ``Kernel.supports`` sees it: no tensors, so that asking imports nothing heavy.

    Args:
        op: name of the op.
        arguments: by parameter name; tensors as :class:`TensorFacts`, everything else as it is. Read-only: several
            kernels are asked with one call.
        device: ``"cpu"`` or ``"cuda"``.
        features: what the device can do, such as ``"avx2"`` or ``"sm_90"``.
    """

    op: str
    arguments: Mapping[str, Any]
    device: str
    features: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", MappingProxyType(dict(self.arguments)))


def _always(call: Call) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """An implementation of an op.

    Args:
        op: the op it implements.
        name: how people choose it, ``--kernel op=name``.
        run: a function with the op's parameters and, keyword-only, ``out``: the tensor (or tuple) to fill.
        supports: ``None`` for yes, else the reason why not, as a short clause. It is asked at 1, 8, 64 and 512 rows; a
            yes holds for fewer rows too, down to the number before, and at 512 for any more.
        pack: function from the call's constant tensors (a dict by parameter) to what ``run`` wants in their place.
        batch_invariant: a row's result does not depend on the other rows.
        deterministic_only: it is slow for the sake of being batch-invariant: no candidate outside of deterministic mode.
        graph_safe: may be captured in a CUDA graph.
        requires: a requirement such as ``"triton>=3.6"``, checked before anything is imported.
        workspace: bytes that a call allocates at most beyond ``out`` and gives back when it returns. None: not stated; a
            memory plan names the kernel and counts its result once more.
    """

    op: str
    name: str
    run: str
    supports: Callable[[Call], str | None] = _always
    pack: str | None = None
    batch_invariant: bool = False
    graph_safe: bool = True
    requires: str = ""
    workspace: Callable[[Call], int] | None = None
    deterministic_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """Replace a pattern of ops by one op. The fused op's reference is written in ops and *is* the pattern.

    A fusion is applied where a kernel other than the reference is there for the fused op.
    """

    name: str
    op: str


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """A quantization method.

    Args:
        name: what rules say: ``quantization="name:option=value"``, and what a checkpoint's manifest has of each weight.
        method: names a subclass of :class:`bestiary.quant.Method`: its fields are the method's options, and it says how a
            weight is stored, made, used and divided, and the ``bound`` that the conformance kit holds every model to.
    """

    name: str
    method: str


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A foreign checkpoint format. ``sniff`` answers from a path alone; ``reader`` is a ``bestiary.converters.Source``."""

    name: str
    sniff: str
    reader: str


@dataclass(frozen=True, kw_only=True)
class LogitsProcessor:
    """A named function over a request's logits, for ``SamplingParams.logits_processors``.

    Args:
        name: how requests name it.
        run: ``run(prompt_token_ids, token_ids, logits) -> logits``: the prompt's token ids, the answer's so far, and the
            next token's logits, [V] float32 on the engine's device, bias and penalties applied. It may change ``logits``
            and must return logits of that shape; -inf removes a token. The ids are not its to change. It is called once a
            token, anew for tokens computed again, and by several requests in turn, so it keeps no state. What it raises
            ends the request.
    """

    name: str
    run: str


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """A guided-decoding backend, for ``SamplingParams.guided``.

    Args:
        name: how requests name it.
        provider: what gives a :class:`GrammarProvider` when called without arguments, such as its class. It is called
            once an engine.
        forms: the forms of ``Guided`` that it compiles for requests that name no provider: ``"json_schema"``,
            ``"regex"``, ``"grammar"``, ``"choice"``.
    """

    name: str
    provider: str
    forms: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GrammarVocabulary:
    """What a grammar's backend may know of the tokens.

    Args:
        size: V, width of the logits.
        tokens: by id, the bytes that a token adds to the text; None for special tokens and ids without a token. It may be
            shorter than ``size``.
        end_token_ids: tokens that end the answer; allowed where the grammar may end.
    """

    size: int
    tokens: Sequence[bytes | None]
    end_token_ids: frozenset[int]


class GrammarMatcher(Protocol):
    """Where one answer stands in its grammar. Only one thread calls it at a time."""

    @property
    def is_terminated(self) -> bool:
        """Nothing may follow: an end token was accepted, or the grammar's sentence can't go on."""

    def accept(self, token: int) -> bool:
        """Advance by a token of the answer; False, and nothing changed, if the grammar does not allow it here."""

    def fill(self, row: numpy.ndarray[tuple[int], numpy.dtype[numpy.int32]]) -> None:
        """Write the tokens allowed next: bit ``token % 32`` of ``row[token // 32]`` is 1 for an allowed one.

        Args:
            row: [ceil(V / 32)] int32, as llguidance and xgrammar have it; every word is to be written. Bits from V on
                mean nothing.
        """

    def fork(self) -> GrammarMatcher:
        """A matcher that stands where this one does and goes its own way."""


class GrammarProvider(Protocol):
    """Compiles grammars. It may be called by several threads, and keeps its own cache, of bounded size, if any."""

    def compile(self, guided: Guided, vocabulary: GrammarVocabulary) -> GrammarMatcher:
        """A matcher at the grammar's start.

        Raises:
            ValueError: the grammar is not valid or too large; its text becomes the request's refusal.
        """


@dataclass(frozen=True, kw_only=True)
class Command:
    """``bestiary NAME``: the line for ``--help`` and a typer app or function, imported when called."""

    name: str
    help: str
    app: str


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Where ranks run: in this process, in spawned ones, on other machines."""

    name: str
    run: str


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # The pydantic classes are here for plugins' config.py; a plugin.py that needs only descriptors pays nothing.
        if name in ("ModelConfig", "Rope"):
            from bestiary.core import config

            return getattr(config, name)
        if name == "GroupedQueryConfig":
            from bestiary.core import grouped_query

            return grouped_query.GroupedQueryConfig
        raise AttributeError(f"module 'bestiary.spec' has no attribute {name!r}")
