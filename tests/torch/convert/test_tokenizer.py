"""Tokenizers that come in other formats: sentencepiece, tekken and GGUF become a tokenizer.json with the same ids."""

from __future__ import annotations

import base64
import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from gguf import GGUFWriter
from tokenizers import Tokenizer

from bestiary import BestiaryError, ConfigError, DataError, PluginError
from bestiary.converters.gguf import GGUFSource
from bestiary.converters.sentencepiece_check import PROBES
from bestiary.converters.tokenizer import check_token_ids, copy_tokenizer

TEXTS = [*PROBES, "hello world", "the fox", "Fuchs, 12 (x)", "  the\n\tquick 　日本  ", "a<sym>b  <sym>"]
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Make a small sentencepiece model; by default with byte fallback, normalizing nothing, as Llama's does."""

    def make(**options: Any) -> Path:
        directory = tmp_path_factory.mktemp("sentencepiece")
        lines = ("the quick brown fox jumps", "over  the lazy dog", "hello world", "        return    x\ty", "日本語")
        (directory / "text").write_text("\n".join(lines * 50))
        chosen = {
            "vocab_size": 320,
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "hard_vocab_limit": False,
            "minloglevel": 2,
            **options,
        }
        sentencepiece.SentencePieceTrainer.train(
            input=str(directory / "text"), model_prefix=str(directory / "tokenizer"), **chosen
        )
        return directory / "tokenizer.model"

    return make


@pytest.fixture(scope="module")
def vocabulary(train: Train) -> Path:
    return train()


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "source" / "config.json").write_text(
        '{"model_type": "llama", "auto_map": {"AutoTokenizer": ["evil.T", null]}}'
    )
    return tmp_path / "source", tmp_path / "target"


@pytest.mark.parametrize(
    "config", [None, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}], ids=["bare", "configured"]
)
def test_sentencepiece(config: dict[str, Any] | None, vocabulary: Path, places: tuple[Path, Path]) -> None:
    source, target = places
    (source / "tokenizer.model").write_bytes(vocabulary.read_bytes())
    if config:
        (source / "tokenizer_config.json").write_text(json.dumps(config))
    copy_tokenizer(source, target)
    made = Tokenizer.from_file(str(target / "tokenizer.json"))
    original = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    for text in TEXTS:
        assert made.encode(text, add_special_tokens=False).ids == original.encode(text)
        assert made.decode(original.encode(text)) == text
    if config:
        assert json.loads((target / "tokenizer_config.json").read_text()) == config, "files as found stay as found"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("squeeze", [True, False])
@pytest.mark.parametrize("config", [None, {"tokenizer_class": "LlamaTokenizer"}], ids=["bare", "named"])
def test_sentencepiece_of_every_kind(
    kind: str,
    rule: str,
    prefix: bool,
    squeeze: bool,
    config: dict[str, Any] | None,
    train: Train,
    places: tuple[Path, Path],
) -> None:
    """Whatever class the model names, which may know one kind only."""
    model = train(
        model_type=kind,
        normalization_rule_name=rule,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=squeeze,
        user_defined_symbols=["<sym>"],
    )
    source, target = places
    (source / "tokenizer.model").write_bytes(model.read_bytes())
    if config:
        (source / "tokenizer_config.json").write_text(json.dumps(config))
    copy_tokenizer(source, target)
    made = Tokenizer.from_file(str(target / "tokenizer.json"))
    original = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for text in TEXTS:
        ids = original.encode(text)
        assert made.encode(text, add_special_tokens=False).ids == ids, repr(text)
        assert made.decode(ids) == original.decode(ids), repr(text)


def test_a_setting_of_the_model_overrules_the_vocabulary(train: Train, places: tuple[Path, Path]) -> None:
    source, target = places
    (source / "tokenizer.model").write_bytes(train(model_type="unigram").read_bytes())
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "add_prefix_space": false}')
    copy_tokenizer(source, target)
    made = Tokenizer.from_file(str(target / "tokenizer.json"))
    ids = made.encode("the  fox", add_special_tokens=False).ids
    assert made.id_to_token(ids[0])[0] == "t" and made.decode(ids) == "the  fox"


def test_a_sentencepiece_model_that_no_tokenizer_follows_is_refused(train: Train, places: tuple[Path, Path]) -> None:
    source, target = places
    (source / "tokenizer.model").write_bytes(train(treat_whitespace_as_suffix=True).read_bytes())
    problem = "tokenizer.model: can't be made into tokenizer.json: transformers treats 'Hello, world' otherwise; found "
    with pytest.raises(DataError, match=f"^{problem}.*, expected .*put the tokenizer.json"):
        copy_tokenizer(source, target)
    assert not (target / "tokenizer.json").exists()


