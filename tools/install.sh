#!/usr/bin/env bash
# Create a virtual environment and install mmgrc with everything it needs: tools/install.sh [FOLDER], .venv by default.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "install: Python 3.10 or newer is needed; set PYTHON=/path/to/python3" >&2
    exit 1
}
command -v "${CXX:-c++}" > /dev/null || {
    echo "install: a C++ compiler is needed to build mmcv's ops (Debian: apt-get install g++)" >&2
    exit 1
}

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
python=$venv/bin/python

# mmcv is compiled against the installed torch, so torch and the build tools come first.
grep -E '^(torch|setuptools|wheel|ninja)==' requirements.txt | "$python" -m pip install -r /dev/stdin

# pip caches the wheel that it built, but a wheel for another torch, or without CUDA ops, does not fit.
has_ops() {
    "$python" - << 'PY'
import sys

import torch
from mmcv.ops import get_compiling_cuda_version

sys.exit(torch.cuda.is_available() and get_compiling_cuda_version() == 'not available')
PY
}
if command -v nvidia-smi > /dev/null && ! command -v "${CUDA_HOME:+$CUDA_HOME/bin/}nvcc" > /dev/null; then
    cuda=$("$python" -c 'import torch; print(torch.version.cuda)')
    echo "install: there is an NVIDIA GPU, but no nvcc: mmcv gets ops for the CPU only, and training on the GPU will" >&2
    echo "install: fail. Install the CUDA toolkit $cuda, set CUDA_HOME, and type: rm -rf $venv && make env" >&2
fi
export PATH="$PWD/$venv/bin:$PATH" # for ninja
echo 'install: mmcv is compiled now unless pip has a wheel of it: about 7 minutes on two cores'
"$python" -m pip install --no-build-isolation -r requirements.txt
if ! has_ops 2> /dev/null; then
    echo 'install: the cached wheel of mmcv does not fit this torch; mmcv is recompiled'
    "$python" -m pip uninstall -y mmcv
    "$python" -m pip install --no-build-isolation --no-cache-dir "$(grep '^mmcv==' requirements.txt)"
    has_ops || echo 'install: mmcv still has no CUDA ops; is the CUDA toolkit the one that torch was built with?' >&2
fi
"$python" -m pip install --no-build-isolation --no-deps -e .
"$python" -c 'import mmgrc; print(f"mmgrc {mmgrc.__version__} is ready")'
