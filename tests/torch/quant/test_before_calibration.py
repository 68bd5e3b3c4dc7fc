"""What is looked at before a calibration's long work, and what is said of a disk that is full and of a text that is small."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tiny import make_hf

from bestiary import BestiaryError
from bestiary.converters import quantize as room
from bestiary.converters.convert import convert
from bestiary.converters.quantize import Calibration, quantize
from bestiary.core.checkpoint.checkpoint import Checkpoint
from bestiary.core.errors import OutputError, ReadWriteError
from bestiary.core.plugins import PluginHost

HOST = PluginHost.load()
GPTQ = "int8:quantizer=gptq"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_hf(folder / "hf", num_hidden_layers=1)
    convert(folder / "hf", folder / "ckpt", host=HOST)
    lines = [json.dumps({"tokens": [(7 * i + start) % 90 for i in range(60)]}) for start in range(4)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    return folder


def run(models: Path, target: Path, file: Path | None = None, rules: str = GPTQ, **options: Any) -> Any:
    text = Calibration(file or models / "text.jsonl")
    return quantize(models / "ckpt", target, host=HOST, rules=rules, calibration=text, **options)


def test_a_disk_that_fills_up_while_calibrating_is_a_write_error(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(room, "_spool", full)
    with pytest.raises(ReadWriteError, match=r"^out: writing failed: No space left on device .*\[E-OUT-WRITE\]$"):
        run(models, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_for_the_result_and_the_calibrated_weights_is_refused_first(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run(models, tmp_path / "out")
    made = Checkpoint.open(tmp_path / "out")
    parts = [e.nbytes for name, e in made.weights.entries.items() if name.endswith((".codes", ".scale"))]
    needed = report.bytes + sum(parts)
    usage = type("Usage", (), {"free": needed - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with monkeypatch.context() as patch:
        patch.setattr(room, "_calibrate", lambda *_: pytest.fail("it calibrates"))
        with pytest.raises(OutputError, match=f"found {needed - 1} bytes free, expected {needed} ") as refused:
            run(models, tmp_path / "other")
    assert refused.value.code == "E-OUT-SPACE"
    usage.free = needed
    run(models, tmp_path / "other")
    usage.free = report.bytes
    quantize(models / "ckpt", tmp_path / "plain", host=HOST, rules="int8")


def test_the_calibration_file_is_read_before_digests_are_verified(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "verify", lambda *_, **__: pytest.fail("it verifies"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "text.txt").write_text("Call me Ishmael.")
    for name, problem in (
        ("none.txt", "none.txt: can't be read: No such file"),
        ("binary.txt", "binary.txt: is not a text"),
        ("empty.jsonl", "empty.jsonl: has no line"),
        ("text.txt", r"has no tokenizer \(calibrate with a \.jsonl file that has token ids, .*\) \["),
        ("/", r"^/: can't be read: Is a directory"),
    ):
        with pytest.raises(BestiaryError, match=problem):
            run(models, tmp_path / "out", tmp_path / name)


@pytest.mark.parametrize(
    ("lengths", "rules", "said"),
    [
        ([1], GPTQ, "1 token in 1 sequence: few to calibrate on, where weights have up to 80 columns"),
        ([24, 55], GPTQ, "79 tokens in 2 sequences: few to calibrate on, where weights have up to 80 columns"),
        ([24, 55], f"{GPTQ}, *.down=int8", None),
        ([25, 55], GPTQ, None),
        ([60], "int8", "60 tokens in 1 sequence: few to calibrate on"),
    ],
)
def test_few_tokens_are_a_warning(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, lengths: list[int], rules: str, said: str | None
) -> None:
    file = tmp_path / "few.jsonl"
    file.write_text("\n".join(json.dumps({"tokens": list(range(length))}) for length in lengths))
    with caplog.at_level(logging.WARNING, "bestiary"):
        run(models, tmp_path / "out", file, rules, kv_dtype="int8")
    assert [record.getMessage() for record in caplog.records] == ([] if said is None else [f"few.jsonl: {said}"])


@pytest.mark.parametrize("rules", ["none", "int8, *=none"])
def test_rules_that_quantize_nothing_are_a_warning(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, rules: str
) -> None:
    said = f"quantization '{rules}': quantizes no weight; all stay as they are"
    with caplog.at_level(logging.WARNING, "bestiary"):
        quantize(models / "ckpt", tmp_path / "out", host=HOST, rules=rules)
        convert(models / "hf", tmp_path / "converted", host=HOST, quantize=rules)
        quantize(models / "ckpt", tmp_path / "other", host=HOST, rules="int8, *.up=none")
    assert [record.getMessage() for record in caplog.records] == [said, said]
