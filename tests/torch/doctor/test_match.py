"""Whether torch, triton, the driver and the GPUs are said to fit each other, on machines that are made up."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest

from bestiary.core.device import TorchBuild
from bestiary.core.doctor import match
from bestiary.core.doctor.processor import judge


def build(**facts: Any) -> TorchBuild:
    known = {
        "torch": "2.11.0", "built": (12, 8), "architectures": ("sm_80", "sm_90"), "driver": "NVIDIA driver 570.86",
        "supported": (12, 8), "capabilities": {},
    }  # fmt: skip
    return TorchBuild(**{**known, **facts})


@pytest.mark.parametrize(
    ("facts", "level", "text"),
    [
        ({}, "ok", "NVIDIA driver 570.86, runs CUDA up to 12.8"),
        ({"supported": (13, 0)}, "ok", "up to 13.0"),
        ({"supported": (12, 4)}, "warning", "older than torch's 12.8"),
        ({"supported": (11, 8)}, "error", "install a newer driver, or an older torch"),
        ({"supported": None, "driver": ""}, "note", "none is found"),
        ({"built": None}, "warning", "torch was built without CUDA"),
        ({"built": None, "supported": None, "driver": ""}, "ok", "none: this is a processor-only machine"),
    ],
)
def test_the_driver_must_run_what_torch_was_built_with(facts: Any, level: str, text: str) -> None:
    _, found = match.driver(build(**facts))
    assert (found.subject, found.level) == ("driver", level) and text in found.text


@pytest.mark.parametrize(
    ("has", "capability", "level"),
    [
        (("sm_80", "sm_90"), (9, 0), "ok"),
        (("sm_80",), (8, 9), "ok"),  # of its generation, and older
        (("sm_89",), (8, 0), "error"),
        (("sm_80",), (9, 0), "error"),
        (("sm_90a",), (9, 0), "ok"),
        (("sm_100a",), (10, 3), "error"),
        (("sm_80", "compute_80"), (12, 0), "note"),
        (("compute_90",), (8, 0), "error"),
        (("sm_120",), (12, 0), "ok"),
    ],
)
def test_torch_must_have_code_for_the_gpu(has: tuple[str, ...], capability: Any, level: str) -> None:
    (found,) = match.architectures(build(architectures=has, capabilities={"gpu:0": capability}))
    assert (found.subject, found.level) == ("gpu:0", level), found.text


@pytest.mark.parametrize(
    ("installed", "asked", "level", "text"),
    [
        ("3.6.0", ["triton==3.6.0; platform_system != 'Nowhere'"], "ok", "3.6.0, as torch 2.11.0 asks for"),
        ("3.5.1", ["triton==3.6.0"], "error", "3.5.1, and torch 2.11.0 asks for triton==3.6.0"),
        (None, ["triton==3.6.0"], "warning", "is not installed, and torch 2.11.0 asks for"),
        ("3.5.1", ["triton==3.6.0; platform_system == 'Nowhere'", "sympy"], "ok", "asks for none"),
        (None, None, "ok", "is not installed, and this torch asks for none"),
    ],
)
def test_triton_must_be_the_one_that_torch_asks_for(
    monkeypatch: pytest.MonkeyPatch, installed: str | None, asked: list[str] | None, level: str, text: str
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(match.metadata, "version", version)
    monkeypatch.setattr(match.metadata, "requires", lambda name: asked)
    found = match.triton(build())
    assert found.level == level and text in found.text, found


class Use:
    """What torch uses of a processor."""

    def __init__(self, capability: str, fast: tuple[str, ...] = ("bfloat16",), threads: int = 1) -> None:
        self.capability, self.onednn, self.fast, self.threads = capability, True, fast, threads


@pytest.mark.parametrize(
    ("flags", "capability", "forced", "level", "text"),
    [
        ({"avx2", "avx512f"}, "AVX512", None, "ok", "AVX512"),
        ({"avx2", "avx512f"}, "AVX2", None, "warning", "though the processor has AVX512"),
        ({"avx2", "avx512f"}, "DEFAULT", "default", "warning", "because ATEN_CPU_CAPABILITY is set to 'default'"),
        ({"avx2"}, "AVX2", None, "ok", "AVX2"),
        ({"sse"}, "DEFAULT", None, "warning", "no vector instructions"),
        ({"asimd", "bf16"}, "NEON", None, "ok", "NEON"),
    ],
)
def test_what_torch_leaves_unused_is_said(
    flags: set[str], capability: str, forced: str | None, level: str, text: str
) -> None:
    findings = {one.subject: one for one in judge(frozenset(flags), Use(capability), forced)}  # type: ignore[arg-type]
    assert findings["torch uses"].level == level and text in findings["torch uses"].text
    assert findings["products"].text == "oneDNN, fast in float32, bfloat16; not in float16"


def test_features_have_the_names_that_people_use() -> None:
    flags = frozenset({"avx2", "avx512f", "avx512_vnni", "amx_bf16", "asimd", "unheard_of"})
    found = next(judge(flags, Use("AVX512"), None))  # type: ignore[arg-type]
    assert found.text == "AVX2, AVX-512, AVX-512 VNNI, AMX BF16, NEON"


def test_more_threads_than_processors_are_a_warning() -> None:
    findings = list(judge(frozenset({"avx2"}), Use("AVX2", threads=100_000), None))  # type: ignore[arg-type]
    assert findings[-1].level == "warning" and "wait for each other" in findings[-1].text
