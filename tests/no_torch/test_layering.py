"""The walls of the house: who may import whom, and who may name what."""

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = ("bestiary", "bestiary.layers", "bestiary.ops", "bestiary.converters", "bestiary.quant", "bestiary.spec", "bestiary.testing", "bestiary.tools", "bestiary.hookspecs")  # fmt: skip
TORCH_FREE = (
    "bestiary.core.quant.layout",
    "bestiary.core.quant.rules",
    "bestiary.core.runtime.admission",
    "bestiary.core.runtime.bad_words",
    "bestiary.core.runtime.batch",
    "bestiary.core.runtime.beam",
    "bestiary.core.runtime.bitmasks",
    "bestiary.core.runtime.block_tables",
    "bestiary.core.runtime.blocks",
    "bestiary.core.runtime.cache_groups",
    "bestiary.core.runtime.changes",
    "bestiary.core.runtime.endings",
    "bestiary.core.runtime.executor",
    "bestiary.core.runtime.logprob_dicts",
    "bestiary.core.runtime.loop",
    "bestiary.core.runtime.messages",
    "bestiary.core.runtime.ngrams",
    "bestiary.core.runtime.pace",
    "bestiary.core.runtime.packing",
    "bestiary.core.runtime.policies",
    "bestiary.core.runtime.prefixes",
    "bestiary.core.runtime.pulse",
    "bestiary.core.runtime.queue",
    "bestiary.core.runtime.random_stream",
    "bestiary.core.runtime.request",
    "bestiary.core.runtime.restrictions",
    "bestiary.core.runtime.reuse",
    "bestiary.core.runtime.running",
    "bestiary.core.runtime.scheduler",
    "bestiary.core.runtime.slots",
    "bestiary.core.runtime.slow_calls",
    "bestiary.core.runtime.stats",
    "bestiary.core.runtime.steps",
    "bestiary.core.runtime.tap_rows",
)
LOW = ("bestiary.core.ops", *TORCH_FREE)
HIGH = ("bestiary.layers", "bestiary.converters", "bestiary.core.checkpoint", "bestiary.core.engine", "bestiary.core.cli", "bestiary.core.llm", "bestiary.core.prepare")  # fmt: skip
PLUGINS = sorted(path.parent for kind in ("models", "plugins") for path in ROOT.glob(f"{kind}/*/*/__init__.py"))
FAMILIES = sorted(path.name for path in (ROOT / "models").iterdir() if (path / "pyproject.toml").is_file())


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("bestiary", include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize("low", LOW)
def test_ops_and_scheduler_know_no_model_and_no_server(graph, low):
    modules = {low, *graph.find_descendants(low)} if low in graph.modules else set()
    assert modules, f"{low} is gone"
    for high in HIGH:
        targets = {high, *graph.find_descendants(high)} if high in graph.modules else set()
        for module in modules:
            for target in targets:
                assert not graph.direct_import_exists(importer=module, imported=target), f"{module} imports {target}"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_scheduling_imports_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("package", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_imports_public_modules_and_no_other_plugin(package):
    others = {path.name for path in PLUGINS} - {package.name}
    for path, imported in imports_below(package):
        top = imported.partition(".")[0]
        assert top not in others, f"{path} imports {imported}, another plugin"
        assert top != "bestiary" or imported in PUBLIC, f"{path} imports {imported}, which is not public"


@pytest.mark.parametrize("package", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_imports_only_what_all_lists(package):
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in PUBLIC and node.level == 0:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    listed = whole in PUBLIC or alias.name in public_names(node.module)
                    assert listed, f"{path}:{node.lineno} imports {whole}, which is not in __all__"
            called = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")
            assert not called, f"{path}:{node.lineno} imports by name, past this test"


def test_only_the_device_module_talks_to_cuda():
    allowed = {ROOT / "core" / "device.py", *(ROOT / "core" / "device").rglob("*.py")}
    for path in sources("core", "layers", "converters"):
        if path not in allowed:
            for node in ast.walk(ast.parse(path.read_text())):
                assert not names_cuda(node), f"{path.relative_to(ROOT)}:{node.lineno} names CUDA"


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_in_core_names_a_model_family(family):
    for path in sources("core", "layers", "converters", "bestiary"):
        for node in ast.walk(ast.parse(path.read_text())):
            words = set(name_words(node))
            allowed = path.name == "config.py" and "llama3" in words
            assert allowed or family not in words, f"{path.relative_to(ROOT)}:{node.lineno} names {family}"


@pytest.mark.parametrize("library", ["triton", "flash_attn", "flashinfer", "xformers"])
def test_nothing_in_core_imports_a_kernel_library(library):
    for path in sources("core", "layers", "converters", "bestiary"):
        for _, imported in imports_of(path):
            assert imported.partition(".")[0] != library, f"{path.relative_to(ROOT)} imports {library}"


def sources(*folders):
    found = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "templates" not in path.relative_to(ROOT).parts
    ]
    assert found
    return found


def imports_below(folder):
    return [pair for path in sorted(folder.rglob("*.py")) if "tests" not in path.parts for pair in imports_of(path)]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((path, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from bestiary import spec` imports a module; `from bestiary import hookimpl` a name of one.
            yield from ((path, name if name in PUBLIC else node.module) for name in whole)


def public_names(module):
    """The module's ``__all__``, read without importing it."""
    place = ROOT.joinpath(*module.split("."))
    tree = ast.parse((place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text())
    values = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    assert values, f"{module} has no __all__"
    return ast.literal_eval(values[0])


def names_cuda(node):
    """Attributes, imports and device strings; prose in docstrings may say the word."""
    match node:
        case ast.Attribute(attr=name):
            return name == "cuda"
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            module = getattr(node, "module", None) or ""
            return "cuda" in module.split(".") or any("cuda" in alias.name.split(".") for alias in names)
        case ast.Constant(value=str(text)):
            return text.partition(":")[0] == "cuda"
    return False


def name_words(node):
    """What code calls things: identifiers and imports; docstrings and comments may give examples."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
            return name.lower().split("_")
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return name.lower().split("_")
        case ast.Import(names=names):
            return [part for alias in names for part in alias.name.replace("_", ".").split(".")]
        case ast.ImportFrom(module=str(module)):
            return module.replace("_", ".").split(".")
        case ast.Constant(value=str(text)):
            return [text.lower()]  # as a whole: a sentence that gives an example is no name
    return []
