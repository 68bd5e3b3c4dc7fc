"""Rotary position embedding as configs spell it: one value from ``rope_theta``, ``rope_scaling`` and ``rope_parameters``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bestiary.core.errors import ConfigError, shown

# Far above any model there is, low enough that a damaged number can't make a shape that overflows or a loop that hangs.
LARGEST = 2**27
Size = Annotated[int, Field(gt=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0)]
ROPE_KEYS = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
_SCALED = ("linear", "dynamic", "llama3", "yarn")


class Rope(BaseModel):
    """Rotary position embedding. Hashable, so that equal ones can share their tables.

    Args:
        kind: how the frequencies are scaled, with the meaning transformers gives the name.
        theta: base of the geometric series of frequencies.
        factor: how much longer the context is made; all kinds but ``default``.
        original_max_position: length in tokens that the model was trained for; ``dynamic``, ``llama3`` and ``yarn``.
        low_freq_factor, high_freq_factor: ``llama3``: where the interpolation begins and ends.
        beta_fast, beta_slow: ``yarn``: rotations at which the interpolation begins and ends.
        attention_factor: ``yarn``: factor on cos and sin; None: from ``factor`` (and ``mscale``/``mscale_all_dim``).
        mscale, mscale_all_dim: ``yarn``: see ``attention_factor``.
        truncate: ``yarn``: round the interpolation's borders to whole dimensions.
        partial_rotary_factor: share of the head's dimensions that are rotated.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    theta: Positive = 10000.0
    factor: Positive = 1.0
    original_max_position: Size | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    attention_factor: Positive | None = None
    mscale: Annotated[float, Field(ge=0)] | None = None
    mscale_all_dim: Annotated[float, Field(ge=0)] | None = None
    truncate: bool = True
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] = 1.0

    def rotated(self, head_dim: int) -> int:
        """Features of a head that are rotated.

        Args:
            head_dim: features of a head.

        Raises:
            ConfigError: they are no whole number, or odd: rotary embedding turns pairs.
        """
        part = head_dim * self.partial_rotary_factor
        features = int(part)  # as transformers rounds
        if part - features > 1e-6 or features % 2:
            raise ConfigError(
                "E-CFG-ARITHMETIC",
                "config.json, field rope_parameters.partial_rotary_factor",
                f"does not give a whole, even number of a head's {head_dim} features, and rotary embedding turns pairs: "
                f"{head_dim} * {self.partial_rotary_factor} = {part}",
            )
        return features


def fold_rope(raw: Mapping[str, Any], default_theta: float) -> Rope:
    """The rope of a config in any of its spellings; the rules are those of transformers' rope utilities."""
    field, given = _rope_object(raw)
    kind = _rope_kind(field, given)
    values: dict[str, Any] = {"kind": kind, "theta": default_theta}
    for key, name in (("rope_theta", "theta"), ("partial_rotary_factor", "partial_rotary_factor")):
        value = _agreeing(key, raw.get(key), f"{field}.{key}", given.get(key))
        if value is not None:
            values[name] = value
    if kind in _SCALED:
        values |= _scaling(kind, field, given, raw)
    try:
        return Rope.model_validate(values)
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False)[0]
        spelled = {"theta": "rope_theta", "original_max_position": "original_max_position_embeddings"}
        key = spelled.get(str(first["loc"][0]), str(first["loc"][0]))
        subject = f"config.json, field {key if key in raw and key not in given else f'{field}.{key}'}"
        expected = first["msg"].removeprefix("Input should be ")
        raise ConfigError(
            "E-CFG-ROPE", subject, "has a wrong value", found=typed(first["input"]), expected=expected
        ) from None


