"""The bytes that each token adds to a text, for grammars."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # sentencepiece's


def token_bytes(backend: RustTokenizer) -> list[bytes | None]:
    """By id; None for special tokens and ids without a token.

    A token's bytes are what it adds within a text; where the tokenizer drops a space at a text's beginning, that is not
    told.
    """
    kinds = _decoders(json.loads(backend.to_str()).get("decoder"))
    found: list[bytes | None] = [None] * backend.get_vocab_size(with_added_tokens=True)
    added = backend.get_added_tokens_decoder()
    for text, token in backend.get_vocab(with_added_tokens=True).items():
        if token >= len(found):
            found += [None] * (token + 1 - len(found))
        if token in added:
            found[token] = None if added[token].special else added[token].content.encode()
        elif "ByteLevel" in kinds:
            found[token] = b"".join(_alphabet().get(char, char.encode()) for char in text)
        elif match := _BYTE.fullmatch(text):
            found[token] = bytes([int(match[1], 16)])
        else:
            found[token] = text.replace(_SPACE, " ").encode()
    return found


def _decoders(decoder: Any) -> set[str]:
    if decoder is None:
        return set()
    inner = [_decoders(each) for each in decoder.get("decoders", ())]
    return {decoder["type"]}.union(*inner)


@cache
def _alphabet() -> dict[str, bytes]:
    """GPT-2's: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    pairs = [(chr(byte), byte) for byte in printable] + [(chr(256 + n), byte) for n, byte in enumerate(rest)]
    return {char: bytes([byte]) for char, byte in pairs}
