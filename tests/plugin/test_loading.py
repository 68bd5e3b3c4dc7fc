"""One plugin at a time: what is found, checked, imported, called, and what a broken one leaves behind."""

import os
import sys

import pytest

from bestiary import Kernel, PluginError, hookimpl
from bestiary.core.plugins import PluginHost, PluginRecord
from bestiary.core.plugins import loading as loading_module

KERNEL = """
@hookimpl
def bestiary_register_kernels(register):
    register(Kernel(op="fake::op", name="{name}", run="nowhere:run"))
"""

MUTE = """
class Mute(Exception):
    def __str__(self): raise RuntimeError('str fails')
    __repr__ = __str__
raise Mute()
"""


def record(host: PluginHost, name: str) -> PluginRecord:
    return next(one for one in host.records() if one.origin.plugin == name)


def test_a_good_plugin_is_loaded_and_said_where_it_came_from(site):
    site.plugin("good", KERNEL.format(name="quick"), version="2.5")
    host = PluginHost.load()
    (kernel,) = host.kernels("fake::op")
    assert kernel.name == "quick"
    assert (host.origin(kernel).plugin, host.origin(kernel).distribution, host.origin(kernel).version) == (
        "good", "fake-good", "2.5",
    )  # fmt: skip
    assert host.lock()["fake-good"] == "2.5"
    assert record(host, "good").provides == {"kernel": ("fake::op:quick",)}


def test_hosts_are_independent_objects(site):
    site.plugin("good", KERNEL.format(name="quick"))

    class Extra:
        @hookimpl
        def bestiary_register_kernels(self, register):
            register(Kernel(op="fake::op", name="extra", run="nowhere:run"))

    first, second = PluginHost.load(plugins=[Extra()]), PluginHost.load()
    assert [one.name for one in first.kernels("fake::op")] == ["extra", "quick"]
    assert [one.name for one in second.kernels("fake::op")] == ["quick"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param("import no_such_module_here", "No module named 'no_such_module_here'", id="ImportError"),
        pytest.param("def broken(:", "SyntaxError", id="SyntaxError"),
        pytest.param("raise SystemExit(3)", "SystemExit: 3", id="sys.exit"),
        pytest.param("class Odd(BaseException): pass\nraise Odd('x')", "Odd: x", id="BaseException"),
        pytest.param(MUTE, "Mute: (its text can't be shown: RuntimeError)", id="__str__ raises"),
        pytest.param("def __dir__(): raise RuntimeError('no dir')", "RuntimeError: no dir", id="__dir__ raises"),
        pytest.param("def __dir__(): return ['bestiary_absent']", "AttributeError: ", id="__dir__ lies"),
    ],
)
def test_a_plugin_that_fails_at_import_leaves_the_others_alone(site, source, said):
    site.plugin("abroken", source, version="0.3")
    site.plugin("zgood", KERNEL.format(name="quick"))
    host = PluginHost.load()
    assert [one.name for one in host.kernels("fake::op")] == ["quick"]
    broken = record(host, "abroken")
    assert (broken.state, broken.origin.distribution, broken.origin.version) == ("broken", "fake-abroken", "0.3")
    assert said in broken.reason
    assert "fake-abroken" not in host.lock() and "abroken" not in host.plugin_names()


