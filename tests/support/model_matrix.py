"""docs/model-matrix.md from the outcomes of ``bestiary check --long``, kept in benchmarks/results/conformance.

Run as a script, this file writes the page; with ``--check`` it first runs the kit of every installed model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "conformance"
PAGE = ROOT / "docs" / "model-matrix.md"
#: Column → the checks that it stands on.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "HF": ("test_convert", "test_coverage", "test_unknown_keys", "test_impossible_keys"),
    "export": ("test_export",),
    "GGUF": ("test_gguf_map",),
    "logits": ("test_prefill", "test_decode", "test_chunked_prefill", "test_mixed_batch", "test_reference_mode"),
    "answers": ("test_greedy", "test_prompt_logprobs", "test_batch_composition"),
    "bf16": ("test_bfloat16",),
    "TP 2": ("test_tensor_parallel",),
    "PP 2": ("test_pipeline_parallel",),
    "prefix reuse": ("test_prefix_reuse",),
    "preemption": ("test_preemption",),
    "deterministic": ("test_deterministic",),
    "quantization": ("test_quantization",),
    "cache of few bits": ("test_quantized_cache",),
}
HEAD = """# Model matrix

What each architecture was seen to do, from the [conformance kit](conformance.md)'s long form: `make matrix` runs it and
writes this page, which is not to be edited. *yes*: on all configs. *7 of 8*: the others' sizes can't be divided by two,
and the build says so. *—*: there is nothing to check. *waived*: the plugin says why below.
"""


def read_results(directory: Path) -> list[dict[str, Any]]:
    """The kept reports, by distribution and model."""
    files = sorted(directory.glob("*.json"))
    reports = [one for file in files for one in json.loads(file.read_text(encoding="utf-8"))["conformance"]]
    for report in reports:
        if not report["long"]:
            raise ValueError(f"{report['model']}: the kept outcomes are of the short form; make matrix")
    return sorted(reports, key=lambda report: (report["distribution"], report["model"]))


def page(reports: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    columns = ["architecture", "configs", *COLUMNS, "largest error", "greedy ties"]
    lines = [_row(columns), _row(["---"] * len(columns))]
    for report in reports:
        names = ", ".join(f"`{name}`" for name in report["architectures"])
        cells = [_cell(report, checks) for checks in COLUMNS.values()]
        lines.append(
            _row([f"{report['model']}: {names}", str(len(report["configs"])), *cells, _error(report), ties([report])])
        )
    lines.append(_row(["all", *[""] * (len(columns) - 2), ties(reports)]))
    return "\n".join([HEAD, *lines, "", _what(), "", *_sources(reports), ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(report: Mapping[str, Any], checks: Sequence[str]) -> str:
    outcomes = [one["outcome"] for one in report["checks"] if one["check"] in checks]
    if "failed" in outcomes or "short" in outcomes or not outcomes:
        return "no"
    if "waived" in outcomes:
        return "waived"
    if set(outcomes) == {"none"}:
        return "—"
    refused = outcomes.count("refused")
    return f"{len(outcomes) - refused} of {len(outcomes)}" if refused else "yes"


def ties(reports: Sequence[Mapping[str, Any]]) -> str:
    """Greedy tokens that the reference finds as likely as its own choice, of all that were generated."""
    checks = [one for report in reports for one in report["checks"]]
    return f"{sum(one.get('ties', 0) for one in checks):,} of {sum(one.get('tokens', 0) for one in checks):,} tokens"


def _error(report: Mapping[str, Any]) -> str:
    """Of logits in float32."""
    return f"{max(one['error'] for one in report['checks'] if one['check'] in COLUMNS['logits']):.1e}"


def _what() -> str:
    parts = (
        f"{name}: {', '.join(check.removeprefix('test_').replace('_', ' ') for check in checks)}"
        for name, checks in COLUMNS.items()
    )
    return f"The columns stand on these checks. {'; '.join(parts)}. The largest error is that of logits in float32."


def _sources(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| model | distribution | compared with | seen with |", "|---|---|---|---|"]
    for report in reports:
        seen = report["environment"]
        versions = f"bestiary {seen['bestiary']}, torch {seen['torch']}, {seen['platform']}"
        against = report["reference"]
        against = f"transformers {seen['transformers']}" if against == "transformers" else f"`{against}`"
        lines.append(_row([report["model"], f"{report['distribution']} {report['version']}", against, versions]))
    for report in reports:
        waived = {(one["check"], one["text"]) for one in report["checks"] if one["outcome"] == "waived"}
        lines += [f"\n{report['model']} waives {name.removeprefix('test_')}: {text}" for name, text in sorted(waived)]
    return lines


def check_all() -> int:
    """Run the long form for every installed model, one file each; the number of models that failed."""
    from bestiary.core.cli.main import invoke
    from bestiary.core.plugins import PluginHost

    RESULTS.mkdir(parents=True, exist_ok=True)
    models = [model for model in PluginHost.load().models() if model.conformance]
    return sum(
        invoke(["check", one.name, "--long", "--json", str(RESULTS / f"{one.name}.json")]) != 0 for one in models
    )


if __name__ == "__main__":
    failures = check_all() if "--check" in sys.argv else 0
    PAGE.write_text(page(read_results(RESULTS)), encoding="utf-8")
    sys.exit(1 if failures else 0)
