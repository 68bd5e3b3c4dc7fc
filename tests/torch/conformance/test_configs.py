"""The kits' own configs: values that every family reads are not all the usual ones, or a model could leave them unread."""

from __future__ import annotations

from typing import Any

import pytest

from bestiary.core.checkpoint.parameters import parse_config
from bestiary.core.conformance.model import ENDS, LAST, configs_of
from bestiary.core.plugins import PluginHost, resolve
from bestiary.core.config import Rope
from bestiary.spec import Model

MODELS = [model for model in PluginHost.load().models() if model.conformance and not model.fallback]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_config_that_runs_every_check_has_an_eps_and_a_theta_of_its_own(model: Model) -> None:
    assert model.conformance
    cls: Any = resolve(model.conformance, needed_by="this test")
    (richest,) = set.intersection(*({*configs_of(cls, check, long=False)[-1:]} for check in (*ENDS, *LAST)))
    said = {"architectures": list(model.architectures[:1]), **cls.configs[richest]}
    config: Any = parse_config(model, said)
    assert config.rms_norm_eps >= 1e-3
    assert isinstance(config.rope, Rope) and config.rope.theta not in (10000.0, 500000.0, 1e6)
