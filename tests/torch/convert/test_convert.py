"""Conversion and export of a tiny Llama: bit for bit, the same every time, with every dtype."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bestiary import BestiaryError, DataError, OutputError, UsageError
from bestiary.converters.convert import convert
from bestiary.converters.export import export
from bestiary.core.checkpoint import Checkpoint, verify
from bestiary.core.plugins import PluginHost

Llama = Callable[..., Path]


def loaded(directory: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in sorted(directory.glob("*.safetensors")) for name, value in load_file(path).items()}


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value.reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8)), name


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_export_gives_the_source_back(
    dtype: torch.dtype, tied: bool, shards: int, llama: Llama, host: PluginHost, tmp_path: Path
) -> None:
    source = llama(dtype=dtype, tied=tied, shards=shards)
    report = convert(source, tmp_path / "ckpt", host=host)
    assert (report.dtype, report.tensors) == (str(dtype).removeprefix("torch."), 20 if tied else 21)
    export(tmp_path / "ckpt", tmp_path / "back", host=host)
    assert_same_bits(loaded(source), loaded(tmp_path / "back"))
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )


def test_mixed_dtypes_stay_as_they_are(llama: Llama, host: PluginHost, tmp_path: Path) -> None:
    source = llama(
        dtype=torch.bfloat16, weights={"model.norm.weight": torch.ones(16), "lm_head.weight": torch.ones(32, 16).half()}
    )
    assert convert(source, tmp_path / "ckpt", host=host).dtype == "bfloat16"
    export(tmp_path / "ckpt", tmp_path / "back", host=host)
    assert_same_bits(loaded(source), loaded(tmp_path / "back"))


def test_sharded_output_gives_the_same_tensors(
    llama: Llama, host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bestiary.converters.write.shards.__defaults__", (3000,))
    source = llama()
    convert(source, tmp_path / "ckpt", host=host)
    assert len(list((tmp_path / "ckpt").glob("weights-*.safetensors"))) > 2
    verify(tmp_path / "ckpt", host=host)
    export(tmp_path / "ckpt", tmp_path / "back", host=host)
    assert (tmp_path / "back" / "model.safetensors.index.json").exists()
    assert_same_bits(loaded(source), loaded(tmp_path / "back"))
    convert(tmp_path / "back", tmp_path / "again", host=host)


def test_two_conversions_are_identical(llama: Llama, host: PluginHost, tmp_path: Path) -> None:
    source = llama(shards=2)
    for name in ("one", "two"):
        convert(source, tmp_path / name, host=host, dtype="bfloat16")
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_manifest_says_what_and_from_where(llama: Llama, host: PluginHost, tmp_path: Path) -> None:
    source = llama(surprise=1)
    report = convert(source, tmp_path / "ckpt", host=host)
    manifest = Checkpoint.open(tmp_path / "ckpt").manifest
    assert (manifest.model, manifest.architecture, manifest.dtype) == ("llama", "LlamaForCausalLM", "float32")
    assert manifest.config == json.loads((source / "config.json").read_text())
    assert manifest.provenance.plugin.distribution == "bestiary-llama"
    for name, digest in manifest.provenance.sources.items():
        content = (source / name).read_bytes()
        assert (digest.size, digest.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert set(manifest.provenance.sources) == {"config.json", "model.safetensors"}
    assert report.ignored_keys == ("surprise",)
    assert set(Checkpoint.open(tmp_path / "ckpt").weights.entries) >= {
        "embed.weight",
        "layers.1.mlp.down.weight",
        "head.weight",
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_chosen_dtype_casts_and_export_says_so(dtype: str, llama: Llama, host: PluginHost, tmp_path: Path) -> None:
    source = llama(dtype=torch.float32, torch_dtype="float32")
    convert(source, tmp_path / "ckpt", host=host, dtype=dtype)
    export(tmp_path / "ckpt", tmp_path / "back", host=host)
    wanted = {name: value.to(getattr(torch, dtype)) for name, value in loaded(source).items()}
    assert_same_bits(wanted, loaded(tmp_path / "back"))
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == dtype


def test_overflow_to_float16_is_refused_with_count_and_value(llama: Llama, host: PluginHost, tmp_path: Path) -> None:
    norm = torch.ones(16)
    norm[3], norm[5] = 7e4, -1e6
    source = llama(weights={"model.norm.weight": norm})
    with pytest.raises(DataError, match=r"tensor model.norm.weight: has 2 values beyond float16's range; found 1e\+06"):
        convert(source, tmp_path / "ckpt", host=host, dtype="float16")
    convert(source, tmp_path / "ckpt", host=host, dtype="bfloat16")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nan_and_infinity_are_refused_with_place(
    value: float, dtype: torch.dtype, llama: Llama, host: PluginHost, tmp_path: Path
) -> None:
    bad = torch.zeros(24, 16, dtype=dtype)
    bad[5, 7] = bad[6, 0] = value
    source = llama(dtype=dtype, weights={"model.layers.1.mlp.up_proj.weight": bad})
    place = r"^model.safetensors, tensor model.layers.1.mlp.up_proj.weight \(parameter layers.1.mlp.up.weight\): "
    with pytest.raises(DataError, match=place + r"has 2 values that are NaN or infinite; found .* at \[5, 7\]"):
        convert(source, tmp_path / "ckpt", host=host)
    assert not (tmp_path / "ckpt").exists()
    convert(source, tmp_path / "ckpt", host=host, allow_nonfinite=True)


def test_large_finite_values_whose_sum_overflows_pass(llama: Llama, host: PluginHost, tmp_path: Path) -> None:
    convert(llama(weights={"model.norm.weight": torch.full((16,), 3e38)}), tmp_path / "ckpt", host=host)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn], ids=str)
def test_dtypes_without_a_rule_are_refused(dtype: torch.dtype, llama: Llama, host: PluginHost, tmp_path: Path) -> None:
    source = llama(weights={"model.norm.weight": torch.ones(16).to(dtype)})
    with pytest.raises(DataError, match=r"tensor model\.norm\.weight: has a dtype"):
        convert(source, tmp_path / "ckpt", host=host)
    if dtype == torch.float64:
        convert(source, tmp_path / "ckpt", host=host, dtype="float32")
    else:
        with pytest.raises(DataError, match=r"tensor model\.norm\.weight: has a dtype"):
            convert(source, tmp_path / "ckpt", host=host, dtype="float32")


def test_an_unknown_dtype_option_is_a_usage_error(llama: Llama, host: PluginHost, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="option dtype"):
        convert(llama(), tmp_path / "ckpt", host=host, dtype="int8")


def test_a_tied_head_in_the_file_must_equal_the_embedding(llama: Llama, host: PluginHost, tmp_path: Path) -> None:
    from safetensors.torch import load_file as load

    embedding = load(llama(tied=True) / "model.safetensors")["model.embed_tokens.weight"]
    convert(llama(tied=True, weights={"lm_head.weight": embedding.clone()}), tmp_path / "same", host=host)
    assert "head.weight" not in Checkpoint.open(tmp_path / "same").weights.entries
    with pytest.raises(DataError, match=r"tensor lm_head.weight: differs from model.embed_tokens.weight"):
        convert(llama(tied=True, weights={"lm_head.weight": embedding + 1}), tmp_path / "other", host=host)


TOKENIZER: dict[str, Any] = {
    "tokenizer.json": {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
    "tokenizer_config.json": {"chat_template": "{{ x }}"},
    "special_tokens_map.json": {},
    "generation_config.json": {"eos_token_id": 2, "temperature": 0.6},
}


def test_tokenizer_files_travel_unchanged_both_ways(llama: Llama, host: PluginHost, tmp_path: Path) -> None:
    source = llama()
    for name, value in TOKENIZER.items():
        (source / name).write_text(json.dumps(value, indent=7))
    (source / "chat_template.jinja").write_text("{# not JSON #}")
    (source / "modeling_evil.py").write_text("raise SystemExit")
    convert(source, tmp_path / "ckpt", host=host)
    export(tmp_path / "ckpt", tmp_path / "back", host=host)
    for name in (*TOKENIZER, "chat_template.jinja"):
        assert (
            (tmp_path / "ckpt" / name).read_bytes()
            == (tmp_path / "back" / name).read_bytes()
            == (source / name).read_bytes()
        )
    assert not (tmp_path / "ckpt" / "modeling_evil.py").exists()


@pytest.mark.parametrize("where", ["source", "source/inside", "."])
def test_a_target_that_touches_the_source_is_refused(
    where: str, llama: Llama, host: PluginHost, tmp_path: Path
) -> None:
    source = llama()
    before = {p.name for p in source.iterdir()}
    with pytest.raises(OutputError):
        convert(source, tmp_path / where, host=host, overwrite=True)
    assert {p.name for p in source.iterdir()} == before


def test_an_existing_target_is_refused_before_the_source_is_read(host: PluginHost, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    with pytest.raises(OutputError):
        convert(tmp_path / "no such source", tmp_path / "out", host=host)


def test_a_disk_that_is_too_small_is_refused_first(
    llama: Llama, host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(OutputError, match="does not fit on the disk; found 100 bytes free"):
        convert(llama(), tmp_path / "ckpt", host=host)
    assert {p.name for p in tmp_path.iterdir()} == {"source"}


class Recorder:
    def __init__(self) -> None:
        self.steps: dict[str, list[int | None]] = {}

    def start(self, step: str, total: int | None, unit: str) -> None:
        self.now = self.steps[step] = [total, 0]

    def advance(self, amount: int) -> None:
        self.now[1] = (self.now[1] or 0) + amount

    def finish(self, note: str) -> None:
        pass


def test_progress_counts_every_byte(llama: Llama, host: PluginHost, tmp_path: Path) -> None:
    progress = Recorder()
    report = convert(llama(), tmp_path / "ckpt", host=host, progress=progress)
    assert progress.steps["convert"] == [report.bytes, report.bytes]
    verify(tmp_path / "ckpt", host=host, progress=progress)
    assert all(total is None or total == done for total, done in progress.steps.values())


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


SPOILED: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "bit of data flipped": (
        lambda d: _flip(d / "weights-00001.safetensors", -1),
        "weights-00001.safetensors: differs from the manifest",
        65,
    ),
    "shard cut": (
        lambda d: (d / "weights-00001.safetensors").write_bytes(b"x"),
        "weights-00001.safetensors: differs",
        65,
    ),
    "shard gone": (lambda d: (d / "weights-00001.safetensors").unlink(), "weights-00001.safetensors", 66),
    "newer format": (lambda d: _edit(d / "bestiary.json", format=99), "written by a newer bestiary; found 99", 65),
    "field missing": (lambda d: (d / "bestiary.json").write_text('{"format": 1}'), "field model: is wrong", 65),
    "unknown field": (lambda d: _edit(d / "bestiary.json", more=1), "field more: is wrong", 65),
    "manifest leaves the directory": (
        lambda d: _edit(d / "bestiary.json", files={"../x": {"size": 0, "sha256": "0" * 64}}),
        "outside",
        65,
    ),
    "other config": (
        lambda d: _edit(
            d / "bestiary.json", config={**json.loads((d / "bestiary.json").read_text())["config"], "vocab_size": 33}
        ),
        r"tensor embed.weight: has a wrong shape; found \[32, 16\], expected \[33, 16\] from vocab_size=33",
        65,
    ),
    "other model": (lambda d: _edit(d / "bestiary.json", model="none"), "none", 69),
}


@pytest.mark.parametrize(("spoil", "text", "status"), SPOILED.values(), ids=SPOILED.keys())
def test_verify_finds_damage(
    spoil: Callable[[Path], object], text: str, status: int, llama: Llama, host: PluginHost, tmp_path: Path
) -> None:
    convert(llama(), tmp_path / "ckpt", host=host)
    assert verify(tmp_path / "ckpt", host=host).tensors == 21
    spoil(tmp_path / "ckpt")
    with pytest.raises(BestiaryError, match=text) as error:
        verify(tmp_path / "ckpt", host=host)
    assert error.value.exit_status == status


def test_an_engine_is_verified_by_the_manifest_in_it(llama: Llama, host: PluginHost, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    convert(llama(), engine, host=host)
    manifest = json.loads((engine / "bestiary.json").read_text())
    (engine / "bestiary.json").unlink()
    (engine / "engine.json").write_text(json.dumps({"checkpoint": manifest}))
    assert verify(engine, host=host).kind == "engine"
    _flip(engine / "weights-00001.safetensors", -1)
    with pytest.raises(DataError, match=r"weights-00001\.safetensors: differs"):
        verify(engine, host=host)


def test_a_hub_snapshot_of_links_is_converted(llama: Llama, host: PluginHost, tmp_path: Path) -> None:
    source, cache = llama(shards=2), tmp_path / "models--someone--tiny"
    snapshot = cache / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        path.rename(cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    convert(snapshot, tmp_path / "ckpt", host=host)
    assert verify(tmp_path / "ckpt", host=host).tensors == 21
