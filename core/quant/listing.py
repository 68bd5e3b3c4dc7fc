"""What quantization methods there are, with their options: for a terminal, for JSON, for the documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin

from pydantic import Field

from bestiary.core.quant.choose import method_class
from bestiary.core.reports.schema import JsonReport, ReportPart

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from bestiary.core.plugins import PluginHost


class OptionEntry(ReportPart):
    """An option of a method."""

    name: str = Field(description="as rules write it, name=value")
    default: str = Field(description="its value where rules do not name it")
    values: str = Field(description="what it takes")
    meaning: str = Field(description="what it does")


class MethodEntry(ReportPart):
    """A quantization method."""

    name: str = Field(description="as rules write it")
    distribution: str = Field(description="what provides it")
    version: str = Field(description="of the distribution")
    meaning: str = Field(description="what it does to weights and activations")
    bound: float = Field(description="most that the conformance kit allows of relative error of logits, a ratio")
    options: tuple[OptionEntry, ...] = Field(description="its options, in the order of its fields")


class MethodsReport(JsonReport):
    """What ``bestiary quantize --list`` shows."""

    schema_name: ClassVar[str] = "quantize.methods"

    methods: tuple[MethodEntry, ...] = Field(description="by name")


def methods_report(host: PluginHost) -> MethodsReport:
    """Every registered method.

    Raises:
        PluginError: one is no method, or can't be imported.
    """
    return MethodsReport(
        methods=tuple(_entry(one.name, host) for one in sorted(host.quantizations(), key=lambda one: one.name))
    )


def _entry(name: str, host: PluginHost) -> MethodEntry:
    method = method_class(name, host)
    (registered,) = (one for one in host.quantizations() if one.name == name)
    origin = host.origin(registered)
    return MethodEntry(
        name=name,
        distribution=origin.distribution,
        version=origin.version,
        meaning=(method.__doc__ or "").strip().partition("\n")[0].replace("``", ""),
        bound=method.bound,
        options=tuple(_option(option, field) for option, field in method.model_fields.items()),
    )


def _option(name: str, field: FieldInfo) -> OptionEntry:
    default = "required" if field.is_required() else _text(field.default)
    return OptionEntry(
        name=name, default=default, values=_values(field.annotation, field), meaning=field.description or ""
    )


def _values(kind: Any, field: FieldInfo) -> str:
    """What a field takes, as a person writes it."""
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if kind is bool:
        return "true, false"
    limits = [f"{sign} {limit}" for part in field.metadata for sign, limit in _limits(part)]
    names = [one.__name__ for one in get_args(kind) or (kind,) if one is not type(None)]
    return " ".join([" or ".join(names), *limits])


def _limits(part: Any) -> list[tuple[str, Any]]:
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
    return [(sign, getattr(part, name)) for name, sign in signs if getattr(part, name, None) is not None]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
