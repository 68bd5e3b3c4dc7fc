"""What a new plugin may be called."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from importlib import metadata
from typing import TYPE_CHECKING

from bestiary.core.errors import BestiaryError, UsageError

if TYPE_CHECKING:
    from bestiary.core.plugins import PluginHost

_NAME = re.compile(r"(?=.{1,40}$)[a-z][a-z0-9]*(_[a-z0-9]+)*")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
# Their classes would hide names that the templates import.
_TAKEN_CLASSES = frozenset(
    ("Any", "Attention", "Callable", "Column", "Embedding", "Head", "Kernel", "Linear", "Literal", "Mapping", "Model", "Op", "Replicated", "Rope", "Row", "Self", "Step", "Tensor", "Vocabulary")
)  # fmt: skip
# What projects import, run or hold; commands and errors that name it would mean the other.
_TAKEN_MODULES = frozenset(
    ("bestiary", "conftest", "mypy", "numpy", "pip", "pluggy", "plugin", "pytest", "ruff", "safetensors", "setuptools", "tests", "torch", "transformers", "triton", "wheel")
)  # fmt: skip
# Functions and modules of the op template.
_TAKEN_FUNCTIONS = frozenset(("gate", "inputs", "op", "ops", "out", "run", "supports", "torch", "up"))


def class_of(name: str) -> str:
    """The class of a plugin: ``my_model`` → ``MyModel``."""
    return "".join(part.capitalize() for part in name.split("_"))


def package_of(name: str) -> str:
    """Its import package."""
    return f"bestiary_{name}"


def distribution_of(name: str) -> str:
    """Its distribution."""
    return f"bestiary-{name.replace('_', '-')}"


def check_name(name: str) -> None:
    """Refuse what can't be a package, a class and a folder at once.

    Raises:
        UsageError: it can't.
    """
    if not _NAME.fullmatch(name):
        raise _refused(
            name, "is no name for a plugin", "at most 40 lower-case letters a-z, digits and single underscores"
        )
    if keyword.iskeyword(name) or keyword.iskeyword(class_of(name)):
        raise _refused(name, "is a word of Python")
    if name in sys.stdlib_module_names:
        raise _refused(name, "is a module of Python's own library")
    if name in _TAKEN_MODULES:
        raise _refused(name, "is a module that a plugin's project uses itself")
    if class_of(name).startswith("Test"):
        raise _refused(name, f"would make classes that begin like {class_of(name)}, which pytest takes for tests")
    if class_of(name) in _TAKEN_CLASSES:
        raise _refused(name, f"would make a class {class_of(name)}, which is one of bestiary's own")


def check_architecture(architecture: str) -> None:
    """Refuse what config.json can't name as a class.

    Raises:
        UsageError: it is no identifier.
    """
    if not _IDENTIFIER.fullmatch(architecture) or keyword.iskeyword(architecture):
        raise UsageError(
            "E-NEW-NAME",
            f"architecture {architecture[:60]!r}",
            "is no class name",
            expected="such as MymodelForCausalLM",
        )


def check_op(op: str) -> None:
    """Refuse a name for an op that is no function's.

    Raises:
        UsageError: it is none.
    """
    if not _NAME.fullmatch(op) or keyword.iskeyword(op) or op in _TAKEN_FUNCTIONS:
        expected = "at most 40 lower-case letters a-z, digits and single underscores, and no name that the template has"
        raise UsageError("E-NEW-NAME", f"op {op[:60]!r}", "is no name for an op", expected=expected)


def check_line(text: str) -> None:
    """Refuse text that does not fit on a line of a file.

    Raises:
        UsageError: it is empty or too long, or has control characters.
    """
    if not text.strip() or len(text) > 100 or not text.isprintable():
        raise UsageError("E-NEW-ANSWER", repr(text[:60]), "is not one line of text", expected="1 to 100 characters")


def check_free(name: str, host: PluginHost) -> None:
    """Refuse a name that something installed has: a plugin, a distribution, a module, a model.

    Raises:
        UsageError: it is taken; the sentence says by what.
    """
    for record in host.records():
        if record.origin.plugin == name:
            raise _refused(name, f"is the plugin of {record.origin.distribution} {record.origin.version}")
    for model in host.models():
        if model.name == name:
            raise _refused(name, f"is a model of {host.origin(model)}")
    try:
        found = metadata.distribution(distribution_of(name))
    except metadata.PackageNotFoundError:
        pass
    else:
        raise _refused(name, f"would make the distribution {distribution_of(name)}; {found.version} of it is installed")
    if importlib.util.find_spec(package_of(name)) is not None:
        raise _refused(name, f"would make the package {package_of(name)}, and one of that name can be imported")


def check_kernel_free(name: str, host: PluginHost) -> None:
    """Refuse a name that a kernel has already, of any op: with two of a name on an op no model of it could be built.

    Raises:
        UsageError: it is taken; the sentence says by what.
    """
    if name == "reference":
        raise _refused(name, "is what every op's own definition is called")
    for kernel in host.kernels():
        if kernel.name in (name, f"{name}_triton"):
            raise _refused(name, f"is taken: {host.origin(kernel)} has a kernel {kernel.name} of {kernel.op}")


def check_namespace_free(name: str, host: PluginHost) -> None:
    """Refuse a name that stands before the ``::`` of an op already.

    Raises:
        UsageError: it does; the sentence says in what.
    """
    for op in host.ops():
        if op.name.startswith(f"{name}::"):
            raise _refused(name, f"is taken: {host.origin(op)} has an op {op.name}")


def check_architecture_free(architecture: str, host: PluginHost) -> None:
    """Refuse an architecture that an installed plugin serves: with two of them neither could be used.

    Raises:
        UsageError: it is served.
    """
    for model in host.models():
        if architecture in model.architectures:
            raise UsageError(
                "E-NEW-NAME",
                f"architecture {architecture}",
                f"is served by {host.origin(model)} already",
                hint="uninstall that one first, or load no plugins: BESTIARY_PLUGINS= bestiary new model …",
            )


def _refused(name: str, problem: str, expected: str | None = None) -> BestiaryError:
    return UsageError("E-NEW-NAME", f"name {name[:60]!r}", problem, expected=expected)
