"""What ``bestiary new`` makes, used as its page says: installed in a scratch environment, tested, listed, run."""

import json

import documents
import pytest
from scratch_venv import Scratch

pytestmark = pytest.mark.slow
PAGE = documents.ROOT / "docs" / "first-plugin.md"


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "work").mkdir()
    return Scratch(tmp_path / "environment", tmp_path / "work")


def state(scratch, plugin):
    """What ``bestiary plugins`` says of a plugin."""
    listed = json.loads(scratch.run("bestiary plugins --json"))["plugins"]
    return next(one["state"] for one in listed if one["name"] == plugin)


def test_the_page_of_the_first_plugin(scratch):
    """Every shell block, in order, with the files that the page says to save."""
    printed = {}
    for block in documents.blocks(PAGE):
        if block.info.startswith("python file="):
            (scratch.work / block.info.partition("=")[2]).write_text(block.text)
        elif block.info == "sh":
            printed[block.text.splitlines()[0]] = scratch.run(block.text)
    assert len(printed) == 3
    model, kernel, op = printed.values()
    assert "39 of 39 tensors" in model and " failed" not in model + kernel + op
    assert "quick" in kernel and "curves::gated_relu2" in op
    assert [state(scratch, name) for name in ("seed", "quick", "curves")] == ["loaded"] * 3


def test_what_is_made_is_typed(scratch):
    """mypy in strict mode, as each project's CI runs it; the repository's cache knows bestiary already."""
    kinds = {"plain": "model", "quick": "kernel --triton", "curves": "op"}
    scratch.run("\n".join(f"bestiary new {kind} {name} --no-input" for name, kind in kinds.items()))
    path = ":".join([str(documents.ROOT), *(str(scratch.work / f"bestiary-{name}") for name in kinds)])
    options = f"--config-file bestiary-plain/pyproject.toml --cache-dir {documents.ROOT}/.mypy_cache"
    packages = " ".join(f"-p bestiary_{name}" for name in kinds)
    said = scratch.run(f"MYPYPATH={path} python -m mypy {options} {packages} || true")
    assert "source files" in said
    # bestiary's own files are held to its own configuration, by make lint.
    assert [line for line in said.splitlines() if line.startswith("bestiary-")] == []


def test_the_model_template_as_it_is(scratch):
    """A Llama of another name: its own tests pass, and a random model of it answers."""
    scratch.run("bestiary new model plain --no-input && pip install ./bestiary-plain && cd bestiary-plain && pytest")
    assert state(scratch, "plain") == "loaded"
    made = """
import json, pathlib, sys
from bestiary_plain.conformance import PlainConformance, reference
from safetensors.torch import save_file
from text_models import byte_level
tokenizer = byte_level()
said = {**PlainConformance.configs["grouped"], "vocab_size": tokenizer.vocab_size + 6, "architectures": ["PlainForCausalLM"]}
home = pathlib.Path("plain.hf")
home.mkdir()
(home / "config.json").write_text(json.dumps(said))
save_file({name: tensor.clone() for name, tensor in reference(said).state_dict().items()}, home / "model.safetensors")
tokenizer.backend.save(str(home / "tokenizer.json"))
"""
    (scratch.work / "make.py").write_text(made)
    answer = scratch.run(
        f"PYTHONPATH=${{PYTHONPATH:-}}:{documents.ROOT / 'tests' / 'support'} python make.py\n"
        "bestiary run plain.hf Hello --max-tokens 4 --temperature 0 --json"
    )
    assert json.loads(answer)["finish_reason"] in ("length", "stop")
