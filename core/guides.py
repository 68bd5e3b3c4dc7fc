"""Grammars and logits processors that requests name: from the plugins that registered them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from bestiary.core.errors import RequestError, shown
from bestiary.core.plugins import PluginHost, resolve
from bestiary.core.runtime.restrictions import Guide, a_matcher, blamed
from bestiary.spec import Grammar, GrammarProvider, GrammarVocabulary

if TYPE_CHECKING:
    from bestiary.core.guided import Guided
    from bestiary.core.resolved_params import ResolvedParams
    from bestiary.core.text.tokenizer import Tokenizer


class Guides:
    """The grammar backends of one engine, each made when it is first named.

    Args:
        takes_functions: see ``Executor``.
    """

    def __init__(
        self, host: PluginHost, tokenizer: Tokenizer | None, vocab_size: int, *, takes_functions: bool = True
    ) -> None:
        self._host, self._tokenizer, self._vocab_size = host, tokenizer, vocab_size
        self._takes_functions = takes_functions
        self._providers: dict[str, GrammarProvider] = {}
        self._tokens: list[bytes | None] | None = None

    def several(self, params: ResolvedParams) -> list[Guide | None]:
        """The request's grammar, at its start, for each of its ``best_of`` answers; None without one.

        Raises: as :meth:`guide`.
        """
        first = self.guide(params)
        return [first, *(None if first is None else first.fork() for _ in range(params.best_of - 1))]

    def guide(self, params: ResolvedParams) -> Guide | None:
        """The request's grammar, at its start; None without one.

        Raises:
            RequestError: no backend for it, or the backend refuses the grammar.
            PluginFailure: the backend fails in another way.
        """
        guided = params.guided
        if guided is None:
            return None
        grammar = self._backend(guided)
        plugin = f"grammar {grammar.name} ({self._host.origin(grammar)})"
        provider = resolve(grammar.provider, needed_by=f"grammar {grammar.name}")
        if grammar.name not in self._providers:
            with blamed(plugin):
                self._providers[grammar.name] = provider()
        if self._tokens is None:
            self._tokens = [] if self._tokenizer is None else self._tokenizer.token_bytes()
        vocabulary = GrammarVocabulary(size=self._vocab_size, tokens=self._tokens, end_token_ids=params.end_token_ids)
        began = time.perf_counter()
        with blamed(plugin):
            try:
                matcher = self._providers[grammar.name].compile(guided, vocabulary)
            except ValueError as error:
                refused = RequestError(
                    "E-REQ-GUIDED",
                    "guided",
                    f"the backend {grammar.name} refuses the {guided.form}: {error}",
                    hint="correct the grammar",
                )
                refused.__cause__ = error
            else:
                return Guide(a_matcher(matcher, "compile"), plugin, time.perf_counter() - began)
        raise refused

    def check_processors(self, params: ResolvedParams) -> None:
        """Refuse names of logits processors that nobody registered, and functions where ranks can't be given any.

        Raises:
            RequestError: naming the processor.
        """
        known = sorted(one.name for one in self._host.logits_processors())
        for given in params.logits_processors:
            if isinstance(given, str) and given not in known:
                raise RequestError(
                    "E-REQ-LOGITS-PROCESSORS",
                    "logits_processors",
                    "no plugin registered this one",
                    found=repr(given),
                    expected=", ".join(known) or "a function: no processor is registered",
                    hint="install the plugin that has it, or pass the function itself",
                )
            if not (isinstance(given, str) or self._takes_functions):
                raise RequestError(
                    "E-REQ-LOGITS-PROCESSORS",
                    "logits_processors",
                    "a function can't go to the processes of a divided engine",
                    found=shown(given),
                    expected="names of registered ones" + (f": {', '.join(known)}" if known else ""),
                    hint="register it with a plugin and pass its name, or load the model undivided",
                )

    def _backend(self, guided: Guided) -> Grammar:
        known = self._host.grammars()
        if guided.provider is not None:
            able = [grammar for grammar in known if grammar.name == guided.provider]
        else:
            able = [grammar for grammar in known if guided.form in grammar.forms]
        if not able:
            wanted = f"provider {guided.provider}" if guided.provider else f"a backend for {guided.form}"
            raise RequestError(
                "E-REQ-GUIDED",
                "guided",
                f"no installed plugin has {wanted}",
                found=", ".join(grammar.name for grammar in known) or "no grammar backend",
                hint="install a plugin that registers one",
            )
        return able[0]


@dataclass(frozen=True)
class Processor:
    """A registered logits processor, and whose it is."""

    run: Callable[..., Any]
    plugin: str

    def __call__(self, prompt: list[int], output: list[int], logits: Any) -> Any:
        return self.run(prompt, output, logits)


def processors(host: PluginHost) -> Callable[[str], Callable[..., Any]]:
    """The functions of registered logits processors, by name."""

    @cache
    def find(name: str) -> Callable[..., Any]:
        registered = next(one for one in host.logits_processors() if one.name == name)
        function: Callable[..., Any] = resolve(registered.run, needed_by=f"logits processor {name}")
        return Processor(function, f"logits processor {name} ({host.origin(registered)})")

    return find
