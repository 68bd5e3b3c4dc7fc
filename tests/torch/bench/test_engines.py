"""``bestiary bench`` on engines: the whole command, and its numbers against another clock."""

import asyncio
import itertools
import json
import statistics
import time
from random import Random

import pytest
from openai_server import OpenAIServer
from text_models import byte_level
from tiny import make_engine

from bestiary import LLM
from bestiary.core.bench.asks import Ask
from bestiary.core.bench.engine_target import EngineTarget
from bestiary.core.bench.figures import figures
from bestiary.core.bench.load import AllAtOnce, ClosedLoop, OpenLoop
from bestiary.core.bench.plots import load_curves
from bestiary.core.bench.reports import LatencyReport, ServeReport, ThroughputReport
from bestiary.core.cli.main import invoke
from bestiary.core.plugins import PluginHost


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    make_engine(folder, PluginHost.load(), vocab_size=272)  # what the tokenizer below has fits in
    return folder / "engine"


@pytest.fixture
def run(engine, capsys, tmp_path):
    def call(kind, *arguments):
        """The report of a command that succeeds."""
        assert invoke(["bench", kind, str(engine), *arguments, "--json", "-"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def checked(kind, document):
    """The document as its class; fields beyond the schema are refused."""
    assert document.pop("schema") == kind.identifier()
    return kind.model_validate(document)


def test_latency(run):
    report = checked(LatencyReport, run("latency", "--input", "8", "--input", "16", "--output", "5", "-n", "2"))
    assert [point.label for point in report.points] == ["8 → 5", "16 → 5"]
    for point, length in zip(report.points, (8, 16), strict=True):
        assert len(point.runs) == 3 and point.load == "closed"
        for one in point.runs:
            assert [(row.prompt_tokens, row.output_tokens) for row in one.requests] == [(length, 5)] * 2
            # One at a time: the second was sent when the first had its answer.
            first, second = one.requests
            assert second.sent_s >= first.due_s + first.total_s
            assert max(one.steps.running) == 1 and sum(one.steps.decodes) == 8
            assert sum(one.steps.prompt_tokens) == 2 * length
        spread = point.summary.ttft_p50_s
        values = sorted(one.figures.ttft_p50_s for one in point.runs)
        assert [spread.low, spread.median, spread.high] == values
    assert report.targets[0].kind == "engine" and report.targets[0].facts["max_batch_size"] == 4
    assert report.environment.threads and report.environment.devices[0].name == "cpu"


def test_throughput_of_shared_prefixes(run):
    lengths = ("--input", "4-12", "--output", "3-6", "-n", "8", "--warmup", "2", "--repeats", "2")
    report = checked(ThroughputReport, run("throughput", *lengths, "--shared-prefix", "32", "--slo", "total=60s"))
    (point,) = report.points
    assert point.load == "batch" and point.summary.goodput_share.low == 1.0
    for one in point.runs:
        rows, found = one.requests, one.figures
        assert found.output_tokens_per_s == pytest.approx(sum(row.output_tokens for row in rows) / found.duration_s)
        assert found.input_tokens_per_s == pytest.approx(sum(row.prompt_tokens for row in rows) / found.duration_s)
        # The first four run at once; those after them find the prefix.
        assert found.reused_tokens >= 4 * 32 and max(one.steps.running) == 4 and max(one.steps.waiting) > 0
        assert found.kv_use_peak == max(one.steps.blocks_used) / one.steps.blocks > 0
    assert [r.output_tokens for r in point.runs[0].requests] == [r.output_tokens for r in point.runs[1].requests]


@pytest.fixture
def _same(engine, monkeypatch):
    monkeypatch.chdir(engine.parent)


def test_two_engines_in_turns(run, _same):
    lengths = ("--input", "8", "--output", "4", "-n", "6", "--warmup", "1", "--shared-prefix", "32")
    other = ("--compare", "engine", "--option", "max_batch_size=2", "--compare-option", "prefix_caching=false")
    report = checked(ThroughputReport, run("throughput", *lengths, *other))
    names = [target.name for target in report.targets]
    assert names == ["engine", "engine [prefix_caching=False]"]
    one, two = report.points
    assert all(run.figures.reused_tokens > 0 for run in one.runs)
    assert all(run.figures.reused_tokens == 0 for run in two.runs)
    assert all(max(run.steps.running) == 2 for point in report.points for run in point.runs)
    by_figure = {found.figure: found for found in report.comparisons}
    pairs = zip(one.runs, two.runs, strict=True)
    ratios = [b.figures.output_tokens_per_s / a.figures.output_tokens_per_s for a, b in pairs]
    assert by_figure["output_tokens_per_s"].ratio.median == pytest.approx(statistics.median(ratios))


def test_serve_at_rates_and_of_users(run):
    lengths = ("--input", "4-8", "--output", "3", "-n", "6", "--warmup", "1", "--repeats", "1", "--seed", "3")
    report = checked(ServeReport, run("serve", *lengths, "--rate", "200", "--rate", "50", "--slo", "ttft=60s,itl=60s"))
    assert [(point.label, point.x) for point in report.points] == [("50 req/s", 50.0), ("200 req/s", 200.0)]
    random = Random("3 arrivals")
    gaps = [random.expovariate(50) for _ in range(6)]
    due = [row.due_s for row in report.points[0].runs[0].requests]
    assert [b - a for a, b in itertools.pairwise(due)] == pytest.approx(gaps[1:], abs=1e-5)
    sent = [row.sent_s for row in report.points[0].runs[0].requests]
    assert report.points[0].summary.arrivals_per_s.median == pytest.approx(5 / (sent[-1] - sent[0]), rel=1e-3)
    assert report.points[0].summary.goodput_share.median == 1.0 and report.objective.ttft_s == 60.0
    report = checked(ServeReport, run("serve", *lengths, "--concurrency", "2"))
    assert report.points[0].summary.arrivals_per_s is None
    (one,) = report.points[0].runs
    assert max(one.steps.running) == 2 and all(row.cached_tokens == 0 for row in one.requests)


@pytest.fixture
def conversations(tmp_path):
    """A data set, and a tokenizer that fits the tiny engine."""
    (tmp_path / "tokenizer").mkdir()
    byte_level().backend.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    turns = [[("human", f"What is number {n} good for?"), ("gpt", "It counts.")] for n in range(9)]
    entries = [{"conversations": [{"from": who, "value": text} for who, text in pair]} for pair in turns]
    (tmp_path / "talk.json").write_text(json.dumps(entries))
    return "--dataset", str(tmp_path / "talk.json"), "--tokenizer", str(tmp_path / "tokenizer")


def test_conversations_of_a_file(run, conversations):
    arguments = (*conversations, "-n", "3", "--warmup", "1", "--repeats", "2", "--ignore-eos")
    report = checked(ServeReport, run("serve", *arguments, "--concurrency", "3"))
    (point,) = report.points
    assert point.input == "9 conversations of talk.json"
    rows = [row for one in point.runs for row in one.requests]
    length = len(byte_level().encode("What is number 1 good for?"))
    assert [row.prompt_tokens for row in rows] == [length] * 6
    assert [row.output_tokens for row in rows] == [len(byte_level().encode("It counts.")) - 1] * 6


def test_prompts_that_a_run_repeats_are_counted(run, conversations):
    report = checked(ThroughputReport, run("throughput", *conversations, "-n", "12", "--warmup", "1", "--repeats", "2"))
    assert [one.figures.repeated_prompts for one in report.points[0].runs] == [3, 3], "of 9 conversations"


def test_conversations_need_a_tokenizer(engine, conversations, capsys):
    assert invoke(["bench", "throughput", str(engine), *conversations[:2]]) == 2
    assert "E-BENCH-PROMPTS" in capsys.readouterr().err


def test_a_preemption_is_seen(tmp_path):
    make_engine(tmp_path, PluginHost.load())
    with LLM(tmp_path / "engine", tokenizer=None, kv_cache_memory=310_000, capacity="max-utilization") as llm:
        target = EngineTarget("small", llm, {})
        blocks = target.about.facts["kv_blocks"]
        long = blocks * 8  # tokens of half of it
        found, side = driven(target, [Ask(n, tuple(range(n, n + 8)), 8, long - 8, True) for n in range(4)], 4)
    assert side.preemptions > 0 and sum(record.ending.preemptions for record in found) == side.preemptions
    assert max(step.blocks_used for step in side.steps) <= blocks
    assert [record.output_tokens for record in found] == [long - 8] * 4


def test_a_run_finds_nothing_of_the_run_before_it(engine):
    asks = [Ask(0, tuple(range(40)), 40, 3, True)]
    with LLM(engine, tokenizer=None, kv_cache_memory=2**24) as llm:
        target = EngineTarget("tiny", llm, {})
        for _ in range(2):
            (record,), _ = driven(target, asks, 1)
            assert record.ending.cached_tokens == 0
        # The same request in the same run finds it.
        (_, again), _ = driven(target, asks * 2, 1)
        assert again.ending.cached_tokens > 0


def test_the_use_of_the_cache_is_what_was_seen_of_it(engine, monkeypatch):
    """By hand, by another observer in each step, and by the mean over the steps' times."""
    with LLM(engine, tokenizer=None, kv_cache_memory=2**24) as llm:
        target, seen, forward = EngineTarget("tiny", llm, {}), [], llm._driver.loop.executor.forward

        def watched(step):
            seen.append(llm.stats().blocks_used)
            return forward(step)

        monkeypatch.setattr(llm._driver.loop.executor, "forward", watched)
        asks = [Ask(n, tuple(range(n, n + 30)), 30, 20, True) for n in range(3)]
        records, side = driven(target, asks, 2)
        moment = llm.stats()
    found = figures(records, side, None)
    blocks = moment.blocks_free + moment.blocks_cached + moment.blocks_used
    # Two at a time, and each computes 30 + 19 tokens in blocks of 16.
    assert target.about.facts["block_size"] == 16 and max(seen) == 2 * 4
    assert found.kv_use_peak == pytest.approx(max(seen) / blocks)
    assert min(seen) / blocks < found.kv_use_mean < max(seen) / blocks
    times = [step.seconds for step in side.steps]
    used = [step.blocks_used for step in side.steps]
    assert set(used) <= set(seen) and len(used) == len(seen)
    timed = [(s, u) for s, u in zip(times, used, strict=True) if s is not None]
    assert found.kv_use_mean == pytest.approx(sum(s * u for s, u in timed) / sum(s for s, _ in timed) / blocks)


def driven(target, asks, users):
    """Records of so many users, and what the engine did."""
    target.begin()
    records = asyncio.run(ClosedLoop(users).run(target, asks, 60.0, lambda record: None))
    return records, target.end()


def test_a_request_that_is_refused_is_a_failure_and_the_others_go_on(engine):
    with LLM(engine, tokenizer=None, kv_cache_memory=2**24) as llm:
        target = EngineTarget("tiny", llm, {})
        asks = [Ask(0, (1, 2), 2, 3, True), Ask(1, (10**6,), 1, 3, True), Ask(2, (3,), 1, 3, True)]
        records, _ = driven(target, asks, 3)
    assert [record.ending.error for record in records] == [None, "refused", None]
    assert figures(records, None, None).errors == 1


def test_a_step_that_fails_is_a_failure(engine, monkeypatch):
    with LLM(engine, tokenizer=None, kv_cache_memory=2**24) as llm:

        def broken(step):
            raise RuntimeError("the device is gone")

        monkeypatch.setattr(llm._driver.loop.executor, "forward", broken)
        records, _ = driven(EngineTarget("tiny", llm, {}), [Ask(0, (1, 2), 2, 3, True)], 1)
    assert records[0].ending.error == "engine" and "the device is gone" in records[0].ending.message


def test_a_loop_without_a_recorder_keeps_nothing(engine):
    with LLM(engine, tokenizer=None, kv_cache_memory=2**24) as llm:
        target = EngineTarget("tiny", llm, {})
        driven(target, [Ask(0, (1, 2), 2, 3, True)], 1)
        assert llm._driver.loop.recorder is None


class Watched:
    """An ``LLM`` whose calls another clock times."""

    def __init__(self, llm):
        self._llm, self.spans = llm, []

    def __getattr__(self, name):
        return getattr(self._llm, name)

    def generate_async(self, prompt, params):
        span = [time.perf_counter()]
        self.spans.append(span)
        return WatchedAnswer(self._llm.generate_async(prompt, params), span)

    def generate(self, prompts, params, **options):
        began = time.perf_counter()
        outputs = self._llm.generate(prompts, params, **options)
        self.spans.append([began, time.perf_counter()])
        return outputs


class WatchedAnswer:
    def __init__(self, answer, span):
        self._answer, self._span = answer, span

    def __aiter__(self):
        return self

    async def __anext__(self):
        piece = await self._answer.__anext__()
        self._span += [time.perf_counter()] * len(piece.token_ids)
        return piece

    def __await__(self):
        return self._answer.__await__()


@pytest.fixture
def watched(engine, monkeypatch):
    """An engine whose steps take 20 ms, so that what two clocks can differ by is small."""
    with LLM(engine, tokenizer=None, kv_cache_memory=2**24) as llm:
        forward = llm._driver.loop.executor.forward

        def slowly(step):
            time.sleep(0.02)
            return forward(step)

        monkeypatch.setattr(llm._driver.loop.executor, "forward", slowly)
        watch = Watched(llm)
        yield watch, EngineTarget("slow", watch, {})


@pytest.mark.parametrize("load", [ClosedLoop(1), ClosedLoop(3), OpenLoop(20.0, 0)], ids=["one", "users", "arrivals"])
def test_its_numbers_are_those_of_another_clock_around_the_same_requests(watched, load):
    """Within 3 %: time to first token, time between tokens, tokens a second."""
    watch, target = watched
    asks = [Ask(n, tuple(range(n, n + 6)), 6, 8, True) for n in range(4)]
    target.begin()
    found = figures(asyncio.run(load.run(target, asks, 60.0, lambda record: None)), target.end(), None)
    firsts = [span[1] - span[0] for span in watch.spans]
    between = [(span[-1] - span[1]) / 7 for span in watch.spans]
    whole = max(span[-1] for span in watch.spans) - min(span[0] for span in watch.spans)
    assert all(len(span) == 9 for span in watch.spans)
    assert found.ttft_p50_s == pytest.approx(statistics.median(firsts), rel=0.03)
    assert found.itl_mean_s == pytest.approx(statistics.fmean(between), rel=0.03)
    assert found.output_tokens_per_s == pytest.approx(4 * 8 / whole, rel=0.03)


def test_its_throughput_is_that_of_another_clock_around_generate(watched):
    watch, target = watched
    asks = [Ask(n, tuple(range(n, n + 6)), 6, 10, True) for n in range(6)]
    target.begin()
    records = asyncio.run(AllAtOnce().run(target, asks, 60.0, lambda record: None))
    found, side = figures(records, None, None), target.end()
    ((began, ended),) = watch.spans
    assert found.output_tokens_per_s == pytest.approx(60 / (ended - began), rel=0.03)
    assert found.total_tokens_per_s == pytest.approx(96 / (ended - began), rel=0.03)
    # The engine's own account of the same time.
    assert side.steps[-1].at - records[0].sent == pytest.approx(ended - began, rel=0.03)


def test_the_page_has_its_plots(engine, tmp_path, capsys):
    html = tmp_path / "page.html"
    lengths = ("--input", "4-8", "--output", "3-6", "-n", "4", "--warmup", "1", "--repeats", "2")
    with OpenAIServer() as server:
        loads = ("--concurrency", "1", "--concurrency", "2", "--compare", server.url, "--slo", "itl=50ms")
        assert invoke(["bench", "serve", str(engine), *lengths, *loads, "--html", str(html)]) == 0
    out, page = capsys.readouterr().out, html.read_text()
    assert "ratio" in out and "good req/s" in out
    headings = ["Against the load", "Time to first token", "Time between tokens", "Over time", "Where"]
    assert all(f"<h2>{heading}</h2>" in page for heading in headings)
    # Load curves, a comparison of each load, three distributions, a timeline of each load and target.
    assert page.count("Plotly.newPlot(") == 1 + 2 + 3 + 4


def test_each_plot_against_the_load_has_a_legend_of_its_own(run):
    lengths = ("--output", "3", "-n", "3", "--warmup", "1", "--repeats", "1", "--slo", "itl=9s")
    report = checked(ServeReport, run("serve", "--rate", "90", "--rate", "99", *lengths))
    curves = load_curves(report.points, "arrivals a second")
    named: dict[str, list[str]] = {}
    for trace in curves.data:
        assert trace.showlegend
        named.setdefault(trace.legend or "legend", []).append(trace.name)
    assert named == {
        "legend": ["p50", "p99"],
        "legend2": ["p50", "p99"],
        "legend3": ["all users", "one user"],
        "legend4": ["answered", "within the objective"],
    }
    titles = [curves.layout[legend].title.text for legend in named]
    assert titles == [
        "<b>time to first token, ms</b>", "<b>time between tokens, ms</b>", "<b>answer tokens a second</b>",
        "<b>requests a second</b>",
    ]  # fmt: skip
    answered, good = curves.data[-2:]
    assert list(answered.y) == list(good.y), "the objective is one that all keep"
    assert answered.line.width > good.line.width and good.line.dash == "dash" and answered.opacity < 1


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["--option", "speed=9"], 2, "E-BENCH-OPTION"),
        (["--option", "capacity"], 2, "E-CLI-PAIR"),
        (["--option", "capacity=some"], 78, "E-RUN-POLICY"),
        (["--input", "100000"], 2, "E-BENCH-LONG"),
        (["--tokenizer", "nowhere"], 66, "E-TEXT-MISSING"),
    ],
)
def test_bad_input_is_one_sentence_with_a_code(engine, arguments, status, code, capsys):
    assert invoke(["bench", "throughput", str(engine), *arguments]) == status
    told = capsys.readouterr().err
    assert code in told and "Traceback" not in told


def test_no_such_engine_is_one_sentence(capsys):
    assert invoke(["bench", "latency", "./no-such-engine"]) == 66
    assert "no-such-engine" in capsys.readouterr().err
