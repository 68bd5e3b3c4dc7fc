"""Servers at a URL, over real sockets: what is sent, what is counted, and what becomes of every kind of failure."""

import asyncio
import json
import statistics
import sys
import time

import pytest
from openai_server import FAULTS, OpenAIServer

from bestiary import UsageError
from bestiary.core.bench.asks import Ask
from bestiary.core.bench.figures import figures
from bestiary.core.bench.load import ClosedLoop
from bestiary.core.bench.sse import events
from bestiary.core.bench.url_target import UrlTarget
from bestiary.core.cli.main import invoke


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def ask(number=0, prompt=" one two three", output=6):
    return Ask(number, prompt, 3, output, True)


def asked(target, asks, users=1, timeout=5.0):
    async def all_of_them():
        records = await ClosedLoop(users).run(target, asks, timeout, lambda record: None)
        await target.close()
        return records

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_an_answer_is_streamed_and_counted(api):
    with OpenAIServer() as server:
        target = UrlTarget(server.url, api=api, key="secret")
        (record,) = asked(target, [ask()])
    (seen,) = server.seen
    assert seen.path == ("/v1/completions" if api == "completions" else "/v1/chat/completions")
    assert seen.headers["authorization"] == "Bearer secret"
    assert seen.body["model"] == "parrot" and seen.body["max_tokens"] == 6 and seen.body["ignore_eos"] is True
    said = seen.body["prompt"] if api == "completions" else seen.body["messages"][0]["content"]
    assert said == " one two three"
    assert not record.failed and record.ending.finish_reason == "length"
    # The chunk that only names the role is no token.
    assert [tokens for _, tokens in record.pieces] == [1] * 6
    assert (record.prompt_tokens, record.output_tokens, record.ending.cached_tokens) == (3, 6, 2)


def test_token_ids_go_as_they_are_and_end_tokens_are_left_alone_when_told():
    with OpenAIServer() as server:
        asked(UrlTarget(server.url, model="m"), [Ask(0, (5, 6, 7), 3, 2, False)])
    assert server.seen[0].body["prompt"] == [5, 6, 7] and "ignore_eos" not in server.seen[0].body


def test_pieces_of_several_tokens_are_counted_by_the_usage():
    with OpenAIServer(pack=3, delay=0.001) as server:
        (record,) = asked(UrlTarget(server.url), [ask(output=12)])
    assert [tokens for _, tokens in record.pieces] == [3, 3, 3, 3] and len(record.intervals) == 9


def test_without_a_usage_pieces_are_tokens():
    with OpenAIServer(usage=False) as server:
        (record,) = asked(UrlTarget(server.url), [ask()])
    assert record.output_tokens == 6 and record.prompt_tokens == 3 and record.ending.cached_tokens is None


EXPECTED = {
    "429": "http 429", "500": "http 500", "cut": "cut", "dropped": "cut", "malformed": "malformed", "error": "server",
    "silent": "timeout", "page": "malformed",
}  # fmt: skip


def test_every_failure_is_in_the_report_with_its_kind(capsys):
    with OpenAIServer(faults={number + 2: fault for number, fault in enumerate(FAULTS)}) as server:
        line = ["bench", "serve", server.url, "--concurrency", "1", "-n", "10", "--repeats", "1", "--warmup", "2"]
        status = invoke([*line, "--input", "8", "--output", "4", "--timeout", "1", "--json", "-"])
    report = json.loads(capsys.readouterr().out)
    assert status == 0 and report["schema"] == "bestiary.bench.serve/1"
    (point,) = report["points"]
    (run,) = point["runs"]
    assert [row["error"] for row in run["requests"]] == [*(EXPECTED[fault] for fault in FAULTS), None, None]
    assert run["errors"] == {"http 429": 1, "http 500": 1, "cut": 2, "malformed": 2, "server": 1, "timeout": 1}
    assert run["figures"]["errors"] == 8 and run["figures"]["requests"] == 10
    messages = {row["error"]: row["message"] for row in run["requests"]}
    assert messages["http 429"] == "no answer: 429" and messages["server"] == "the engine died"
    # What came before a cut is told, and counts for nothing else.
    cut = next(row for row in run["requests"] if row["error"] == "cut")
    assert cut["output_tokens"] == 2 and run["figures"]["output_tokens_per_s"] * run["figures"][
        "duration_s"
    ] == pytest.approx(8)


