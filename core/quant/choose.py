"""From rules to a method for each parameter, and what a checkpoint's manifest says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.core.checkpoint.kv_scales import METHOD as KV_SCALES
from bestiary.core.checkpoint.parameters import parameters
from bestiary.core.errors import ConfigError, DataError, PluginError
from bestiary.core.ops.linear import embedding, linear
from bestiary.core.ops.moe import moe
from bestiary.core.plugins import resolve
from bestiary.core.program.program import Program, Weight
from bestiary.core.program.trace import trace
from bestiary.core.quant.method import Method, layout_of
from bestiary.core.quant.rules import NONE, Rule, choose, parse_rules

if TYPE_CHECKING:
    from bestiary.core.config import ModelConfig
    from bestiary.core.plugins import PluginHost
    from bestiary.spec import Model

#: Ops whose weights a rule without a pattern means. Embeddings, heads and routers are quantized where a rule names them.
_BY_DEFAULT = (linear, moe)
Methods = Mapping[str, Method]


class Chosen(NamedTuple):
    """A parameter's method, and the name that it is registered under."""

    name: str
    method: Method

    def record(self) -> dict[str, Any]:
        """For a manifest."""
        return {"method": self.name, **self.method.model_dump()}


def methods_for(text: str, model: Model, config: ModelConfig, host: PluginHost) -> dict[str, Chosen]:
    """The method of each parameter that the rules in ``text`` quantize.

    A module goes by its path in the model (``layers.0.mlp.down``), and by the names that the sources of its weights have
    (``model.layers.0.mlp.down_proj``).

    Raises:
        ConfigError: a rule is wrong or matches nothing, a method is unknown, an option is, or a weight's shape does not fit.
    """
    rules = parse_rules(text)
    made = {rule: _method(rule, host) for rule in rules if rule.method != NONE}
    from bestiary.core.engine.network import make_module  # which imports this

    program = trace(make_module(model, config))
    names = _names(model, config, program)
    shapes = parameters(model, config).shapes
    default = _default(program)
    found = {name: made[rule] for name, rule in choose(rules, names, default, text).items()}
    for name, one in found.items():
        layout_of(one.method, shapes[name], name)
    return found


def chosen(text: str | None, model: Model, config: ModelConfig, host: PluginHost) -> Methods:
    """Methods by parameter for weights that are quantized as they are loaded; none without rules.

    Raises:
        ConfigError: as ``methods_for``; or a method needs calibration, for which there is no text.
    """
    found = {} if text is None else uncalibrated(text, model, config, host)
    return {name: one.method for name, one in found.items()}


def uncalibrated(text: str, model: Model, config: ModelConfig, host: PluginHost) -> dict[str, Chosen]:
    """As ``methods_for``, where there is no text to calibrate with.

    Raises:
        ConfigError: a method needs one.
    """
    found = methods_for(text, model, config, host)
    for name, one in found.items():
        if one.method.wants:
            raise ConfigError(
                "E-BUILD-QUANTIZATION", f"quantization {text!r}, parameter {name}", "needs a calibration",
                found=one.name, hint="quantize the checkpoint first: bestiary quantize CKPT OUT --method … --calibration FILE",
            )  # fmt: skip
    return found


def check_rules(text: str, host: PluginHost) -> None:
    """Refuse rules that are wrong whatever the model (ConfigError)."""
    for rule in parse_rules(text):
        if rule.method != NONE:
            _method(rule, host)


