"""transformers' own module as a side, its tensors under the zoo's names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bestiary.converters.weight_map import WeightMap
from bestiary.core import device as devices
from bestiary.core.checkpoint.parameters import Parameters
from bestiary.core.errors import PluginError
from bestiary.core.sides.names import pairs
from bestiary.core.sides.side import Instead, Seen, plain

#: Of its weights' bytes, what a model takes on a device while it runs.
_ROOM = 1.25


def check_known(directory: Path) -> None:
    """Refuse a Hugging Face directory that transformers can't load as a causal language model, by its config alone.

    Raises:
        PluginError: transformers is not installed, does not know the architecture, or knows it for another task.
    """
    try:
        import transformers
    except ImportError as error:
        raise _not_installed() from error
    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
        causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    except Exception as error:
        found = str(error).partition("\n")[0][:200]
        raise PluginError(
            "E-SIDE-TRANSFORMERS", directory.name, "transformers does not load this model", found=found
        ) from error
    if not causal:
        problem = "transformers knows this model, but not as a causal language model"
        raise PluginError("E-SIDE-CAUSAL", directory.name, problem, found=f"model_type {config.model_type}")


def _not_installed() -> PluginError:
    hint = "pip install 'bestiary[convert]'"
    return PluginError("E-SIDE-TRANSFORMERS", "transformers", "is not installed", hint=hint)


class TransformersSide:
    """A causal language model of transformers, run on a whole sequence at a time.

    Args:
        module: the model.
        weights, expected: the zoo's weight map for Hugging Face and its parameters, which say what is what.
    """

    def __init__(self, module: nn.Module, weights: WeightMap, expected: Parameters, label: str) -> None:
        self.module, self.label = module.eval(), label
        modules = dict(module.named_modules())
        tensors = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        found = pairs(weights, expected.shapes, modules.keys(), tensors)
        self._modules = {zoo: modules[theirs] for zoo, theirs in found.items()}

    @classmethod
    def load(
        cls, directory: Path, weights: WeightMap, expected: Parameters, *, dtype: torch.dtype, device: torch.device
    ) -> TransformersSide:
        """The model of a Hugging Face directory, on the device if it has room for it, else on the processor.

        Raises:
            PluginError: transformers is not installed, or does not take the model.
        """
        try:
            import transformers

            with no_bars(transformers.utils.logging):
                found = transformers.AutoModelForCausalLM.from_pretrained(
                    directory, dtype=dtype, attn_implementation="eager", local_files_only=True
                )
        except ImportError as error:
            raise _not_installed() from error
        except Exception as error:
            raise PluginError(
                "E-SIDE-TRANSFORMERS", directory.name, "transformers does not load this model", found=str(error)[:200]
            ) from error
        name = str(dtype).removeprefix("torch.")
        needed = sum(one.numel() * one.element_size() for one in found.parameters())
        if device.type != "cpu" and needed * _ROOM > devices.free_memory(device):
            device = torch.device("cpu")
        return cls(found.to(device), weights, expected, f"transformers {transformers.__version__}, {name}")

    def run(self, tokens: Sequence[int], chunks: Sequence[int] = (), instead: Instead | None = None) -> Seen:
        """All tensors of one sequence: what each module of the zoo takes and returns, queries and keys after their
        rotation (``layers.0.attention.rope.0`` and ``.1``), what the caches hold (``layers.0.attention.cache.k``), and the
        logits. ``chunks`` is not read: a step of many tokens has what many steps would have.
        """
        seen, change = Seen(), instead or Instead()
        # Nobody reads what the last module returns; the logits are then what the model makes, whatever is put elsewhere.
        head: Any = getattr(self.module, "get_output_embeddings", None)
        last = head() if head else None
        with ExitStack() as hooks, torch.no_grad():
            for path, module in self._modules.items():
                given = module.register_forward_pre_hook(partial(_keep_input, seen, change, path), with_kwargs=True)
                hooks.callback(given.remove)
                returned = module.register_forward_hook(
                    partial(_keep, seen, Instead() if module is last else change, path)
                )
                hooks.callback(returned.remove)
            hooks.enter_context(_rotations(self._modules, seen, change))
            seen.tensors["logits"] = plain(self._forward(tokens))
        for path in self._modules:
            _fill_cache(seen, path)
        return seen

    @property
    def vocab_size(self) -> int:
        """How many tokens have a logit."""
        head: Any = self.module.get_output_embeddings()  # type: ignore[operator]
        return int(head.weight.shape[0])

    def rest(self) -> None:
        """Leave the device's memory to others; it can still be run, on the processor."""
        self.module.to("cpu")

    def weights(self, path: str) -> dict[str, Tensor]:
        """The parameters of a module's own, by their last names, on the processor; empty where there is none such."""
        module = self._modules.get(path)
        return {} if module is None else {n: plain(p) for n, p in module.named_parameters(recurse=False)}

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """After each token, ``[tokens, vocabulary]`` float32."""
        with torch.no_grad():
            return plain(self._forward(tokens))

    def _forward(self, tokens: Sequence[int]) -> Tensor:
        device = next(self.module.parameters()).device
        rows: Tensor = self.module(torch.tensor([list(tokens)], device=device), use_cache=False).logits[0]
        return rows


