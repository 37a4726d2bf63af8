"""Backbones and detectors on real ranks: equal caches, and no hang whatever the data of one rank."""

import json
import math
import os

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing._utils import demo_mm_inputs
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.nn.parallel import DistributedDataParallel

from mmgrc.datasets import write_shapes
from mmgrc.engine.ranks import LauncherError, check_launcher, count_ranks, read_slurm_environment
from tests.helpers.backbones import build, caches
from tests.helpers.processes import run_ranks

STEPS = 3


def train(backbone, batches, factors=None, share=1.0):
    """Train on ``batches`` and return the caches after each step. ``factors`` scale the losses."""
    model = backbone
    if torch.distributed.is_initialized():
        model = DistributedDataParallel(backbone, broadcast_buffers=False)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    after = []
    for index, batch in enumerate(batches):
        # A mean over images, so that the mean over equal ranks is the mean over the joined batch.
        loss = sum(out.square().mean() for out in model(batch)) * share
        if factors is not None:
            loss = loss * factors[index]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after.append(caches(backbone))
    return after


def images(count, seed):
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


def train_share(rank, kind, world_size, sync):
    batches = [images(2 * world_size, step)[2 * rank : 2 * rank + 2] for step in range(STEPS)]
    return train(build(kind, grc={'sync': sync}), batches)


