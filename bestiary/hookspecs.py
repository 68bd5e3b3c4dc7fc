"""Every way into bestiary. A plugin module holds ``@hookimpl`` functions and imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

import pluggy

from bestiary.spec import (
    Command,
    Executor,
    Fusion,
    Grammar,
    Kernel,
    LogitsProcessor,
    Model,
    Op,
    Quantization,
    Reader,
)

__all__ = [
    "bestiary_register_commands",
    "bestiary_register_executors",
    "bestiary_register_fusions",
    "bestiary_register_grammars",
    "bestiary_register_kernels",
    "bestiary_register_logits_processors",
    "bestiary_register_models",
    "bestiary_register_ops",
    "bestiary_register_quantizations",
    "bestiary_register_readers",
]

hookspec = pluggy.HookspecMarker("bestiary")


@hookspec
def bestiary_register_models(register: Callable[[Model], None]) -> None:
    """Model families: config, module, weight maps."""


@hookspec
def bestiary_register_ops(register: Callable[[Op], None]) -> None:
    """New operations ``plugin::op``: signature, torch reference, inputs, tolerances. The core's own come this way too."""


@hookspec
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    """Implementations of any op, the core's or a plugin's."""


@hookspec
def bestiary_register_fusions(register: Callable[[Fusion], None]) -> None:
    """Patterns of ops that one op replaces."""


@hookspec
def bestiary_register_quantizations(register: Callable[[Quantization], None]) -> None:
    """Quantization methods: options, stored tensors, quantizer, use in ops, slices, stated bound."""


@hookspec
def bestiary_register_readers(register: Callable[[Reader], None]) -> None:
    """Foreign checkpoints: sniff a path, read headers, read tensors."""


@hookspec
def bestiary_register_logits_processors(register: Callable[[LogitsProcessor], None]) -> None:
    """Named functions over a request's logits, called in the order in which the request names them."""


@hookspec
def bestiary_register_grammars(register: Callable[[Grammar], None]) -> None:
    """Guided-decoding backends: compile a grammar, tell the tokens allowed next."""


@hookspec
def bestiary_register_commands(register: Callable[[Command], None]) -> None:
    """Subcommands of ``bestiary``; imported when called, so that ``--help`` stays fast."""


@hookspec
def bestiary_register_executors(register: Callable[[Executor], None]) -> None:
    """Where an engine's ranks run."""
