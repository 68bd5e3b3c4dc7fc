"""Futures, streams and threads on one engine: who leaves frees what he held, who is slow holds nobody up."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import canary_model
import pytest
import reciter_model
from canary_numbers import VOCAB, alone
from reciter_model import SCRIPT, TEXT

from bestiary import LLM, EngineError, SamplingParams, UsageError
from bestiary.core.async_answer import AsyncAnswer
from bestiary.core.jobs import SamplingJob
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.text.detokenize import Detokenizer

ONE = [CacheGroup(1, 1)]
PROMPTS = [[(13 * i + 5 * kind) % VOCAB for i in range(6 + 4 * kind)] for kind in range(6)]


def greedy(max_tokens, **said):
    return SamplingParams(temperature=0, max_tokens=max_tokens, **said)


@pytest.fixture
def llm(tmp_path):
    directory = canary_model.write_config(tmp_path)
    options = {"block_size": 4, "max_batch_size": 8, "kv_cache_memory": 1 << 16, "max_num_tokens": 64}
    with LLM(directory, weights="random", tokenizer=None, plugins=[canary_model], **options) as made:
        yield made


@pytest.fixture
def reciter(tmp_path):
    directory = reciter_model.write_model(tmp_path)
    with LLM(directory, weights="random", plugins=[reciter_model], kv_cache_memory=1 << 14) as made:
        yield made


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def freed(llm):
    """Wait until no request holds a block; how many steps that took."""
    first = llm.stats().steps
    for _ in range(2000):
        if llm.stats().blocks_used == 0 and llm.stats().running == 0:
            return llm.stats().steps - first
        await asyncio.sleep(0.002)
    raise AssertionError("blocks are still held")


def test_awaiting_gives_the_whole(llm):
    async def main():
        outs = await asyncio.gather(*(llm.generate_async([p], greedy(8)) for p in PROMPTS))
        assert [out.outputs[0].token_ids for out in outs] == [alone(ONE, p, 8) for p in PROMPTS]
        assert all(out.finished and out.outputs[0].finish_reason == "length" for out in outs)

    run(main())


def test_iterating_gives_the_pieces_in_order(llm):
    async def read(prompt):
        pieces = [piece async for piece in llm.generate_async([prompt], greedy(12))]
        assert [t for p in pieces for t in p.token_ids] == alone(ONE, prompt, 12)
        assert [p.finish_reason for p in pieces if p.finish_reason] == ["length"]

    async def main():
        await asyncio.gather(*(read(prompt) for prompt in PROMPTS))

    run(main())


@pytest.mark.parametrize("way", ["await", "iterate"])
@pytest.mark.parametrize("late", [False, True], ids=["while it runs", "when it is done"])
def test_an_answer_may_be_read_in_another_event_loop(llm, way, late):
    async def make():
        return llm.generate_async([PROMPTS[0]], greedy(60))

    async def tokens():
        if way == "await":
            return (await answer).outputs[0].token_ids
        return [token async for piece in answer for token in piece.token_ids]

    answer = run(make())
    while late and not answer._job.finished:
        time.sleep(0.001)
    assert run(tokens()) == alone(ONE, PROMPTS[0], 60)


def test_those_who_await_one_answer_may_be_in_several_event_loops(llm, monkeypatch):
    monkeypatch.setattr(llm._driver, "start", lambda: None)  # nobody drives it before all of them wait
    found, waiting = [], threading.Barrier(3)

    async def main():
        answer = llm.generate_async([PROMPTS[0]], greedy(40))

        async def wait():
            task = asyncio.ensure_future(answer._whole())
            await asyncio.sleep(0)
            waiting.wait(10)
            found.append((await task).outputs[0].token_ids)

        threads = [threading.Thread(target=run, args=(wait(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        waiting.wait(10)
        monkeypatch.undo()
        llm._driver.start()
        found.append((await answer).outputs[0].token_ids)
        for thread in threads:
            thread.join(10)

    run(main())
    assert found == [alone(ONE, PROMPTS[0], 40)] * 3


def test_a_second_reader_is_told_that_there_is_a_first(llm):
    async def main():
        answer = llm.generate_async([PROMPTS[0]], greedy(60))
        seen = []
        async for piece in answer:
            seen += piece.token_ids
            with pytest.raises(UsageError, match="each piece is given once; found another reader has its pieces"):
                aiter(answer)
            if len(seen) > 3:
                break
        async for piece in answer:  # the first one stopped
            seen += piece.token_ids
        assert seen == alone(ONE, PROMPTS[0], 60)
        with pytest.raises(UsageError, match=r"read to the end.*E-REQ-READER"):
            async for _ in answer:
                pass
        assert (await answer).outputs[0].token_ids == seen

    run(main())


def test_two_who_wait_for_the_next_piece_are_not_served_in_turns(llm, monkeypatch):
    monkeypatch.setattr(llm._driver, "start", lambda: None)

    async def main():
        answer = llm.generate_async([PROMPTS[0]], greedy(60))
        first = asyncio.ensure_future(anext(answer))
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="another reader waits for its next piece"):
            await anext(answer)
        answer.abort()
        assert (await first).finish_reason == "abort"

    run(main())


@pytest.mark.parametrize("after", [0, 1, 3])
def test_abort_at_any_moment_frees_its_blocks(llm, after):
    async def main():
        other = llm.generate_async([PROMPTS[1]], greedy(30))
        answer = llm.generate_async([PROMPTS[0]], greedy(400))
        for _ in range(after):
            await anext(answer)
        answer.abort()
        out = await answer
        assert out.outputs[0].finish_reason == "abort" and out.finished
        found = out.outputs[0].token_ids
        assert found == alone(ONE, PROMPTS[0], 400)[: len(found)]
        assert (await other).outputs[0].token_ids == alone(ONE, PROMPTS[1], 30)
        assert await freed(llm) <= 2
        answer.abort()

    run(main())


@pytest.mark.parametrize("way", ["await", "iterate"])
def test_abort_between_two_steps_wakes_who_waits(llm, way, monkeypatch):
    """No step follows that could: nobody drives this engine."""
    monkeypatch.setattr(llm._driver, "start", lambda: None)

    async def main():
        answer = llm.generate_async([PROMPTS[0]], greedy(450))

        async def wait():
            return (await answer).outputs[0] if way == "await" else [piece async for piece in answer][-1]

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        answer.abort()
        assert (await asyncio.wait_for(task, 10)).finish_reason == "abort"

    run(main())


def test_a_dropped_iterator_aborts(llm):
    async def main():
        answer = llm.generate_async([PROMPTS[0]], greedy(450))
        await anext(answer)
        del answer
        gc.collect()
        await freed(llm)
        assert llm.stats().finished == {"abort": 1}

    run(main())


def test_an_answer_dropped_before_it_began_runs_nothing(llm):
    async def main():
        llm.generate_async([PROMPTS[0]], greedy(450))
        gc.collect()
        await freed(llm)

    run(main())
    assert llm.stats().finished.get("length") is None


@pytest.mark.parametrize("way", ["await", "iterate"])
def test_a_cancelled_task_aborts(llm, way):
    async def consume(answer):
        if way == "await":
            await answer
        async for _ in answer:
            pass

    async def main():
        answer = llm.generate_async([PROMPTS[0]], greedy(450))  # held, so that it is not the drop that aborts
        task = asyncio.create_task(consume(answer))
        while not llm.stats().running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await freed(llm)
        assert llm.stats().finished == {"abort": 1}

    run(main())


def test_a_slow_reader_holds_nobody_up_and_misses_nothing(llm):
    async def main():
        slow = llm.generate_async([PROMPTS[0]], greedy(40))
        found = (await anext(slow)).token_ids
        quick = [await llm.generate_async([p], greedy(30)) for p in PROMPTS[1:]]
        assert [out.outputs[0].token_ids for out in quick] == [alone(ONE, p, 30) for p in PROMPTS[1:]]
        rest = [piece async for piece in slow]
        assert found + [t for p in rest for t in p.token_ids] == alone(ONE, PROMPTS[0], 40)
        assert len(rest) < 30, "tokens gather while nobody reads"

    run(main())


def test_a_failing_engine_ends_what_waits(llm):
    async def main():
        answer = llm.generate_async([PROMPTS[0]], greedy(450))
        await anext(answer)
        llm._driver.loop.executor.failure = EngineError("E-RUN-RANK", "rank 1", "is gone")
        out = await answer
        assert (out.outputs[0].finish_reason, "rank 1: is gone" in out.outputs[0].stop_reason) == ("error", True)
        with pytest.raises(EngineError, match="takes no requests any more"):
            llm.generate_async([PROMPTS[0]], greedy(4))

    run(main())


def test_a_loop_that_breaks_leaves_nobody_waiting(llm):
    async def main():
        answer = llm.generate_async([PROMPTS[0]], greedy(450))
        await anext(answer)
        llm._driver.loop.scheduler.decide = lambda: 1 / 0
        out = await answer
        assert (out.outputs[0].finish_reason, "ZeroDivisionError" in out.outputs[0].stop_reason) == ("error", True)

    run(main())


def test_closing_ends_what_waits(llm):
    async def main():
        answer = llm.generate_async([PROMPTS[0]], greedy(450))
        await anext(answer)
        await asyncio.to_thread(llm.close)
        assert (await answer).outputs[0].finish_reason == "abort"

    run(main())


def test_text_pieces_are_whole_characters_and_concatenate(reciter):
    async def main():
        pieces = [str(piece) async for piece in reciter.generate_async("x", SamplingParams())]
        assert "".join(pieces) == TEXT and not any("\ufffd" in piece for piece in pieces)

    run(main())


@pytest.mark.parametrize("stop", ["STOP", "本語 ST", "P w", "hello"])
def test_no_piece_shows_any_of_a_stop_string(reciter, stop):
    async def main():
        pieces = [str(piece) async for piece in reciter.generate_async("x", SamplingParams(stop=stop))]
        assert "".join(pieces) == TEXT.partition(stop)[0]
        kept = SamplingParams(stop=stop, include_stop_str_in_output=True)
        pieces = [str(piece) async for piece in reciter.generate_async("x", kept)]
        assert "".join(pieces) == TEXT.partition(stop)[0] + stop

    run(main())


def test_threads_share_an_engine(llm):
    found: dict[int, list[list[int]]] = {}

    def work(index):
        outs = llm.generate(PROMPTS[index:], greedy(20), use_tqdm=False)
        found[index] = [out.outputs[0].token_ids for out in outs]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {index: [alone(ONE, p, 20) for p in PROMPTS[index:]] for index in range(4)}


def test_two_engines_one_of_them_in_another_thread(llm, tmp_path):
    directory = canary_model.write_config(tmp_path / "other", windows=(None, 6))
    groups, found = [CacheGroup(1, 1), CacheGroup(1, 1, 6)], []
    with LLM(directory, weights="random", tokenizer=None, plugins=[canary_model], kv_cache_memory=1 << 16) as other:
        work = lambda: found.extend(other.generate(PROMPTS, greedy(20), use_tqdm=False))  # noqa: E731
        thread = threading.Thread(target=work)
        thread.start()
        mine = llm.generate(PROMPTS, greedy(20), use_tqdm=False)
        thread.join(60)
    assert [out.outputs[0].token_ids for out in mine] == [alone(ONE, p, 20) for p in PROMPTS]
    assert [out.outputs[0].token_ids for out in found] == [alone(groups, p, 20) for p in PROMPTS]


def test_nothing_is_left_of_threads_after_close(tmp_path):
    """E07."""
    before = threading.active_count()
    directory = canary_model.write_config(tmp_path)
    for _ in range(3):
        with LLM(directory, weights="random", tokenizer=None, plugins=[canary_model], kv_cache_memory=1 << 14) as made:

            async def main(made=made):
                await made.generate_async([[1, 2]], greedy(3))

            run(main())
    for _ in range(200):
        if threading.active_count() <= before:
            break
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize("said", [{}, {"stop": "zzz"}, {"logprobs": 0}], ids=["plain", "stop string", "logprobs"])
def test_the_text_of_an_answer_that_fails_is_that_of_its_tokens(reciter, said):
    def breaks(prompt, output, logits):
        if len(output) == 5:
            raise ValueError("no such word")
        return logits

    params = SamplingParams(logits_processors=[breaks], **said)
    out = reciter.generate("x", params, use_tqdm=False)[0].outputs[0]
    assert (out.finish_reason, out.token_ids, out.text) == ("error", SCRIPT[:5], TEXT[: len(out.text)]) and out.text
    assert "ValueError" in out.stop_reason
    pieces = list(reciter.stream("x", params))
    assert ("".join(piece.text for piece in pieces), pieces[-1].finish_reason) == (out.text, "error")


def test_a_reader_in_the_middle_of_a_step_sees_nothing_that_is_not_certain(reciter, monkeypatch):
    """The token that ends the request is there before it is known that it does."""
    driver, seen = reciter._driver, []
    scheduler, finish = driver.loop.scheduler, driver.loop.scheduler.finish
    monkeypatch.setattr(driver, "start", lambda: None)

    async def main():
        answer = reciter.generate_async("x", SamplingParams(stop_token_ids=[SCRIPT[13]]))

        def look(*args, **said):
            seen.extend(answer._job.pieces())
            return finish(*args, **said)

        monkeypatch.setattr(scheduler, "finish", look)
        driver.run(lambda: answer._job.finished)
        return await answer, [*seen, *[piece async for piece in answer]]

    out, pieces = run(main())
    assert out.outputs[0].token_ids == SCRIPT[:14] and seen
    assert "".join(piece.text for piece in pieces) == out.outputs[0].text == "hello 日本語 STOP"
    assert [token for piece in pieces for token in piece.token_ids] == SCRIPT[:14]
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["stop"]


def test_an_answer_that_ends_while_its_piece_is_made_has_one_last_piece(reciter, monkeypatch):
    driver = reciter._driver
    monkeypatch.setattr(driver, "start", lambda: None)

    async def main():
        answer = reciter.generate_async("x", SamplingParams())
        job = answer._job
        monkeypatch.setattr(job._parts[0].answer, "has_news", lambda: not driver.run(lambda: job.finished))
        return [*job.pieces(), *job.pieces(), *job.pieces()]

    pieces = run(main())
    assert "".join(piece.text for piece in pieces) == TEXT
    assert [piece.finish_reason for piece in pieces] == [None, "stop"]


def test_an_answer_whose_text_fails_is_never_seen_as_one_that_went_well(reciter, monkeypatch):
    seen = []

    def fails(self, *, search):
        raise ValueError("no such word")

    def listener(answer):
        return lambda: seen.append((answer._job.finished, answer._job._parts[0].request.finish_reason))

    monkeypatch.setattr(Detokenizer, "finish", fails)
    monkeypatch.setattr(AsyncAnswer, "_listener", listener)

    async def main():
        answer = reciter.generate_async("x", SamplingParams(max_tokens=3))
        while not answer._job.finished:
            await asyncio.sleep(0.001)
        return (await answer).outputs[0]

    out = run(main())
    assert (out.finish_reason, out.stop_reason) == ("error", "ValueError: no such word")
    assert seen[-1] == (True, "error")


class Undecodable(RuntimeError):
    pass


@pytest.fixture
def undecodable(reciter, monkeypatch):
    """The text of a prompt of one token breaks at the fourth token of its answer."""
    push, begin = Detokenizer.push, Detokenizer.__init__

    def noted(self, tokenizer, prompt, **said):
        self.breaks, self.count = len(prompt) == 1, 0
        begin(self, tokenizer, prompt, **said)

    def breaks(self, tokens, **said):
        self.count += len(tokens)
        if self.breaks and self.count > 3:
            raise Undecodable("no such piece")
        return push(self, tokens, **said)

    monkeypatch.setattr(Detokenizer, "__init__", noted)
    monkeypatch.setattr(Detokenizer, "push", breaks)
    return reciter


CAUSE = "Undecodable: no such piece"


def test_a_text_that_breaks_while_it_is_read_ends_its_request_with_a_piece_that_says_why(undecodable):
    async def main():
        other = undecodable.generate_async([1, 2], greedy(100))
        answer = undecodable.generate_async([1], greedy(100, ignore_eos=True))
        pieces = [piece async for piece in answer]
        assert [(p.finish_reason, p.stop_reason) for p in pieces if p.finish_reason] == [("error", CAUSE)]
        out = (await answer).outputs[0]
        assert (out.finish_reason, out.stop_reason, out.token_ids) == ("error", CAUSE, SCRIPT[: len(out.token_ids)])
        assert "".join(str(piece) for piece in pieces) == out.text == TEXT[: len(out.text)]
        assert (await other).outputs[0].text == TEXT
        await freed(undecodable)

    run(main())
    assert undecodable.stats().finished == {"error": 1, "stop": 1}


def test_a_stream_whose_text_breaks_ends_at_the_next_token_with_a_piece_that_says_why(undecodable):
    pieces = list(undecodable.stream([1], greedy(100, ignore_eos=True)))
    assert [(p.finish_reason, p.stop_reason) for p in pieces if p.finish_reason] == [("error", CAUSE)]
    assert [token for piece in pieces for token in piece.token_ids] == SCRIPT[:5], "it goes on though its text is lost"
    assert undecodable.stats().blocks_used == 0 and undecodable.stats().finished == {"error": 1}


def test_a_reader_who_is_interrupted_while_text_is_made_may_go_on(reciter, monkeypatch):
    push, calls = Detokenizer.push, []

    def interrupted(self, tokens, **said):
        calls.append(tokens)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return push(self, tokens, **said)

    monkeypatch.setattr(Detokenizer, "push", interrupted)
    stream = reciter.stream("x", greedy(100))
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert reciter.stats().finished == {"abort": 1} and reciter.stats().blocks_used == 0


@pytest.mark.parametrize("way", ["async", "stream"])
def test_an_answer_that_ends_after_its_pieces_were_taken_has_its_last_piece_all_the_same(reciter, monkeypatch, way):
    driver = reciter._driver
    monkeypatch.setattr(driver, "start", lambda: None)

    def ends_at_once(self):
        found = pieces(self)
        driver.run(lambda: self.finished)
        return found

    pieces = SamplingJob.pieces
    monkeypatch.setattr(SamplingJob, "pieces", ends_at_once)

    async def main():
        if way == "stream":
            return list(reciter.stream("x", greedy(100)))
        return [piece async for piece in reciter.generate_async("x", greedy(100))]

    found = run(main())
    assert "".join(piece.text for piece in found) == TEXT
    assert [piece.finish_reason for piece in found if piece.finish_reason] == ["stop"]
