"""Whatever a request may ask, everything that ranks in other processes are told of it and answer can be sent."""

from __future__ import annotations

import numpy as np
from canary import CanaryExecutor, Engine, Recorder
from canary_numbers import VOCAB
from frames import same
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bestiary.core.errors import RequestError
from bestiary.core.guided import Guided
from bestiary.core.resolve_params import resolve
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.messages import Logprobs, SampledMessage, SlowCall
from bestiary.core.runtime.rank_messages import Numbered, codec
from bestiary.core.runtime.request import Request
from bestiary.core.runtime.restrictions import Guide
from bestiary.core.sampling_params import SamplingParams

CODEC = codec()


def relayed(message):
    """What arrives, which is what was sent."""
    frame = CODEC.encode(Numbered(2**70, message))
    header = int.from_bytes(frame[:4], "little")
    arrived = CODEC.decode(frame[12 : 12 + header], bytearray(frame[12 + header :])).message
    assert same(message, arrived), (message, arrived)
    return arrived


class Relay(CanaryExecutor):
    """A canary at the other end of a wire, which makes up what the canary itself does not answer."""

    def forward(self, step):
        super().forward(relayed(step))

    def sample(self, wanted):
        pending = super().sample(relayed(wanted))
        found = pending.read()
        rows = 0 if wanted.logprobs is None else int((wanted.logprobs >= 0).sum())
        each, best = np.zeros(rows, np.float32), np.full((rows, 20), -np.inf, np.float32)
        found = SampledMessage(
            found.tokens,
            Logprobs(each, each.astype(np.int32), best.clip(0).astype(np.int32), best) if rows else None,
            found.scored,
            {-1: "RuntimeError: \ud800 é"},  # of no row
            (SlowCall(0, "logits processor é (mine)", float("inf")),),
        )
        pending.read = lambda: relayed(found)
        return pending


class AnyToken:
    """A grammar that admits everything."""

    is_terminated = False

    def accept(self, token):
        return True

    def fill(self, row):
        row[:] = -1

    def fork(self):
        return self


def encode(text):
    return [ord(letter) % VOCAB for letter in text]


def floats(low, high):
    return st.none() | st.floats(low, high) | st.integers(low, high)


TEXT = st.text(st.characters(exclude_categories=[]), min_size=1, max_size=8)
IDS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6)
ASKED = {
    "temperature": floats(0, 100),
    "top_k": st.none() | st.integers(-1, 2**31 - 1),
    "top_p": st.none() | st.floats(0, 1, exclude_min=True),
    "min_p": floats(0, 1),
    "repetition_penalty": st.none() | st.floats(0, 10, exclude_min=True),
    "presence_penalty": st.floats(-2, 2) | st.integers(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "seed": st.none() | st.integers(0, 2**64 - 1),
    "max_tokens": st.integers(1, 6),
    "stop": st.none() | st.lists(TEXT, max_size=3),
    "stop_token_ids": st.none() | IDS,
    "logprobs": st.none() | st.integers(0, 20),
    "prompt_logprobs": st.none() | st.integers(0, 20),
    "logit_bias": st.none() | st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=4),
    "n": st.integers(1, 4),
    "best_of": st.none() | st.integers(1, 4),
    "bad_words": st.none() | st.lists(TEXT, max_size=3),
    "allowed_token_ids": st.none() | IDS,
    "no_repeat_ngram_size": st.integers(0, 3),
    "logits_processors": st.none() | st.lists(TEXT, max_size=3),
    "guided": st.none() | st.builds(Guided, regex=st.just("a+")) | st.builds(Guided, json_schema=st.just({"type": {}})),
    "truncate_prompt_tokens": st.none() | st.integers(1, 9),
    "reuse_prefix": st.booleans(),
    "cache_salt": st.none() | st.just("salt é"),
    "cache_priority": st.integers(0, 100),
    "cache_ttl": st.none() | st.floats(0, 1e9, exclude_min=True),
    "priority": st.integers(-(2**31), 2**31 - 1),
}
ALL = {"temperature": 1.0, "seed": 2**64 - 1, "n": 2, "best_of": 4, "stop": ["\ud800"], "logit_bias": {5: 100.0}}
ALL |= {"bad_words": ["ab"], "allowed_token_ids": list(range(VOCAB)), "logits_processors": ["named"], "logprobs": 20}
ALL |= {"guided": Guided(choice=["a"]), "prompt_logprobs": 1, "cache_salt": "salt", "no_repeat_ngram_size": 2}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional=ASKED), min_size=1, max_size=3))
@example([ALL, {"guided": Guided(regex="a+")}, {}])
def test_whatever_requests_ask_can_be_sent(asked):
    engine = Engine([CacheGroup(64, 4)], tokens=16)
    relay = Relay(engine.groups, engine.scheduler.slots.count, engine.max_seq_len, overlaps=False)
    engine.executor = engine.loop.executor = relay
    requests = []
    for said in asked:
        try:
            resolved = resolve(SamplingParams(**said), vocab_size=VOCAB, encode=encode)
        except RequestError:  # several greedy answers, more answers than best_of, …
            continue
        guide = None if resolved.guided is None else Guide(AnyToken(), "grammar any (mine)", 0.0)
        for index in range(resolved.best_of):
            name, prompt = f"{len(requests)}", list(range(3, 12))
            request = Request(name, prompt, resolved.answer(index), max_seq_len=engine.max_seq_len, sibling=None)
            engine.loop.submit(request, Recorder(watches=True), guide)
            requests.append(request)
    engine.drain()
    for request in requests:
        whole = engine.expected(request)
        assert request.finish_reason in ("length", "stop"), request.stop_reason
        assert request.output == whole[: request.num_output] and request.num_output > 0


def test_of_a_request_only_what_chooses_its_tokens_is_sent():
    """Texts, salts and grammars stay with the host."""
    engine = Engine()
    engine.submit([1, 2], cache_salt="secret", stop=["secret"], guided=Guided(regex="secret"), truncate_prompt_tokens=1)
    (opened,) = engine.step().opened
    assert b"secret" not in CODEC.encode(opened) and opened.params.temperature == 0.0
