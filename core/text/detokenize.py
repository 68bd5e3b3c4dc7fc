"""From output tokens to text as they come: no half characters, no part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tokenizers.decoders import DecodeStream

from bestiary.core.text.tokenizer import Tokenizer

# Prompt tokens that the decoder sees before the output, so that a leading space is kept where the prompt's text goes on.
_CONTEXT: Final = 6


class StopSearch:
    """Finds the stop string that is complete first, and holds back what may still become one.

    The result does not depend on how the text is cut into pieces, but for where the first searched one begins.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in stops), default=0)
        self._held = ""

    def push(self, text: str, *, search: bool = True) -> tuple[str, str | None]:
        """Text that is certain now, and the stop string that ended it, if one did.

        Args:
            search: a stop string may end within ``text``, wherever it began; else only within a later one.
        """
        if not self._stops:
            return text, None
        held = self._held + text
        best: tuple[int, int, str] | None = None
        for stop in self._stops if search else ():
            at = held.find(stop, max(0, len(self._held) - len(stop) + 1))
            if at >= 0 and (best is None or (at + len(stop), at) < best[:2]):
                best = (at + len(stop), at, stop)
        if best is not None:
            self._held = ""
            return held[: best[1]], best[2]
        keep = self._unfinished(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], None

    def flush(self) -> str:
        """What was held back; no more text follows."""
        held, self._held = self._held, ""
        return held

    def _unfinished(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[len(text) - size :]) for stop in self._stops):
                return size
        return 0


class Detokenizer:
    """Text of one request's output.

    Args:
        prompt: the prompt's tokens; only the last few matter.
        stops: stop strings; the text ends before the first one.
        include_stop: the text ends with it instead.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        stops: Sequence[str] = (),
        skip_special_tokens: bool = True,
        include_stop: bool = False,
    ) -> None:
        self._include_stop = include_stop
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ids = list(prompt[-_CONTEXT:])
        context = tokenizer.decode(self._ids, skip_special_tokens=skip_special_tokens)
        if context.endswith("\N{REPLACEMENT CHARACTER}"):
            # The prompt may end within a character; its bytes are not the output's to show.
            self._ids, context = [], ""
        self._stream = DecodeStream(ids=list(self._ids), skip_special_tokens=skip_special_tokens)
        self._decoded = len(context)
        self._search = StopSearch(stops)
        self.text = ""

    def push(self, tokens: Sequence[int], *, search: bool = True) -> str | None:
        """Take in tokens; ``text`` grows by what is certain. The stop string that ended it, if one did and ``search``: one
        may end within the text of these tokens."""
        new = list(tokens)
        self._ids += new
        piece = self._step(new)
        return self._add(piece, search) if piece else None

    def finish(self, *, search: bool = True) -> str | None:
        """No more tokens follow: let go of held text, incomplete characters as U+FFFD. A stop string may still be found, if
        ``search``."""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)
        stop = self._add(whole[self._decoded :], search)
        if stop is None:
            self.text += self._search.flush()
        return stop

    def _step(self, new: list[int]) -> str | None:
        try:
            return self._stream.step(self._tokenizer.backend, new)
        except Exception:  # the library has no type of its own for this
            # Bytes that make no character can change how earlier ones are shown, and the stream gives up on that: what
            # is out stays, what the whole text has beyond it follows, and a new stream goes on from here.
            whole = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)
            self._stream = DecodeStream(ids=list(self._ids), skip_special_tokens=self._skip)
            return whole[self._decoded :]

    def _add(self, piece: str, search: bool) -> str | None:
        self._decoded += len(piece)
        text, stop = self._search.push(piece, search=search)
        self.text += text + stop if stop is not None and self._include_stop else text
        return stop
