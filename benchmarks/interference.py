"""What a long prompt does to those who read along: 32 streams decode SmolLM2, then a prompt of 8,000 tokens arrives.

    OMP_NUM_THREADS=1 python benchmarks/interference.py [MODEL] [--streams N] [--context N] [--prompt N] [--settle N] [--paced-only] [--json]

The gaps between a stream's tokens are taken where they are read: before the prompt arrives, until its first token is there,
and after. Promised: the worst gap while the prompt runs is at most 3 times the median gap before it came. The streams' own
contexts grow all the while, whatever the prompt does, so against the median after it the ratio is smaller. For comparison
the same without pacing, where a step takes as much of the prompt as fits. With OMP_NUM_THREADS=1 the processor time of the
steps tells the same, whatever other processes do to the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from bisect import bisect
from collections.abc import Sequence

from decode_overhead import demo_model

from bestiary import LLM, SamplingParams
from bestiary.core.async_answer import AsyncAnswer
from bestiary.core.runtime.loop import EngineLoop
from bestiary.core.runtime.request import Request

PROMISE = 3.0
VOCAB = 49152
STREAM_TOKENS = 2000
SHOWN = {"median": "median", "99th percentile": "p99", "worst": "worst"}


class Unpaced:
    """In place of the scheduler's Pace: as much of a prompt as fits."""

    def chunk(self) -> int:
        return 1 << 30

    def admitted(self) -> None:
        pass

    def saw(self, *step: object) -> None:
        pass


class Reader:
    """Reads one stream and notes when its pieces come."""

    def __init__(self, answer: AsyncAnswer) -> None:
        self.answer, self.times = answer, list[float]()

    async def read(self) -> None:
        async for _ in self.answer:
            self.times.append(time.perf_counter())


class StepTimes:
    """Notes when each step of a loop ended, and how much processor time it took."""

    def __init__(self, loop: EngineLoop) -> None:
        self.ends, self.seconds, self._step = list[float](), list[float](), loop.step
        loop.step = self.step  # type: ignore[method-assign]

    def step(self) -> list[Request]:
        start = time.process_time()
        ended = self._step()
        self.seconds.append(time.process_time() - start)
        self.ends.append(time.perf_counter())
        return ended

    def between(self, start: float, end: float) -> list[float]:
        return self.seconds[bisect(self.ends, start) : bisect(self.ends, end)]


async def settled(readers: Sequence[Reader], pieces: int) -> None:
    """Until every reader has so many more pieces."""
    wanted = [len(reader.times) + pieces for reader in readers]
    while any(len(reader.times) < count for reader, count in zip(readers, wanted, strict=True)):
        await asyncio.sleep(0.05)


async def interfere(
    llm: LLM, steps: StepTimes, streams: int, context: int, prompt: int, settle: int
) -> dict[str, float]:
    """Seconds: median and worst gaps before, during and after, and the newcomer's time to its first token."""
    rng = random.Random(5)

    def start(length: int, tokens: int) -> Reader:
        ids = [rng.randrange(1000, VOCAB - 2000) for _ in range(length)]
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        return Reader(llm.generate_async({"prompt_token_ids": ids}, params))

    readers = [start(context, STREAM_TOKENS) for _ in range(streams)]
    tasks = [asyncio.create_task(reader.read()) for reader in readers]
    await settled(readers, settle)  # the first steps, with the streams' own prompts in them, are not looked at
    if llm.stats().running < streams:
        raise SystemExit(f"only {llm.stats().running} of {streams} streams run: the KV cache is too small")
    began = time.perf_counter()
    await settled(readers, settle)
    arrived = time.perf_counter()
    newcomer = start(prompt, 1)
    await newcomer.read()
    answered = newcomer.times[0]
    await settled(readers, settle)
    ended = time.perf_counter()
    for reader in readers:
        reader.answer.abort()
    await asyncio.gather(*tasks)
    found = {"first_token_s": answered - arrived}
    for phase, start_at, end_at in (
        ("before", began, arrived),
        ("during", arrived, answered),
        ("after", answered, ended),
    ):
        gaps = gaps_between(readers, start_at, end_at)
        found |= {
            f"{phase}_median_s": statistics.median(gaps),
            f"{phase}_worst_s": max(gaps),
            f"{phase}_gaps": len(gaps),
        }
        found[f"{phase}_p99_s"] = sorted(gaps)[int(0.99 * len(gaps))]
    return {
        **found,
        "before_median_cpu_s": statistics.median(steps.between(began, arrived)),
        "during_worst_cpu_s": max(steps.between(arrived, answered)),
    }


def gaps_between(readers: Sequence[Reader], start: float, end: float) -> list[float]:
    """All gaps that a piece between two moments ended."""
    gaps = []
    for reader in readers:
        first, last = max(1, bisect(reader.times, start)), bisect(reader.times, end)
        # The gap under way at the end counts where the piece that ends it has come.
        last = min(last + 1, len(reader.times))
        gaps += [reader.times[i] - reader.times[i - 1] for i in range(first, last)]
    return gaps


def report(name: str, row: dict[str, float]) -> None:
    for phase in ("before", "during", "after"):
        gaps = ", ".join(f"{text} {1e3 * row[f'{phase}_{key}_s']:.0f} ms" for text, key in SHOWN.items())
        print(f"{name:>8} {phase:>6}: {row[f'{phase}_gaps']:>6} gaps, {gaps}")
    worst, median = row["during_worst_s"], row["before_median_s"]
    verdict = "kept" if worst <= PROMISE * median else "broken"
    print(
        f"{name:>8} worst gap while the prompt ran: {worst / median:.2f} × the median of {1e3 * median:.0f} ms before it "
        f"({worst / row['after_median_s']:.2f} × after; promise of {PROMISE:g} × {verdict}); its first token after {row['first_token_s']:.1f} s"
    )
    worst, median = row["during_worst_cpu_s"], row["before_median_cpu_s"]
    print(
        f"{name:>8} processor time of the longest step: {worst / median:.2f} × the median of {1e3 * median:.0f} ms before",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--context", type=int, default=256, help="tokens of each stream's own prompt")
    parser.add_argument("--prompt", type=int, default=8000)
    parser.add_argument("--settle", type=int, default=24, help="tokens of each stream before and after")
    parser.add_argument("--paced-only", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = {}
    options = {"tokenizer": None, "max_seq_len": 8192, "prefix_caching": False, "kv_cache_memory": 2**32}
    with LLM(arguments.model or demo_model(), **options) as llm:  # type: ignore[arg-type]
        steps = StepTimes(llm._driver.loop)
        for name in ("paced",) if arguments.paced_only else ("paced", "unpaced"):
            if name == "unpaced":
                llm._driver.loop.scheduler.pace = Unpaced()  # type: ignore[assignment]
            rows[name] = asyncio.run(
                interfere(llm, steps, arguments.streams, arguments.context, arguments.prompt, arguments.settle)
            )
            if not arguments.json:
                report(name, rows[name])
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