def test_ctrl_c_during_an_import_passes_through(site):
    site.plugin("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        PluginHost.load()


def test_a_broken_plugin_is_raised_when_something_needs_what_it_might_have_had(site):
    site.plugin("weird", "import no_such_module_here", version="0.3")
    with pytest.raises(PluginError, match=r"fake-weird 0\.3.*no_such_module_here") as caught:
        PluginHost.load().model_for_architecture("WeirdForCausalLM", model_type="weird")
    assert caught.value.exit_status == 69
    assert "may be called bestiary-weird" in str(caught.value)


def test_strict_raises_for_a_broken_plugin_at_once(site):
    site.plugin("weird", "import no_such_module_here")
    with pytest.raises(PluginError, match="plugin weird"):
        PluginHost.load(strict=True)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param("register('text')", "takes a Kernel, got a str", id="not a descriptor"),
        pytest.param("register(Command(name='a', help='b', app='c:d'))", "takes a Kernel, got a Command", id="another hook's"),
        pytest.param("register(Kernel)", "takes a Kernel, got the class Kernel", id="the class itself"),
        pytest.param("return [1]", "returned a list", id="returns something"),
        pytest.param("yield", "generator", id="generator"),
        pytest.param("register(Kernel(op=1, name='b', run='c:d'))", "Kernel.op must be str, got a int", id="field type"),
        pytest.param("register(Kernel(op='a', name='b', run='c.d'))", "'module:attribute'", id="reference"),
        pytest.param("register(Kernel(op='a', name='', run='c:d'))", "empty", id="empty name"),
        pytest.param("register(Kernel(op='a', name='b=c', run='c:d'))", "free of ':' and '='", id="name with ="),
        pytest.param("register(Kernel(op='a', name='b', run='c:d'))\n    register(Kernel(op='a', name='b', run='x:y'))", "registered twice", id="twice"),
        pytest.param("raise ValueError('inner')", "ValueError: inner", id="raises"),
        pytest.param("raise SystemExit", "SystemExit", id="exits"),
    ],
)  # fmt: skip
def test_what_a_hook_does_is_checked_at_the_boundary(site, body, said):
    site.plugin("odd", f"@hookimpl\ndef bestiary_register_kernels(register):\n    {body}\n")
    host = PluginHost.load()
    assert record(host, "odd").state == "broken"
    assert said in record(host, "odd").reason
    assert not host.kernels("a")
    error = record(host, "odd").error
    assert isinstance(error, PluginError) and "fake-odd 1.0" in str(error)


def test_an_architecture_given_as_a_bare_string_is_refused_not_spelt_out(site):
    site.plugin(
        "odd",
        "@hookimpl\ndef bestiary_register_models(register):\n"
        "    register(Model(name='m', architectures='MForCausalLM', config='a:b', model='a:b', weights={}))\n",
    )
    assert "Model.architectures must be tuple[str, ...], got a str" in record(PluginHost.load(), "odd").reason


def test_a_hooks_exception_is_chained(site):
    site.plugin("odd", "@hookimpl\ndef bestiary_register_kernels(register):\n    raise ValueError('inner')\n")
    error = record(PluginHost.load(), "odd").error
    assert error is not None and isinstance(error.__cause__, ValueError)


def test_a_plugin_whose_last_hook_fails_leaves_nothing_registered(site):
    source = """
    @hookimpl
    def bestiary_register_ops(register):
        register(Op(name="fake::op", declaration="a:b"))
    @hookimpl
    def bestiary_register_kernels(register):
        register(Kernel(op="fake::op", name="quick", run="a:b"))
    @hookimpl
    def bestiary_register_models(register):
        raise ValueError("third")
    """
    site.plugin("half", source)
    host = PluginHost.load()
    assert not [op for op in host.ops() if op.name == "fake::op"]
    assert not host.kernels("fake::op")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param(
            "@hookimpl\ndef bestiary_register_model(register): pass",
            "did you mean 'bestiary_register_models'",
            id="typo",
        ),
        pytest.param(
            "@hookimpl\ndef bestiary_quux(register): pass", "the hooks are bestiary_register_models", id="invented"
        ),
        pytest.param("def bestiary_register_models(register): pass", "'@hookimpl' above", id="undecorated"),
        pytest.param(
            "@hookimpl\ndef bestiary_register_models(register, more): pass",
            "PluginValidationError: Plugin 'odd' for hook 'bestiary_register_models'; hookimpl definition: "
            "bestiary_register_models(register, more); Argument(s) {'more'} are declared in the hookimpl but can not be "
            "found in the hookspec",
            id="wrong arguments",
        ),
        pytest.param(
            "@hookimpl(wrapper=True)\ndef bestiary_register_models(register):\n    yield", "wrapper", id="wrapper"
        ),
    ],
)
def test_hooks_that_would_never_be_called_are_refused(site, source, said):
    site.plugin("odd", source)
    broken = record(PluginHost.load(), "odd")
    assert broken.state == "broken" and said in broken.reason


