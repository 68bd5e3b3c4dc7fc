"""Qwen against transformers: the SDK's conformance kit, an architecture at a time."""

from bestiary_qwen.qwen2.conformance import Qwen2Conformance
from bestiary_qwen.qwen2_moe.conformance import Qwen2MoeConformance
from bestiary_qwen.qwen3.conformance import Qwen3Conformance
from bestiary_qwen.qwen3_moe.conformance import Qwen3MoeConformance


class TestQwen2(Qwen2Conformance):
    pass


class TestQwen2Moe(Qwen2MoeConformance):
    pass


class TestQwen3(Qwen3Conformance):
    pass


class TestQwen3Moe(Qwen3MoeConformance):
    pass
