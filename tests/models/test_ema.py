"""MMEngine's EMAHook and MMDetection's MeanTeacherHook: an averaged model has a cache that belongs to it."""

import copy

import pytest
import torch
from mmdet.engine.hooks import MeanTeacherHook
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from tests.helpers.backbones import FAMILIES, assert_same, build, loss

MOMENTUM = 0.25


class Detector(BaseModel):
    """The minimal detector for a run."""

    def __init__(self, family):
        super().__init__()
        self.backbone = build(family)

    def forward(self, inputs, mode='tensor'):
        outs = self.backbone(inputs)
        return {'loss': 1e-3 * loss(outs)} if mode == 'loss' else [out.mean() for out in outs]


class Count(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(len(data_samples))

    def compute_metrics(self, results):
        return {'count': sum(results)}


class Recorder(Hook):
    """Records the model's state after each step, in validation and after it."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.steps, self.validated, self.restored = [], [], []

    def after_train_iter(self, runner, *args, **kwargs):
        self.steps.append(copy.deepcopy(runner.model.state_dict()))

    def before_val_iter(self, runner, *args, **kwargs):
        self.validated.append(copy.deepcopy(runner.model.state_dict()))

    def after_val_epoch(self, runner, *args, **kwargs):
        self.restored.append(copy.deepcopy(runner.model.state_dict()))


class Teacher(BaseModel):
    """A student, and a teacher that predicts for it as in MMDetection's semi-supervised detectors."""

    def __init__(self, family):
        super().__init__()
        self.student, self.teacher = build(family), build(family).requires_grad_(False)

    def forward(self, inputs, mode='tensor'):
        with torch.no_grad():
            self.teacher.eval()(inputs)
        return {'loss': 1e-3 * loss(self.student(inputs))}


def train(model, hooks, work_dir, **validation):
    """Train 2 epochs of 2 steps."""
    torch.manual_seed(0)
    data = [{'inputs': torch.randn(3, 64, 64)} for _ in range(4)]
    if validation:
        validation['val_dataloader'] = DataLoader(data[:1])
    Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=DataLoader(data, batch_size=2),
        train_cfg={'by_epoch': True, 'max_epochs': 2, 'val_interval': 1},
        optim_wrapper={'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.05}},
        custom_hooks=hooks,
        # Runners of the same name share their message hub.
        experiment_name=str(work_dir),
        log_level='ERROR',
        **validation,
    ).train()


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('update_buffers', [None, True])
def test_averaged_model_has_the_live_or_the_averaged_cache(family, update_buffers, tmp_path):
    recorder = Recorder()
    averaging = {} if update_buffers is None else {'update_buffers': update_buffers}
    hooks = [{'type': 'EMAHook', 'momentum': MOMENTUM, **averaging}, recorder]
    torch.manual_seed(0)
    train(Detector(family), hooks, tmp_path, val_cfg={}, val_evaluator=Evaluator([Count()]))

    assert len(recorder.steps) == 4
    averaged = dict(recorder.steps[0])
    for number, state in enumerate(recorder.steps):
        for key, value in state.items():
            follows = value.is_floating_point() and (update_buffers or not key.endswith('.cache'))
            averaged[key] = torch.lerp(averaged[key], value, MOMENTUM) if follows and number else value
        if number % 2:
            epoch = number // 2
            assert_same(dict(recorder.validated[epoch]), averaged, 1e-6)
            assert_same(dict(recorder.restored[epoch]), state)

    caches = [key for key in averaged if key.endswith('.grc.cache')]
    assert caches
    assert all(averaged[key].any() for key in caches)
    live = recorder.steps[-1]
    assert all(torch.equal(averaged[key], live[key]) != bool(update_buffers) for key in caches)
    # The averaged model is saved as the model. The live one resumes from `ema_state_dict`.
    checkpoint = torch.load(tmp_path / 'epoch_2.pth')
    assert_same(dict(checkpoint['state_dict']), averaged, 1e-6)
    assert all(torch.equal(checkpoint['ema_state_dict'][f'module.{key}'], live[key]) for key in live)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('options', [{}, {'skip_buffer': False}])
def test_teacher_has_its_own_or_the_averaged_cache(family, options, tmp_path):
    torch.manual_seed(0)
    recorder = Recorder()
    train(Teacher(family), [MeanTeacherHook(momentum=MOMENTUM, **options), recorder], tmp_path)
    assert len(recorder.steps) == 4
    caches = [key for key in recorder.steps[0] if key.startswith('student.') and key.endswith('.grc.cache')]
    assert caches
    for key in caches:
        averaged = torch.zeros_like(recorder.steps[0][key])
        for state in recorder.steps:
            assert state[key].any()
            averaged = torch.lerp(averaged, state[key], MOMENTUM) if options else averaged
            torch.testing.assert_close(state[key.replace('student.', 'teacher.')], averaged)
