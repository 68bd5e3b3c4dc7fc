"""The public contract: every name in ``__all__`` of the public modules, with its signature, as last agreed on.

Run as a script, this file prints the contract as it is now.
"""

import difflib
import enum
import hashlib
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_rules import breaks, sections, silent

from bestiary import __version__, layers

#: Classes whose objects the SDK makes; how it does is its own affair.
MADE_HERE = frozenset({"AsyncAnswer", "LayerCache", "OpDeclaration", "Step"})

#: Names that may still change: nothing reads them yet.
PROVISIONAL = re.compile(r"Executor\b|bestiary_register_executors\b")

ROOT = Path(__file__).resolve().parents[2]
#: Layers whose parameters' names stand in plugins' weight maps.
LAYERS = {
    "Attention": lambda: layers.Attention(
        8,
        heads=2,
        kv_heads=1,
        head_dim=4,
        rope=None,
        bias=True,
        q_norm=layers.RMSNorm(4, eps=1.0),
        k_norm=layers.RMSNorm(4, eps=1.0),
    ),
    "Embedding": lambda: layers.Embedding(4, 8),
    "GatedMLP": lambda: layers.GatedMLP(8, 4, act="silu", bias=True),
    "Head": lambda: layers.Head(8, 4),
    "Linear": lambda: layers.Linear(8, 4, bias=True),
    "MoE": lambda: layers.MoE(
        8, 4, experts=2, top_k=1, act="silu", shared=layers.GatedMLP(8, 4, act="silu"), shared_gate=True
    ),
    "RMSNorm": lambda: layers.RMSNorm(4, eps=1.0),
}

SNAPSHOT = ROOT / "tests" / "public_api.txt"
RELEASED = sorted((ROOT / "tests" / "api").glob("*.txt"))
#: What was released is not edited.
DIGESTS = {"1.0": "377c1acb82a486d9ae62c24618efa346f30dacd1dc2e2096d8e634d69638ffcc"}
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
COMMAND = "PYTHONPATH=tests/support python tests/torch/test_public_api.py > /tmp/api.txt && mv /tmp/api.txt tests/public_api.txt"
MODULES = ("bestiary", "bestiary.layers", "bestiary.ops", "bestiary.converters", "bestiary.quant", "bestiary.spec", "bestiary.testing", "bestiary.tools", "bestiary.hookspecs")  # fmt: skip


def contract() -> list[str]:
    lines = []
    for name in MODULES:
        module = importlib.import_module(name)
        lines.append(f"# {name}")
        for public in sorted(module.__all__):
            lines += described(public, getattr(module, public))
        lines.append("")
    return lines


def described(name: str, value: object) -> Iterator[str]:
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        yield f"class {name}({bases})"
        if not issubclass(value, BaseException | enum.Enum):
            yield f"    {name}{'(…)' if name in MADE_HERE else signature(value)}"
        if issubclass(value, BaseException) and "__init__" in vars(value):
            yield f"    {name}{signature(value)}"
        yield from (f"    attribute {one}" for one in sorted(attributes(value)))
        for member, method in sorted(vars(value).items()):
            if not member.startswith("_"):
                yield from (f"    {line}" for line in described_member(member, method))
    elif callable(value):
        yield f"def {name}{signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def attributes(value: type) -> set[str]:
    """What may be read of its objects beside methods: annotated names, and the parameters of a layer."""
    own = {name for name in inspect.get_annotations(value) if not name.startswith("_")}
    return own | {name for name, _ in LAYERS[value.__name__]().named_parameters()} if value.__name__ in LAYERS else own


def described_member(name: str, member: object) -> Iterator[str]:
    if isinstance(member, classmethod | staticmethod):
        yield f"{type(member).__name__} {name}{signature(member.__func__)}"
    elif isinstance(member, property):
        yield f"property {name}"
    elif inspect.isfunction(member):
        yield f"def {name}{signature(member)}"


def signature(value: object) -> str:
    try:
        found = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "(…)"
    plain = [one.replace(annotation=Spelt(one.annotation)) for one in found.parameters.values()]
    text = str(found.replace(parameters=plain, return_annotation=Spelt(found.return_annotation)))
    # An address, as in the default of a field that is a function, differs from run to run.
    return re.sub(r" at 0x[0-9a-f]+", "", text)


class Spelt:
    """An annotation that prints as it was written, whether Python kept it as text or as an object."""

    def __new__(cls, value: object) -> object:
        return value if value is inspect.Parameter.empty else super().__new__(cls)

    def __init__(self, value: object) -> None:
        self.value = getattr(value, "__forward_arg__", value)

    def __repr__(self) -> str:
        return self.value if isinstance(self.value, str) else inspect.formatannotation(self.value)


def test_public_signatures_are_those_agreed_on():
    agreed = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    now = "\n".join(contract()).splitlines()
    change = "\n".join(difflib.unified_diff(agreed, now, "agreed", "now", lineterm="", n=1))
    assert not change, f"the public API changed:\n{change}\nIf that is meant, run: {COMMAND}"


@pytest.mark.parametrize("released", RELEASED, ids=lambda path: path.stem)
def test_what_was_released_still_holds(released):
    assert hashlib.sha256(released.read_bytes()).hexdigest() == DIGESTS[released.stem]
    old, now = (settled(path.read_text(encoding="utf-8")) for path in (released, SNAPSHOT))
    problems = breaks(old, now, CHANGELOG, sections(CHANGELOG)[0][0])
    assert not problems, "\n".join(problems)


def settled(text: str) -> str:
    """A contract without what is provisional."""
    kept, skipping = [], False
    for line in text.splitlines():
        if not line.startswith(" "):
            skipping = bool(PROVISIONAL.search(line.partition("(")[0]))
        if not skipping:
            kept.append(line)
    return "\n".join(kept)


def test_each_minor_version_of_this_major_has_its_contract():
    major, minor = sections(CHANGELOG)[0][0]
    first = next(line for line in CHANGELOG.splitlines() if line.startswith("## "))
    last = minor if first.endswith("(unreleased)") else minor + 1
    assert [path.stem for path in RELEASED] == [f"{major}.{older}" for older in range(last) if major]


def test_what_is_deprecated_warns():
    assert silent(CHANGELOG, [importlib.import_module(name) for name in MODULES]) == []


@pytest.mark.parametrize("project", sorted(ROOT.glob("*/*/pyproject.toml")), ids=lambda path: path.parent.name)
def test_a_plugins_changelog_begins_with_its_version(project):
    version = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    assert first_version(project.parent / "CHANGELOG.md") == version


def test_the_changelog_begins_with_the_version():
    assert first_version(ROOT / "CHANGELOG.md") == __version__


def first_version(changelog: Path) -> str:
    match = re.search(r"^## (\S+)", changelog.read_text(encoding="utf-8"), re.MULTILINE)
    assert match, f"{changelog} names no version"
    return match[1]


if __name__ == "__main__":
    sys.stdout.write("\n".join(contract()))
