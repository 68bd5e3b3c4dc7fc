"""A family with a sliding window, and others that differ from it by one mistake each; none is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from bestiary import Model, hookimpl
from bestiary.converters import WeightMap
from bestiary.converters.operations import Copy
from bestiary.layers import Attention, CausalLM, Embedding, GatedMLP, Head, LayerStack, RMSNorm, Step
from bestiary.spec import ModelConfig
from bestiary.testing import ModelConformance

TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "sliding_window": 6,
    "tie_word_embeddings": False,
}


class Config(ModelConfig):
    neutral: ClassVar = {
        "hidden_act": (None, "silu"),
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        "partial_rotary_factor": (None, 1.0),
    }
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    rms_norm_eps: float
    sliding_window: PositiveInt | None = 4096

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.num_attention_heads % self.num_key_value_heads:
            from bestiary import ConfigError

            raise ConfigError("E-CFG-ARITHMETIC", "config.json, field num_key_value_heads", "does not divide the heads")
        return self


class Trusting(ModelConfig):
    """Takes whatever it is given."""

    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    sliding_window: int | None = 4096


class OtherDefault(Config):
    """Takes another epsilon than the reference where config.json does not say it."""

    rms_norm_eps: float = 1e-5


class Secretive(Config):
    """Does not say what it ignored."""

    @model_validator(mode="after")
    def _forget(self) -> Secretive:
        object.__setattr__(self, "ignored_keys", ())
        return self


class Layer(nn.Module):
    def __init__(self, c: Config, window: int | None) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.attention = Attention(
            c.hidden_size,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            rope=c.rope,
            window=window,
        )
        self.mlp_norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.mlp = GatedMLP(c.hidden_size, c.intermediate_size, act="silu")

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x))


class Windowed(CausalLM):
    layer: ClassVar[type[Layer]] = Layer

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.layers = LayerStack(c.num_hidden_layers, lambda index: self.layer(c, self.window(c)))
        self.norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.head = Head(c.hidden_size, c.vocab_size)

    def window(self, c: Config) -> int | None:
        return c.sliding_window


class Forgetful(Windowed):
    def window(self, c: Config) -> int | None:
        return None


class _FixedHeads(Layer):
    """Knows the size of heads better than ``head_dim``."""

    def __init__(self, c: Config, window: int | None) -> None:
        super().__init__(c.model_copy(update={"head_dim": c.hidden_size // c.num_attention_heads}), window)


class FixedHeads(Windowed):
    layer = _FixedHeads


class OffByOne(Windowed):
    def window(self, c: Config) -> int | None:
        return (c.sliding_window or 0) + 1


class _Normless(Layer):
    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(x)


class Normless(Windowed):
    layer = _Normless


class _TwoFaced(Layer):
    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = super().forward(x, step)
        return x * 1.001 if isinstance(x, Tensor) else x  # the trace does not see a tensor


class TwoFaced(Windowed):
    layer = _TwoFaced


class _CountsHeads(Layer):
    """Names the number of heads in its forward, which a rank does not have."""

    def forward(self, x: Tensor, step: Step) -> Tensor:
        gate = self.mlp.gate(self.mlp_norm(x)).unflatten(-1, (2, 16)).flatten(-2)
        return super().forward(x, step) + 0 * self.mlp.down(gate)


class CountsHeads(Windowed):
    layer = _CountsHeads


L, M, B = "layers.{}", "model.layers.{}", "blk.{}"
ROWS: dict[str, Any] = {
    "embed": "model.embed_tokens",
    f"{L}.attention_norm": f"{M}.input_layernorm",
    f"{L}.attention.q": f"{M}.self_attn.q_proj",
    f"{L}.attention.k": f"{M}.self_attn.k_proj",
    f"{L}.attention.v": f"{M}.self_attn.v_proj",
    f"{L}.attention.o": f"{M}.self_attn.o_proj",
    f"{L}.mlp_norm": f"{M}.post_attention_layernorm",
    f"{L}.mlp.gate": f"{M}.mlp.gate_proj",
    f"{L}.mlp.up": f"{M}.mlp.up_proj",
    f"{L}.mlp.down": f"{M}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}


class _Rounding(Copy):
    """Loses bits on the way out."""

    def reverse(self, targets: Sequence[Tensor], config: Any) -> list[Tensor]:
        return [target.bfloat16().to(target.dtype) for target in targets]


HF = WeightMap(ROWS)
SWAPPED_QK = WeightMap(
    {**ROWS, f"{L}.attention.q": f"{M}.self_attn.k_proj", f"{L}.attention.k": f"{M}.self_attn.q_proj"}
)
SWAPPED_MLP = WeightMap({**ROWS, f"{L}.mlp.gate": f"{M}.mlp.up_proj", f"{L}.mlp.up": f"{M}.mlp.gate_proj"})
MISSPELT = WeightMap({**ROWS, f"{L}.mlp.up": f"{M}.mlp.upp_proj"})
ROUNDING = WeightMap({**ROWS, "norm": _Rounding("model.norm")})
WHOLE_GGUF = WeightMap({row: row for row in ROWS})
SHORT_GGUF = WeightMap({row: row for row in ROWS if row != "norm"})


@dataclass(frozen=True)
class Family:
    """What makes a family."""

    config: str = "Config"
    model: str = "Windowed"
    hf: str = "HF"
    gguf: str | None = "WHOLE_GGUF"
    conformance: str | None = None


#: By name; ``windowed`` has no mistake.
FAMILIES = {
    "windowed": Family(),
    "forgets_the_window": Family(model="Forgetful"),
    "window_off_by_one": Family(model="OffByOne"),
    "swaps_q_and_k": Family(hf="SWAPPED_QK"),
    "swaps_gate_and_up": Family(hf="SWAPPED_MLP"),
    "misspells_a_row": Family(hf="MISSPELT"),
    "leaves_a_norm_out": Family(model="Normless"),
    "trusts_its_config": Family(config="Trusting"),
    "hides_what_it_ignores": Family(config="Secretive"),
    "takes_another_default": Family(config="OtherDefault"),
    "ignores_head_dim": Family(model="FixedHeads"),
    "exports_rounded": Family(hf="ROUNDING"),
    "lacks_a_gguf_row": Family(gguf="SHORT_GGUF"),
    "is_two_faced": Family(model="TwoFaced"),
    "counts_heads": Family(model="CountsHeads"),
    "about_another": Family(conformance="windowed"),
    "without_a_kit": Family(conformance="Windowed"),
    "keys_only": Family(),
    "trusting_keys_only": Family(config="Trusting"),
}


def architecture(name: str) -> str:
    return f"{name.title().replace('_', '')}ForCausalLM"


def gguf_config(file: Any) -> dict[str, Any]:
    raise AssertionError("no file is read")


@hookimpl
def bestiary_register_models(register: Callable[[Model], None]) -> None:
    for name, family in FAMILIES.items():
        weights = {"hf": family.hf} | ({"gguf": family.gguf} if family.gguf else {})
        register(
            Model(
                name=name,
                architectures=(architecture(name),),
                config=f"{__name__}:{family.config}",
                model=f"{__name__}:{family.model}",
                weights={form: f"{__name__}:{attribute}" for form, attribute in weights.items()},
                gguf=(name,) if family.gguf else (),
                gguf_config=f"{__name__}:gguf_config" if family.gguf else None,
                conformance=f"{__name__}:{family.conformance or name}",
            )
        )


def reference(config: dict[str, Any]) -> nn.Module:
    """transformers' own windowed model, under the family's name."""
    from transformers import MistralConfig, MistralForCausalLM

    said = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    return MistralForCausalLM(MistralConfig(**said))


_BESIDES = "the mistakes in these families show without two more processes"
_ELSEWHERE = "other families of this module are for the other checks"


def _conformance(name: str) -> type[ModelConformance]:
    waived = dict.fromkeys(("test_tensor_parallel", "test_pipeline_parallel", "test_deterministic"), _BESIDES)
    if name.endswith("keys_only"):
        checks = [check for check in dir(ModelConformance) if check.startswith("test_") and not check.endswith("_keys")]
        waived = dict.fromkeys(checks, _ELSEWHERE)
    body = {"model": name, "configs": {"tiny": TINY}, "reference": staticmethod(reference)}
    return type(ModelConformance)(
        name, (ModelConformance,), {**body, "waived": {} if name == "counts_heads" else waived}
    )


globals().update({name: _conformance(name) for name in FAMILIES})
