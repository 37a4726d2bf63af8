"""Tests that need a CUDA GPU. Without one, each of them is left out and says so. `make test-gpu` runs them alone."""

from pathlib import Path

import pytest
import torch

DEVICE = 'cuda'


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    left_out = pytest.mark.skip(reason='no CUDA GPU, so nothing is known of what this checks (docs/gpu.md)')
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(left_out)


@pytest.fixture(autouse=True)
def _full_precision():
    """TF32 has a mantissa of 10 bits, too few for a comparison with the CPU."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value
