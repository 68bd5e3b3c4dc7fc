"""The kits' own configs: values that no family leaves unread, and outcomes that were kept for just these."""

from __future__ import annotations

from typing import Any

import model_matrix
import pytest

from bestiary.core.checkpoint.parameters import parse_config
from bestiary.core.config import Rope
from bestiary.core.conformance.model import ENDS, LAST, configs_of
from bestiary.core.conformance.model_run import digest
from bestiary.core.plugins import PluginHost, resolve
from bestiary.core.version import __version__
from bestiary.spec import Model

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
