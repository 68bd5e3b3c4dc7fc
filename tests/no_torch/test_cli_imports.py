"""What a call of ``bestiary`` must not pay for. Seen from outside, in ``sys.modules``, because imports hide well."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "triton", "numpy", "safetensors", "tokenizers", "huggingface_hub", "jinja2")
CALLS = {
    "help": ["--help"],
    "run --help": ["run", "--help"],
    "plan-memory --help": ["plan-memory", "--help"],
    "doctor --help": ["doctor", "--help"],
    "bench serve --help": ["bench", "serve", "--help"],
    "lock --help": ["lock", "--help"],
    "version": ["--version"],
    "plugins": ["plugins", "--json"],
    "kernels": ["kernels", "--json"],
    "cache ls": ["cache", "ls", "--json"],
}


@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS.keys())
def test_nothing_heavy_is_imported(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path))
    code = (
        "import sys, json\n"
        "from bestiary.core.cli.main import invoke\n"
        f"status = invoke({arguments!r})\n"
        f"print(json.dumps([status, sorted(set(sys.modules) & set({HEAVY!r}))]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr.splitlines()[-1]) == [0, []]


def test_importing_bestiary_imports_no_torch():
    code = "import sys, bestiary, bestiary.spec, bestiary.hookspecs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
