"""Sampling parameters: every bad value is refused with its field, and defaults come from the model."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.beam_params import BeamSearchParams
from bestiary.core.errors import BestiaryError, ConfigError, RequestError
from bestiary.core.guided import Guided
from bestiary.core.resolve_params import resolve
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
    "n": [0, -1, 17, 10**9, 1.0, "1", True, None],
    "best_of": [0, -1, 17, 10**9, 2.0, "2", True],
    "bad_words": [5, "word", b"x", [5], [""], ["x" * 257], ["x"] * 257, {"a": 1}, ["unknown"], ["empty"], [" "]],
    "allowed_token_ids": [[], 5, "5", [-1], [100], [2**63], [1.0], [True], ["a"]],
    "no_repeat_ngram_size": [-1, 2**31, 1.0, "1", None, True],
    "logits_processors": [5, "name", [5], [None], [""], print, [print] * 17],
    "guided": [5, "json", {"regex": "a"}],
    "include_stop_str_in_output": [1, None],
    "truncate_prompt_tokens": [0, -1, 2**31, 1.0, "1", True],
    "reuse_prefix": [1, None],
    "cache_salt": ["", "x" * 257, "é" * 129, 10**6 * "x", b"salt", 5, "\ud800"],
    "cache_priority": [-1, 101, 1.0, None, True],
    "cache_ttl": [0, -1, 1e10, NAN, INF, "1", True],
    "priority": [-(2**31) - 1, 2**31, 1.0, "0", None, True],
}  # fmt: skip
WORDS = {"foo": [5], " foo": [6], "two words": [7, 8], " two words": [9, 8], "same": [4], " same": [4]}
WORDS |= {"unknown": [1], " unknown": [100], "empty": [], " empty": [2]}


def encode(text):
    return WORDS.get(text, [3])


@pytest.mark.parametrize(
    ("field", "value"),
    [(f, v) for f, values in BAD.items() for v in values],
    ids=lambda v: f"{v!r:.30}".replace("\x00", ""),
)
def test_a_bad_value_is_refused_with_its_field(field, value):
    with pytest.raises(RequestError) as raised:
        resolve(SamplingParams(**{field: value}), vocab_size=100, encode=encode)
    error = raised.value
    assert error.subject == field and error.code == f"E-REQ-{field.upper().replace('_', '-')}"
    assert error.expected and error.found and len(str(error)) < 500 and error.exit_status == 2


def test_every_field_has_a_refusal():
    assert {field.name for field in dataclasses.fields(SamplingParams)} == set(BAD)


def test_stop_strings_need_text():
    with pytest.raises(RequestError, match="detokenize"):
        SamplingParams(stop="x", detokenize=False)


def test_the_bounds_themselves_are_allowed():
    params = resolve(SamplingParams(
        temperature=100, top_k=2**31 - 1, top_p=1e-9, min_p=1, repetition_penalty=10, presence_penalty=-2, seed=2**64 - 1,
        frequency_penalty=2, max_tokens=1, min_tokens=1, stop=["x" * 256] * 16, stop_token_ids=[0, 99], logprobs=20,
        logit_bias={99: -100}, n=16, best_of=16, bad_words=["x" * 256] * 256, allowed_token_ids=[0, 50],
        no_repeat_ngram_size=2**31 - 1, logits_processors=[print] * 15 + ["named"], truncate_prompt_tokens=1,
        cache_salt="x" * 256, cache_priority=100, cache_ttl=1e9, priority=-(2**31),
    ), vocab_size=100, encode=encode)  # fmt: skip
    assert params.top_k == -1 and params.stop == ("x" * 256,) and params.temperature == 100.0


def test_refusals_show_no_address():
    for field, value in (("logits_processors", [object()]), ("temperature", print), ("seed", [object()])):
        with pytest.raises(RequestError) as raised:
            SamplingParams(**{field: value})
        assert "0x" not in str(raised.value), raised.value
    with pytest.raises(RequestError, match="neither a function nor a name; found an object"):
        SamplingParams(logits_processors=[object()])

    class Mute:
        def __repr__(self):
            raise OSError("gone")

    with pytest.raises(RequestError, match="found a Mute"):
        SamplingParams(seed=Mute())


def test_what_nobody_says():
    params = resolve(SamplingParams(), vocab_size=10, eos_token_ids=[3], seed=5)
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
    params = resolve(SamplingParams(top_p=1.0, max_tokens=None), model, vocab_size=10)
    assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == (0.6, 5, 1.0, 1.2)
    assert params.max_tokens is None
    assert resolve(SamplingParams(), model, vocab_size=10).max_tokens == 7


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
    assert resolve(SamplingParams(), model, vocab_size=10).temperature == temperature
    assert resolve(SamplingParams(temperature=0.5), model, vocab_size=10).temperature == 0.5


@pytest.mark.parametrize("field", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens"])
def test_a_bad_default_is_the_models_fault(field):
    with pytest.raises(ConfigError, match=rf"generation_config.json, {field}"):
        resolve(SamplingParams(), {field: "many"}, vocab_size=10)


def test_one_answer_unless_asked():
    params = resolve(SamplingParams(), vocab_size=10)
    assert (params.n, params.best_of, params.ranked, params.restricted) == (1, 1, False, False)
    assert resolve(SamplingParams(n=3), vocab_size=10).best_of == 3
    assert resolve(SamplingParams(n=2, best_of=3), vocab_size=10).ranked


def test_answers_have_seeds_of_their_own():
    params = resolve(SamplingParams(n=3, best_of=4, seed=2**64 - 2), vocab_size=10)
    answers = [params.answer(index) for index in range(4)]
    assert [answer.seed for answer in answers] == [2**64 - 2, 2**64 - 1, 0, 1]
    assert answers[0] == resolve(SamplingParams(seed=2**64 - 2), vocab_size=10)


@pytest.mark.parametrize(("params", "field"), [({"n": 2}, "n"), ({"best_of": 2}, "best_of")])
def test_several_greedy_answers_are_refused(params, field):
    with pytest.raises(RequestError, match="temperature") as raised:
        resolve(SamplingParams(**params), {"do_sample": False}, vocab_size=10)
    assert raised.value.subject == field
    assert resolve(SamplingParams(temperature=1.0, **params), {"do_sample": False}, vocab_size=10).best_of == 2


def test_best_of_is_at_least_n():
    with pytest.raises(RequestError, match="best_of"):
        SamplingParams(n=3, best_of=2)


def test_bad_words_are_tokenized_with_and_without_a_space():
    params = resolve(SamplingParams(bad_words=["foo", "two words", "same", " foo"]), vocab_size=100, encode=encode)
    assert params.bad_token_ids == ((5,), (6,), (7, 8), (9, 8), (4,))


def test_bad_words_need_a_tokenizer():
    with pytest.raises(RequestError, match="tokenizer") as raised:
        resolve(SamplingParams(bad_words=["foo"]), vocab_size=100)
    assert raised.value.subject == "bad_words"


def test_allowed_tokens_are_a_set():
    assert resolve(SamplingParams(allowed_token_ids=[7, 3, 7]), vocab_size=8).allowed_token_ids == (3, 7)


def test_an_answer_may_be_its_end_alone():
    assert resolve(SamplingParams(allowed_token_ids=[5], stop_token_ids=[5]), vocab_size=8).allowed_token_ids == (5,)


@pytest.mark.parametrize("other", [{"bad_words": ["foo"]}, {"min_tokens": 1, "stop_token_ids": [5, 6]}])
def test_a_token_must_be_left(other):
    resolve(SamplingParams(allowed_token_ids=[3, 5, 6], **other), vocab_size=100, encode=encode)
    with pytest.raises(RequestError, match="no token is left"):
        resolve(SamplingParams(allowed_token_ids=[5, 6], **other), vocab_size=100, encode=encode)


@pytest.mark.parametrize(
    "option",
    [
        {"bad_words": ["foo"]},
        {"allowed_token_ids": [1]},
        {"no_repeat_ngram_size": 2},
        {"logits_processors": ["named"]},
        {"guided": Guided(regex="a+")},
    ],
    ids=lambda option: next(iter(option)),
)
def test_what_restricts_tokens_is_known(option):
    assert resolve(SamplingParams(**option), vocab_size=100, encode=encode).restricted


GUIDED_BAD = {
    "nothing": {},
    "two": {"regex": "a", "grammar": "b"},
    "spec alone": {"spec": "x"},
    "empty": {"regex": ""},
    "not text": {"regex": 5},
    "long": {"grammar": "(" * (2**18 + 1)},
    "surrogate": {"regex": "\ud800"},
    "no provider name": {"regex": "a", "provider": " "},
    "provider": {"regex": "a", "provider": 5},
    "broken schema": {"json_schema": '{"type": '},
    "deep schema": {"json_schema": "[" * 100_000},
    "list schema": {"json_schema": "[]"},
    "key twice": {"json_schema": '{"a": 1, "a": 2}'},
    "number schema": {"json_schema": 5},
    "NaN schema": {"json_schema": {"minimum": NAN}},
    "object schema": {"json_schema": {"type": object()}},
    "no choice": {"choice": []},
    "text as choice": {"choice": "ab"},
    "number as choice": {"choice": ["a", 5]},
    "empty choice": {"choice": ["a", ""]},
    "many choices": {"choice": ["a"] * 1025},
}


@pytest.mark.parametrize("value", GUIDED_BAD.values(), ids=GUIDED_BAD)
def test_a_bad_grammar_is_refused(value):
    with pytest.raises(RequestError) as raised:
        Guided(**value)
    assert raised.value.code == "E-REQ-GUIDED" and raised.value.subject == "guided" and len(str(raised.value)) < 500


def test_a_grammar_is_kept_as_text():
    schema = {"type": "object", "title": "é"}
    assert Guided(json_schema=schema).text == '{"type": "object", "title": "é"}'
    assert Guided(json_schema="true").form == "json_schema"
    assert Guided(choice=["a", "b", "a"]) == Guided(choice=("a", "b"))
    assert hash(Guided(spec="x", provider="mine")) == hash(Guided(spec="x", provider="mine"))


def test_a_schema_that_holds_itself_is_refused():
    schema = {}
    schema["allOf"] = [schema]
    with pytest.raises(RequestError, match="json_schema"):
        Guided(json_schema=schema)


BEAM_BAD = {
    "beam_width": [0, -1, 65, 1.0, "4", True, None],
    "max_tokens": [0, 2**31, 1.5, "1", True],
    "length_penalty": [-11, 10.5, NAN, INF, "1", None],
    "early_stopping": ["always", 1, None],
    "ignore_eos": [1, None],
    "stop_token_ids": [5, [-1], [1.0], [1] * 1025],
    "cache_salt": ["", "x" * 257, 5],
    "priority": [1.5, "1", 2**31, None],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BEAM_BAD.items() for v in values])
def test_a_bad_value_of_a_beam_search_is_refused_with_its_field(field, value):
    with pytest.raises(RequestError) as raised:
        BeamSearchParams(**{"beam_width": 4, field: value})
    assert raised.value.subject == field and raised.value.code == f"E-REQ-{field.upper().replace('_', '-')}"


def test_every_field_of_a_beam_search_has_a_refusal():
    assert {field.name for field in dataclasses.fields(BeamSearchParams)} == set(BEAM_BAD)
    assert BeamSearchParams(beam_width=64, early_stopping="never", max_tokens=None).stop_token_ids == ()


def test_tiny_temperatures_are_greedy():
    assert resolve(SamplingParams(temperature=1e-300), vocab_size=10).greedy
    assert not resolve(SamplingParams(temperature=1e-4), vocab_size=10).greedy


def test_ignore_eos_keeps_stop_tokens():
    params = resolve(SamplingParams(ignore_eos=True, stop_token_ids=[4]), vocab_size=10, eos_token_ids=[3])
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
        resolve(SamplingParams(**{field: value}), vocab_size=100, encode=encode)
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
