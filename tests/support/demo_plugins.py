"""Plugin distributions that misbehave, each in one way, and a few that don't."""

from __future__ import annotations

from scratch import Distribution

KERNEL = """
@hookimpl
def bestiary_register_kernels(register):
    register(Kernel(op="demo::op", name="{name}", run="{package}.plugin:run"))
"""
ARCHITECTURE = """
@hookimpl
def bestiary_register_models(register):
    register(Model(name="{name}", architectures=("ClashForCausalLM",), config="a:b", model="a:b", weights={{}}))

@hookimpl
def bestiary_register_kernels(register):
    register(Kernel(op="demo::clash", name="clash", run="{name}:run"))

@hookimpl
def bestiary_register_ops(register):
    register(Op(name="demo::{name}", declaration="a:b"))

@hookimpl
def bestiary_register_commands(register):
    register(Command(name="clash", help="{name}", app="demo_clash_{letter}.app:app"))
"""
HOOK = "@hookimpl\ndef bestiary_register_kernels(register):\n    {body}\n"
APP = "def app():\n    print('{letter} ran')\n"


def _clash(letter: str) -> Distribution:
    source = ARCHITECTURE.format(name=f"clash_{letter}", letter=letter)
    return Distribution(f"clash-{letter}", source, files={"app.py": APP.format(letter=letter)})


def _hook(name: str, body: str) -> Distribution:
    return Distribution(name, HOOK.format(body=body))


_KERNEL_LINE = 'register(Kernel(op="demo::op", name="x", run="a:b"))'

#: By id of the catalogue of plugin misbehaviour, where one distribution stands for one case.
DISTRIBUTIONS = (
    Distribution("good", KERNEL.format(name="good", package="demo_good") + "\ndef run(): ...\n"),
    Distribution("other", KERNEL.format(name="other", package="demo_other")),
    Distribution("import-error", "import no_such_module_here", version="0.3"),  # D01
    Distribution("syntax-error", "def broken(:"),
    Distribution("exits", "raise SystemExit(3)"),  # D02
    Distribution("base-exception", "class Odd(BaseException): pass\nraise Odd('oddly')"),
    Distribution("interrupts", "raise KeyboardInterrupt"),
    Distribution("hangs", "import time; time.sleep(0.6)"),  # D03
    Distribution("twin-a", "", entry="twin"),  # D06
    Distribution("twin-b", "", entry="twin", version="3.0"),
    _clash("a"),  # D07
    _clash("b"),
    Distribution("stale", "VERSION = 1"),  # D08
    Distribution("stale", "VERSION = 2", version="2.0"),
    Distribution("typo", "@hookimpl\ndef bestiary_register_model(register): pass"),  # D11
    Distribution(  # D12
        "arguments",
        'def _kernel():\n    return Kernel(op="demo::op", name="half", run="a:b")\n'
        "@hookimpl\ndef bestiary_register_kernels(register):\n    register(_kernel())\n"
        "@hookimpl\ndef bestiary_register_models(register, more): pass",
    ),
    Distribution(  # D13
        "raises", KERNEL.format(name="half", package="a") + "@hookimpl\ndef bestiary_register_models(register):\n"
        "    raise ValueError('inner')\n"
    ),
    _hook("returns", "return [1]"),  # D14
    _hook("generates", f"yield {_KERNEL_LINE}"),
    _hook("text", "register('text')"),
    _hook("nothing", "return None"),
    Distribution(  # D15
        "mutates",
        """
        weights = {"hf": "a:HF"}
        kept = []

        @hookimpl
        def bestiary_register_models(register):
            kept.append(Model(name="kept", architectures=("KeptForCausalLM",), config="a:b", model="a:b", weights=weights))
            register(kept[0])
            weights["gguf"] = "a:GGUF"
            kept[0].weights.clear()

        def supports(call):
            call.arguments["x"] = None

        @hookimpl
        def bestiary_register_kernels(register):
            register(Kernel(op="demo::op", name="mutates", run="a:b", supports=supports))
        """,
    ),
    _hook("reenters", "from bestiary.core.plugins import PluginHost; PluginHost.load()"),  # D16
    Distribution(
        "threads",
        """
        import threading
        from bestiary.core.plugins import PluginHost
        said = []

        def load():
            try:
                PluginHost.load()
            except PluginError as error:
                said.append(str(error))

        @hookimpl
        def bestiary_register_kernels(register):
            thread = threading.Thread(target=load)
            thread.start()
            thread.join()
        """,
    ),
    _hook("slow-hook", "import time; time.sleep(0.4)"),  # D17
    Distribution("named", "", entry="un named"),  # D32
    Distribution("reference", "", entry="module:os"),
    Distribution("command", "@hookimpl\ndef bestiary_register_commands(register):\n"
                 "    register(Command(name='doctor', help='', app='a:b'))"),
    Distribution("too-new", "", requires=("bestiary>=99",)),
    Distribution("unranged", "", requires=()),
)  # fmt: skip
