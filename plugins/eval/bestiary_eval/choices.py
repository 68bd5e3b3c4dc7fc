"""Items with choices as lm-eval logs them: what was taken, by each metric, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Choices(NamedTuple):
    """An item's choices.

    Args:
        texts: the choices; of such that are the question's beginnings (Winogrande's form) where they differ.
        lengths: characters of each as lm-eval counts them for ``acc_norm``, but for what stands before all questions.
        likelihoods: log-likelihood of each.
        alone: that of each without the question, where ``acc_mutual_info`` asked for it.
        question: where the choices are beginnings: what they share, with a gap.
    """

    texts: Sequence[str]
    lengths: Sequence[int]
    likelihoods: Sequence[float]
    alone: Sequence[float] | None = None
    question: str | None = None

    @classmethod
    def of(cls, logged: Mapping[str, Any]) -> Choices | None:
        """Of an item as it was logged; None: it has no choices."""
        asked, responses = [one for one in logged["arguments"] if len(one) > 1], list(logged["filtered_resps"])
        if len(responses) < 2 or len(asked) != len(responses) or not all(_is_likelihood(one) for one in responses):
            return None
        found, alone = [float(one[0]) for one in responses], None
        if "acc_mutual_info" in logged.get("metrics", ()):
            half = len(found) // 2
            asked, found, alone = asked[:half], found[:half], found[half:]
        contexts, texts = ([str(one[place]) for one in asked] for place in (0, 1))
        if len(set(texts)) > 1 or len(set(contexts)) == 1:
            texts = [text.strip() for text in texts]
            return cls(texts, [len(text) for text in texts], found, alone)
        shared = _shared(contexts)
        begun = [context[shared:].strip() for context in contexts]
        question = f"{contexts[0][:shared].rstrip()} … {texts[0].strip()}"
        return cls(begun, [len(context) for context in contexts], found, alone, question)

    def taken(self, metric: str) -> str:
        """The choice that a metric holds for the model's."""
        each = self.likelihoods
        if metric == "acc_norm":
            each = [one / max(1, length) for one, length in zip(each, self.lengths, strict=True)]
        elif metric == "acc_bytes":
            each = [one / max(1, len(text.encode())) for one, text in zip(each, self.texts, strict=True)]
        elif metric == "acc_mutual_info" and self.alone is not None:
            each = [one - alone for one, alone in zip(each, self.alone, strict=True)]
        return self.texts[max(range(len(each)), key=each.__getitem__)]


def _is_likelihood(response: object) -> bool:
    return isinstance(response, list | tuple) and len(response) == 2


def _shared(contexts: Sequence[str]) -> int:
    """Length of what all begin with, up to the last space in it: words stay whole."""
    first = contexts[0]
    alike = next((n for n, letter in enumerate(first) if any(one[n : n + 1] != letter for one in contexts)), len(first))
    return first[:alike].rfind(" ") + 1
