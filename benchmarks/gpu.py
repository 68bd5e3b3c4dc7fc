"""Speed on a GPU, on random weights in the shape of Llama-3.1-8B, beside what the device itself can do.

    python benchmarks/gpu.py                       all workloads
    python benchmarks/gpu.py --workloads W1 W5     some
    python benchmarks/gpu.py --json results.json

W1 one request, 128 in, 256 out · W2 one of 8192 in, 1 out · W3 512 mixed requests at once · W4 256 requests that share 2048
tokens · W5 64 requests, 128 in, 256 out. Prompts are uniform random ids, greedy, end tokens ignored, the prefix cache is empty
before each run. Every output is checked to have its full length.
    python benchmarks/gpu.py --two-engines         W1 and W5 with two engines alive, W5's driven from another thread
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from bestiary import LLM, SamplingParams

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "dtype": "bfloat16",
}
IDS = 128000  # prompts are drawn from below this
#: Output tok/s (W2: ms) of others on one H100, measured on 2026-11-22: vLLM 0.26 in bf16.
PEERS = {"W1": 151.4, "W1 first token": 12.0, "W2": 211.8, "W3": 8701.0, "W4": 8514.0, "W5": 7368.0}


def ids(rng: Random, count: int) -> list[int]:
    return [rng.randrange(IDS) for _ in range(count)]


class Bench:
    """Runs workloads on an engine."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.outputs: list[list[int]] = []  # W5's

    def seconds(self, prompts: Sequence[list[int]], lengths: Sequence[int]) -> tuple[float, list[list[int]]]:
        """Time and outputs of requests submitted at once."""
        self.llm.reset_prefix_cache()
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for n in lengths]
        torch.cuda.synchronize()
        began = time.perf_counter()
        outs = self.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        taken = time.perf_counter() - began
        tokens = [list(out.outputs[0].token_ids) for out in outs]
        wrong = [i for i, (got, n) in enumerate(zip(tokens, lengths, strict=True)) if len(got) != n]
        assert not wrong, f"requests {wrong[:5]} did not reach their length: {outs[wrong[0]].outputs[0]}"
        return taken, tokens

    def median(self, prompts: Sequence[list[int]], lengths: Sequence[int], repeats: int) -> float:
        return statistics.median(self.seconds(prompts, lengths)[0] for _ in range(repeats))

    def w1(self) -> dict[str, float]:
        prompt = [ids(Random(1), 128)]
        self.seconds(prompt, [8])
        first, whole = self.median(prompt, [1], 5), self.median(prompt, [256], 3)
        return {"W1": 255 / (whole - first), "W1 first token": first * 1e3}

    def w2(self) -> dict[str, float]:
        prompt = [ids(Random(2), 8192)]
        self.seconds(prompt, [1])
        return {"W2": self.median(prompt, [1], 3) * 1e3}

    def w3(self) -> dict[str, float]:
        rng = Random(3)
        sizes = [(rng.randint(64, 1024), rng.randint(64, 512)) for _ in range(512)]
        prompts = [ids(rng, size) for size, _ in sizes]
        lengths = [out for _, out in sizes]
        return {"W3": sum(lengths) / self.seconds(prompts, lengths)[0]}

    def w4(self) -> dict[str, float]:
        rng = Random(4)
        shared = ids(rng, 2048)
        prompts = [shared + ids(rng, 64) for _ in range(256)]
        return {"W4": 256 * 64 / self.seconds(prompts, [64] * 256)[0]}

    def w5(self) -> dict[str, float]:
        rng = Random(5)
        prompts = [ids(rng, 128) for _ in range(64)]
        self.seconds(prompts, [8] * 64)
        taken, together = self.seconds(prompts, [256] * 64)
        self.outputs = together
        return {"W5": 64 * 256 / taken}


def ceilings() -> dict[str, float]:
    """What the device does at best: copies in TB/s (read and write), bf16 products in TFLOP/s."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    copy, product = best(lambda: target.copy_(source)), best(lambda: torch.mm(left, right))
    return {"copy TB/s": 2 * source.nbytes / copy / 1e12, "bf16 TFLOP/s": 2 * 8192**3 / product / 1e12}


def best(run: Callable[[], Any], repeats: int = 10) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return min(times[3:])


def two_engines(directory: Path, options: dict[str, Any]) -> dict[str, float]:
    """W1 on one engine, W5 on another that a second thread drives, both alive; then W5 on both at once, which must give
    the tokens that each engine gives while the other rests."""
    with LLM(directory, seed=1, **options) as one, LLM(directory, seed=2, **options) as two:
        first, second = Bench(one), Bench(two)
        figures = {f"{name}, two engines alive": value for name, value in first.w1().items()}
        figures["W5, two engines alive, from another thread"] = in_thread(second.w5)()["W5"]
        first.w5()
        alone = first.outputs, second.outputs
        both = in_thread(second.w5)
        figures["W5 while the other engine runs it too, this thread"] = first.w5()["W5"]
        figures["W5 while the other engine runs it too, other thread"] = both()["W5"]
        assert alone[0] != alone[1], "the two engines have the same weights"
        assert (first.outputs, second.outputs) == alone, "another engine changed the tokens"
        figures["graphs recorded, both engines"] = sum(llm.engine.runner.num_graphs for llm in (one, two))
        return figures


def in_thread(run: Callable[[], dict[str, float]]) -> Callable[[], dict[str, float]]:
    """Run in a thread of its own; calling the result waits for it."""
    found: list[dict[str, float]] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            found.append(run())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()

    def wait() -> dict[str, float]:
        thread.join()
        if failures:
            raise failures[0]
        return found[0]

    return wait


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="*", default=["W1", "W2", "W3", "W4", "W5"])
    parser.add_argument("--max-num-tokens", type=int, default=8192)
    parser.add_argument("--max-batch-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=32, help="fewer layers, for a quick look")
    parser.add_argument("--two-engines", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: needs a CUDA device; this machine has none")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": given.layers}))
        options: dict[str, Any] = {
            "weights": "random",
            "tokenizer": None,
            "max_batch_size": given.max_batch_size,
            "max_seq_len": 9216,
            "max_num_tokens": given.max_num_tokens,
        }
        if given.two_engines:
            figures |= two_engines(directory, {**options, "max_batch_size": 64, "kv_cache_memory": 8 * 2**30})
            show(figures)
        began = time.perf_counter()
        with LLM(directory, kv_cache_memory=0.85, **options) as llm:
            figures["start s"] = time.perf_counter() - began
            bench = Bench(llm)
            for workload in given.workloads:
                figures |= getattr(bench, workload.lower())()
                show(figures)
            figures["graphs recorded"] = llm.engine.runner.num_graphs
            stats = llm.stats()
            figures |= {"last steps, ms": stats.step_seconds * 1e3, "host of it, ms": stats.host_seconds * 1e3}
    figures |= ceilings()
    show(figures)
    if given.json:
        about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "commit": commit()}
        given.json.write_text(json.dumps({**about, "figures": figures, "vLLM 0.26 on an H100": PEERS}, indent=1) + "\n")


def show(figures: dict[str, float]) -> None:
    for name, value in figures.items():
        beside = f"   vLLM 0.26: {PEERS[name]:,.1f}, ratio {value / PEERS[name]:.2f}" if name in PEERS else ""
        print(f"{name:60} {value:12,.2f}{beside}", flush=True)
    print(flush=True)


def commit() -> str:
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    main()
