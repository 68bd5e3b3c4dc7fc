"""Which plugins are loaded: version ranges, the allow list, rival names, an exact list for children, loose modules."""

import re
import sys
from types import ModuleType

import pytest

from bestiary import Kernel, PluginError, UsageError, hookimpl
from bestiary.core.plugins import PluginHost, PluginRecord
from bestiary.core.plugins import discover as discover_module

NOTHING = "from bestiary import hookimpl"
ARCHITECTURE = """
@hookimpl
def bestiary_register_models(register):
    register(Model(name="{name}", architectures=("FakeForCausalLM",), gguf=("fakegguf",), config="a:b", model="a:b",
                   weights={{}}))
"""
COMMAND = """
@hookimpl
def bestiary_register_commands(register):
    register(Command(name="frob", help="{help}", app="a:b"))
"""


def records(host: PluginHost, name: str) -> list[PluginRecord]:
    return [one for one in host.records() if one.origin.plugin == name]


@pytest.mark.parametrize(
    ("requirement", "fits"),
    [
        pytest.param("bestiary>=1.0,<2", True, id="in range"),
        pytest.param("bestiary>=99", False, id="too new"),
        pytest.param("bestiary<0.1", False, id="too old"),
        pytest.param("Bestiary (<0.1)", False, id="another spelling"),
        pytest.param("bestiary[testing]>=99 ; extra == 'test'", True, id="behind an extra"),
        pytest.param("bestiary>=99 ; python_version < '3'", True, id="behind a marker"),
        pytest.param("bestiary>=>1", False, id="unreadable"),
    ],
)
def test_the_plugins_own_range_is_checked_before_its_import(site, requirement, fits):
    module = site.plugin("ranged", NOTHING, requires=[requirement])
    host = PluginHost.load()
    (found,) = records(host, "ranged")
    assert (found.state == "loaded") is fits
    assert (module in sys.modules) is fits
    if not fits:
        assert found.state == "refused" and "bestiary" in found.reason


def test_the_allow_list_loads_only_what_it_names(site, monkeypatch):
    wanted, other = site.plugin("wanted", NOTHING), site.plugin("other", NOTHING)
    monkeypatch.setenv("BESTIARY_PLUGINS", " wanted ,")
    host = PluginHost.load()
    assert wanted in sys.modules and other not in sys.modules
    assert records(host, "other")[0].state == "skipped"
    assert set(host.plugin_names()) - {"bestiary"} == {"wanted"}


def test_an_empty_allow_list_leaves_the_sdks_own_plugin(site, monkeypatch):
    site.plugin("other", NOTHING)
    monkeypatch.setenv("BESTIARY_PLUGINS", "")
    states = {one.origin.plugin: one.state for one in PluginHost.load().records()}
    assert states.pop("bestiary") != "skipped"
    assert set(states.values()) == {"skipped"}


def test_an_allowed_name_that_is_not_installed_lists_those_that_are(site, monkeypatch):
    site.plugin("other", NOTHING)
    monkeypatch.setenv("BESTIARY_PLUGINS", "typo")
    with pytest.raises(PluginError, match=r"no plugin 'typo' is installed \(available: .*other"):
        PluginHost.load()


def test_two_distributions_with_one_entry_point_name_both_wait_for_a_decision(site):
    site.module("fake_a", NOTHING)
    site.module("fake_b", NOTHING)
    site.dist("dist-a", {"same": "fake_a"})
    site.dist("dist-b", {"same": "fake_b"}, version="3.0")
    host = PluginHost.load()
    assert {one.state for one in records(host, "same")} == {"refused"}
    assert all("dist-a 1.0 and dist-b 3.0" in one.reason for one in records(host, "same"))
    assert "fake_a" not in sys.modules and "fake_b" not in sys.modules
    decided = PluginHost.load(prefer={"same": "dist-b"})
    assert {one.origin.distribution: one.state for one in records(decided, "same")} == {
        "dist-a": "skipped", "dist-b": "loaded",
    }  # fmt: skip
    assert "fake_a" not in sys.modules
    (loser,) = [one for one in records(decided, "same") if one.state == "skipped"]
    assert loser.reason == "the name is preferred from dist-b 3.0"
    PluginHost.load(prefer={"same": "dist-b"}, strict=True, only=("bestiary", "same"))


