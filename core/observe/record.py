"""Running prompts with every call of the engine recorded."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

from bestiary.core.engine.engine import EngineManifest
from bestiary.core.errors import EngineError, UsageError
from bestiary.core.llm import LLM
from bestiary.core.observe.calls import Call
from bestiary.core.observe.recorder import Recorder, Step
from bestiary.core.observe.roofs import Roofs, measure
from bestiary.core.outputs import RequestOutput
from bestiary.core.runtime.runner import Runner
from bestiary.core.sampling_params import SamplingParams

_WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class Recording:
    """A run with every call recorded.

    Args:
        steps: in their order.
        wall: seconds of the run.
        plain_wall: seconds of the same run just before, without recording.
        roofs: what the device can do.
    """

    outputs: list[RequestOutput]
    steps: list[Step]
    wall: float
    plain_wall: float
    roofs: Roofs

    @property
    def calls(self) -> list[Call]:
        """Of all steps."""
        return [call for step in self.steps for call in step.calls]

    @property
    def in_calls(self) -> float:
        """Seconds in calls."""
        return sum(step.in_calls for step in self.steps)

    @property
    def outside(self) -> float:
        """Seconds outside of them: the host's own work, sampling, and the recording itself."""
        return self.wall - self.in_calls


def record(llm: LLM, prompts: list[object], max_tokens: int) -> Recording:
    """Answer prompts greedily, ``max_tokens`` each, once unobserved and once observed, after a short warm-up.

    Args:
        llm: an engine in this process.

    Raises:
        EngineError: the engine is divided, or a request failed.
        RequestError: a prompt can't be answered.
    """
    engine = llm.engine
    runner, target = engine.runner, engine.network.target
    assert isinstance(runner, Runner), "the reference mode has no calls to watch"
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, reuse_prefix=False)
    _answer(llm, prompts, replace(params, max_tokens=min(max_tokens, _WARM_UP_TOKENS)))
    _, plain_wall = _answer(llm, prompts, params)
    recorder = Recorder(target.device, target.dtype)
    runner.observe(recorder)
    try:
        outputs, wall = _answer(llm, prompts, params)
    finally:
        runner.observe(None)
    return Recording(outputs, recorder.steps, wall, plain_wall, measure(target.device, target.dtype))


def check_undivided(engine: Path) -> None:
    """Refuse an engine directory whose ranks would run in processes of their own (UsageError)."""
    built = EngineManifest.read(engine).options
    ranks = built.tensor_parallel * built.pipeline_parallel
    if ranks > 1:
        raise UsageError(
            "E-TRACE-DIVIDED",
            engine.name,
            "is divided, and only an engine in this process can be watched",
            found=f"{ranks} ranks",
            expected="1",
            hint="trace it built with --tp 1 --pp 1",
        )


def random_prompt(count: int, vocab_size: int, seed: int) -> list[int]:
    """Token ids, the same for a seed."""
    draw = random.Random(seed)
    return [draw.randrange(vocab_size) for _ in range(count)]


def _answer(llm: LLM, prompts: list[object], params: SamplingParams) -> tuple[list[RequestOutput], float]:
    began = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    wall = time.perf_counter() - began
    failed = [out.outputs[0].stop_reason for out in outputs if out.outputs[0].finish_reason == "error"]
    if failed:
        raise EngineError(
            "E-TRACE-FAILED",
            "trace",
            f"{len(failed)} of {len(outputs)} requests failed",
            found=str(failed[0]),
            hint="bestiary diff finds where a model's numbers go wrong; --log-level trace shows the calls up to there",
        )
    return outputs, wall
