"""Logs of trainings by epochs and by iterations, of any evaluator, as MMEngine writes them."""

import json

import pytest
from matplotlib.figure import Figure
from mmengine.config import Config

from mmgrc.visualization.curves import (
    draw_losses,
    draw_metrics,
    pick_metrics,
    plot_run,
    read_monitor,
    read_scalars,
    validation_unit,
)
from mmgrc.visualization.report import _summary


def write_run(work_dir, name, records, config=None):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(f'{json.dumps(record)}\n' for record in records))
    if config is not None:
        Config(config).dump(folder / 'config.py')


def train(iteration, epoch=None):
    return {'loss': 2.0, 'loss_cls': 1.5, 'iter': iteration, 'step': iteration, **({'epoch': epoch} if epoch else {})}


def validate(step, value=0.5, key='coco/bbox_mAP'):
    return {key: value, 'data_time': 0.1, 'time': 0.2, 'step': step}


def iterations(val_interval, max_iters, **logger):
    loop = {'type': 'IterBasedTrainLoop', 'max_iters': max_iters, 'val_interval': val_interval}
    return {'train_cfg': loop, 'default_hooks': {'logger': {'type': 'LoggerHook', **logger}}}


def epochs(max_epochs, **logger):
    loop = {'type': 'EpochBasedTrainLoop', 'max_epochs': max_epochs, 'val_interval': 1}
    return {'train_cfg': loop, 'default_hooks': {'logger': {'type': 'LoggerHook', **logger}}}


MODEL = {'model': {'type': 'MaskRCNN', 'backbone': {'type': 'Own'}}}


def summary(work_dir, config):
    return _summary(Config({**MODEL, **config}), *read_scalars(work_dir))[1]


@pytest.mark.parametrize('epoch', [None, 1])  # log_processor.by_epoch false and true
@pytest.mark.parametrize('has_config', [True, False])
def test_by_iterations(tmp_path, epoch, has_config):
    """MMEngine logs each validation with epoch 0."""
    config = iterations(20, 50)
    records = [train(10, epoch), train(20, epoch), validate(0, 0.3), train(30, epoch), train(40, epoch)]
    records += [validate(0, 0.4), train(50, epoch), validate(0, 0.2)]
    write_run(tmp_path, '1', records, config if has_config else None)
    training, validation = read_scalars(tmp_path)
    assert list(training) == [10, 20, 30, 40, 50]
    assert {step: record['coco/bbox_mAP'] for step, record in validation.items()} == {20: 0.3, 40: 0.4, 50: 0.2}
    assert validation_unit(validation) == 'iteration'
    text = summary(tmp_path, config)
    assert '>50 iterations; the last loss' in text
    assert '0.200 after the last validation (iteration 50), 0.400 at best (iteration 40)' in text
    assert 'epoch' not in text
    axis = Figure().subplots()
    draw_metrics(axis, validation)
    assert axis.get_xlabel() == 'iteration'
    assert list(axis.lines[0].get_xdata()) == [20, 40, 50]


def test_validations_between_logged_iterations(tmp_path):
    """The training is logged every 50 iterations. A run is resumed from the 60th, after it had reached the 100th."""
    config = iterations(30, 130)
    records = [validate(0, 0.1), train(50), validate(0, 0.2), validate(0, 0.3), train(100)]
    write_run(tmp_path, '1', records, config)
    assert list(read_scalars(tmp_path)[1]) == [30, 60, 90]
    write_run(tmp_path, '2', [train(100), validate(0, 0.4), validate(0, 0.5)], config)
    assert {k: r['coco/bbox_mAP'] for k, r in read_scalars(tmp_path)[1].items()} == {
        **{30: 0.1, 60: 0.2, 90: 0.3},
        **{120: 0.4, 130: 0.5},
    }


def test_validations_logged_by_iteration(tmp_path):
    """`LoggerHook.log_metric_by_epoch` is false, in a loop of either kind."""
    write_run(tmp_path / 'a', '1', [train(8), validate(8), train(16)], iterations(8, 16, log_metric_by_epoch=False))
    write_run(tmp_path / 'b', '1', [train(8, 1), validate(8), train(16, 2)], epochs(2, log_metric_by_epoch=False))
    write_run(tmp_path / 'c', '1', [train(8, 1), validate(8), train(16, 2)])
    for name in 'abc':
        validation = read_scalars(tmp_path / name)[1]
        assert list(validation) == [8]
        assert validation_unit(validation) == 'iteration'
    assert '>16 iterations' in summary(tmp_path / 'a', iterations(8, 16))
    assert '(iteration 8)' in summary(tmp_path / 'b', epochs(2))


