"""Plugins' kernels, run once in a process of their own before a build runs them in its: a crash there is an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pickle import PicklingError
from typing import Any

import torch
from torch import Tensor

from bestiary.core import device as devices
from bestiary.core.errors import ConfigError
from bestiary.core.isolated import Died, Isolated
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.plugins import PluginHost, resolve
from bestiary.core.plugins.discover import SDK
from bestiary.core.program.calls import load_kernel, load_op
from bestiary.core.runtime.ranks import check_importable
from bestiary.spec import Kernel

log = logging.getLogger("bestiary.plan")

#: Seconds without a sign of life: compilers of kernels need some.
_TIMEOUT = 300.0


@dataclass(frozen=True)
class Filled:
    """A floating tensor to be made where it is needed: a model's weights and caches are not sent."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self, device: torch.device) -> Tensor:
        """Some finite number everywhere."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device).fill_(0.5)


@dataclass(frozen=True)
class TrialRun:
    """A call for the child to make, and the plugins that it loads; ``constants`` are what the kernel may pack."""

    plugins: tuple[str, ...]
    prefer: tuple[tuple[str, str], ...]
    op: str
    kernel: str
    device: str
    args: tuple[Any, ...]
    outs: tuple[Filled, ...]
    constants: tuple[str, ...]


class Probe:
    """Trial runs of plugins' kernels in a child process; the SDK's own need none.

    Args:
        host: whose plugins the child loads. Without a child, because a plugin is no module that it could import, nothing is
            tried, and the log says so.
    """

    def __init__(self, host: PluginHost) -> None:
        self._host = host
        self._child = Isolated(f"{__name__}:serve", timeout=_TIMEOUT)
        self._crashed: dict[tuple[str, str], str] = {}
        self._possible = True

    def concerns(self, kernel: Kernel) -> bool:
        """Whether a kernel is a plugin's."""
        return self._host.origin(kernel).distribution != SDK

    def crash(
        self,
        kernel: Kernel,
        device: torch.device,
        args: Mapping[str, Any],
        outs: Sequence[Tensor],
        constants: Sequence[str],
    ) -> str | None:
        """Why a build must not run a kernel, as a clause; None where its process lived, whatever the kernel made.

        Args:
            args: the call's, by parameter.
            outs: tensors that look like its results.
            constants: names of the arguments that are a model's weights.
        """
        key = kernel.op, kernel.name
        if key in self._crashed or not self._loadable():
            return self._crashed.get(key)
        run = TrialRun(
            self._host.plugin_names(),
            tuple(self._host.preferences().items()),
            kernel.op,
            kernel.name,
            str(device),
            tuple(_sent(arg) for arg in args.values()),
            tuple(Filled(tuple(out.shape), out.stride(), out.dtype) for out in outs),
            tuple(constants),
        )
        try:
            self._child.run(run)
        except (PicklingError, TypeError, AttributeError) as error:
            log.warning("kernel %s=%s is not tried in a process of its own, its call can't be sent: %s", *key, error)
        except Died as death:
            origin, words = self._host.origin(kernel), "\n    ".join(death.last_words)
            log.warning("kernel %s=%s (%s) is not used, its trial run %s\n    %s", *key, origin, death.how, words)
            self._crashed[key] = f"its trial run {death.how}"
        return self._crashed.get(key)

    def close(self) -> None:
        """End the child."""
        self._child.close()

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _loadable(self) -> bool:
        if self._possible:
            try:
                check_importable(self._host.plugin_names())
            except ConfigError as error:
                log.warning("kernels are not tried in a process of their own: %s is %s", error.subject, error.found)
                self._possible = False
        return self._possible


def serve(run: TrialRun, say: Callable[[str], None]) -> None:
    """In the child: make the call. What the kernel raises is left to the build, which makes the same call."""
    host = _host(run.plugins, run.prefer)
    op, kernel, device = load_op(run.op, host), host.kernel(run.op, run.kernel), torch.device(run.device)
    named = dict(zip(op.parameters, (_made(arg, device) for arg in run.args), strict=True))
    outs = tuple(out.make(device) for out in run.outs)
    keywords = {"out": outs[0] if len(outs) == 1 else outs} if outs else {}
    try:
        _call(op, kernel, named, run.constants, keywords)
        devices.synchronize(device)
    except Exception:
        devices.synchronize(device)  # raises where the device is lost


def _call(
    op: OpDeclaration[..., Any],
    kernel: Kernel,
    named: dict[str, Any],
    constants: Sequence[str],
    keywords: Mapping[str, Any],
) -> None:
    function = load_kernel(kernel, op)
    if kernel.pack is not None:
        pack = resolve(kernel.pack, needed_by=f"kernel {kernel.op}={kernel.name}")
        named |= pack({name: named[name] for name in constants})
    with torch.no_grad():
        function(*named.values(), **keywords)


def _sent(arg: Any) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    # Integers say where things lie, so they are sent as they are.
    return Filled(tuple(arg.shape), arg.stride(), arg.dtype) if arg.is_floating_point() else arg.cpu()


def _made(arg: Any, device: torch.device) -> Any:
    return arg.make(device) if isinstance(arg, Filled) else arg.to(device) if isinstance(arg, Tensor) else arg


@lru_cache(maxsize=1)
def _host(plugins: tuple[str, ...], prefer: tuple[tuple[str, str], ...]) -> PluginHost:
    return PluginHost.load(only=plugins, prefer=dict(prefer))
