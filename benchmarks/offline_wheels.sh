#!/usr/bin/env bash
# Collect in a folder the wheels that a GPU machine without network needs beside its own torch and transformers:
# our distributions (built without their dependencies, so that they keep their entry points) and what they import.
#
#   benchmarks/offline_wheels.sh .wheels            here
#   python3 -m pip install --no-index --no-deps --target SITE .wheels/*.whl     there
set -euo pipefail
target=${1:?usage: offline_wheels.sh FOLDER [PYTHON_VERSION]}
version=${2:-3.12}
cd "$(dirname "$0")/.."
rm -rf "$target" && mkdir -p "$target"
for folder in . models/* plugins/*; do
    [ -f "$folder/pyproject.toml" ] && python3 -m pip wheel --quiet --no-deps -w "$target" "./$folder"
done
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    -d "$target" pydantic==2.14.3 pydantic-core==2.50.4 annotated-types typing-inspection gguf==0.19.0 annotated-doc \
    typer==0.29.2 typing-extensions
ls "$target"
