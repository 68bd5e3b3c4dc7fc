"""One call of ``bestiary bench``: targets opened, loads run, a report made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.core.bench.engine_target import EngineTarget
from bestiary.core.bench.environment import environment
from bestiary.core.bench.measure import Measurer, Point, Run
from bestiary.core.bench.reports import BenchReport, report
from bestiary.core.bench.slo import Slo
from bestiary.core.bench.target import Target
from bestiary.core.bench.url_target import Api, UrlTarget, is_url
from bestiary.core.progress import Progress
from bestiary.core.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bestiary.core.llm import LLM
    from bestiary.core.plugins import PluginHost

#: Opens a model with options of ``LLM``; it closes at the end.
OpenLLM = Callable[[str, dict[str, Any]], AbstractContextManager["LLM"]]

# Two engines in one process share what is free: the second finds what the first has left.
_SHARES = (0.45, 0.8)


class Named(NamedTuple):
    """A target as the command line names it, with options of ``LLM`` for an engine."""

    target: str
    options: dict[str, Any]


class Server(NamedTuple):
    """How URLs are asked."""

    api: Api = "completions"
    model: str | None = None
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be measured.

    Args:
        named: one target, or two that are compared.
        tokenizer: directory of the tokenizer for URLs, and for engines in place of their own.
        command: the command line, for the report.
    """

    named: Sequence[Named]
    server: Server
    tokenizer: Path | None
    repeats: int
    warmup: int
    seed: int
    timeout: float
    slo: Slo | None
    command: Sequence[str]

    def run(
        self,
        kind: type[BenchReport],
        points: Callable[[Sequence[Target]], list[Point]],
        *,
        open_llm: OpenLLM,
        host: Callable[[], PluginHost],
        progress: Progress,
    ) -> tuple[BenchReport, list[Run]]:
        """Measure.

        Args:
            points: the loads, for the open targets.
            host: the plugins; asked for only where an engine runs.

        Raises:
            BestiaryError: a target can't be opened, or a load makes no sense for it.
        """
        began = datetime.now(UTC).isoformat(timespec="seconds")
        with ExitStack() as stack:
            targets = self._open(stack, open_llm)
            measurer = Measurer(targets, self.repeats, self.warmup, self.timeout, self.slo, progress)
            runs = measurer.run(points(targets))
            engines = any(target.about.kind == "engine" for target in targets)
            made = report(
                kind,
                runs,
                targets,
                self.slo,
                command=list(self.command),
                began=began,
                seed=self.seed,
                repeats=self.repeats,
                warmup=self.warmup,
                environment=environment(host() if engines else None),
            )
        return made, runs

    def _open(self, stack: ExitStack, open_llm: OpenLLM) -> list[Target]:
        found: list[Target] = []
        tokenizer = None if self.tokenizer is None else Tokenizer.load(self.tokenizer)
        engines = sum(not is_url(one.target) for one in self.named)
        for name, (target, options) in zip(self._names(), self.named, strict=True):
            if is_url(target):
                server = self.server
                found.append(
                    UrlTarget(
                        target, api=server.api, model=server.model, key=server.key, tokenizer=tokenizer, name=name
                    )
                )
                continue
            share = {"kv_cache_memory": _SHARES[len(found)]} if engines > 1 else {}
            own = {"tokenizer": self.tokenizer} if self.tokenizer is not None else {}
            llm = stack.enter_context(open_llm(target, {**share, **own, **options}))
            found.append(EngineTarget(name, llm, options))
        return found

    def _names(self) -> list[str]:
        """A name for each target, unlike the others'."""
        names = [_name(one.target) for one in self.named]
        if len(set(names)) < len(names):
            names = [_with_options(name, one.options, self.named) for name, one in zip(names, self.named, strict=True)]
        if len(set(names)) < len(names):
            names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
        return names


def failed(runs: Sequence[Run]) -> list[Run]:
    """Runs of which nothing was answered."""
    return [run for run in runs if all(record.failed for record in run.records)]


def command_line() -> list[str]:
    """The arguments of this process."""
    return sys.argv[1:]


def _name(target: str) -> str:
    return target.partition("://")[2].partition("/")[0] if is_url(target) else Path(target).name or target


def _with_options(name: str, options: dict[str, Any], named: Sequence[Named]) -> str:
    """The name with those options that not all of the targets have."""
    own = [
        f"{key}={value}"
        for key, value in options.items()
        if not all(key in one.options and one.options[key] == value for one in named)
    ]
    return f"{name} [{', '.join(own)}]" if own else name
