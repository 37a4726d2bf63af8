"""Data sets for classification that are missing, half unpacked or broken."""

import shutil

import numpy as np
import pytest
from mmengine.config import Config

from mmgrc.datasets import write_shape_classes
from mmgrc.runs.error import InputError
from mmgrc.runs.preflight import check_image_folders, read_image_folders
from tests.helpers.pretraining import MARKS

pytestmark = MARKS
LOADERS = ('train_dataloader', 'val_dataloader')


@pytest.fixture
def root(tmp_path, monkeypatch):
    write_shape_classes(tmp_path / 'shapes_classes', images=30, val=6, size=(32, 32))
    monkeypatch.setenv('SHAPES_CLASSES_ROOT', str(tmp_path / 'shapes_classes'))
    return tmp_path / 'shapes_classes'


def check(**options):
    config = Config.fromfile('mmgrc::pretrain/shapes/grc_pvt.py')
    config.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    check_image_folders(config, LOADERS)
    return read_image_folders(config, LOADERS)


@pytest.fixture
def said(monkeypatch):
    messages = []
    monkeypatch.setattr('mmgrc.runs.preflight.image_folders.print_log', lambda message, **_: messages.append(message))
    return messages


def test_whole_data_set(root, said):
    assert check() == {'train_dataloader': 30, 'val_dataloader': 6}
    assert not said


def remove(path):
    shutil.rmtree(path)


def empty(path):
    remove(path)
    path.mkdir()


def truncate(path):
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ('break_it', 'words'),
    [
        (remove, r'train is not there. Write it with: python tools/make_shapes.py .*shapes_classes --classification'),
        (empty, r'train is empty. Write it with'),
        (
            lambda train: remove(train / 'square'),
            r'train has 2 class folders, but model.head.num_classes=3 and model.data',
        ),
        (
            lambda train: (train / 'n01440764.tar').touch(),
            r'has 1 archives beside 3 folders \(n01440764.tar\): it is not completely unpacked',
        ),
        (lambda train: empty(train / 'square'), r'1 of the 3 classes of .*train.* have no image: square'),
        (
            lambda train: (train / 'square').rename(train / 'sqare'),
            r'have different class folders: sqare, square is in one of them alone',
        ),
        (
            lambda train: next((train / 'circle').iterdir()).write_bytes(b''),
            r'1 of 30 images of train_dataloader, .*cannot be used: .*png \(it is empty\)',
        ),
        (lambda train: truncate(next((train / 'circle').iterdir())), r'1 of 30 images .*\(.*truncated'),
        (
            lambda train: next((train / 'circle').iterdir()).write_text('text'),
            r'1 of 30 images .*cannot identify image',
        ),
    ],
)
def test_broken_data_set(root, break_it, words):
    break_it(root / 'train')
    with pytest.raises(InputError, match=words):
        check()


def test_images_without_folders(root):
    for path in (root / 'val').rglob('*.png'):
        path.rename(root / 'val' / path.name)
    for name in ('circle', 'square', 'triangle'):
        (root / 'val' / name).rmdir()
    with pytest.raises(InputError, match=r'val, of val_dataloader, has 6 files .* and no folder for each class'):
        check()


def test_message_for_imagenet(tmp_path, monkeypatch):
    monkeypatch.setenv('IMAGENET_ROOT', str(tmp_path / 'imagenet'))
    config = Config.fromfile('mmgrc::pretrain/grc_pvt.py')
    with pytest.raises(InputError, match=r'imagenet/train is not there. Put ImageNet there .*IMAGENET_ROOT'):
        check_image_folders(config, LOADERS)
    write_shape_classes(tmp_path / 'imagenet', images=3, val=3, size=(32, 32))
    with pytest.raises(
        InputError, match=r'has 3 class folders, but .*data_preprocessor.num_classes=1000 and train_dat'
    ):
        check_image_folders(config, LOADERS)
    # With an annotation file, mmpretrain reads that.
    (tmp_path / 'imagenet' / 'meta').mkdir()
    for split in ('train', 'val'):
        lines = [
            f'{path.relative_to(tmp_path / "imagenet" / split)} 0'
            for path in (tmp_path / 'imagenet').rglob(f'{split}/*/*')
        ]
        (tmp_path / 'imagenet' / 'meta' / f'{split}.txt').write_text('\n'.join(lines))
    check_image_folders(config, LOADERS)
    with pytest.raises(InputError, match=r'999 of the 1000 classes'):
        read_image_folders(config, LOADERS)


def test_other_data_by_the_options_of_the_message(root):
    """ImageNet's reader takes other classes if they are named."""
    names = ['circle', 'square', 'triangle']
    options = {f'{loader}__dataset__type': 'ImageNet' for loader in LOADERS}
    with pytest.raises(InputError, match=r"train_dataloader.dataset.metainfo.classes=\[NAME,...\]'"):
        check(**options)
    check(**options, **{f'{loader}__dataset__metainfo__classes': names for loader in LOADERS})


def test_small_class_is_reported(root, said):
    rng = np.random.default_rng(0)
    for name in ('circle', 'triangle'):
        image = next((root / 'train' / name).iterdir())
        for number in range(30):
            shutil.copy(image, root / 'train' / name / f'copy{number}{rng.integers(9)}.png')
    for path in list((root / 'train' / 'square').iterdir())[2:]:
        path.unlink()
    check()
    assert len(said) == 1
    assert '1 classes have fewer than a tenth of the images of the median class (40): square (2)' in said[0]


def test_loader_that_cannot_work(root):
    with pytest.raises(InputError, match='num_workers=0 with persistent_workers=True cannot work'):
        check(train_dataloader__num_workers=0)
