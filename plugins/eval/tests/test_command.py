"""``bestiary eval`` as a user calls it: scores, pairs, files it writes, and what bad input gives."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., tuple[int, str, str]]
DATA = Path(__file__).parent / "data" / "general_knowledge.jsonl"

GENERATION = """
task: told_greetings
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{greeting}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 2.0}}
"""
ROLLING = """
task: read_greetings
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{greeting}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
SCORED = """
task: scored_greetings
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{greeting}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: " "
metric_list: [{{metric: perplexity, aggregation: perplexity, higher_is_better: false}}, {{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def yamls(tmp_path: Path) -> list[Path]:
    """Task files of three kinds over the same six rows."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"greeting": f"hello {n}", "answer": "world"}) + "\n" for n in range(6)))
    found = []
    for name, text in (("told", GENERATION), ("read", ROLLING), ("scored", SCORED)):
        found.append(tmp_path / f"{name}.yaml")
        found[-1].write_text(text.format(rows=rows))
    return found


def test_the_same_engine_again_differs_in_nothing(call: Call, questions: Path) -> None:
    status, out, err = call("one", "--tasks", f"{DATA},{questions}", "--against", "twin", "--json", "-")
    assert status == 0, err
    report = json.loads(out)
    assert report["schema"] == "bestiary.eval/1"
    found = {(one["task"], one["metric"]): one for one in report["scores"]}
    assert found.keys() == {("general_knowledge", "acc"), ("texts", "acc"), ("texts", "acc_norm")}
    for one in report["scores"]:
        pair = one["against"]
        assert (pair["gained"], pair["lost"], pair["changed"], pair["flips"]) == (0, 0, 0, [])
        assert pair["difference"] == 0 and pair["p_value"] == 1
        assert pair["difference_low"] == -pair["difference_high"] < 0
        assert one["interval"] == "wilson" and one["low"] <= one["value"] <= one["high"]
    assert found["general_knowledge", "acc"]["count"] == 50
    assert report["versions"].keys() == {"bestiary", "bestiary-eval", "lm-eval", "torch", "transformers"}


def test_another_engine_flips_what_the_samples_say(call: Call, questions: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"out.{name}" for name in ("json", "html", "jsonl")}
    status, out, err = call(
        "one", "--tasks", questions, "--against", "other", "--num-fewshot", 2, "--seed", 5, "--limit", 10,
        "--json", files["json"], "--html", files["html"], "--log-samples", files["jsonl"],
    )  # fmt: skip
    assert status == 0, err
    report = json.loads(files["json"].read_text())
    acc = next(one for one in report["scores"] if one["metric"] == "acc")
    assert (acc["count"], acc["shots"], report["seed"], report["limit"]) == (10, 2, 5, 10)
    right: dict[str, dict[int, float]] = {"one": {}, "other": {}}
    for line in map(json.loads, files["jsonl"].read_text().splitlines()):
        best = max(range(3), key=lambda index, line=line: line["filtered_resps"][index][0])
        assert line["acc"] == (best == line["target"])
        right[line["model"]][line["doc_id"]] = line["acc"]
    expected = {n for n in range(10) if right["one"][n] != right["other"][n]}
    assert expected, "the two models must differ for this test to see anything"
    assert {flip["document"] for flip in acc["against"]["flips"]} == expected
    for flip in acc["against"]["flips"]:
        assert flip["gained"] is (flip["answer"] == flip["target"]) and flip["answer"] != flip["against_answer"]
        assert flip["text"] == f"The number after {flip['document']} is"
    gained = sum(right["one"][n] > right["other"][n] for n in range(10))
    assert (acc["against"]["gained"], acc["against"]["lost"]) == (gained, len(expected) - gained)
    assert gained != len(expected) - gained, "else gained and lost could be mixed up unseen"
    assert acc["against"]["difference"] == pytest.approx(acc["value"] - acc["against"]["value"])
    assert "one against other, paired by item" in out and "flipped: right for one of the two only" in out
    assert files["html"].read_text().count("Plotly.newPlot(") == 2


