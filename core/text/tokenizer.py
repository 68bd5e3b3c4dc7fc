"""A model's tokenizer: tokenizer.json through the ``tokenizers`` library, special tokens as tokenizer_config.json says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tokenizers import Tokenizer as RustTokenizer

from bestiary.core.errors import DataError, MissingInputError, RequestError
from bestiary.core.text.files import read_json
from bestiary.core.text.token_bytes import token_bytes

MAX_TOKENIZER_BYTES: Final = 128 * 2**20
MAIN: Final = "tokenizer.json"
# Prompt tokens before a continuation that decide about a space at its beginning.
_CONTEXT = 6
_PROBE: Final = "a"  # a text around which the special tokens of every text stand
_SPECIAL: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def has_tokenizer(directory: Path) -> bool:
    """Whether there is a tokenizer.json."""
    return (directory / MAIN).is_file()


def tokenizer_file(directory: Path) -> Path:
    """The tokenizer.json of a model, checkpoint or engine directory.

    Raises:
        MissingInputError: there is none, or not even the directory, which is named as it was given.
    """
    if has_tokenizer(directory):
        return directory / MAIN
    if not directory.is_dir():
        hint = f"name a directory that holds a {MAIN}"
        raise MissingInputError("E-TEXT-MISSING", f"tokenizer {directory}", "no such directory", hint=hint)
    raise no_tokenizer(directory.resolve().name)


def no_tokenizer(
    model: str,
    hint: str = "name a directory that has one (tokenizer=…, --tokenizer), or use token ids (tokenizer=None, bestiary generate)",
) -> MissingInputError:
    """The error for a model that came without a tokenizer, where one is needed."""
    return MissingInputError("E-TEXT-MISSING", f"{model}/{MAIN}", "the model has no tokenizer", hint=hint)


class Beginning(NamedTuple):
    """What a tokenizer puts before a text.

    Args:
        ids: the tokens, in their order; none for many models.
        source: the file, and the field of it, that says so.
    """

    ids: tuple[int, ...]
    source: str


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        backend: the ``tokenizers.Tokenizer``.
        special_tokens: name to text, as chat templates use them: ``{"bos_token": "<s>", …}``.
        bos_token_id, eos_token_id: None where the model has none.
    """

    def __init__(self, backend: RustTokenizer, config: dict[str, Any] | None = None) -> None:
        self.backend = backend
        config = config or {}
        self.special_tokens = {name: text for name in _SPECIAL if (text := _text(config.get(name))) is not None}
        self.bos_token_id = self._id(self.special_tokens.get("bos_token"))
        self.eos_token_id = self._id(self.special_tokens.get("eos_token"))
        # What a tokenizer_config says stands above the post-processor in tokenizer.json; None leaves it to that.
        self._add_bos: bool | None = config.get("add_bos_token")
        self._add_eos: bool | None = config.get("add_eos_token")

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """The tokenizer of a model, checkpoint or engine directory.

        Raises:
            MissingInputError: there is no tokenizer.json.
            DataError: it can't be read.
        """
        path = tokenizer_file(directory)
        size = path.stat().st_size
        if size > MAX_TOKENIZER_BYTES:
            expected = f"at most {MAX_TOKENIZER_BYTES}"
            raise DataError("E-TEXT-SIZE", MAIN, "too large", found=f"{size} bytes", expected=expected)
        config = {**read_json(directory / "special_tokens_map.json"), **read_json(directory / "tokenizer_config.json")}
        try:
            backend = RustTokenizer.from_file(str(path))
        except Exception as error:  # the library raises a plain Exception
            raise DataError("E-TEXT-TOKENIZER", MAIN, "not a tokenizer", found=str(error)[:200]) from error
        backend.no_truncation()
        backend.no_padding()
        return cls(backend, config)

    @property
    def vocab_size(self) -> int:
        """Ids the tokenizer knows, added tokens included; the model's logits may be wider."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; with ``add_special_tokens`` also what the model wants around a prompt.

        Raises:
            RequestError: the text has half of a surrogate pair, which is no character.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            found = f"U+{ord(text[error.start]):04X} at {error.start}"
            raise RequestError("E-REQ-PROMPT", "text", "not valid Unicode", found=found) from None
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        if add_special_tokens and not (self._add_bos is None and self._add_eos is None):
            plain: list[int] = self.backend.encode(text, add_special_tokens=False).ids
            ids = self._bounded(ids, plain)
        return ids

    def _bounded(self, ids: list[int], plain: list[int]) -> list[int]:
        """Begin and end tokens as the config says, where the post-processor did otherwise."""
        bos, eos = self.bos_token_id, self.eos_token_id
        begins = len(ids) > len(plain) and ids[0] == bos
        ends = len(ids) > len(plain) + begins and ids[-1] == eos
        if self._add_bos is not None and bos is not None and self._add_bos != begins:
            ids = [bos, *ids] if self._add_bos else ids[1:]
        if self._add_eos is not None and eos is not None and self._add_eos != ends:
            ids = [*ids, eos] if self._add_eos else ids[:-1]
        return ids

    def beginning(self) -> Beginning:
        """What stands before every text that is encoded with its special tokens."""
        plain, whole = (self.encode(_PROBE, add_special_tokens=special) for special in (False, True))
        starts = range(len(whole) - len(plain) + 1)
        before = next((start for start in starts if whole[start : start + len(plain)] == plain), 0)
        by_config = self._add_bos is not None and self.bos_token_id is not None
        source = "tokenizer_config.json, add_bos_token" if by_config else f"{MAIN}, post_processor"
        return Beginning(tuple(whole[:before]), source)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """The text that ``ids`` add to a prompt's, without special tokens."""
        before = self.decode(prompt[-_CONTEXT:])
        if before.endswith("\N{REPLACEMENT CHARACTER}"):
            return self.decode(ids)
        return self.decode([*prompt[-_CONTEXT:], *ids])[len(before) :]

    def token_text(self, token: int) -> str | None:
        """The text of one token on its own, special tokens shown; None for an id beyond the tokenizer's."""
        if self.backend.id_to_token(token) is None:
            return None
        return self.decode([token], skip_special_tokens=False)

    def token_bytes(self) -> list[bytes | None]:
        """By id the bytes that a token adds to a text; None for special tokens and ids without a token."""
        return token_bytes(self.backend)

    def _id(self, text: str | None) -> int | None:
        return None if text is None else self.backend.token_to_id(text)


def _text(token: object) -> str | None:
    """A special token's text; configs spell it as a string or as an object with ``content``."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
