"""What a model's ``config.json`` says, checked and folded: the base of every family's config.

Old and new spellings are folded into one field each (``rope``, ``dtype``); keys that would change the mathematics in a
way the family does not implement are refused by name; other unknown keys are ignored and listed in ``ignored_keys``.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import get_annotations
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bestiary.core.errors import ConfigError
from bestiary.core.rope import LARGEST, ROPE_KEYS, Rope, Size, fold_rope, typed

__all__ = ["ModelConfig", "Rope"]

Layers = Annotated[int, Field(gt=0, le=4096)]
_DTYPES = ("float32", "bfloat16", "float16", "float64")

# Keys of config.json that say nothing about the forward pass, or that others read from the raw config.
SILENT = frozenset(
    [
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_pdrop",
        "embd_pdrop",
        "embedding_dropout",
        "hidden_dropout",
        "hidden_dropout_prob",
        "resid_pdrop",
        "residual_dropout",
        "bos_token_id",
        "eos_token_id",
        "initializer_range",
        "model_type",
        "output_router_logits",
        "pad_token_id",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "transformers_version",
        "use_cache",
        "unk_token_id",
        "is_decoder",
        "is_encoder_decoder",
    ]
)


class ModelConfig(BaseModel):
    """Base of a family's config: the fields every decoder has. Build one from ``config.json`` with :meth:`parse`.

    A subclass adds its fields by their names in ``config.json``, and in ``neutral`` the keys that would change its
    mathematics, each with the values that do not. Keys that are known to change the mathematics of some family are refused
    already, unless the subclass has a field for them.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "pretraining_tp": (None, 0, 1),
        "is_encoder_decoder": (None, False),
        "sliding_window": (None,),
        "use_sliding_window": (None, False),
        "layer_types": (None,),
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        "logits_scaling": (None, 1.0, 1),
        "logit_scale": (None, 1.0, 1),
        "embedding_multiplier": (None, 1.0, 1),
        "residual_multiplier": (None, 1.0, 1),
        "attention_multiplier": (None,),
        "query_pre_attn_scalar": (None,),
        "use_qk_norm": (None, False),
        "clip_qkv": (None,),
        "alibi": (None, False),
    }
    default_rope_theta: ClassVar[float] = 10000.0

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Layers
    max_position_embeddings: Size = 2048
    rope: Rope = Rope()
    dtype: str | None = None
    ignored_keys: tuple[str, ...] = ()

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence. Linear and dynamic rotation extend what ``max_position_embeddings`` says."""
        stretched = self.rope.kind in ("linear", "dynamic")
        return int(self.max_position_embeddings * (self.rope.factor if stretched else 1))

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
            values["rope"] = fold_rope(raw, cls.default_rope_theta)
        values["dtype"] = _fold_dtype(raw)
        known = {*cls.model_fields, *cls._all_neutral(), *SILENT, *ROPE_KEYS, "torch_dtype", "quantization_config"}
        values["ignored_keys"] = tuple(sorted(set(raw) - known)) or tuple(raw.get("ignored_keys", ()))
        return values

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int) and abs(value) > LARGEST:
                raise ConfigError(
                    "E-CFG-FIELD",
                    f"config.json, field {name}",
                    "is absurd",
                    found=typed(value),
                    expected=f"at most {LARGEST}",
                )
        return self

    @classmethod
    def _all_neutral(cls) -> dict[str, tuple[Any, ...]]:
        found: dict[str, tuple[Any, ...]] = {}
        for base in reversed(cls.__mro__):
            for name in get_annotations(base):
                found.pop(name, None)  # a field now, whose values are the subclass's affair
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
                    found=typed(raw[key]),
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


def _config_error(error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "values"
    missing = first["type"] == "missing"
    return ConfigError(
        "E-CFG-FIELD",
        f"config.json, field {field}",
        "is missing" if missing else "has a wrong value",
        found=None if missing else typed(first["input"]),
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
            found=typed(found),
        )
    for key, value in found.items():
        if not isinstance(value, str) or not names <= set(_DTYPES):
            raise ConfigError(
                "E-CFG-FIELD",
                f"config.json, field {key}",
                "is no dtype of weights",
                found=typed(value),
                expected=", ".join(_DTYPES),
            )
    return next(iter(names), None)