@contextmanager
def no_bars(settings: Any) -> Iterator[None]:
    """The library's bars stay off the screen, where ours are."""
    shown = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            settings.enable_progress_bar()


def _keep_input(seen: Seen, change: Instead, path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
    name = f"{path}.input"
    for number, one in enumerate(args):
        if isinstance(one, Tensor):
            return (*args[:number], _see(seen, change, name, one), *args[number + 1 :]), kwargs
    for key, one in kwargs.items():
        if isinstance(one, Tensor):
            return args, {**kwargs, key: _see(seen, change, name, one)}
    return None


def _keep(seen: Seen, change: Instead, path: str, module: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (_see(seen, change, path, output[0]), *output[1:]) if isinstance(output[0], Tensor) else None
    return _see(seen, change, path, output) if isinstance(output, Tensor) else None


def _see(seen: Seen, change: Instead, name: str, tensor: Tensor) -> Tensor:
    """Keep a tensor of one sequence, and what the module goes on with."""
    found = plain(tensor[0] if tensor.dim() > 2 else tensor)
    seen.tensors[name] = found
    right = change.of((name,), found)
    return tensor if right is None else right.reshape(tensor.shape).to(tensor)


@contextmanager
def _rotations(modules: Mapping[str, nn.Module], seen: Seen, change: Instead) -> Iterator[None]:
    """Watch the function by which a family's attention rotates queries and keys; a family without it has none to show."""
    inside: list[str] = []
    with ExitStack() as undo:
        for path, module in modules.items():
            home = sys.modules[type(module).__module__]
            own = getattr(home, "apply_rotary_pos_emb", None)
            if own is None or "forward" not in vars(type(module)):
                continue
            enter = module.register_forward_pre_hook(lambda module, args, path=path: inside.append(path))
            # Not pop: what a hook returns takes the place of the module's result.
            leave = module.register_forward_hook(lambda *call: inside.__delitem__(-1), always_call=True)
            undo.callback(enter.remove)
            undo.callback(leave.remove)
            if not hasattr(own, "watched"):
                home.apply_rotary_pos_emb = _watched(own, inside, seen, change)  # type: ignore[attr-defined]
                undo.callback(setattr, home, "apply_rotary_pos_emb", own)
        yield


def _watched(own: Callable[..., Any], inside: list[str], seen: Seen, change: Instead) -> Callable[..., Any]:
    def rotate(*args: Any, **kwargs: Any) -> Any:
        turned = own(*args, **kwargs)
        if inside and isinstance(turned, tuple) and len(turned) == 2:
            # [1, heads, tokens, size], and with tokens first for us
            names = [f"{inside[-1]}.rope.{number}" for number in range(2)]
            ours = [_see(seen, change, n, t.transpose(1, 2)) for n, t in zip(names, turned, strict=True)]
            return tuple(tensor.transpose(1, 2) for tensor in ours)
        return turned

    rotate.watched = True  # type: ignore[attr-defined]
    return rotate


def _fill_cache(seen: Seen, path: str) -> None:
    """What a cache of the usual kind holds: keys after rotation, values in heads."""
    keys, values = seen.tensors.get(f"{path}.rope.1"), seen.tensors.get(f"{path}.v")
    if keys is not None and values is not None and values.shape[-1] % keys.shape[1] == 0:
        seen.tensors[f"{path}.cache.k"] = keys
        seen.tensors[f"{path}.cache.v"] = values.reshape(len(values), keys.shape[1], -1)
