"""What a model's ``config.json`` says, checked and folded: the base of every family's config.

Old and new spellings are folded into one field each (``rope``, ``dtype``); keys that would change the mathematics in a
way the family does not implement are refused by name; other unknown keys are ignored and listed in ``ignored_keys``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bestiary.core.errors import ConfigError

__all__ = ["ModelConfig", "Rope"]

# Far above any model there is, low enough that a damaged number can't make a shape that overflows or a loop that hangs.
_LARGEST = 2**27
Size = Annotated[int, Field(gt=0, le=_LARGEST)]
Layers = Annotated[int, Field(gt=0, le=4096)]
Positive = Annotated[float, Field(gt=0)]

_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
_SCALED = ("linear", "dynamic", "llama3", "yarn")
_DTYPES = ("float32", "bfloat16", "float16", "float64")

# Keys of config.json that say nothing about the forward pass, or that others read from the raw config.
_SILENT = frozenset(
    [
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "eos_token_id",
        "initializer_range",
        "model_type",
        "pad_token_id",
        "transformers_version",
        "use_cache",
        "unk_token_id",
        "is_decoder",
        "is_encoder_decoder",
    ]
)
_ROPE_KEYS = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)


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


class ModelConfig(BaseModel):
    """Base of a family's config: the fields every decoder has. Build one from ``config.json`` with :meth:`parse`.

    A subclass adds its fields by their names in ``config.json``, and in ``neutral`` the keys that would change its
    mathematics, each with the values that do not.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "pretraining_tp": (None, 0, 1),
        "is_encoder_decoder": (None, False),
    }
    default_rope_theta: ClassVar[float] = 10000.0

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Layers
    max_position_embeddings: Size = 2048
    rope: Rope = Rope()
    dtype: str | None = None
    ignored_keys: tuple[str, ...] = ()

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """The config from the object in ``config.json``.

        Raises:
            ConfigError: a value is missing, of the wrong type or out of range, or a key changes the mathematics.
        """
        try:
            return cls.model_validate(dict(raw))
        except ValidationError as e:
            raise _config_error(e) from None

    @model_validator(mode="before")
    @classmethod
    def _fold(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        cls._refuse(raw)
        values = {key: value for key, value in raw.items() if key in cls.model_fields}
        # A null means "not set" in config.json: the family's default holds.
        values = {k: v for k, v in values.items() if v is not None or cls.model_fields[k].is_required()}
        if "rope" not in raw:
            values["rope"] = _fold_rope(raw, cls.default_rope_theta)
        values["dtype"] = _fold_dtype(raw)
        known = {*cls.model_fields, *cls._all_neutral(), *_SILENT, *_ROPE_KEYS, "torch_dtype", "quantization_config"}
        values["ignored_keys"] = tuple(sorted(set(raw) - known)) or tuple(raw.get("ignored_keys", ()))
        return values

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int) and abs(value) > _LARGEST:
                raise ConfigError(
                    "E-CFG-FIELD",
                    f"config.json, field {name}",
                    "is absurd",
                    found=_shown(value),
                    expected=f"at most {_LARGEST}",
                )
        return self

    @classmethod
    def _all_neutral(cls) -> dict[str, tuple[Any, ...]]:
        found: dict[str, tuple[Any, ...]] = {}
        for base in reversed(cls.__mro__):
            found.update(base.__dict__.get("neutral", {}))
        return found

    @classmethod
    def _refuse(cls, raw: Mapping[str, Any]) -> None:
        for key, allowed in cls._all_neutral().items():
            if key in raw and not any(raw[key] is a or (type(raw[key]) is type(a) and raw[key] == a) for a in allowed):
                raise ConfigError(
                    "E-CFG-UNSUPPORTED",
                    f"config.json, field {key}",
                    f"changes the mathematics in a way {cls.__name__} does not implement",
                    found=_shown(raw[key]),
                    expected=" or ".join("null" if a is None else repr(a) for a in allowed),
                )
        if raw.get("quantization_config") is not None:
            method = raw["quantization_config"]
            name = method.get("quant_method", "unnamed") if isinstance(method, Mapping) else "unnamed"
            raise ConfigError(
                "E-CFG-QUANTIZED",
                "config.json, field quantization_config",
                f"weights quantized with method {name!r} can't be read by the installed plugins",
                hint="convert the unquantized model, or a GGUF file of it",
            )


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _config_error(error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "values"
    missing = first["type"] == "missing"
    return ConfigError(
        "E-CFG-FIELD",
        f"config.json, field {field}",
        "is missing" if missing else "has a wrong value",
        found=None if missing else _shown(first["input"]),
        expected=None if missing else first["msg"].removeprefix("Input should be ").removeprefix("Value error, "),
    )


def _fold_dtype(raw: Mapping[str, Any]) -> str | None:
    found = {key: raw[key] for key in ("dtype", "torch_dtype") if raw.get(key) is not None}
    names = {str(value).removeprefix("torch.") for value in found.values()}
    if len(names) > 1:
        raise ConfigError(
            "E-CFG-CONTRADICTION",
            "config.json, fields dtype and torch_dtype",
            "contradict each other",
            found=_shown(found),
        )
    for key, value in found.items():
        if not isinstance(value, str) or not names <= set(_DTYPES):
            raise ConfigError(
                "E-CFG-FIELD",
                f"config.json, field {key}",
                "is no dtype of weights",
                found=_shown(value),
                expected=", ".join(_DTYPES),
            )
    return next(iter(names), None)


def _fold_rope(raw: Mapping[str, Any], default_theta: float) -> Rope:
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
            "E-CFG-ROPE", subject, "has a wrong value", found=_shown(first["input"]), expected=expected
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
                found=_shown(value),
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
            found=_shown(kind),
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
        found=f"{_shown(old)} and {_shown(new)}",
        hint="remove the one that does not belong to the model",
    )
