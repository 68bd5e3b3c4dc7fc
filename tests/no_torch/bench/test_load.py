"""The load generator against a target that only waits."""

import asyncio
import itertools
import time
from random import Random

import pytest

from bestiary import EngineError, UsageError
from bestiary.core.bench import points
from bestiary.core.bench.asks import Ask
from bestiary.core.bench.columns import better, comparison_table
from bestiary.core.bench.compare import comparisons
from bestiary.core.bench.figures import RunFigures
from bestiary.core.bench.lengths import Lengths
from bestiary.core.bench.load import AllAtOnce, ClosedLoop, OpenLoop
from bestiary.core.bench.measure import Measurer, Point, Run
from bestiary.core.bench.records import Ending
from bestiary.core.bench.synthetic import Synthetic
from bestiary.core.bench.target import About
from bestiary.core.bench.vocabulary import Ids
from bestiary.core.progress import Silent


class Waiter:
    """Gives the tokens asked for, some time apart."""

    tokenizer, vocab_size, longest = None, 50, 100

    def __init__(self, name="waiter", delay=0.0, error=None, log=None, forgets=True):
        self.forgets = forgets
        self.about = About(name, "engine", "none", None, {})
        self._delay, self._error, self._log = delay, error, log if log is not None else []
        self.under_way = self.most = 0
        self.sent, self.times = [], []

    def begin(self):
        self._log.append(self.about.name)

    def end(self):
        return None

    async def answer(self, ask, arrived):
        self.sent.append(ask)
        self.times.append(asyncio.get_running_loop().time())
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            for _ in range(ask.output_tokens):
                await asyncio.sleep(self._delay)
                arrived(1)
        finally:
            self.under_way -= 1
        return Ending(finish_reason="length", error=self._error)

    def batch(self, asks):
        return None

    async def close(self):
        self._log.append("closed")


def asks(count):
    return [Ask(number, (1,), 1, 2, True) for number in range(count)]


def run(load, target, count, timeout=5.0):
    done = []
    records = asyncio.run(load.run(target, asks(count), timeout, done.append))
    assert len(done) == len(records) == count
    assert sorted(record.ask.number for record in records) == list(range(count))
    return records


def test_users_ask_again_when_they_have_their_answers():
    target = Waiter()
    run(ClosedLoop(3), target, 10)
    assert target.most == 3
    run(ClosedLoop(1), one := Waiter(), 4)
    assert one.most == 1


def test_all_at_once_means_all():
    run(AllAtOnce(), target := Waiter(), 7)
    assert target.most == 7


def test_arrivals_do_not_wait_for_answers_and_are_drawn_from_the_seed():
    target = Waiter(delay=0.05)
    records = run(OpenLoop(1000.0, 4), target, 12)
    random = Random("4 arrivals")
    gaps = [random.expovariate(1000.0) for _ in range(12)]
    found = [b.due - a.due for a, b in itertools.pairwise(records)]
    assert found == pytest.approx(gaps[1:])
    assert target.most > 3
    assert all(record.sent >= record.due for record in records)


def test_a_generator_that_is_held_up_says_how_late_it_sent():
    class Holding(Waiter):
        async def answer(self, ask, arrived):
            time.sleep(0.02)
            return await super().answer(ask, arrived)

    records = run(OpenLoop(1e6, 0), Holding(), 4)
    late = [record.sent - record.due for record in records]
    assert all(b > a + 0.015 for a, b in itertools.pairwise(late)), "each waits for one more than the one before"


def test_what_takes_too_long_has_failed():
    records = run(ClosedLoop(2), Waiter(delay=30.0), 2, timeout=0.05)
    assert [record.ending.error for record in records] == ["timeout", "timeout"]


def workload():
    return Synthetic(Ids(10**9), Lengths.parse("2", ""), Lengths.parse("3", ""), seed=0)


def measured(targets, load=None, repeats=3, warmup=2, count=4, work=None):
    point = Point("a load", load or ClosedLoop(2), work or workload(), count)
    return Measurer(targets, repeats, warmup, 5.0, None, Silent()).run([point])


def test_repeats_take_turns_with_the_same_requests_and_no_prompt_comes_twice():
    log = []
    one, other = Waiter("one", log=log), Waiter("other", log=log)
    runs = measured([one, other])
    assert log == ["one", "other", "other", "one", "one", "other", "closed", "closed"]
    assert {a.prompt for a in one.sent} == {a.prompt for a in other.sent}
    assert len({a.prompt for a in one.sent}) == 2 + 3 * 4
    assert [(run.target.about.name, run.repeat) for run in runs] == [
        ("one", 0), ("other", 0), ("other", 1), ("one", 1), ("one", 2), ("other", 2),
    ]  # fmt: skip
    assert all(len(run.records) == 4 for run in runs)


def test_comparisons_pair_the_repeats():
    runs = measured([Waiter("one"), Waiter("other", delay=0.02)], count=2)
    found = {one.figure: one for one in comparisons(runs, ["one", "other"])}
    slower = found["itl_p50_s"]
    assert (slower.target, slower.against, slower.more_is_better) == ("other", "one", False)
    assert slower.clear and slower.ratio.low > 1
    rates = [run.figures.output_tokens_per_s for run in sorted(runs, key=lambda r: (r.repeat, r.target.about.name))]
    ratios = [other / one for one, other in zip(rates[::2], rates[1::2], strict=True)]
    assert found["output_tokens_per_s"].ratio.low == min(ratios)
    assert comparisons(runs, ["one"]) == []


