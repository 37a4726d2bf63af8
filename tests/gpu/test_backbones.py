"""Backbones on a GPU: the numbers of the CPU, half precision, checkpointing, compiling, and what the host waits for."""

import copy
import math
import warnings
from contextlib import contextmanager

import pytest
import torch
from mmcv.ops import nms, roi_align
from torch.nn.functional import pad
from torch.utils._triton import has_triton

from mmgrc.models.cache import commit
from tests.gpu.conftest import DEVICE
from tests.helpers.backbones import FAMILIES, SMALL, TWO_STAGES, assert_same, build, caches, loss

pytestmark = pytest.mark.xdist_group('gpu')
family = pytest.mark.parametrize('family', SMALL)
half = pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])


def assert_close(found, expected, tolerance=1e-4, floor=0.0):
    """Compare sequences or dictionaries of tensors on any device, relative to the largest value of each tensor.

    Below ``floor``, values are rounding errors: a key's bias, for instance, has no gradient but those.
    """
    if not isinstance(found, dict):
        found, expected = dict(enumerate(found)), dict(enumerate(expected))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(value.abs().max().item(), floor)
        difference = (found[name].detach().cpu() - value.detach().cpu()).abs().max().item()
        assert difference <= tolerance * scale, f'{name}: {difference:.2g} of {scale:.2g}'


def gradients(backbone):
    return {name: parameter.grad for name, parameter in backbone.named_parameters()}


def images(count=2, padded=True, seed=0):
    """Images of 64 x 96 pixels, the last of which is smaller and padded."""
    x = torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(seed))
    if padded:
        x[-1] = pad(x[-1, :, :45, :70], (0, 26, 0, 19))
    return x


@family
@pytest.mark.parametrize('options', [{}, {'grc': {'variant': 'paper'}}, {'grc': {'stages': ()}}])
def test_the_numbers_are_those_of_the_cpu(family, options):
    expected, found = build(family, **options), build(family, **options).to(DEVICE)
    for seed in range(2):  # in the second step, the caches are not empty
        for backbone in (expected, found):
            backbone.zero_grad()
        outs = [backbone(images(seed=seed).to(device)) for backbone, device in ((expected, 'cpu'), (found, DEVICE))]
        for maps in outs:
            loss(maps).backward()
        assert all(out.device.type == DEVICE for out in outs[1])
        assert_close(outs[1], outs[0])
        assert_close(caches(found), caches(expected))
        largest = max(grad.abs().max().item() for grad in gradients(expected).values())
        assert_close(gradients(found), gradients(expected), floor=1e-3 * largest)
    x = images(seed=2)
    assert_close(found.eval()(x.to(DEVICE)), expected.eval()(x))
    state = copy.deepcopy(found.state_dict())
    found(x.to(DEVICE))
    assert_same(found.state_dict(), state)


@family
@half
def test_autocast_is_finite_and_near_single_precision(family, dtype):
    backbone, exact = build(family).to(DEVICE), build(family).to(DEVICE)
    # Without padding: PVTv2's first norm scales the gradient of equal channels by 1000, in stock MMDetection too.
    x = images(padded=False).to(DEVICE)
    expected = exact(x)
    with torch.autocast(DEVICE, dtype=dtype):
        outs = backbone(x)
    # Smaller, so that no gradient exceeds fp16's largest number.
    (1e-3 * loss([out.float() for out in outs])).backward()
    assert_same([out.float() for out in outs], expected, 0.2)
    assert_same(caches(backbone), caches(exact), 0.05)
    assert all(layer.cache.dtype == torch.float32 for layer in backbone.grc_layers().values())
    for name, grad in gradients(backbone).items():
        assert torch.isfinite(grad).all(), name
    with torch.autocast(DEVICE, dtype=dtype), torch.no_grad():
        outs = backbone.eval()(x)
    assert all(torch.isfinite(out).all() for out in outs)


@family
def test_steps_with_a_gradient_scaler(family):
    backbone = build(family).to(DEVICE)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**8)
    weights = [parameter.clone() for parameter in backbone.parameters()]
    values = []
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype=torch.float16):
            outs = backbone(images(padded=False).to(DEVICE))
        value = sum((out.float() - 1).square().mean() for out in outs)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        values.append(value.item())
    assert all(math.isfinite(value) for value in values)
    assert scaler.get_scale() == 2.0**8, 'a step was skipped'
    assert not any(torch.equal(a, b) for a, b in zip(weights, backbone.parameters(), strict=True) if a.any())
    assert backbone.skipped_commits == 0
    assert all(torch.isfinite(cache).all() and cache.any() for cache in caches(backbone).values())


