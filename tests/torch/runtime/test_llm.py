"""``LLM`` on an engine that recites a text, so that every token is known."""

from __future__ import annotations

import errno
import io
import json
import sys

import pytest
import reciter_model
from reciter_model import SCRIPT, TEXT, TOKENIZER, VOCAB

from bestiary import LLM, ConfigError, EngineError, RequestError, SamplingParams, UsageError
from bestiary.core.runtime.cache_groups import CacheGroup


@pytest.fixture
def directory(tmp_path):
    return reciter_model.write_model(tmp_path)


@pytest.fixture
def make(directory, monkeypatch):
    monkeypatch.setenv("BESTIARY_PLUGINS", "")
    small = {"block_size": 4, "kv_cache_memory": 129 * 4 * 8, "max_num_tokens": 256}

    def made(**options):
        return LLM(directory, weights="random", plugins=[reciter_model], **{**small, **options})

    return made


@pytest.fixture
def llm(make):
    with make() as llm:
        yield llm


def answer(llm, prompt="x", **said):
    return llm.generate(prompt, SamplingParams(**said), use_tqdm=False)[0].outputs[0]


def test_an_answer_ends_at_the_end_token_without_its_text(llm):
    out = llm.generate("x", use_tqdm=False)[0]
    assert out.prompt == "x" and out.prompt_token_ids == llm.encode("x") and out.finished
    assert out.outputs[0].text == TEXT and out.outputs[0].finish_reason == "stop" and out.outputs[0].stop_reason is None
    assert out.outputs[0].token_ids[-1] == TOKENIZER.eos_token_id
    assert out.outputs[0].logprobs is None and out.outputs[0].cumulative_logprob is None


def test_ignore_eos_goes_on_to_the_limit(llm):
    out = answer(llm, ignore_eos=True, max_tokens=60)
    assert (out.finish_reason, len(out.token_ids), out.text) == ("length", 60, TEXT)


def test_none_as_max_tokens_fills_the_context(llm):
    out = answer(llm, ignore_eos=True, max_tokens=None)
    assert out.finish_reason == "length" and len(out.token_ids) == 128 - 2


@pytest.mark.parametrize(
    ("said", "text", "reason", "stop"),
    [
        ({"max_tokens": 1}, "hello", "length", None),
        ({"stop": "STOP"}, "hello 日本語 ", "stop", "STOP"),
        ({"stop": ["wor", "本"]}, "hello 日", "stop", "本"),
        ({"stop": "本", "logprobs": 1}, "hello 日", "stop", "本"),
        ({"stop": "hello", "max_tokens": 1}, "", "stop", "hello"),
        ({"stop": "hello", "min_tokens": 1}, TEXT, "stop", None),
        ({"stop": "worlds"}, TEXT, "stop", None),
        ({"detokenize": False}, "", "stop", None),
        ({"max_tokens": 3}, "hello \ufffd", "length", None),
    ],
)
def test_how_answers_end(llm, said, text, reason, stop):
    out = answer(llm, **said)
    assert (out.text, out.finish_reason, out.stop_reason) == (text, reason, stop)


def test_a_stop_token_is_named_and_has_no_text(llm):
    token = llm.encode("STOP", add_special_tokens=False)[0]
    out = answer(llm, stop_token_ids=[token])
    assert (out.text, out.finish_reason, out.stop_reason, out.token_ids[-1]) == ("hello 日本語 ", "stop", token, token)


def test_min_tokens_holds_the_end_off(llm):
    count = len(SCRIPT)
    out = answer(llm, min_tokens=count + 3, temperature=0)
    assert len(out.token_ids) > count and TOKENIZER.eos_token_id not in out.token_ids[: count + 3]


def test_logprobs_carry_texts_and_add_up(llm):
    out = answer(llm, max_tokens=4, logprobs=2)
    assert len(out.logprobs) == 4 and all(2 <= len(entry) <= 3 for entry in out.logprobs)
    chosen = [entry[token] for entry, token in zip(out.logprobs, out.token_ids, strict=True)]
    assert chosen[0].decoded_token == "hello" and all(entry.rank == 1 for entry in chosen)
    assert out.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in chosen))


