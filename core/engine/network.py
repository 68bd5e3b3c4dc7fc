"""From a model family and a config to a rank's step program: trace, shard, taps, cut, merge, quantize, fuse."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bestiary.core import device as devices
from bestiary.core.config import ModelConfig
from bestiary.core.engine.fallback import check_fallback
from bestiary.core.engine.options import DEFAULT_SEQ_LEN, BuildOptions
from bestiary.core.errors import ConfigError
from bestiary.core.kv_format import KINDS
from bestiary.core.ops.collective import UNDIVIDED, Place
from bestiary.core.ops.kv_blocks import CacheDtype
from bestiary.core.plugins import PluginHost, resolve
from bestiary.core.program.bind import Target, check_overrides
from bestiary.core.program.caches import check_caches
from bestiary.core.program.calls import candidates, describe, load_op
from bestiary.core.program.deterministic import check_calls
from bestiary.core.program.passes.cut import cut
from bestiary.core.program.passes.fuse import fuse, pattern_of
from bestiary.core.program.passes.merge import merge_linears
from bestiary.core.program.passes.quantize import Quantizer
from bestiary.core.program.passes.quantize_cache import quantize_cache
from bestiary.core.program.passes.shard import shard
from bestiary.core.program.passes.taps import insert_taps
from bestiary.core.program.program import Program, Value
from bestiary.core.program.shapes import Geometry, Shape, Sizes, accepts, infer
from bestiary.core.program.trace import trace
from bestiary.core.quant.choose import Methods, check_rules
from bestiary.core.runtime.inputs import table_width
from bestiary.spec import Model

#: Rows of logits in a step beyond one a sequence: for prompt log-probabilities, which a vocabulary makes large.
PROMPT_ROWS = 256


@dataclass(frozen=True)
class Network:
    """A program with the shapes of its values and what it was made for."""

    module: nn.Module
    program: Program
    shapes: dict[Value, Shape]
    geometry: Geometry
    target: Target
    limits: Sizes
    max_seq_len: int
    vocab_size: int
    fusions: dict[str, int]


def make_module(model: Model, config: ModelConfig) -> nn.Module:
    """The family's module with its parameters on the meta device: names and shapes only."""
    return _on_meta(resolve(model.model, needed_by=f"model {model.name}"), config)


def _on_meta(make: Callable[[Any], nn.Module], config: ModelConfig) -> nn.Module:
    with torch.device("meta"):
        return make(config)


def make_network(
    model: Model,
    config: ModelConfig,
    options: BuildOptions,
    *,
    checkpoint_dtype: str,
    host: PluginHost,
    place: Place = UNDIVIDED,
    taps: Sequence[str] = (),
    without_fusions: Collection[str] = (),
    kv_scales: Collection[str] = (),
    methods: Methods | None = None,
) -> Network:
    """Trace the model and run the passes over it.

    Args:
        methods: the quantization method of each quantized parameter.
        taps: names of tensors to keep as outputs, whatever fusions would do to them.
        without_fusions: names of fusions not to apply, ``*`` for none.
        kv_scales: the paths of caches that the checkpoint has calibrated scales of this kv_dtype for.

    Raises:
        ConfigError: the options ask for what the model, the device or the plugins don't have.
        PluginError: the model can't be traced, or a fusion's reference is no pattern.
    """
    check_options(options, host)
    check_fallback(model, options)
    owner = f"model {model.name} ({host.origin(model)})"
    return make_network_of(
        resolve(model.model, needed_by=f"model {model.name}"), config, options,
        owner=owner, checkpoint_dtype=checkpoint_dtype, host=host, place=place, taps=taps,
        without_fusions=without_fusions, methods=methods, kv_scales=kv_scales,
    )  # fmt: skip


