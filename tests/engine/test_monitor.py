"""The monitor's numbers against their definitions, and its lack of effect on training."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch.utils.data import DataLoader

from mmgrc.engine import GRCMonitorHook
from mmgrc.models import GRCPyramidVisionTransformer, GRCSwinTransformer
from tests.helpers.processes import run_ranks

PVT = {
    'embed_dims': 8,
    'num_stages': 2,
    'num_layers': [1, 2],
    'num_heads': [1, 2],
    'sr_ratios': [2, 1],
    'strides': [4, 2],
    'mlp_ratios': [2, 2],
    'paddings': [0, 0],
    'patch_sizes': [4, 2],
    'out_indices': (0, 1),
    'pretrain_img_size': 32,
    'drop_path_rate': 0.0,
}
LAYERS = ['backbone.layers.0.1.1', 'backbone.layers.1.1.1', 'backbone.layers.1.1.2']
QUANTITIES = ['sigma_lambda', 'update_gate', 'reset_gate', 'cache_rms', 'cache_change']


class Model(BaseModel):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def init_weights(self):
        """The tests set the weights themselves."""

    def forward(self, inputs, mode='loss'):
        loss = sum(out.square().mean() for out in self.backbone(inputs))
        return {'loss': loss}


def make_model(**grc):
    torch.manual_seed(0)
    model = Model(GRCPyramidVisionTransformer(**PVT, grc=grc))
    for branch in model.backbone.grc_layers().values():
        torch.nn.init.normal_(branch.lam)
        torch.nn.init.normal_(branch.update_gate.weight, std=0.5)
    return model


def batches(steps=4):
    """Batches of three images, the second of half size in the padded batch."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(3, 32, 32, generator=generator) for _ in range(3 * steps)]
    for image in images[1::3]:
        image[:, 16:] = 0
    return [{'inputs': image} for image in images]


def train(work_dir, model, hooks, steps=4):
    images = batches(steps)
    runner = Runner(
        model,
        str(work_dir),
        train_dataloader=DataLoader(images, batch_size=3, shuffle=False),
        train_cfg={'by_epoch': True, 'max_epochs': 1},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}},
        custom_hooks=hooks,
        default_scope='mmengine',
        experiment_name=f'{work_dir.parent.name}_{work_dir.name}',
    )
    runner.train()
    return records(work_dir)


def records(work_dir):
    lines = [json.loads(line) for f in Path(work_dir).glob('*/vis_data/scalars.json') for line in f.open()]
    return [line for line in lines if 'grc_skipped_steps' in line]


