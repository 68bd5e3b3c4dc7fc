"""Ranks in processes of their own: they answer as one, a death ends all with its reason, and nothing stays behind."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import queue_kernels
from rank_workers import check_three_steps, step

from bestiary import ConfigError, EngineError, PluginError
from bestiary.core import logs
from bestiary.core.plugins import PluginHost
from bestiary.core.runtime.messages import EMPTY, SampleMessage
from bestiary.core.runtime.ranks import RankExecutor

pytestmark = pytest.mark.slow


def _start(
    tensor: int, stages: int, worker: str = "summing", start_timeout: float | None = None, **arguments: Any
) -> RankExecutor:
    return RankExecutor(
        start_timeout=start_timeout,
        tensor=tensor,
        stages=stages,
        device="cpu",
        host=PluginHost.load(plugins=[queue_kernels]),
        worker=f"rank_workers:{worker}",
        arguments=arguments,
    )


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for counts too."""
    return Path(f"/proc/{pid}").exists()


def _entries(directory: str) -> set[str]:
    return {path.name for path in Path(directory).iterdir()}


def _children() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within half a minute")


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    descriptors, shared, children = _entries("/proc/self/fd"), _entries("/dev/shm"), _children()
    yield
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert _entries("/dev/shm") <= shared
    assert len(_entries("/proc/self/fd")) <= len(descriptors)
    assert _children() <= children, "a rank is a zombie or still runs"


def test_a_rank_that_hangs_while_it_starts_is_named() -> None:
    """Five seconds are enough for the other one, here and now; else both are named."""
    with pytest.raises(EngineError, match=r"rank 1 of 2 \(tensor 1, stage 0\): do(es)? not start; .*E-RUN-START"):
        _start(2, 1, "hanging", start_timeout=5.0, rank=1)


def test_two_by_two_ranks_answer_as_one() -> None:
    ranks = _start(2, 2)
    pids = ranks.pids
    assert [fact["rank"] for fact in ranks.facts] == [0, 1, 2, 3]
    assert [fact["least"] for fact in ranks.facts] == [[5, 6]] * 4
    parents = list(PluginHost.load(plugins=[queue_kernels]).plugin_names())
    assert all(sorted(fact["plugins"]) == sorted(parents) for fact in ranks.facts)
    check_three_steps(ranks)
    ranks.close()
    ranks.close()
    assert not any(map(_alive, pids))
    with pytest.raises(EngineError, match="it has been closed"):
        ranks.forward(step(9, [1]))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("kill", r"rank 0 of 2 \(tensor 0, stage 0\): died; found killed by SIGKILL"),
        ("exit", r"rank 0 of 2 \(tensor 0, stage 0\): died; found exit status 3"),
        ("raise", r"rank 0 of 2 \(tensor 0, stage 0\): failed: RuntimeError: the reactor is out of coolant"),
    ],
)
@pytest.mark.parametrize("shape", [(2, 1), (1, 2)], ids=["tensor", "pipeline"])
def test_a_rank_that_dies_ends_all_with_its_reason(shape: tuple[int, int], how: str, said: str) -> None:
    ranks = _start(*shape, rank=0, step=2, how=how)
    pids = ranks.pids
    ranks.forward(step(1, [1, 2]))
    assert len(ranks.sample(SampleMessage(EMPTY)).read().tokens) == 2
    begun = time.monotonic()
    with pytest.raises(EngineError, match=said) as caught:
        # The other rank waits for this one in a collective.
        ranks.forward(step(2, [1, 2]))
        ranks.sample(SampleMessage(EMPTY)).read()
    assert time.monotonic() - begun < 30, "nobody waits for a collective's own time-out"
    assert not any(map(_alive, pids))
    assert ranks.failure is caught.value
    with pytest.raises(EngineError, match=said):
        ranks.forward(step(3, [1]))
    ranks.close()
    assert ranks.failure is caught.value


