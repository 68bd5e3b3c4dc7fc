"""The protocol of guided decoding, with the simplest backend."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from choice_grammar import ChoiceProvider

from bestiary.core.guided import Guided
from bestiary.core.runtime.bitmasks import words
from bestiary.spec import Grammar, GrammarMatcher, GrammarProvider, GrammarVocabulary

END = 6
VOCABULARY = GrammarVocabulary(size=40, tokens=[b"a", b"b", b"ab", b"abc", b"c", None, None, b""], end_token_ids=frozenset({END}))  # fmt: skip


def allowed(matcher):
    row = np.full(words(VOCABULARY.size), -1, dtype=np.int32)
    matcher.fill(row)
    return {token for token in range(VOCABULARY.size) if (int(row[token // 32]) >> (token % 32)) & 1}


def matcher_of(*choice):
    descriptor = Grammar(name="choices", provider="choice_grammar:ChoiceProvider", forms=("choice",))
    module, _, attribute = descriptor.provider.partition(":")
    provider: GrammarProvider = getattr(importlib.import_module(module), attribute)()
    return provider.compile(Guided(choice=choice), VOCABULARY)


def test_a_matcher_allows_what_can_become_a_choice():
    matcher: GrammarMatcher = matcher_of("abc", "ab")
    assert allowed(matcher) == {0, 2, 3} and not matcher.accept(1) and allowed(matcher) == {0, 2, 3}
    other = matcher.fork()
    assert matcher.accept(2) and allowed(matcher) == {4, END} and allowed(other) == {0, 2, 3}
    assert matcher.accept(END) and matcher.is_terminated and allowed(matcher) == set() and not other.is_terminated


def test_a_grammar_that_does_not_compile_says_why():
    with pytest.raises(ValueError, match="regex"):
        ChoiceProvider().compile(Guided(regex="a"), VOCABULARY)