@pytest.mark.parametrize('variant', ['code', 'paper'])
def test_logs_what_its_names_say(tmp_path, variant):
    logged = train(tmp_path / 'run', make_model(variant=variant), [GRCMonitorHook(interval=3)])
    assert [record['step'] for record in logged] == [3]

    # The same three steps by hand, with hooks on the gates' linear layers.
    model, images = make_model(variant=variant).train(), torch.stack([b['inputs'] for b in batches()]).split(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        before = {name: branch.cache.clone() for name, branch in model.backbone.grc_layers().items()}
        seen = watch_gates(model) if step == 2 else None
        model.backbone.zero_grad()
        model(images[step])['loss'].backward()
        optimizer.step()
    for name, branch in model.backbone.grc_layers().items():
        layer = f'backbone.{name.removesuffix(".attn.grc")}'
        record = {quantity: logged[0][f'grc_{quantity}/{layer}'] for quantity in QUANTITIES}
        rms = branch.cache.square().mean().sqrt()
        change = (branch.cache - before[name]).square().mean().sqrt() / rms
        expected = [branch.lam.detach().sigmoid().mean(), *seen[name], rms, change]
        assert list(record.values()) == pytest.approx([float(value) for value in expected], rel=1e-4)
    assert logged[0]['grc_skipped_steps'] == 0
    assert sorted(key for key in logged[0] if key.startswith('grc_sigma_lambda/')) == [
        f'grc_sigma_lambda/{layer}' for layer in LAYERS
    ]


def watch_gates(model):
    """Means of the gates, from the functions that the forward calls."""
    seen = {}
    for name, branch in model.backbone.grc_layers().items():
        gates = branch.gates

        def watched(*args, name=name, gates=gates):
            update, reset = gates(*args)
            seen[name] = (update.detach().mean(), reset.detach().mean())
            return update, reset

        branch.gates = watched
    return seen


def test_training_does_not_feel_it(tmp_path):
    plain, watched = make_model(), make_model()
    assert train(tmp_path / 'plain', plain, []) == []
    assert len(train(tmp_path / 'watched', watched, [GRCMonitorHook(interval=2)])) == 2
    for (key, value), other in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    assert not any(module._forward_hooks for module in watched.modules())


def test_nothing_is_watched_between_records(tmp_path):
    calls = []

    class Spy(GRCMonitorHook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            super().before_train_iter(runner, batch_idx, data_batch)
            calls.append(sum(len(module._forward_hooks) for module in runner.model.modules()))

    train(tmp_path / 'run', make_model(), [Spy(interval=4)])
    assert calls == [0, 0, 0, 3]


def test_skipped_steps_are_counted(tmp_path):
    model = make_model()
    poison = model.backbone.grc_layers()['layers.1.1.2.attn.grc']
    poison.candidate.bias.requires_grad_(False)[0] = float('nan')
    logged = train(tmp_path / 'run', model, [GRCMonitorHook(interval=2)])
    assert [record['grc_skipped_steps'] for record in logged] == [2, 4]
    assert logged[0]['grc_cache_change/backbone.layers.0.1.1'] == 0


def test_a_model_without_memory_logs_nothing(tmp_path):
    assert train(tmp_path / 'run', make_model(stages=()), [GRCMonitorHook(interval=1)]) == []


def test_swin_layers_are_named(tmp_path):
    torch.manual_seed(0)
    backbone = GRCSwinTransformer(
        embed_dims=8, depths=(1, 2), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1), pretrain_img_size=32,
        window_size=4,
    )  # fmt: skip
    logged = train(tmp_path / 'run', Model(backbone), [GRCMonitorHook(interval=4)])
    assert {key.split('/')[1] for key in logged[0] if key.startswith('grc_update_gate/')} == {
        'backbone.stages.0.blocks.0',
        'backbone.stages.1.blocks.0',
        'backbone.stages.1.blocks.1',
    }


@pytest.mark.parametrize('interval', [0, -1, 1.5, True])
def test_bad_interval(interval):
    with pytest.raises(ValueError, match='whole number above 0'):
        GRCMonitorHook(interval=interval)


def watch_a_step(rank, folder):
    """A step of each mode, its record written, and the caches after it."""
    caches = {}
    for mode in ('sync', 'apart'):
        model = make_model(sync=mode == 'sync').train()
        visualizer = Visualizer(vis_backends=[{'type': 'LocalVisBackend'}], save_dir=str(folder / mode))
        runner = SimpleNamespace(model=model, iter=0, visualizer=visualizer)
        hook = GRCMonitorHook(interval=1)
        hook.before_train(runner)
        hook.before_train_iter(runner, 0)
        torch.manual_seed(rank)
        model(torch.randn(2, 3, 32, 32))
        hook.after_train_iter(runner, 0)
        caches[mode] = {name: branch.cache for name, branch in model.backbone.grc_layers().items()}
    return caches


def test_drift_between_ranks(tmp_path):
    """Two real processes: no drift where caches are averaged; else the largest difference of the saved caches."""
    ranks = run_ranks(watch_a_step, 2, tmp_path, tmp_path)
    for mode in ('sync', 'apart'):
        (record,) = (json.loads(line) for line in next((tmp_path / mode).rglob('scalars.json')).open())
        first, second = (caches[mode] for caches in ranks)
        for name in first:
            drift = record[f'grc_rank_drift/backbone.{name.removesuffix(".attn.grc")}']
            assert drift == pytest.approx(float((first[name] - second[name]).abs().max()))
            assert (drift == 0) == (mode == 'sync')