def equal(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(('kind', 'world_size'), [('pvt', 2), ('pvt', 3), ('swin', 2)])
def test_ranks_hold_the_caches_of_one_process_on_the_joined_batch(kind, world_size, tmp_path):
    ranks = run_ranks(train_share, world_size, tmp_path, kind, world_size, True)
    alone = train(build(kind), [images(2 * world_size, step) for step in range(STEPS)])
    for step in range(STEPS):
        assert all(equal(rank[step], ranks[0][step]) for rank in ranks)
        for name, cache in alone[step].items():
            assert cache.any()
            torch.testing.assert_close(ranks[0][step][name], cache, rtol=0, atol=1e-5)


def test_without_sync_each_rank_has_its_own(tmp_path):
    ranks = run_ranks(train_share, 2, tmp_path, 'pvt', 2, False)
    assert not any(torch.equal(ranks[0][0][name], ranks[1][0][name]) for name in ranks[0][0])
    # Before the first exchange of weights, each cache is that of one process on its share.
    for rank in range(2):
        alone = train(build('pvt'), [images(4, 0)[2 * rank : 2 * rank + 2]])
        assert equal(ranks[rank][0], alone[0])


def train_with_faults(rank):
    """Steps: plain, uneven, an infinite pixel on rank 1, plain, a NaN loss on rank 1, plain."""
    batches = [images(2, 10 * step + rank) for step in range(6)]
    batches[1] = batches[1][: 1 + rank]
    if rank == 1:
        batches[2][0, 1, 5, 5] = float('inf')
    factors = [1.0, 1.0, 1.0, 1.0, float('nan') if rank == 1 else 1.0, 1.0]
    # The optimizer would carry the infinite step into the weights, which is not under test.
    backbone = build('pvt')
    first = train(backbone, batches[:2], factors)
    weights = {name: value.clone() for name, value in backbone.state_dict().items() if not name.endswith('cache')}
    second = train(backbone, batches[2:3], factors[2:])
    backbone.load_state_dict({**backbone.state_dict(), **weights})
    return first + second + train(backbone, batches[3:], factors[3:])


def test_faults_of_one_rank_end_neither_in_a_hang_nor_in_differing_caches(tmp_path):
    left, right = run_ranks(train_with_faults, 2, tmp_path)
    for step in range(6):
        assert equal(left[step], right[step]), step
        assert all(torch.isfinite(cache).all() for cache in left[step].values())
    plain, uneven, infinite, again, no_number, after = left
    assert not equal(plain, uneven)
    assert equal(uneven, infinite)
    assert not equal(infinite, again)
    # The activations of that step were finite. The weights no longer are, so the next step is not stored.
    assert not equal(again, no_number)
    assert equal(no_number, after)


DETECTORS = {
    'mask_rcnn_grc_pvt.py': {
        'num_layers': [1, 1, 1, 1],
        'embed_dims': 8,
        'num_heads': [1, 2, 5, 8],
        'channels': [8, 16, 40, 64],
    },
    'retinanet_grc_pvt.py': {
        'num_layers': [1, 1, 1, 1],
        'embed_dims': 8,
        'num_heads': [1, 2, 5, 8],
        'channels': [8, 16, 40, 64],
    },
    'mask_rcnn_grc_swin.py': {
        'depths': [2, 1, 1, 1],
        'embed_dims': 12,
        'num_heads': [1, 2, 3, 6],
        'channels': [12, 24, 48, 96],
    },
    'retinanet_grc_swin.py': {
        'depths': [2, 1, 1, 1],
        'embed_dims': 12,
        'num_heads': [1, 2, 3, 6],
        'channels': [24, 48, 96],
    },
}


def narrow_model(name):
    """The model of a config, narrow and without fetched weights."""
    options = dict(DETECTORS[name])
    config = Config.fromfile(f'mmgrc::{name}').model
    config.neck.in_channels = options.pop('channels')
    config.backbone.update(init_cfg=None, drop_path_rate=0.0, **options)
    if 'roi_head' in config:
        config.roi_head.bbox_head.fc_out_channels = 32
        config.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
        config.train_cfg.rcnn.sampler.num = 16
    return config


def narrow_detector(name):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(narrow_model(name))
    model.init_weights()
    return model.train()


def train_detectors(rank):
    """Two steps of each; rank 1 has no objects in the first. DDP itself refuses unused parameters, at the second."""
    found = {}
    for name in DETECTORS:
        model = narrow_detector(name)
        wrapper = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        losses = []
        for step in range(2):
            torch.manual_seed(10 * step + rank)
            objects = 0 if (rank, step) == (1, 0) else 2
            # The last batch of rank 0 is a smaller one.
            count = 1 if (rank, step) == (0, 1) else 2
            data = demo_mm_inputs(
                count, [[3, 64, 96]] * count, num_items=[objects] * count, num_classes=80, with_mask='mask' in name
            )
            data = model.data_preprocessor(data, training=True)
            loss, _ = model.parse_losses(wrapper(**data, mode='loss'))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            assert all(parameter.grad is not None for parameter in model.parameters())
        found[name] = {'losses': losses, 'caches': caches(model.backbone), 'state': model.state_dict()}
    return found


@pytest.mark.slow
def test_detectors_train_on_ranks_without_unused_parameters(tmp_path):
    left, right = run_ranks(train_detectors, 2, tmp_path, timeout=240)
    for name in DETECTORS:
        assert equal(left[name]['state'], right[name]['state'])
        assert all(cache.any() for cache in left[name]['caches'].values())
        assert torch.isfinite(torch.tensor(left[name]['losses'] + right[name]['losses'])).all()
        assert left[name]['losses'] != right[name]['losses']


@pytest.fixture(scope='module')
def mostly_empty(tmp_path_factory):
    """Eight images. Dealt to two ranks in turn, in batches of two, the first batch of rank 1 has no objects."""
    root = tmp_path_factory.mktemp('empty') / 'shapes'
    write_shapes(root, images=8, val=1, size=(96, 64), seed=3)
    file = root / 'annotations' / 'instances_train.json'
    content = json.loads(file.read_text())
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] not in (2, 4, 6)]
    file.write_text(json.dumps(content))
    return root


class Recorder(Hook):
    def __init__(self):
        self.objects, self.losses = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.objects.append(sum(len(sample.gt_instances) for sample in data_batch['data_samples']))
        self.losses.append({name: float(value) for name, value in outputs.items()})


def train_an_epoch(rank, name, root, work_dir):
    """MMEngine's own loop, with all hooks of the configs."""
    # MMEngine reads it even if no device is given.
    os.environ['LOCAL_RANK'] = str(rank)
    config = Config.fromfile('mmgrc::shapes/mask_rcnn_grc_pvt.py')
    config.model = narrow_model(name)
    config.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'launcher': 'pytorch',
            'model_wrapper_cfg': {'type': 'MMDistributedDataParallel', 'broadcast_buffers': False, 'device_ids': None},
            'train_cfg.max_epochs': 1,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_dataloader.sampler.shuffle': False,
            'train_dataloader.dataset.data_root': str(root),
            'train_dataloader.dataset.filter_cfg.filter_empty_gt': False,
            'default_hooks.grc_monitor.interval': 1,
        }
    )
    for part in ('dataloader', 'cfg', 'evaluator'):
        config[f'val_{part}'] = config[f'test_{part}'] = None
    runner = Runner.from_cfg(config)
    recorder = Recorder()
    runner.register_hook(recorder)
    model = runner.train().module
    return {'objects': recorder.objects, 'losses': recorder.losses, 'state': model.state_dict()}


