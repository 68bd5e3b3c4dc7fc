"""``bestiary diff``: its lines, its JSON, its page, its exit status, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import pytest
from tiny import make_hf

from bestiary.core.cli.main import invoke
from bestiary.core.diff import failures, run


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "home"))


def diff(capsys, *words, plugins=()):
    status = invoke([*(word for name in plugins for word in ("-p", name)), "diff", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_from_a_model_to_a_verdict(capsys, tmp_path):
    make_hf(tmp_path / "hf")
    page = tmp_path / "page.html"
    status, out, err = diff(capsys, tmp_path / "hf", "--device", "cpu", "--html", page)
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0] == "ours       engine of hf, float32, on cpu"
    assert re.fullmatch(r"against    transformers \S+, float32, on hf", lines[1])
    assert lines[2] == "tokens     1 prompt of 32 tokens, the last 4 one by one"
    assert lines[5].split()[:3] == ["tensor", "op=kernel", "max"]
    names = [line.split()[0] for line in lines[6:-2]]
    layer = ["attention_norm", "attention.q", "attention.k", "attention.v", "attention.rope.0", "attention.cache.k",
             "attention.cache.v", "attention.o.input", "attention", "mlp_norm.input", "mlp_norm", "mlp.gate", "mlp.up",
             "mlp.down.input", "mlp"]  # fmt: skip
    assert names == ["embed", *(f"layers.{n}.{one}" if one else f"layers.{n}" for n in range(3) for one in (*layer, "")),
                     "norm", "head.input", "head"]  # fmt: skip
    assert lines[-1] == "to blame: nothing: all tensors are within tolerance"
    text = page.read_text()
    assert "To blame: nothing" in text and text.count("Plotly.newPlot") == 3


def test_json_of_a_planted_mistake(capsys, families):
    source, engine = families("right")
    words = (engine, "--against", source, "--kernel", "rms_norm=wrong_other_eps", "--tokens", "12", "--json")
    status, out, _ = diff(capsys, *words, plugins=["planted"])
    assert status == 70
    found = json.loads(out)
    assert found["schema"] == "bestiary.diff/1" and found["within"] is False and found["prompts"] == [12]
    assert found["verdict"]["blame"] == "kernel" and found["verdict"]["distribution"] == "planted unversioned"
    first = found["first"]
    assert (first["name"], first["op"], first["kernel"]) == ("layers.0.attention_norm", "rms_norm", "wrong_other_eps")
    assert first["arguments"] == {"eps": "1e-05"} and first["call"] == "rms_norm(float32[T, 32], float32[32], 1e-05)"
    assert {"--kernel rms_norm=reference", "--kernel rms_norm=torch"} <= {
        one["change"] for one in found["bisection"] if one["gone"]
    }
    (place,) = (one for one in found["places"] if one["name"] == "layers.0.attention_norm")
    assert [step["step"] for step in place["steps"]] == ["prefill", "decode"]
    assert not place["within"] and all(step["own"]["excess"] > 1 for step in place["steps"])


def test_lines_and_page_of_a_planted_mistake(capsys, families, tmp_path):
    source, engine = families("wrong_eps")
    words = (engine, "--against", source, "--prompt", "x", "--html", tmp_path / "page.html")
    status, _, err = diff(capsys, *words, plugins=["planted"])
    assert status == 66 and "the model has no tokenizer" in err
    status, out, _ = diff(capsys, engine, "--against", source, "--html", tmp_path / "page.html", plugins=["planted"])
    assert status == 70
    assert "first out of tolerance: layers.0.attention_norm\n  made by    rms_norm=torch of bestiary" in out
    assert "arguments  eps=1e-06\n" in out
    assert "looks like the reference's is what rms_norm makes with eps=1e-05 (the call has 1e-06)" in out
    assert re.search(r"all references, no fusion +\S+ +stays +layers.0.attention_norm", out)
    assert out.splitlines()[-1].startswith(
        "to blame: the model plugin planted unversioned: layers.0.attention_norm (rms_norm"
    )
    page = (tmp_path / "page.html").read_text()
    assert "To blame: the model plugin" in page and "First out of tolerance: layers.0.attention_norm" in page


def test_a_kernel_that_raises_is_a_finding(capsys, families, tmp_path):
    source, engine = families("right")
    words = (engine, "--against", source, "--kernel", "linear=wrong_many_rows", "--tokens", "12")
    status, out, err = diff(capsys, *words, "--html", tmp_path / "page.html", plugins=["planted"])
    assert status == 70 and "internal error" not in err
    lines = out.splitlines()
    assert lines[4] == "raised     linear=wrong_many_rows: all that follows is of ours with --kernel linear=reference"
    assert lines[6:8] == [
        "raises on the way to layers.0.attention.q",
        "  made by    linear=wrong_many_rows of planted unversioned, called in layers.0.attention.q",
    ]
    assert "  raises     ValueError: one row is unsupported, in decodes only" in lines
    assert re.search(r"^--kernel linear=reference +\S+ +runs +none$", out, re.M)
    assert lines[-1].startswith(
        "to blame: kernel linear=wrong_many_rows of planted unversioned, in decodes only: it raises"
    )
    text = (tmp_path / "page.html").read_text()
    assert "Raises on the way to layers.0.attention.q" in text and text.count("Plotly.newPlot") == 3
    status, out, _ = diff(capsys, *words, "--json", plugins=["planted"])
    (failed,) = json.loads(out)["failed"]
    assert (
        status == 70 and failed["place"] == "layers.0.attention.q" and failed["distribution"] == "planted unversioned"
    )
    assert failed["raised"] == "ValueError: one row is unsupported" and failed["decodes_only"] is True
    assert failed["instead"] == "--kernel linear=reference" and failed["bisection"][0]["gone"] is True


def test_where_nothing_gets_past_a_call_there_is_a_finding_without_a_table(capsys, families, tmp_path, monkeypatch):
    source, engine = families("right")
    monkeypatch.setattr(failures, "_ways_past", lambda *_: [])
    words = (engine, "--against", source, "--kernel", "rms_norm=wrong_raising", "--tokens", "12")
    status, out, _ = diff(capsys, *words, "--html", tmp_path / "page.html", plugins=["planted"])
    assert status == 70 and "raised     rms_norm=wrong_raising: nothing could be compared" in out
    assert "op=kernel" not in out and out.splitlines()[-1].endswith("; nothing that was changed makes it run")
    assert "Plotly.newPlot" not in (tmp_path / "page.html").read_text()


def test_an_export_stands_in_for_a_source_and_says_so(capsys, tmp_path):
    make_hf(tmp_path / "hf")
    assert invoke(["convert", str(tmp_path / "hf"), str(tmp_path / "ckpt")]) == 0
    capsys.readouterr()
    status, out, err = diff(capsys, tmp_path / "ckpt", "--device", "cpu", "--reference")
    assert status == 0, err
    assert "checkpoint ckpt in reference mode, float32, on cpu" in out
    assert "on an export of our weights, which can't show a wrong weight map" in out
    status, out, err = diff(capsys, tmp_path / "hf", "--device", "cpu", "--against", tmp_path / "ckpt", "--tokens", "9")
    assert status == 0, err
    assert "against    checkpoint ckpt in reference mode, float32" in out


def test_random_weights_of_a_config(capsys, tmp_path):
    make_hf(tmp_path / "hf")
    (tmp_path / "bare").mkdir()
    shutil.copy(tmp_path / "hf" / "config.json", tmp_path / "bare")
    status, out, err = diff(
        capsys, tmp_path / "bare", "--weights", "random", "--seed", "7", "--device", "cpu", "--dtype", "bfloat16"
    )
    assert status == 0, err
    assert out.startswith("ours       engine of bare, bfloat16, on cpu") and "one bfloat16 rounding" in out


def test_prompts_of_a_file_and_deep_models(capsys, tmp_path):
    make_hf(tmp_path / "hf", num_hidden_layers=6)
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n")
    status, _, err = diff(capsys, tmp_path / "hf", "--device", "cpu", "--prompts", tmp_path / "prompts.txt")
    assert status == 66 and "tokenizer" in err
    folded = diff(capsys, tmp_path / "hf", "--device", "cpu")[1]
    assert "(worst of 6 layers)" in folded and folded.count("attention_norm") == 1
    assert diff(capsys, tmp_path / "hf", "--device", "cpu", "--all")[1].count("attention_norm") == 6


def test_prompts_in_json_lines(capsys, tmp_path):
    make_hf(tmp_path / "hf", num_hidden_layers=1)
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt_token_ids": [5, 6, 7]}\n\n{"prompt_token_ids": [1, 2, 3, 4, 5, 6, 7, 8]}\n')
    status, out, err = diff(capsys, tmp_path / "hf", "--device", "cpu", "--prompts", file)
    assert status == 0, err
    assert "2 prompts of 3 to 8 tokens" in out
    file.write_text('{"prompt": "hello"}\n')
    status, _, err = diff(capsys, tmp_path / "hf", "--device", "cpu", "--prompts", file)
    assert status == 66 and "tokenizer" in err  # it is a text, and this model has none


def test_a_text_of_json_lines_is_what_is_run(capsys, tmp_path, monkeypatch):
    make_hf(tmp_path / "hf", num_hidden_layers=1)
    encoded = []
    monkeypatch.setattr(
        run.Tokenizer, "load", lambda directory: SimpleNamespace(encode=lambda text: encoded.append(text) or [1, 2, 3])
    )
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hello"}\n"there"\n')
    status, _, err = diff(capsys, tmp_path / "hf", "--device", "cpu", "--prompts", tmp_path / "prompts.jsonl")
    assert status == 0, err
    assert encoded == ["hello", "there"]


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("windowed", "hf: transformers does not load this model; found .*windowed.*install a transformers that knows"),
        ("t5", "hf: transformers knows this model, but not as a causal language model; found model_type t5 "),
    ],
)
def test_what_transformers_lacks_is_found_out_before_anything_is_built(capsys, tmp_path, monkeypatch, model_type, said):
    make_hf(tmp_path / "hf", num_hidden_layers=1)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config |= {"architectures": ["WindowedForCausalLM"], "model_type": model_type, "head_dim": 12}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    monkeypatch.setattr("bestiary.core.diff.open.prepare", lambda *args, **options: pytest.fail("it was built"))
    status, _, err = diff(capsys, tmp_path / "hf", "--device", "cpu", plugins=["broken_families"])
    assert status == 69 and re.search(said, err), err
    assert ("install" in err) == (model_type == "windowed")


def test_tokens_that_nobody_named_fit_into_the_model_and_named_ones_must(capsys, tmp_path):
    make_hf(tmp_path / "hf", num_hidden_layers=1, max_position_embeddings=20)
    status, out, err = diff(capsys, tmp_path / "hf", "--device", "cpu")
    assert status == 0, err
    assert "tokens     1 prompt of 20 tokens" in out
    status, out, err = diff(capsys, tmp_path / "hf", "--device", "cpu", "--tokens", "21", "--against", "reference")
    assert status == 2 and "prompt: is longer than the sequences that the engine runs; found 21 tokens" in err


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["no/such/thing/here"], 66, "E-MODEL-MISSING"),
        (["hf", "--against", "./nothing"], 66, "E-MODEL-MISSING"),
        (["hf", "--weights", "some"], 2, "E-USE-WEIGHTS"),
        (["empty", "--weights", "random"], 66, "E-DIFF-CONFIG"),
        (["unknown", "--weights", "random"], 69, "E-SIDE-TRANSFORMERS"),
        (["hf", "--tokens", "0"], 2, "E-DIFF-PROMPT"),
        (["hf", "--tokens", "3", "--prompt", "x"], 2, "E-DIFF-PROMPT"),
        (["hf", "--tokens", "600"], 2, "E-SIDE-LENGTH"),
        (["hf", "--prompts", "none.txt"], 66, "E-CLI-PROMPTS"),
        (["hf", "--prompts", "empty.txt"], 66, "E-CLI-PROMPTS"),
        (["hf", "--prompts", "bytes.txt"], 65, "E-CLI-PROMPTS"),
        (["hf", "--prompts", "."], 66, "E-CLI-PROMPTS"),
        (["hf", "--prompts", "other.jsonl"], 65, "E-CLI-PROMPTS"),
        (["hf", "--prompts", "foreign.jsonl"], 2, "E-REQ-PROMPT"),
        (["hf", "--seed", "99999999999999999999999", "--tokens", "4"], 2, "E-USE-SEED"),
        (["hf", "--seed", "-1", "--tokens", "4"], 2, "E-USE-SEED"),
        (["hf", "--tp", "2"], 78, "E-DIFF-RANKS"),
        (["hf", "--against", "larger"], 2, "E-DIFF-MODELS"),
        (["hf", "--against", "other"], 2, "E-DIFF-MODELS"),
        (["hf", "--html", "no/such/folder/page.html"], 73, "E-OUT-FILE"),
        (["hf", "--kernel", "rms_norm=fastest"], 78, "E-KERNEL-NAME"),
    ],
)  # fmt: skip
def test_what_is_refused(capsys, tmp_path, monkeypatch, words, status, text):
    monkeypatch.chdir(tmp_path)
    if words[0] == "hf":
        make_hf(tmp_path / "hf", num_hidden_layers=1)
    if words[-1] in ("larger", "other"):
        make_hf(tmp_path / "other", num_hidden_layers=2)
        assert invoke(["convert", "other", "larger"]) == 0
        capsys.readouterr()
    for folder, config in (("empty", None), ("unknown", '{"model_type": "no-such-model"}')):
        (tmp_path / folder).mkdir()
        if config:
            (tmp_path / folder / "config.json").write_text(config)
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "other.jsonl").write_text('{"question": "which?"}\n')
    (tmp_path / "foreign.jsonl").write_text('{"prompt_token_ids": [1, 4000]}\n')
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfd")
    capsys.readouterr()
    found, out, err = diff(capsys, *words, "--device", "cpu", "--json")
    assert (found, json.loads(out)["error"]["code"]) == (status, text), err
    assert len(err.splitlines()) == 1 and "Traceback" not in err