def test_transformers_on_the_engines_own_weights(call: Call, questions: Path) -> None:
    """Exported from the engine, which is fp32; nothing of it is left."""
    status, out, err = call("one", "--tasks", questions, "--against", "hf", "--json", "-")
    assert status == 0, err
    report = json.loads(out)
    assert report["against"] == "transformers"
    assert all(one["against"]["changed"] == 0 for one in report["scores"])
    assert not list(Path(os.environ["BESTIARY_HOME"]).glob("hf-*"))
    status, out, err = call("other", "--tasks", questions, "--against", "hf:one.hf", "--json", "-")
    assert json.loads(out)["against"] == "transformers on one.hf"
    assert any(one["against"]["changed"] for one in json.loads(out)["scores"])


def test_tasks_of_every_kind(call: Call, yamls: list[Path]) -> None:
    tasks = [part for path in yamls for part in ("--tasks", path)]
    status, out, err = call("one", *tasks, "--against", "hf", "--json", "-")
    assert status == 0, err
    found = {(one["task"], one["metric"]): one for one in json.loads(out)["scores"]}
    told = found["told_greetings", "exact_match"]
    assert (told["version"], told["count"], told["against"]["changed"]) == ("2.0", 6, 0)
    for metric in (("scored_greetings", "perplexity"), ("read_greetings", "bits_per_byte")):
        assert found[metric]["value"] == pytest.approx(found[metric]["against"]["value"], rel=1e-3)
        assert found[metric]["against"]["p_value"] is None
    assert found["scored_greetings", "acc"]["interval"] == "wilson"


@pytest.mark.slow  # the index of lm-eval's tasks
def test_a_group_by_name_and_by_file(call: Call, yamls: list[Path]) -> None:
    group = yamls[0].with_name("all.yaml")
    metric = "{metric: acc, aggregation: mean, weight_by_size: true}"
    group.write_text(
        f"group: greetings\ntask: [scored_greetings]\naggregate_metric_list: [{metric}]\nmetadata: {{version: 3}}\n"
    )
    for tasks in (["greetings", "--include-path", group.parent], [group]):
        status, out, err = call("one", "--tasks", *tasks, "--against", "twin", "--json", "-")
        assert status == 0, err
        found = {(one["task"], one["metric"]): one for one in json.loads(out)["scores"]}
        whole, part = found["greetings", "acc"], found["scored_greetings", "acc"]
        assert (whole["count"], whole["version"], whole["value"]) == (6, "3", part["value"])
        assert whole["against"]["difference"] == 0 and whole["against"]["p_value"] is None


def test_conversations_and_texts_that_are_too_long(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    row = {"question": "hello " * 120, "choices": ["a", "b", "c", "d"], "answer": 0}
    path.write_text((json.dumps(row) + "\n") * 4)
    options = ["--apply-chat-template", "--system-instruction", "Be brief. " * 40, "--fewshot-as-multiturn"]
    status, out, err = call("one", "--tasks", path, "--num-fewshot", 2, *options, "--batch-size", 2, "--json", "-")
    assert status == 0, err
    assert json.loads(out)["truncated"] == 16 and json.loads(out)["chat_template"]
    told = "warning: 16 requests were longer than the 192 tokens of --max-seq-len and lost their beginning: the scores are of"
    assert told in err
    page = tmp_path / "page.html"
    status, out, err = call("one", "--tasks", path, "--num-fewshot", 2, *options, "--limit", 1, "--html", page)
    assert status == 0 and "warning: 4 requests were longer" in err and "Beware: 4 requests" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ([], 2, "Missing option '--tasks'"),
        (["--tasks", "none.jsonl"], 66, "none.jsonl: no such file of questions"),
        (["--tasks", "none.yaml"], 66, "none.yaml: no such task file"),
        (["--tasks", DATA, "--include-path", "nowhere"], 66, "no such directory"),
        (["--tasks", DATA, "--limit", "-1"], 2, "is no number of items; found -1.0"),
        (["--tasks", DATA, "--num-fewshot", "-1"], 2, "is negative; found -1"),
        (
            ["--tasks", DATA, "--num-fewshot", "50"],
            2,
            "more examples than general_knowledge.jsonl has beside a question; found 50, expected at most 49",
        ),
        (["--tasks", DATA, "--gen-kwargs", "a"], 2, "--gen-kwargs: not pairs"),
        (["--tasks", DATA, "--html", "no/page.html"], 73, "page.html: can't be written"),
        (["--tasks", DATA, "--json", "."], 73, "can't be written"),
        (["--tasks", f"{DATA},./{DATA.name}"], 66, "no such file of questions"),
    ],
)
def test_bad_input_is_one_sentence(call: Call, arguments: list[Any], status: int, sentence: str) -> None:
    found, out, err = call("one", *arguments)
    assert (found, err.count("\n")) == (status, 1), err
    assert not out or "--json" in arguments
    assert sentence in err


