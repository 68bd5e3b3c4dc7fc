"""What an engine tells lm-eval, against lm-eval's own class for transformers on the same weights in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bestiary import LLM, EngineError, RequestError, SamplingParams
from bestiary.core.progress import Silent

PAIRS = [
    ("hello world", " hello"),
    ("hello world ", "STOP"),  # the space goes to the continuation
    ("hello world", " h"),
    ("", "hello"),
    ("", "<bos>he"),
    ("<bos>user: hello", " world"),  # begins with the begin token: none is added
    ("The cat   ", "sat\non the mat"),
    ("x" * 500, "yz"),  # longer than the context
    ("hello " * 60, "w"),
    ("Ünï", "cödé 漢字"),
]


@pytest.fixture(scope="module")
def both(models: Path) -> Iterator[tuple[Any, Any]]:
    from lm_eval.models.huggingface import HFLM

    from bestiary_eval.lm import EngineLM

    with LLM(models / "one", kv_cache_memory=2**24) as llm:
        ours = EngineLM(llm, "one", Silent())
        theirs = HFLM(pretrained=str(models / "one.hf"), dtype="float32", device="cpu", batch_size=4, max_length=ours.max_length)  # fmt: skip
        yield ours, theirs


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def greedy_of(theirs: Any, context: str, tokens: int) -> str:
    """What transformers would say, as text."""
    (text,) = theirs.generate_until([asked(context, {"max_gen_toks": tokens, "until": []})], disable_tqdm=True)
    return str(text)


def test_loglikelihoods(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    requests = [asked(*pair) for pair in PAIRS]
    found, expected = ours.loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True)
    for pair, (mine, my_greedy), (other, their_greedy) in zip(PAIRS, found, expected, strict=True):
        assert mine == pytest.approx(other, abs=1e-3), pair
        assert my_greedy is their_greedy, pair
    assert ours.truncated >= 1


def test_what_the_model_would_say_is_greedy(both: tuple[Any, Any]) -> None:
    """As tokens: what a random model says is no text that would give the same tokens again."""
    ours, theirs = both
    context = ours.tok_encode("hello world")
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    said = ours._llm.generate({"prompt_token_ids": context}, params, use_tqdm=False)[0].outputs[0].token_ids
    likely, last = (("a", "b"), context, said), (("a", "c"), [*context, *said[:2]], said[2:])
    wrong = (("a", "d"), context, [*said[:2], (said[2] + 1) % 200])
    found = ours._loglikelihood_tokens([likely, last, wrong])
    # One by one: together, lm-eval would read the last token's score where the first one's is.
    expected = [theirs._loglikelihood_tokens([one], disable_tqdm=True)[0] for one in (likely, last, wrong)]
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected] == [True, True, False]
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-3)


def test_one_token_and_several_agree(both: tuple[Any, Any]) -> None:
    """Single tokens are generated, several are read as a prompt."""
    ours, _ = both
    tokens = ours.tok_encode("hello world, said the cat")
    ((whole, _),) = ours._loglikelihood_tokens([(None, tokens[:4], tokens[4:])])
    single = ours._loglikelihood_tokens([(None, tokens[:i], [tokens[i]]) for i in range(4, len(tokens))])
    assert sum(one for one, _ in single) == pytest.approx(whole, abs=1e-4)


def test_rolling_loglikelihoods(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    texts = ["", "h", "hello world", "The quick brown fox. " * 30]  # the last is longer than the context
    found = ours.loglikelihood_rolling([asked(text) for text in texts])
    expected = theirs.loglikelihood_rolling([asked(text) for text in texts[1:]], disable_tqdm=True)
    assert found[0] in (0.0, pytest.approx(theirs.loglikelihood_rolling([asked("")], disable_tqdm=True)[0], abs=1e-3))
    assert found[1:] == pytest.approx(expected, abs=5e-3)


def test_generated_answers(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    plain = {"until": [], "max_gen_toks": 24}
    whole = greedy_of(theirs, "hello world", 24)
    cut = whole[5:7]
    requests = [
        asked("hello world", plain),
        asked("hello world", {**plain, "until": [cut]}),
        asked("hello world", {**plain, "until": cut, "do_sample": False, "temperature": 0.0}),
        asked("The cat", {"max_new_tokens": 5, "until": ["\n\n"]}),
        asked("".join(chr(97 + n * n % 26) for n in range(400)), {**plain, "max_gen_toks": 8}),
    ]
    found = ours.generate_until(requests)
    assert found == theirs.generate_until(requests, disable_tqdm=True)
    assert found[1] == whole[: whole.index(cut)]


def test_sampled_answers_differ_and_repeat(models: Path) -> None:
    from bestiary_eval.lm import EngineLM

    answers = []
    for _ in range(2):
        with LLM(models / "one", kv_cache_memory=2**24, seed=3) as llm:
            request = asked("hello", {"do_sample": True, "temperature": 1.5, "max_gen_toks": 8})
            answers.append(EngineLM(llm, "one", Silent()).generate_until([request, request]))
    assert answers[0] == answers[1] and answers[0][0] != answers[0][1]


def test_answers_longer_than_the_context_are_shortened(both: tuple[Any, Any]) -> None:
    ours, _ = both
    (answer,) = ours.generate_until([asked("hello " * 200, {"max_gen_toks": 100_000})])
    assert isinstance(answer, str)


def test_conversations(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hello?  "}]
    assert ours.apply_chat_template(talk) == theirs.apply_chat_template(talk)
    begun = [*talk, {"role": "assistant", "content": "It is"}]
    assert ours.apply_chat_template(begun, False) == theirs.apply_chat_template(begun, False)
    assert ours.chat_template(True) == theirs.chat_template(True)
    assert ours.chat_template(False) is None
    assert "/" not in ours.tokenizer_name


def test_refusals(both: tuple[Any, Any], models: Path) -> None:
    from bestiary_eval.lm import EngineLM

    ours, _ = both
    with pytest.raises(RequestError, match=r"continuation is longer than the context.*E-EVAL-LENGTH"):
        ours.loglikelihood([asked("a", "b" * 500)])
    with pytest.raises(RequestError, match=r"generation_kwargs, num_beams.*E-EVAL-GENERATION"):
        ours.generate_until([asked("a", {"num_beams": 4})])
    with (
        LLM(models / "one", kv_cache_memory=2**24, tokenizer=None) as llm,
        pytest.raises(RequestError, match="tokenizer"),
    ):
        EngineLM(llm, "one", Silent())


def test_a_request_that_fails_is_one_sentence(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = both
    kept = ours._llm.generate

    def failing(*arguments: Any, **options: Any) -> Any:
        outputs = kept(*arguments, **options)
        outputs[-1].outputs[0].finish_reason, outputs[-1].outputs[0].stop_reason = "error", "NaN in the logits"
        return outputs

    monkeypatch.setattr(ours._llm, "generate", failing)
    with pytest.raises(EngineError, match=r"loglikelihood request of \d+ tokens: NaN in the logits.*E-EVAL-REQUEST"):
        ours.loglikelihood([asked("a", " b")])
