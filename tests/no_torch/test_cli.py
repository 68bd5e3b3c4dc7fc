"""The command line against a stand-in for the model: what is printed where, as what, and the exit status."""

import io
import json
import re
import subprocess
import sys
from types import ModuleType
from typing import ClassVar

import pytest

from bestiary import BeamSearchParams, DataError, __version__
from bestiary.core.cli import failures
from bestiary.core.cli.main import invoke
from bestiary.core.cli.options import Building, Sampling
from bestiary.core.outputs import CompletionOutput, RequestMetrics, RequestOutput, StreamPiece


class FakeLLM:
    """Answers in three pieces that repeat what it was asked."""

    asked: ClassVar[list] = []
    fails: BaseException | None = None
    tokenizer = object()

    def __init__(self, engine, **options):
        FakeLLM.made = (engine, options)

    def stream(self, prompt, params):
        FakeLLM.asked.append((prompt, params))
        last = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        yield StreamPiece("You said ", [1])
        if FakeLLM.fails is not None:
            raise FakeLLM.fails
        yield StreamPiece(last, [2, 3])
        yield StreamPiece(".", [4], "stop")

    def generate(self, prompts, params, *, use_tqdm):
        FakeLLM.asked.append((prompts, params))
        return [
            RequestOutput(
                str(number), prompt if isinstance(prompt, str) else None, [7, 8],
                [CompletionOutput(0, f" and {number}", [1], finish_reason="length")], True, RequestMetrics(0.0),
            )
            for number, prompt in enumerate(prompts)
        ]  # fmt: skip

    def close(self):
        pass


@pytest.fixture(autouse=True)
def llm(monkeypatch, tmp_path):
    module = ModuleType("bestiary.core.llm")
    module.LLM = FakeLLM
    monkeypatch.setitem(sys.modules, "bestiary.core.llm", module)
    monkeypatch.setattr(FakeLLM, "asked", [])
    monkeypatch.setattr(FakeLLM, "fails", None)
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BESTIARY_PLUGINS", raising=False)
    return FakeLLM


@pytest.fixture
def engine(tmp_path):
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "engine.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def chat_engine(engine):
    (engine / "chat_template.jinja").write_text("{{ messages }}")
    return engine


