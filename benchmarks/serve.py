"""Throughput of a batch of unequal requests on the CPU: ``serve32`` with SmolLM2, against transformers' static batching.

    python benchmarks/serve.py [--dtypes bfloat16,float32] [--rounds N] [--requests N] [--before COMMIT] [--json]

32 requests at once, ``r = Random(20240614)``; for each in turn ``p, o = r.randint(32, 256), r.randint(32, 128)``, then p ids by
``r.randrange(1000, vocab - 2000)``; o tokens are generated, greedily, whatever they are. Output tokens a second over the whole
time. transformers pads the prompts on the left and generates as many tokens as the longest answer has; only those that were
asked for count. Each candidate runs in a process of its own with equally many threads, in turns. ``--before`` adds an earlier
commit of this repository, checked out beside it for the time of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from decode_overhead import demo_model

ROOT = Path(__file__).resolve().parent.parent
VOCAB = 49152


def workload(requests: int) -> list[tuple[list[int], int]]:
    """Prompts, and how many tokens each wants."""
    r = random.Random(20240614)
    found = []
    for _ in range(requests):
        p, o = r.randint(32, 256), r.randint(32, 128)
        found.append(([r.randrange(1000, VOCAB - 2000) for _ in range(p)], o))
    return found


def run_bestiary(dtype: str, requests: int) -> float:
    """Seconds of the workload."""
    from bestiary import LLM, SamplingParams

    work = workload(requests)
    params = [SamplingParams(temperature=0, max_tokens=o, ignore_eos=True, detokenize=False) for _, o in work]
    with LLM(demo_model(), dtype=dtype, max_seq_len=512, kv_cache_memory=2**30) as llm:
        llm.generate([list(range(1000, 1064))] * 2, params[0], use_tqdm=False)
        start = time.perf_counter()
        answers = llm.generate([{"prompt_token_ids": ids} for ids, _ in work], params, use_tqdm=False)
        seconds = time.perf_counter() - start
    assert [len(answer.outputs[0].token_ids) for answer in answers] == [o for _, o in work]
    return seconds


def run_transformers(dtype: str, requests: int) -> float:
    """Seconds of the workload."""
    import torch
    from transformers import AutoModelForCausalLM

    file = Path(demo_model())
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=getattr(torch, dtype)).eval()
    work = workload(requests)
    longest, most = max(len(ids) for ids, _ in work), max(o for _, o in work)
    ids = torch.zeros(len(work), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (prompt, _) in enumerate(work):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        model.generate(ids[:2, :64], attention_mask=torch.ones_like(ids[:2, :64]), max_new_tokens=8, **options)
        start = time.perf_counter()
        answers = model.generate(ids, attention_mask=mask, max_new_tokens=most, **options)
        seconds = time.perf_counter() - start
    assert answers.shape[1] == longest + most
    return seconds


def measured(candidate: str, dtype: str, requests: int, sources: Path, home: str) -> float:
    """Output tokens a second, in a process of its own."""
    paths = [sources, *sources.glob("models/*")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "BESTIARY_HOME": home}
    command = [sys.executable, __file__, "--requests", str(requests), "--one", candidate, dtype]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return sum(o for _, o in workload(requests)) / float(done.stdout.split()[-1])


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A commit's files."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch, "before")
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", place, commit], check=True)
        try:
            yield place
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", place], check=True)


def compare(candidates: dict[str, Path], arguments: argparse.Namespace) -> list[dict[str, object]]:
    """All candidates in turn, so that what else the machine does meets all of them."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for dtype in arguments.dtypes.split(","):
            rates: dict[str, list[float]] = {candidate: [] for candidate in candidates}
            for _ in range(arguments.rounds):
                for candidate, sources in candidates.items():
                    home = f"{scratch}/{candidate}"
                    rates[candidate].append(measured(candidate, dtype, arguments.requests, sources, home))
                    print(f"# {dtype} {candidate} {rates[candidate][-1]:.1f} tok/s", file=sys.stderr, flush=True)
            medians = {candidate: statistics.median(found) for candidate, found in rates.items()}
            rows += [
                {
                    "dtype": dtype,
                    "candidate": candidate,
                    "tok_s": round(median, 1),
                    "rounds": [round(rate, 1) for rate in rates[candidate]],
                    "bestiary_is": round(medians["bestiary"] / median, 2),
                }
                for candidate, median in medians.items()
            ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--requests", type=int, default=32, help="the first so many")
    parser.add_argument("--before", metavar="COMMIT")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("CANDIDATE", "DTYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        candidate, dtype = arguments.one
        run = run_transformers if candidate == "transformers" else run_bestiary
        print(run(dtype, arguments.requests))
        return
    candidates = {"bestiary": ROOT, "transformers": ROOT}
    if arguments.before:
        with checked_out(arguments.before) as place:
            rows = compare({**candidates, f"before ({arguments.before})": place}, arguments)
    else:
        rows = compare(candidates, arguments)
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"{row['dtype']:>8} {row['candidate']:<20} {row['tok_s']} out tok/s {row['rounds']}; "
            f"bestiary has {row['bestiary_is']} × of it"
        )


if __name__ == "__main__":
    main()
