"""Tables of studies: what is read, and what is rejected before the first run."""

import copy
import re
import shlex
import textwrap

import pytest
from mmengine.config import Config, DictAction

from mmgrc.runs.error import InputError
from mmgrc.studies import read_table
from mmgrc.studies.table import DEFAULT_METRICS
from tests.conftest import REPOSITORY


def options_of(command):
    """Parse the options of the command as `tools/train.py` does."""
    typed = command[command.index('--cfg-options') + 1 :]
    return {key: DictAction._parse_iterable(value) for key, value in (option.split('=', 1) for option in typed)}


def test_arms_have_what_is_common_and_their_own(write_table, monkeypatch, tmp_path):
    monkeypatch.setenv('SECOND', '/data/second')
    arms = [
        {'name': 'a'},
        {
            'name': 'b.2',
            'config': 'mmgrc::shapes/baselines/mask_rcnn_pvt.py',
            'cfg_options': {'optim_wrapper': {'optimizer.lr': 0.001}, 'load_from': '{{$SECOND}}/{{$NAME:x.pth}}'},
            'env': {'SHAPES_ROOT': '{{ $SECOND }}', 'OMP_NUM_THREADS': 2},
        },
    ]
    common = ['optim_wrapper.optimizer.lr=1e-4', 'model.backbone.grc.stages=(1, 2)', 'load_from=None']
    path = write_table(arms=arms, cfg_options=common, env={'A_B': 1}, reference=..., metrics=['coco/bbox_mAP'])
    study = read_table(path)
    assert study.name == 'table'
    assert study.reference is None
    assert study.metrics == ('coco/bbox_mAP',)
    assert not study.keep_checkpoints

    runs = study.runs(tmp_path / 'out')
    assert [str(run) for run in runs] == ['a, seed 0', 'b.2, seed 0', 'a, seed 1', 'b.2, seed 1']
    first, second, *_, last = runs
    assert last.work_dir == tmp_path / 'out' / 'b.2' / 'seed_1'
    assert options_of(first.command) == {
        'optim_wrapper.optimizer.lr': 1e-4,
        'model.backbone.grc.stages': (1, 2),
        'load_from': None,
        'randomness.seed': 0,
    }
    assert options_of(second.command)['optim_wrapper.optimizer.lr'] == 1e-3
    assert options_of(second.command)['load_from'] == '/data/second/x.pth'
    assert first.arm.env == {'A_B': '1'}
    assert second.arm.env == {'A_B': '1', 'SHAPES_ROOT': '/data/second', 'OMP_NUM_THREADS': '2'}
    words = shlex.split(last.shell_line())
    assert words[:3] == ['A_B=1', 'SHAPES_ROOT=/data/second', 'OMP_NUM_THREADS=2']
    assert words[3:] == last.command
    assert '--resume' in words


def test_ranks_of_a_run(write_table, tmp_path, monkeypatch):
    study = read_table(write_table())
    monkeypatch.setenv('PYTHON', 'python3')
    alone, ranks, slurm, unknown = (study.runs(tmp_path / 'out', *how)[0] for how in ((), (4,), (4, 'slurm'), (None,)))
    train = alone.command[1:]
    assert ranks.command == ['tools/dist_train.sh', train[1], '4', *train[2:]]
    assert ranks.shell_line().startswith('PYTHON=python3 tools/dist_train.sh ')
    assert slurm.command[:6] == ['srun', '--kill-on-bad-exit=1', 'python3', *train[:2], '--launcher']
    assert slurm.command[6:] == ['slurm', *train[2:]]
    counts = [run.definition.get('gpus_per_run') for run in (alone, ranks, slurm, unknown)]
    assert counts == [1, 4, 4, None]


def test_options_reach_the_training_as_they_are(write_table, tmp_path):
    values = [[1, 2], [[1, 2], [3]], True, False, None, 3, -0.5, 1e-7, [], 'text', ['a', 'b'], [True, None]]
    arms = [{'name': 'a', 'cfg_options': {'model': {'backbone': {f'x{i}': v for i, v in enumerate(values)}}}}]
    (run, *_) = read_table(write_table(arms=arms, reference=...)).runs(tmp_path)
    options = options_of(run.command)
    assert [options[f'model.backbone.x{i}'] for i in range(len(values))] == values