def make_network_of(
    make: Callable[[Any], nn.Module],
    config: ModelConfig,
    options: BuildOptions,
    *,
    owner: str,
    checkpoint_dtype: str,
    host: PluginHost,
    place: Place = UNDIVIDED,
    taps: Sequence[str] = (),
    without_fusions: Collection[str] = (),
    kv_scales: Collection[str] = (),
    methods: Methods | None = None,
) -> Network:
    """The same of what makes a module from its config; ``owner`` is who errors name."""
    device = devices.choose(options.device)
    dtype = getattr(torch, checkpoint_dtype if options.dtype == "auto" else options.dtype)
    target = Target(device, devices.features(device), dtype, options.deterministic)
    max_seq_len = _max_seq_len(options, config)
    geometry = Geometry(
        dtype, _kv_dtype(options, dtype), options.block_size, table_width(max_seq_len, options.block_size)
    )
    module = _on_meta(make, config)
    program = trace(module)
    shard(program, module, place.tensor)
    if isinstance(geometry.kv_dtype, str):
        # Heads are looked at while caches have them.
        check_caches(program, infer(program, replace(geometry, kv_dtype=dtype)), owner)
        quantize_cache(program, geometry.kv_dtype, geometry.block_size, place.tensor, kv_scales, host)
    insert_taps(program, taps)
    cut(program, module, place.stage, geometry)
    shapes_of = {name: tuple(p.shape) for name, p in module.named_parameters()}
    quantizer = Quantizer(methods or {}, shapes_of, dtype, device.type)
    merge_linears(program, quantizer.form)
    quantizer.run(program)
    fusions = _fuse(program, geometry, target, host, without_fusions)
    sequences = min(options.max_batch_size, options.max_num_tokens)
    limits = Sizes(options.max_num_tokens, sequences, sequences + PROMPT_ROWS)
    shapes = infer(program, geometry)
    check_caches(program, shapes, owner)
    if options.deterministic:
        check_calls(program, shapes)
    return Network(module, program, shapes, geometry, target, limits, max_seq_len, config.vocab_size, fusions)


def _fuse(
    program: Program, geometry: Geometry, target: Target, host: PluginHost, without: Collection[str]
) -> dict[str, int]:
    """Apply every registered fusion, the longest patterns first, where a kernel can run the fused op."""
    wanted_ones = [fusion for fusion in host.fusions() if not {fusion.name, "*"} & set(without)]
    patterns = [(fusion.name, pattern_of(load_op(fusion.op, host))) for fusion in wanted_ones]
    applied = {}
    for name, pattern in sorted(patterns, key=lambda item: -len(item[1].ops)):
        shapes = infer(program, geometry)

        def wanted(args: tuple[object, ...], pattern=pattern, shapes=shapes) -> bool:  # type: ignore[no-untyped-def]
            if not accepts(pattern.fused, args, shapes):
                return False
            call = describe(pattern.fused, args, shapes, target.dtype, target.device, target.features)
            return bool(candidates(call, host, invariant=target.deterministic)[0])

        applied[name] = fuse(program, pattern, wanted)
    return applied


def _kv_dtype(options: BuildOptions, dtype: torch.dtype) -> CacheDtype:
    if options.kv_dtype in KINDS:
        return options.kv_dtype
    found: torch.dtype = dtype if options.kv_dtype == "auto" else getattr(torch, options.kv_dtype)
    return found


def _max_seq_len(options: BuildOptions, config: ModelConfig) -> int:
    longest = config.max_length
    if options.max_seq_len is None:
        return min(longest, DEFAULT_SEQ_LEN)
    if options.max_seq_len > longest:
        raise ConfigError(
            "E-BUILD-OPTION",
            "max_seq_len",
            "is longer than the model was made for",
            found=str(options.max_seq_len),
            expected=f"at most {longest} tokens (max_position_embeddings, times the factor of a linear or dynamic rope)",
        )
    return options.max_seq_len


def check_options(options: BuildOptions, host: PluginHost) -> None:
    """Refuse kernels and quantization methods that nobody registered or the mode forbids; knows no model yet.

    Raises:
        ConfigError: with the ops, kernels or methods there are.
    """
    check_overrides(options.kernels, host, deterministic=options.deterministic)
    if options.quantization is not None:
        check_rules(options.quantization, host)
