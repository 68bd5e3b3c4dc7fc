"""The options of ``bestiary bench``, and what they say."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.core.cli.session import pairs
from bestiary.core.errors import OutputError, UsageError, shown

if TYPE_CHECKING:
    from bestiary.core.bench.job import Server
    from bestiary.core.bench.slo import Slo
    from bestiary.core.bench.workloads import Data

_TIMEOUT = 600.0  # seconds

# Arguments of LLM that the command line says in other ways.
_NOT_OPTIONS = ("self", "model", "plugins", "prefer", "strict_plugins", "lock", "progress", "tokenizer")

Target = Annotated[
    str,
    typer.Argument(metavar="ENGINE|URL", help="An engine or any other model, or a URL such as http://host:8000/v1."),
]
Requests = Annotated[int, typer.Option("-n", "--requests", metavar="N", help="Requests of each run.")]
Warmup = Annotated[int, typer.Option(metavar="N", help="Requests of each load that come first and are not counted.")]
Rates = Annotated[
    list[float] | None,
    typer.Option("--rate", metavar="R", help="Arrivals a second, a Poisson process; repeat for a sweep."),
]
Users = Annotated[
    list[int] | None,
    typer.Option(metavar="N", help="So many users at a time, who ask again at once; repeat for a sweep."),
]


def _option(*names: str, panel: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar)


def _target(*names: str, help: str, metavar: str | None = None) -> Any:
    return _option(*names, panel="Target", help=help, metavar=metavar)


def _data(*names: str, help: str, metavar: str | None = None) -> Any:
    return _option(*names, panel="Requests", help=help, metavar=metavar)


@dataclass(frozen=True)
class TargetOptions:
    """What is measured, and how it is opened."""

    compare: Annotated[
        str | None, _target(metavar="ENGINE|URL", help="Measure this one too, in turns, and say how they compare.")
    ] = None
    option: Annotated[
        list[str] | None, _target(metavar="NAME=VALUE", help="An argument of LLM for engines; repeatable.")
    ] = None
    compare_option: Annotated[
        list[str] | None, _target(metavar="NAME=VALUE", help="The same for the other engine, above --option.")
    ] = None
    tokenizer: Annotated[
        Path | None, _target(metavar="DIR", help="Directory with the model's tokenizer.json, for prompts of a URL.")
    ] = None
    model: Annotated[
        str | None, _target(metavar="NAME", help="What to ask a URL for; else the first model it lists.")
    ] = None
    api: Annotated[
        str | None, _target(metavar="completions|chat", help="Which API of a URL to use; completions unless said.")
    ] = None
    api_key_env: Annotated[
        str | None, _target(metavar="VARIABLE", help="Variable of the environment with the key of a URL.")
    ] = None
    prompt_ids: Annotated[
        bool, _target("--prompt-ids", help="Send token ids to a URL, not text; not every server takes them.")
    ] = False
    timeout: Annotated[
        float | None,
        _target(metavar="SECONDS", help=f"A request that takes longer has failed; {_TIMEOUT:g} unless said."),
    ] = None

    def check(self, target: str, *, batch: bool) -> None:
        """Refuse what would have no effect on these targets.

        Args:
            batch: engines answer all requests in one call.

        Raises:
            UsageError: an option that nothing would follow, or a timeout that is none.
        """
        from bestiary.core.bench.url_target import is_url

        urls = [is_url(one) for one in (target, self.compare) if one is not None]
        if self.timeout is not None:
            at_least("--timeout", self.timeout, 1)
        if not any(urls):
            of_urls = {"--model": self.model, "--api": self.api, "--api-key-env": self.api_key_env}
            refuse_idle({**of_urls, "--prompt-ids": self.prompt_ids}, "where no URL is measured")
        if all(urls):
            refuse_idle({"--option": self.option}, "where no engine is measured")
        if self.compare is None or is_url(self.compare):
            refuse_idle({"--compare-option": self.compare_option}, "where --compare names no engine")
        if batch and not all(urls):
            refuse_idle({"--timeout": self.timeout}, "on throughput of an engine, which runs all requests in one call")

    @property
    def limit(self) -> float:
        """Seconds that a request may take."""
        return _TIMEOUT if self.timeout is None else self.timeout

    def server(self) -> Server:
        """How URLs are asked.

        Raises:
            UsageError: no such API, token ids for chats, or no key in the variable.
        """
        from bestiary.core.bench.job import Server

        if self.api not in (None, "completions", "chat"):
            raise UsageError(
                "E-BENCH-OPTION", "--api", "unknown", found=shown(self.api), expected="completions or chat"
            )
        if self.api == "chat" and self.prompt_ids:
            raise UsageError("E-BENCH-PROMPTS", "--prompt-ids", "a chat takes text", hint="leave one of the two out")
        return Server("chat" if self.api == "chat" else "completions", self.model, self._key())

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env)
        if not key:
            raise UsageError("E-BENCH-KEY", "--api-key-env", "the variable is not set", expected="the key of the URL")
        if not (key.isascii() and key.isprintable() and key == key.strip()):
            raise UsageError(
                "E-BENCH-KEY", "--api-key-env", "the variable holds what no header can, such as a line's end",
                expected="printable ASCII characters",
            )  # fmt: skip
        return key

    def options(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of ``LLM`` for the first engine and for the other.

        Raises:
            UsageError: ``LLM`` has no such argument.
        """
        first = _llm_options("--option", self.option)
        return first, {**first, **_llm_options("--compare-option", self.compare_option)}


