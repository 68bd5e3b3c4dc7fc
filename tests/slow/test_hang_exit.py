"""A process whose engine hangs can still end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import canary_model
import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import asyncio, sys, threading
import canary_model
from bestiary import LLM, SamplingParams

async def main(llm):
    out = await llm.generate_async([1, 2, 3], SamplingParams(temperature=0, max_tokens=4))
    print(out.outputs[0].stop_reason, flush=True)

llm = LLM(sys.argv[1], weights="random", tokenizer=None, plugins=[canary_model], kv_cache_memory=1 << 14,
          step_warning=0.02, step_timeout=0.05)
llm._driver.loop.executor.worker.forward = lambda step: threading.Event().wait()
asyncio.run(main(llm))
if sys.argv[2] == "close":
    llm.close()
"""


@pytest.mark.parametrize("close", ["close", "leave"])
def test_a_process_ends_though_a_step_does_not(tmp_path: Path, close: str) -> None:
    directory = canary_model.write_config(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory), close],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "does not end" in done.stdout and "E-RUN-STUCK" in done.stdout
    assert "bestiary-engine" in done.stderr and "in <lambda>" in done.stderr, "the log says where"
