"""One tiny config of a model family: its random reference model, checkpoint and engines, made when first asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bestiary.converters.convert import Report, convert
from bestiary.core.checkpoint.files import read_json
from bestiary.core.checkpoint.parameters import parse_config
from bestiary.core.config import ModelConfig
from bestiary.core.conformance import model_reference
from bestiary.core.conformance.findings import Findings
from bestiary.core.engine.build import build
from bestiary.core.engine.load import LoadedEngine, load_engine
from bestiary.core.engine.options import BuildOptions
from bestiary.core.llm import LLM
from bestiary.core.plugins import PluginHost

#: Tokens of the longest sequence that the kit runs, where the model has the positions.
LENGTH = 48
#: Positions that a config must have.
SHORTEST = 32
BLOCK = 8
_OPTIONS: dict[str, Any] = {"device": "cpu", "max_batch_size": 8, "max_num_tokens": 64, "block_size": BLOCK}
_CACHE = 2**24


class Suite:
    """What the checks of one class share.

    Args:
        cls: a subclass of ``ModelConformance``.
        directory: for all files.
    """

    def __init__(self, cls: Any, directory: Path) -> None:
        self.directory, self.reference = directory, cls.reference
        self.plugins, self.prefer = tuple(cls.plugins), dict(cls.prefer)
        self.host = PluginHost.load(plugins=self.plugins, prefer=self.prefer)
        self.model = self.host.model(cls.model)
        self.cases = {name: Case(self, name, config) for name, config in cls.configs.items()}
        self.shared: dict[str, Any] = {}


class Case:
    """A config's materials. Whatever fails while they are made fails every check that needs them."""

    def __init__(self, suite: Suite, name: str, config: Mapping[str, Any]) -> None:
        self.suite, self.name, self._said = suite, name, dict(config)
        #: Of the check that runs.
        self.findings = Findings([])
        self.directory = suite.directory / f"config-{len(list(suite.directory.iterdir()))}"
        self.directory.mkdir()
        self._engines: dict[str, Path] = {}
        self._expected: dict[tuple[int, ...], Tensor] = {}

    @cached_property
    def module(self) -> nn.Module:
        """The random reference model in float32; its config and weights lie in ``source``."""
        return model_reference.make(self._said, self.suite.model, self.suite.reference, self.directory / "hf")

    @property
    def source(self) -> Path:
        """The Hugging Face directory of ``module``."""
        assert self.module is not None
        return self.directory / "hf"

    @cached_property
    def raw(self) -> dict[str, Any]:
        """The object of ``config.json``."""
        return read_json(self.source, "config.json")

    @cached_property
    def config(self) -> ModelConfig:
        """What the plugin makes of it."""
        return parse_config(self.suite.model, self.raw)

    @cached_property
    def report(self) -> Report:
        """Of the conversion to ``checkpoint``."""
        report = convert(self.source, self.directory / "checkpoint", host=self.suite.host)
        mine = self.suite.model.name
        assert report.model == mine, f"config {self.name}: its architecture is that of {report.model}, not of {mine}"
        return report

    @property
    def checkpoint(self) -> Path:
        """The converted checkpoint."""
        assert self.report is not None
        return self.directory / "checkpoint"

    @property
    def length(self) -> int:
        """Tokens of the longest sequence: where rotation stretches with the length, up to the first length."""
        longest = self.config.max_position_embeddings
        assert longest >= SHORTEST, f"config {self.name}: give it {SHORTEST} positions at least, it has {longest}"
        return min(LENGTH, longest)

    def engine(self, **options: Any) -> Path:
        """An engine of the checkpoint, built once for each set of options."""
        key = repr(sorted(options.items()))
        if key not in self._engines:
            target = self.directory / f"engine-{len(self._engines)}"
            said = BuildOptions(**{**_OPTIONS, **options})
            build(self.checkpoint, target, host=self.suite.host, options=said)
            self._engines[key] = target
        return self._engines[key]

    def load(self, *, build: Mapping[str, Any] | None = None, **options: Any) -> LoadedEngine:
        """An engine without a scheduler.

        Args:
            build: options of the build.
            options: of ``load_engine``.
        """
        said = {"host": self.suite.host, "kv_cache_memory": _CACHE, **options}
        return load_engine(self.engine(**(build or {})), **said)

    def llm(self, *, build: Mapping[str, Any] | None = None, **options: Any) -> LLM:
        """An engine with everything around it."""
        said = {"kv_cache_memory": _CACHE, "plugins": self.suite.plugins, "prefer": self.suite.prefer, **options}
        return LLM(self.engine(**(build or {})), tokenizer=None, **said)

    def tokens(self, count: int, seed: int = 1) -> list[int]:
        """Random token ids."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(
            min(3, self.config.vocab_size - 1), self.config.vocab_size, (count,), generator=generator
        ).tolist()

    def expected(self, tokens: Sequence[int]) -> Tensor:
        """The reference's logits after each of the tokens, [T, V] float32."""
        key = tuple(tokens)
        if key not in self._expected:
            self._expected[key] = model_reference.logits(self.module, key)
        return self._expected[key]

    @cached_property
    def groups(self) -> int:
        """Cache groups of the model."""
        return len(self.load().cache_groups)

    def blocks(self, seed: int) -> list[list[int]]:
        """Scattered blocks for one request in each cache group: odd ones for odd seeds, even ones for even."""
        order = [2 * block + seed % 2 for block in range(-(-self.length // BLOCK))]
        return [order[::-1]] * self.groups
