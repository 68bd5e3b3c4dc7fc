"""The figures of quality against sums by hand."""

import json
import math

import pytest
import torch
from text_models import byte_level

from bestiary import DataError
from bestiary.core.progress import Silent
from bestiary.core.quality.examine import examine
from bestiary.core.quality.figures import Rows


class Scripted:
    """A side whose logits are made of the tokens by a rule."""

    def __init__(self, vocabulary, shift=0.0):
        self.label, self.vocab_size, self._shift = f"shift {shift}", vocabulary, shift

    def logits(self, tokens):
        rows = torch.zeros(len(tokens), self.vocab_size)
        for row, token in enumerate(tokens):
            rows[row, (token + 1) % self.vocab_size] = 2.0
            rows[row, token] += self._shift
        return rows


def compare(ours, reference, text="hello world, hello", **options):
    said = {"name": "text", "window": 8, "max_tokens": None, "worst": 3, "progress": Silent(), **options}
    report, _ = examine([ours], reference, byte_level(), text, **said)
    (model,) = report.models
    return report, model


def test_figures_are_those_counted_by_hand():
    rows = Rows()
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    q = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]).log()
    rows.add(0, [0, 1, 2], q, p)
    assert rows.column("ours").exp().tolist() == pytest.approx([0.5, 0.1])
    assert rows.column("reference").exp().tolist() == pytest.approx([0.25, 0.1])
    assert rows.column("divergence").tolist() == pytest.approx([0.25 * math.log(2), 0.0], abs=1e-7)
    assert rows.column("our_choice").tolist() == [1, 1] and rows.column("reference_choice").tolist() == [0, 1]
    assert rows.column("place").tolist() == [1, 2]


def test_a_token_that_the_reference_rules_out_adds_nothing_and_one_that_only_ours_does_is_infinite():
    inf = math.inf
    rows = Rows()
    rows.add(0, [0, 1], torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, -inf]]))
    rows.add(1, [0, 1], torch.tensor([[0.0, 0.0, -inf]]), torch.tensor([[0.0, 0.0, 0.0]]))
    assert rows.column("divergence").tolist() == [pytest.approx(math.log(1.5)), inf]


def test_a_side_agrees_with_itself_exactly():
    side = Scripted(byte_level().vocab_size)
    report, model = compare(side, side)
    assert model.divergence.maximum == 0 and model.agreement.value == 1
    assert model.perplexity == report.reference_perplexity
    assert model.log_perplexity_difference.value == 0


def test_sides_that_differ_are_told_apart_and_the_worst_tokens_shown():
    size = byte_level().vocab_size
    _, model = compare(Scripted(size, 3.0), Scripted(size))
    e = math.exp
    p_total, q_total = e(2) + size - 1, e(2) + e(3) + size - 2
    assert model.divergence.mean.value == pytest.approx(math.log(q_total / p_total) - 3 / p_total, rel=1e-6)
    assert model.agreement.value == 0
    assert [one.divergence for one in model.worst] == sorted((o.divergence for o in model.worst), reverse=True)
    assert model.worst[0].context and len(model.worst) == 3


def test_every_token_but_the_first_of_a_window_is_predicted_once():
    size = byte_level().vocab_size
    tokens = len(byte_level().encode("hello world, hello", add_special_tokens=False))
    report, _ = compare(Scripted(size), Scripted(size), window=4)
    assert report.tokens == tokens, "each window begins with the begin token, which is not predicted"
    assert report.windows == -(-tokens // 3)


@pytest.mark.parametrize(
    ("text", "other", "problem"), [("", 0, "too short"), ("hello world", 5, "different vocabularies")]
)
def test_what_can_not_be_compared_is_refused(text, other, problem):
    size = byte_level().vocab_size
    with pytest.raises(DataError, match=problem):
        compare(Scripted(size), Scripted(size + other), text=text)


def test_what_is_not_finite_is_null_in_the_report():
    size = byte_level().vocab_size
    sure = Scripted(size)
    sure.logits = lambda tokens: Scripted(size).logits(tokens) * 1e4
    report, model = compare(sure, Scripted(size), text="hi")
    assert model.perplexity == math.inf
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert document["models"][0]["perplexity"] is None and document["reference_perplexity"] > 1
    number = report.json_schema()["$defs"]["ModelQuality"]["properties"]["perplexity"]
    assert number["type"] == ["number", "null"]