def test_an_answer_that_is_no_stream_of_events_is_told_as_that():
    with OpenAIServer(every="page") as server:
        (record,) = asked(UrlTarget(server.url), [ask()])
    assert record.ending.error == "malformed"
    assert record.ending.message == "no event stream but text/html: '<html> <p>Who are you?</p></html>'"


def test_what_of_a_data_set_was_asked_is_a_line_below_the_table(capsys, tmp_path):
    said = [
        ("a question that is long enough", "an answer that is long enough"),
        ("hi", "an answer that is long enough"),
    ]
    turns = [[{"from": "human", "value": asked}, {"from": "gpt", "value": answered}] for asked, answered in said]
    (tmp_path / "share.json").write_text(json.dumps([{"conversations": one} for one in turns]))
    with OpenAIServer() as server:
        line = ["bench", "serve", server.url, "--rate", "200", "-n", "1", "--repeats", "1", "--warmup", "0"]
        assert invoke([*line, "--dataset", str(tmp_path / "share.json"), "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert (
        out.count("asked: 1 conversation of share.json; 1 left out: 1 with a question or an answer below 4 tokens") == 1
    )
    assert json.loads((tmp_path / "out.json").read_text())["points"][0]["left_out"] == 1


def test_failures_are_lines_below_the_table(capsys):
    with OpenAIServer(faults={3: "429"}) as server:
        assert (
            invoke(["bench", "serve", server.url, "--rate", "200", "-n", "4", "--repeats", "1", "--warmup", "1"]) == 0
        )
    out = capsys.readouterr().out
    assert "1 of 4 requests failed, http 429: no answer: 429" in out and "errors" in out


def test_a_run_without_any_answer_is_a_failure(capsys):
    with OpenAIServer(every="500") as server:
        assert invoke(["bench", "latency", server.url, "--warmup", "0", "--repeats", "1", "-n", "2"]) == 70
    told = capsys.readouterr()
    assert "2 of 2 requests failed, http 500" in told.out and "every request failed" in told.err


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        (["latency", "http://127.0.0.1:9/v1"], 70, "E-BENCH-MODELS"),
        (["latency", "http://127.0.0.1:9/v1", "--model", "x"], 70, "E-BENCH-WARMUP"),
        (["latency", "http:///v1"], 2, "E-BENCH-URL"),
        (["latency", "localhost:8000/v1"], 2, "(http://localhost:8000/v1, if it is one) [E-BENCH-URL]"),
        (["latency", "localhost"], 2, "E-BENCH-URL"),
        (["serve", "10.0.0.7:80", "--rate", "1"], 2, "a server's address begins with http:// or https://"),
        (["latency", "http://h/v1", "--compare", "h:8000/v1"], 2, "h:8000/v1: a server's address begins"),
        (["latency", "http://[::1/v1"], 2, "E-BENCH-URL"),
        (["latency", "http://h\x01/v1", "--model", "x"], 2, "E-BENCH-URL"),
        (["latency", "http://xn--/v1", "--model", "x"], 2, "E-BENCH-URL"),
        (["latency", "http://h/v1", "--api", "responses"], 2, "E-BENCH-OPTION"),
        (["latency", "http://h/v1", "--api", "chat", "--prompt-ids"], 2, "E-BENCH-PROMPTS"),
        (["latency", "http://h/v1", "--api-key-env", "NO_SUCH_VARIABLE"], 2, "E-BENCH-KEY"),
        (["latency", "http://127.0.0.1:9/v1", "--prompt-ids", "--model", "x"], 2, "E-BENCH-PROMPTS"),
        (["latency", "http://h/v1", "--input", "many"], 2, "E-BENCH-LENGTHS"),
        (["latency", "http://h/v1", "--repeats", "0"], 2, "E-BENCH-NUMBER"),
        (["latency", "http://h/v1", "-n", "0"], 2, "E-BENCH-NUMBER"),
        (["latency", "http://h/v1", "--timeout", "nan"], 2, "E-BENCH-NUMBER"),
        (["latency", "http://h/v1", "--slo", "fast"], 2, "E-BENCH-SLO"),
        (["latency", "http://h/v1", "--json", "/no/such/folder/x.json"], 73, "E-OUT-FILE"),
        (["latency", "http://h/v1", "--html", "/"], 73, "E-OUT-FILE"),
        (["throughput", "http://h/v1", "--prefix-groups", "0"], 2, "E-BENCH-NUMBER"),
        (["throughput", "http://127.0.0.1:9/v1", "--model", "x", "--dataset", "gone.json"], 66, "E-BENCH-DATASET"),
        (
            ["throughput", "http://h/v1", "--dataset", "x.json", "--input", "8"],
            2,
            "--input: no effect beside --dataset",
        ),
        (["throughput", "http://h/v1", "--dataset", "x.json", "--shared-prefix", "8"], 2, "E-BENCH-OPTION"),
        (["serve", "http://h/v1", "--dataset", "x.json", "--prompt-ids", "--rate", "1"], 2, "E-BENCH-OPTION"),
        (["throughput", "http://h/v1", "--prefix-groups", "2"], 2, "no effect without --shared-prefix"),
        (["latency", "http://h/v1", "--option", "max_batch_size=2"], 2, "no effect where no engine is measured"),
        (["latency", "http://h/v1", "--compare-option", "max_batch_size=2"], 2, "--compare names no engine"),
        (["latency", "engine", "--model", "x", "--api", "chat"], 2, "--model, --api: no effect where no URL is"),
        (["latency", "engine", "--prompt-ids"], 2, "E-BENCH-OPTION"),
        (["throughput", "engine", "--timeout", "5"], 2, "--timeout: no effect on throughput of an engine"),
        (["throughput", "http://h/v1", "--compare", "engine", "--timeout", "5"], 2, "E-BENCH-OPTION"),
        (["serve", "http://h/v1"], 2, "E-BENCH-LOAD"),
        (["serve", "http://h/v1", "--rate", "1", "--concurrency", "1"], 2, "E-BENCH-LOAD"),
        (["serve", "http://h/v1", "--rate", "inf"], 2, "E-BENCH-LOAD"),
    ],
)
def test_bad_input_is_one_sentence_with_a_code(line, status, code, capsys):
    assert invoke(["bench", *line]) == status
    told = capsys.readouterr().err
    assert code in told and "Traceback" not in told