def test_prompt_logprobs_cover_the_prompt(llm):
    out = llm.generate("hello", SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)[0]
    assert out.prompt_logprobs[0] is None
    assert [list(entry) for entry in out.prompt_logprobs[1:]] == [[token] for token in out.prompt_token_ids[1:]]


@pytest.mark.parametrize("prompt", ["x", {"prompt": "x"}, {"prompt_token_ids": [4, 5]}, [4, 5], (4, 5)])
def test_prompts_come_in_many_forms(llm, prompt):
    for prompts in (prompt, [prompt, prompt]):
        outs = llm.generate(prompts, SamplingParams(max_tokens=1), use_tqdm=False)
        assert len(outs) == (2 if prompts is not prompt else 1) and {o.outputs[0].text for o in outs} == {"hello"}


def test_a_cut_prompt_keeps_its_text_and_says_which_tokens_were_used(llm):
    whole = llm.generate("hello world", use_tqdm=False)[0].prompt_token_ids
    cut = llm.generate("hello world", SamplingParams(truncate_prompt_tokens=2), use_tqdm=False)[0]
    assert len(whole) > 2 and cut.prompt_token_ids == whole[-2:] and cut.prompt == "hello world"


def test_no_prompts_give_no_answers(llm):
    assert llm.generate([], use_tqdm=False) == []


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ([[]], "E-REQ-PROMPT"),
        ({"prompt_token_ids": []}, "E-REQ-PROMPT"),
        ([[1, VOCAB]], "E-REQ-PROMPT"),
        ([[-1]], "E-REQ-PROMPT"),
        ([[1, True]], "E-REQ-PROMPT"),
        ([[1, 2.0]], "E-REQ-PROMPT"),
        ([1, "a"], "E-REQ-PROMPT"),
        (5, "E-REQ-PROMPT"),
        (None, "E-REQ-PROMPT"),
        (b"x", "E-REQ-PROMPT"),
        ([None], "E-REQ-PROMPT"),
        ({}, "E-REQ-PROMPT"),
        ({"prompt": "x", "prompt_token_ids": [1]}, "E-REQ-PROMPT"),
        ({"prompt": [1]}, "E-REQ-PROMPT"),
        ({"text": "x"}, "E-REQ-PROMPT"),
        ("\ud800", "E-REQ-PROMPT"),
        ([[1] * 128], "E-REQ-LENGTH"),
        ("x" * 200000, "E-REQ-LENGTH"),
    ],
)
def test_a_bad_prompt_is_refused_before_anything_runs(llm, prompt, code):
    good = "hello"
    prompts = [good, *prompt] if isinstance(prompt, list) else [good, prompt]
    with pytest.raises(RequestError) as raised:
        llm.generate(prompts, use_tqdm=False)
    assert raised.value.code == code and len(str(raised.value)) < 500
    assert llm.stats().steps == 0 and llm._driver.loop.idle


def test_the_longest_prompt_gives_one_token(llm):
    assert len(answer(llm, [1] * 127, ignore_eos=True).token_ids) == 1
    with pytest.raises(
        RequestError, match=r"128 tokens, expected at most 127 prompt tokens \(max_seq_len 128 - 1 for output\)"
    ):
        answer(llm, [1] * 128)


def test_what_does_not_fit_the_cache_is_refused_before_anything_runs(make):
    with make() as llm:
        llm._driver.loop.scheduler.tables.groups = (CacheGroup(10, 4),)
        with pytest.raises(RequestError, match="E-REQ-CACHE"):
            llm.generate(["x", [1] * 60], use_tqdm=False)
        assert llm._driver.loop.idle and llm.stats().steps == 0


def test_one_params_for_each_prompt(llm):
    params = [SamplingParams(max_tokens=n) for n in (1, 2, 3)]
    outs = llm.generate(["x", "y", "z"], params, use_tqdm=False)
    assert [len(o.outputs[0].token_ids) for o in outs] == [1, 2, 3]
    for wrong in (params[:2], "greedy", [1, 2, 3], {"temperature": 0}):
        with pytest.raises(RequestError, match="E-REQ-PARAMS"):
            llm.generate(["x", "y", "z"], wrong, use_tqdm=False)


