"""Weight files that change under a running engine end it before it reads them; what it does not read may change."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tiny import make_engine

from bestiary import LLM, EngineError, SamplingParams
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost

GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights")
    make_engine(directory, PluginHost.load(), BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64))
    return directory


@pytest.fixture
def engine(built, tmp_path):
    """An engine of a test's own, whose weights are hard links to its own checkpoint's."""
    copy = tmp_path / "engine"
    (copy / "plan").mkdir(parents=True)
    for path in (built / "engine").rglob("*"):
        if path.is_file():
            (copy / path.relative_to(built / "engine")).write_bytes(path.read_bytes())
    weights = next(copy.glob("*.safetensors"))
    (tmp_path / "ckpt").mkdir()
    os.link(weights, tmp_path / "ckpt" / weights.name)
    return copy


def opened(engine, **options):
    return LLM(engine, tokenizer=None, kv_cache_memory=2**22, **options)


def weights(directory):
    return next(directory.glob("*.safetensors"))


def answer(llm):
    return list(llm.generate([[1, 2, 3]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids)


def truncate(path):
    os.truncate(path, 0)


def extend(path):
    with path.open("ab") as file:
        file.write(b"x")


def overwrite(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(64))


def touch(path):
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("through", ["engine", "ckpt"])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (truncate, "found 0 bytes, expected [0-9]+ bytes"),
        (extend, "found [0-9]+ bytes"),
        (overwrite, "another time"),
        (touch, "another time"),
    ],
)
def test_a_changed_file_ends_the_engine_before_it_is_read(engine, change, found, through):
    with opened(engine) as llm:
        answer(llm)
        change(weights(engine.parent / through))
        with pytest.raises(EngineError, match=rf"safetensors: has changed .*{found}.*E-RUN-WEIGHTS"):
            answer(llm)
        with pytest.raises(EngineError, match=r"takes no requests any more.*has changed.*E-RUN-DEAD"):
            answer(llm)


def delete(path):
    path.unlink()


def replace(path):
    other = path.with_name("other")
    other.write_bytes(os.urandom(path.stat().st_size))
    other.replace(path)


def link(path):
    os.link(path, path.with_name("another name"))


@pytest.mark.parametrize("change", [delete, replace, link])
def test_a_file_of_another_name_changes_nothing(engine, change):
    with opened(engine) as llm:
        expected = answer(llm)
        change(weights(engine))
        llm.reset_prefix_cache()
        assert answer(llm) == expected


def test_weights_that_were_copied_need_no_file(built, tmp_path):
    options = BuildOptions(device="cpu", dtype="bfloat16", max_batch_size=4, max_num_tokens=64)
    make_engine(tmp_path, PluginHost.load(), options)
    with opened(tmp_path / "engine") as llm:
        expected = answer(llm)
        assert llm.engine.weight_files.names == ()
        truncate(weights(tmp_path / "engine"))
        llm.reset_prefix_cache()
        assert answer(llm) == expected


def test_the_reference_reads_its_files_too(engine):
    with opened(engine, reference=True) as llm:
        answer(llm)
        truncate(weights(engine))
        with pytest.raises(EngineError, match="E-RUN-WEIGHTS"):
            answer(llm)


def resident(file):
    """Bytes of a file's pages that this process holds."""
    maps = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    return sum(
        int(re.search(r"Rss: +(\d+)", one)[1]) << 10 for one in maps if one.partition("\n")[0].endswith(str(file))
    )


def test_what_was_copied_takes_no_memory_in_its_file(tmp_path):
    """Resident are the weights that are used as they are, and the odd page between two that are not."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    make_engine(tmp_path, PluginHost.load(), **sizes)
    with opened(tmp_path / "engine") as llm:
        answer(llm)
        file = weights(tmp_path / "engine")
        mapped = {name: entry.nbytes for name, entry in Weights.open(tmp_path / "engine").entries.items()}
        merged = sum(size for name, size in mapped.items() if re.search("attention.[qkv]|mlp.gate|mlp.up", name))
        assert merged > 2**22
        assert resident(file) <= sum(mapped.values()) - merged + 2**19
