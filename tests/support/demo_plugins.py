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


_LIAR = """
@hookimpl
def bestiary_register_models(register):
    for name in ("honest", "more", "fewer", "heads", "cache", "single"):
        register(
            Model(
                name=name,
                architectures=(f"{name}ForCausalLM",),
                config="demo_liar.config:Config",
                model=f"demo_liar.model:{name}",
                weights={"hf": "demo_liar.convert:HF"},
            )
        )
"""
_LIAR_CONFIG = """
from bestiary.spec import ModelConfig

class Config(ModelConfig):
    num_attention_heads: int
    num_key_value_heads: int
"""
_LIAR_WEIGHTS = """
from bestiary.converters import WeightMap

L, M = "layers.{}", "layer.{}"
PROJECTIONS = {f"{L}.attention.{name}": f"{M}.{name}" for name in "qkvo"}
HF = WeightMap({"embed": "embed", f"{L}.norm": f"{M}.norm", **PROJECTIONS, "norm": "norm"})
"""
_LIAR_MODEL = """
from torch import nn
from bestiary.layers import Attention, CacheSpec, CausalLM, Embedding, Head, KVCache, LayerStack, RMSNorm

class Layer(nn.Module):
    def __init__(self, c, kv_heads, cached):
        super().__init__()
        self.norm = RMSNorm(c.hidden_size, eps=1e-5)
        head = c.hidden_size // c.num_attention_heads
        self.attention = Attention(
            c.hidden_size, heads=c.num_attention_heads, kv_heads=kv_heads, head_dim=head, rope=None
        )
        if cached:
            self.attention.cache = KVCache(CacheSpec(cached, head, head))

    def forward(self, x, step):
        return x + self.attention(self.norm(x), step)

class honest(CausalLM):
    layers_more, kv_heads, cached = 0, None, None

    def __init__(self, c):
        super().__init__()
        kv_heads = self.kv_heads or c.num_key_value_heads
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.layers = LayerStack(c.num_hidden_layers + self.layers_more, lambda i: Layer(c, kv_heads, self.cached))
        self.norm = RMSNorm(c.hidden_size, eps=1e-5)
        self.head = Head(c.hidden_size, c.vocab_size, tied=self.embed)

class more(honest): layers_more = 1
class fewer(honest): layers_more = -1
class heads(honest): kv_heads = 4
class cache(honest): cached = 4
class single(honest): cached = 1
"""

#: Code that has ``attempt(name, model, kv_heads)``: write a model of two layers with 4 heads of 4 features as files that
#: the plugin liar knows, convert it to ``NAME.ckpt`` and build ``NAME.engine``. It gives what went wrong, or a code of None.
ATTEMPT = """
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bestiary import BestiaryError
from bestiary.converters.convert import convert
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost


def attempt(name, model, kv_heads, **chosen):
    shapes = {"embed": (32, 16), "norm": (16,)}
    for layer in range(2):
        q, k = (16, 16), (4 * kv_heads, 16)
        shapes |= {f"layer.{layer}.{part}": s for part, s in zip("norm q k v o".split(), ((16,), q, k, k, q))}
    folder = Path(name)
    folder.mkdir()
    save_file({f"{one}.weight": np.ones(s, np.float32) for one, s in shapes.items()}, folder / "model.safetensors")
    config = {
        "architectures": [f"{model}ForCausalLM"], "model_type": model, "hidden_size": 16, "vocab_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
    }
    (folder / "config.json").write_text(json.dumps(config))
    try:
        convert(folder, Path(f"{name}.ckpt"), host=host)
        options = BuildOptions(device="cpu", max_batch_size=2, max_num_tokens=16, **chosen)
        build(Path(f"{name}.ckpt"), Path(f"{name}.engine"), host=host, options=options)
    except BestiaryError as error:
        return {**error.as_dict(), "status": error.exit_status, "written": Path(f"{name}.engine").exists()}
    return {"code": None}


host = PluginHost.load()
"""

