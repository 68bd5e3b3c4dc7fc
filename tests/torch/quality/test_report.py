"""Every figure that is published, against numpy on the logits of both sides; what the report and its page say."""

import html
import json
import math
import statistics

import numpy
import pytest
import torch
from browser import opened
from text_models import byte_level

from bestiary.core.errors import DataError
from bestiary.core.progress import Silent
from bestiary.core.quality.examine import examine
from bestiary.core.quality.page import log_axis, page
from bestiary.core.text.tokenizer import Tokenizer

WINDOW = 32
TEXT = "".join(f"hello {number}, STOP {number % 7}; " for number in range(40))


class Random:
    """A side whose logits are random, by the token and its place; ``own`` is its part that the others do not have."""

    def __init__(self, name, own, scale=0.6):
        size = byte_level().vocab_size

        def table(seed):
            return torch.randn(WINDOW + size, size, generator=torch.Generator().manual_seed(seed))

        self.label, self._rows, self.asked = name, 2 * table(0) + scale * own * table(own), 0
        self.vocab_size = size

    def logits(self, tokens):
        self.asked += 1
        return self._rows[WINDOW + torch.tensor(tokens)] + self._rows[: len(tokens)]


def compared(*models, text=TEXT, tokenizer=None, **options):
    said = {"name": "text", "window": WINDOW, "max_tokens": None, "worst": 5, "progress": Silent(), **options}
    return examine(models, Random("reference", 1), tokenizer or byte_level(), text, **said)


def by_hand(model, begin):
    """A dict a predicted token, from the logits alone."""
    tokenizer, reference, found = byte_level(), Random("reference", 1), []
    tokens = tokenizer.backend.encode(TEXT, add_special_tokens=False).ids
    step = WINDOW - len(begin)
    for number, start in enumerate(range(0, len(tokens), step)):
        piece = begin + tokens[start : start + step]
        logits = [side.logits(piece).numpy().astype(numpy.float64) for side in (model, reference)]
        ours, theirs = (numpy.exp(one) / numpy.exp(one).sum(-1, keepdims=True) for one in logits)
        for place in range(max(1, len(begin)), len(piece)):
            q, p, token = ours[place - 1], theirs[place - 1], piece[place]
            found.append({
                "window": number, "place": place, "q": q[token], "p": p[token], "kl": sum(p * numpy.log(p / q)),
                "q_choice": int(q.argmax()), "p_choice": int(p.argmax()), "token": token, "before": piece[:place],
            })  # fmt: skip
    return found


def test_every_figure_is_the_one_that_numpy_has_from_the_logits():
    ours = Random("ours", 2)
    report, _ = compared(ours)
    (model,) = report.models
    found = by_hand(ours, [byte_level().backend.token_to_id("<bos>")])
    count = len(found)
    q, p, kl = (numpy.array([one[name] for one in found]) for name in ("q", "p", "kl"))
    assert (report.tokens, model.model, report.reference) == (count, "ours", "reference")
    assert model.perplexity == pytest.approx(numpy.exp(-numpy.log(q).mean()))
    assert report.reference_perplexity == pytest.approx(numpy.exp(-numpy.log(p).mean()))
    assert abs(model.perplexity / report.reference_perplexity - 1) > 0.1, "else the two could be mixed up unseen"
    more = numpy.log(p) - numpy.log(q)  # nats that the model loses to the reference
    assert model.log_perplexity_difference.value == pytest.approx(more.mean())
    assert model.log_perplexity_difference.error == pytest.approx(more.std(ddof=1) / count**0.5)
    assert model.divergence.mean.value == pytest.approx(kl.mean())
    assert model.divergence.mean.error == pytest.approx(kl.std(ddof=1) / count**0.5)
    assert model.divergence.median == pytest.approx(numpy.percentile(kl, 50))
    assert model.divergence.p99 == pytest.approx(numpy.percentile(kl, 99))
    assert model.divergence.maximum == pytest.approx(kl.max())
    agreed = numpy.mean([one["q_choice"] == one["p_choice"] for one in found])
    assert 0 < agreed < 1 and model.agreement.value == pytest.approx(agreed)
    z = statistics.NormalDist().inv_cdf(0.975)
    for bound in (model.agreement.low, model.agreement.high):  # where the share is z of the bound's own errors away
        assert abs(bound - agreed) == pytest.approx(z * math.sqrt(bound * (1 - bound) / count))
    assert model.agreement.low < agreed < model.agreement.high


