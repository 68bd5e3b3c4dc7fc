"""The Mistral family against transformers: the SDK's conformance kit."""

from bestiary_mistral.ministral.conformance import MinistralConformance
from bestiary_mistral.mistral.conformance import MistralConformance
from bestiary_mistral.mixtral.conformance import MixtralConformance


class TestMistral(MistralConformance):
    pass


class TestMinistral(MinistralConformance):
    pass


class TestMixtral(MixtralConformance):
    pass
