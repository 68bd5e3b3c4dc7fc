"""Sampling parameters: every bad value is refused with its field, and defaults come from the model."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.errors import BestiaryError, ConfigError, RequestError
from bestiary.core.runtime.random_stream import uniform
from bestiary.core.sampling_params import SamplingParams

NAN, INF = float("nan"), float("inf")
BAD = {
    "temperature": [-0.1, 100.1, 1e300, NAN, INF, "0", True, [1], 10**400],
    "top_k": [-2, 2**31, 2**40, 1.0, "5", True, NAN],
    "top_p": [0, -0.1, 1.0001, NAN, "1", False],
    "min_p": [-0.1, 1.1, NAN, "0", True],
    "repetition_penalty": [0, -1, 10.5, 1e308, NAN, "1"],
    "presence_penalty": [-2.1, 2.1, 1e308, NAN, "0", None, True],
    "frequency_penalty": [-2.1, 2.1, 1e308, NAN, "0", None],
    "seed": [-1, 2**64, 10**80, 1.0, "1", True],
    "max_tokens": [0, -1, 2**31, 1.5, "16", True],
    "min_tokens": [-1, 2**31, 1.5, "1", None, 17],
    "stop": [5, b"x", [5], [""], "", "x" * 257, ["x"] * 17, [None], {"a": 1}, "é" * 129],
    "stop_token_ids": [5, "5", [-1], [2**63], [1.0], [True], ["a"], [100], [1] * 1025],
    "ignore_eos": [1, "yes", None],
    "logprobs": [-1, 21, 10**9, 1.0, "1", True],
    "prompt_logprobs": [-1, 21, 10**9, 1.0, "1", True],
    "logit_bias": [5, [1], {-1: 0.0}, {"abc": 0.0}, {2**63: 0.0}, {100: 0.0}, {1: NAN}, {1: 1e9}, {1: -1e9}, {1: True},
                   {1: "1"}, {1.0: 1.0}, dict.fromkeys(range(1025), 1.0)],
    "skip_special_tokens": [1, None],
    "detokenize": [0, "no"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [(f, v) for f, values in BAD.items() for v in values],
    ids=lambda v: f"{v!r:.30}".replace("\x00", ""),
)
def test_a_bad_value_is_refused_with_its_field(field, value):
    with pytest.raises(RequestError) as raised:
        SamplingParams(**{field: value}).resolve(vocab_size=100)
    error = raised.value
    assert error.subject == field and error.code == f"E-REQ-{field.upper().replace('_', '-')}"
    assert error.expected and error.found and len(str(error)) < 500 and error.exit_status == 2


def test_every_field_has_a_refusal():
    assert {field.name for field in dataclasses.fields(SamplingParams)} == set(BAD)


def test_stop_strings_need_text():
    with pytest.raises(RequestError, match="detokenize"):
        SamplingParams(stop="x", detokenize=False)


def test_the_bounds_themselves_are_allowed():
    params = SamplingParams(
        temperature=100, top_k=2**31 - 1, top_p=1e-9, min_p=1, repetition_penalty=10, presence_penalty=-2, seed=2**64 - 1,
        frequency_penalty=2, max_tokens=1, min_tokens=1, stop=["x" * 256] * 16, stop_token_ids=[0, 99], logprobs=20,
        logit_bias={99: -100},
    ).resolve(vocab_size=100)  # fmt: skip
    assert params.top_k == -1 and params.stop == ("x" * 256,) and params.temperature == 100.0


def test_what_nobody_says():
    params = SamplingParams().resolve(vocab_size=10, eos_token_ids=[3], seed=5)
    assert (params.temperature, params.top_k, params.top_p, params.min_p, params.repetition_penalty) == (
        1.0,
        -1,
        1.0,
        0.0,
        1.0,
    )
    assert (params.max_tokens, params.seed, params.end_token_ids, params.stop_token_ids) == (16, 5, {3}, set())


def test_the_model_fills_what_the_user_left_open():
    model = {
        "temperature": 0.6,
        "top_k": 5,
        "top_p": 0.9,
        "max_new_tokens": 7,
        "repetition_penalty": 1.2,
        "do_sample": True,
    }
    params = SamplingParams(top_p=1.0, max_tokens=None).resolve(model, vocab_size=10)
    assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == (0.6, 5, 1.0, 1.2)
    assert params.max_tokens is None
    assert SamplingParams().resolve(model, vocab_size=10).max_tokens == 7


@pytest.mark.parametrize(
    ("model", "temperature"),
    [
        ({}, 1.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"temperature": 0.7}, 0.7),
        ({"eos_token_id": 2}, 0.0),
    ],
)
def test_a_model_that_does_not_sample_is_greedy_unless_told(model, temperature):
    assert SamplingParams().resolve(model, vocab_size=10).temperature == temperature
    assert SamplingParams(temperature=0.5).resolve(model, vocab_size=10).temperature == 0.5


@pytest.mark.parametrize("field", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens"])
def test_a_bad_default_is_the_models_fault(field):
    with pytest.raises(ConfigError, match=rf"generation_config.json, {field}"):
        SamplingParams().resolve({field: "many"}, vocab_size=10)


def test_tiny_temperatures_are_greedy():
    assert SamplingParams(temperature=1e-300).resolve(vocab_size=10).greedy
    assert not SamplingParams(temperature=1e-4).resolve(vocab_size=10).greedy


def test_ignore_eos_keeps_stop_tokens():
    params = SamplingParams(ignore_eos=True, stop_token_ids=[4]).resolve(vocab_size=10, eos_token_ids=[3])
    assert params.end_token_ids == {4}


def test_params_can_be_compared_copied_and_pickled():
    params = SamplingParams(stop=["a"], logit_bias={1: 2.0})
    assert copy.deepcopy(params) == pickle.loads(pickle.dumps(params)) == params
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 1.0


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()), st.binary()
)


@given(field=st.sampled_from(sorted(BAD)), value=anything)
def test_any_value_is_taken_or_refused_with_a_code(field, value):
    try:
        SamplingParams(**{field: value}).resolve(vocab_size=100)
    except BestiaryError as error:
        assert error.code.startswith("E-REQ-")


def test_random_numbers_depend_on_seed_and_position_alone():
    assert uniform(7, 3) == uniform(7, 3) and 0.0 < uniform(2**64 - 1, 2**31) < 1.0
    numbers = [uniform(seed, position) for seed in range(40) for position in range(250)]
    assert len(set(numbers)) == len(numbers)
    counts = [sum(low / 10 <= n < (low + 1) / 10 for n in numbers) for low in range(10)]
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 27.9  # chi-squared, 9 degrees, p = 0.001
    shifted = [(uniform(seed, 1) - 0.5) * (uniform(seed + 1, 0) - 0.5) for seed in range(4000)]
    assert abs(sum(shifted) / 4000) < 0.005, "neighbouring seeds are correlated"