def test_a_stream_concatenates_to_the_answer(llm):
    for said in ({}, {"stop": "STOP"}, {"max_tokens": 3}, {"detokenize": False}):
        pieces = list(llm.stream("x", SamplingParams(**said)))
        whole = answer(llm, **said)
        assert "".join(map(str, pieces)) == whole.text
        assert [token for p in pieces for token in p.token_ids] == whole.token_ids
        assert [p.finish_reason for p in pieces] == [None] * (len(pieces) - 1) + [whole.finish_reason]
    assert len(list(llm.stream("x"))) > 5


def test_leaving_a_stream_ends_its_request(llm):
    stream = llm.stream("x")
    next(stream)
    assert not llm._driver.loop.idle
    stream.close()
    assert llm._driver.loop.idle and llm._driver.loop.scheduler.tables.pools[0].num_used == 0


def test_a_stream_and_a_batch_share_the_engine(llm):
    stream = llm.stream("x")
    first = next(stream)
    assert answer(llm).text == TEXT
    assert str(first) + "".join(map(str, stream)) == TEXT


def test_a_stream_refuses_when_called(llm):
    with pytest.raises(RequestError):
        llm.stream([[VOCAB]])
    with pytest.raises(UsageError, match="takes one prompt"):
        llm.stream(["a", "b"])


def test_chat_renders_the_template_once(llm):
    message = {"role": "user", "content": "hi"}
    one = llm.chat([message], SamplingParams(max_tokens=1), use_tqdm=False)
    assert one[0].prompt_token_ids == llm.encode("<bos>hi:", add_special_tokens=False)
    two = llm.chat([[message], [message, message]], SamplingParams(max_tokens=1), use_tqdm=False)
    assert len(two) == 2 and two[1].prompt_token_ids == llm.encode("<bos>hi<bos>hi:", add_special_tokens=False)
    own = llm.chat([message], use_tqdm=False, chat_template="{{ messages[0].content }}", add_generation_prompt=False)
    assert own[0].prompt_token_ids == llm.encode("hi", add_special_tokens=False)
    assert "".join(map(str, llm.stream([message]))) == TEXT


def test_chat_text_is_what_chat_would_ask(llm):
    message = {"role": "user", "content": "hi"}
    assert llm.chat_text([message]) == "<bos>hi:"
    assert llm.chat_text([message], add_generation_prompt=False) == "<bos>hi"
    given = {"chat_template": "{{ messages[0].content }}{{ sign }}", "chat_template_kwargs": {"sign": "!"}}
    assert llm.chat_text([message], **given) == "hi!"
    assert "{% for" in llm.chat_template
    with pytest.raises(RequestError, match="longer than the context"):
        llm.generate([[1] * llm.max_seq_len])


def test_chat_without_a_template_or_tokenizer_says_so(make, directory):
    (directory / "chat_template.jinja").unlink()
    with make() as llm, pytest.raises(RequestError, match="the model has no chat template"):
        assert llm.chat_template is None
        llm.chat([{"role": "user", "content": "hi"}])
    with make(tokenizer=None) as llm:
        for call in (
            lambda: llm.chat([{"role": "user", "content": "hi"}]),
            lambda: llm.chat_text([{"role": "user", "content": "hi"}]),
            lambda: llm.encode("x"),
            lambda: llm.generate("x"),
        ):
            with pytest.raises(UsageError, match="there is no"):
                call()
        with pytest.raises(RequestError, match="stop strings need a tokenizer"):
            llm.generate([[1]], SamplingParams(stop="x"))
        assert llm.generate([[1]], SamplingParams(max_tokens=2), use_tqdm=False)[0].outputs[0].text == ""


def test_prefixes_are_reused_until_reset(make):
    prompt = list(range(20))
    with make() as llm:
        cached = [llm.generate([prompt], use_tqdm=False)[0].num_cached_tokens for _ in range(2)]
        llm.reset_prefix_cache()
        cached.append(llm.generate([prompt], use_tqdm=False)[0].num_cached_tokens)
    with make(prefix_caching=False) as llm:
        cached += [llm.generate([prompt], use_tqdm=False)[0].num_cached_tokens for _ in range(2)]
    assert cached == [0, 19, 0, 0, 0]


