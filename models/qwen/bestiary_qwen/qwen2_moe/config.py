"""The config of Qwen1.5-MoE and Qwen2-MoE."""

from pydantic import PositiveInt

from ..config import SparseConfig


class Qwen2MoeConfig(SparseConfig):
    """``config.json`` of a ``Qwen2MoeForCausalLM``."""

    shared_expert_intermediate_size: PositiveInt
    qkv_bias: bool = True

    def slides_by_default(self, layer: int) -> bool:
        """Every other one of the lowest layers, as transformers has it for this architecture."""
        return layer % 2 == 0 and layer < self.max_window_layers