def typed(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_run_streams_the_answer_to_stdout_and_its_cost_to_stderr(engine, capsys):
    assert invoke(["run", str(engine), "hello"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "You said hello.\n"
    assert all(word in printed.err for word in ("tokens/s", "time to first token", "peak memory"))


def test_run_reports_the_answer_as_its_last_step(engine, capsys):
    assert invoke(["run", str(engine), "hello"]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert re.fullmatch(r"generate {7} *[\d.]+ m?s  4 tokens", first)


def test_run_applies_the_chat_template_of_a_chat_model(chat_engine):
    assert invoke(["run", str(chat_engine), "hello", "--system", "be kind"]) == 0
    assert invoke(["run", str(chat_engine), "hello", "--raw"]) == 0
    assert [prompt for prompt, _ in FakeLLM.asked] == [
        [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}], "hello",
    ]  # fmt: skip


def test_a_system_message_without_a_template_is_refused(engine, capsys):
    assert invoke(["run", str(engine), "hello", "--system", "be kind"]) == 2
    assert "--system" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "generate", "chat"])
def test_a_memory_limit_reaches_the_engine(command, engine, monkeypatch):
    typed(monkeypatch, "")
    line = [command, str(engine), *(["hello"] if command != "chat" else [])]
    assert invoke(line) == 0
    assert "memory_limit" not in FakeLLM.made[1]
    assert invoke([*line, "--memory-limit", "4GiB"]) == 0
    assert FakeLLM.made[1]["memory_limit"] == "4GiB"


def test_run_takes_the_prompt_from_a_pipe(engine, monkeypatch, capsys):
    typed(monkeypatch, "from a pipe\n")
    assert invoke(["run", str(engine)]) == 0
    assert capsys.readouterr().out == "You said from a pipe.\n"
    typed(monkeypatch, "")
    assert invoke(["run", str(engine)]) == 2


def test_run_as_json(engine, capsys):
    assert invoke(["run", str(engine), "hello", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["text"], result["token_ids"], result["finish_reason"]) == ("You said hello.", [1, 2, 3, 4], "stop")
    assert result["peak_memory_bytes"] > 2**20 and result["time_to_first_token_s"] >= 0
    assert printed.err == ""


def test_sampling_options_reach_the_model_and_unsaid_ones_stay_the_models(engine):
    assert invoke(["run", str(engine), "x", "-t", "0.5", "--top-p", "0.9", "-n", "7", "--seed", "3", "--stop", "a", "--stop", "b"]) == 0  # fmt: skip
    ((_, params),) = FakeLLM.asked
    assert (params.temperature, params.top_p, params.max_tokens, params.seed) == (0.5, 0.9, 7, 3)
    assert list(params.stop) == ["a", "b"] and params.top_k is None and params.min_p is None


def test_a_bad_sampling_value_is_named(engine, capsys):
    assert invoke(["run", str(engine), "x", "-t", "-1"]) == 2
    assert "temperature" in capsys.readouterr().err


def test_build_options_are_passed_on_where_said():
    options = Building(max_batch_size=3, kernel=["rms_norm=torch", "a::b=c"]).options()
    assert options.max_batch_size == 3 and dict(options.kernels) == {"rms_norm": "torch", "a::b": "c"}
    assert options.block_size == Building().options().block_size == 16
    assert Sampling().params().temperature is None


def test_generate_takes_arguments_and_files(engine, tmp_path, capsys):
    plain, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    plain.write_text("one\n\ntwo\n")
    lines.write_text('"three"\n{"prompt": "four"}\n{"prompt_token_ids": [1, 2]}\n')
    assert invoke(["generate", str(engine), "zero", "--prompts", str(plain)]) == 0
    assert capsys.readouterr().out == "zero and 0\n\none and 1\n\ntwo and 2\n"
    assert invoke(["generate", str(engine), "--prompts", str(lines), "--json"]) == 0
    assert [one["prompt"] for one in json.loads(capsys.readouterr().out)] == ["three", "four", None]
    assert FakeLLM.asked[-1][0] == ["three", "four", {"prompt_token_ids": [1, 2]}]


def test_generate_searches_with_beams(engine, capsys):
    line = ["generate", str(engine), "zero", "--beam-width", "3", "-n", "9", "--capacity", "max-utilization"]
    assert invoke(line) == 0
    assert FakeLLM.asked == [(["zero"], BeamSearchParams(beam_width=3, max_tokens=9))]
    assert FakeLLM.made[1]["capacity"] == "max-utilization"
    assert invoke([*line, "--top-p", "0.5", "--stop", "x"]) == 2
    assert "--top-p, --stop" in capsys.readouterr().err


def test_generate_says_which_request_failed(engine, monkeypatch, capsys):
    answers = FakeLLM.generate

    def broken(self, prompts, params, *, use_tqdm):
        outputs = answers(self, prompts, params, use_tqdm=use_tqdm)
        outputs[1].outputs[0].finish_reason, outputs[1].outputs[0].stop_reason = "error", "ValueError: no"
        return outputs

    monkeypatch.setattr(FakeLLM, "generate", broken)
    assert invoke(["generate", str(engine), "zero", "one", "two"]) == 70
    printed = capsys.readouterr()
    assert printed.err == "request 1 failed: ValueError: no\n" and "two and 2" in printed.out
    assert invoke(["generate", str(engine), "zero", "one", "--json"]) == 70
    assert [one.get("error") for one in json.loads(capsys.readouterr().out)] == [None, "ValueError: no"]


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        pytest.param(None, 66, "no such file", id="missing"),
        pytest.param('"ok"\n{"promt": "x"}\n', 65, "p.jsonl, line 2", id="misspelt key"),
        pytest.param("not json\n", 65, "p.jsonl, line 1", id="not JSON"),
        pytest.param("", 2, "no prompt", id="empty"),
    ],
)
def test_bad_prompt_files_name_the_line(engine, tmp_path, capsys, content, status, said):
    path = tmp_path / "p.jsonl"
    if content is not None:
        path.write_text(content)
    assert invoke(["generate", str(engine), "--prompts", str(path)]) == status
    assert said in capsys.readouterr().err


