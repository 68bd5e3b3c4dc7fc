"""``LLM`` over ranks in other processes says what it says in one, and dies with the words of the rank that died."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import even_answers
import pytest
from process_state import held
from tiny import make_engine

from bestiary import LLM, ConfigError, EngineError, Guided, RequestError, SamplingParams
from bestiary.core.plugins import PluginHost

pytestmark = pytest.mark.slow

OPTIONS: dict[str, Any] = {"tokenizer": None, "device": "cpu", "kv_cache_memory": 2**20, "max_num_tokens": 32}
PROMPTS = [list(range(3, 3 + length)) for length in (1, 40, 7, 40, 23)]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
    SamplingParams(temperature=0, max_tokens=5, logprobs=2, prompt_logprobs=1, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=7, max_tokens=12, repetition_penalty=1.3, ignore_eos=True),
    SamplingParams(temperature=0.8, top_k=20, seed=8, max_tokens=9, ignore_eos=True),
    SamplingParams(temperature=0, max_tokens=3, ignore_eos=True),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("divided")
    make_engine(directory, PluginHost.load())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BESTIARY_HOME", str(directory / "home"))
        yield directory / "ckpt"


def _tokens(llm: LLM) -> list[list[int]]:
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    return [list(answer.outputs[0].token_ids) for answer in llm.generate(prompts, PARAMS, use_tqdm=False)]


@pytest.mark.parametrize(("tensor", "stages"), [(2, 1), (1, 2), (2, 2)], ids=["tensor", "pipeline", "both"])
def test_an_llm_over_ranks_says_what_it_says_in_one_process(checkpoint: Path, tensor: int, stages: int) -> None:
    with LLM(checkpoint, **OPTIONS) as llm:
        expected = _tokens(llm)
    with LLM(checkpoint, tensor_parallel=tensor, pipeline_parallel=stages, **OPTIONS) as llm:
        assert _tokens(llm) == expected
        assert _tokens(llm) == expected, "from the prefix cache"
        prompt = {"prompt_token_ids": PROMPTS[1]}
        (answer,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
        assert answer.num_cached_tokens > 0


@pytest.mark.parametrize(("tensor", "stages", "kv_dtype"), [(2, 1, "int8"), (1, 2, "fp8"), (2, 1, "int4")])
def test_a_cache_of_few_bits_over_ranks(checkpoint: Path, tensor: int, stages: int, kv_dtype: str) -> None:
    with LLM(checkpoint, kv_dtype=kv_dtype, **OPTIONS) as llm:
        expected = _tokens(llm)
    with LLM(
        checkpoint, tensor_parallel=tensor, pipeline_parallel=stages, kv_dtype=kv_dtype, block_size=8, **OPTIONS
    ) as llm:
        assert _tokens(llm) == expected
        assert _tokens(llm) == expected, "from the prefix cache"


RESTRICTED = [
    SamplingParams(temperature=0, max_tokens=20, guided=Guided(regex="a" * 7)),
    SamplingParams(temperature=1.0, seed=3, max_tokens=20, guided=Guided(regex="a" * 4), logprobs=2),
    SamplingParams(temperature=1.0, seed=4, max_tokens=6, logits_processors=["low"], bad_words=None, logit_bias={9: 5}),
    SamplingParams(temperature=0, max_tokens=6, allowed_token_ids=[4, 7, 9], no_repeat_ngram_size=2, ignore_eos=True),
    SamplingParams(temperature=0, max_tokens=6, ignore_eos=True),
]


def _restricted(llm: LLM) -> list[list[int]]:
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    outs = [out.outputs[0] for out in llm.generate(prompts, RESTRICTED, use_tqdm=False)]
    assert all(out.finish_reason in ("stop", "length") for out in outs), [out.stop_reason for out in outs]
    return [list(out.token_ids) for out in outs]


@pytest.mark.parametrize(("tensor", "stages"), [(2, 1), (1, 2)], ids=["tensor", "pipeline"])
def test_restricted_answers_are_those_of_one_process(checkpoint: Path, tensor: int, stages: int) -> None:
    with LLM(checkpoint, plugins=[even_answers], **OPTIONS) as llm:
        expected = _restricted(llm)
    for answer, letters in ((expected[0], 7), (expected[1], 4)):
        assert [token % 2 for token in answer[:-1]] == [(letters - i) % 2 for i in range(letters)], "the grammar holds"
    with LLM(checkpoint, plugins=[even_answers], tensor_parallel=tensor, pipeline_parallel=stages, **OPTIONS) as llm:
        assert _restricted(llm) == expected
        assert _restricted(llm) == expected


@pytest.mark.parametrize(("tensor", "stages"), [(2, 1), (1, 2)], ids=["tensor", "pipeline"])
def test_a_function_harms_nobody(checkpoint: Path, tensor: int, stages: int) -> None:
    """It is refused before it is queued; were it not, it would end the requests of its step and leave the engine alive."""
    with LLM(checkpoint, **OPTIONS) as llm:
        expected = _tokens(llm)
    prompt, bad = (
        {"prompt_token_ids": [1, 9]},
        SamplingParams(max_tokens=5, logits_processors=[lambda p, o, logits: logits]),
    )
    with LLM(checkpoint, tensor_parallel=tensor, pipeline_parallel=stages, **OPTIONS) as llm:
        neighbour = llm.stream({"prompt_token_ids": PROMPTS[0]}, PARAMS[0])
        first = next(neighbour)
        with pytest.raises(
            RequestError, match="a function can't go to the processes of a divided engine; found a function"
        ):
            llm.generate([prompt, prompt], [PARAMS[0], bad], use_tqdm=False)
        assert [*first.token_ids, *(token for piece in neighbour for token in piece.token_ids)] == expected[0]
        llm._submission._guides._takes_functions = True
        (out,) = llm.generate(prompt, bad, use_tqdm=False)
        assert out.outputs[0].finish_reason == "error"
        assert "TokenParams.logits_processors: can't be sent" in str(out.outputs[0].stop_reason)
        assert _tokens(llm) == expected


def test_a_dead_rank_ends_the_llm_with_its_reason(checkpoint: Path) -> None:
    with LLM(checkpoint, tensor_parallel=2, **OPTIONS) as llm:
        _tokens(llm)
        os.kill(llm._driver.loop.executor.pids[1], signal.SIGKILL)
        with pytest.raises(EngineError, match=r"rank 1 of 2 .*: died; found killed by SIGKILL"):
            _tokens(llm)
        with pytest.raises(EngineError, match=r"rank 1 of 2 .*: died"):
            _tokens(llm)


def test_a_weight_file_that_changes_ends_the_llm(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "ckpt")
    with LLM(tmp_path / "ckpt", tensor_parallel=2, **OPTIONS) as llm:
        _tokens(llm)
        (file,) = (tmp_path / "ckpt").glob("*.safetensors")  # the engine has a hard link to it
        os.truncate(file, 0)
        with pytest.raises(EngineError, match=r"rank \d of 2 .*safetensors: has changed .*E-RUN-WEIGHTS.*E-RUN-RANK"):
            _tokens(llm)


def test_what_a_rank_refuses_is_what_the_llm_refuses(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"rank \d of 2 .*: kv_cache_memory: does not hold one sequence"):
        LLM(checkpoint, tensor_parallel=2, **{**OPTIONS, "kv_cache_memory": 5000})
    with pytest.raises(ConfigError, match="the reference mode runs the whole model"):
        LLM(checkpoint, tensor_parallel=2, reference=True, **OPTIONS)


def test_ranks_that_hang_end_the_llm_in_time(checkpoint: Path) -> None:
    """A stopped rank says nothing and does not close its connection; the other one waits for it."""
    with LLM(checkpoint, tensor_parallel=2, step_warning=None, step_timeout=0.3, **OPTIONS) as llm:
        llm._driver._watchdog.stop()  # not before the ranks are warm, however busy the machine
        _tokens(llm)
        llm._driver._watchdog._thread, llm._driver._watchdog._stop = None, SimpleQueue()
        pids = llm._driver.loop.executor.pids
        os.kill(pids[1], signal.SIGSTOP)
        with pytest.raises(EngineError, match=r"does not end.*E-RUN-STUCK"):
            _tokens(llm)
        with pytest.raises(EngineError, match=r"does not end.*E-RUN-DEAD"):
            _tokens(llm)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_ranks_that_do_not_load_in_time_are_given_up(checkpoint: Path) -> None:
    with pytest.raises(EngineError, match=r"rank 0 of 2 .*, rank 1 of 2 .*: do not start; found nothing after 0.1 sec"):
        LLM(checkpoint, tensor_parallel=2, start_timeout=0.1, **OPTIONS)


def test_what_divided_engines_held_is_given_back(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with LLM(checkpoint, **OPTIONS) as llm:
        expected = _tokens(llm)
    before = held()
    for dies in (False, True):
        with LLM(checkpoint, tensor_parallel=2, **OPTIONS) as llm:
            assert _tokens(llm) == expected
            stream = llm.stream([1, 2, 3], PARAMS[0])
            next(stream)
            del stream
            assert len(held().children - before.children) == 2
            if dies:
                os.kill(llm._driver.loop.executor.pids[0], signal.SIGKILL)
                with pytest.raises(EngineError, match="died"):
                    _tokens(llm)
    assert not held().more_than(before)
