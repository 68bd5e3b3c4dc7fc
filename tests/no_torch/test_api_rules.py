"""The rules for changes of the public contract, on contracts made up for them."""

import types
import warnings

import pytest
from api_rules import breaks, deprecations, silent

OLD = """# bestiary
class LLM()
    LLM(model: str, *, seed: int = 0, hook: Hook = <function _always>) -> None
    def close(self) -> None
    property engine
def build(path: str, options: Options = <factory>) -> None
__version__: str
# bestiary.ops
EXACT: dict
def add(x: Tensor, y: Tensor) -> Tensor
class Failure(Exception)
    Failure(code: str, *, hint: str | None = None) -> None
    attribute code
"""
CHANGELOG = """# Changelog

## 1.3.0

- `ops.fused` adds and multiplies. Removed: `bestiary.ops.add`.

## 1.1.0

- Deprecated: `bestiary.ops.add`; use `bestiary.ops.plus`.
- `LLM` takes a `device`, `more`, and
  knows a model by its path.
- `add(alpha=…)` and `build` with `more`. `bestiary run salt` runs.
- Deprecated: `bestiary.LLM.__init__.hook`; use `bestiary.hookimpl`.

## 1.0.0
"""


def _changed(*changes: tuple[str, str]) -> str:
    text = OLD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(
    "change",
    [
        ("seed: int = 0", "seed: int = 0, device: str = 'auto'"),
        ("*, seed: int = 0", "seed: int = 0, *, more: int = 1"),
        ("options: Options = <factory>", "options: Options = <factory>, more: bool = False, *rest: Any"),
        ("y: Tensor) -> Tensor", "y: Tensor, alpha: float = 1.0) -> Tensor"),
        ("hook: Hook =", "hook: Hook | None ="),
        ("class Failure(Exception)", "class Failure(Exception, ValueError)"),
    ],
)
def test_what_breaks_no_caller_is_allowed(change):
    assert breaks(OLD, _changed(change), CHANGELOG, (1, 1)) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("seed: int = 0", "seed: int"), "bestiary.LLM.__init__: its parameters seed have no default"),
        (("seed: int = 0", "seed: int = 0, device: str"), "bestiary.LLM.__init__: its parameters device have no default"),
        (("*, seed: int = 0", "*, more: int = 0"), "bestiary.LLM.__init__: its parameter seed is gone"),
        (("x: Tensor, y", "y: Tensor, x"), "positional parameters were (x, y) and are (y, x)"),
        (("path: str, options", "path: str, more: int = 0, options"), "were (path, options) and are (path, more, options)"),
        (("path: str, ", "path: str, *, "), "positional parameters were (path, options) and are (path)"),
        (("    def close(self) -> None\n", ""), "bestiary.LLM.close is gone, and the changelog never deprecated it"),
        (("    property engine\n", ""), "bestiary.LLM.engine is gone"),
        (("EXACT: dict\n", ""), "bestiary.ops.EXACT is gone"),
        (("class Failure(Exception)", "class Failure(ValueError)"), "it was class(Exception) and is class(ValueError)"),
        (("hint: str | None = None", "advice: str | None = None"), "hint is gone"),
        (("    attribute code\n", ""), "bestiary.ops.Failure:code is gone"),
        (("x: Tensor, y: Tensor)", "x: Tensor, y: Tensor, /)"), "parameters x, y can be given by name no more"),
        (("y: Tensor) -> Tensor", "y: Tensor) -> None"), "it returned Tensor and returns None"),
        (("seed: int = 0", "seed: int = 1"), "the default of seed was 0 and is 1"),
        (("hint: str | None", "hint: str"), "hint takes str and no more None"),
        (("EXACT: dict", "EXACT: list"), "it was value: dict and is value: list"),
        (("seed: int = 0", "seed: int = 0, salt: int = 0"), "its parameter salt is new, and the changelog does not name it"),
        (("y: Tensor) -> Tensor", "y: Tensor, a: int = 0) -> Tensor"), "bestiary.ops.add: its parameter a is new, and"),
        (("y: Tensor) -> Tensor", "y: Tensor, device: int = 0) -> Tensor"), "its parameter device is new, and the changelog"),
        (("seed: int = 0", "seed: int = 0, path: int = 0"), "its parameter path is new, and"),
        (("EXACT: dict", "EXACT: dict\nruns: dict"), "bestiary.ops.runs is new, and the changelog does not name it"),
        (("    property engine\n", "    property engine\n    def alpha(self) -> None\n"), "bestiary.LLM.alpha is new, and"),
        (("EXACT: dict", "EXACT: dict\nBIT: dict"), "bestiary.ops.BIT is new, and the changelog does not name it"),
        (("def build(path: str, options: Options = <factory>) -> None", "build: dict"), "it was a function and is value: dict"),
    ],
)  # fmt: skip
def test_what_breaks_callers_is_refused(change, complaint):
    problems = breaks(OLD, _changed(change), CHANGELOG, (1, 1))
    assert any(complaint in problem for problem in problems), problems


