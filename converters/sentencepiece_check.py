"""Does a tokenizer split text as the sentencepiece model does that it was made from?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

# Where conversions go wrong: runs and margins of blanks, other white space, normal forms, what only bytes can spell.
PROBES = (
    *("Hello, world", "the  quick   brown", "a     b", "a                b", " a", "   a", "a ", "a   ", " ", "    "),
    *("a\tb", "\ta", "a\nb", "a\n\n  b\n", "x\r\ny", "def f(x):\n        return x\n"),
    *("naïve 12.5 (x)", "1234567 89", "ﬁne ＡＢ　Ｃ ①", "e\u0301 é", "\u00a0a\u00a0b", "a\u200bb"),
    *("日本語 ok", "日本語のテスト。", "안녕 мир", "😀 ok 👩‍👩‍👧", "İß"),
)


class Original:
    """The sentencepiece model, as the tokenizer_config.json beside it wants it used.

    Args:
        path: its file, which is rewritten where ``config`` overrules it.
        config: ``add_prefix_space`` goes before what the model says of a blank before the first word. With ``legacy``
            false the text's own leading blank, if it has one, is that blank: the model's other users read it so.

    Raises:
        ImportError: the sentencepiece library is not installed.
        RuntimeError, OSError: the file is no sentencepiece model.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model: Any = SentencePieceProcessor(model_file=str(path))
        if isinstance(config.get("add_prefix_space"), bool):
            from sentencepiece.sentencepiece_model_pb2 import ModelProto

            proto = ModelProto.FromString(path.read_bytes())
            proto.normalizer_spec.add_dummy_prefix = config["add_prefix_space"]
            path.write_bytes(proto.SerializeToString())
            self._model = SentencePieceProcessor(model_file=str(path))
        self._probes = [text for text in PROBES if config.get("legacy") is not False or not text[0].isspace()]

    def adjust(self, tokenizer: Any) -> None:
        """Make one known difference good, in a transformers tokenizer, in place.

        tokenizers' Precompiled normalizer maps grapheme by grapheme, and CR LF is one: where the model makes a space of
        either, the pair became one space, not two.
        """
        from tokenizers.normalizers import Replace
        from tokenizers.normalizers import Sequence as Steps

        backend = tokenizer.backend_tokenizer
        if backend.normalizer is not None and self._model.normalize("a\rb") == self._model.normalize("a\nb"):
            backend.normalizer = Steps([Replace("\r\n", "\n\n"), backend.normalizer])

    def difference(self, tokenizer: Any) -> tuple[str, str, str] | None:
        """The first probe that a transformers tokenizer splits or joins otherwise: text, found, expected; else None.

        A run of blanks that is cut into the same pieces in another order is no difference: a unigram model scores both
        alike. sentencepiece adds scores in single precision and tokenizers in double, and rounding alone decides.
        """
        from tokenizers.models import Unigram

        scored = isinstance(tokenizer.backend_tokenizer.model, Unigram)
        for text in self._probes:
            found: list[int] = tokenizer.encode(text, add_special_tokens=False)
            right: list[int] = self._model.encode(text)
            if not (found == right or (scored and self._settled(found) == self._settled(right))):
                return repr(text), self._shown(found), self._shown(right)
            # The library has a picture of its own for the unknown token.
            joined = tokenizer.decode(right, clean_up_tokenization_spaces=False)
            if self._model.unk_id() not in right and joined != self._model.decode(right):
                return repr(text), repr(joined), repr(self._model.decode(right))
        return None

    def _settled(self, ids: Sequence[int]) -> list[int]:
        """Ids with the order within each run of blanks settled."""
        runs = groupby(ids, lambda token: not self._piece(token).strip("▁"))
        return [token for blank, run in runs for token in (sorted(run) if blank else run)]

    def _piece(self, token: int) -> str:
        piece: str = self._model.id_to_piece(token) if token < self._model.get_piece_size() else f"#{token}"
        return piece

    def _shown(self, ids: Sequence[int]) -> str:
        return " ".join(map(self._piece, ids))[:80]
