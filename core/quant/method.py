"""What a quantization method is. T tokens · N rows · K columns of a weight ``[…, N, K]``; in front of them may be experts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from bestiary.core.errors import BestiaryError, ConfigError
from bestiary.core.ops.linear import linear
from bestiary.core.quant.layout import Piece, Shape, Stored, sliced

if TYPE_CHECKING:
    from bestiary.core.quant.inputs import Inputs


#: What an option that is no number or switch should be, by pydantic's name for the error.
_VALUES: Final = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "an integer"),
    **dict.fromkeys(("float_parsing", "float_type", "finite_number"), "a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
}


class Method(BaseModel, ABC):
    """A quantization method: its fields are its options, with their defaults; an instance is a choice of them.

    A plugin registers the class: ``Quantization(name="nf4", method="my_plugin.nf4:NF4")``. What a model's modules are is
    nothing that it needs to know: the build gives every weight that it applies to a call of :meth:`linear` or :meth:`weight`.

    Class attributes:
        bound: largest relative error of products, ``rms(x · ŵᵀ − x · wᵀ) / rms(x · wᵀ)`` of normally distributed x and w, that
            the method's definition allows. The conformance kit holds the logits of every model to what errors of this size,
            without any system, do to them, times two.
        variants: options, as rules have them (``"group=32:zeros=integer"``), with which the kit's long form checks the method
            besides its default ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    bound: ClassVar[float]
    variants: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any]) -> Self:
        """The method with options as a person wrote them, or as a checkpoint has them.

        Raises:
            ConfigError: an option that it has not, or a value that it can't take.
        """
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            raise cls._refused(name, error) from None

    @classmethod
    def _refused(cls, name: str, error: ValidationError) -> ConfigError:
        first = error.errors(include_url=False, include_context=False)[0]
        field, kind, found = ".".join(map(str, first["loc"])), first["type"], first["input"]
        problem, expected = "can't have this value", first["msg"].removeprefix("Input should be ")
        if kind == "extra_forbidden":
            problem, expected = "there is no such option", f"options: {', '.join(cls.model_fields) or 'none'}"
        elif kind == "missing":
            problem, expected = "is missing", "a value"
        elif kind == "value_error":
            problem, expected = expected.removeprefix("Value error, "), ""
        return ConfigError(
            "E-BUILD-QUANTIZATION", f"quantization {name}" + (f", option {field}" if field else ""), problem,
            found=":".join(f"{option}={value}" for option, value in found.items()) if isinstance(found, Mapping) else str(found),
            expected=_VALUES.get(kind, expected) or None,
        )  # fmt: skip

    @property
    def wants(self) -> frozenset[str]:
        """What :meth:`quantize` and :meth:`scales` need of a calibration: ``"inputs"``, and ``"hessian"`` in them. Empty: nothing."""
        return frozenset()

    @abstractmethod
    def layout(self, shape: Shape) -> Mapping[str, Stored]:
        """The stored tensors, by name.

        Raises:
            ConfigError: it can't store a weight of this shape, with the arithmetic.
        """

    @abstractmethod
    def quantize(self, weight: Tensor, inputs: Sequence[Inputs] = ()) -> dict[str, Tensor]:
        """The stored tensors of a weight ``[…, N, K]`` fp32, finite, on its device.

        Args:
            inputs: what calibration saw of the rows that the weight reads; of a weight with experts, of each expert's.
                Empty where there was none, or where no op multiplies rows by the weight, such as an embedding.
        """

    @abstractmethod
    def weight(self, stored: Mapping[str, Tensor], shape: Shape, dtype: str) -> Tensor:
        """The weight as the model's ops read it, written in ops: ``[…, N, K]`` in ``dtype``. It may be traced."""

    def linear(self, x: Tensor, stored: Mapping[str, Tensor], shape: Shape, bias: Tensor | None, dtype: str) -> Tensor:
        """``x · weightᵀ + bias`` → ``[T, N]``, written in ops; where a method does more than restore the weight, it does it here."""
        return linear(x, self.weight(stored, shape, dtype), bias)

    def storage_only(self, device: str) -> bool:
        """Whether weights are restored once, when an engine is loaded, on this kind of device (``"cpu"``, ``"cuda"``)."""
        return False

    def scales(self, weights: Sequence[Tensor], inputs: Inputs) -> Tensor | None:
        """Factors ``[K]`` that the columns of ``weights``, which read the same rows, are multiplied with before they are quantized.

        Asked where what makes those rows can be divided by them. None: nothing is to change.
        """
        return None

    def cut(self, shape: Shape, axis: int, start: int, stop: int, subject: str) -> tuple[Method, dict[str, Piece]]:
        """The method of a slice of a weight, and the slice of each stored tensor (those left out are needed whole).

        Raises:
            ConfigError: the slice does not fit the blocks that are stored as one, with the arithmetic.
        """
        pieces = {name: sliced(one, shape, axis, start, stop, subject) for name, one in self.layout(shape).items()}
        return self, {name: piece for name, piece in pieces.items() if piece is not None}

    def stacks(self, rows: int) -> bool:
        """Whether other rows may follow so many of this method's in one weight, where the layout's blocks allow it (see
        :func:`~bestiary.core.quant.layout.stackable`)."""
        return True


def layout_of(method: Method, shape: Shape, parameter: str) -> Mapping[str, Stored]:
    """The layout of a parameter.

    Raises:
        ConfigError: the method can't store a weight of this shape.
    """
    try:
        return method.layout(shape)
    except BestiaryError:
        raise
    except ValueError as error:
        raise ConfigError("E-BUILD-QUANTIZATION", parameter, str(error), found=f"shape {list(shape)}") from None