def test_nobody_takes_over_the_sdks_own_entry_point(site):
    site.module("fake_sdk", NOTHING)
    site.dist("impostor", {"bestiary": "fake_sdk"})
    (found,) = [one for one in PluginHost.load().records() if one.origin.distribution == "impostor"]
    assert found.state == "refused" and "fake_sdk" not in sys.modules


def test_a_distribution_seen_twice_counts_once_with_a_note(site, caplog):
    site.module("fake_new", NOTHING, folder="one")
    site.dist("fake-twice", {"twice": "fake_new"}, version="2.0", folder="one")
    site.dist("fake-twice", {"twice": "fake_new"}, version="1.0", folder="two")
    (found,) = records(PluginHost.load(), "twice")
    assert found.state == "loaded" and found.origin.version == "2.0"
    assert "2.0 is used, 1.0 is ignored" in found.notes[0]
    assert "fake-twice is on sys.path twice" in caplog.text


def test_a_stale_copy_behind_one_that_gave_up_its_entry_point_does_not_come_back(site):
    site.dist("fake-stale", {}, version="2.0", folder="one")
    site.dist("fake-stale", {"stale": "fake_gone"}, version="1.0", folder="two")
    assert not records(PluginHost.load(), "stale")


def test_two_claims_on_an_architecture_are_shown_and_raised_on_use(site):
    site.plugin("one", ARCHITECTURE.format(name="family-one"))
    site.plugin("two", ARCHITECTURE.format(name="family-two"), version="2.0")
    host = PluginHost.load()
    assert {(one.kind, one.name, one.chosen) for one in host.conflicts()} == {
        ("architecture", "FakeForCausalLM", None), ("gguf architecture", "fakegguf", None),
    }  # fmt: skip
    for lookup in (lambda: host.model_for_architecture("FakeForCausalLM"), lambda: host.model_for_gguf("fakegguf")):
        with pytest.raises(PluginError, match=r"fake-one 1\.0 and fake-two 2\.0.*--prefer"):
            lookup()
    assert host.model("family-one").name == "family-one"


def test_a_family_may_serve_only_those_files_of_an_architecture_that_have_experts(site):
    site.plugin("plain", ARCHITECTURE.format(name="plain"))
    assert PluginHost.load().model_for_gguf("fakegguf", experts=True).name == "plain"
    site.plugin("mixed", ARCHITECTURE.replace("fakegguf", "fakegguf+experts").format(name="mixed"))
    host = PluginHost.load(prefer={"FakeForCausalLM": "fake_mixed"})
    assert host.model_for_gguf("fakegguf", experts=True).name == "mixed"
    assert host.model_for_gguf("fakegguf").name == "plain"


def test_prefer_decides_a_claim(site):
    site.plugin("one", ARCHITECTURE.format(name="family-one"))
    site.plugin("two", ARCHITECTURE.format(name="family-two"))
    host = PluginHost.load(prefer={"FakeForCausalLM": "fake_two"})
    assert host.model_for_architecture("FakeForCausalLM").name == "family-two"
    assert {one.name: one.chosen for one in host.conflicts()} == {"FakeForCausalLM": "fake-two", "fakegguf": None}


def test_two_claims_on_one_command_leave_the_others_usable(site):
    site.plugin("one", COMMAND.format(help="first"))
    site.plugin("two", COMMAND.format(help="second"))
    host = PluginHost.load()
    assert "frob" not in {one.name for one in host.commands()}
    with pytest.raises(PluginError, match=r"fake-one 1\.0 and fake-two 1\.0"):
        host.command("frob")
    assert PluginHost.load(prefer={"frob": "fake-one"}).command("frob").help == "first"