def test_ranks_say_where_they_are_and_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    ranks = _start(2, 1)
    said = ""

    def heard() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return said.count("in main\n") == 2

    ranks.report()
    _until(heard)
    check_three_steps(ranks)
    ranks.close()


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)], ids=["tensor", "pipeline"])
def test_what_cannot_be_sent_leaves_no_gap(shape: tuple[int, int]) -> None:
    """Ranks take a number that never comes for a lost message, and end."""
    ranks = _start(*shape)
    (opened,) = step(1, [1]).opened
    bad = replace(opened, params=replace(opened.params, logits_processors=(print,)))
    said = r"TokenParams\.logits_processors: can't be sent to another process; found a value of type builtin"
    for _ in range(2):
        with pytest.raises(EngineError, match=said):
            ranks.forward(replace(step(1, [1]), opened=(bad,)))
        with pytest.raises(EngineError, match=r"SampleMessage\.slots: can't be sent"):
            ranks.sample(SampleMessage(np.array([object()])))
        check_three_steps(ranks)
    assert ranks.failure is None
    ranks.close()


def test_abandoned_ranks_wake_who_waits_for_them() -> None:
    ranks = _start(2, 1, rank=0, step=1, how="sleep")
    ranks.forward(step(1, [1, 2]))
    answer = ranks.sample(SampleMessage(EMPTY))
    failure = EngineError("E-RUN-STUCK", "engine", "step 1 does not end")

    def abandon() -> None:
        ranks.failure = failure
        ranks.abandon()

    timer = threading.Timer(0.2, abandon)
    timer.start()
    with pytest.raises(EngineError, match="step 1 does not end"):
        answer.read()
    timer.join()
    assert ranks.failure is failure and not any(map(_alive, ranks.pids))


def test_a_rank_that_refuses_to_start_is_quoted() -> None:
    with pytest.raises(ConfigError, match=r"rank 1 of 2 .*: kv_cache_memory: is too small; found 1 byte") as caught:
        _start(2, 1, "refusing", rank=1)
    assert caught.value.code == "E-KV-MEMORY"


def test_ranks_without_their_object_end() -> None:
    pids = _start(1, 1).pids
    gc.collect()
    assert not any(map(_alive, pids))


def test_killed_parents_leave_no_ranks() -> None:
    code = (
        "import sys, time; sys.path[:0] = sys.argv[1:]\n"
        "from bestiary.core.plugins import PluginHost\n"
        "from bestiary.core.runtime.ranks import RankExecutor\n"
        "ranks = RankExecutor(tensor=2, stages=1, device='cpu', host=PluginHost.load(),\n"
        "                     worker='rank_workers:summing', arguments={})\n"
        "print(*ranks.pids, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, *sys.path], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(_alive, pids))
        parent.send_signal(signal.SIGKILL)
    _until(lambda: not any(map(_alive, pids)))


class _Hooks:
    pass


def test_plugins_that_a_process_cannot_import_are_refused_before_any_starts() -> None:
    homeless = types.ModuleType("homeless_plugin")
    for plugin, what in ((_Hooks(), "an object"), (homeless, "a module that can't be imported")):
        host = PluginHost.load(plugins=[plugin])
        with pytest.raises(ConfigError, match=f"can't load it; found {what}.*a file of its own"):
            RankExecutor(tensor=2, stages=1, device="cpu", host=host, worker="rank_workers:summing", arguments={})


def test_a_plugin_that_fails_in_a_rank_only_is_quoted(tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path_factory.mktemp("plugin")
    (place / "moody_plugin.py").write_text("import os\nassert os.getppid() != int(os.environ['MOODY'])\n")
    monkeypatch.setenv("MOODY", str(os.getpid()))
    monkeypatch.syspath_prepend(place)
    host = PluginHost.load(plugins=["moody_plugin"])
    with pytest.raises(PluginError, match=r"rank \d of 2 .*moody_plugin.*AssertionError"):
        RankExecutor(tensor=2, stages=1, device="cpu", host=host, worker="rank_workers:summing", arguments={})


def test_ranks_log_as_their_parent_does(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger("bestiary")
    handlers, level = list(root.handlers), root.level
    try:
        for text, expected in (("error,rank_workers=debug", True), ("error", False)):
            logs.configure(logs.parse(text, "test"))
            _start(2, 1).close()
            said = capfd.readouterr().err
            for rank in (0, 1):
                assert (f"bestiary rank {rank}: DEBUG: here" in said) is expected, said
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
