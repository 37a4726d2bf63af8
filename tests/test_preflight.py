"""Input with which a run cannot work ends in one message before it starts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmgrc.config import config_path
from mmgrc.datasets.coco_file import inspect_coco_file
from mmgrc.preflight import (
    PreflightError,
    build_model,
    check_annotations,
    check_checkpoint,
    check_resume,
    check_work_dir,
)

LOADERS = ('train_dataloader', 'val_dataloader')


@pytest.fixture
def data(shapes, tmp_path):
    """A copy of the data set, to break."""
    return Path(shutil.copytree(shapes, tmp_path / 'data' / 'shapes'))


@pytest.fixture
def config(data, monkeypatch):
    monkeypatch.setenv('SHAPES_ROOT', str(data))
    config = Config.fromfile(config_path('mmgrc::shapes/mask_rcnn_grc_pvt.py'))
    config.merge_from_dict({'model.backbone.embed_dims': 16, 'model.neck.in_channels': [16, 32, 80, 128]})
    return config


def edit(data, change, split='train'):
    file = data / 'annotations' / f'instances_{split}.json'
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture
def said(monkeypatch):
    """The warnings."""
    messages = []
    monkeypatch.setattr('mmgrc.preflight.print_log', lambda message, **_: messages.append(message))
    return messages


def test_good_data_passes_without_a_word(config, said):
    check_annotations(config, LOADERS)
    assert not said


def small(content):
    for annotation in content['annotations']:
        annotation['bbox'] = [1, 1, 0.5, 0.5]


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda c: c['images'].clear(), 'has no images: the data set is empty'),
        (lambda c: c['annotations'].clear(), 'the data set of train_dataloader is empty'),
        (small, 'has no usable annotation of its classes (circle, square, triangle)'),
        (lambda c: c.pop('categories'), "is not in COCO's format: it has no list of categories"),
        (lambda c: c['categories'].pop(), 'lacks 1 of the 3 classes of the data set: triangle. It has: circle, square'),
        (lambda c: c['annotations'][1].update(bbox=[1, 2, 3]), 'the box of annotation 2 is [1, 2, 3]. It must be four'),
        (lambda c: c['annotations'][1].update(bbox=[1, 2, 3, float('nan')]), 'is [1, 2, 3, nan]'),
        (lambda c: c['annotations'][1].pop('image_id'), "an entry has no 'image_id'"),
        (lambda c: c['annotations'][1].pop('segmentation'), 'annotation 2 has no segmentation'),
        (lambda c: c['images'][3].update(file_name='gone.png'), '1 of the 16 images of'),
    ],
)
def test_data_that_cannot_be_trained_on(config, data, change, words):
    edit(data, change)
    with pytest.raises(PreflightError) as error:
        check_annotations(config, LOADERS)
    assert words in str(error.value)
    assert 'train' in str(error.value)


def test_cut_annotation_file(config, data):
    file = data / 'annotations' / 'instances_val.json'
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(PreflightError, match=r'the data set of val_dataloader: .*is no JSON: .*cut short'):
        check_annotations(config, LOADERS)


def test_every_kind_of_annotation_that_is_left_out(data):
    def change(content):
        content['annotations'][0]['bbox'][2] = 0.2
        content['annotations'][1]['bbox'][3] = -1
        content['annotations'][2]['segmentation'] = [[1, 1, 5, 5], [1, 1, 2, 2, 3]]
        content['annotations'][3]['image_id'] = 12345
        content['annotations'][4]['area'] = 0
        content['annotations'][5]['bbox'] = [-20, 3, 10, 10]

    edit(data, change)
    path = data / 'annotations' / 'instances_train.json'
    total = len(json.loads(path.read_text())['annotations'])
    report = inspect_coco_file(path, ('circle', 'square', 'triangle'), masks=True)
    assert report.usable == total - 6
    assert report.problems == [
        '2 with an empty box (less than a pixel) (annotation 1, 5)',
        '1 with an inverted box (annotation 2)',
        '1 with no polygon of 3 or more points (annotation 3)',
        '1 of an image that is not in the file (annotation 4)',
        '1 with a box outside of its image (annotation 6)',
    ]


def test_heads_of_fewer_classes_than_the_data(config):
    config.model.roi_head.mask_head.num_classes = 2
    with pytest.raises(PreflightError, match=r'model.roi_head.mask_head.num_classes=2, but the data set of train_data'):
        check_annotations(config, LOADERS)


@pytest.fixture
def checkpoint(config, tmp_path):
    path = tmp_path / 'epoch_1.pth'
    content = {
        'state_dict': build_model(config).state_dict(),
        'meta': {'dataset_meta': {'classes': ('circle', 'square', 'triangle')}},
        'optimizer': {},
        'message_hub': {},
    }
    torch.save(content, path)
    return path


def test_checkpoint_of_other_classes(config, checkpoint, said):
    check_checkpoint(config, str(checkpoint))
    assert not said

    config.train_dataloader.dataset.metainfo.classes = ('circle', 'square', 'star')
    check_checkpoint(config, str(checkpoint))
    words = (
        'It was trained on 3 classes (circle, square, triangle); the data here has 3 classes (circle, square, star).'
    )
    assert said == [f'{checkpoint}: {words}']

    config.train_dataloader.dataset.metainfo.classes = ('circle', 'square')
    for head in (config.model.roi_head.bbox_head, config.model.roi_head.mask_head):
        head.num_classes = 2
    with pytest.raises(PreflightError, match=r'have another shape .*It was trained on 3 classes.*the data here has 2'):
        check_checkpoint(config, str(checkpoint))


def test_explicit_checkpoint_that_is_damaged(config, checkpoint, tmp_path):
    assert check_resume(config, str(checkpoint), str(tmp_path)) == str(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(PreflightError, match=r'epoch_1.pth cannot be read: .*cut short, or is damaged'):
        check_resume(config, str(checkpoint), str(tmp_path))
    # And where it is the only one of the work dir.
    with pytest.raises(PreflightError, match=r'no checkpoint in .* can be read. .*Remove them to start afresh'):
        check_resume(config, 'auto', str(tmp_path))
    checkpoint.unlink()
    assert check_resume(config, 'auto', str(tmp_path)) == 'auto'


def test_checkpoint_of_weights_alone_cannot_go_on(config, checkpoint, tmp_path):
    torch.save({'state_dict': torch.load(checkpoint)['state_dict']}, checkpoint)
    with pytest.raises(PreflightError, match=r'has no meta and no optimizer.*--cfg-options load_from='):
        check_resume(config, str(checkpoint), str(tmp_path))


def test_work_dir_that_cannot_be_written_to(tmp_path):
    check_work_dir(str(tmp_path / 'a' / 'b'))
    assert not list((tmp_path / 'a' / 'b').iterdir())
    (tmp_path / 'file').write_text('')
    # Neither can root write to these.
    for path in (tmp_path / 'file' / 'run', Path('/proc/run')):
        with pytest.raises(PreflightError, match=rf'the work dir {path} cannot be written to .*--work-dir'):
            check_work_dir(str(path))
