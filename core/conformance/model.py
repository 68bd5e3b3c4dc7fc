"""``ModelConformance``: what every model plugin must pass, from nothing but its list of tiny configs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch

from bestiary.core.conformance import model_answers as answers
from bestiary.core.conformance import model_files as files
from bestiary.core.conformance import model_keys as keys
from bestiary.core.conformance import model_logits as logits
from bestiary.core.conformance import model_quantization as quantization
from bestiary.core.conformance import model_ranks as ranks
from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.guard import Guard, excuse, give, parts
from bestiary.core.conformance.model_case import Case, Suite
from bestiary.core.conformance.model_rules import Guarded, check_class, waiver
from bestiary.core.conformance.waivers import refuse_marks
from bestiary.core.errors import UsageError

#: Set to ``long``, every check runs on every config.
VARIABLE = "BESTIARY_CONFORMANCE"
#: Checks that the short form runs on the first and the last config only, and on the last only.
ENDS = ("test_bfloat16", "test_preemption", "test_prefix_reuse", "test_batch_composition", "test_omitted_keys")
LAST = ("test_deterministic", "test_quantization", "test_quantized_cache")
#: Checks that may have nothing to check.
OPTIONAL = ("test_gguf_map", "test_omitted_keys", "test_quantization")
_SUITE = pytest.StashKey[Suite]()


class ModelConformance(metaclass=Guarded):
    """The checks of a model. A plugin subclasses it with its configs, and pytest shows each check for each config.

    Attributes:
        model: the name under which the plugin registers it.
        configs: by name, objects of ``config.json`` for tiny models, one for each way in which members of the family
            differ. ``architectures`` may be left out where it is the descriptor's first. The plainest config comes first
            and the richest last.
        reference: for architectures that transformers lacks, a function from a config to a ``torch.nn.Module`` in float32
            whose ``forward(ids [1, T])`` gives logits ``[1, T, V]`` (or an object with ``.logits``), and whose
            ``state_dict()`` has the names and shapes of the plugin's Hugging Face checkpoints.
        waived: check (``"test_export"``, or ``"test_export[config]"``) → why the model can't pass it.
        plugins: modules to load besides the installed plugins; as for ``LLM``.
        prefer: name → distribution, where two plugins claim one name.

    Example::

        class LlamaConformance(ModelConformance):
            model = "llama"
            configs = {"gqa": dict(vocab_size=96, hidden_size=48, ...)}
    """

    model: ClassVar[str]
    configs: ClassVar[Mapping[str, Mapping[str, Any]]]
    reference: ClassVar[Callable[[dict[str, Any]], torch.nn.Module] | None] = None
    waived: ClassVar[Mapping[str, str]] = {}
    plugins: ClassVar[Sequence[str | ModuleType | object]] = ()
    prefer: ClassVar[Mapping[str, str]] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Each check runs on each config; a plugin's own tests may ask for ``case`` too."""
        check_class(type(self))
        refuse_marks(type(self), list(metafunc.definition.iter_markers()), metafunc.definition.name)
        guard().register(metafunc.config)
        if "case" in metafunc.fixturenames:
            names = configs_of(type(self), metafunc.function.__name__, long=_long())
            metafunc.parametrize("case", names, indirect=True)

    @pytest.fixture
    def case(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
        """A config's model, checkpoint and engines, shared by the checks of the class."""
        cls = type(self)
        if (reason := waiver(cls, check := request.function.__name__, request.param)) and not _own(cls, check):
            excuse(request.node, f"waived: {reason}")
        node = request.node.getparent(pytest.Class)
        if _SUITE not in node.stash:
            node.stash[_SUITE] = Suite(cls, tmp_path_factory.mktemp("conformance"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # tiny products lose by being spread over several
        case = node.stash[_SUITE].cases[request.param]
        case.findings = Findings(request.node.user_properties)
        give(request.node, "case", case)
        yield case
        torch.set_num_threads(threads)

    @pytest.fixture
    def findings(self, request: pytest.FixtureRequest) -> Findings:
        """Takes what a check measures."""
        findings = Findings(request.node.user_properties)
        give(request.node, "findings", findings)
        return findings

    def test_convert(self, case: Case, findings: Findings) -> None:
        """The Hugging Face directory is converted whole, and ``verify`` agrees."""
        files.converts(case, findings)

    def test_coverage(self, case: Case, findings: Findings) -> None:
        """A missing, an extra and a misshapen tensor are refused, one of each kind."""
        files.coverage(case, findings)

    def test_unknown_keys(self, case: Case) -> None:
        """Unknown config keys are ignored and listed."""
        files.unknown_keys(case)

    def test_impossible_keys(self, case: Case, findings: Findings) -> None:
        """Impossible values and keys that change the mathematics are refused by name."""
        files.impossible_keys(case, findings)

    def test_omitted_keys(self, case: Case, findings: Findings) -> None:
        """A key that is left out means what it means to transformers' config class."""
        if not keys.has_class(case):
            pytest.skip("none: the reference has no config class of transformers' kind")
        keys.omitted_keys(case, findings)

    def test_export(self, case: Case) -> None:
        """``export`` gives the source back bit for bit."""
        files.exports(case)

    def test_gguf_map(self, case: Case, findings: Findings) -> None:
        """The GGUF weight map covers every parameter, and its operations are reversible."""
        if "gguf" not in case.suite.model.weights:
            pytest.skip("none: the plugin has no GGUF weight map")
        files.gguf_map(case, findings)

    def test_prefill(self, case: Case, findings: Findings) -> None:
        """Logits of a prompt in one step, float32, within 1e-4."""
        logits.prefill(case, findings)

    def test_decode(self, case: Case, findings: Findings) -> None:
        """Logits token by token, within 1e-4."""
        logits.decode(case, findings)

    def test_chunked_prefill(self, case: Case, findings: Findings) -> None:
        """Logits of a prompt in pieces, within 1e-4."""
        logits.chunked_prefill(case, findings)

    def test_mixed_batch(self, case: Case, findings: Findings) -> None:
        """Logits of steps that decode one request and prefill another, within 1e-4."""
        logits.mixed_batch(case, findings)

    def test_reference_mode(self, case: Case, findings: Findings) -> None:
        """The step program gives what the module gives when it is run eagerly, within 2e-5."""
        logits.reference_mode(case, findings)

    def test_bfloat16(self, case: Case, findings: Findings) -> None:
        """In bfloat16 no farther from float32 than 1.25 times the reference in bfloat16."""
        logits.bfloat16(case, findings)

    def test_greedy(self, case: Case, findings: Findings) -> None:
        """Greedy tokens are the reference's, or ties within 1e-4."""
        answers.greedy(case, findings)

    def test_prompt_logprobs(self, case: Case, findings: Findings) -> None:
        """Every prompt token's log-probability, within 1e-4."""
        answers.prompt_logprobs(case, findings)

    def test_batch_composition(self, case: Case, findings: Findings) -> None:
        """Other requests in the batch change nothing."""
        answers.batch_composition(case, findings)

    def test_prefix_reuse(self, case: Case, findings: Findings) -> None:
        """Prefixes from the cache change nothing."""
        answers.prefix_reuse(case, findings)

    def test_preemption(self, case: Case, findings: Findings) -> None:
        """Being preempted changes nothing."""
        answers.preemption(case, findings)

    def test_deterministic(self, case: Case, findings: Findings) -> None:
        """In deterministic mode nothing of the above changes a bit; the long form also in bfloat16."""
        answers.deterministic(case, findings, thorough=_long())

    def test_quantization(self, case: Case, findings: Findings) -> None:
        """Every registered quantization method does as little harm to logits as it states."""
        methods = case.suite.host.quantizations()
        if not methods:
            pytest.skip("none: no quantization method is registered")
        for method in methods:
            quantization.within_bound(case, method, findings, thorough=_long())

    def test_quantized_cache(self, case: Case, findings: Findings) -> None:
        """Over a cache of int8, fp8 and int4 logits are as near as so many bits allow."""
        quantization.caches(case, findings)

    @pytest.mark.slow
    def test_tensor_parallel(self, case: Case, findings: Findings, request: pytest.FixtureRequest) -> None:
        """Two tensor-parallel ranks give the logits of one process, or the build refuses with the arithmetic."""
        ranks.tensor_parallel(case, findings, _selected(request))

    @pytest.mark.slow
    def test_pipeline_parallel(self, case: Case, findings: Findings, request: pytest.FixtureRequest) -> None:
        """Two pipeline stages give the logits of one process, or the build refuses with the arithmetic."""
        ranks.pipeline_parallel(case, findings, _selected(request))


def guard() -> Guard:
    """What watches a run of pytest for checks that are lost."""
    looked = lambda item: Findings(item.user_properties).looked  # noqa: E731
    return Guard(ModelConformance, ("case", "findings"), looked, _PARTS, OPTIONAL)


def configs_of(cls: Any, check: str, *, long: bool) -> list[str]:
    """The configs that a check runs on in the short or long form."""
    names = list(cls.configs)
    if long or check not in (*ENDS, *LAST):
        return names
    return names[-1:] if check in LAST else list(dict.fromkeys((names[0], names[-1])))


def _long() -> bool:
    form = os.environ.get(VARIABLE) or "short"
    if form not in ("short", "long"):
        raise UsageError("E-KIT-FORM", VARIABLE, "names no form", found=repr(form), expected="short or long")
    return form == "long"


def _own(cls: type, check: str) -> bool:
    """Whether the plugin replaced the check by one of its own."""
    return getattr(cls, check) is not vars(ModelConformance).get(check)


def _selected(request: pytest.FixtureRequest) -> list[str]:
    """The configs on which the running check was selected, so that one pair of processes serves them all."""
    node, name = request.node.getparent(pytest.Class), request.function.__name__
    items = (item for item in request.session.items if isinstance(item, pytest.Function))
    mine = (item for item in items if item.getparent(pytest.Class) is node and item.originalname == name)
    selected = [str(item.callspec.params["case"]) for item in mine]
    return [one for one in selected if waiver(node.cls, name, one) is None]


_PARTS = parts()
