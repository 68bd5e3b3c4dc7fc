"""The random model that everything is compared with: transformers' own, or a module that the plugin brings."""

from __future__ import annotations

import copy
import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bestiary.core.errors import BestiaryError, ConfigError
from bestiary.spec import Model

Reference = Callable[[dict[str, Any]], nn.Module]


def make(config: Mapping[str, Any], model: Model, reference: Reference | None, directory: Path) -> nn.Module:
    """A random model of a config, saved under ``directory`` as Hugging Face saves one.

    Norms of 1 and biases of 0 would hide that they are not applied, so noise is added to every parameter.

    Raises:
        AssertionError: the reference refuses the config; that is no fault of the plugin's.
    """
    said = {"architectures": list(model.architectures[:1]), "model_type": model.name, **config}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = _constructed(said, reference).float().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    if reference is None:
        module.save_pretrained(directory)  # type: ignore[operator]
        _unsay(said, directory / "config.json")
    else:
        _save(module, said, directory)
    return module


def logits(module: nn.Module, tokens: Sequence[int]) -> Tensor:
    """[T, V] float32, of tokens in one pass.

    Raises:
        AssertionError: the reference can't run them; that is no fault of the plugin's.
    """
    try:
        with torch.no_grad():
            made = module(torch.tensor([tokens]))
    except Exception as error:
        dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
        raise AssertionError(
            f"the reference itself can't run this config in {dtype} (give it other sizes): {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    rows: Tensor = getattr(made, "logits", made)[0].float()
    return rows


def narrowed(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with parameters of another dtype; buffers, such as rotary frequencies, stay as they are."""
    made = copy.deepcopy(module)
    for parameter in made.parameters():
        parameter.data = parameter.data.to(dtype)
    if any(_uneven(parameter) for parameter in made.parameters()) and hasattr(made, "set_experts_implementation"):
        made.set_experts_implementation("eager")  # type: ignore[operator]
    return made


def _constructed(said: dict[str, Any], reference: Reference | None) -> nn.Module:
    try:
        return reference(dict(said)) if reference is not None else _of_transformers(said)
    except (BestiaryError, NotImplementedError):  # there is none, or it is yet to be written
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise AssertionError(
            f"the reference itself can't be made of this config (a size or a list in it does not fit): "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}; it is raised by {last.name}: {last.line}"
        ) from error


def _uneven(parameter: nn.Parameter) -> bool:
    """Whether it is of experts, and grouped products, which transformers prefers, refuse it: they want rows of whole 16
    bytes of their matrices, whichever way these lie.
    """
    return parameter.dim() == 3 and any(size * parameter.itemsize % 16 for size in parameter.shape[1:])


def _of_transformers(config: dict[str, Any]) -> nn.Module:
    import transformers

    name = config["architectures"][0]
    found = getattr(transformers, name, None)
    if found is None:
        raise ConfigError(
            "E-KIT-REFERENCE",
            f"architecture {name}",
            f"transformers {transformers.__version__} does not have it",
            hint="give the conformance class a reference: a function from a config to a module",
        )
    kind = found.config_class
    module: nn.Module = found(kind(**{key: value for key, value in config.items() if key != "model_type"}))
    return module


def _unsay(said: Mapping[str, Any], path: Path) -> None:
    """Make null again what was null: transformers writes what it made of it, and hides from which keys."""
    written = json.loads(path.read_text())
    nulls = {key: None for key, value in said.items() if value is None and written.get(key) is not None}
    path.write_text(json.dumps({**written, **nulls}, indent=2))


def _save(module: nn.Module, config: Mapping[str, Any], directory: Path) -> None:
    from safetensors.torch import save_file

    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    # Of a tied pair Hugging Face stores one.
    first: dict[int, str] = {}
    stored = {
        name: tensor.contiguous()
        for name, tensor in module.state_dict().items()
        if first.setdefault(tensor.data_ptr(), name) == name
    }
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