def test_a_deprecated_name_goes_two_minor_versions_later():
    without = _changed(("def add(x: Tensor, y: Tensor) -> Tensor\n", ""))
    assert "1 minor versions after its deprecation, not 2" in breaks(OLD, without, CHANGELOG, (1, 2))[0]
    assert breaks(OLD, without, CHANGELOG, (1, 3)) == []
    assert breaks(OLD, without, CHANGELOG, (2, 0)) == []


def test_a_deprecated_parameter_goes_two_minor_versions_later():
    without = _changed((", hook: Hook = <function _always>", ""))
    assert "its parameter hook is gone" in breaks(OLD, without, CHANGELOG, (1, 2))[0]
    assert breaks(OLD, without, CHANGELOG, (1, 3)) == []


def test_a_class_goes_with_what_is_in_it():
    gone = OLD[: OLD.index("class LLM")] + OLD[OLD.index("def build") :]
    assert breaks(OLD, gone, CHANGELOG, (1, 1)) == ["bestiary.LLM is gone, and the changelog never deprecated it"]


def test_a_new_name_stands_in_the_changelog_of_its_version_or_a_newer_one():
    more = OLD + "def fused(x: Tensor) -> Tensor\n"
    assert breaks(OLD, more, CHANGELOG, (1, 3)) == []
    older = CHANGELOG.replace("## 1.3.0", "## 1.2.0")
    assert "fused is new" in breaks(OLD, more, older, (1, 3))[0]


class Client:
    """With deprecated members and parameters, of which half warn."""

    def __init__(self, seed: int = 0, salt: int = 0) -> None:
        if salt:
            warnings.warn("Client(salt=…) is deprecated; use Client.spice", DeprecationWarning, stacklevel=2)

    def quiet(self) -> None:
        """Deprecated; use Client.loud."""

    def loud(self) -> None:
        warnings.warn("Client.loud is deprecated; use Client.spice", DeprecationWarning, stacklevel=2)

    @property
    def silent(self) -> int:
        return 0

    @property
    def told(self) -> int:
        warnings.warn("Client.told is deprecated; use Client.spice", DeprecationWarning, stacklevel=2)
        return 0


def add(x: int, y: int = 0, z: int = 0) -> int:
    if z:
        warnings.warn("add(z=…) is deprecated; use Client.spice", DeprecationWarning, stacklevel=2)
    return x + y


@pytest.mark.parametrize(
    ("name", "warned"),
    [
        ("Client.quiet", False),
        ("Client.loud", True),
        ("Client.silent", False),
        ("Client.told", True),
        ("Client.seed", False),
        ("Client.__init__.seed", False),
        ("Client.__init__.salt", True),
        ("Client.gone", True),
        ("add.y", False),
        ("add.z", True),
        ("add.gone", True),
    ],
)
def test_the_use_of_a_deprecated_member_or_parameter_warns(name, warned):
    module = types.ModuleType("bestiary")
    module.Client, module.add = Client, add  # type: ignore[attr-defined]
    text = f"## 1.1.0\n\n- Deprecated: `bestiary.{name}`; use `Client.spice`\n"
    assert (silent(text, [module]) == []) == warned


def test_what_is_deprecated_is_public():
    text = "## 1.1.0\n\n- Deprecated: `elsewhere.thing`; use `bestiary.LLM`\n"
    assert "elsewhere.thing is deprecated, and is no name of a public module" in silent(text, [])


def test_the_use_of_a_deprecated_name_warns_and_names_the_other():
    assert deprecations(CHANGELOG)["bestiary.ops.add"].other == "bestiary.ops.plus"
    quiet, loud = types.ModuleType("bestiary.ops"), types.ModuleType("bestiary.ops")
    quiet.add = loud.plus = sum  # type: ignore[attr-defined]

    def fetch(name: str) -> object:
        if name == "add":
            warnings.warn("bestiary.ops.add is deprecated; use bestiary.ops.plus", DeprecationWarning, stacklevel=2)
            return sum
        raise AttributeError(name)

    loud.__getattr__ = fetch  # type: ignore[method-assign]
    rest = types.ModuleType("bestiary")
    assert "gives no DeprecationWarning" in silent(CHANGELOG, [quiet, rest])[0]
    assert silent(CHANGELOG, [loud, rest]) == []