def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(llm, monkeypatch):
    executor, calls = llm._driver.loop.executor, []
    forward = executor.forward

    def failing(step):
        calls.append(step)
        if len(calls) == 3:
            raise RuntimeError("a kernel failed")
        forward(step)

    monkeypatch.setattr(executor, "forward", failing)
    outs = llm.generate(["x", "y"], use_tqdm=False)
    assert [(o.outputs[0].finish_reason, o.outputs[0].stop_reason) for o in outs] == [
        ("error", "RuntimeError: a kernel failed")
    ] * 2
    assert llm._driver.loop.idle and answer(llm).text == TEXT


def test_an_interrupted_call_leaves_nothing_behind(llm, monkeypatch):
    def interrupted(step):
        raise KeyboardInterrupt

    monkeypatch.setattr(llm._driver.loop.executor, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["x", "y"], use_tqdm=False)
    assert llm._driver.loop.idle and llm._driver.loop.scheduler.tables.pools[0].num_used == 0


def test_a_closed_engine_says_so(make):
    llm = make()
    stream = llm.stream("x")
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(EngineError, match="closed"):
        llm.generate("x")
    with pytest.raises(EngineError, match="closed"):
        llm.reset_prefix_cache()
    assert [piece.finish_reason for piece in stream] == ["abort"]


@pytest.mark.parametrize("memory", [2.0, 1e9, 0.0, -1, True, "half", float("nan")])
@pytest.mark.parametrize("limit", [None, "64GiB"])
def test_the_cache_takes_a_fraction_or_an_integer_of_bytes(make, memory, limit):
    with pytest.raises(ConfigError, match="is neither a fraction of the free memory nor"):
        make(kv_cache_memory=memory, memory_limit=limit)


def test_values_of_the_wrong_type_are_named(llm, make):
    with pytest.raises(UsageError, match=r"^text: of the wrong type; found 5, expected a string"):
        llm.encode(5)
    with pytest.raises(UsageError, match=r"^model: of the wrong type; found None, expected a path"):
        LLM(None)
    with pytest.raises(UsageError, match=r"^tokenizer: of the wrong type; found 5"):
        make(tokenizer=5)


def test_an_unknown_quantization_lists_what_is_there(tmp_path):
    with pytest.raises(ConfigError, match=r"quantization.*int3"):
        LLM(tmp_path, weights="random", tokenizer=None, quantization="int3")


def test_random_weights_run_the_same_alone_and_together(tmp_path):
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 131,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "torch_dtype": "float32", "eos_token_id": 3,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    prompts = [[(i * j) % 131 for j in range(1, 4 + 5 * i)] for i in range(1, 7)]
    params = [SamplingParams(temperature=0, max_tokens=4 + i, ignore_eos=True) for i in range(6)]
    with LLM(tmp_path, weights="random", tokenizer=None, kv_cache_memory=1 << 22, max_num_tokens=24) as llm:
        together = llm.generate(prompts, params, use_tqdm=False)
        alone = [llm.generate([p], s, use_tqdm=False)[0] for p, s in zip(prompts, params, strict=True)]
    assert [o.outputs[0].token_ids for o in together] == [o.outputs[0].token_ids for o in alone]
    assert [len(o.outputs[0].token_ids) for o in together] == [4, 5, 6, 7, 8, 9]


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("stream", [FullDisk(), None], ids=["full", "none"])
def test_a_progress_line_that_cannot_be_written_does_not_end_the_batch(llm, monkeypatch, stream):
    monkeypatch.setattr("bestiary.core.batch_progress._EVERY", 0.0)
    monkeypatch.setattr(sys, "stderr", stream)
    outs = llm.generate(["x"] * 3, SamplingParams(max_tokens=4), use_tqdm=True)
    assert [out.outputs[0].finish_reason for out in outs] == ["length"] * 3
    assert llm.stats().finished == {"length": 3}


def test_the_progress_line_says_what_was_done(llm, capsys):
    llm.generate(["x"] * 3, SamplingParams(max_tokens=4), use_tqdm=True)
    line = capsys.readouterr().err.split("\r")[-1]
    assert "3/3" in line and "tok/s, out" in line and "KV" in line
