"""`tools/convert_dataset.py` as a user runs it."""

import json
import shlex

import pytest

from tests.conftest import NARROW
from tests.helpers.foreign_formats import make_scenes, write_labelme, write_yolo


@pytest.mark.slow
def test_from_a_folder_to_detections(run_tool, tmp_path):
    """Convert, train and infer: three commands."""
    scenes = make_scenes('polygon')
    write_yolo(tmp_path / 'yolo', scenes)
    result = run_tool(
        'convert_dataset',
        *(tmp_path / 'yolo', tmp_path / 'mine', '--val-share', 0.4, '--config', 'mmgrc::shapes/mask_rcnn_grc_pvt.py'),
        check=True,
    )
    assert 'Converted from yolo' in result.stdout
    assert len(result.stdout.splitlines()) < 25
    assert f'Train with: python tools/train.py {tmp_path}/mine/mine.py' in result.stdout
    assert 'Note: the source has no validation split: 2 of 5 images were chosen' in result.stdout
    options = [*NARROW, 'train_cfg.max_epochs=1', 'model.test_cfg.rcnn.score_thr=0.0']
    run_tool(
        'train', tmp_path / 'mine' / 'mine.py', '--work-dir', tmp_path / 'work', '--cfg-options', *options, check=True
    )
    run_tool(
        'infer',
        *(tmp_path / 'mine' / 'val', tmp_path / 'work' / 'mine.py', tmp_path / 'work' / 'epoch_1.pth'),
        *('--out-dir', tmp_path / 'found', '--score-thr', 0),
        check=True,
    )
    content = json.loads((tmp_path / 'found' / 'detections.json').read_text())
    assert len(content['images']) == 2
    assert [category['name'] for category in content['categories']] == ['cat', 'a "dog" & <co>', 'żaba']


def test_says_what_is_left_out(run_tool, tmp_path):
    write_labelme(tmp_path / 'source', make_scenes('box'))
    path = tmp_path / 'source' / '0 image.json'
    content = json.loads(path.read_text())
    outside = {'label': 'cat', 'shape_type': 'rectangle', 'points': [[200, 200], [210, 210]]}
    line = {'label': 'cat', 'shape_type': 'line', 'points': [[9, 9], [5, 5]]}
    path.write_text(json.dumps({**content, 'shapes': [*content['shapes'], outside, line, line]}))
    result = run_tool('convert_dataset', tmp_path / 'source', tmp_path / "bob's data", check=True)
    train = shlex.split(result.stdout.splitlines()[-1])
    assert train[-2:] == ['tools/train.py', f"{tmp_path}/bob's data/bob's data.py"]
    text = ' '.join(result.stdout.split())
    assert 'Left out' in text
    assert '│ shapes of type line │ 2 │ 0 image.json │' in text
    assert '│ objects: outside of its image │ 1 │ 0 image.png │' in text


def test_bad_input(run_tool, tmp_path):
    write_yolo(tmp_path / 'yolo', make_scenes('polygon'))
    (tmp_path / 'yolo' / 'labels' / '0 image.txt').write_text('0 0.5 0.5\n')
    (tmp_path / 'empty').mkdir()
    for source, words in (
        ('yolo', 'broken annotation files (1): labels/0 image.txt: line 1 has 2 numbers after the class'),
        ('empty', 'is in none of the formats'),
        ('nothing', 'there is no folder'),
    ):
        result = run_tool('convert_dataset', tmp_path / source, tmp_path / 'out')
        assert result.returncode == 1
        assert result.stderr.startswith('convert_dataset: ')
        assert words in result.stderr
        assert 'Traceback' not in result.stderr
        assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('option', [('--format', 'tfrecord'), ('--missing-masks', 'never'), ('--val-share', 'half')])
def test_bad_options(option, run_tool, tmp_path):
    result = run_tool('convert_dataset', tmp_path, tmp_path / 'out', *option)
    assert result.returncode == 2
    assert f'argument {option[0]}: invalid' in result.stderr
