"""Spoiled Hugging Face directories: one sentence each, the right exit status, nothing at the target, nothing opened outside."""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bestiary import BestiaryError
from bestiary.converters.convert import convert
from bestiary.converters.write import check_place
from bestiary.core.errors import OutputError
from bestiary.core.plugins import PluginHost

Spoil = Callable[[Path], object]
SHARD = "model-00001-of-00003.safetensors"
INDEX = "model.safetensors.index.json"

opened: list[str] = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)


def config(**changes: Any) -> Spoil:
    def spoil(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def text(name: str, content: str | bytes) -> Spoil:
    return lambda directory: (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Spoil:
    """Change or remove a tensor of whichever shard has it."""

    def spoil(directory: Path) -> None:
        index = json.loads((directory / INDEX).read_text())
        shard = directory / index["weight_map"][name]
        tensors = load_file(shard)
        changed = change(tensors.pop(name).clone())
        if changed is None:
            del index["weight_map"][name]
            (directory / INDEX).write_text(json.dumps(index))
        save_file(tensors | ({} if changed is None else {name: changed}), shard)

    return spoil


def add(name: str, *shape: int) -> Spoil:
    def spoil(directory: Path) -> None:
        index = json.loads((directory / INDEX).read_text())
        index["weight_map"][name] = SHARD
        (directory / INDEX).write_text(json.dumps(index))
        save_file({**load_file(directory / SHARD), name: torch.zeros(*shape)}, directory / SHARD)

    return spoil


def index(change: Callable[[dict[str, str]], dict[str, Any]]) -> Spoil:
    def spoil(directory: Path) -> None:
        places = json.loads((directory / INDEX).read_text())["weight_map"]
        (directory / INDEX).write_text(json.dumps({"weight_map": change(places)}))

    return spoil


def replace_shard(make: Callable[[Path], object]) -> Spoil:
    def spoil(directory: Path) -> None:
        (directory / SHARD).unlink()
        make(directory / SHARD)

    return spoil


def only(name: str, content: bytes) -> Spoil:
    def spoil(directory: Path) -> None:
        for path in directory.glob("*.safetensors*"):
            path.unlink()
        (directory / name).write_bytes(content)

    return spoil


def cut(directory: Path) -> None:
    content = (directory / SHARD).read_bytes()
    (directory / SHARD).write_bytes(content[:-1])


UP = "model.layers.1.mlp.up_proj.weight"
Q = "model.layers.0.self_attn.q_proj.weight"
OUTSIDE = ["../x", "/etc/passwd", "a/../../b", "C:\\x", "\\\\host\\x", "", "."]

CASES: dict[str, tuple[Spoil, str, int]] = {
    "config missing": (lambda d: (d / "config.json").unlink(), "config.json: is not there", 78),
    "config empty": (text("config.json", ""), "config.json: is empty", 78),
    "config no JSON": (text("config.json", "{'a': 1}"), "config.json: is not JSON", 78),
    "config a list": (text("config.json", "[]"), "config.json: is not a JSON object", 78),
    "config of 10 MB": (text("config.json", '{"a": "' + "x" * 10_000_000 + '"}'), "config.json: is too large", 78),
    "config with NaN": (
        text("config.json", '{"hidden_size": NaN}'),
        "config.json: holds a number that JSON does not have",
        78,
    ),
    "config with Infinity": (text("config.json", '{"hidden_size": Infinity}'), "config.json: holds a number", 78),
    "config nested deeply": (text("config.json", '{"a":' * 50_000), "config.json: is nested too deeply", 78),
    "architecture unknown": (
        config(architectures=["FooForCausalLM"], model_type="foo"),
        r"^config\.json, field architectures: .*found 'FooForCausalLM', expected .*LlamaForCausalLM.*may be called bestiary-foo",
        69,
    ),
    "architectures missing": (config(architectures=None), "field architectures", 78),
    "architectures two": (config(architectures=["A", "B"]), "field architectures", 78),
    "hidden_size a string": (config(hidden_size="16"), r"field hidden_size: .*found '16' \(str\)", 78),
    "heads do not divide": (config(num_attention_heads=3), r"field num_attention_heads: .*16 = 5 \* 3 \+ 1", 78),
    "kv heads do not divide": (config(num_key_value_heads=3), r"field num_key_value_heads: .*4 = 1 \* 3 \+ 1", 78),
    "head_dim odd": (config(head_dim=5), "field head_dim: is odd", 78),
    "head_dim of another model": (
        config(head_dim=8),
        r"q_proj.weight: has a wrong shape; found \[16, 16\], expected \[32, 16\]",
        65,
    ),
    "a billion layers": (config(num_hidden_layers=10**9), "field num_hidden_layers", 78),
    "more layers than tensors": (
        config(num_hidden_layers=4000),
        "num_hidden_layers: is more than source can fill; found 4000",
        65,
    ),
    "one layer too many": (config(num_hidden_layers=3), "tensor model.layers.2.*is missing", 65),
    "one layer too few": (
        config(num_hidden_layers=1),
        r"tensor model.layers.1.* is used by no parameter of the model \(9 such",
        65,
    ),
    "vocabulary larger": (
        config(vocab_size=33),
        r"embed_tokens.weight: .*found \[32, 16\], expected \[33, 16\] from vocab_size=33",
        65,
    ),
    "vocabulary smaller": (config(vocab_size=31), r"expected \[31, 16\]", 65),
    "bias that is not there": (config(attention_bias=True), "q_proj.bias: is missing", 65),
    "eos beyond the vocabulary": (
        config(eos_token_id=32),
        "field eos_token_id: is no row of the embedding; found 32",
        78,
    ),
    "eos negative": (config(eos_token_id=-1), "field eos_token_id", 78),
    "eos list empty": (config(eos_token_id=[]), "field eos_token_id: is empty", 78),
    "eos twice": (config(eos_token_id=[2, 2]), "field eos_token_id: .*twice", 78),
    "eos a string": (config(eos_token_id="2"), "field eos_token_id: is not a token id", 78),
    "eos of generation": (
        text("generation_config.json", '{"eos_token_id": 99}'),
        "generation_config.json, field eos_token_id",
        78,
    ),
    "generation config no JSON": (text("generation_config.json", "{"), "generation_config.json: is not JSON", 78),
    "generation config hot": (
        text("generation_config.json", '{"temperature": "hot"}'),
        r"generation_config.json, temperature: .*'hot'",
        78,
    ),
    "generation config top_p": (text("generation_config.json", '{"top_p": 7}'), "generation_config.json, top_p", 78),
    "tokenizer no JSON": (text("tokenizer.json", "{"), "tokenizer.json: is not JSON", 65),
    "tokenizer of nothing": (text("tokenizer.json", "{}"), "tokenizer.json: not a tokenizer", 65),
    "quantized": (config(quantization_config={"quant_method": "gptq"}), "field quantization_config: .*'gptq'", 78),
    "rope unknown": (config(rope_scaling={"type": "longrope", "factor": 2}), "field rope_scaling.type", 78),
    "tensor missing": (
        tensor(UP, lambda t: None),
        rf"model-00001-of-00003.safetensors to .* \(3 files\), tensor {UP}: is missing, and parameter layers.1.mlp.up.weight",
        65,
    ),
    "tensor transposed": (
        tensor(UP, lambda t: t.t().contiguous()),
        f"tensor {UP}: has a wrong shape.*it looks transposed",
        65,
    ),
    "tensor too short": (
        tensor(UP, lambda t: t[:-1].clone()),
        rf"tensor {UP}: .*found \[23, 16\], expected \[24, 16\] from .*intermediate_size=24",
        65,
    ),
    "tensor unexpected": (add("model.extra.weight", 3), "tensor model.extra.weight: is used by no parameter", 65),
    "bias unexpected": (
        add("model.layers.0.self_attn.q_proj.bias", 16),
        "q_proj.bias: is used by no parameter.*attention_bias",
        65,
    ),
    "shard cut": (cut, f"{SHARD}.*cut short", 65),
    "shard missing": (lambda d: (d / SHARD).unlink(), f"1 of 3 shards are missing: {SHARD}", 66),
    "shard empty": (text(SHARD, b""), f"{SHARD}: is cut short; found 0 bytes", 65),
    "shard a git-lfs pointer": (
        text(SHARD, "version https://git-lfs.github.com/spec/v1\n"),
        f"{SHARD}: .*git lfs pull",
        65,
    ),
    "shard a web page": (text(SHARD, "<!DOCTYPE html>"), f"{SHARD}: .*error page", 65),
    "shard with a huge header": (text(SHARD, struct.pack("<Q", 1 << 40)), f"{SHARD}: has an absurd header length", 65),
    "shard a FIFO": (replace_shard(os.mkfifo), f"{SHARD}: is not a file of bytes; found a FIFO", 65),
    "shard a directory": (replace_shard(Path.mkdir), f"{SHARD}: is not a file of bytes; found a directory", 65),
    "shard a device": (replace_shard(lambda p: p.symlink_to("/dev/zero")), f"{SHARD}: is a link that leaves", 65),
    "shard a loop of links": (replace_shard(lambda p: p.symlink_to(p.name)), f"{SHARD}: is a loop of links", 65),
    "shard a link outside": (
        replace_shard(lambda p: p.symlink_to("/etc/passwd")),
        f"{SHARD}: is a link that leaves",
        65,
    ),
    "index no JSON": (text(INDEX, "{"), f"{INDEX}: is not JSON", 65),
    "index with a key twice": (text(INDEX, '{"weight_map": {"a": "x", "a": "x"}}'), f"{INDEX}: has a key twice", 65),
    "index without a map": (text(INDEX, "{}"), f"{INDEX}: has no weight_map", 65),
    "index names a number": (index(lambda places: {**places, Q: 3}), f"{INDEX}, weight_map: names a file outside", 65),
    "tensor of the index not in its shard": (
        index(lambda places: {**places, "ghost": SHARD}),
        f"{SHARD}, tensor ghost: is in {INDEX} but not",
        65,
    ),
    "tensor of a shard not in the index": (
        index(lambda p: {k: v for k, v in p.items() if k != Q}),
        f"tensor {Q}: is in the shard, and .* nowhere",
        65,
    ),
    "only a pickle": (
        only("pytorch_model.bin", b"\x80\x02c"),
        "pytorch_model.bin: is of a format that can run code.*safetensors",
        66,
    ),
    "no weights": (only("README.md", b"x"), "holds no weights", 66),
    **{f"index names {name!r}": (index(lambda p, n=name: {**p, Q: n}), "names a file outside", 65) for name in OUTSIDE},  # type: ignore[misc]
}


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[None]:
    opened.clear()
    yield
    forbidden = ("/etc/passwd", "/dev/zero", str(tmp_path / "x"), str(tmp_path.parent / "b"))
    assert not [name for name in opened if name in forbidden or "\\" in name or ".." in name]


@pytest.mark.usefixtures("watch")
@pytest.mark.parametrize(("spoil", "message", "status"), CASES.values(), ids=CASES.keys())
def test_spoiled_directory(
    spoil: Spoil, message: str, status: int, llama: Callable[..., Path], host: PluginHost, tmp_path: Path
) -> None:
    source = llama(shards=3)
    spoil(source)
    with pytest.raises(BestiaryError, match=message) as error:
        convert(source, tmp_path / "ckpt", host=host)
    assert error.value.exit_status == status
    assert str(tmp_path) not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_missing_source_is_missing_input(host: PluginHost, tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="gone: is not there") as error:
        convert(tmp_path / "gone", tmp_path / "ckpt", host=host)
    assert error.value.exit_status == 66


def test_a_target_in_around_or_at_the_source_says_which(
    llama: Callable[..., Path], host: PluginHost, tmp_path: Path
) -> None:
    source = llama()
    for target, said in (
        (source, "source: is the input itself"),
        (source / "sub", "sub: lies in the input, source"),
        (tmp_path, f"{tmp_path.name}: holds the input, source"),
    ):
        with pytest.raises(OutputError, match=f"^{said}"):
            check_place(source, target)
    with pytest.raises(OutputError, match="lies in the input"):
        convert(source, source / "sub", host=host)
    assert not (source / "sub").exists()


def test_a_file_of_no_known_format_names_the_known_ones(host: PluginHost, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BestiaryError, match=r"recognized by no reader.*gguf"):
        convert(tmp_path / "notes.txt", tmp_path / "ckpt", host=host)


def test_code_in_the_directory_is_not_run(llama: Callable[..., Path], host: PluginHost, tmp_path: Path) -> None:
    source = llama(auto_map={"AutoModel": "evil.Model"}, trust_remote_code=True, custom_pipelines={"x": {}})
    (source / "evil.py").write_text("raise SystemExit('run')")
    before = set(sys.modules)
    report = convert(source, tmp_path / "ckpt", host=host)
    assert report.ignored_keys == ("auto_map", "custom_pipelines", "trust_remote_code")
    assert not [name for name in set(sys.modules) - before if "evil" in name or name.startswith("transformers")]


def test_no_module_of_ours_can_unpickle() -> None:
    root = Path(__file__).parents[3]
    sources = [*(root / "converters").rglob("*.py"), *(root / "core" / "checkpoint").rglob("*.py")]
    assert len(sources) > 10
    assert not [path for path in sources if re.search(r"import pickle|torch\.load\b|allow_pickle", path.read_text())]
