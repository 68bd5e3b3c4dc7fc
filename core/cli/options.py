"""Options that several commands share, each set a dataclass, spread into a command's own signature."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.core.cli.session import pairs
from bestiary.core.errors import UsageError, printable

if TYPE_CHECKING:
    from bestiary import BeamSearchParams, SamplingParams
    from bestiary.core.engine.options import BuildOptions

Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as JSON.")]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        metavar="BYTES|GiB", help="Most memory for this process, such as 4GiB; the KV cache gets what is left."
    ),
]
Tokenizer = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Directory with the tokenizer.json to use instead of the model's.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists, once the new one is complete.")]


def _option(*names: str, panel: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar)


def _build(*names: str, help: str, metavar: str | None = None) -> Any:
    return _option(*names, panel="Build", help=help, metavar=metavar)


def _sampling(*names: str, help: str, metavar: str | None = None) -> Any:
    return _option(*names, panel="Sampling", help=help, metavar=metavar)


KvDtype = Annotated[
    str | None, _build(help="Dtype of the KV cache: auto, float32, bfloat16, float16, int8, fp8, int4.")
]
Quantize = Annotated[
    str | None,
    _build(
        "--quantize",
        metavar="RULES",
        help="Which quantization method weights get, such as 'int4:group=64, lm_head=int8'.",
    ),
]


@dataclass(frozen=True)
class Building:
    """How an engine is built; what isn't said is left to ``BuildOptions``."""

    device: Annotated[str | None, _build(help="auto, cpu or cuda.")] = None
    dtype: Annotated[str | None, _build(help="Compute dtype: auto, float32, bfloat16, float16.")] = None
    kv_dtype: KvDtype = None
    max_batch_size: Annotated[int | None, _build(help="Most requests in one step.")] = None
    max_seq_len: Annotated[int | None, _build(help="Most tokens of one request, prompt and answer.")] = None
    max_num_tokens: Annotated[int | None, _build(help="Most tokens in one step.")] = None
    block_size: Annotated[int | None, _build(help="Tokens in one KV block.")] = None
    tensor_parallel: Annotated[int | None, _build("--tensor-parallel", "--tp", help="Ranks that share each layer.")] = (
        None
    )
    pipeline_parallel: Annotated[
        int | None, _build("--pipeline-parallel", "--pp", help="Stages that the layers are divided among.")
    ] = None
    quantization: Quantize = None
    deterministic: Annotated[
        bool | None, _build("--deterministic", help="Answers that don't depend on what else runs; slower.")
    ] = None
    graphs: Annotated[
        bool | None, _build("--graphs/--no-graphs", help="Record steps that only decode, on devices that can.")
    ] = None
    kernel: Annotated[
        list[str] | None, _build(help="Use this kernel for an op (* for all); repeatable.", metavar="OP=NAME")
    ] = None

    def options(self) -> BuildOptions:
        """What was said, as build options."""
        from bestiary.core.engine.options import BuildOptions

        return BuildOptions(**self.said())

    def at_load(self) -> dict[str, Any]:
        """Of the options that were given, those that an engine takes when it is loaded."""
        from bestiary.core.engine.options import AT_LOAD

        return {name: value for name, value in self.said().items() if name in AT_LOAD}

    def said(self) -> dict[str, Any]:
        """The options that were given, by their names in ``BuildOptions``."""
        said = {name: value for name, value in vars(self).items() if name != "kernel" and value not in (None, "auto")}
        return {**said, "kernels": pairs("--kernel", self.kernel, "OP=NAME")} if self.kernel else said


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; what isn't said is left to the model's generation_config."""

    max_tokens: Annotated[int, _sampling("-n", "--max-tokens", help="Most tokens of an answer.")] = 512
    temperature: Annotated[float | None, _sampling("-t", "--temperature", help="0 takes the likeliest token.")] = None
    top_k: Annotated[int | None, _sampling(help="Keep the k likeliest tokens.")] = None
    top_p: Annotated[float | None, _sampling(help="Keep the likeliest tokens up to this probability.")] = None
    min_p: Annotated[float | None, _sampling(help="Keep tokens this likely, relative to the likeliest.")] = None
    repetition_penalty: Annotated[float | None, _sampling(help="Above 1 discourages all earlier tokens.")] = None
    presence_penalty: Annotated[float | None, _sampling(help="Subtracted for answer tokens seen.")] = None
    frequency_penalty: Annotated[float | None, _sampling(help="Subtracted for each time seen.")] = None
    seed: Annotated[int | None, _sampling(help="The same seed gives the same answer.")] = None
    min_tokens: Annotated[int | None, _sampling(help="Don't end before this many tokens.")] = None
    stop: Annotated[list[str] | None, _sampling(help="End at this text; repeatable.")] = None
    ignore_eos: Annotated[bool, _sampling("--ignore-eos", help="Go on after the model's end token.")] = False

    def params(self) -> SamplingParams:
        """What was said, as sampling parameters."""
        from bestiary import SamplingParams

        return SamplingParams(**{name: value for name, value in vars(self).items() if value is not None})

    def beams(self, width: int) -> BeamSearchParams:
        """What was said, for a beam search.

        Raises:
            UsageError: an option that only sampling knows.
        """
        from bestiary import BeamSearchParams

        fields = {field.name: field.default for field in dataclasses.fields(self)}
        known = ("max_tokens", "ignore_eos")
        others = [n for n, default in fields.items() if n not in known and getattr(self, n) != default]
        if others:
            found = ", ".join("--" + name.replace("_", "-") for name in others)
            raise UsageError("E-CLI-BEAMS", "--beam-width", "a beam search draws nothing", found=found)
        return BeamSearchParams(beam_width=width, max_tokens=self.max_tokens, ignore_eos=self.ignore_eos)


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Replace parameters that are option sets by the options in them, in the signature that typer reads."""
    hints = typing.get_type_hints(command, include_extras=True)
    sets = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in sets:
            parameters += _parameters(sets[parameter.name])
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=kind))

    @functools.wraps(command)
    def gathered(**values: Any) -> None:
        for name, kind in sets.items():
            taken = {field.name: values.pop(field.name) for field in dataclasses.fields(typing.cast(Any, kind))}
            values[name] = typing.cast(Any, kind)(**taken)
        command(**values)

    # What typer reads; functools.wraps pointed both at the function as it was written.
    surface = typing.cast(Any, gathered)
    surface.__signature__ = inspect.Signature(parameters)
    surface.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del surface.__wrapped__
    return gathered


def _parameters(kind: Any) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(kind)
    ]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    from bestiary.core.checkpoint.files import finite

    print(printable(json.dumps(finite(value), indent=2, default=str, ensure_ascii=False, allow_nan=False)))
