"""What a draft's model has: biases, norms, windows, experts; told from the tensors, and from config.json where it must be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bestiary.core.config import ModelConfig, Rope
from bestiary.core.errors import ConfigError
from bestiary.core.rope import ROPE_KEYS, fold_rope
from bestiary.core.scaffold.defaults import GUESSES, Defaults
from bestiary.core.scaffold.sizes import BIASES, EPSILONS, EXPERT_SIZES, EXPERTS, first
from bestiary.core.scaffold.tensors import Placement
from bestiary.core.scaffold.tiny import literal

ACTIVATIONS = ("silu", "relu", "gelu", "gelu_pytorch_tanh")
# Fields that the template's config always has.
_ALWAYS = (
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "tie_word_embeddings",
)
_BASE = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "dtype")
_NORMS = ("attention_norm", "post_attention_norm", "mlp_norm", "post_mlp_norm")


@dataclass
class Features:
    """The template's values that follow from a model's parts.

    Args:
        values: for ``_draft``.
        read: keys of config.json that the drafted config reads, or whose meaning is built in.
        facts: for the table in the README.
        left: what could not be told.
        defaults: what is taken for keys that config.json leaves out, and from where, a sentence each.
        fields: of the config: name, type, default.
        spellings: other keys that mean one of the fields.
        known: what a config class takes for keys that are left out.
    """

    values: dict[str, Any] = field(default_factory=dict)
    read: set[str] = field(default_factory=lambda: {*_ALWAYS, *_BASE, *BIASES})
    facts: list[tuple[str, str]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    fields: list[tuple[str, str, str | None]] = field(default_factory=list)
    spellings: dict[str, str] = field(default_factory=dict)
    known: Defaults = field(default_factory=Defaults)

    @classmethod
    def of(cls, raw: Mapping[str, Any], placement: Placement, known: Defaults) -> Features:
        """The features of a config.json and its tensors; ``known`` is what holds for keys that it leaves out."""
        found = cls(known=known)
        found._activation(raw)
        found._norms(raw, placement)
        found._sizes(raw)
        found._rope(raw)
        found._biases(raw, placement)
        found._scale(raw)
        found._window(raw)
        found._unsaid(raw)
        found._experts(raw, placement)
        found._tied(raw, placement)
        found.values["fields"] = found.fields
        found.facts.append(("head", "its own" if "head" in placement.modules else "tied"))
        return found

    def _field(self, raw: Mapping[str, Any], key: str, type: str, default: str | None) -> bool:
        """Give the config a field for a key that config.json has."""
        if raw.get(key) is None:
            return False
        self.fields.append((key, type, default))
        self.read.add(key)
        return True

    def _activation(self, raw: Mapping[str, Any]) -> None:
        default = self.known.of("hidden_act")
        self.values["act"] = default if default in ACTIVATIONS else "silu"
        if raw.get("hidden_act") is None:
            self._left_out("hidden_act")
        if (act := raw.get("hidden_act") or default) not in ACTIVATIONS:
            self.left.append(f"key `hidden_act` = `{str(act)[:40]}`: bestiary's MLPs know {', '.join(ACTIVATIONS)}")

    def _norms(self, raw: Mapping[str, Any], placement: Placement) -> None:
        eps = first(raw, EPSILONS) or first(self.known.values, EPSILONS) or EPSILONS[0]
        if raw.get(eps) is None:
            self._left_out(eps)
        self.values["eps_default"] = repr(float(self.known.of(eps)))
        norms = [norm for norm in _NORMS if norm in placement.modules]
        qk = {f"attention.{which}_norm" for which in "qk"} <= set(placement.modules)
        self.values |= {"eps": eps, "norms": norms, "qk_norm": qk}
        self.read.add(eps)
        self.facts.append(("norms of a layer", ", ".join([*norms, *(["q_norm", "k_norm"] if qk else [])]) or "none"))

    def _biases(self, raw: Mapping[str, Any], placement: Placement) -> None:
        biased = placement.biased
        of_qkv = "attention" in biased or "attention.q" in biased
        of_o, of_mlp = "attention.o" in biased, bool(biased & {"mlp", "mlp.gate"})
        if "attention" not in placement.modules and len(biased & {f"attention.{one}" for one in "qkv"}) not in (0, 3):
            self.left.append("q, k and v: some have biases and some have not, and bestiary's attention has all or none")
        if of_mlp != ("mlp.down" in biased):
            self.left.append(
                "gate, up and down: some have biases and some have not, and bestiary's MLP has all or none"
            )
        output = self._bias(raw, "output", of_o)
        self.values |= {"bias": self._bias(raw, "qkv", of_qkv), "mlp_bias": self._bias(raw, "mlp", of_mlp)}
        self.values["output_bias"] = None if output == str(of_qkv) else output
        fields = {name for name, _, _ in self.fields}
        # Which tensors there are is told by the tensors: a config that says otherwise is another's.
        neutral = [(key, raw[key]) for key in BIASES if type(raw.get(key)) is bool and key not in fields]
        self.values["neutral"] = neutral
        self.left += [
            f"key `{key}` = `{json.dumps(value)}`: the tensors say otherwise"
            for key, value in neutral
            if value != self.known.of(key)
        ]
        said = [name for name, has in (("q, k, v", of_qkv), ("o", of_o), ("MLP", of_mlp)) if has]
        self.facts.append(("biases", "; ".join(said) or "none"))

    def _bias(self, raw: Mapping[str, Any], part: str, found: bool) -> str:
        """The field that says whether a part has biases, where a key agrees with the tensors; else what the tensors say."""
        for key in (key for key, parts in BIASES.items() if part in parts):
            said = raw.get(key, self.known.values.get(key))
            if type(said) is not bool or (said != found and key in raw):
                continue
            if said != found:
                self.left.append(
                    f"key `{key}`: config.json leaves it out, and {self.known.source} takes `{json.dumps(said)}`; the draft "
                    f"takes `{json.dumps(found)}`, as the tensors have it"
                )
                continue
            if key not in (name for name, _, _ in self.fields):
                self.fields.append((key, "bool", str(self.known.of(key))))
                if key not in raw:
                    self._left_out(key)
            return f"c.{key}"
        return str(found)

    def _left_out(self, key: str, says: str | None = None) -> None:
        """Tell what is taken for a key; a guess is something to look at."""
        (self.defaults if key in self.known.values else self.left).append(self.known.told(key, says))

    def _sizes(self, raw: Mapping[str, Any]) -> None:
        """Fields whose defaults are not those of every config."""
        longest, kv, head = (
            self.known.values.get(key) for key in ("max_position_embeddings", "num_key_value_heads", "head_dim")
        )
        hidden, heads = raw.get("hidden_size"), raw.get("num_attention_heads")
        derived = hidden // heads if type(hidden) is type(heads) is int and heads > 0 else None
        sizes = {"max_position_embeddings": longest if longest != GUESSES["max_position_embeddings"] else None}
        sizes |= {"num_key_value_heads": kv if kv != heads else None, "head_dim": head if head != derived else None}
        self.values["sizes"] = [(key, value) for key, value in sizes.items() if type(value) is int and value > 0]
        for key in (key for key, _ in self.values["sizes"]):
            if raw.get(key) is None:
                self.defaults.append(self.known.told(key))

    def _rope(self, raw: Mapping[str, Any]) -> None:
        given = self.known.of("rope_parameters")
        try:
            rope = fold_rope({"rope_parameters": given}, GUESSES["rope_parameters"]["rope_theta"])
        except ConfigError:
            self.values |= {"theta": None, "rope": None}
            if not set(ROPE_KEYS) & set(raw):
                self.left.append(self.known.told("rope_parameters", "theta 10000, for it knows no other"))
            return
        plain = rope == Rope(theta=rope.theta)
        self.values |= {"theta": rope.theta if plain and rope.theta != 10000.0 else None}
        self.values["rope"] = None if plain else literal(given, "")
        if not set(ROPE_KEYS) & set(raw):
            self._left_out("rope_parameters")

    def _tied(self, raw: Mapping[str, Any], placement: Placement) -> None:
        told, key = "head" not in placement.modules, "tie_word_embeddings"
        default = self.known.values.get(key, told)
        self.values["tied"] = str(bool(default))
        if key not in raw and bool(default) != told:
            self.left.append(self.known.told(key) + f"; the tensors say {str(told).lower()}")

    def _unsaid(self, raw: Mapping[str, Any]) -> None:
        """What changes the mathematics though config.json does not say it."""
        fields = {name for name, _, _ in self.fields}
        for key, allowed in ModelConfig.neutral.items():
            value = self.known.values.get(key)
            plain = value in allowed or (isinstance(value, list) and set(map(str, value)) <= {"full_attention"})
            if key not in raw and key not in fields and not plain:
                text = " ".join(repr(value).split())[:60].replace("`", "'")
                self.left.append(
                    f"key `{key}`: config.json leaves it out, and {self.known.source} takes `{text}`, which changes the "
                    "mathematics; nothing reads it"
                )

    def _scale(self, raw: Mapping[str, Any]) -> None:
        self.values["scale"] = None
        if self._field(raw, "query_pre_attn_scalar", "PositiveFloat", None):
            self.values["scale"] = "c.query_pre_attn_scalar**-0.5"
        elif self._field(raw, "attention_multiplier", "PositiveFloat", None):
            self.values["scale"] = "c.attention_multiplier"

    def _window(self, raw: Mapping[str, Any]) -> None:
        keys = ("sliding_window", "use_sliding_window", "layer_types")
        self.values["window"] = None
        if all(raw.get(key) is None for key in keys):
            self.read |= set(keys)
            return
        self.read |= {*keys, "max_window_layers"}
        switched = raw.get("use_sliding_window") is not None
        window = self.known.values.get("sliding_window")
        window = window if type(window) is int and window > 0 else None
        if window and "sliding_window" not in raw:
            self._left_out("sliding_window")
        self.fields += [
            ("sliding_window", "PositiveInt | None", repr(window)),
            ("use_sliding_window", "bool", str(not switched)),
            ("layer_types", "list[str] | None", "None"),
        ]
        first_layer = switched and self._field(raw, "max_window_layers", "NonNegativeInt", "0")
        self.values["window"] = {"first": first_layer}
        if isinstance(kinds := raw.get("layer_types"), list):
            for kind in sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"}):
                self.left.append(f"key `layer_types`: `{kind[:40]}` is no kind of attention that the template has")
        used = raw.get("sliding_window") is not None and raw.get("use_sliding_window") is not False
        self.facts.append(("sliding window", str(raw["sliding_window"])[:20] if used else "none"))

    def _experts(self, raw: Mapping[str, Any], placement: Placement) -> None:
        self.values["moe"] = None
        if "moe.experts.gate" not in placement.modules:
            return
        experts, size = first(raw, EXPERTS) or EXPERTS[0], first(raw, EXPERT_SIZES) or EXPERT_SIZES[0]
        self._field(raw, experts, "PositiveInt", None)
        # transformers writes another of these names than it reads.
        self.spellings = {key: experts for key in EXPERTS if key != experts}
        if not self._field(raw, "num_experts_per_tok", "PositiveInt", None):
            self.fields.append(("num_experts_per_tok", "PositiveInt", None))
            self.left.append("key `num_experts_per_tok`: config.json does not say how many experts a token goes to")
        if size != "intermediate_size":
            self._field(raw, size, "PositiveInt", None)
        renormalized = str(bool(self.known.of("norm_topk_prob")))
        renormalize = "c.norm_topk_prob" if self._field(raw, "norm_topk_prob", "bool", renormalized) else renormalized
        if renormalize == renormalized and "norm_topk_prob" in self.known.values:
            self._left_out("norm_topk_prob")
        scale = "c.routed_scaling_factor" if self._field(raw, "routed_scaling_factor", "PositiveFloat", "1.0") else None
        scoring = raw.get("scoring_func", "softmax")
        self.read.add("scoring_func")
        if scoring not in ("softmax", "sigmoid"):
            self.left.append(f"key `scoring_func` = `{str(scoring)[:40]}`: bestiary's MoE knows softmax and sigmoid")
            scoring = "softmax"
        self.values["moe"] = {
            "experts": experts,
            "top_k": "num_experts_per_tok",
            "intermediate": size,
            "renormalize": renormalize,
            "scale": scale,
            "scoring": scoring,
            "shared": self._shared(raw, placement, size),
            "shared_gate": "moe.shared_gate" in placement.modules,
            "sparse": self._sparse(raw, placement),
        }
        shared = ", and a shared one" if "moe.shared.gate" in placement.modules else ""
        self.facts.append(
            ("experts", f"{raw.get(experts)!r:.20}, {raw.get('num_experts_per_tok')!r:.20} of them for a token{shared}")
        )

    def _shared(self, raw: Mapping[str, Any], placement: Placement, size: str) -> str | None:
        if "moe.shared.gate" not in placement.modules:
            return None
        if self._field(raw, "shared_expert_intermediate_size", "PositiveInt", None):
            return "c.shared_expert_intermediate_size"
        self._field(raw, "n_shared_experts", "PositiveInt", "1")
        return f"c.n_shared_experts * c.{size}"

    def _sparse(self, raw: Mapping[str, Any], placement: Placement) -> str | None:
        """The condition for a layer to have experts, where config.json may except some."""
        parts = []
        if self._field(raw, "mlp_only_layers", "list[int] | None", "None"):
            parts.append("index not in (self.mlp_only_layers or ())")
        if self._field(raw, "decoder_sparse_step", "PositiveInt", "1"):
            parts.append("(index + 1) % self.decoder_sparse_step == 0")
        if self._field(raw, "first_k_dense_replace", "NonNegativeInt", "0"):
            parts.append("index >= self.first_k_dense_replace")
        mixed = "mlp.gate" in placement.modules
        if mixed and not parts:
            dense = sorted(placement.layers["mlp.gate"])
            self.left.append(
                f"layers {dense[:8]} have no experts, and no known key of config.json says so: config.py, `sparse`"
            )
            parts.append(f"index not in {set(dense)}")
        return " and ".join(parts) or None