IgnoreEos = Annotated[
    bool | None,
    _data("--ignore-eos/--no-ignore-eos", help="Go on after end tokens, as synthetic requests do unless told."),
]


@dataclass(frozen=True)
class DataOptions:
    """Which requests are sent."""

    dataset: Annotated[
        Path | None, _data(metavar="FILE", help="Conversations in ShareGPT's format, in place of synthetic prompts.")
    ] = None
    input: Annotated[
        str | None,
        _data(
            metavar="TOKENS",
            help="Of prompts: 128 (unless said), 32-256, normal:MEAN,SD[,MOST] or lognormal:MEDIAN,SIGMA[,MOST].",
        ),
    ] = None
    output: Annotated[
        str | None, _data(metavar="TOKENS", help="Of answers, in the same forms; 128 unless a dataset says it.")
    ] = None
    shared_prefix: Annotated[int, _data(metavar="N", help="Tokens before each prompt that others share.")] = 0
    prefix_groups: Annotated[
        int | None, _data(metavar="N", help="How many different shared prefixes there are; 1 unless said.")
    ] = None
    ignore_eos: IgnoreEos = None

    def data(self, *, prompt_ids: bool) -> Data:
        """What they say.

        Raises:
            UsageError: something is no length, out of its range, or of no effect.
        """
        from bestiary.core.bench.lengths import Lengths
        from bestiary.core.bench.workloads import Data

        at_least("--shared-prefix", self.shared_prefix, 0)
        if self.prefix_groups is not None:
            at_least("--prefix-groups", self.prefix_groups, 1)
        if self.dataset is not None:
            drawn = {"--input": self.input, "--shared-prefix": self.shared_prefix, "--prompt-ids": prompt_ids}
            refuse_idle({**drawn, "--prefix-groups": self.prefix_groups}, "beside --dataset, which has the prompts")
        if not self.shared_prefix:
            refuse_idle({"--prefix-groups": self.prefix_groups}, "without --shared-prefix")
        return Data(
            dataset=self.dataset,
            input=Lengths.parse(self.input or "128", "--input"),
            output=None if self.output is None else Lengths.parse(self.output, "--output"),
            shared_prefix=self.shared_prefix,
            prefix_groups=self.prefix_groups or 1,
            ignore_eos=self.ignore_eos,
            prompt_ids=prompt_ids,
        )


@dataclass(frozen=True)
class Repeating:
    """How often, and what comes of it."""

    repeats: Annotated[int, typer.Option(metavar="N", help="Runs of each load.")] = 3
    seed: Annotated[int, typer.Option(help="Of lengths, prompts and arrivals.")] = 0
    slo: Annotated[
        str | None,
        typer.Option(metavar="LIMITS", help="Count answers that keep them: ttft=200ms,itl=50ms,total=10s."),
    ] = None
    json: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the report as JSON; - prints it.")
    ] = None
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None

    def objective(self) -> Slo | None:
        """The SLO."""
        from bestiary.core.bench.slo import Slo

        return None if self.slo is None else Slo.parse(self.slo)

    def check_outputs(self) -> None:
        """Refuse what can't be written or drawn, before hours of measuring.

        Raises:
            OutputError: there is no such folder.
            PluginError: plotly is not installed.
        """
        from bestiary.core.reports.page import plotly

        for path in (self.html, None if self.json in (None, "-") else Path(str(self.json))):
            if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
                raise OutputError("E-OUT-FILE", path.name, "can't be written")
        if self.html is not None:
            plotly()


def at_least(option: str, value: float, least: int) -> None:
    """Refuse a number that is too small (UsageError)."""
    if not value >= least:
        raise UsageError("E-BENCH-NUMBER", option, "is too small", found=f"{value:g}", expected=f"at least {least}")


def refuse_idle(options: Mapping[str, object], why: str) -> None:
    """Refuse options that were given and change nothing (UsageError): a benchmark that seems to follow them misleads."""
    said = [name for name, value in options.items() if value]
    if said:
        raise UsageError("E-BENCH-OPTION", ", ".join(said), f"no effect {why}", hint=f"leave out {', '.join(said)}")


def _llm_options(option: str, texts: list[str] | None) -> dict[str, Any]:
    if not texts:
        return {}
    from bestiary import LLM

    known = [name for name in inspect.signature(LLM.__init__).parameters if name not in _NOT_OPTIONS]
    found = {}
    for name, value in pairs(option, texts, "NAME=VALUE").items():
        if name not in known:
            raise UsageError(
                "E-BENCH-OPTION", option, "LLM has no such argument", found=name, expected=", ".join(known)
            )
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    """JSON where it is some (``true``, ``8``, ``0.5``), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