_FAULTS = """
@hookimpl
def bestiary_register_ops(register):
    register(Op(name="demo::scale", declaration="demo_faults.ops:scale"))

@hookimpl
def bestiary_register_kernels(register):
    for name in (
        "right", "replaces", "retypes", "beyond", "short", "spoils", "keeps", "returns", "fickle", "social", "off",
        "segfaults",
    ):
        more = {"batch_invariant": True} if name == "social" else {}
        register(Kernel(op="demo::scale", name=name, run=f"demo_faults.kernels:{name}", **more))
"""
_FAULTS_OP = """
from torch import Tensor
from bestiary.ops import Tolerance, normal, op

def _inputs(generator, dtype):
    for tokens, features in ((3, 5), (4, 8)):
        yield normal(generator, tokens, features, dtype=dtype), normal(generator, features, dtype=dtype)

@op(
    name="demo::scale",
    inputs=_inputs,
    tolerances={"float32": Tolerance(1e-4, 0.0)},
    fake=lambda x, weight: x.new_empty(x.shape),
    rows=("x",),
)
def scale(x: Tensor, weight: Tensor) -> Tensor:
    \"\"\"``x · weight``: x ``[T, F]``, weight ``[F]`` → ``[T, F]``.\"\"\"
    return x * weight
"""
#: Each but the first has the fault that it is named after.
_FAULTS_KERNELS = """
import ctypes
import itertools
import torch

count, kept = itertools.count(), []

def right(x, weight, *, out):
    torch.mul(x, weight, out=out)

def replaces(x, weight, *, out):
    out.set_(x * weight)

def retypes(x, weight, *, out):
    out.data = (x * weight).double()

def beyond(x, weight, *, out):
    right(x, weight, out=out)
    out.as_strided((out.numel() + 1,), (1,))[-1] = 0

def short(x, weight, *, out):
    out[:-1] = (x * weight)[:-1]

def spoils(x, weight, *, out):
    right(x, weight, out=out)
    weight.add_(1)

def keeps(x, weight, *, out):
    right(x, weight, out=out)
    kept.append(weight[:1])

def returns(x, weight, *, out):
    right(x, weight, out=out)
    return x[:1]

def fickle(x, weight, *, out):
    torch.add(x * weight, 1e-6 * next(count), out=out)

def social(x, weight, *, out):
    torch.mul(x * weight, 1 + 1e-7 * len(x), out=out)

def off(x, weight, *, out):
    torch.add(x * weight, 2e-4, out=out)

def segfaults(x, weight, *, out):
    ctypes.string_at(0)
"""
_NORMS = """
@hookimpl
def bestiary_register_kernels(register):
    for name in ("replaces", "off", "segfaults"):
        register(Kernel(op="rms_norm", name=name, run=f"demo_norms.kernels:{name}"))
"""
_NORM_KERNELS = """
import ctypes

def replaces(x, weight, eps, *, out):
    out.set_(x * weight)

def off(x, weight, eps, *, out):
    out.fill_(3)

def segfaults(x, weight, eps, *, out):
    ctypes.string_at(0)
"""
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
    Distribution(  # D20
        "liar", _LIAR, files={"config.py": _LIAR_CONFIG, "convert.py": _LIAR_WEIGHTS, "model.py": _LIAR_MODEL}
    ),
    Distribution("faults", _FAULTS, files={"ops.py": _FAULTS_OP, "kernels.py": _FAULTS_KERNELS}),  # D21 to D29
    Distribution("norms", _NORMS, files={"kernels.py": _NORM_KERNELS}),
    Distribution("named", "", entry="un named"),  # D32
    Distribution("reference", "", entry="module:os"),
    Distribution("command", "@hookimpl\ndef bestiary_register_commands(register):\n"
                 "    register(Command(name='doctor', help='', app='a:b'))"),
    Distribution("too-new", "", requires=("bestiary>=99",)),
    Distribution("unranged", "", requires=()),
)  # fmt: skip