def _rope_object(raw: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    objects: dict[str, dict[str, Any]] = {}
    for field in ("rope_parameters", "rope_scaling"):
        value = raw.get(field)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(
                "E-CFG-ROPE",
                f"config.json, field {field}",
                "has a wrong value",
                found=typed(value),
                expected="an object",
            )
        objects[field] = dict(value)
        for key, inner in value.items():
            if isinstance(inner, Mapping):
                raise ConfigError(
                    "E-CFG-ROPE",
                    f"config.json, field {field}.{key}",
                    "a rope for each kind of layer is not implemented",
                )
    if len(objects) == 2:
        new, old = objects["rope_parameters"], objects["rope_scaling"]
        for key in sorted(set(new) & set(old)):
            _agreeing(f"rope_scaling.{key}", old[key], f"rope_parameters.{key}", new[key])
        if _rope_kind("rope_parameters", new) != _rope_kind("rope_scaling", old):
            raise _contradiction("rope_scaling", "rope_parameters", old, new)
        return "rope_parameters", {**old, **new}
    return next(iter(objects.items()), ("rope_parameters", {}))


def _rope_kind(field: str, given: Mapping[str, Any]) -> str:
    kind = _agreeing(f"{field}.type", given.get("type"), f"{field}.rope_type", given.get("rope_type"))
    if kind is None and field == "rope_scaling" and given:
        raise ConfigError(
            "E-CFG-ROPE", "config.json, field rope_scaling.rope_type", "is missing", expected=", ".join(_KINDS)
        )
    kind = "default" if kind is None else kind
    if kind not in _KINDS:
        key = "rope_type" if "rope_type" in given else "type"
        raise ConfigError(
            "E-CFG-ROPE",
            f"config.json, field {field}.{key}",
            "is no known kind of rope",
            found=typed(kind),
            expected=", ".join(_KINDS),
        )
    return str(kind)


def _scaling(kind: str, field: str, given: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    values = {
        key: given[key] for key in ("factor", "low_freq_factor", "high_freq_factor") if given.get(key) is not None
    }
    longest = raw.get("max_position_embeddings")
    if longest is None:
        longest = 2048
    if kind == "dynamic":
        values["original_max_position"] = longest
    elif kind in ("llama3", "yarn"):
        key = "original_max_position_embeddings"
        original = _agreeing(key, raw.get(key), f"{field}.{key}", given.get(key))
        values["original_max_position"] = longest if original is None else original
    if kind == "yarn":
        keys = ("attention_factor", "mscale", "mscale_all_dim", "truncate")
        values |= {key: given[key] for key in keys if given.get(key) is not None}
        # transformers reads a zero as "not given" here.
        values |= {key: given[key] for key in ("beta_fast", "beta_slow") if given.get(key)}
    needed = ("factor", "low_freq_factor", "high_freq_factor") if kind == "llama3" else ("factor",)
    for key in needed:
        if key not in values:
            raise ConfigError(
                "E-CFG-ROPE", f"config.json, field {field}.{key}", f"is missing, and rope of kind {kind!r} needs it"
            )
    if kind == "llama3" and _number(values["high_freq_factor"]) <= _number(values["low_freq_factor"]):
        raise ConfigError(
            "E-CFG-ROPE",
            f"config.json, field {field}.high_freq_factor",
            "is not above low_freq_factor",
            found=f"{values['high_freq_factor']} and {values['low_freq_factor']}",
        )
    return values


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _agreeing(old_field: str, old: Any, new_field: str, new: Any) -> Any:
    """The value that two spellings give; refused when both are there and differ."""
    if old is not None and new is not None and old != new:
        raise _contradiction(old_field, new_field, old, new)
    return old if new is None else new


def _contradiction(old_field: str, new_field: str, old: Any, new: Any) -> ConfigError:
    return ConfigError(
        "E-CFG-CONTRADICTION",
        f"config.json, fields {old_field} and {new_field}",
        "contradict each other",
        found=f"{typed(old)} and {typed(new)}",
        hint="remove the one that does not belong to the model",
    )


def typed(value: Any) -> str:
    """A value of config.json for a message, with its type, which is often what is wrong with it."""
    return f"{shown(value)} ({type(value).__name__})"
