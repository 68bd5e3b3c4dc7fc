"""From times to figures, by hand."""

import pytest

from bestiary import UsageError
from bestiary.core.bench.asks import Ask
from bestiary.core.bench.figures import errors, figures, summary
from bestiary.core.bench.records import Ending, Record
from bestiary.core.bench.slo import Slo
from bestiary.core.bench.target import EngineSide
from bestiary.core.runtime.steps import StepRecord


def record(*pieces, due=0.0, sent=0.0, ended=None, output=4, **ending):
    """A request with 10 prompt tokens, whose pieces are (time, tokens)."""
    made = Record(Ask(0, (), 10, output, True), due, sent, list(pieces), ended or pieces[-1][0])
    made.ending = Ending(**ending)
    return made


def test_times_count_from_when_a_request_was_sent():
    late = record((1.5, 1), (1.6, 1), (1.8, 2), due=1.0, sent=1.2)
    assert late.first == pytest.approx(0.3) and late.total == pytest.approx(0.6)
    assert figures([late], None, None).late_p99_s == pytest.approx(0.2)
    assert late.intervals == pytest.approx([0.1, 0.1, 0.1])
    assert late.longest_gap == pytest.approx(0.2)
    assert late.mean_interval == pytest.approx(0.1)


def test_pieces_hold_equally_many_tokens_where_the_target_counts_others():
    made = record((1.0, 1), (2.0, 1), (3.0, 1))
    made.end(Ending(output_tokens=8))
    assert [tokens for _, tokens in made.pieces] == [2, 3, 3] and made.output_tokens == 8


def test_arrivals_are_counted_over_their_own_time():
    """Three gaps of half a second, of four requests: two a second, however long the answers take."""
    records = [record((9.0, 1), sent=at / 2) for at in range(4)]
    assert figures(records, None, None, arriving=True).arrivals_per_s == pytest.approx(2.0)
    assert figures(records, None, None).arrivals_per_s is None
    assert figures(records[:1], None, None, arriving=True).arrivals_per_s is None
    assert figures([records[0]] * 2, None, None, arriving=True).arrivals_per_s is None


def test_percentiles_are_those_of_their_names():
    """Of the hundredths 0 to 100, in disorder, the p-th percentile is p of them."""
    hundredths = [n * 37 % 101 / 100 for n in range(101)]
    firsts = figures([record((1 + at, 1)) for at in hundredths], None, None)
    assert (firsts.ttft_p50_s, firsts.ttft_p90_s, firsts.ttft_p99_s) == pytest.approx((1.5, 1.9, 1.99))
    assert firsts.ttft_mean_s == pytest.approx(1.5)
    times = [1.0, *(1.0 + sum(hundredths[: n + 1]) for n in range(101))]
    found = figures([record(*((at, 1) for at in times))], None, None)
    assert (found.itl_p50_s, found.itl_p90_s, found.itl_p99_s) == pytest.approx((0.5, 0.9, 0.99))
    assert found.itl_mean_s == pytest.approx(0.5) and found.gap_p99_s == pytest.approx(1.0)
    ends = figures([record((0.1, 1), ended=2 + at) for at in hundredths], None, None)
    assert (ends.total_p50_s, ends.total_p90_s, ends.total_p99_s) == pytest.approx((2.5, 2.9, 2.99))
    gaps = figures([record((1.0, 1), (2.0 + at, 1)) for at in hundredths], None, None)
    assert gaps.gap_p99_s == pytest.approx(1.99)
    late = figures([record((9.0, 1), sent=at) for at in hundredths], None, None)
    assert late.late_p99_s == pytest.approx(0.99)


def test_what_failed_counts_as_an_error_and_takes_its_time():
    good = record((1.0, 1), (2.0, 1), (3.0, 1), (4.0, 1), due=0.0)
    bad = record((1.0, 1), due=0.0, ended=8.0, error="cut")
    found = figures([good, bad], None, Slo(ttft=2.0))
    assert (found.requests, found.errors, found.duration_s) == (2, 1, 8.0)
    assert found.output_tokens_per_s == 0.5 and found.input_tokens_per_s == 10 / 8
    assert found.requests_per_s == 1 / 8 and found.user_tokens_per_s == 1.0
    assert found.ttft_p50_s == found.ttft_p99_s == 1.0
    assert (found.goodput_per_s, found.goodput_share) == (1 / 8, 0.5)
    assert errors([good, bad, bad]) == {"cut": 2}


def test_nothing_answered_is_no_figure_and_no_crash():
    found = figures([record(due=0.0, ended=2.0, error="http 429")], None, None)
    assert found.errors == 1 and found.output_tokens_per_s == 0.0
    assert found.ttft_p50_s is None and found.itl_p99_s is None and found.goodput_per_s is None


def test_short_answers_are_counted():
    assert figures([record((1.0, 1), (2.0, 1))], None, None).short == 1
    assert figures([record((1.0, 2), (2.0, 2))], None, None).short == 0


def test_unknown_prompt_lengths_are_not_taken_for_none():
    made = Record(Ask(0, "x", None, 1, True), 0.0, 0.0, [(1.0, 1)], 1.0)
    found = figures([made], None, None)
    assert found.input_tokens_per_s is None and found.total_tokens_per_s is None and found.output_tokens_per_s == 1.0


def test_the_engines_side():
    steps = (
        StepRecord(1.0, None, 0, 8, 1, 0, 10, 0),
        StepRecord(1.1, 0.1, 1, 0, 1, 0, 20, 0),
        StepRecord(1.4, 0.3, 1, 0, 1, 0, 40, 0),
    )
    found = figures([record((1.0, 4), cached_tokens=5)], EngineSide(steps, 0, 100, 7), None)
    assert found.kv_use_peak == 0.4 and found.kv_use_mean == pytest.approx((0.1 * 0.2 + 0.3 * 0.4) / 0.4)
    assert found.preemptions == 7 and found.reused_tokens == 5 and found.reused_share == 0.5
    assert found.step_p50_s == pytest.approx(0.2)


def test_a_summary_has_the_median_and_the_ends_of_the_repeats_that_have_a_figure():
    runs = [figures([record((first, 1), ended=4.0)], None, None) for first in (1.0, 3.0, 2.0)]
    found = summary([*runs, figures([record(ended=1.0, error="cut")], None, None)])
    assert (found.ttft_p50_s.median, found.ttft_p50_s.low, found.ttft_p50_s.high) == (2.0, 1.0, 3.0)
    assert found.goodput_per_s is None and found.errors.high == 1


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        ("ttft=1s", True),
        ("ttft=999ms", False),
        ("itl=500ms", True),
        ("itl=499ms", False),
        ("ttft=2s,total=1.9s", False),
    ],
)
def test_objectives(slo, met):
    assert Slo.parse(slo).met(record((1.0, 1), (1.5, 1), (2.0, 1))) is met


def test_neither_a_failure_nor_silence_meets_an_objective():
    assert not Slo(total=9.0).met(record((1.0, 1), error="cut"))
    assert not Slo(total=9.0).met(record(ended=1.0))


@pytest.mark.parametrize(
    "text", ["", "ttft", "ttft=5", "ttft=0ms", "ttft=1s,ttft=2s", "speed=1s", "itl=-1ms", "itl=1min"]
)
def test_what_is_no_objective_is_one_sentence(text):
    with pytest.raises(UsageError, match=r"--slo: not an objective.*E-BENCH-SLO"):
        Slo.parse(text)
