"""Calibrated scales of a key-value cache in a checkpoint: ``<cache's path>.k_scale`` and ``.v_scale``, fp32 ``[kv_heads]``.

The manifest's ``quantization`` has under the cache's path what they are for: ``{"method": "kv_scales", "kind": "int8"}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bestiary.core.kv_format import KINDS

METHOD = "kv_scales"


def record(kind: str) -> dict[str, Any]:
    """What the manifest says of a cache that has scales for a kind of :data:`~bestiary.core.kv_format.KINDS`."""
    assert kind in KINDS
    return {"method": METHOD, "kind": kind}


def calibrated(quantization: Mapping[str, Any], kind: str | None = None) -> frozenset[str]:
    """Paths of the caches that have scales (of one kind: the scale of another is that kind's, and its codes reach as far as
    its own)."""
    found = {
        name: said for name, said in quantization.items() if isinstance(said, dict) and said.get("method") == METHOD
    }
    return frozenset(path for path, said in found.items() if kind is None or said.get("kind") == kind)


def names_of(path: str) -> tuple[str, str]:
    """The tensors of a cache's scales, of keys and of values."""
    return f"{path}.k_scale", f"{path}.v_scale"


def shapes_of(quantization: Mapping[str, Any], caches: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The tensors that a manifest asks for.

    Args:
        caches: key-value heads of each cache, by path.
    """
    there = [path for path in caches if path in calibrated(quantization)]
    return {name: (caches[path],) for path in there for name in names_of(path)}
