"""The config of Qwen2 and Qwen2.5."""

from ..config import QwenConfig


class Qwen2Config(QwenConfig):
    """``config.json`` of a ``Qwen2ForCausalLM``. Queries, keys and values have biases, whatever it says."""