@pytest.mark.parametrize("size", [byte_level().vocab_size - 1, byte_level().vocab_size + 1])
def test_another_vocabulary_is_told_before_anything_runs(size):
    """A smaller one has no row for the text's tokens, and on a GPU asking for one ends the process's work."""
    model = Random("model", 2)
    model.vocab_size = size
    with pytest.raises(DataError, match=rf"model and reference: .*found {size} and {byte_level().vocab_size} tokens"):
        compared(Random("first", 3), model)
    assert model.asked == 0


def test_the_worst_tokens_have_the_probabilities_of_their_own_side():
    ours, text = Random("ours", 2), byte_level()
    (model,) = compared(ours)[0].models
    found = by_hand(ours, [text.backend.token_to_id("<bos>")])
    for shown, one in zip(model.worst, sorted(found, key=lambda one: -one["kl"])[:5], strict=True):
        assert (shown.window, shown.place) == (one["window"], one["place"])
        assert shown.divergence == pytest.approx(one["kl"])
        assert (shown.model_probability, shown.reference_probability) == (
            pytest.approx(one["q"]),
            pytest.approx(one["p"]),
        )
        assert shown.token == text.decode([one["token"]]) and text.decode(one["before"]).endswith(shown.context)
        assert shown.model_choice == text.decode([one["q_choice"]])
        assert shown.reference_choice == text.decode([one["p_choice"]])
    cells = model.worst_lines()[0]
    assert cells[:2] == (f"{model.worst[0].divergence:.3g}", repr(model.worst[0].token))
    assert [float(cell) for cell in cells[2:4]] == pytest.approx(
        [model.worst[0].model_probability, model.worst[0].reference_probability], rel=5e-3
    )


def test_the_table_says_each_figure_where_it_belongs():
    report, _ = compared(Random("ours", 2))
    (model,) = report.models
    heads, rows = report.table()
    assert heads == ("", "model: ours", "reference: reference")
    lines = {row[0]: row[1:] for row in rows}
    assert lines["perplexity"] == (f"{model.perplexity:.4f}", f"{report.reference_perplexity:.4f}")
    difference, mean = model.log_perplexity_difference, model.divergence.mean
    assert lines["log perplexity, difference"][0] == f"{difference.value:+.5f} ± {1.96 * difference.error:.2g}"
    assert lines["KL divergence, mean"][0] == f"{mean.value:.3g} ± {1.96 * mean.error:.2g}"
    spread = (model.divergence.median, model.divergence.p99, model.divergence.maximum)
    assert lines["KL divergence, median · p99 · max"][0] == " · ".join(f"{one:.3g}" for one in spread)
    share = model.agreement
    assert lines["top-1 agreement"][0] == f"{share.value:.2%} ({share.low:.2%} … {share.high:.2%})"


def test_several_models_are_each_what_they_are_alone_and_the_reference_runs_once():
    models, reference = [Random("two", 2), Random("three", 3), Random("small", 2, scale=0.01)], Random("reference", 1)
    said = {"name": "text", "window": WINDOW, "max_tokens": None, "worst": 2, "progress": Silent()}
    report, rows = examine(models, reference, byte_level(), TEXT, **said)
    assert reference.asked == models[0].asked == report.windows and len(rows) == 3
    for one, model in zip(report.models, models, strict=True):
        alone, _ = compared(model, worst=2)
        assert alone.models == (one,) and alone.reference_perplexity == report.reference_perplexity
    heads, lines = report.table()
    assert heads[:2] == ("model", "perplexity") and [line[0] for line in lines[:3]] == ["two", "three", "small"]
    assert lines[3][:2] == ("reference: reference", f"{report.reference_perplexity:.4f}")
    assert {len(line) for line in lines} == {len(heads)}