@pytest.mark.parametrize("key", ["ключ", "abc\n", "qq\txx", " qxz"])
def test_a_key_that_no_header_can_hold_is_one_sentence_that_does_not_show_it(key, monkeypatch, capsys):
    monkeypatch.setenv("THE_KEY", key)
    assert invoke(["bench", "latency", "http://h/v1", "--api-key-env", "THE_KEY"]) == 2
    told = capsys.readouterr().err
    assert "E-BENCH-KEY" in told and "printable ASCII" in told and key.strip() not in told


def test_latency_has_goodput_too(capsys):
    with OpenAIServer() as server:
        line = ["bench", "latency", server.url, "--slo", "total=60s", "-n", "2", "--repeats", "1", "--output", "2"]
        assert invoke(line) == 0
    table = capsys.readouterr().out.split("\n\n")[1]
    assert "good req/s" in table and "100 %" in table


@pytest.mark.parametrize(("said", "sent"), [([], True), (["--ignore-eos"], True), (["--no-ignore-eos"], False)])
def test_latency_of_a_server_that_does_not_know_ignore_eos(said, sent):
    with OpenAIServer() as server:
        assert invoke(["bench", "latency", server.url, *said, "-n", "1", "--repeats", "1", "--output", "2"]) == 0
        bodies = [seen.body for seen in server.seen if seen.body]
    assert bodies and all(("ignore_eos" in body) is sent for body in bodies)


def test_a_data_set_that_is_too_small_is_told(tmp_path, capsys):
    turns = [("human", "What is number good for?"), ("gpt", "It is good for counting things.")]
    entries = [
        {"conversations": [{"from": who, "value": text.replace("number", f"number {n}")} for who, text in turns]}
        for n in range(3)
    ]
    (tmp_path / "three.json").write_text(json.dumps(entries))
    line = [
        "--dataset",
        str(tmp_path / "three.json"),
        "--concurrency",
        "1",
        "-n",
        "4",
        "--warmup",
        "0",
        "--repeats",
        "2",
    ]
    with OpenAIServer() as server:
        assert invoke(["bench", "serve", server.url, *line, "--json", str(tmp_path / "found.json")]) == 0
    out, report = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert [run["figures"]["repeated_prompts"] for run in report["points"][0]["runs"]] == [1, 4]
    assert "repeated" in out and "5 of 8 requests sent a prompt that was sent before" in out


