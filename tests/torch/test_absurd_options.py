"""Options that can't be right are refused before anything is converted, built or loaded."""

from __future__ import annotations

import json

import pytest
from text_models import byte_level
from tiny import SMALL

from bestiary import LLM, BestiaryError
from bestiary.core.cli.main import invoke


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("absurd")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SMALL}
    (directory / "config.json").write_text(json.dumps(config))
    byte_level().backend.save(str(directory / "tokenizer.json"))
    return directory


@pytest.mark.parametrize(
    ("status", "code", "option"),
    [
        (2, "E-USE-BYTES", ["--memory-limit", "lots"]),
        (78, "E-DEVICE", ["--device", "abacus"]),
        (78, "E-BUILD-OPTION", ["--block-size", "7777777"]),
        (78, "E-BUILD-OPTION", ["--max-batch-size", "0"]),
        (78, "E-BUILD-OPTION", ["--max-batch-size", "1000000000000"]),
        (78, "E-BUILD-OPTION", ["--max-num-tokens", "1000000000000"]),
        (78, "E-BUILD-QUANTIZATION", ["--quantize", "none-such"]),
        (78, "E-KERNEL-NAME", ["--kernel", "linear=none-such"]),
        (2, "E-REQ-TEMPERATURE", ["--temperature", "-1"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_run_refuses_it_before_the_conversion(model, tmp_path, monkeypatch, capsys, status, code, option):
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    assert invoke(["run", str(model), "hello", *option]) == status
    assert code in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_run_refuses_a_system_message_without_a_template_before_the_load(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("bestiary.core.cli.run.prepare", lambda *a, **k: model, raising=False)
    monkeypatch.setattr("bestiary.core.prepare.prepare", lambda *a, **k: model)
    monkeypatch.setattr("bestiary.core.llm.open_engine", lambda *a, **k: pytest.fail("it was loaded"))
    assert invoke(["run", str(model), "hello", "--raw", "--system", "Be brief."]) == 2
    assert "E-CLI-SYSTEM" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "option"),
    [
        ("E-RUN-POLICY", {"capacity": "all-at-once"}),
        ("E-RUN-POLICY", {"queue_order": ["priority"]}),
        ("E-USE-SECONDS", {"step_timeout": "soon"}),
        ("E-USE-SECONDS", {"start_timeout": -1}),
        ("E-USE-BYTES", {"memory_limit": "lots"}),
        ("E-USE-SEED", {"seed": 1.5}),
        ("E-KV-MEMORY", {"kv_cache_memory": -1}),
        ("E-KV-MEMORY", {"kv_cache_memory": "half"}),
    ],
)
def test_an_llm_refuses_it_before_the_load(model, monkeypatch, code, option):
    for name in ("prepare.prepare", "engine.load.load_engine", "engine.load.random_engine"):
        monkeypatch.setattr(f"bestiary.core.{name}", lambda *a, **k: pytest.fail("it was loaded"))
    with pytest.raises(BestiaryError, match=code):
        LLM(model, weights="random", tokenizer=None, **option)


def test_generate_refuses_a_capacity_before_the_load(model, monkeypatch, capsys):
    monkeypatch.setattr("bestiary.core.cli.answer.require_engine", lambda *a: model)
    monkeypatch.setattr("bestiary.core.llm.open_engine", lambda *a, **k: pytest.fail("it was loaded"))
    assert invoke(["generate", str(model), "hello", "--capacity", "foo"]) == 78
    assert "E-RUN-POLICY" in capsys.readouterr().err