@family
def test_checkpointing_changes_nothing(family):
    options = {'drop_path_rate': 0.3, 'drop_rate': 0.1, 'attn_drop_rate': 0.1}
    plain, cheap = build(family, **options).to(DEVICE), build(family, **options, with_cp=True).to(DEVICE)
    outs = []
    for backbone in (plain, cheap):
        torch.manual_seed(1)
        outs.append(backbone(images().to(DEVICE)))
        loss(outs[-1]).backward()
    assert_close(outs[1], outs[0], 1e-6)
    assert_close(caches(cheap), caches(plain), 1e-6)
    largest = max(grad.abs().max().item() for grad in gradients(plain).values())
    assert_close(gradients(cheap), gradients(plain), 1e-5, floor=1e-3 * largest)


@pytest.mark.slow
@pytest.mark.skipif(not has_triton(), reason='inductor needs Triton')
@pytest.mark.parametrize('family', FAMILIES)
def test_inductor_trains_and_commits(family):
    torch._dynamo.reset()
    plain, source = (build(family, **TWO_STAGES[family]).to(DEVICE) for _ in range(2))
    compiled = torch.compile(source)
    for seed in range(2):
        outs = [model(images(seed=seed).to(DEVICE)) for model in (plain, compiled)]
        for maps in outs:
            loss(maps).backward()
        assert_close(outs[1], outs[0])
        assert_close(caches(source), caches(plain))
    largest = max(grad.abs().max().item() for grad in gradients(plain).values())
    assert_close(gradients(source), gradients(plain), floor=1e-3 * largest)


@contextmanager
def waits(mode):
    """What torch reports if the host waits for the GPU: an error, or warnings, which are collected."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            yield caught
    finally:
        torch.cuda.set_sync_debug_mode('default')


@family
@pytest.mark.parametrize('options', [{}, {'with_cp': True}])
def test_a_step_waits_for_the_gpu_only_in_the_commit(family, options, monkeypatch):
    backbone = build(family, drop_path_rate=0.2, **options).to(DEVICE)
    x = images().to(DEVICE)
    loss(backbone(x)).backward()  # the first step allocates memory, which waits too
    steps = []
    monkeypatch.setattr(backbone, 'commit', steps.append)
    with waits('error'):
        loss(backbone(x)).backward()
    before = caches(backbone)
    with waits('warn') as caught:
        assert commit(steps[0].new_caches) is None
    assert len([w for w in caught if 'synchroniz' in str(w.message)]) == 1
    assert not torch.equal(*(next(iter(state.values())) for state in (before, caches(backbone))))
    with waits('error'), torch.no_grad():
        backbone.eval()(x)


def test_a_nonfinite_step_is_not_stored():
    backbone = build('pvt').to(DEVICE)
    backbone(images().to(DEVICE))
    before = caches(backbone)
    bad = images()
    bad[0, 0, 3, 3] = float('inf')
    backbone(bad.to(DEVICE))
    assert_same(caches(backbone), before)
    assert backbone.skipped_commits == 1


def test_ops_of_mmcv_are_those_of_the_cpu():
    """mmgrc's, or compiled ones."""
    generator = torch.Generator().manual_seed(0)
    corners = 40 * torch.rand(200, 2, generator=generator)
    boxes = torch.cat([corners, corners + 1 + 20 * torch.rand(200, 2, generator=generator)], dim=1)
    scores = torch.rand(200, generator=generator)
    kept = [nms(boxes.to(device), scores.to(device), 0.5)[1].cpu() for device in ('cpu', DEVICE)]
    assert torch.equal(*kept)
    assert 0 < len(kept[0]) < 200
    rois = torch.cat([torch.randint(2, (200, 1), generator=generator).float(), boxes], dim=1)
    weights = torch.randn(200, 8, 7, 7, generator=generator)
    found = []
    for device in ('cpu', DEVICE):
        features = torch.randn(2, 8, 32, 32, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
        bins = roi_align(features, rois.to(device), (7, 7), 0.5, 0, 'avg', True)
        (bins * weights.to(device)).sum().backward()
        found.append([bins, features.grad])
    assert_close(found[1], found[0])