def test_a_list_of_models_that_is_none(capsys):
    with OpenAIServer(models=()) as server, pytest.raises(Exception, match="E-BENCH-MODELS"):
        UrlTarget(server.url)


def test_without_httpx_one_sentence_comes_before_any_work(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "httpx", None)
    assert invoke(["bench", "latency", "http://h/v1"]) == 69
    assert "pip install 'bestiary[bench]'" in capsys.readouterr().err


def test_two_servers_are_compared(capsys):
    with OpenAIServer() as fast, OpenAIServer(delay=0.02) as slow:
        line = ["bench", "throughput", fast.url, "--compare", slow.url, "-n", "3", "--warmup", "1", "--output", "4"]
        assert invoke([*line, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [target["kind"] for target in report["targets"]] == ["url", "url"]
    (itl,) = [one for one in report["comparisons"] if one["figure"] == "itl_p50_s"]
    assert itl["clear"] and itl["ratio"]["low"] > 1
    assert [seen.body["prompt"] for seen in fast.seen[1:4]] == [seen.body["prompt"] for seen in slow.seen[1:4]]


def test_the_numbers_are_those_of_another_clock_around_the_same_requests():
    """Within 3 %: times to first token, times between tokens, tokens a second."""
    with OpenAIServer(delay=0.02) as server:
        watch = Watch(UrlTarget(server.url))
        records = asked(watch, [ask(number, output=8) for number in range(6)], users=2)
    found, other = figures(records, None, None), watch.figures()
    assert found.ttft_p50_s == pytest.approx(other["ttft"], rel=0.03)
    assert found.itl_mean_s == pytest.approx(other["itl"], rel=0.03)
    assert found.output_tokens_per_s == pytest.approx(other["rate"], rel=0.03)
    # The server's own account: it wrote every token, and between its first and last write lies the same time.
    assert sum(len(seen.sent) for seen in server.seen) == 48
    own = statistics.median(seen.sent[-1] - seen.sent[0] for seen in server.seen)
    assert statistics.median(r.pieces[-1][0] - r.pieces[0][0] for r in records) == pytest.approx(own, rel=0.03)


class Watch:
    """Times a target's answers by another clock."""

    def __init__(self, target):
        self._target, self._spans = target, []

    async def answer(self, ask, arrived):
        began, pieces = time.perf_counter(), []

        def noted(tokens):
            pieces.append(time.perf_counter())
            arrived(tokens)

        ending = await self._target.answer(ask, noted)
        self._spans.append((began, pieces, time.perf_counter()))
        return ending

    async def close(self):
        await self._target.close()

    def figures(self):
        firsts = [pieces[0] - began for began, pieces, _ in self._spans]
        between = [(pieces[-1] - pieces[0]) / (len(pieces) - 1) for _, pieces, _ in self._spans]
        whole = max(ended for *_, ended in self._spans) - min(began for began, *_ in self._spans)
        tokens = sum(len(pieces) for _, pieces, _ in self._spans)
        return {"ttft": statistics.median(firsts), "itl": statistics.fmean(between), "rate": tokens / whole}


def test_events_come_whole_however_their_bytes_are_cut():
    raw = 'data: {"a": "x\u2028y"}\r\n\r\n: a comment\n\nevent: z\ndata: one\ndata: two\n\ndata: cut'.encode()

    async def read(size):
        async def chunks():
            for at in range(0, len(raw), size):
                yield raw[at : at + size]

        return [event async for event in events(chunks())]

    for size in (1, 2, 7, 1000):
        assert asyncio.run(read(size)) == ['{"a": "x\u2028y"}', "one\ntwo"]


def test_an_address_is_a_url():
    with pytest.raises(UsageError, match="E-BENCH-URL"):
        UrlTarget("http://", model="m")