@pytest.mark.parametrize(
    ('entries', 'words'),
    [
        ({'seed': [0]}, 'seed: there is no such entry. Did you mean seeds?'),
        ({'cheese': 1}, 'cheese: there is no such entry. It takes: config, cfg_options, env, arms, seeds'),
        ({'arms': []}, 'arms: give a list of arms'),
        ({'arms': ['plain']}, "arm 1: 'plain': give its entries"),
        ({'arms': [{'name': 'a/b'}]}, "arm 1: name='a/b': give a name of letters"),
        ({'arms': [{'name': 'plain'}, {'name': 'both', 'option': []}]}, 'arm both: option: there is no such entry'),
        ({'arms': [{'name': 'plain'}, {'name': 'Plain'}]}, "arms: two are called 'plain'"),
        ({'reference': 'stock'}, "reference='stock' is not one of the arms: plain, both"),
        ({'config': ...}, 'arm plain: config=None: name a config'),
        (
            {'config': 'configs/shapes/mask_rcnn_grc_pvd.py'},
            r'Did you mean one of these\? configs/shapes/mask_rcnn_grc',
        ),
        (
            {'metrics': ['coco/box_mAP']},
            r'metrics: validations have no coco/box_mAP. Did you mean coco/bbox_mAP\? val_evaluator gives: coco/b',
        ),
        ({'metrics': ['pascal_voc/mAP']}, 'no pascal_voc/mAP. val_evaluator gives: coco/bbox_mAP, coco/bbox_mAP_50'),
        (
            {'config': 'configs/shapes/retinanet_grc_pvt.py'},
            r'have no coco/segm_mAP. Did you mean coco/bbox_mAP\? val_evaluator gives: .*coco/bbox_mAP_s$',
        ),
        ({'cfg_options': ['val_evaluator=None']}, 'arm plain: its config has no val_evaluator'),
        ({'config': 'mmgrc::nothing.py'}, 'arm plain: mmgrc has no config'),
        ({'seeds': ...}, 'seeds=None: give a list of whole numbers from 0'),
        ({'seeds': 5}, 'seeds=5: give a list'),
        ({'seeds': [0, -1]}, r'seeds=\[0, -1\]: give a list'),
        ({'seeds': [True]}, r'seeds=\[True\]: give a list'),
        ({'seeds': [2**32]}, 'seeds='),
        ({'seeds': [0, 1, 0]}, 'seeds: 0 is given twice'),
        ({'metrics': 'coco/bbox_mAP'}, "metrics='coco/bbox_mAP': give a list"),
        ({'metrics': ['a/b', 'a/b']}, 'metrics: a/b is given twice'),
        ({'keep_checkpoints': 'yes'}, "keep_checkpoints='yes': give true or false"),
        ({'cfg_options': 3}, 'cfg_options=3: give a list of KEY=VALUE'),
        ({'cfg_options': ['train_cfg']}, "cfg_options: 'train_cfg': give KEY=VALUE"),
        ({'cfg_options': ['a.b=1', 'a.b=2']}, 'cfg_options: a.b is given twice'),
        ({'cfg_options': ['a.b=[1,(2]']}, 'cfg_options: a.b=.*Imbalanced brackets'),
        ({'cfg_options': {'a': ['x y']}}, 'would read .* set it in your own config'),
        ({'cfg_options': {'--a': 1}}, "'--a' is not an entry of a config"),
        ({'cfg_options': {'randomness': {'seed': 1}}}, 'randomness.seed is set by the tool: use seeds'),
        ({'cfg_options': ['work_dir=x']}, 'work_dir is set by the tool: use --work-dir'),
        ({'cfg_options': {'load_from': '{{$NOT_SET_AT_ALL}}'}}, 'the environment variable NOT_SET_AT_ALL is not set'),
        ({'cfg_options': {'model.backbone.type.x': 1}}, 'arm plain: the config .* cannot be read'),
        ({'env': ['A=1']}, 'env=.*: give NAME: value'),
        ({'env': {'A-B': 1}}, 'env: A-B: 1: give the name of a variable'),
        ({'env': {'A': True}}, 'env: A: True: give the name of a variable'),
    ],
)
def test_bad_tables(write_table, entries, words):
    path = write_table(**entries)
    with pytest.raises(InputError, match=words) as error:
        read_table(path)
    assert str(error.value).startswith(f'the table {path}: ')


@pytest.mark.parametrize(
    ('evaluator', 'metric'),
    [
        ({'type': 'CocoMetric'}, 'coco/bbox_mAP_75'),
        ({'type': 'CocoMetric', 'metric': 'proposal'}, 'coco/AR@300'),
        ({'type': 'CocoMetric', 'metric': 'proposal_fast', 'proposal_nums': [7]}, 'coco/AR@7'),
        ({'type': 'CocoMetric', 'metric_items': ['mAP', 'AR_s@1000']}, 'coco/bbox_AR_s@1000'),
        ({'type': 'CocoMetric', 'classwise': True}, 'coco/circle_precision'),
        ([{'type': 'CocoMetric', 'prefix': 'a'}, {'type': 'FastCocoMetric', 'metric': ['segm']}], 'coco/segm_mAP'),
        ({'type': 'VOCMetric'}, 'pascal_voc/mAP'),
    ],
)
def test_metrics_that_validations_have(write_table, tmp_path, evaluator, metric):
    config = tmp_path / 'evaluated.py'
    config.write_text(f"model = dict(type='MaskRCNN')\nval_evaluator = {evaluator!r}\n")
    study = read_table(write_table(config=str(config), arms=[{'name': 'a'}], reference=..., metrics=[metric]))
    assert study.metrics == (metric,)


