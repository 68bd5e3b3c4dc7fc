"""Every model of this repository has its conformance class, and its tests collect it."""

import re
from pathlib import Path

import pytest

from bestiary.core.plugins import PluginHost

ROOT = Path(__file__).resolve().parents[2]
MODELS = [
    model for model in PluginHost.load().models() if list(ROOT.glob(f"models/*/{model.config.partition('.')[0]}"))
]


def test_the_models_are_found():
    assert MODELS


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_model_names_its_conformance_class_and_tests_it(model):
    assert model.conformance, f"model {model.name}: Model(conformance=…) is not set"
    module, _, name = model.conformance.partition(":")
    (folder,) = (path.parent for path in ROOT.glob(f"models/*/{module.partition('.')[0]}"))
    source = folder.joinpath(*module.split(".")).with_suffix(".py").read_text()
    assert re.search(rf"^class {name}\(ModelConformance\):$", source, re.MULTILINE)
    tests = "\n".join(path.read_text() for path in folder.glob("tests/test_conformance*.py"))
    assert re.search(rf"^class Test\w*\({name}\):$", tests, re.MULTILINE), f"{folder.name}/tests collect no {name}"