def test_a_foreign_op_needs_a_prefix_and_a_built_in_command_is_taken(site):
    site.plugin("ops", "@hookimpl\ndef bestiary_register_ops(register): register(Op(name='norm', declaration='a:b'))")
    site.plugin(
        "cmd", "@hookimpl\ndef bestiary_register_commands(register): register(Command(name='run', help='', app='a:b'))"
    )
    host = PluginHost.load()
    assert "'myplugin::norm'" in record(host, "ops").reason
    assert "bestiary's own" in record(host, "cmd").reason


def test_register_works_only_during_its_hook(site):
    site.plugin(
        "late",
        "kept = []\n@hookimpl\ndef bestiary_register_kernels(register):\n    kept.append(register)\n",
    )
    PluginHost.load()
    import fake_late_plugin

    with pytest.raises(PluginError, match="outside of its hook call"):
        fake_late_plugin.kept[0](Kernel(op="a", name="b", run="c:d"))


def test_register_refuses_another_thread(site):
    source = """
    import threading
    failures = []
    @hookimpl
    def bestiary_register_kernels(register):
        def attempt():
            try: register(Kernel(op="fake::op", name="x", run="c:d"))
            except PluginError as error: failures.append(error)
        thread = threading.Thread(target=attempt)
        thread.start(); thread.join()
    """
    site.plugin("threaded", source)
    host = PluginHost.load()
    import fake_threaded_plugin

    assert len(fake_threaded_plugin.failures) == 1 and not host.kernels("fake::op")


def test_a_hook_that_asks_for_a_host_is_refused_instead_of_recursing(site):
    source = """
    @hookimpl
    def bestiary_register_kernels(register):
        from bestiary.core.plugins import PluginHost
        PluginHost.load()
    """
    site.plugin("loop", source)
    assert "a plugin host was asked for" in record(PluginHost.load(), "loop").reason


def test_what_is_registered_cannot_be_changed_afterwards(site):
    source = """
    weights = {"hf": "a:HF"}
    @hookimpl
    def bestiary_register_models(register):
        register(Model(name="fake", architectures=("FakeForCausalLM",), config="a:b", model="a:b", weights=weights))
        weights["gguf"] = "a:GGUF"
    """
    site.plugin("mutable", source)
    model = PluginHost.load().model("fake")
    assert dict(model.weights) == {"hf": "a:HF"}
    with pytest.raises(TypeError):
        model.weights["hf"] = "other"  # type: ignore[index]
    with pytest.raises(AttributeError):
        model.name = "other"  # type: ignore[misc]


def test_an_import_that_hangs_is_named_while_it_hangs(site, monkeypatch, caplog):
    monkeypatch.setattr(loading_module, "SLOW_IMPORT_SECONDS", 0.01)
    site.plugin("slow", "import threading; threading.Event().wait(0.5)")
    PluginHost.load()
    assert "plugin slow (fake-slow 1.0) has been importing" in caplog.text


def test_what_is_written_to_the_descriptor_of_stdout_goes_to_stderr(site, capfd):
    site.plugin("raw", "import os, sys\nos.write(1, b'RAW')\nsys.__stdout__.write('DUNDER')")
    os.write(1, b"before ")
    PluginHost.load()
    os.write(1, b"after")
    out, err = capfd.readouterr()
    assert out == "before after" and "RAW" in err and "DUNDER" in err


def test_a_plugin_without_stderr_leaves_it_to_the_next(site):
    site.plugin("arude", "import sys\nsys.stderr.close()\nsys.stderr = sys.stdout = None", version="0.3")
    site.plugin("zloud", "import sys\nsys.stderr.write('hello')\n" + KERNEL.format(name="quick"))
    before = sys.stderr
    host = PluginHost.load()
    assert sys.stderr is before and not before.closed
    assert (record(host, "arude").state, record(host, "zloud").state) == ("loaded", "loaded")


@pytest.mark.parametrize(
    ("module", "advice"),
    [("no_such_plugin", "put the folder of no_such_plugin on PYTHONPATH"), ("needy", "install what provides absent")],
)
def test_a_module_that_is_not_there_says_which_and_what_to_do(module, advice, tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import absent.inner\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=advice) as error:
        PluginHost.load(plugins=[module])
    assert error.value.code == "E-PLG-BROKEN"