def test_a_task_file_says_too_when_it_has_too_few_examples(call: Call, yamls: list[Path]) -> None:
    """Its data is lm-eval's to read, so it is seen when it is asked."""
    status, _, err = call("one", "--tasks", yamls[2], "--num-fewshot", 9)
    assert status == 65 and "a task has fewer examples than --num-fewshot asks for" in err


def test_what_is_not_answered_has_no_other_answers(call: Call, yamls: list[Path]) -> None:
    """Log-likelihoods of two models differ in their last digits at least, and nobody said anything."""
    said = ("one", "--tasks", f"{yamls[1]},{yamls[2]}", "--against", "other")
    status, out, err = call(*said, "--json", "-")
    assert status == 0, err
    changed = {(one["task"], one["metric"]): one["against"]["changed"] for one in json.loads(out)["scores"]}
    assert changed == {
        ("read_greetings", "word_perplexity"): None, ("read_greetings", "bits_per_byte"): None,
        ("scored_greetings", "perplexity"): 0, ("scored_greetings", "acc"): 0,
    }  # fmt: skip
    status, out, _ = call(*said)
    rows = [line.split() for line in out.splitlines() if "bits_per_byte" in line]
    assert len(rows) == 2 and rows[1][-4:] == ["-", "-", "-", "-"]


def test_as_many_examples_as_there_are(call: Call, questions: Path) -> None:
    """All but the question itself."""
    status, out, err = call("one", "--tasks", questions, "--num-fewshot", 11, "--json", "-")
    assert status == 0, err
    assert {one["shots"] for one in json.loads(out)["scores"]} == {11}
    status, _, err = call("one", "--tasks", questions, "--num-fewshot", 12)
    assert status == 2 and "texts.jsonl has beside a question; found 12, expected at most 11" in err


def test_a_missing_model_and_a_bad_partner(call: Call, tmp_path: Path) -> None:
    status, _, err = call("./nothing", "--tasks", DATA)
    assert status == 66 and "nothing: no such file or directory" in err.splitlines()[-1]
    status, _, err = call("one", "--tasks", DATA, "--limit", 2, "--against", "./nothing")
    assert status == 66 and "nothing: no such file or directory" in err.splitlines()[-1]


@pytest.mark.slow  # the index of lm-eval's tasks
def test_names_that_lm_eval_does_not_know(call: Call) -> None:
    status, _, err = call("one", "--tasks", "hellaswagg")
    assert status == 2
    assert "hellaswagg: no such task" in err.splitlines()[-1] and "close to it: hellaswag" in err.splitlines()[-1]


def test_data_that_can_not_be_fetched(call: Call, tmp_path: Path) -> None:
    text = "task: far\ndataset_path: nobody/nothing\ntest_split: test\noutput_type: generate_until\n"
    (tmp_path / "far.yaml").write_text(text + 'doc_to_text: "a"\ndoc_to_target: "b"\n')
    status, _, err = call("one", "--tasks", tmp_path / "far.yaml")
    assert status == 65 and err.splitlines()[-1].startswith("bestiary: lm-eval: failed: ") and "network" in err
