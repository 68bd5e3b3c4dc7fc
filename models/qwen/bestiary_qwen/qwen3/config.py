"""The config of Qwen3."""

from pydantic import PositiveInt

from ..config import QwenConfig


class Qwen3Config(QwenConfig):
    """``config.json`` of a ``Qwen3ForCausalLM``."""

    head_dim: PositiveInt = 128
    attention_bias: bool = False