def test_two_claims_on_one_kernel_name_are_raised_when_its_op_is_asked_for(site):
    kernel = (
        "@hookimpl\ndef bestiary_register_kernels(register): register(Kernel(op='fake::op', name='k', run='{run}'))"
    )
    site.plugin("one", kernel.format(run="a:one"))
    site.plugin("two", kernel.format(run="a:two"))
    host = PluginHost.load()
    assert not [one for one in host.kernels() if one.op == "fake::op"]
    with pytest.raises(PluginError, match="kernel 'fake::op:k'"):
        host.kernels("fake::op")
    decided = PluginHost.load(prefer={"fake::op:k": "fake-two"})
    assert [one.run for one in decided.kernels("fake::op")] == ["a:two"]
    assert decided.kernel("fake::op", "k").run == "a:two"


@pytest.mark.parametrize("kind", ["op", "fusion", "reader"])
def test_every_kind_of_name_knows_conflicts(site, kind):
    line = {
        "op": "ops(register): register(Op(name='fake::x', declaration='a:b'))",
        "fusion": "fusions(register): register(Fusion(name='x', op='y'))",
        "reader": "readers(register): register(Reader(name='x', sniff='a:b', reader='a:b'))",
    }[kind]
    site.plugin("one", f"@hookimpl\ndef bestiary_register_{line}")
    site.plugin("two", f"@hookimpl\ndef bestiary_register_{line}")
    host = PluginHost.load()
    assert [one.kind for one in host.conflicts()] == [kind]
    use = {"op": lambda: host.op("fake::x"), "fusion": host.fusions, "reader": host.readers}[kind]
    with pytest.raises(PluginError, match=r"fake-one 1\.0 and fake-two 1\.0"):
        use()


@pytest.mark.parametrize(
    ("prefer", "said"),
    [
        pytest.param({"NoSuchName": "fake-one"}, "no loaded plugin claims", id="unclaimed name"),
        pytest.param({"FakeForCausalLM": "nobody"}, "does not claim it.*fake-one", id="another distribution"),
        pytest.param({"one": "nobody"}, "does not claim it.*fake-one", id="another distribution for a plugin"),
    ],
)
def test_a_preference_that_decides_nothing_is_refused(site, prefer, said):
    site.plugin("one", ARCHITECTURE.format(name="family-one"))
    with pytest.raises(UsageError, match=said):
        PluginHost.load(prefer=prefer)


class Loose:
    @hookimpl
    def bestiary_register_kernels(self, register):
        register(Kernel(op="fake::op", name="loose", run="a:b"))


def test_plugins_are_taken_as_dotted_names_modules_and_objects(site):
    site.module(
        "loose_name", "@hookimpl\ndef bestiary_register_ops(register): register(Op(name='l::a', declaration='a:b'))"
    )
    module = ModuleType("loose_module")
    module.bestiary_register_kernels = Loose().bestiary_register_kernels  # type: ignore[attr-defined]
    host = PluginHost.load(plugins=["loose_name", module])
    assert host.op("l::a") and host.kernels("fake::op")
    assert {"module:loose_name", "module:loose_module"} <= set(host.plugin_names())
    assert PluginHost.load(plugins=[Loose()]).kernels("fake::op")


def test_a_module_that_is_asked_for_and_broken_is_raised_at_once(site):
    site.module("loose_broken", "import no_such_module_here")
    with pytest.raises(PluginError, match="no_such_module_here"):
        PluginHost.load(plugins=["loose_broken"])


