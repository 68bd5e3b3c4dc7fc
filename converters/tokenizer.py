"""The tokenizer's files: copied as found, or made into a tokenizer.json by transformers, here and nowhere at run time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bestiary.converters.sentencepiece_check import Original
from bestiary.core.checkpoint.files import json_bytes, open_file, read_json
from bestiary.core.errors import BestiaryError, ConfigError, DataError, PluginError
from bestiary.core.text.tokenizer import Tokenizer

MAIN = "tokenizer.json"
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
TEMPLATE = "chat_template.jinja"
FILES = (MAIN, *CONFIGS, TEMPLATE)
# Vocabularies of other formats, each of which transformers can turn into a tokenizer.json.
FOREIGN = ("tekken.json", "tokenizer.model")
_LIMIT = 256 << 20


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files that ``source`` has; a sentencepiece or tekken vocabulary becomes tokenizer.json.

    Raises:
        DataError, ConfigError: a file is no JSON, or too large, or no tokenizer can be made of it.
        PluginError: transformers is needed and not installed.
    """
    for name in FILES:
        if not os.path.lexists(source / name):
            continue
        if name != TEMPLATE:
            read_json(source, name, limit=_LIMIT, error=DataError if name == MAIN else ConfigError)
        _copy(source, name, target)
    if (target / MAIN).exists():
        Tokenizer.load(target)
    else:
        foreign = next((name for name in FOREIGN if os.path.lexists(source / name)), None)
        if foreign:
            _from_vocabulary(source, foreign, target)


def _copy(source: Path, name: str, target: Path) -> None:
    with open_file(source, name) as file, (target / name).open("xb") as out:
        size = file.seek(0, os.SEEK_END)
        if size > _LIMIT:
            raise DataError(
                "E-CONV-TOKENIZER", name, "is too large", found=f"{size} bytes", expected=f"at most {_LIMIT}"
            )
        file.seek(0)
        shutil.copyfileobj(file, out)


def missing_package(package: str, purpose: str) -> PluginError:
    return PluginError(
        "E-PLG-PACKAGE",
        f"package {package}",
        f"is needed for {purpose} and is not installed",
        hint='pip install "bestiary[convert]"',
    )


def _from_vocabulary(source: Path, vocabulary: str, target: Path) -> None:
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
    except ImportError:
        raise missing_package("transformers", f"turning {vocabulary} into {MAIN}") from None

    with tempfile.TemporaryDirectory() as scratch:
        # transformers gets copies of the data files alone, so that nothing else in the directory can be run or read.
        clean = Path(scratch)
        _copy(source, vocabulary, clean)
        for name in ("config.json", *CONFIGS[:2]):
            if os.path.lexists(source / name):
                value = read_json(source, name, error=ConfigError)
                value.pop("auto_map", None)
                (clean / name).write_bytes(json_bytes(value))

        if vocabulary == "tekken.json":
            _check_tekken(clean, vocabulary)
            _save([lambda: PreTrainedTokenizerFast.from_pretrained(clean)], vocabulary, target)
            return
        # The class that the model names knows its special tokens; but several classes of transformers ignore what the
        # vocabulary says of its kind and its normalizer, and the one for any vocabulary does not.
        loaders: list[Callable[[], Any]] = [
            lambda: AutoTokenizer.from_pretrained(clean, trust_remote_code=False),
            lambda: PreTrainedTokenizerFast.from_pretrained(clean),
        ]
        _save(loaders, vocabulary, target, original=_original(clean, vocabulary))


def _check_tekken(directory: Path, name: str) -> None:
    """Refuse a file without the parts that every tekken vocabulary has: a library would say that a key is missing."""
    found = read_json(directory, name, limit=_LIMIT)
    config, entries = found.get("config"), found.get("vocab")
    missing = [
        field for field in ("pattern", "default_vocab_size") if not isinstance(config, dict) or field not in config
    ]
    if missing:
        problem = "is not what a tekken vocabulary has"
        raise DataError("E-CONV-TOKENIZER", f"{name}, field config", problem, expected=f"an object with {missing[0]}")
    if not isinstance(entries, list) or not entries or not all(_is_entry(one) for one in entries):
        expected = "a list of objects with token_bytes, in base64"
        raise DataError(
            "E-CONV-TOKENIZER", f"{name}, field vocab", "is not what a tekken vocabulary has", expected=expected
        )


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("token_bytes"), str)


def _original(directory: Path, vocabulary: str) -> Original | None:
    """The sentencepiece model; None where it can't be read, which the loaders then say better."""
    named = (directory / CONFIGS[0]).exists()
    config = read_json(directory, CONFIGS[0], error=ConfigError) if named else {}
    try:
        return Original(directory / vocabulary, config)
    except (ImportError, RuntimeError, OSError):
        return None


def gguf_tokenizer(file: Path, target: Path) -> None:
    """Write the tokenizer that a GGUF file describes, with its chat template."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise missing_package("transformers", f"the tokenizer of {file.name}") from None

    _save([lambda: AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)], file.name, target)


def _save(loaders: list[Callable[[], Any]], name: str, target: Path, *, original: Original | None = None) -> None:
    """Save the first tokenizer that splits as ``original``, keeping those of the target's files that were there."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _first(loaders, name, original).save_pretrained(scratch)
        except BestiaryError:
            raise
        except Exception as e:
            first = str(e).strip().split("\n")[0][:200]
            raise DataError("E-CONV-TOKENIZER", name, f"can't be made into {MAIN}: {type(e).__name__}: {first}") from e
        if not (Path(scratch) / MAIN).is_file():
            problem = "transformers has no fast tokenizer for it"
            raise DataError("E-CONV-TOKENIZER", name, f"can't be made into {MAIN}: {problem}")
        for made in FILES:
            if (Path(scratch) / made).is_file() and not (target / made).exists():
                shutil.copyfile(Path(scratch) / made, target / made)


def _first(loaders: list[Callable[[], Any]], name: str, original: Original | None) -> Any:
    difference = None
    for load in loaders:
        tokenizer = load()
        if original is None or not getattr(tokenizer, "is_fast", False):
            return tokenizer
        original.adjust(tokenizer)
        difference = original.difference(tokenizer)
        if difference is None:
            return tokenizer
    assert difference is not None
    text, found, expected = difference
    problem = f"can't be made into {MAIN}: transformers treats {text} otherwise"
    raise DataError("E-CONV-TOKENIZER", name, problem, found=found, expected=expected)


def check_token_ids(raw: dict[str, Any], vocabulary: int, file: str) -> None:
    """The begin and end tokens are rows of the embedding.

    Raises:
        ConfigError: names the field.
    """
    for field in ("bos_token_id", "eos_token_id"):
        value = raw.get(field)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        problem = None
        if any(type(token) is not int for token in ids):
            problem, expected = "is not a token id or a list of them", None
        elif any(not 0 <= token < vocabulary for token in ids):
            problem, expected = "is no row of the embedding", f"0 to {vocabulary - 1}"
        elif isinstance(value, list) and (not ids or len(set(ids)) != len(ids)):
            problem, expected = "is empty or names a token twice", None
        if problem:
            raise ConfigError(
                "E-CFG-TOKEN", f"{file}, field {field}", problem, found=repr(value)[:80], expected=expected
            )