class Few:
    """Three prompts, again and again."""

    def asks(self, count, round):
        return [Ask(number, (number % 3,), 1, 2, True) for number in range(count)]


def test_prompts_that_come_again_are_counted_as_far_as_the_target_may_remember_them():
    def repeated(**options):
        runs = measured([Waiter(**options)], work=Few(), repeats=2, warmup=2, count=4)
        return [run.figures.repeated_prompts for run in runs]

    assert repeated(forgets=True) == [1, 1]
    assert repeated(forgets=False) == [3, 4], "two of the warm-up's and one of its own, then all"
    assert {run.figures.repeated_prompts for run in measured([Waiter(forgets=False)])} == {0}


def compared(ones, others, figure="goodput_per_s"):
    """The comparison of a figure whose values are these, one a repeat."""
    point = Point("a load", ClosedLoop(1), workload(), 1)
    runs = [
        Run(point, Waiter(name), repeat, [], None, RunFigures(**{figure: value}))
        for name, values in (("one", ones), ("other", others))
        for repeat, value in enumerate(values)
    ]
    return comparisons(runs, ["one", "other"])


@pytest.mark.parametrize(
    ("figure", "ones", "others", "whose"),
    [
        ("output_tokens_per_s", [10.0, 12.0], [20.0, 13.0], "other"),
        ("output_tokens_per_s", [20.0, 13.0], [10.0, 12.0], "one"),
        ("ttft_p50_s", [0.2, 0.3], [0.1, 0.2], "other"),
        ("ttft_p50_s", [0.1, 0.2], [0.2, 0.3], "one"),
        ("ttft_p50_s", [0.1, 0.3], [0.2, 0.2], "-"),
        ("ttft_p50_s", [0.1], [0.2], "-"),
    ],
)
def test_more_tokens_a_second_and_fewer_seconds_are_better(figure, ones, others, whose):
    (found,) = compared(ones, others, figure)
    assert better(found) == whose
    assert comparison_table([found])[1][0][-1] == whose
    assert found.ratio.low == min(b / a for a, b in zip(ones, others, strict=True)) and found.left_out == 0


def test_repeats_without_a_ratio_are_told_and_decide_nothing():
    (found,) = compared([0.0, 1.0, 2.0], [3.0, 2.0, 8.0])
    assert (found.repeats, found.left_out, found.ratio.low, found.ratio.high) == (3, 1, 2.0, 4.0)
    assert better(found) == "-", "of one repeat nobody knows by how much"
    (found,) = compared([0.0, 0.0], [3.0, 2.0])
    assert found.ratio is None and found.left_out == 2 and comparison_table([found])[1][0][2:] == ["-", "-", "-"]
    (found,) = compared([1.0, 2.0], [None, 2.0])
    assert (found.repeats, found.left_out) == (2, 1)
    assert compared([1.0, 2.0], [None, None]) == []


def test_a_target_that_answers_nothing_of_the_warm_up_is_not_measured():
    log = []
    with pytest.raises(EngineError, match=r"bad: answered no request.*broken.*E-BENCH-WARMUP"):
        measured([Waiter("bad", error="broken", log=log)])
    assert log == ["closed"]


def test_without_a_warm_up_failures_are_in_the_runs():
    (run,) = measured([Waiter(error="broken")], repeats=1, warmup=0)
    assert run.figures.errors == 4


def test_requests_that_are_too_long_are_refused_before_any_is_sent():
    target = Waiter()
    target.longest = 4
    with pytest.raises(UsageError, match=r"5 tokens.*at most 4.*E-BENCH-LONG"):
        measured([target])
    assert target.sent == []


def test_loads_of_a_sweep_come_in_order():
    found = points.serve(workload(), 8, points.loads([4.0, 0.5], [], 0))
    assert [(point.label, point.x, point.count) for point in found] == [("0.5 req/s", 0.5, 8), ("4 req/s", 4.0, 8)]
    found = points.serve(workload(), 8, points.loads([10.0, 10.000001, 1e7, 0.1 + 0.2], [], 0))
    assert [point.label for point in found] == [
        "0.30000000000000004 req/s", "10 req/s", "10.000001 req/s", "10000000 req/s",
    ]  # fmt: skip
    found = points.serve(workload(), 8, points.loads([], [16, 1], 0))
    assert [(point.label, point.count) for point in found] == [("1 user", 8), ("16 users", 16)]


@pytest.mark.parametrize(
    ("rates", "users"), [([], []), ([1.0], [1]), ([0.0], []), ([], [-1]), ([float("nan")], []), ([2.0, 2.0], [])]
)
def test_loads_that_make_no_sense(rates, users):
    with pytest.raises(UsageError, match="E-BENCH-LOAD"):
        points.loads(rates, users, 0)


def test_the_shorter_list_of_lengths_goes_on():
    texts = [(one.text, other.text) for one, other in points.pairs(["8", "16"], ["4"])]
    assert texts == [("8", "4"), ("16", "4")]
    with pytest.raises(UsageError, match="given twice"):
        points.pairs(["8", "8"], ["4"])
