"""The compressed-tensors format: what quantization methods are there, and the tensors of a matrix. N rows · K columns · G groups."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bestiary.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from bestiary.core.quant.layout import Shape
    from bestiary.core.quant.method import Method

_WORD: Final = 4  # bytes of an int32
_TILE: Final = 128  # columns of a token that share a scale beside blocks of 128 × 128


class Scheme(NamedTuple):
    """How modules are quantized: the format of their tensors, and the arguments of weights and of what is multiplied with them."""

    format: str
    weights: Mapping[str, Any]
    activations: Mapping[str, Any] | None = None

    def group(self, targets: list[str]) -> dict[str, Any]:
        """An entry of ``config_groups``."""
        return {
            "targets": targets, "format": self.format, "weights": self.weights,
            "input_activations": self.activations, "output_activations": None,
        }  # fmt: skip


class Tensors(NamedTuple):
    """One of the tensors of a matrix: ``make`` has it of the tensor that our layout calls ``part`` (None: of the shape alone)."""

    name: str
    dtype: str
    shape: Shape
    part: str | None
    make: Callable[[Tensor | None], Tensor]


def scheme_of(method: Method, shape: Shape, subject: str, *, expert: bool) -> Scheme:
    """The scheme of a matrix ``[N, K]``. Of experts 8-bit integers have weights alone, as in our products.

    Raises:
        ConfigError: the format has none.
    """
    from bestiary.core.quant.affine import Affine
    from bestiary.core.quant.methods import FP8, W8A8, Int4, Int8

    if type(method) in (Int4, Int8) and isinstance(method, Affine):
        bits, group, zeros = method.grid.bits, method.grid.group, method.grid.zeros
        if zeros == "minimum":
            raise unsaid(subject, "has minima, and compressed-tensors has zero points alone", "zeros=minimum")
        if group is not None and group >= shape[-1]:
            group = None  # one group: a row
        _check_groups(shape, group, subject)
        return Scheme("pack-quantized", _arguments(bits, "int", group, symmetric=zeros == "none"))
    if type(method) is W8A8:
        if expert:
            return Scheme("pack-quantized", _arguments(8, "int", None))
        return Scheme("int-quantized", _arguments(8, "int", None), _activations("int", method.activations, None))
    if type(method) is FP8:
        blocks = method.weights == "block"
        _check_groups(shape, _TILE if blocks else None, subject)
        weights = _arguments(8, "float", None)
        if method.weights != "row":
            weights["strategy"] = method.weights
        if blocks:
            weights["block_structure"] = list(method.block(shape))
        kind = "dynamic" if expert else method.activations
        return Scheme("float-quantized", weights, _activations("float", kind, _TILE if blocks else None))
    raise unsaid(subject, "is quantized by a method that compressed-tensors has no word for", type(method).__name__)


def tensors_of(scheme: Scheme, layout: Mapping[str, tuple[str, Shape]], shape: Shape) -> list[Tensors]:
    """The tensors of a matrix ``[N, K]``.

    Args:
        layout: dtype and shape of each tensor that our method stores of it.
    """
    import torch

    rows, columns = shape
    scale, _ = layout["scale"]
    groups = layout["scale"][1]
    whole = groups == (1, 1) and scheme.weights["strategy"] == "tensor"
    found = [_moved("weight_scale", scale, (1,) if whole else groups, "scale")]
    if scheme.format != "pack-quantized":
        found.append(_moved("weight", layout["codes"][0], shape, "codes"))
        known = [_moved("input_scale", "float32", (1,), "input_scale")] if "input_scale" in layout else []
        return found + known
    bits = scheme.weights["num_bits"]
    found.append(Tensors("weight_packed", "int32", (rows, -(-columns * bits // 32)), "codes", _words))
    found.append(Tensors("weight_shape", "int64", (2,), None, lambda _: torch.tensor(shape)))
    if "zero" in layout:
        found.append(Tensors("weight_zero_point", "int32", (-(-rows * bits // 32), groups[1]), "zero", _zero_words))
    return found


def quantization_config(schemes: Mapping[str, Scheme | None]) -> dict[str, Any]:
    """The object of config.json, of the scheme of each module that is a matrix; None: it is none."""
    known: list[Scheme] = []
    for scheme in schemes.values():
        if scheme is not None and scheme not in known:
            known.append(scheme)

    def of(wanted: Scheme | None) -> list[str]:
        return _patterns([n for n, s in schemes.items() if s == wanted], [n for n, s in schemes.items() if s != wanted])

    formats = {scheme.format for scheme in known}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": {f"group_{number}": scheme.group(of(scheme)) for number, scheme in enumerate(known)},
        "ignore": of(None),
        "kv_cache_scheme": None,
    }


def unsaid(subject: str, problem: str, found: str | None = None, expected: str | None = None) -> ConfigError:
    """The error of what the format can't say."""
    return ConfigError(
        "E-EXPORT-QUANTIZATION", subject, problem, found=found, expected=expected,
        hint="--dequantize writes the weights plain, as they are restored",
    )  # fmt: skip


def _check_groups(shape: Shape, group: int | None, subject: str) -> None:
    if group is not None and shape[-1] % group:
        raise unsaid(
            subject, "has rows whose last group is shorter, which compressed-tensors does not know",
            f"{shape[-1]} columns", f"a multiple of {group}",
        )  # fmt: skip


def _arguments(bits: int, kind: str, group: int | None, *, symmetric: bool = True) -> dict[str, Any]:
    strategy = {"strategy": "channel"} if group is None else {"strategy": "group", "group_size": group}
    return {"num_bits": bits, "type": kind, "symmetric": symmetric, "dynamic": False, **strategy}


def _activations(kind: str, scales: str, group: int | None) -> dict[str, Any]:
    if scales == "static":
        return {"num_bits": 8, "type": kind, "symmetric": True, "dynamic": False, "strategy": "tensor"}
    strategy = {"strategy": "token"} if group is None else {"strategy": "group", "group_size": group}
    return {"num_bits": 8, "type": kind, "symmetric": True, "dynamic": True, **strategy}


def _moved(name: str, dtype: str, shape: Shape, part: str) -> Tensors:
    def make(stored: Tensor | None) -> Tensor:
        assert stored is not None
        return stored.reshape(shape)

    return Tensors(name, dtype, shape, part, make)


def _words(codes: Tensor | None) -> Tensor:
    """Rows of codes in words of 32 bits, the first column lowest, each from 0: int8 or two columns a byte → int32."""
    import torch

    assert codes is not None
    rows = codes.view(torch.uint8) ^ 128 if codes.dtype is torch.int8 else codes
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % _WORD))
    # A copy in any case: a single row may be called contiguous with strides that are no multiple of a word.
    return padded.clone(memory_format=torch.contiguous_format).view(torch.int32)


def _zero_words(zero: Tensor | None) -> Tensor:
    """Zero points of 4 bits ``[N, G]`` → ``[⌈N/8⌉, G]`` int32: eight rows a word."""
    from bestiary.core.quant.affine import pack

    assert zero is not None
    return _words(pack(zero.t())).t().contiguous()


def _patterns(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Modules as targets: those that differ in numbers alone as one expression, where it fits no other module."""
    taken = {_pattern(name) for name in others}
    return list(dict.fromkeys(name if (made := _pattern(name)) in taken else made for name in names))


def _pattern(name: str) -> str:
    parts = name.split(".")
    if not any(part.isdigit() for part in parts):
        return name
    return "re:^" + r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in parts) + "$"
