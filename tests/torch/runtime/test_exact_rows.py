"""Rows of logits, bit for bit: alone, in batches and on two threads."""

import pytest
import torch
from row_oracles import logprobs_listed

from bestiary.core.runtime import logits as rows_of
from bestiary.core.runtime.exact_rows import ONE, largest, log_probabilities, units

V = 32003


def rows(count, ties=False):
    made = torch.randn(count, V, generator=torch.Generator().manual_seed(5)) * 4
    return made.round() if ties else made


def limited(x, k, p):
    """As the sampler calls it."""
    ks, ps = torch.full((len(x),), k), torch.full((len(x),), p, dtype=torch.float64)
    return rows_of.keep_top(x, ks, ps, rows_of.Limits.of([(k, p)] * len(x)))


FUNCTIONS = {
    "log_probabilities": log_probabilities,
    "largest": lambda x: torch.cat(largest(x, 20), 1),
    "keep_top": lambda x: limited(x, 50, 0.9),
    "top_p of many": lambda x: limited(x / 9, -1, 0.95),
    "likeliest": lambda x: rows_of.likeliest(x).unsqueeze(1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_a_row_alone_is_the_row_in_any_batch(name, ties):
    x, run = rows(24, ties), FUNCTIONS[name]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([run(x[row : row + 1]) for row in range(24)])
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(run(x), alone)
            assert torch.equal(run(x[5:8]), alone[5:8])
            assert torch.equal(run(x[19:20].clone()), alone[19:20])
    finally:
        torch.set_num_threads(before)


def test_a_draw_depends_on_its_row_and_number_alone():
    x, numbers = rows(24), torch.linspace(1e-9, 1 - 1e-9, 24, dtype=torch.float64).unsqueeze(1)
    none = torch.zeros_like(numbers)
    alone = [int(rows_of.draw(x[i : i + 1], none[:1], numbers[i : i + 1])) for i in range(24)]
    assert rows_of.draw(x, none, numbers).tolist() == alone
    assert min(alone) >= 0 and len(set(alone)) > 12


@pytest.mark.parametrize("number", [5e-324, 1e-300, 1 - 2**-53])
def test_the_ends_of_the_distribution_are_tokens_with_weight(number):
    x = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf, 0.5, -torch.inf]])
    token = rows_of.draw(x, torch.zeros(1, 1).double(), torch.tensor([[number]], dtype=torch.float64))
    assert int(token) == (1 if number < 0.5 else 4)


def test_sums_of_whole_weights_do_not_know_their_order():
    weights = torch.rand(1 << 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sums = {int(units(weights[torch.randperm(len(weights))]).sum()) for _ in range(4)}
    assert len(sums) == 1 and abs(sums.pop() / ONE - float(weights.sum())) < 1e-6
    assert int(units(torch.ones(1 << 19, dtype=torch.float64)).cumsum(0)[-1]) == ONE << 19


def test_log_probabilities_are_torchs():
    x = rows(5)
    x[3, :100] = -torch.inf
    assert (log_probabilities(x) - x.double().log_softmax(-1)).nan_to_num().abs().max() < 1e-5
    assert log_probabilities(x)[3, 7] == -torch.inf
    assert log_probabilities(torch.tensor([[1.0, torch.nan], [1.0, torch.inf]])).isnan().all()


def test_equal_tokens_are_listed_by_id_however_many_are_asked():
    x = torch.zeros(2, 500)
    x[1, [7, 400]] = 1.0
    assert largest(x, 4)[1].tolist() == [[0, 1, 2, 3], [7, 400, 0, 1]]
    mixed = rows(3, ties=True)
    assert torch.equal(largest(mixed, 5)[1], largest(mixed, 90)[1][:, :5])
    assert torch.equal(largest(mixed, 90)[0], mixed.topk(90).values)
    few, many = logprobs_listed(mixed, [1, 2, 3], [3, 3, 3]), logprobs_listed(mixed, [1, 2, 3], [3, 20, 3])
    assert few[0] == many[0] and few[2] == many[2]
