"""Host time of a decode step outside the device's work: an EngineLoop and its Scheduler over an executor that does nothing.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/loop_overhead.py [--steps N] [--json] [--profile]

A step is all between two results: deciding, packing, launching, asking, taking in. Blocks fill up, and their prefixes are
hashed and kept as in service. The last column, for information: the Python of a step's inputs and of its sampling, on
small CPU tensors; it is the device's side, and runs in the rank.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import time

import numpy as np
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel as Bytes

from bestiary import SamplingParams
from bestiary.core.answer import TextAnswer
from bestiary.core.errors import EngineError
from bestiary.core.program.shapes import Sizes
from bestiary.core.resolve_params import resolve
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.inputs import StepInputs
from bestiary.core.runtime.kv_store import KVStore
from bestiary.core.runtime.loop import EngineLoop
from bestiary.core.runtime.messages import EMPTY, Ints, Opened, SampledMessage, SampleMessage, StepMessage, TableChanges
from bestiary.core.runtime.request import Request
from bestiary.core.runtime.sampler import Sampler
from bestiary.core.runtime.scheduler import Scheduler
from bestiary.core.text.tokenizer import Tokenizer
from bestiary.layers.cache import CacheSpec

TARGETS_US = {64: 300, 512: 1500}
VOCAB = 256
PROMPT = 32
BLOCK = 16
DRAWN = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 1, "ignore_eos": True, "max_tokens": None}
#: What the requests ask for, and whether someone reads along. The targets are for the first.
WORKLOADS = {
    "greedy": (SamplingParams(temperature=0, max_tokens=None, ignore_eos=True), False),
    "drawn": (SamplingParams(**DRAWN), False),
    "drawn, read along": (SamplingParams(**DRAWN), True),
    "drawn, read along, stop string": (SamplingParams(**DRAWN, stop="zebra"), True),
}


class Answered:
    """Results that are there at once."""

    def __init__(self, slots: Ints) -> None:
        self._tokens = slots % 26 + 64

    def read(self) -> SampledMessage:
        return SampledMessage(self._tokens)


class NullExecutor:
    """Does nothing, and chooses a token by the slot."""

    takes_functions = True

    def __init__(self, overlaps: bool) -> None:
        self.overlaps = overlaps
        self.failure: EngineError | None = None

    def forward(self, step: StepMessage) -> None:
        pass

    def sample(self, wanted: SampleMessage) -> Answered:
        return Answered(wanted.slots)

    def close(self) -> None:
        pass


def tokenizer() -> Tokenizer:
    """A token a byte."""
    backend = RustTokenizer(BPE({symbol: i for i, symbol in enumerate(sorted(Bytes.alphabet()))}, []))
    backend.decoder = ByteLevel()
    return Tokenizer(backend)


def nothing() -> None:
    """In place of someone who reads along."""


def steady(requests: int, workload: str, overlaps: bool, steps: int) -> EngineLoop:
    """A loop in which so many requests decode."""
    params, read_along = WORKLOADS[workload]
    length = PROMPT + steps + 32
    scheduler = Scheduler(
        [CacheGroup(requests * (length // BLOCK + 1), BLOCK)],
        max_batch_size=requests,
        max_num_tokens=requests * PROMPT,
        max_seq_len=length,
    )
    loop, text = EngineLoop(NullExecutor(overlaps), scheduler, vocab_size=VOCAB), tokenizer()
    resolved = resolve(params, vocab_size=VOCAB)
    started = []
    for number in range(requests):
        # Prompts of different lengths, so that the blocks fill up in different steps.
        prompt = [number % VOCAB, number // VOCAB, *range(PROMPT - 2 - number % BLOCK)]
        request = Request(str(number), prompt, resolved, max_seq_len=length, streams=read_along)
        loop.submit(request, TextAnswer(request, text, on_news=nothing if read_along else None))
        started.append(request)
    while not all(request.num_output for request in started):
        loop.step()
    return loop


def step_us(loop: EngineLoop, steps: int) -> list[float]:
    """Microseconds of each of the next steps."""
    running, times = len(loop.scheduler.running), []
    for _ in range(steps):
        start = time.perf_counter()
        loop.step()
        times.append((time.perf_counter() - start) * 1e6)
    assert len(loop.scheduler.running) == running
    return times


def device_side_us(requests: int, workload: str, steps: int = 64) -> float:
    """Median microseconds of a decode step's inputs and sampling."""
    device, blocks = torch.device("cpu"), 8
    groups = (CacheGroup(requests * blocks, BLOCK),)
    store = KVStore({"layer": CacheSpec(1, 8, 8)}, {"layer": 0}, groups, torch.float32, device)
    inputs = StepInputs(store, Sizes(requests, requests, requests), blocks * BLOCK, device)
    sampler = Sampler(inputs.state, lambda name: lambda *given: given[-1])
    slots, ones = np.arange(requests, dtype=np.int32), np.ones(requests, np.int32)
    resolved = resolve(WORKLOADS[workload][0], vocab_size=VOCAB)
    opened = tuple(
        Opened(slot, PROMPT, PROMPT, np.arange(PROMPT, dtype=np.int32), resolved.for_ranks) for slot in range(requests)
    )
    places, every = np.tile(np.arange(blocks, dtype=np.int32), requests), np.arange(requests * blocks, dtype=np.int32)
    tables = (TableChanges(slots.repeat(blocks), places, every, EMPTY, EMPTY, EMPTY),)
    logits = torch.randn(requests, VOCAB, generator=torch.Generator().manual_seed(0))
    sampler.open(opened)
    times = []
    with torch.inference_mode():
        for number in range(steps):
            message = StepMessage(number, slots, ones, requests, EMPTY, None, opened, tables, PROMPT + number)
            start = time.perf_counter()
            inputs.write(message)
            sampler.sample(logits, SampleMessage(slots, plain=resolved.plain))
            times.append((time.perf_counter() - start) * 1e6)
            opened, tables = (), ()
    return statistics.median(times)


def measure(requests: int, workload: str, steps: int) -> dict[str, object]:
    row: dict[str, object] = {"requests": requests, "workload": workload}
    for name, overlaps in (("", False), ("_ahead", True)):
        times = step_us(steady(requests, workload, overlaps, steps), steps)
        row[f"median{name}_us"], row[f"mean{name}_us"] = round(statistics.median(times)), round(statistics.mean(times))
    return {**row, "device_side_us": round(device_side_us(requests, workload))}


def profile(steps: int) -> None:
    """Where the host's time goes with the most requests."""
    loop = steady(max(TARGETS_US), "greedy", True, steps)
    with cProfile.Profile() as profiler:
        step_us(loop, steps)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by function")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.profile:
        profile(arguments.steps)
        return
    rows = [measure(requests, workload, arguments.steps) for requests in TARGETS_US for workload in WORKLOADS]
    if arguments.json:
        print(json.dumps(rows))
        return
    print("host µs a step: median (mean), one by one and with the next step launched ahead")
    for row in rows:
        target = TARGETS_US[row["requests"]]  # type: ignore[index]
        verdict = ("met" if max(row["median_us"], row["median_ahead_us"]) <= target else "missed",)  # type: ignore[call-overload]
        print(
            f"{row['requests']:>4} {row['workload']:<31}: {row['median_us']} ({row['mean_us']}), ahead "
            f"{row['median_ahead_us']} ({row['mean_ahead_us']}); device side {row['device_side_us']}"
            + (f"; target {target}: {verdict[0]}" if row["workload"] == "greedy" else "")
        )


if __name__ == "__main__":
    main()