def methods_in(quantization: Mapping[str, Any], host: PluginHost) -> dict[str, Chosen]:
    """The methods that a checkpoint's manifest names, by parameter.

    Raises:
        PluginError: no installed plugin provides one.
        DataError: an entry is damaged.
    """
    found = {}
    for parameter, said in quantization.items():
        if not isinstance(said, dict) or not isinstance(said.get("method"), str):
            raise DataError("E-CKPT-MANIFEST", f"bestiary.json, quantization, {parameter}", "names no method")
        if said["method"] == KV_SCALES:
            continue
        name, options = said["method"], {key: value for key, value in said.items() if key != "method"}
        registered = {one.name: one for one in host.quantizations()}
        if name not in registered:
            raise PluginError(
                "E-QUANT-MISSING", f"parameter {parameter}", "is quantized by a method that no installed plugin provides",
                found=name, expected=", ".join(sorted(registered)), hint="install the plugin that the checkpoint was made with",
            )  # fmt: skip
        try:
            found[parameter] = Chosen(name, method_class(name, host).of(name, options))
        except ConfigError as error:
            raise DataError("E-CKPT-MANIFEST", f"bestiary.json, quantization, {parameter}", str(error)) from None
    return found


def _method(rule: Rule, host: PluginHost) -> Chosen:
    known = sorted(one.name for one in host.quantizations())
    if rule.method not in known:
        meant = any(rule.pattern in method_class(name, host).model_fields for name in known)
        raise ConfigError(
            "E-BUILD-QUANTIZATION", "quantization", "no installed plugin provides this method",
            found=repr(rule.method), expected=", ".join((*known, NONE)),
            hint=f"{rule.pattern} is an option, and colons stand before options: METHOD:{rule.pattern}={rule.method}" if meant else None,
        )  # fmt: skip
    return Chosen(rule.method, method_class(rule.method, host).of(rule.method, dict(rule.options)))


def method_class(name: str, host: PluginHost) -> type[Method]:
    """The class that a registered name stands for.

    Raises:
        PluginError: it is no method, or can't be imported.
    """
    (registered,) = (one for one in host.quantizations() if one.name == name)
    found: Any = resolve(registered.method, needed_by=f"quantization {name}")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise PluginError(
            "E-QUANT-METHOD", f"quantization {name}", "is not what its plugin says", found=repr(found)[:80],
            expected="a subclass of bestiary.quant.Method",
        )  # fmt: skip
    return found


def embeddings(model: Model, config: ModelConfig) -> frozenset[str]:
    """Parameters that ids choose rows of."""
    from bestiary.core.engine.network import make_module  # which imports this

    found = _readers(trace(make_module(model, config)))
    return frozenset(name for name, ops in found.items() if embedding in ops)


def by_default(model: Model, config: ModelConfig) -> frozenset[str]:
    """The parameters that a rule without a pattern means."""
    from bestiary.core.engine.network import make_module  # which imports this

    return _default(trace(make_module(model, config)))


def _default(program: Program) -> frozenset[str]:
    return frozenset(name for name, ops in _readers(program).items() if ops & set(_BY_DEFAULT))


def _readers(program: Program) -> dict[str, set[object]]:
    """By parameter with at least two axes, the ops that read it."""
    found: dict[str, set[object]] = {}
    for instruction in program.instructions:
        for value in instruction.values():
            if isinstance(value, Weight) and len(value.shape) > 1:
                found.setdefault(value.parts[0].parameter, set()).add(instruction.target)
    return found


def _names(model: Model, config: ModelConfig, program: Program) -> dict[str, list[str]]:
    """By parameter, the modules that it is the weight of: in the model, and in the sources of its checkpoints."""
    from bestiary.converters.convert import weight_map

    known = parameters(model, config)
    maps = [weight_map(model, form, config) for form in model.weights]
    found: dict[str, list[str]] = {}
    for parameter in _readers(program):
        own = [parameter, *(other for other, first in known.aliases.items() if first == parameter)]
        names = [name for one in own for name in (one.removesuffix(".weight"),)]
        for one in own:
            for rows in maps:
                place = rows.place(one)
                if place is not None:
                    (_, choices), *_ = rows.transfers(dict.fromkeys(rows.targets(place), known.shapes[parameter]))
                    names += [source.removesuffix(".weight") for choice in choices for source in choice.sources]
        found[parameter] = list(dict.fromkeys(names))
    return found