def test_a_module_of_an_installed_distribution_is_that_plugin_even_when_not_allowed(site, monkeypatch):
    module = site.plugin("known", NOTHING)
    monkeypatch.setenv("BESTIARY_PLUGINS", "")
    host = PluginHost.load(plugins=[module])
    (found,) = records(host, "known")
    assert (found.state, found.origin.distribution) == ("loaded", "fake-known")


def test_a_child_loads_exactly_its_parents_plugins(site, monkeypatch):
    site.plugin("one", NOTHING)
    site.module("loose_name", NOTHING)
    monkeypatch.setenv("BESTIARY_PLUGINS", "one")
    names = PluginHost.load(plugins=["loose_name"]).plugin_names()
    monkeypatch.delenv("BESTIARY_PLUGINS")
    site.plugin("later", NOTHING)
    child = PluginHost.load(only=names)
    assert sorted(child.plugin_names()) == sorted(names)
    assert "fake_later_plugin" not in sys.modules


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("gone", "not installed here", id="entry point"),
        pytest.param("module:no_such_module_here", "No module named", id="module"),
        pytest.param("object:tests.Loose", "passed as an object", id="object"),
    ],
)
def test_a_child_that_lacks_a_plugin_of_its_parent_says_so(site, name, said):
    with pytest.raises(PluginError, match=said):
        PluginHost.load(only=[name])


def test_the_sdks_own_plugin_is_there_without_an_installation(site, monkeypatch):
    monkeypatch.setattr(discover_module.metadata, "distributions", list)
    states = {one.origin.plugin: one for one in PluginHost.load().records()}
    assert states["bestiary"].module == "bestiary.core.plugin"
    assert list(states) == ["bestiary"]


def test_an_unknown_architecture_names_what_is_installed_and_what_to_look_for(site, monkeypatch):
    site.plugin("one", ARCHITECTURE.format(name="family-one"))
    monkeypatch.setenv("BESTIARY_PLUGINS", "one")
    monkeypatch.setattr("bestiary.core.plugins.fallback.find_spec", lambda name: None)
    monkeypatch.setattr(PluginHost, "_installed", lambda host, package: None)
    with pytest.raises(PluginError) as caught:
        PluginHost.load().model_for_architecture("Qwen3MoeForCausalLM", model_type="qwen3_moe")
    assert caught.value.code == "E-PLG-ARCHITECTURE"
    error = caught.value
    assert (error.subject, error.found) == ("config.json, field architectures", "'Qwen3MoeForCausalLM'")
    assert error.expected is not None and re.match(r"an installed architecture \(.*FakeForCausalLM", error.expected)
    assert error.hint == (
        "look for a plugin that has it; if there is one, it may be called bestiary-qwen3-moe or bestiary-qwen"
    )


@pytest.mark.parametrize("model_type", ["family", "family2_moe"])
@pytest.mark.parametrize(
    ("allowed", "said"),
    [
        pytest.param("family", "1.5 is installed and does not have it: look for a newer one", id="loaded"),
        pytest.param("", "1.5 is installed and not loaded: not named in BESTIARY_PLUGINS", id="skipped"),
    ],
)
def test_a_package_that_is_here_and_lacks_the_architecture_is_not_to_be_installed_again(
    site, monkeypatch, allowed, said, model_type
):
    site.module("fake_family", ARCHITECTURE.format(name="family"))
    site.dist("bestiary-family", {"family": "fake_family"}, version="1.5", first=True)
    monkeypatch.setenv("BESTIARY_PLUGINS", allowed)
    with pytest.raises(PluginError) as caught:
        PluginHost.load().model_for_architecture("FakeForTokenClassification", model_type=model_type)
    hint = caught.value.hint or ""
    assert hint.startswith(f"bestiary-family {said}") and "pip install bestiary-family" not in hint


def test_a_hostile_model_type_does_not_reach_the_hint(site):
    with pytest.raises(PluginError) as caught:
        PluginHost.load().model_for_architecture("X", model_type="x; rm -rf ~")
    assert "rm -rf" not in str(caught.value)
