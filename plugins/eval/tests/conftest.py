"""Tiny engines with a tokenizer, and the command as a user calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from text_models import byte_level
from tiny import make_hf

TEMPLATE = "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
LENGTH = 192


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``one.hf``, a random Llama in fp32; engines ``one`` of it, ``twin`` of it, and ``other`` of other weights."""
    from bestiary.converters.convert import convert
    from bestiary.core.engine.build import build
    from bestiary.core.engine.options import BuildOptions
    from bestiary.core.plugins import PluginHost

    folder, tokenizer, host = tmp_path_factory.mktemp("models"), byte_level(), PluginHost.load()
    options = BuildOptions(device="cpu", max_batch_size=8, max_num_tokens=256, max_seq_len=LENGTH, block_size=8)
    for name in ("one", "other"):
        source = folder / f"{name}.hf"
        model = make_hf(source, vocab_size=tokenizer.vocab_size + 6, num_hidden_layers=2, max_position_embeddings=512)
        if name == "other":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_(0, float(parameter.std()))
            model.save_pretrained(source)
        tokenizer.backend.save(str(source / "tokenizer.json"))
        settings = {"bos_token": "<bos>", "eos_token": "<end>", "tokenizer_class": "PreTrainedTokenizerFast"}
        (source / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
        convert(source, folder / f"{name}.ckpt", host=host)
        build(folder / f"{name}.ckpt", folder / name, host=host, options=options)
    build(folder / "one.ckpt", folder / "twin", host=host, options=options)
    return folder


@pytest.fixture
def call(
    models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``bestiary eval`` with arguments, in the folder of the models; status, stdout, stderr."""
    from bestiary.core.cli.main import invoke

    monkeypatch.chdir(models)
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")

    def called(*arguments: Any) -> tuple[int, str, str]:
        capfd.readouterr()
        status = invoke(["eval", *map(str, arguments)])
        out, err = capfd.readouterr()
        return status, out, err

    return called


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Twelve questions whose choices are as long as one another, or a random model would always take the shortest."""
    path = tmp_path / "texts.jsonl"
    rows = [
        {"context": f"The number after {n} is", "choices": [chr(first + n) + "k" for first in b"agn"], "gold": n % 3}
        for n in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