def test_chat_keeps_the_conversation_until_it_is_reset(chat_engine, monkeypatch, capsys):
    typed(monkeypatch, "one\n\ntwo\n/reset\nthree\n/exit\nnever\n")
    assert invoke(["chat", str(chat_engine), "--system", "be kind"]) == 0
    assert capsys.readouterr().out == "You said one.\nYou said two.\nYou said three.\n"
    # The list grows while the conversation goes on, so only its last state is left to see.
    roles = [one["role"] for one in FakeLLM.asked[-1][0]]
    assert roles == ["system", "user", "assistant"]
    assert [one["content"] for one in FakeLLM.asked[0][0]] == [
        "be kind",
        "one",
        "You said one.",
        "two",
        "You said two.",
    ]


def test_chat_as_json_is_a_line_an_answer(chat_engine, monkeypatch, capsys):
    typed(monkeypatch, "one\ntwo\n")
    assert invoke(["chat", str(chat_engine), "--json"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == [
        "You said one.",
        "You said two.",
    ]


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_commands_for_engines_say_what_they_got_instead(command, tmp_path, capsys):
    (tmp_path / "bestiary.json").write_text("{}")
    assert invoke([command, str(tmp_path)] + (["x"] if command == "generate" else [])) == 2
    assert "found a checkpoint, expected an engine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        pytest.param(["frobnicate"], 2, "No such command", id="unknown command"),
        pytest.param(["run"], 2, "Missing argument", id="missing argument"),
        pytest.param(["run", "./nope", "x"], 66, "nope: no such file", id="missing model"),
        pytest.param(["--prefer", "x", "plugins"], 2, "NAME=DIST", id="malformed pair"),
        pytest.param(["--log-level", "loud", "plugins"], 2, "unknown level", id="log level"),
        pytest.param(["-p", "no_such_module_here", "plugins"], 69, "no_such_module_here", id="missing plugin"),
        pytest.param(["kernels", "no_such_op"], 69, "no_such_op", id="unknown op"),
        pytest.param(["cache", "rm"], 2, "needs names or --all", id="cache rm without names"),
        pytest.param(["cache", "rm", "nothing"], 66, "no such entry", id="cache rm of nothing"),
    ],
)
def test_a_failure_is_one_sentence_an_exit_status_and_with_json_an_object(arguments, status, said, capsys):
    assert invoke(arguments) == status
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    assert printed.err.startswith("bestiary: ") and printed.err.count("\n") == 1 and said in printed.err
    assert invoke([*arguments, "--json"]) in (status, 2)
    assert json.loads(capsys.readouterr().out)["error"]["exit_status"] in (status, 2)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        pytest.param(DataError("E-X", "file", "bad"), 65, "bestiary: file: bad [E-X]", id="bestiary's own"),
        pytest.param(KeyboardInterrupt(), 130, "bestiary: interrupted", id="Ctrl-C"),
        pytest.param(
            OSError(28, "No space left on device", "/a/b/shard"), 74, "bestiary: shard: No space left", id="disk"
        ),
        pytest.param(ValueError("two\nlines"), 70, "internal error: ValueError: two lines (--debug", id="a bug"),
    ],
)
def test_what_breaks_off_an_answer_becomes_a_status(engine, monkeypatch, capsys, error, status, said):
    monkeypatch.setattr(FakeLLM, "fails", error)
    assert invoke(["run", str(engine), "x"]) == status
    printed = capsys.readouterr().err
    assert said in printed and "Traceback" not in printed


def test_debug_shows_the_traceback(engine, monkeypatch, capsys):
    monkeypatch.setattr(FakeLLM, "fails", ValueError("x"))
    assert invoke(["--debug", "run", str(engine), "x"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_errors_have_the_same_keys_whatever_failed():
    keys = {*failures.as_dict(DataError("E-X", "s", "p"))["error"]}
    assert keys == {*failures.as_dict(ValueError("x"))["error"]} >= {"code", "message", "hint", "exit_status"}


def test_the_package_can_be_run() -> None:
    ran = subprocess.run([sys.executable, "-m", "bestiary", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"bestiary {__version__}\n"