def test_variables_in_lists(write_table, monkeypatch, tmp_path):
    monkeypatch.setenv('FOLDER', '/data/a')
    values = ['{{$FOLDER}}/x', ['{{$NONE:y}}'], 3]
    arms = [{'name': 'a', 'cfg_options': {'custom': values}}]
    (run, *_) = read_table(write_table(arms=arms, reference=...)).runs(tmp_path)
    assert options_of(run.command)['custom'] == ['/data/a/x', ['y'], 3]
    with pytest.raises(InputError, match='custom: the environment variable MISSING is not set'):
        read_table(write_table(arms=[{'name': 'a', 'cfg_options': {'custom': ['{{$MISSING}}']}}], reference=...))


def test_config_is_named_so_that_it_is_found(write_table, monkeypatch, tmp_path):
    """In another folder, the paths of the repository do not exist."""
    path = write_table(config='configs/shapes/mask_rcnn_grc_pvt.py')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r'no config configs/shapes/mask_rcnn_grc_pvt\.py') as error:
        read_table(path)
    named = str(error.value).split('one of these? ')[1].split(', ')[0]
    assert named == 'mmgrc::shapes/mask_rcnn_grc_pvt.py'
    assert read_table(write_table(config=named)).arms[0].config == named


@pytest.mark.parametrize(('text', 'words'), [('a: [', 'is not YAML'), ('', 'it has no entries'), ('- 1', 'no entries')])
def test_files_that_are_no_tables(tmp_path, text, words):
    (tmp_path / 'table.yml').write_text(text)
    with pytest.raises(InputError, match=words):
        read_table(tmp_path / 'table.yml')
    with pytest.raises(InputError, match='cannot be read: No such file'):
        read_table(tmp_path / 'other.yml')


@pytest.mark.parametrize('path', sorted((REPOSITORY / 'studies').glob('*.yml')), ids=lambda path: path.stem)
def test_tables_of_the_repository(path, monkeypatch, tmp_path):
    """They can be read, each arm differs from the others, and all arms of a table train with the same schedule.

    The arms of the tables at equal time also differ in its length.
    """
    monkeypatch.chdir(REPOSITORY)
    study = read_table(path)
    configs = []
    files = {arm.config: Config.fromfile(arm.config) for arm in study.arms}
    for run in study.runs(tmp_path)[: len(study.arms)]:
        config = copy.deepcopy(files[run.arm.config])
        config.merge_from_dict(options_of(run.command))
        configs.append(config)
    parts = ('model', 'optim_wrapper', 'load_from', 'train_cfg', 'train_dataloader')
    assert len({str([config.get(part) for part in parts]) for config in configs}) == len(configs)
    if path.stem in ('shapes_memory_time_pvt', 'shapes_memory_time_swin', 'shapes_memory_long_swin'):
        assert [c.train_cfg.max_epochs * 120 for c in configs] == [c.param_scheduler[1].end for c in configs]
        for config in configs:
            config.train_cfg.max_epochs = None
            config.param_scheduler[1].update(end=None, T_max=None)
    if study.reference is not None:
        # An arm may set the rates of the memory, in paramwise_cfg.
        schedules = [
            (c.train_cfg, c.param_scheduler, {**c.optim_wrapper, 'paramwise_cfg': None}, c.train_dataloader.batch_size)
            for c in configs
        ]
        assert len({str(schedule) for schedule in schedules}) == 1


def test_table_of_the_page(monkeypatch, tmp_path):
    """The example of docs/study.md can be read."""
    text = (REPOSITORY / 'docs' / 'study.md').read_text().split('## Write a table')[1]
    (tmp_path / 'table.yml').write_text(textwrap.dedent(''.join(re.findall(r'^ {4}.*\n', text, re.M))))
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delenv('SHAPES_ROOT', raising=False)
    study = read_table(tmp_path / 'table.yml')
    assert [arm.name for arm in study.arms] == ['plain', 'memory', 'both']
    assert (study.metrics, study.keep_checkpoints) == (DEFAULT_METRICS, False)
    assert study.arms[1].env == {'SHAPES_ROOT': 'data/shapes_hard', 'OMP_NUM_THREADS': '1'}
