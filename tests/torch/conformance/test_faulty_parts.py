"""A mistake in one part of the SDK, or in a kernel, is found by the check, and by the half of it, that is there for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import broken_families
import pytest
import torch
from safetensors.torch import load_file, save_file

from bestiary.converters.convert import convert
from bestiary.converters.export import export
from bestiary.converters.plan import make_plan
from bestiary.core.conformance import model_answers, model_case, model_files, model_logits, model_ranks
from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_case import SHORTEST, Case, Suite
from bestiary.core.errors import DataError
from bestiary.core.program import against
from bestiary.core.program.compare import Deviation
from bestiary.testing import ModelConformance

Patch = pytest.MonkeyPatch


def made(directory: Path, *plugins: str) -> Case:
    """Of a family without a mistake."""
    cls = type("Faulty", (broken_families.windowed,), {"plugins": ("broken_families", *plugins)})
    return Suite(cls, directory).cases["tiny"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Shared by the tests that break no engine."""
    return made(tmp_path_factory.mktemp("faulty"))


def test_a_model_with_as_few_positions_as_the_kit_allows_passes(tmp_path: Path) -> None:
    body = {"model": "windowed", "configs": {"tiny": {**broken_families.TINY, "max_position_embeddings": SHORTEST}}}
    about = {"plugins": ("broken_families",), "reference": staticmethod(broken_families.reference)}
    short = Suite(type(ModelConformance)("Short", (ModelConformance,), {**body, **about}), tmp_path).cases["tiny"]
    for check in (model_logits.prefill, model_logits.decode, model_logits.chunked_prefill, model_logits.mixed_batch):
        check(short, Findings([]))


def test_a_config_of_another_models_architecture_fails(tmp_path: Path) -> None:
    other = {**broken_families.TINY, "architectures": [broken_families.architecture("keys_only")]}
    body = {"model": "windowed", "configs": {"tiny": other}, "plugins": ("broken_families",)}
    body["reference"] = staticmethod(broken_families.reference)
    case = Suite(type(ModelConformance)("Other", (ModelConformance,), body), tmp_path).cases["tiny"]
    with pytest.raises(AssertionError, match=r"config tiny: its architecture is that of keys_only, not of windowed"):
        model_files.converts(case, Findings([]))


def test_bfloat16_twice_as_far_as_the_references_fails(case: Case, monkeypatch: Patch) -> None:
    model_logits.bfloat16(case, Findings([]))
    reference = model_logits.reference_logits

    def nearer(module: Any, tokens: Any) -> torch.Tensor:
        return (reference(module, tokens) + case.expected(tokens)) / 2

    monkeypatch.setattr(model_logits, "reference_logits", nearer)
    with pytest.raises(AssertionError, match=r"distance from float32 over the reference's own: off by"):
        model_logits.bfloat16(case, Findings([]))


def test_a_crowd_of_which_nobody_is_preempted_fails(case: Case, monkeypatch: Patch) -> None:
    class Roomy:
        """An engine that has room for all."""

        def __enter__(self) -> Roomy:
            return self

        def __exit__(self, *unused: object) -> None: ...

        def generate(self, *given: Any, **options: Any) -> list[Any]:
            return []

        def stats(self) -> Any:
            return SimpleNamespace(preemptions=0)

    monkeypatch.setattr(Case, "llm", lambda self, **options: Roomy())
    monkeypatch.setattr(model_answers, "_check", lambda *given: None)
    with pytest.raises(AssertionError, match="nobody was preempted"):
        model_answers.preemption(case, Findings([]))


Tensors = Mapping[str, Any]
# What a careless converter makes of a source, given the whole one.
CARELESS: Mapping[str, tuple[Callable[[Tensors, Tensors], Tensors], str]] = {
    "makes up what is missing": (lambda found, whole: {**whole, **found}, r"a source without \S+ is accepted"),
    "overlooks shapes": (
        lambda found, whole: {name: whole.get(name, tensor) for name, tensor in found.items()},
        r"a source \S+ of \[\d+(, \d+)*\] is accepted",
    ),
    "overlooks what is left": (
        lambda found, whole: {name: tensor for name, tensor in found.items() if name in whole},
        r"a source with bestiary_unknown.weight is accepted",
    ),
    "knows any bias": (
        lambda found, whole: {name: tensor for name, tensor in found.items() if not name.endswith(".bias")},
        r"a source with \S+\.bias is accepted",
    ),
}


@pytest.mark.parametrize("how", CARELESS)
def test_a_converter_that_overlooks_a_fault_fails(case: Case, monkeypatch: Patch, how: str) -> None:
    overlooked, complaint = CARELESS[how]
    whole = model_files.open_source(case.source, case.suite.host).tensors if case.module else {}

    def careless(weights: Any, expected: Any, source: Any, config: Any) -> Any:
        return make_plan(weights, expected, overlooked(source, whole), config)

    monkeypatch.setattr(model_files, "make_plan", careless)
    with pytest.raises(AssertionError, match=complaint):
        model_files.coverage(case, Findings([]))


def test_a_converter_that_does_not_say_what_it_misses_fails(case: Case, monkeypatch: Patch) -> None:
    def curt(weights: Any, expected: Any, source: Any, config: Any) -> Any:
        try:
            return make_plan(weights, expected, source, config)
        except DataError:
            raise DataError("E-CONV-COVERAGE", "the source", "does not fit") from None

    monkeypatch.setattr(model_files, "make_plan", curt)
    with pytest.raises(AssertionError, match=r"is refused without the tensor's name"):
        model_files.coverage(case, Findings([]))


def _leaving(source: Path, target: Path, **rest: Any) -> None:
    target.mkdir()
    raise DataError("E-CONV-COVERAGE", str(sorted(broken_families.ROWS.values())), "is missing")


