"""What a person decides when an engine is built. No torch: the command line shows these too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bestiary.core.errors import ConfigError
from bestiary.core.kv_format import KINDS

#: What an engine that is already built can still be loaded with; the rest is fixed in it.
AT_LOAD = ("device", "kv_dtype", "max_batch_size", "max_seq_len", "kernels", "graphs", "quantization")

#: Longest sequence of an engine unless the user says otherwise: what most machines can hold several of.
DEFAULT_SEQ_LEN = 4096
#: Larger blocks would be of no use: a request wastes half of its last one.
_LONGEST_BLOCK = 1024
#: Of requests or tokens in a step: what no device holds is a slip of the finger.
_MOST = 2**20
_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of a build.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: of weights and activations; ``auto`` is the checkpoint's.
        kv_dtype: of the key-value cache; ``auto`` is ``dtype``'s. ``int8``, ``fp8`` and ``int4`` store codes and scales.
        max_batch_size: most requests that run at a time.
        max_seq_len: most tokens of a request, prompt and output; None: the model's, 4096 at most.
        max_num_tokens: most tokens in one step.
        block_size: tokens in a block of the cache, at most 1024.
        tensor_parallel: ranks that share each layer.
        pipeline_parallel: stages that the layers are divided among.
        quantization: rules of which method each module gets, ``"int4:group=64, lm_head=int8, *.down_proj=none"``.
        kernels: op → kernel that must run it (``*`` for every op that has it).
        graphs: run steps that only decode as recorded graphs, on devices that record them.
        deterministic: a request's tokens and log-probabilities depend on nothing but the request: each call is run by one
            batch-invariant kernel at all sizes.
    """

    device: str = "auto"
    dtype: str = "auto"
    kv_dtype: str = "auto"
    max_batch_size: int = 64
    max_seq_len: int | None = None
    max_num_tokens: int = 2048
    block_size: int = 16
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    quantization: str | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)
    deterministic: bool = False
    graphs: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_num_tokens", "block_size", "tensor_parallel", "pipeline_parallel"):
            _positive(name, getattr(self, name))
        limits = {"block_size": _LONGEST_BLOCK, "max_batch_size": _MOST, "max_num_tokens": _MOST}
        for name, most in limits.items():
            if getattr(self, name) > most:
                found, expected = str(getattr(self, name)), f"at most {most}"
                raise ConfigError("E-BUILD-OPTION", name, "is too large", found=found, expected=expected)
        if self.max_seq_len is not None:
            _positive("max_seq_len", self.max_seq_len)
        for name in ("deterministic", "graphs"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    "E-BUILD-OPTION",
                    name,
                    "is not a boolean",
                    found=repr(getattr(self, name)),
                    expected="True or False",
                )
        for name, known in (("dtype", _DTYPES), ("kv_dtype", (*_DTYPES, *KINDS))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    "E-BUILD-OPTION",
                    name,
                    "unknown dtype",
                    found=repr(getattr(self, name)),
                    expected=", ".join(known),
                )

    def as_dict(self) -> dict[str, Any]:
        """For ``engine.json``."""
        return asdict(self)


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError("E-BUILD-OPTION", name, "must be a positive integer", found=repr(value))
