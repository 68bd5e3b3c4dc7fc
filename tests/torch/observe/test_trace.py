"""Recording an engine's calls: each one is there, costs what its op says, and nothing else is changed by it."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_engine

from bestiary import LLM, SamplingParams, ops
from bestiary.core.cli.main import invoke
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.logs import TRACE
from bestiary.core.observe import page as trace_page
from bestiary.core.observe import roofs as roofs_module
from bestiary.core.observe.chrome import chrome_trace
from bestiary.core.observe.costs import cost_of
from bestiary.core.observe.record import Recording, random_prompt, record
from bestiary.core.observe.report import TraceReport
from bestiary.core.observe.roofs import Roofs, measure
from bestiary.core.observe.summary import by_kernel, by_op
from bestiary.core.observe.text import listed_steps
from bestiary.core.plugins import PluginHost
from bestiary.core.program.bound import BoundCall
from bestiary.core.program.program import Input, Instruction, Result, TorchCall, Weight

PROMPTS: list[object] = [[5, 6, 7, 8, 9], [11, 12, 13]]
ROOFS = Roofs(copy=1e9, read=2e9, flops=1e10, dtype="float32")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("traced")
    make_engine(made, PluginHost.load())
    return made


@pytest.fixture(scope="module")
def found(directory: Path) -> Recording:
    with LLM(directory / "engine", tokenizer=None, kv_cache_memory=1 << 22) as llm:
        found = record(llm, PROMPTS, 4)
        assert llm.engine.runner.observer is None, "the engine goes on unobserved"
    return found


def test_every_call_of_every_step_is_there(directory: Path, found: Recording) -> None:
    assert [(step.kind, step.tokens, step.sequences) for step in found.steps] == [
        ("prefill", 8, 2),
        *[("decode", 2, 2)] * 3,
    ]
    with LLM(directory / "engine", tokenizer=None, kv_cache_memory=1 << 22) as llm:
        engine = llm.engine
        views = [shape.base is not None for shape in engine.network.shapes.values()]
        unobserved = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), use_tqdm=False)
        listing = [i for i in engine.network.program.instructions if not isinstance(i.target, TorchCall)]
    assert any(views)
    for step in found.steps:
        assert [call.op for call in step.calls] == [instruction.target.name for instruction in listing]
        assert [call.module for call in step.calls] == [instruction.scope for instruction in listing]
    assert [out.outputs[0].token_ids for out in found.outputs] == [out.outputs[0].token_ids for out in unobserved]


def test_a_call_shows_kernel_shapes_and_cost(found: Recording) -> None:
    call = next(call for call in found.calls if call.op == "linear")
    assert (call.module, call.kernel) == ("layers.0.attention.q", "torch")
    assert call.shapes == "f32[8, 48] f32[96, 48] → f32[8, 96]"
    assert (call.flops, call.bytes) == (2 * 8 * 96 * 48, 4 * (8 * 48 + 96 * 48 + 8 * 96))
    attention = next(call for call in found.steps[1].calls if call.op == "paged_attention")
    assert "k-cache f32[" in attention.takes
    assert attention.flops == 2 * (6 + 4) * 4 * (12 + 12), "6 and 4 keys are seen by 4 heads of 12"


def test_sums_add_up(found: Recording) -> None:
    for rows in (by_op(found.calls, ROOFS), by_kernel(found.calls, ROOFS)):
        assert sum(row.calls for row in rows) == len(found.calls)
        assert sum(row.seconds for row in rows) == pytest.approx(found.in_calls)
        assert sum(row.share for row in rows) == pytest.approx(1)
        assert [row.seconds for row in rows] == sorted((row.seconds for row in rows), reverse=True)
    assert found.in_calls + found.outside == found.wall
    assert "linear=torch" in {row.name for row in by_kernel(found.calls, ROOFS)}


def test_the_nearer_roof_counts_call_by_call(found: Recording) -> None:
    assert ROOFS.bandwidth == 2e9
    assert ROOFS.least_seconds(flops=10**10, nbytes=10**9) == 1.0
    assert ROOFS.least_seconds(flops=10**9, nbytes=10**9) == 0.5
    assert ROOFS.least_seconds(flops=None, nbytes=4 * 10**9) == 2.0
    linear = [found.calls[2]._replace(seconds=2.0, flops=f, bytes=b) for f, b in ((10**10, 8), (8, 2 * 10**9))]
    (row,) = by_op(linear, ROOFS)
    assert row.roof == pytest.approx(0.5), "one call at a half by arithmetic, one at a half by memory"
    assert row.rate == pytest.approx((10**10 + 8) / 4)


def test_steps_that_are_listed(found: Recording) -> None:
    assert [step.number for step in listed_steps(found, everything=False)] == [1, 3]
    assert listed_steps(found, everything=True) == found.steps


def test_roofs_are_measured() -> None:
    roofs = measure(torch.device("cpu"), torch.float32)
    assert min(roofs.copy, roofs.read) > 1e7
    assert roofs.flops > 1e7
    assert roofs.dtype == "float32"


def test_roofs_are_the_bytes_and_flops_of_what_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of 4,000 bytes reads and writes them, a sum reads them; the first product of a width is 256 wide."""
    monkeypatch.setattr(roofs_module.devices, "beyond_caches", lambda device: 4000)
    monkeypatch.setattr(roofs_module.devices, "free_memory", lambda device: 10**9)
    monkeypatch.setattr(roofs_module.devices, "timed", lambda run, device: 0.5)
    roofs = measure(torch.device("cpu"), torch.float32)
    assert (roofs.copy, roofs.read) == (2 * 4000 / 0.5, 4000 / 0.5)
    assert roofs.flops == 2 * 256**3 / 0.5


