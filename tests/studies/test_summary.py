"""Summaries of runs, compared with SciPy's own tests and with numbers computed by hand."""

import csv
import json

import cv2
import numpy as np
import pytest
from scipy import stats

from mmgrc.runs.error import InputError
from mmgrc.studies import read_table, write_summary
from mmgrc.studies.statistics import difference, estimate


def test_interval_by_hand():
    # t(0.975) with 2 degrees of freedom, as printed in tables: 4.303.
    found = estimate([1.0, 2.0, 3.0])
    assert found.count == 3
    assert (found.mean, found.deviation) == (2.0, 1.0)
    assert found.half_width == pytest.approx(4.303 / 3**0.5, rel=1e-4)
    alone = estimate([0.5])
    assert alone[:2] == (1, 0.5)
    assert np.isnan(alone[2:]).all()


def test_intervals_are_scipys():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.6, 0.02, (2, 8))
    pairs = difference(dict(enumerate(first)), dict(enumerate(second)))
    found, wanted = estimate(pairs), stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found.mean - found.half_width == pytest.approx(wanted.low)
    assert found.mean + found.half_width == pytest.approx(wanted.high)
    assert found.deviation == pytest.approx(stats.tstd(first - second))
    # Seeds that only one of them has are ignored.
    assert difference({0: 1.0, 2: 5.0, 3: 1.0}, {2: 3.0, 1: 9.0}) == [2.0]


VALUES = {'plain': [0.60, 0.62, 0.64], 'both': [0.63, 0.64, 0.69], 'other': [0.5]}


@pytest.fixture
def study(write_table):
    arms = [{'name': name} for name in (*VALUES, 'none')]
    return read_table(write_table(arms=arms, seeds=[0, 1, 2]))


def test_tables_and_plot(study, write_result, tmp_path):
    assert write_summary(study, tmp_path / 'out') is None
    for run in study.runs(tmp_path / 'out'):
        if run.seed < len(VALUES.get(run.arm.name, [])):
            value = VALUES[run.arm.name][run.seed]
            write_result(run, value, best=value + 0.01)
        elif run.arm.name == 'other' and run.seed == 1:
            write_result(run, 0, status='failed', final={}, best={}, message='exit code 1')
    text = write_summary(study, tmp_path / 'out')
    assert (tmp_path / 'out' / 'summary.md').read_text() == text

    rows = {}
    for line in text.splitlines():
        if line.startswith('|'):
            name, *cells = (cell.strip() for cell in line.strip('|').split('|'))
            rows.setdefault(name, []).append(cells)
    final, best, cost = rows['both']
    interval = stats.ttest_rel(VALUES['both'], VALUES['plain']).confidence_interval(0.95)
    shown = f'+0.033 [{interval.low:+.3f}, {interval.high:+.3f}]'
    assert final == ['3', '0.653 ± 0.032', shown, '0.853 ± 0.032', shown]
    assert best[:2] == ['3', '0.663 ± 0.032']
    assert cost == ['2', '1000', '60']
    assert rows['plain'][0] == ['3', '0.620 ± 0.020', '', '0.820 ± 0.020', '']
    assert rows['other'][0] == ['1', '0.500', '-0.100', '0.700', '-0.100']
    assert 'none' not in rows
    assert '7 of 12 runs are finished' in text
    assert 'Not in the tables: other, seed 1 (failed); other, seed 2 (unfinished); none, seed 0 (unfinished)' in text

    table = list(csv.DictReader((tmp_path / 'out' / 'runs.csv').open()))
    assert [(row['arm'], row['seed']) for row in table] == [(a.name, str(s)) for a in study.arms for s in study.seeds]
    assert table[1]['coco/bbox_mAP'] == '0.62'
    assert float(table[1]['coco/segm_mAP_best']) == pytest.approx(0.83)
    assert float(table[1]['steps_per_second']) == 2
    assert (table[7]['status'], table[7]['message'], table[7]['coco/bbox_mAP']) == ('failed', 'exit code 1', '')
    assert min(cv2.imread(str(tmp_path / 'out' / 'summary.png')).shape[:2]) > 300


def test_another_reference(write_table, write_result, tmp_path):
    path = write_table(reference=...)
    study = read_table(path, 'both')
    for run, value in zip(study.runs(tmp_path / 'out'), (0.60, 0.63, 0.62, 0.64), strict=True):
        write_result(run, value)
    interval = stats.ttest_rel([0.60, 0.62], [0.63, 0.64]).confidence_interval(0.95)
    text = write_summary(study, tmp_path / 'out')
    assert f'-0.025 [{interval.low:+.3f}, {interval.high:+.3f}]' in text
    assert 'Differences from both are paired by seed' in text
    with pytest.raises(InputError, match=rf"the table {path}: reference='bot' is not one of the arms: plain, both"):
        read_table(path, 'bot')


def test_without_a_reference(write_table, write_result, tmp_path):
    study = read_table(write_table(reference=..., metrics=['coco/bbox_mAP']))
    for run in study.runs(tmp_path / 'out'):
        write_result(run, 0.5)
    text = write_summary(study, tmp_path / 'out')
    assert 'ifference' not in text
    assert 'segm' not in text
    assert (tmp_path / 'out' / 'summary.png').exists()


def test_changed_tables(study, write_table, write_result, tmp_path):
    """Metrics that are added later are read from the logs. Other options belong to other runs."""
    arms = [{'name': 'plain'}, {'name': 'both'}]
    run, other, *_ = read_table(write_table(arms=arms)).runs(tmp_path / 'out')
    for each, value in ((run, 0.5), (other, 0.6)):
        write_result(each, value)
        (each.work_dir / 'run.json').write_text(json.dumps({'definition': each.definition, 'seconds': 60}))
    log = run.work_dir / '20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    records = [{'loss': 1.0, 'iter': 1, 'epoch': 1, 'step': 1}, {'coco/bbox_mAP_50': 0.75, 'data_time': 0.1, 'step': 1}]
    log.write_text('\n'.join(map(json.dumps, records)))

    added = read_table(write_table(arms=arms, metrics=['coco/bbox_mAP_50']))
    text = write_summary(added, tmp_path / 'out')
    assert next(row for row in text.splitlines() if row.startswith('| plain')).split()[3:6] == ['1', '|', '0.750']
    assert '1 of 4 runs are finished' in text
    assert 'both, seed 0 (failed)' in text
    row = list(csv.DictReader((tmp_path / 'out/runs.csv').open()))[2]
    assert (row['arm'], row['status'], row['coco/bbox_mAP_50']) == ('both', 'failed', '')
    assert 'there is no training log' in row['message']

    # A summary may be written elsewhere, with other folders in the variables.
    assert write_summary(read_table(write_table(arms=arms, env={'A_B': '/data'})), tmp_path / 'out')
    changed = read_table(write_table(arms=arms, cfg_options={'train_cfg.max_epochs': 3}))
    with pytest.raises(InputError, match=r'seed_0 was made with cfg_options=\{\}, but now it is .*max_epochs'):
        write_summary(changed, tmp_path / 'out')


def test_runs_without_detections_count(study, write_result, tmp_path):
    for run in study.runs(tmp_path / 'out')[:2]:
        write_result(run, 0.0 if run.arm.name == 'both' else 0.5, message='nothing' if run.arm.name == 'both' else '')
    text = write_summary(study, tmp_path / 'out')
    assert 'Counted with AP 0: both, seed 0 (nothing).' in text
    assert '2 of 12 runs are finished' in text
