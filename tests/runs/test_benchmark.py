"""The benchmark's counts against MMDetection's own layers and against arithmetic; its options."""

import pytest
import torch
from mmengine.config import Config

from mmgrc.runs import benchmark
from mmgrc.runs.benchmark import Options, compare
from mmgrc.runs.error import InputError

GRC = 'mmgrc::shapes/retinanet_grc_pvtv2.py'
PLAIN = 'mmgrc::shapes/baselines/retinanet_pvtv2.py'


@pytest.mark.slow
def test_plain_backbone_counts_as_the_stock_one_which_materialises_its_attention():
    ours, stock = compare(PLAIN, 'stock', Options(size=(64, 96), runs=1))
    assert ours.parameters == stock.parameters
    assert ours.flops == pytest.approx(stock.flops, rel=1e-3)
    for result in (ours, stock):
        assert result.seconds.fastest <= result.seconds.median <= result.seconds.slowest
        assert result.images_per_second == pytest.approx(1 / result.seconds.median)


def test_attention_is_counted():
    queries, keys, dims = 40, 24, 16
    q, k = torch.randn(1, 2, queries, dims // 2), torch.randn(1, 2, keys, dims // 2)
    attend = torch.nn.functional.scaled_dot_product_attention
    counted = benchmark._count(lambda: attend(q, k, k))
    # Scores and the weighted sum of the values, a multiplication and an addition each.
    assert counted == 2 * 2 * queries * keys * dims


@pytest.mark.slow
def test_memory_costs_parameters_flops_and_memory():
    large = torch.ones(2**28)  # 1 GiB
    with_memory, without = compare(GRC, PLAIN, Options(size=(64, 96), runs=2, mode='train', batch=2))
    model = benchmark.build_model(Config.fromfile(GRC)).backbone
    branches = sum(p.numel() for branch in model.grc_layers().values() for p in branch.parameters())
    assert with_memory.parameters - without.parameters == branches
    assert with_memory.flops > without.flops
    # Not that of the process that compares.
    assert all(0 < result.peak_memory < large.nbytes / 2 for result in (with_memory, without))


@pytest.mark.slow
def test_whole_detector(run_tool, tmp_path):
    config = 'configs/shapes/mask_rcnn_grc_pvtv2.py'
    files = ['--json', tmp_path / 'out.json', '--markdown', tmp_path / 'out.md']
    options = ['--mode', 'train', 'eval', '--part', 'detector', '--size', 64, 96, '--runs', 1]
    result = run_tool('benchmark', '--config', config, *options, *files, timeout=500)
    assert result.returncode == 0, result.stderr
    assert f'B: stock {config}' in result.stdout
    found = Config.fromfile(tmp_path / 'out.json').comparisons
    assert [entry.options.mode for entry in found] == ['train', 'eval']
    for entry in found:
        assert entry.results[0].parameters > entry.results[1].parameters
    rows = (tmp_path / 'out.md').read_text().splitlines()[4:]
    assert [row.split(' | ')[2] for row in rows] == ['train', 'eval']
    assert all(row.startswith(f'| {config} | stock {config} |') for row in rows)


def test_detector_with_a_list_of_heads():
    """Cascade R-CNN has three box heads and no mask head."""
    config = benchmark.load_config('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py')
    for head in config.model.roi_head.bbox_head:
        head.fc_out_channels = 8
    model, _ = benchmark._build_pass(config, Options(part='detector', mode='train', size=(64, 96)))
    assert len(model.roi_head.bbox_head) == 3


def test_time_on_a_gpu_ends_when_it_has_computed(monkeypatch):
    """Also on that of a Mac."""
    calls = []
    monkeypatch.setattr(torch.accelerator, 'synchronize', lambda device: calls.append(device))
    for device in ('cpu', 'cuda:0', 'mps'):
        benchmark._seconds(lambda device=device: calls.append(f'run {device}'), device)
    assert calls == ['run cpu', 'cuda:0', 'run cuda:0', 'cuda:0', 'mps', 'run mps', 'mps']


def test_without_a_memory_is_the_baseline():
    sides = ((GRC, 'no-memory'), (PLAIN, None))
    found = [benchmark.build_model(benchmark._load(*side)).backbone for side in sides]
    assert not found[0].grc_layers()
    assert found[0].state_dict().keys() == found[1].state_dict().keys()
    with pytest.raises(InputError, match=r'the backbone ResNet has no GRC, .*: compare it with another config'):
        benchmark._load('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'no-memory')


@pytest.mark.parametrize(
    ('paths', 'options', 'message'),
    [
        (('mmgrc::nothing.py', 'stock'), {}, 'It has: mmgrc::baselines/mask_rcnn_pvt.py'),
        (('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', 'stock'), {}, 'SwinTransformer has no GRC'),
        ((GRC, PLAIN), {'size': (16, 64)}, 'at least 32 pixels'),
        ((GRC, PLAIN), {'runs': 0}, 'runs 0: give a number of at least 1'),
        ((GRC, PLAIN), {'dtype': 'fp8'}, "dtype 'fp8': allowed are fp32, fp16, bf16"),
        ((GRC, PLAIN), {'device': 'warp'}, "device 'warp' cannot be used"),
    ],
)
def test_bad_input_ends_before_any_measurement(monkeypatch, paths, options, message):
    monkeypatch.delattr(benchmark, '_peak_memory')
    with pytest.raises(InputError, match=message):
        compare(*paths, Options(**options))
