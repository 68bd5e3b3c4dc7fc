"""Llama against transformers: the SDK's conformance kit."""

from bestiary_llama.conformance import LlamaConformance


class TestLlama(LlamaConformance):
    pass