def test_the_run_that_is_timed_unobserved_is_the_same_run(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[object, SamplingParams, bool]] = []
    with LLM(directory / "engine", tokenizer=None, kv_cache_memory=1 << 22) as llm:
        generate, runner = llm.generate, llm.engine.runner

        def noted(prompts: object, params: SamplingParams, **options: Any) -> Any:
            ran.append((prompts, params, runner.observer is not None))
            if len(ran) == 2:
                time.sleep(0.2)
            return generate(prompts, params, **options)

        monkeypatch.setattr(llm, "generate", noted)
        found = record(llm, PROMPTS, 4)
    (_, warm, _), (plain_prompts, plain, plain_observed), (prompts, params, observed) = ran
    assert (plain_prompts, plain) == (prompts, params) and params.max_tokens == 4 and warm.max_tokens == 2
    assert observed and not plain_observed
    assert found.plain_wall >= 0.2, "that it took"


def test_attention_over_a_chunked_prompt_costs_what_a_triangle_has(directory: Path) -> None:
    """A prompt of 100 in steps of 64 and 36: token i sees i + 1 keys, whatever the chunks; 4 heads of 12 + 12."""
    with LLM(directory / "engine", tokenizer=None, kv_cache_memory=1 << 22) as llm:
        found = record(llm, [list(range(90)) + list(range(10))], 2)
    assert [(step.kind, step.tokens) for step in found.steps] == [("prefill", 64), ("prefill", 36), ("decode", 1)]
    calls = [[call for call in step.calls if call.op == "paged_attention"] for step in found.steps]
    first, second, decode = (2 * 24 * 4 * pairs for pairs in (64 * 65 // 2, 100 * 101 // 2 - 64 * 65 // 2, 101))
    for step, flops in zip(calls, (first, second, decode), strict=True):
        assert {call.flops for call in step} == {flops}


def test_random_prompts_are_the_same_for_a_seed() -> None:
    assert random_prompt(9, 96, 1) == random_prompt(9, 96, 1) != random_prompt(9, 96, 2)
    assert set(random_prompt(500, 7, 0)) == set(range(7))


def test_what_an_op_does_not_say_is_counted_from_its_tensors() -> None:
    """Flops are unknown then; packed constants count as they were declared."""
    x, out = torch.zeros(5, 8), torch.zeros(5, 4)
    torch_call = BoundCall(
        Instruction(TorchCall(torch.tanh), (Input("x"),), (Result("y"),), ""), None, (x,), (x,), lambda: None
    )
    assert cost_of(torch_call, torch.float32) == (None, 2 * 160)
    linear = Instruction(ops.linear, (Input("x"), Packed("w", ()), None), (Result("y"),), "")
    packed = BoundCall(linear, "secret", (x, object(), None), (out,), lambda: None)
    assert cost_of(packed, torch.bfloat16) == (2 * 5 * 4 * 8, 160 + 2 * 32 + 80)


class Packed(Weight):
    """A constant of a known shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (4, 8)


def test_the_trace_is_one_that_viewers_open(found: Recording) -> None:
    document = json.loads(json.dumps(chrome_trace("a title", found)))
    events = document["traceEvents"]
    assert [event["args"]["name"] for event in events if event["ph"] == "M"] == ["a title", "engine"]
    slices = [event for event in events if event["ph"] == "X"]
    assert all({"name", "cat", "ts", "dur", "pid", "tid", "args"} <= event.keys() for event in slices)
    assert [event["ts"] for event in slices] == sorted(event["ts"] for event in slices)
    step: dict[str, Any] = {}
    for event in slices:
        if event["cat"] == "step":
            assert not step or step["ts"] + step["dur"] <= event["ts"]
            step, before = event, event["ts"]
        else:
            assert before <= event["ts"] and event["ts"] + event["dur"] <= step["ts"] + step["dur"] + 1e-3
            before = event["ts"] + event["dur"]
    assert slices[0]["args"] == {"tokens": 8, "sequences": 2, "calls": len(found.steps[0].calls)}
    assert {"kernel", "module", "takes", "gives", "bytes", "flops"} == slices[1]["args"].keys()


def test_the_level_trace_logs_every_call(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    with caplog.at_level(TRACE, logger="bestiary.trace"):
        with LLM(directory / "engine", tokenizer=None, kv_cache_memory=1 << 22) as llm:
            llm.generate(PROMPTS[:1], params, use_tqdm=False)
            calls = sum(not isinstance(i.target, TorchCall) for i in llm.engine.network.program.instructions)
        lines = [entry.getMessage() for entry in caplog.records if entry.name == "bestiary.trace"]
    assert [line for line in lines if line.startswith("step")] == [
        "step 1: prefill (tokens 5, sequences 1)",
        "step 2: decode (tokens 1, sequences 1)",
    ]
    assert len(lines) == 2 + 2 * calls
    assert lines[2].endswith("µs  rms_norm=torch  layers.0.attention_norm  f32[5, 48] f32[48] → f32[5, 48]")
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="bestiary.trace"):
        with LLM(directory / "engine", tokenizer=None, kv_cache_memory=1 << 22) as llm:
            assert llm.engine.runner.observer is None
            llm.generate(PROMPTS[:1], params, use_tqdm=False)
        assert not [entry for entry in caplog.records if entry.name == "bestiary.trace"]


def test_the_command_prints_calls_sums_and_roofs(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["trace", str(directory / "engine"), "-n", "3", "--prompt-tokens", "7", "--batch", "2"]) == 0
    out = capsys.readouterr().out
    assert "step 1: prefill, 14 tokens of 2 sequences" in out
    assert "step 2: decode" not in out and "step 3: decode, 2 tokens of 2 sequences" in out
    assert "f32[14, 48] f32[96, 48] → f32[14, 96]" in out
    assert "linear=torch" in out and "of the roof" in out
    assert "Roofs, measured now" in out and "the same run unobserved" in out
    assert "on a GPU" not in out


def test_the_command_writes_json_and_a_trace(directory: Path, tmp_path: Path, capsys: Any) -> None:
    said = ["trace", str(directory / "engine"), "-n", "3", "--json", "--all", "--chrome", str(tmp_path / "t.json")]
    assert invoke(said) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.pop("schema") == "bestiary.trace/1"
    assert TraceReport.model_validate(document).requests == 1
    assert (document["prompt_tokens"], document["output_tokens"]) == (64, 3)
    assert all(step["calls"] for step in document["steps"])
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]


def test_the_page_is_whole(directory: Path, tmp_path: Path, capsys: Any) -> None:
    assert invoke(["trace", str(directory / "engine"), "-n", "2", "--html", str(tmp_path / "t.html")]) == 0
    html = (tmp_path / "t.html").read_text()
    assert html.count("Plotly.newPlot(") == 3
    for heading in ("Time by op", "Under the roofs", "Steps", "Time by kernel", "Step 1: prefill", "Step 2: decode"):
        assert f"<h2>{heading}</h2>" in html


def test_under_the_roofs_names_stand_in_the_legend(found: Recording) -> None:
    """Dots of ops that are alike lie on each other, and so would names beside them."""
    rows = by_op(found.calls, found.roofs)
    roof, *dots = (drawn := trace_page._roofline(rows, found.roofs)).data
    assert drawn.layout.showlegend and roof.name == "roof"
    assert [dot.name for dot in dots] == [row.name for row in rows if row.intensity and row.rate]
    assert {dot.mode for dot in dots} == {"markers"}
    assert len({(dot.marker.color, dot.marker.symbol) for dot in dots}) == len(dots)


def test_the_longest_bar_has_room_for_its_text(found: Recording) -> None:
    drawn = trace_page._bars(by_op(found.calls, found.roofs))
    assert drawn.data[0].textposition == "outside" and drawn.layout.xaxis.range[1] >= 1.2 * max(drawn.data[0].x)


@pytest.mark.parametrize(
    ("said", "status", "says"),
    [
        (["nowhere/at/all"], 66, "no such file or directory"),
        (["ENGINE", "a prompt", "--prompt-tokens", "3"], 2, "stands for a prompt, and one is given"),
        (["ENGINE", "a prompt"], 66, "the model has no tokenizer"),
        (["ENGINE", "--prompt-tokens", "5000"], 2, "E-REQ"),
        (["ENGINE", "--max-tokens", "0"], 2, "greater than or equal to 1"),
        (["ENGINE", "--chrome", "/nowhere/at/all.json"], 73, "all.json"),
        (["ENGINE", "--block-size", "4"], 78, "was built with another value"),
        (["ENGINE", "--kernel", "linear=none"], 78, "no such kernel"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    directory: Path, said: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["trace", *(str(directory / "engine") if one == "ENGINE" else one for one in said)]) == status
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err


def test_a_divided_engine_is_refused(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64, tensor_parallel=2)
    build(directory / "ckpt", tmp_path / "engine", host=PluginHost.load(), options=options)
    assert invoke(["trace", str(tmp_path / "engine")]) == 2
    assert "divided" in capsys.readouterr().err
