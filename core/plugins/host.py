"""The plugin host: an object, so that several engines with different plugins live in one process."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from packaging.utils import canonicalize_name

from bestiary.core.errors import PluginError
from bestiary.core.plugins import loading, lockfile, select
from bestiary.core.plugins.discover import Candidate
from bestiary.core.plugins.fallback import causal_there, stands_in
from bestiary.core.plugins.kinds import ANY
from bestiary.core.plugins.records import Conflict, Origin, PluginRecord, clause
from bestiary.core.plugins.registry import Registry
from bestiary.core.plugins.requirements import api_range
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

log = logging.getLogger("bestiary.plugins")
D = TypeVar("D")


class PluginHost:
    """What the loaded plugins registered, by name. Made by :meth:`load`; not changed afterwards.

    Attributes:
        locked: it was held to a lock, and an engine is to be held to its own.
    """

    def __init__(self, prefer: Mapping[str, str] | None = None) -> None:
        self.locked = False
        self._registry = Registry(prefer or {})
        self._records: list[PluginRecord] = []
        self._references: list[str] = []

    @classmethod
    def load(
        cls,
        *,
        plugins: Sequence[str | ModuleType | object] = (),
        strict: bool = False,
        prefer: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
        locked: Path | None = None,
    ) -> PluginHost:
        """Find and load plugins: what is installed and allowed by ``BESTIARY_PLUGINS``, and ``plugins``.

        Args:
            plugins: modules, dotted names of modules, or objects with hooks, that are loaded without being installed.
            strict: raise for any plugin that is broken or refused, instead of when something needs it.
            prefer: name → distribution that has it, where several plugins claim it.
            only: another host's :meth:`plugin_names`: load exactly these and the SDK's own, all of them or raise.
            locked: a file that ``bestiary lock`` wrote; anything else than what it lists, to the byte, is refused before
                it is imported. By default ``BESTIARY_LOCKED``, which is not looked at with ``only``.

        Raises:
            PluginError: one of ``plugins`` or ``only`` can't be loaded; an allowed name isn't installed; ``strict``; what
                would be loaded is not what is locked.
            MissingInputError, DataError: the lock is not there, or damaged.
            UsageError: a preference that decides nothing.
        """
        loading.refuse_reentry()
        host, choice = cls(prefer), select.choose(plugins, prefer or {}, only)
        # A child process loads what its parent was allowed to.
        file = locked or (lockfile.from_environment() if only is None else None)
        if file is not None:
            lockfile.refuse_drift(file, (*choice.chosen, *choice.demanded))
            host.locked = True
        host._records = list(choice.records)
        for candidate in choice.chosen:
            host._load(candidate, raising=strict)
        for candidate in choice.demanded:
            host._demand(candidate)
        if strict:
            host._raise_first_failure()
        # One may also be for a whole plugin (two distributions, one entry-point name): it was used while sifting.
        host._registry.check_preferences(prefer or {}, [record.origin for record in host._records])
        return host

    def _load(self, candidate: Candidate, *, raising: bool) -> None:
        origin, module, notes = candidate.origin, candidate.module, candidate.notes
        requires = api_range(candidate.distribution) if candidate.distribution else ""
        for note in notes:
            log.warning("%s", note)
        # Not to get a turn is no fault of this plugin's, so that is raised in any case.
        with loading.turn.of(candidate):
            began = time.perf_counter()
            try:
                staged = loading.load(candidate)
            except PluginError as error:
                if raising:
                    raise
                log.info("%s", error)
                took = time.perf_counter() - began
                broken = PluginRecord(origin, module, "broken", clause(error), notes, {}, error, requires, took)
                self._records.append(broken)
                return
        provides, took = self._registry.commit(origin, staged), time.perf_counter() - began
        self._records.append(PluginRecord(origin, module, "loaded", "", notes, provides, None, requires, took))
        self._references.append(candidate.reference)

    def _demand(self, candidate: Candidate) -> None:
        """Load a plugin that was asked for by name: whatever is wrong with it is raised now."""
        if (problem := select.inadmissible(candidate)) is not None:
            raise problem
        self._records = [one for one in self._records if one.origin != candidate.origin]
        self._load(candidate, raising=True)

    def _raise_first_failure(self) -> None:
        for record in self.failures():
            if record.error is not None:
                raise record.error

    def model(self, name: str) -> Model:
        """The model family of this name, as in a checkpoint's manifest."""
        return self._model("model", name, f"model {name!r}", name)

    def model_for_architecture(self, architecture: str, *, model_type: str | None = None) -> Model:
        """The model family that serves a name in ``config.json``'s ``architectures``.

        Args:
            model_type: the config's ``model_type``; the hint says what a plugin for it may be called.

        Where no plugin claims it, a fallback that can stand in is the answer.

        Raises:
            PluginError: no plugin has it (the hint lists those installed), or several do.
        """
        advice = self._advice(model_type or re.sub(r"For[A-Z]\w*$", "", architecture).lower())
        if self._registry.find("architecture", architecture) is None:
            fallback: Model | None = self._registry.find("fallback", ANY)
            if fallback is not None:
                if (reason := stands_in(fallback, architecture, model_type)) is None:
                    for one in self.failures():
                        log.warning("%s might serve %s, but: %s", one.origin, architecture, one.reason)
                    return fallback
                advice += f"; the fallback {fallback.name} can't stand in: {reason}"
            elif (causal := causal_there(architecture, model_type)) is False:
                advice += "; transformers knows it, but not as a causal language model, and bestiary runs no others"
            elif causal:
                how = self._installed("bestiary-transformers") or "pip install bestiary-transformers"
                advice += f"; transformers knows it, and would run it slowly: {how}"
        return self._need(Model, "architecture", architecture, advice, subject="config.json, field architectures")

    def model_for_gguf(self, architecture: str, *, experts: bool = False) -> Model:
        """The model family that serves a GGUF file's ``general.architecture``.

        Args:
            experts: the file's ``expert_count`` is above 0; a family that names the architecture with ``+experts`` comes first.
        """
        mixed = f"{architecture}+experts"
        name = mixed if experts and mixed in self._registry.names("gguf architecture") else architecture
        return self._model("gguf architecture", name, "key general.architecture", architecture)

    def _model(self, what: str, name: str, subject: str, family: str) -> Model:
        return self._need(Model, what, name, self._advice(family), subject=subject)

    def _advice(self, family: str) -> str:
        """How to get a family. The name comes from a foreign file: nobody knows that such a distribution exists."""
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", family):
            return "look for a plugin that has it"
        # One distribution may have a family's generations and sizes, such as bestiary-family for family2_moe.
        stem = re.match(r"[A-Za-z]*", family)
        names = dict.fromkeys((family, stem[0] if stem and stem[0] else family))
        packages = [f"bestiary-{name.replace('_', '-')}" for name in names]
        for package in packages:
            if (here := self._installed(package)) is not None:
                return here
        return f"look for a plugin that has it; if there is one, it may be called {' or '.join(packages)}"

    def _installed(self, package: str) -> str | None:
        """What to do about a distribution that is here and lacks what is looked for; None where it is not here."""
        for record in self._records:
            if record.origin.distribution == canonicalize_name(package):
                have = f"{package} {record.origin.version} is installed"
                if record.state != "loaded":
                    return f"{have} and not loaded: {record.reason}"
                upgrade = f"pip install --upgrade {package}"
                return f"{have} and does not have it: look for a newer one ({upgrade}) or for another plugin"
        return None

    def op(self, name: str) -> Op:
        """The op of this name."""
        return self._need(Op, "op", name)

    def kernel(self, op: str, name: str) -> Kernel:
        """The implementation of ``op`` that people choose as ``--kernel op=name``."""
        return self._need(Kernel, "kernel", f"{op}:{name}")

    def command(self, name: str) -> Command:
        """The subcommand of this name."""
        return self._need(Command, "command", name)

    def models(self) -> tuple[Model, ...]:
        """All model families that can be reached by a name."""
        return self._all(Model, strict=False)

    def ops(self) -> tuple[Op, ...]:
        """All ops; those claimed twice are left out until ``prefer`` decides."""
        return self._all(Op, strict=False)

    def kernels(self, op: str | None = None) -> tuple[Kernel, ...]:
        """All implementations, or those of one op.

        Raises:
            PluginError: with ``op``: two distributions claim one of its kernel names.
        """
        if op is None:
            return self._all(Kernel, strict=False)
        names = [name for name in self._registry.names("kernel") if name.rpartition(":")[0] == op]
        return tuple(self._need(Kernel, "kernel", name) for name in names)

    def commands(self) -> tuple[Command, ...]:
        """All subcommands, by name; those claimed twice are left out until ``prefer`` decides."""
        return tuple(sorted(self._all(Command, strict=False), key=lambda command: command.name))

    def fusions(self) -> tuple[Fusion, ...]:
        """All fusions. Raises PluginError where a name is claimed twice, as do the lists below."""
        return self._all(Fusion)

    def quantizations(self) -> tuple[Quantization, ...]:
        """All quantization methods."""
        return self._all(Quantization)

    def readers(self) -> tuple[Reader, ...]:
        """All readers of foreign checkpoints."""
        return self._all(Reader)

    def logits_processors(self) -> tuple[LogitsProcessor, ...]:
        """All logits processors."""
        return self._all(LogitsProcessor)

    def grammars(self) -> tuple[Grammar, ...]:
        """All guided-decoding backends."""
        return self._all(Grammar)

    def executors(self) -> tuple[Executor, ...]:
        """All executors."""
        return self._all(Executor)

    def origin(self, descriptor: object) -> Origin:
        """Who registered this descriptor."""
        return self._registry.origin(descriptor)

    def lock(self, kinds: Collection[str] | None = None) -> dict[str, str]:
        """Distribution → version of every loaded plugin, sorted.

        Args:
            kinds: leave out those that provide nothing of these kinds: ``model``, ``op``, ``kernel``, …
        """
        loaded = [record for record in self._records if record.state == "loaded"]
        wanted = [one.origin for one in loaded if kinds is None or any(kind in one.provides for kind in kinds)]
        return dict(sorted((origin.distribution, origin.version) for origin in wanted))

    def plugin_names(self) -> tuple[str, ...]:
        """What a child process passes as ``only`` to load exactly these plugins: entry points, ``module:…``."""
        return tuple(self._references)

    def preferences(self) -> dict[str, str]:
        """What a child process passes as ``prefer`` to decide conflicts as they are decided here."""
        return dict(self._registry.prefer)

    def records(self) -> tuple[PluginRecord, ...]:
        """What became of each plugin, by name."""
        return tuple(sorted(self._records, key=lambda record: (record.origin.plugin, record.origin.distribution)))

    def conflicts(self) -> tuple[Conflict, ...]:
        """Names that several loaded plugins claim, decided or not."""
        return self._registry.conflicts()

    def failures(self) -> tuple[PluginRecord, ...]:
        """The plugins that are broken or refused."""
        return tuple(record for record in self.records() if record.state in ("broken", "refused"))

    def _all(self, kind: type[D], *, strict: bool = True) -> tuple[D, ...]:
        return self._registry.all(kind, strict=strict)

    def _need(self, kind: type[D], what: str, name: str, hint: str = "", *, subject: str = "") -> D:
        found = self._registry.find(what, name)
        if isinstance(found, kind):
            return found
        failed = self.failures()
        advice = [hint] if hint else []
        known = ", ".join(self._registry.names(what)) or "none"
        advice += [f"plugin {one.origin.plugin} ({one.origin}) might, but: {one.reason}" for one in failed]
        code = "E-PLG-" + what.upper().replace(" ", "-")
        error = PluginError(
            code,
            subject or f"{what} {name!r}",
            "no loaded plugin provides it",
            found=repr(name)[:80] if subject else None,
            expected=f"an installed {what} ({known})",
            hint="; ".join(advice),
        )
        raise error from (failed[0].error if failed else None)