@pytest.mark.parametrize(
    ("convert", "complaint"),
    [(lambda *args, **rest: None, r"convert accepts a source without"), (_leaving, r"left something or hid the name")],
    ids=["accepts", "leaves"],
)
def test_a_conversion_that_does_not_stop_clean_fails(
    case: Case, monkeypatch: Patch, convert: Any, complaint: str
) -> None:
    assert case.module is not None
    monkeypatch.setattr(model_files, "convert", convert)
    with pytest.raises(AssertionError, match=complaint):
        model_files.coverage(case, Findings([]))


def test_an_export_with_another_config_fails(case: Case, monkeypatch: Patch) -> None:
    def changing(checkpoint: Path, target: Path, **rest: Any) -> None:
        export(checkpoint, target, **rest)
        said = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**said, "rms_norm_eps": 1e-4}))

    model_files.exports(case)
    monkeypatch.setattr(model_files, "export", changing)
    with pytest.raises(AssertionError, match=r"export changed config\.json"):
        model_files.exports(case)


def with_kernel(monkeypatch: Patch, directory: Path, name: str) -> Case:
    """Whose engines' norm is a kernel that the build does not find wrong, though it is."""
    monkeypatch.setattr(against, "deviation", lambda *compared: Deviation())
    monkeypatch.setitem(model_case._OPTIONS, "kernels", {"rms_norm": name})
    return made(directory, "batch_kernels")


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["wrong_with_many", "wrong_when_full"])
def test_an_engine_whose_answers_depend_on_the_batch_fails(tmp_path: Path, monkeypatch: Patch, kernel: str) -> None:
    case = with_kernel(monkeypatch, tmp_path, kernel)
    model_answers.greedy(case, Findings([]))
    with pytest.raises(AssertionError, match=r"off by .* is allowed"):
        model_answers.batch_composition(case, Findings([]))


def test_an_engine_that_reuses_no_prefix_fails(case: Case, monkeypatch: Patch) -> None:
    model_answers.prefix_reuse(case, Findings([]))
    llm = Case.llm
    monkeypatch.setattr(Case, "llm", lambda self, **options: llm(self, prefix_caching=False, **options))
    with pytest.raises(AssertionError, match=r"no prefix was reused the second time \(0 tokens\)"):
        model_answers.prefix_reuse(case, Findings([]))


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        ("wrong_with_many", r"float32, together: not what it is alone"),
        pytest.param(
            "wrong_when_full", r"float32, in chunks and preempted: not what it is alone", marks=pytest.mark.slow
        ),
    ],
)
def test_a_kernel_that_is_not_batch_invariant_though_it_says_so_fails(
    tmp_path: Path, monkeypatch: Patch, kernel: str, complaint: str
) -> None:
    case = with_kernel(monkeypatch, tmp_path, kernel)
    with pytest.raises(AssertionError, match=complaint):
        model_answers.deterministic(case, Findings([]), thorough=False)


Pair = tuple[torch.Tensor | None, torch.Tensor]
# What two ranks have, given the reference's logits.
RANKS: Mapping[str, tuple[Any, Callable[[torch.Tensor], Pair], str | None]] = {
    "right": (model_ranks.tensor_parallel, lambda wanted: (wanted, wanted), None),
    "both wrong": (model_ranks.tensor_parallel, lambda wanted: (wanted + 1e-3, wanted + 1e-3), r"two ranks: off by"),
    "one with noise": (model_ranks.tensor_parallel, lambda wanted: (wanted + 1e-7, wanted), r"have different logits"),
    "one without logits": (model_ranks.tensor_parallel, lambda wanted: (None, wanted), r"have different logits"),
    "right stages": (model_ranks.pipeline_parallel, lambda wanted: (None, wanted), None),
    "a wrong last stage": (model_ranks.pipeline_parallel, lambda wanted: (None, wanted + 1e-3), r"ranks: off by"),
    "not a number": (model_ranks.pipeline_parallel, lambda wanted: (None, wanted * torch.nan), r"ranks: off by nan"),
    "a first stage with logits": (model_ranks.pipeline_parallel, lambda wanted: (wanted, wanted), r"first stage has"),
}


@pytest.mark.parametrize("how", RANKS)
def test_two_ranks_with_other_logits_fail(case: Case, monkeypatch: Patch, how: str) -> None:
    check, made, complaint = RANKS[how]
    wanted = case.expected(case.tokens(case.length))
    monkeypatch.setattr(model_ranks, "_run", lambda *args: {"tiny": made(wanted)})
    case.suite.shared.clear()
    if complaint is None:
        check(case, Findings([]), ["tiny"])
        return
    with pytest.raises(AssertionError, match=complaint):
        check(case, Findings([]), ["tiny"])


@pytest.mark.slow
@pytest.mark.parametrize(("tensor", "stages"), [(2, 1), (1, 2)], ids=["tensor", "pipeline"])
def test_two_processes_with_other_weights_fail(monkeypatch: Patch, tmp_path: Path, tensor: int, stages: int) -> None:
    (tmp_path / "right").mkdir()
    case = made(tmp_path / "right")
    source, checkpoint = tmp_path / "noisy", tmp_path / "noisy-checkpoint"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(case.raw))
    weights = load_file(case.source / "model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, source / "model.safetensors")
    convert(source, checkpoint, host=case.suite.host)
    check = model_ranks.tensor_parallel if tensor == 2 else model_ranks.pipeline_parallel
    monkeypatch.setattr(Case, "checkpoint", checkpoint)
    with pytest.raises(AssertionError, match=r"logits of two ranks: off by"):
        check(case, Findings([]), ["tiny"])