def test_tekken(places: tuple[Path, Path]) -> None:
    source, target = places
    pieces = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell", b"hello"]
    special = ["<unk>", "<s>", "</s>", "[INST]"]
    tekken = {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            "num_vocab_tokens": len(pieces),
            "default_vocab_size": len(pieces) + len(special),
            "default_num_special_tokens": len(special),
            "version": "v3",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for rank, piece in enumerate(pieces)
        ],
        "special_tokens": [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(special)],
    }
    (source / "tekken.json").write_text(json.dumps(tekken))
    copy_tokenizer(source, target)
    made = Tokenizer.from_file(str(target / "tokenizer.json"))
    ids = made.encode("hello né", add_special_tokens=False).ids
    assert ids == [len(special) + 259, *(len(special) + byte for byte in " né".encode())]
    assert made.decode(ids) == "hello né" and made.token_to_id("[INST]") == 3


def test_a_gguf_tokenizer_with_its_template(tmp_path: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = ["<|end|>", *letters, "he", "ll", "hell", "hello"]
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    for key in ("embedding_length", "feed_forward_length", "block_count", "attention.head_count", "context_length"):
        writer.add_uint32(f"llama.{key}", 4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges(["h e", "l l", "he ll", "hell o"])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages[0].content }}")
    import numpy as np

    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target = tmp_path / "target"
    target.mkdir()
    GGUFSource(tmp_path / "m.gguf").write_tokenizer(target)
    made = Tokenizer.from_file(str(target / "tokenizer.json"))
    assert [tokens[token] for token in made.encode("hello he<|end|>").ids] == ["hello", "Ġ", "he", "<|end|>"]
    assert made.decode(made.encode("hello né").ids) == "hello né"
    assert (target / "chat_template.jinja").read_text() == "{{ messages[0].content }}"
    assert json.loads((target / "generation_config.json").read_text()) == {"eos_token_id": 0}


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe garbage", b"{}"], ids=["empty", "garbage", "object"])
def test_vocabularies_that_make_no_tokenizer_are_refused(name: str, content: bytes, places: tuple[Path, Path]) -> None:
    source, target = places
    (source / name).write_bytes(content)
    with pytest.raises(BestiaryError, match=f"{name}(: |, field )") as error:
        copy_tokenizer(source, target)
    assert error.value.exit_status in (65, 78) and not (target / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        ({"config": None}, "config"),
        ({"config": {"pattern": "x"}}, "config"),
        ({"vocab": None}, "vocab"),
        ({"vocab": []}, "vocab"),
        ({"vocab": [{"rank": 0}]}, "vocab"),
        ({"vocab": [3]}, "vocab"),
    ],
)
def test_a_broken_tekken_vocabulary_names_the_field(
    spoil: dict[str, Any], field: str, places: tuple[Path, Path]
) -> None:
    config = {"pattern": "x", "default_vocab_size": 2}
    tekken = {"config": config, "vocab": [{"rank": 0, "token_bytes": "YQ=="}], **spoil}
    (places[0] / "tekken.json").write_text(json.dumps(tekken))
    with pytest.raises(DataError, match=rf"tekken.json, field {field}: is not what a tekken vocabulary has; expected"):
        copy_tokenizer(*places)


@pytest.mark.parametrize("content", ["{}", '{"model": 3}', '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_is_none_is_refused(content: str, places: tuple[Path, Path]) -> None:
    (places[0] / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=r"tokenizer.json: not a tokenizer"):
        copy_tokenizer(*places)


def test_without_transformers_the_pip_line_is_named(
    vocabulary: Path, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = places
    (source / "tokenizer.model").write_bytes(vocabulary.read_bytes())
    real: Callable[..., Any] = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(PluginError, match=r'pip install "bestiary\[convert\]"') as error:
        copy_tokenizer(source, target)
    assert error.value.exit_status == 69


def test_no_tokenizer_at_all_is_allowed(places: tuple[Path, Path]) -> None:
    copy_tokenizer(*places)
    assert not list(places[1].iterdir())


def test_a_tokenizer_that_is_a_link_outside_is_refused(places: tuple[Path, Path]) -> None:
    (places[0] / "tokenizer.json").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match=r"tokenizer.json: is a link that leaves"):
        copy_tokenizer(*places)


@pytest.mark.parametrize("value", [32, -1, [], [1, 1], [1, 99], "2", True, 2.0, [None]], ids=repr)
def test_token_ids_outside_the_vocabulary_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"config.json, field eos_token_id"):
        check_token_ids({"eos_token_id": value}, 32, "config.json")


@pytest.mark.parametrize("value", [0, 31, [1, 2], None])
def test_token_ids_within_the_vocabulary_pass(value: object) -> None:
    check_token_ids({"eos_token_id": value, "bos_token_id": 0}, 32, "config.json")
