"""The plan: which kernel runs each distinct call, by the number of rows, and what was seen when it was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bestiary.core.checkpoint.files import JSON_LIMIT, read_json
from bestiary.core.errors import DataError

PLAN_FORMAT = 1


@dataclass(frozen=True)
class Trial:
    """What one kernel did at one size: microseconds a call, and its largest error as a fraction of the tolerance.

    ``refused`` says why it can't run the call; it is None for kernels that did run.
    """

    kernel: str
    microseconds: float | None = None
    error: float | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Choice:
    """The kernel for calls of up to ``rows`` rows (None: any number), why, and the trials it was chosen from."""

    rows: int | None
    kernel: str
    reason: str
    trials: tuple[Trial, ...] = ()


@dataclass
class Plan:
    """Choices by signature: the op with its arguments' shapes and dtypes.

    Args:
        deterministic: each choice is a batch-invariant kernel for any number of rows.
    """

    device: str
    choices: dict[str, tuple[Choice, ...]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    fusions: dict[str, int] = field(default_factory=dict)
    deterministic: bool = False

    def kernel(self, signature: str, rows: int) -> Choice | None:
        """The choice for a call of so many rows; None where the plan has never seen the signature."""
        for choice in self.choices.get(signature, ()):
            if choice.rows is None or rows <= choice.rows:
                return choice
        return None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": PLAN_FORMAT,
            "device": self.device,
            "deterministic": self.deterministic,
            "fusions": self.fusions,
            "calls": [
                {"signature": s, "count": self.counts.get(s, 0), "choices": [asdict(c) for c in choices]}
                for s, choices in self.choices.items()
            ],
        }

    @classmethod
    def read(cls, path: Path) -> Plan:
        """A plan from its file.

        Raises:
            DataError: it is damaged or of another format.
        """
        try:
            raw = read_json(path.parent, path.name, limit=JSON_LIMIT)
            if raw["format"] != PLAN_FORMAT:
                raise DataError(
                    "E-ENGINE-PLAN", path.name, "unknown format", found=str(raw["format"]), expected=str(PLAN_FORMAT)
                )
            plan = cls(raw["device"], fusions=dict(raw["fusions"]), deterministic=bool(raw.get("deterministic")))
            for call in raw["calls"]:
                choices = tuple(_choice(choice) for choice in call["choices"])
                if not choices or choices[-1].rows is not None:
                    raise ValueError(f"no kernel for large calls of {call['signature']}")
                plan.choices[call["signature"]] = choices
                plan.counts[call["signature"]] = int(call["count"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "E-ENGINE-PLAN", path.name, f"damaged plan: {error}", hint="build the engine again"
            ) from None
        return plan

    def table(self) -> str:
        """For ``bestiary build --explain``: a block for each distinct call."""
        lines = ["deterministic: one batch-invariant kernel for each call"] if self.deterministic else []
        lines += [f"fusion {name}: applied {count} times" for name, count in self.fusions.items()]
        for signature, choices in self.choices.items():
            lines.append(f"{self.counts.get(signature, 0)} × {signature}")
            for choice in choices:
                size = "any number of rows" if choice.rows is None else f"up to {choice.rows} rows"
                lines.append(f"    {size}: {choice.kernel} ({choice.reason})")
                lines += [f"        {_describe(trial)}" for trial in choice.trials]
        return "\n".join(lines)


def _choice(raw: Mapping[str, Any]) -> Choice:
    trials = tuple(Trial(**trial) for trial in raw["trials"])
    return Choice(raw["rows"], raw["kernel"], raw["reason"], trials)


def _describe(trial: Trial) -> str:
    if trial.refused is not None:
        return f"{trial.kernel}: no, {trial.refused}"
    if trial.microseconds is None:
        return f"{trial.kernel}: not timed"
    return f"{trial.kernel}: {trial.microseconds:.1f} µs, error {trial.error:.2f} of the tolerance"
