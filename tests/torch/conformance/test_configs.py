"""The kits' own configs: values that no family leaves unread, and outcomes that were kept for just these."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import model_matrix
import pytest

from bestiary.core.checkpoint.parameters import parse_config
from bestiary.core.config import Rope
from bestiary.core.conformance import model_files
from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model import ENDS, LAST, configs_of
from bestiary.core.conformance.model_run import digest
from bestiary.core.plugins import PluginHost, resolve
from bestiary.core.version import __version__
from bestiary.spec import GroupedQueryConfig, Model

HOST = PluginHost.load()
MODELS = [model for model in HOST.models() if model.conformance and not model.fallback]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_config_that_runs_every_check_has_an_eps_and_a_theta_of_its_own(model: Model) -> None:
    assert model.conformance
    cls: Any = resolve(model.conformance, needed_by="this test")
    (richest,) = set.intersection(*({*configs_of(cls, check, long=False)[-1:]} for check in (*ENDS, *LAST)))
    said = {"architectures": list(model.architectures[:1]), **cls.configs[richest]}
    config: Any = parse_config(model, said)
    assert config.rms_norm_eps >= 1e-3
    assert isinstance(config.rope, Rope) and config.rope.theta not in (10000.0, 500000.0, 1e6)


class Partial(GroupedQueryConfig):
    """Rotates a part of each head."""


class Unread(GroupedQueryConfig):
    """Has a window of its own, and reads no part from config.json."""

    sliding_window: int | None = None

    @classmethod
    def parse(cls, raw: Any) -> Any:
        return super().parse({key: value for key, value in raw.items() if "partial" not in key})


SIZES = {"vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("kind", "said", "lost"),
    [
        (Partial, {"rope_parameters": {"partial_rotary_factor": 0.5}}, False),
        (Partial, {"partial_rotary_factor": 0.5}, False),
        (Partial, {"partial_rotary_factor": 0.25}, False),
        (Unread, {"partial_rotary_factor": 0.5}, True),
        (Unread, {"sliding_window": 5}, True),
    ],
)
def test_a_probe_of_a_key_is_no_value_that_the_config_has(
    kind: Any, said: dict[str, Any], lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {**SIZES, **said}
    monkeypatch.setattr(model_files, "parse_config", lambda model, raw: kind.parse(raw))
    monkeypatch.setattr(model_files, "_wrong_values", lambda case: ())
    monkeypatch.setattr(model_files, "IMPOSSIBLE", {})
    case: Any = SimpleNamespace(raw=raw, config=kind.parse(raw), suite=SimpleNamespace(model=None))
    if lost:
        with pytest.raises(AssertionError, match=r"partial_rotary_factor = 0\.2?5 is accepted and changes nothing"):
            model_files.impossible_keys(case, Findings([]))
    else:
        model_files.impossible_keys(case, Findings([]))


def test_a_probe_has_two_values() -> None:
    assert all(one != other for one, other in model_files.MATHEMATICS.values())


KEPT = {report["model"]: report for report in model_matrix.read_results(model_matrix.RESULTS)}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_kept_outcomes_are_those_of_todays_configs_and_versions(model: Model) -> None:
    assert model.conformance
    kept, cls = KEPT[model.name], resolve(model.conformance, needed_by="this test")
    seen = (
        kept["configs"],
        kept.get("configs_sha256"),
        _minor(kept["environment"]["bestiary"]),
        _minor(kept["version"]),
    )
    now = (list(cls.configs), digest(cls.configs), _minor(__version__), _minor(HOST.origin(model).version))
    assert seen == now, "run: make matrix"


def test_the_kept_outcomes_are_of_one_environment() -> None:
    assert len({str(report["environment"]) for report in KEPT.values()}) == 1, "run: make matrix"


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