@pytest.mark.parametrize(
    ("config", "begins", "file"),
    [
        ({}, True, "tokenizer.json, post_processor"),
        ({"add_bos_token": True}, True, "tokenizer_config.json, add_bos_token"),
        ({"add_bos_token": False}, False, "tokenizer_config.json, add_bos_token"),
        ({"add_eos_token": True}, True, "tokenizer.json, post_processor"),
    ],
)
def test_the_report_says_what_each_window_begins_with_and_who_says_so(config, begins, file):
    backend = byte_level().backend
    bos = backend.token_to_id("<bos>")
    tokenizer = Tokenizer(backend, {"bos_token": "<bos>", "eos_token": "<end>", **config})
    report, rows = compared(Random("ours", 2), tokenizer=tokenizer)
    assert report.begin.ids == ((bos,) if begins else ()) and report.begin.source == file
    assert report.begin.text == ("<bos>" if begins else "")
    said = f"begins with '<bos>' (token {bos})" if begins else "begins with no token but the text's own"
    assert report.begin.sentence() == f"Each window {said}, as {file} has it."
    assert html.escape(report.begin.sentence()) in page(report, rows).html()
    expected = by_hand(Random("ours", 2), [bos] if begins else [])
    assert report.models[0].perplexity == pytest.approx(math.exp(-numpy.log([one["q"] for one in expected]).mean()))


def test_an_end_token_alone_is_not_taken_for_a_begin_token():
    backend = byte_level().backend
    tokenizer = Tokenizer(
        backend, {"bos_token": "<bos>", "eos_token": "<end>", "add_bos_token": False, "add_eos_token": True}
    )
    assert compared(Random("ours", 2), tokenizer=tokenizer)[0].begin.ids == ()


def test_two_begin_tokens_stand_in_every_window_and_are_not_predicted():
    from tokenizers import processors

    backend = byte_level().backend
    two = [backend.token_to_id(name) for name in ("<bos>", "<end>")]
    names = [("<bos>", two[0]), ("<end>", two[1])]
    backend.post_processor = processors.TemplateProcessing(single="<bos> <end> $A", special_tokens=names)
    report, _ = compared(Random("ours", 2), tokenizer=Tokenizer(backend, {"bos_token": "<bos>"}))
    found = by_hand(Random("ours", 2), two)
    assert list(report.begin.ids) == two and report.tokens == len(found)
    worst = max(found, key=lambda one: one["kl"])
    assert (report.models[0].worst[0].window, report.models[0].worst[0].place) == (worst["window"], worst["place"])


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1e-12, 3.0], ["1e-12", "1e-10", "1e-8", "1e-6", "1e-4", "0.01", "1"]),
        ([2e-4, 0.3], ["1e-4", "0.001", "0.01", "0.1", "1"]),
        ([0.04, 1.8], ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"]),
        ([0.02, 0.7], ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5"]),
        ([], None),
        ([0.5], None),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_few_and_whole(values, texts):
    axis = log_axis(values, title="KL, nats")
    low, high = axis["range"]
    inside = [one for one in axis["tickvals"] if low <= math.log10(one) <= high]
    assert low < high and (not values or inside) and len(inside) <= 9
    assert len(axis["ticktext"]) == len(axis["tickvals"]) and [float(one) for one in axis["ticktext"]] == pytest.approx(
        axis["tickvals"]
    )
    assert texts is None or axis["ticktext"] == texts


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_in_a_browser(tmp_path, count):
    report, rows = compared(*[Random(f"<i>model {own}", own) for own in range(2, 2 + count)])
    page(report, rows).write(tmp_path / "page.html")
    markup, said = opened(tmp_path / "page.html", tmp_path)
    said = [line for line in said if "WebGL" not in line]  # of drivers, not of scripts
    assert said == [] and "KL(reference ‖ model), nats" in markup
    assert markup.count('class="main-svg"') >= (3 if count == 1 else 1)
    assert "<i>" not in markup and json.dumps(report.as_dict(), allow_nan=False)
