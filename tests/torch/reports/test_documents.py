"""What ``--json`` prints keeps to docs/schemas: each kind of document as its command makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from json_schema import violations
from openai_server import OpenAIServer
from text_models import byte_level
from tiny import make_engine

from bestiary.core.cli.main import invoke
from bestiary.core.plugins import PluginHost
from bestiary.core.reports.schemas import kinds

SCHEMAS = Path(__file__).resolve().parents[3] / "docs" / "schemas"

_SHORT = ["-n", "3", "--warmup", "1", "--repeats", "2", "--output", "3", "--json", "-"]
#: kind → commands; SERVER and the files are put in, and a status that tells of a finding is none of a failure.
COMMANDS: dict[str, list[list[str]]] = {
    "bench.latency": [["bench", "latency", "engine", *_SHORT, "--input", "4", "--slo", "ttft=1ms"]],
    "bench.throughput": [["bench", "throughput", "engine", *_SHORT, "--compare", "SERVER", "--input", "4-8"]],
    "bench.serve": [
        ["bench", "serve", "engine", *_SHORT, "--rate", "500", "--slo", "itl=1s"],
        ["bench", "serve", "SERVER", *_SHORT, "--concurrency", "2"],
    ],
    "diff": [
        ["diff", "engine", "--against", "ckpt", "--tokens", "6", "--json"],
        ["-p", "planted", "diff", "engine", "--against", "ckpt", "--tokens", "6", "--kernel", "rms_norm=wrong_not_a_number",
         "--json"],
    ],
    "doctor": [["doctor", "--no-self-test", "--json"], ["doctor", "ckpt", "--no-self-test", "--json"]],
    "quality": [["quality", "engine", "--against", "ckpt", "--text", "text.txt", "--json", "-"]],
    "quantize": [
        ["quantize", "ckpt", "int4", "--method", "int4:group=32", "--json"],
        ["quantize", "ckpt", "scales", "--calibration", "text.txt", "--kv-dtype", "int8", "--json"],
    ],
    "quantize.methods": [["quantize", "--list", "--json"]],
    "trace": [["trace", "engine", "-n", "2", "--json"], ["trace", "engine", "-n", "2", "--all", "--json"]],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("documents")
    make_engine(made, PluginHost.load(), vocab_size=272)
    for directory in ("engine", "ckpt"):
        byte_level().backend.save(str(made / directory / "tokenizer.json"))
    (made / "text.txt").write_text("A text that is long enough to say something of a model, if only a little. " * 4)
    return made


def schema(kind: str) -> dict[str, Any]:
    (found,) = SCHEMAS.glob(f"{kind}-*.json")
    document: dict[str, Any] = json.loads(found.read_text())
    return document


def test_there_is_a_command_of_every_kind() -> None:
    assert sorted(COMMANDS) == sorted(kind.schema_name for kind in kinds())


@pytest.mark.parametrize(("kind", "number"), [(kind, n) for kind, all in COMMANDS.items() for n in range(len(all))])
def test_what_a_command_prints_is_what_its_schema_says(
    kind: str, number: int, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BESTIARY_HOME", str(folder / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Some requests fail, so that the report tells of these too.
    with OpenAIServer(faults={2: "429", 4: "cut"}) as server:
        status = invoke([server.url if word == "SERVER" else word for word in COMMANDS[kind][number]])
    out, err = capsys.readouterr()
    assert status in (0, 70), err
    document = json.loads(out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert violations(document, schema(kind)) == []
    if "rms_norm=wrong_not_a_number" in COMMANDS[kind][number]:
        assert document["places"][1]["steps"][0]["own"]["relative"] is None, "infinite"


def test_the_check_itself_is_strict() -> None:
    """What each document has one thing too many, too few, or of another type of, is no document of its kind."""
    rule = {
        "type": "object",
        "additionalProperties": False,
        "required": ["n"],
        "properties": {
            "n": {"type": ["number", "null"]},
            "list": {"type": "array", "items": {"$ref": "#/$defs/one"}},
            "kind": {"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]},
            "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        },
        "$defs": {"one": {"const": 1}},
    }
    assert violations({"n": None, "list": [1, 1], "kind": None, "map": {"x": 3}}, rule) == []
    wrong = ({}, {"n": "1"}, {"n": True}, {"n": 1, "m": 1}, {"n": 1, "list": [2]}, {"n": 1, "kind": "c"}, {"n": 1, "map": {"x": 0.5}})  # fmt: skip
    assert all(len(violations(document, rule)) == 1 for document in wrong)
    with pytest.raises(AssertionError, match="does not know"):
        violations({}, {"minimum": 3})
