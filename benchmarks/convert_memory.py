"""Memory of a conversion: anonymous memory above the imports, as a multiple of the largest tensor written.

    python benchmarks/convert_memory.py [--size 4.0] [--dtype auto|float32|bfloat16|float16] [--directory DIR]

A Llama of about ``size`` GB in bfloat16 is made, with a shard for each layer. The target
takes as much space again (twice with ``--dtype float32``). The bound is 2; both directories are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import threading
import time
from pathlib import Path

import torch

from bestiary.converters.convert import convert
from bestiary.core.checkpoint import Checkpoint
from bestiary.core.checkpoint.safetensors import SafetensorsWriter, Slot, chunked
from bestiary.core.plugins import PluginHost

HIDDEN, INNER, VOCABULARY, HEADS, KV_HEADS, HEAD = 2048, 8192, 64000, 16, 4, 128
LAYER = {
    "input_layernorm": (HIDDEN,),
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "post_attention_layernorm": (HIDDEN,),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def anonymous() -> int:
    """Anonymous resident memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Sampler(threading.Thread):
    """Watches the peak; the conversion itself runs in the main thread."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_at = self.peak = anonymous()
        self._stop_now = threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(0.002):
            self.peak = max(self.peak, anonymous())

    def finish(self) -> int:
        self._stop_now.set()
        self.join()
        return self.peak - self.start_at


def make_source(directory: Path, size: float) -> None:
    """An index and a shard for each layer, all layers with the same random numbers."""
    per_layer = 2 * sum(math.prod(shape) for shape in LAYER.values())
    layers = max(1, round((size * 1e9 - 4 * VOCABULARY * HIDDEN) / per_layer))
    directory.mkdir()
    block = torch.randn(max(VOCABULARY, INNER) * HIDDEN).to(torch.bfloat16).view(torch.uint8).numpy()
    ends = {"model.embed_tokens": (VOCABULARY, HIDDEN), "lm_head": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,)}
    shards = {"ends.safetensors": ends}
    for layer in range(layers):
        shards[f"layer-{layer}.safetensors"] = {f"model.layers.{layer}.{name}": shape for name, shape in LAYER.items()}
    places = {}
    for shard, modules in shards.items():
        plan = [Slot(f"{module}.weight", "bfloat16", shape) for module, shape in modules.items()]
        with SafetensorsWriter(directory / shard, plan) as writer:
            for slot in plan:
                writer.write(slot.name, chunked(memoryview(block[: slot.nbytes])))
            writer.finish()
        places |= {slot.name: shard for slot in plan}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=4.0, help="GB of weights")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--directory", type=Path, default=None, help="where to work; the system's temporary directory")
    options = parser.parse_args()
    host = PluginHost.load()
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        source, target = Path(scratch) / "source", Path(scratch) / "checkpoint"
        make_source(source, options.size)
        small = Path(scratch) / "small"
        # The first conversion pays for the imports and the allocator's pools, which are no part of the bound.
        make_source(small, 0.7)
        convert(small, Path(scratch) / "warm", host=host, dtype=options.dtype)
        shutil.rmtree(Path(scratch) / "warm")
        sampler = Sampler()
        sampler.start()
        started = time.perf_counter()
        report = convert(source, target, host=host, dtype=options.dtype)
        seconds = time.perf_counter() - started
        used = sampler.finish()
        largest = max(entry.nbytes for entry in Checkpoint.open(target).weights.entries.values())
    print(
        f"{report.bytes / 1e9:.2f} GB in {seconds:.1f} s ({report.bytes / 1e9 / seconds:.2f} GB/s), dtype {report.dtype}"
    )
    print(f"largest tensor written {largest / 1e6:.0f} MB, anonymous memory above the imports {used / 1e6:.0f} MB")
    print(f"ratio {used / largest:.2f} (bound 2)")


if __name__ == "__main__":
    main()
