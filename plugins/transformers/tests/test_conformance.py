from bestiary_transformers.conformance import TransformersConformance


class TestTransformers(TransformersConformance):
    plugins = ("bestiary_transformers.plugin",)
