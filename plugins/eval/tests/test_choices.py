"""What an item with choices was answered, as lm-eval scores it: by each metric, whatever stands in the choices' place."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from bestiary_eval.choices import Choices

METRICS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
BEGINNINGS = """
task: beginnings
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: gold
doc_to_choice: "{{{{[one, two]}}}}"
doc_to_target: rest
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def logged(asked: list[tuple[str, str]], found: list[float], *metrics: str, **more: Any) -> dict[str, Any]:
    responses = [(one, False) for one in found]
    return {"arguments": asked, "filtered_resps": responses, "metrics": list(metrics), "doc": {}, **more}


def test_the_answer_is_the_one_that_lm_eval_scores() -> None:
    """Each choice in turn is made the right one: lm-eval holds exactly one for right, and it is ours."""
    choices = ["a", "bb bb", "čž", "dddd ddd"]
    rows = [{"q": "What?", "choices": choices, "gold": number} for number in range(4)]
    config = {
        "task": "drawn",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "q",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": one, "aggregation": "mean", "higher_is_better": True} for one in METRICS],
    }
    task = ConfigurableTask(config=config)
    asked = [one.args for one in task.construct_requests(rows[0], "What?", metadata=("drawn", 0, 1))]
    draw, taken = random.Random(0), set[tuple[str, ...]]()
    for _ in range(40):
        found = [draw.uniform(-12, -1) for _ in asked]
        mine = Choices.of(logged(asked, found, *METRICS))
        assert mine is not None and list(mine.texts) == choices
        answers = {metric: mine.taken(metric) for metric in METRICS}
        taken.add(tuple(answers.values()))
        for metric, answer in answers.items():
            right = [row for row in rows if task.process_results(row, [(one, False) for one in found])[metric] == 1]
            assert [choices[row["gold"]] for row in right] == [answer], metric
    assert any(len(set(answers)) == 3 for answers in taken), "metrics must differ for this test to see anything"


def test_choices_that_begin_the_question() -> None:
    asked = [
        ("Shot one. Ann met Mary because Ann", " was late."),
        ("Shot one. Ann met Mary because Maria", " was late."),
    ]
    one = Choices.of(logged(asked, [-3.0, -1.0], "acc"))
    assert one is not None and one.taken("acc") == "Maria"
    assert one.question == "Shot one. Ann met Mary because … was late."
    other = Choices.of(logged(asked, [-1.0, -3.0], "acc"))
    assert other is not None and other.taken("acc") == "Ann"


def test_what_has_no_choices() -> None:
    assert Choices.of(logged([("a text", " an end")], [-1.0], "acc")) is None
    written = {"arguments": [("a prompt", {"until": []})], "filtered_resps": ["said"], "metrics": ["exact_match"]}
    assert Choices.of(written) is None


def test_flips_of_such_items_say_what_flipped(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    rows = [
        {
            "one": f"Of {n} and {n + 3} the {n}",
            "two": f"Of {n} and {n + 3} the {n + 3}",
            "rest": "is larger.",
            "gold": n % 2,
        }
        for n in range(1, 7)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "beginnings.yaml").write_text(BEGINNINGS.format(rows=tmp_path / "rows.jsonl"))
    status, out, err = call("one", "--tasks", tmp_path / "beginnings.yaml", "--against", "other", "--json", "-")
    assert status == 0, err
    pair = json.loads(out)["scores"][0]["against"]
    assert pair["flips"], "the two models must differ for this test to see anything"
    assert pair["changed"] == len(pair["flips"]) == pair["gained"] + pair["lost"], "two choices each"
    for flip in pair["flips"]:
        row = rows[flip["document"]]
        small, large = (row[name].split()[-1] for name in ("one", "two"))
        assert {flip["answer"], flip["against_answer"]} == {small, large}
        assert (
            flip["target"]
            == (small, large)[row["gold"]]
            == (flip["answer"] if flip["gained"] else flip["against_answer"])
        )
        assert flip["text"] == f"Of {small} and {large} the … is larger."