@pytest.mark.slow
@pytest.mark.parametrize('name', DETECTORS)
def test_epoch_in_which_one_rank_has_a_batch_without_objects(name, mostly_empty, tmp_path):
    ranks = run_ranks(train_an_epoch, 2, tmp_path, name, mostly_empty, tmp_path / 'run', timeout=240)
    left, right = ranks
    assert right['objects'][0] == 0
    assert min(left['objects'] + right['objects'][1:]) > 0
    for rank in ranks:
        assert len(rank['losses']) == 2
        for losses in rank['losses']:
            assert ('loss_mask' in losses) == ('mask' in name)
            assert all(math.isfinite(value) for value in losses.values())
    assert equal(left['state'], right['state'])
    stored = {key: value for key, value in left['state'].items() if key.endswith('grc.cache')}
    assert stored
    assert all(cache.any() for cache in stored.values())
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()


SLURM = {'SLURM_PROCID': '3', 'SLURM_NTASKS': '4', 'SLURM_LOCALID': '1', 'SLURM_NODELIST': 'a', 'SLURM_JOB_ID': '70000'}


def train_frozen(rank):
    backbone = build('swin', frozen_stages=2)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    train(backbone, [images(4, step)[2 * rank : 2 * rank + 2] for step in range(STEPS)])
    return [name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])]


def test_frozen_stages_train_on_ranks(tmp_path):
    """DDP knows what is frozen before the first step, whether or not train() was called before."""
    for changed in run_ranks(train_frozen, 2, tmp_path):
        frozen = ('patch_embed.', 'stages.0.', 'stages.1.', 'norm0.', 'norm1.')
        assert not [name for name in changed if name.startswith(frozen)]
        for kind in ('grc.cache', 'qkv.weight'):
            assert {name.split('.')[1] for name in changed if name.endswith(kind)} == {'2', '3'}


def test_slurm_variables_become_torchs(monkeypatch, tmp_path):
    # scontrol expands lists of nodes. A script that splits at commas replaces it.
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\necho "$3" | tr , "\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')

    environ = dict(SLURM)
    read_slurm_environment(environ)
    assert [environ[n] for n in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR')] == ['3', '4', '1', '127.0.0.1']

    ports = set()
    for job in range(70000, 70100):
        environ = {**SLURM, 'SLURM_JOB_ID': str(job), 'SLURM_NODELIST': 'b,c'}
        read_slurm_environment(environ)
        assert environ['MASTER_ADDR'] == 'b'
        ports.add(int(environ['MASTER_PORT']))
    assert len(ports) == 100
    # Neither a privileged nor an ephemeral port.
    assert min(ports) >= 1024
    assert max(ports) < 32768

    environ = {**SLURM, 'MASTER_PORT': '1234', 'MASTER_ADDR': '10.0.0.1'}
    read_slurm_environment(environ)
    assert (environ['MASTER_PORT'], environ['MASTER_ADDR']) == ('1234', '10.0.0.1')


def test_nodes_that_slurm_does_not_name(monkeypatch, tmp_path):
    """As in a container without Slurm's commands."""
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(LauncherError, match=r'the first of the nodes \S+ is not known: scontrol .*Set MASTER_ADDR'):
        read_slurm_environment(dict(SLURM))


def test_ranks_are_counted_before_they_connect():
    assert count_ranks('slurm', {**SLURM, 'SLURM_NTASKS': '6'}) == 6
    assert count_ranks('pytorch', {'WORLD_SIZE': '4'}) == 4
    assert count_ranks('none', {'WORLD_SIZE': '4'}) == 1


def test_process_that_no_launcher_started():
    with pytest.raises(LauncherError, match=r'RANK, WORLD_SIZE.*not set.*tools/dist_train.sh'):
        check_launcher('pytorch', {})
    with pytest.raises(LauncherError, match=r'SLURM_LOCALID not set.*tools/slurm_train.sh'):
        check_launcher('slurm', {k: v for k, v in SLURM.items() if k != 'SLURM_LOCALID'})


def test_more_ranks_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(LauncherError, match='no GPU for local rank 1: this process sees 1'):
        check_launcher('slurm', SLURM)
    check_launcher('slurm', {**SLURM, 'SLURM_LOCALID': '0'})
