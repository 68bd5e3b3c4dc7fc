"""A fallback model: asked for what no plugin claims and for nothing else, one at a time, and by name in what is refused."""

import logging
import sys

import pytest

from bestiary import ConfigError, PluginError
from bestiary.core.engine.fallback import announce, check_fallback
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost

FALLBACK = """
asked = []


def why_not(architecture, model_type):
    asked.append((architecture, model_type))
    return None if architecture == "OddForCausalLM" else "it is too odd"


@hookimpl
def bestiary_register_models(register):
    register(Model(name="{name}", architectures=(), config="a:b", model="a:b", weights={{}},
                   fallback="{module}:why_not"))
"""
FAMILY = """
@hookimpl
def bestiary_register_models(register):
    register(Model(name="family", architectures=("OddForCausalLM",), config="a:b", model="a:b", weights={}))
"""


@pytest.fixture
def host(site, monkeypatch):
    def load(*others, **options):
        monkeypatch.setenv("BESTIARY_PLUGINS", ",".join(("spare", *others)))
        return PluginHost.load(**options)

    site.plugin("spare", FALLBACK.format(name="spare", module="fake_spare_plugin"))
    return load


def test_it_stands_in_where_no_plugin_claims_the_architecture(host):
    loaded = host()
    assert loaded.model_for_architecture("OddForCausalLM", model_type="odd").name == "spare"
    assert [one.provides["fallback"] for one in loaded.records() if one.provides] == [("any-architecture",)]


def test_a_plugin_that_claims_the_architecture_has_it(site, host):
    site.plugin("family", FAMILY)
    assert host("family").model_for_architecture("OddForCausalLM", model_type="odd").name == "family"
    assert sys.modules["fake_spare_plugin"].asked == []


def test_what_it_can_not_run_is_refused_with_its_reason_and_a_name_to_look_for(host):
    with pytest.raises(PluginError, match="the fallback spare can't stand in: it is too odd") as caught:
        host().model_for_architecture("EvenForCausalLM", model_type="even")
    assert caught.value.code == "E-PLG-ARCHITECTURE" and "may be called bestiary-even" in str(caught.value)


def test_a_broken_plugin_that_might_have_had_it_is_named(site, host, caplog):
    site.plugin("odd", "import no_such_module_here", version="0.3")
    with caplog.at_level(logging.WARNING, "bestiary"):
        assert host("odd").model_for_architecture("OddForCausalLM").name == "spare"
    assert "fake-odd 0.3 might serve OddForCausalLM" in caplog.text and "no_such_module_here" in caplog.text


def test_two_fallbacks_are_a_conflict_that_prefer_decides(site, host):
    site.plugin("other", FALLBACK.format(name="other", module="fake_other_plugin"))
    with pytest.raises(
        PluginError, match=r"fallback 'any-architecture': is claimed by fake-other 1.0 and fake-spare 1.0"
    ):
        host("other").model_for_architecture("OddForCausalLM")
    chosen = host("other", prefer={"any-architecture": "fake-other"})
    assert chosen.model_for_architecture("OddForCausalLM").name == "other"


@pytest.mark.parametrize(
    ("model_type", "here", "said"),
    [
        pytest.param("gpt2", False, "transformers knows it, .* pip install bestiary-transformers", id="not installed"),
        pytest.param("gpt2", True, "bestiary-transformers 0.1 is installed and not loaded", id="not loaded"),
        pytest.param(
            "no_such_model", False, "it may be called bestiary-no-such-model or bestiary-no", id="unknown there too"
        ),
        pytest.param("../gpt2", False, "look for a plugin that has it", id="no name"),
    ],
)
def test_without_one_the_error_says_how_to_get_it(site, monkeypatch, model_type, here, said):
    monkeypatch.setenv("BESTIARY_PLUGINS", "")
    if here:
        site.dist("bestiary-transformers", {"transformers": "fake_transformers"}, version="0.1", first=True)
    else:
        monkeypatch.setattr(PluginHost, "_installed", lambda host, package: None)
    with pytest.raises(PluginError, match=said) as caught:
        PluginHost.load().model_for_architecture("SomeForCausalLM", model_type=model_type)
    assert ("transformers knows it" in str(caught.value)) == (model_type == "gpt2")


@pytest.mark.parametrize(
    ("architecture", "model_type", "said"),
    [
        ("T5ForConditionalGeneration", "t5", "knows it, but not as a causal language model"),
        ("OpenAIGPTLMHeadModel", "openai-gpt", "knows it, and would run it slowly"),
    ],
)
def test_without_one_the_error_says_of_other_tasks_that_none_would_help(monkeypatch, architecture, model_type, said):
    monkeypatch.setenv("BESTIARY_PLUGINS", "")
    with pytest.raises(PluginError) as caught:
        PluginHost.load().model_for_architecture(architecture, model_type=model_type)
    assert f"transformers {said}" in str(caught.value)
    assert ("bestiary-transformers" in str(caught.value)) == ("slowly" in said)


@pytest.mark.parametrize(
    ("option", "value"),
    [("tensor_parallel", 2), ("pipeline_parallel", 2), ("quantization", "int4"), ("deterministic", True)],
)
def test_what_needs_a_step_program_of_layers_is_refused(host, option, value):
    model = host().model("spare")
    check_fallback(model, BuildOptions())
    with pytest.raises(ConfigError, match=f"{option}: the fallback spare can't do it.*leave {option} out"):
        check_fallback(model, BuildOptions(**{option: value}))
    with pytest.raises(ConfigError, match="memory_limit: the fallback spare"):
        check_fallback(model, BuildOptions(), 2**30)


def test_an_engine_says_that_a_fallback_runs_it_and_when_a_plugin_serves_it_now(site, host, caplog):
    raw = {"architectures": ["OddForCausalLM"], "model_type": "odd"}
    alone = host()
    assert announce(alone.model("spare"), raw, alone) == ", run by the fallback spare: slow"
    assert "no model plugin serves OddForCausalLM: the fallback spare (fake-spare 1.0) runs it, slowly" in caplog.text
    site.plugin("family", FAMILY)
    both = host("family")
    announce(both.model("spare"), raw, both)
    assert "the plugin fake-family 1.0 serves it now: convert the model again" in caplog.text
    assert announce(both.model("family"), raw, both) == ""