@pytest.mark.parametrize('has_config', [True, False])
@pytest.mark.parametrize('by_epoch', [True, False])
def test_by_epochs(tmp_path, by_epoch, has_config):
    """Also if `log_processor.by_epoch` is false. A resumed run repeats the second epoch."""
    config = epochs(3) if has_config else None
    first = [*(train(8 * e, e if by_epoch else None) for e in (1,)), validate(1, 0.1)]
    write_run(tmp_path, '1', [*first, train(16, 2 if by_epoch else None), validate(2, 0.9)], config)
    write_run(tmp_path, '2', [train(16, 2 if by_epoch else None), validate(2, 0.2)], config)
    training, validation = read_scalars(tmp_path)
    assert list(training) == [8, 16]
    assert {step: record['coco/bbox_mAP'] for step, record in validation.items()} == {1: 0.1, 2: 0.2}
    assert validation_unit(validation) == 'epoch'
    text = summary(tmp_path, epochs(3))
    assert '>2 epochs, 16 iterations; the last loss' in text
    assert '0.200 after the last validation (epoch 2)' in text


@pytest.mark.parametrize('by_iterations', [True, False])
def test_a_run_that_started_anew(tmp_path, by_iterations):
    """In the work dir of a longer one, which is not part of its curves, numbers and memory."""
    config, (first, second) = (iterations(8, 24), (0, 0)) if by_iterations else (epochs(3), (1, 2))
    monitor = {'grc_skipped_steps': 4, 'grc_sigma_lambda/backbone.layers.0.1.0.attn.grc': 0.5}
    records = [train(4, 1), {**monitor, 'step': 4}, train(8, 1), validate(first, 0.1)]
    records += [train(16, 2), {**monitor, 'step': 16}, validate(second, 0.9)]
    write_run(tmp_path, '1', records, config)
    new = {**monitor, 'grc_skipped_steps': 0}
    write_run(tmp_path, '2', [train(4, 1), {**new, 'step': 4}, train(8, 1), validate(first, 0.2)], config)
    write_run(tmp_path, '3', [], config)  # A test, or a run that was stopped before its first record.
    training, validation = read_scalars(tmp_path)
    assert list(training) == [4, 8]
    assert {step: record['coco/bbox_mAP'] for step, record in validation.items()} == {8 if by_iterations else 1: 0.2}
    assert read_monitor(tmp_path)['grc_skipped_steps'] == {'': {4: 0}}
    text = summary(tmp_path, config)
    assert ' 8 iterations; ' in text or '>8 iterations; ' in text
    assert '0.200 after the last validation' in text


def test_runs_of_both_kinds(tmp_path):
    write_run(tmp_path, '1', [train(8, 1), validate(1, 0.1)], epochs(3))
    write_run(tmp_path, '2', [train(12), validate(0, 0.2)], iterations(4, 12))
    validation = read_scalars(tmp_path)[1]
    assert list(validation) == [8, 12]
    assert validation_unit(validation) == 'iteration'


def test_without_validations(tmp_path):
    write_run(tmp_path, '1', [train(8)], iterations(100, 100))
    assert read_scalars(tmp_path)[1] == {}
    assert '>8 iterations; the last loss' in summary(tmp_path, iterations(100, 100))
    plot_run(tmp_path, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').stat().st_size > 1000


@pytest.mark.parametrize(
    ('metrics', 'shown'),
    [
        ({'pascal_voc/AP50': 0.3, 'pascal_voc/mAP': 0.2}, ['pascal_voc/AP50', 'pascal_voc/mAP']),
        ({'coco_panoptic/PQ': 41.0, 'coco_panoptic/SQ': 80.0, 'coco_panoptic/PQ_th': 40.0}, ['coco_panoptic/PQ']),
        ({'mAP': 0.2, 'mAP_50': 0.3}, ['mAP', 'mAP_50']),
        ({'recall': 0.2}, ['recall']),
        ({'crowd/mMR': 0.2, 'crowd/JI': float('nan')}, ['crowd/mMR', 'crowd/JI']),
        ({'coco/bbox_mAP': -1.0, 'coco/a/b: $_precision': 0.1, 'coco/bbox_mAP_s': 0.1}, ['coco/bbox_mAP']),
        ({'coco/bbox_mAP': 0.1, 'pascal_voc/mAP': 0.2}, ['coco/bbox_mAP', 'pascal_voc/mAP']),
    ],
)
@pytest.mark.parametrize('prefix', ['', 'val/'])  # log_processor.log_with_hierarchy
def test_metrics_of_any_evaluator(tmp_path, metrics, shown, prefix):
    record = {**{f'{prefix}{key}': value for key, value in metrics.items()}, f'{prefix}data_time': 0.1, 'step': 1}
    hook = {'own_hook/norm': 3.0, 'step': 8}
    write_run(tmp_path, '1', [train(8, 1), hook, record, train(16, 2), {**record, 'step': 2}], epochs(2))
    training, validation = read_scalars(tmp_path)
    assert list(validation) == [1, 2]
    assert pick_metrics(validation) == shown
    text = summary(tmp_path, epochs(2))
    assert all(name.removeprefix('coco/').replace('_', ' ') in text for name in shown if not name.endswith('50'))
    figure = Figure()
    left, right = figure.subplots(1, 2)
    draw_losses(left, training)
    draw_metrics(right, validation)
    figure.canvas.draw()
    assert len(right.lines) == len(shown)
    highest = max(value for value in metrics.values() if value == value)
    assert right.get_ylim()[1] >= min(highest, 1)
