"""What is asked for: lengths, synthetic prompts, conversations of a file."""

import json
from random import Random

import pytest

from bestiary import DataError, MissingInputError, UsageError
from bestiary.core.bench.lengths import Lengths
from bestiary.core.bench.sharegpt import ShareGPT
from bestiary.core.bench.synthetic import Synthetic
from bestiary.core.bench.vocabulary import Ids, Words


def lengths(text):
    return Lengths.parse(text, "--input")


def drawn(text, count=2000):
    random = Random(1)
    return [lengths(text).draw(random) for _ in range(count)]


def test_lengths_are_drawn_as_they_are_written():
    assert set(drawn("7")) == {7}
    assert set(drawn("3-5")) == {3, 4, 5}
    normal = drawn("normal:100,10")
    assert 98 < sum(normal) / len(normal) < 102 and 60 < min(normal) < 80
    heavy = sorted(drawn("lognormal:100,0.5,300"))
    assert 95 < heavy[len(heavy) // 2] < 105 and heavy[-1] == 300
    assert min(drawn("normal:2,50")) == 1


@pytest.mark.parametrize(
    "text", ["", "0", "x", "5-3", "1.5", "-4", "normal:1", "normal:0,1", "lognormal:8,1,0", "1e3", "7\n-"]
)
def test_what_is_no_length_is_one_sentence(text):
    with pytest.raises(UsageError, match="E-BENCH-LENGTHS") as caught:
        lengths(text)
    assert "--input" in str(caught.value) and "32-256" in str(caught.value)


def synthetic(seed=0, **options):
    return Synthetic(Ids(100), lengths("4-9"), lengths("2-5"), seed=seed, **options)


def test_the_same_seed_gives_the_same_requests_and_another_gives_others():
    assert synthetic().asks(20, 3) == synthetic().asks(20, 3)
    assert synthetic().asks(20, 3) != synthetic(seed=1).asks(20, 3)


def test_rounds_have_the_same_lengths_and_other_prompts():
    one, other = synthetic().asks(20, 0), synthetic().asks(20, 1)
    assert [(a.input_tokens, a.output_tokens) for a in one] == [(a.input_tokens, a.output_tokens) for a in other]
    assert not {a.prompt for a in one} & {a.prompt for a in other}
    assert all(len(a.prompt) == a.input_tokens and a.ignore_eos for a in one)


def test_groups_share_the_beginning_of_a_prompt():
    asks = synthetic(shared_prefix=50, groups=2).asks(30, 0)
    assert len({a.prompt[:50] for a in asks}) == 2
    assert {len(a.prompt) - 50 for a in asks} == set(range(4, 10))
    assert asks[0].prompt[:50] not in {a.prompt[:50] for a in synthetic(shared_prefix=50).asks(3, 1)}


def test_words_are_as_many_as_asked_for_with_and_without_a_prefix():
    words = Words(None)
    beginning = words.begin(Random(0), 12)
    assert len(beginning.split()) == 12
    assert len(words.extend(beginning, Random(0), 5).split()) == 17


def conversation(*turns):
    return {"conversations": [{"from": who, "value": text} for who, text in turns]}


def write(path, value):
    path.write_text(json.dumps(value))
    return path


LONG = "a question that is long enough to count"


def test_conversations_give_their_first_question_and_the_length_of_its_answer(tmp_path):
    entries = [
        conversation(("system", "be brief"), ("human", LONG), ("gpt", "x" * 80), ("human", "again"), ("gpt", "no")),
        {"messages": [{"role": "user", "content": LONG + "!"}, {"role": "assistant", "content": "y" * 40}]},
        conversation(("gpt", "I begin"), ("human", LONG)),  # no question first
        conversation(("human", "hi"), ("gpt", "z" * 80)),  # too short
        conversation(("human", LONG), ("gpt", "z" * 4000)),  # too long
    ]
    data = ShareGPT(write(tmp_path / "s.json", entries), None, seed=0, longest=200)
    assert {(a.prompt, a.output_tokens) for a in data.asks(2, 0)} == {(LONG, 20), (LONG + "!", 10)}
    assert data.left_out == 3
    assert data.describe() == (
        "2 conversations of s.json; 3 left out: 1 without a question and its answer at the beginning, 1 with a question or an "
        "answer below 4 tokens, 1 above the 200 tokens that the target takes"
    )
    assert not data.asks(1, 0)[0].ignore_eos


def test_rounds_go_on_in_the_file_and_begin_again_at_its_end(tmp_path):
    entries = [conversation(("human", f"{LONG} {n}"), ("gpt", "x" * 80)) for n in range(10)]
    data = ShareGPT(write(tmp_path / "s.json", entries), None, seed=0, output=lengths("9"))
    rounds = [[a.prompt for a in data.asks(5, n)] for n in range(3)]
    assert len({*rounds[0], *rounds[1]}) == 10 and rounds[2] == rounds[0]
    assert {a.output_tokens for a in data.asks(5, 0)} == {9}
    assert sorted(p for r in rounds[:2] for p in r) != [p for r in rounds[:2] for p in r]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{}",
        '[{"conversations": 3}]',
        '[{"conversations": [{"from": 1, "value": "x"}]}]',
        "[]",
        '"x"',
        "[" * 5000,
    ],
)
def test_a_file_of_another_form_is_one_sentence(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DataError, match=r"bad\.json.*E-BENCH-DATASET"):
        ShareGPT(tmp_path / "bad.json", None, seed=0)


def test_a_missing_or_binary_file_is_one_sentence(tmp_path):
    with pytest.raises(MissingInputError, match=r"gone\.json: no such file"):
        ShareGPT(tmp_path / "gone.json", None, seed=0)
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        ShareGPT(tmp_path / "b.json", None, seed=0)
