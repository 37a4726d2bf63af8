# mmgrc with the tested versions, without a compiler: docs/docker.md has the commands.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# libGL and GLib for OpenCV.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /mmgrc
COPY requirements.txt ./

# torch for CPUs. PyPI's torch for Linux brings CUDA: --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" "$(grep '^torch==' requirements.txt)"
# The pinned versions without what only tests and documentation need.
RUN sed '/^# Tests and lint/,$d' requirements.txt > runtime.txt \
    && pip install --no-cache-dir -r runtime.txt

COPY . ./
RUN pip install --no-cache-dir --no-build-isolation --no-deps -e . \
    && useradd --create-home --uid 1000 mmgrc \
    && install --directory --owner mmgrc data work_dirs detections

# Also for a user without a home, of docker run --user.
ENV MPLCONFIGDIR=/tmp/matplotlib
USER 1000
CMD ["python", "tools/check_env.py"]
