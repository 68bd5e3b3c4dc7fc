"""Running a conformance class in this process, and keeping every outcome."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from bestiary.core.conformance.model_session import Recorder, run_pytest
from bestiary.core.errors import PluginError, UsageError
from bestiary.core.plugins import PluginHost, resolve
from bestiary.core.progress import Progress, step
from bestiary.core.version import __version__
from bestiary.spec import Model

Outcome = Literal["passed", "failed", "refused", "waived", "none", "short"]
#: Number of the form of a report.
FORMAT = 1


@dataclass(frozen=True)
class Check:
    """One check of one config.

    Args:
        outcome: ``passed``; ``failed``; ``refused`` (the config can't be run that way and says so, which is right);
            ``waived``, with the plugin's reason; ``none`` (nothing to check); ``short`` (left to the long form).
        error, tolerance: the worst of what was measured, and what was allowed for it.
        ties, tokens: greedy tokens that the reference finds as likely as its own choice, of so many.
        text: reason, note or the failure's first lines.
    """

    check: str
    config: str
    outcome: Outcome
    seconds: float = 0.0
    error: float | None = None
    tolerance: float | None = None
    ties: int | None = None
    tokens: int | None = None
    text: str = ""


@dataclass(frozen=True)
class Report:
    """What became of a model's conformance class; ``as_dict`` is what ``--json`` writes."""

    model: str
    plugin: str
    distribution: str
    version: str
    architectures: tuple[str, ...]
    long: bool
    gguf: bool
    reference: str
    environment: Mapping[str, str]
    configs: tuple[str, ...]
    configs_sha256: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Nothing failed."""
        return all(check.outcome != "failed" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``; what a check did not measure is left out."""
        checks = [{key: value for key, value in asdict(one).items() if value not in (None, "")} for one in self.checks]
        return {"format": FORMAT, "passed": self.passed, **asdict(self), "checks": checks}


def run(
    model: Model,
    host: PluginHost,
    *,
    plugins: Sequence[str] = (),
    prefer: Mapping[str, str] | None = None,
    long: bool = False,
    configs: Sequence[str] = (),
    progress: Progress,
) -> Report:
    """Run a model's conformance class, ``slow`` checks included.

    Args:
        plugins, prefer: as for ``PluginHost.load``; what the checks' engines are made with.
        long: every check on every config.
        configs: names of those to check; all if empty.

    Raises:
        PluginError: the model names no conformance class, or pytest or transformers is missing.
        UsageError: there is no such config.
    """
    _check_installed()
    if model.conformance is None:
        raise PluginError(
            "E-KIT-CLASS",
            f"model {model.name} ({host.origin(model)})",
            "names no conformance class",
            hint="its author gives Model(conformance='package.conformance:NameConformance')",
        )
    cls: Any = _class_of(model, host)
    if unknown := [name for name in configs if name not in cls.configs]:
        known = ", ".join(cls.configs)
        raise UsageError("E-KIT-CONFIG", "--config", "unknown config", found=unknown[0], expected=known)
    wanted = tuple(name for name in cls.configs if not configs or name in configs)
    recorder = Recorder(frozenset(wanted), progress)
    with step(progress, f"check {model.name}") as note:
        run_pytest(model.conformance, plugins, prefer or {}, long, recorder)
        checks = tuple(_outcomes(cls, wanted, recorder, long))
        note.text = f"{len(checks)} checks of {len(wanted)} configs"
    origin = host.origin(model)
    return Report(
        model=model.name,
        plugin=origin.plugin,
        distribution=origin.distribution,
        version=origin.version,
        architectures=model.architectures,
        long=long,
        gguf="gguf" in model.weights,
        reference="transformers" if cls.reference is None else model.conformance,
        environment=_environment(),
        configs=wanted,
        configs_sha256=digest(cls.configs),
        checks=checks,
    )


def digest(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Of a class's configs: outcomes are those of a plugin as long as it is the same."""
    text = json.dumps({name: dict(config) for name, config in configs.items()}, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _class_of(model: Model, host: PluginHost) -> Any:
    """The conformance class that the model names, which must be about it."""
    from bestiary.core.conformance.model import ModelConformance

    assert model.conformance is not None
    cls: Any = resolve(model.conformance, needed_by=f"model {model.name}")
    subject = f"model {model.name} ({host.origin(model)})"
    if not isinstance(cls, type) or not issubclass(cls, ModelConformance):
        raise PluginError(
            "E-KIT-CLASS", subject, f"{model.conformance} is no subclass of bestiary.testing.ModelConformance"
        )
    if cls.model != model.name:
        raise PluginError(
            "E-KIT-OTHER",
            subject,
            f"names {model.conformance}, which is about another model",
            found=f"model = {cls.model!r}",
            expected=repr(model.name),
        )
    return cls


def _outcomes(cls: Any, configs: Sequence[str], recorder: Recorder, long: bool) -> Iterator[Check]:
    """Every check of every config, those that never ran included; then the class's own tests."""
    from bestiary.core.conformance.model import configs_of
    from bestiary.core.conformance.model_rules import checks_of, waiver

    for check in checks_of(cls):
        for config in configs:
            reason = waiver(cls, check, config)
            if reports := recorder.reports.pop((check, config), []):
                found = _outcome(check, config, reports, reason)
                if found.outcome in ("passed", "refused") and (check, config) not in recorder.concluded:
                    found = replace(found, outcome="failed", text="the kit's own code did not run it to the end")
                yield found
            elif config not in configs_of(cls, check, long=long):
                yield Check(check, config, "short")
            else:
                yield Check(check, config, "failed", text="\n".join(recorder.broken) or "it was not run")
    for (check, config), reports in recorder.reports.items():
        yield _outcome(check, config, reports, None)


def _outcome(check: str, config: str, reports: Sequence[Any], reason: str | None) -> Check:
    from bestiary.core.conformance.model import OPTIONAL

    found: dict[str, Any] = {}
    for report in reports:
        found |= dict(report.user_properties)
    text = str(found.get("refused") or found.get("note") or "")
    outcome: Outcome = "refused" if "refused" in found else "passed"
    skipped = next((report for report in reports if report.skipped), None)
    said = None if skipped is None else _skip_reason(skipped)
    ran = skipped is not None and skipped.when == "call"  # else a fixture skipped it
    wrong = next((report for report in reports if report.failed or hasattr(report, "wasxfail")), None)
    if wrong is not None:
        outcome, text = "failed", _failure(wrong)
    elif said is not None and reason is not None and said == f"waived: {reason}":
        outcome, text = "waived", reason
    elif said is not None and ran and said.startswith("none: ") and check in OPTIONAL:
        outcome, text = "none", said.removeprefix("none: ")
    elif said is not None:
        outcome, text = "failed", f"skipped without a waiver: {said}"
    elif reason is not None:
        outcome, text = "waived", f"{reason}; the plugin's own check passes"
    measured: dict[str, Any] = {key: found[key] for key in ("tolerance", "ties", "tokens") if key in found}
    if math.isfinite(error := found.get("error", math.nan)):
        measured["error"] = float(f"{error:.3g}")
    took = round(sum(report.duration for report in reports), 3)
    return Check(check, config, outcome, took, text=text, **measured)


def _skip_reason(report: Any) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return str(text).removeprefix("Skipped: ")


def _failure(report: Any) -> str:
    """The exception's own lines."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(report.longrepr if crash is None else crash.message)
    return "\n".join(text.strip().splitlines()[:4])[:600] or "it is expected to fail, which is no waiver"


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("pytest", "transformers") if find_spec(name) is None]
    if missing:
        raise PluginError(
            "E-KIT-EXTRA",
            "bestiary check",
            f"needs {' and '.join(missing)}",
            hint="pip install 'bestiary[testing]'",
        )


def _environment() -> dict[str, str]:
    found = {"bestiary": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "platform": f"{platform.system()} {platform.machine()}"}
