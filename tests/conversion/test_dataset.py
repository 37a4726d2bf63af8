"""Splits, classes, files and configs of a conversion."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mmgrc.conversion import convert
from mmgrc.runs.config import build_model, load_config
from mmgrc.runs.error import InputError
from tests.helpers.foreign_formats import CLASSES, make_scenes, read_result, write_labelme, write_voc, write_yolo


@pytest.fixture
def polygons(tmp_path):
    """A data set of five images with polygons, the last one without objects."""
    write_yolo(tmp_path / 'source', make_scenes('polygon'))
    return tmp_path / 'source'


def names(out, split):
    return [image['file_name'] for image in read_result(out, split)['images']]


def test_links_lead_to_the_images(polygons, tmp_path):
    convert(polygons, tmp_path / 'deep' / 'out')
    # Both may move together.
    (tmp_path / 'moved').mkdir()
    for name in ('source', 'deep'):
        (tmp_path / name).rename(tmp_path / 'moved' / name)
    for split in ('train', 'val'):
        for name in names(tmp_path / 'moved' / 'deep' / 'out', split):
            link = tmp_path / 'moved' / 'deep' / 'out' / split / name
            assert link.is_symlink()
            assert not os.path.isabs(os.readlink(link))
            assert link.read_bytes() == (tmp_path / 'moved' / 'source' / 'images' / name).read_bytes()


def test_copies(polygons, tmp_path):
    convert(polygons, tmp_path / 'out', copy=True)
    shutil.rmtree(polygons)
    for split in ('train', 'val'):
        for name in names(tmp_path / 'out', split):
            assert not (tmp_path / 'out' / split / name).is_symlink()
            assert cv2.imread(str(tmp_path / 'out' / split / name)) is not None


@pytest.mark.parametrize(('share', 'number'), [(0.01, 1), (0.2, 1), (0.5, 2), (0.99, 4)])
def test_share_of_validation(share, number, polygons, tmp_path):
    converted = convert(polygons, tmp_path / 'out', val_share=share)
    assert {split: count.images for split, count in converted.splits.items()} == {'train': 5 - number, 'val': number}
    assert not set(names(tmp_path / 'out', 'train')) & set(names(tmp_path / 'out', 'val'))
    assert f'{number} of 5 images were chosen' in converted.notes[0]


def test_splits_of_the_source(tmp_path):
    """Also images of the same name in several folders of a split."""
    source = tmp_path / 'source'
    for folder in ('train/a', 'train/b', 'valid', 'test'):
        write_labelme(source / folder, make_scenes('polygon', seed=len(folder), number=2))
    converted = convert(source, tmp_path / 'out')
    assert {split: count.images for split, count in converted.splits.items()} == {'train': 4, 'val': 2, 'test': 2}
    assert names(tmp_path / 'out', 'train') == ['a/0 image.png', 'a/1 image.png', 'b/0 image.png', 'b/1 image.png']
    assert names(tmp_path / 'out', 'test') == ['0 image.png', '1 image.png']
    config = load_config(str(converted.config))
    assert config.test_dataloader.dataset.data_prefix.img == 'test/'
    assert config.test_evaluator.ann_file == str(tmp_path / 'out' / 'annotations' / 'instances_test.json')
    assert config.val_evaluator.ann_file == str(tmp_path / 'out' / 'annotations' / 'instances_val.json')


def test_training_and_validation_on_the_same_images(polygons, tmp_path):
    content = json.loads((polygons / 'data.yaml').read_text())
    (polygons / 'data.yaml').write_text(json.dumps({**content, 'val': 'images'}))
    converted = convert(polygons, tmp_path / 'out')
    assert names(tmp_path / 'out', 'train') == names(tmp_path / 'out', 'val')
    assert '5 images are in both training and validation, as the source says' in converted.notes


def test_two_files_for_one_image(tmp_path):
    source = tmp_path / 'source'
    write_labelme(source, make_scenes('polygon'))
    shutil.copy(source / '0 image.json', source / 'again.json')
    converted = convert(source, tmp_path / 'out')
    assert converted.skipped == {'labels of an image that has others already': ['0 image.png']}
    assert sum(count.images for count in converted.splits.values()) == 5


def test_classes_in_another_order(polygons, tmp_path):
    converted = convert(polygons, tmp_path / 'out', classes=[CLASSES[2], CLASSES[0]])
    content = read_result(tmp_path / 'out', 'train')
    assert content['categories'] == [{'id': 1, 'name': CLASSES[2]}, {'id': 2, 'name': CLASSES[0]}]
    assert {annotation['category_id'] for annotation in content['annotations']} == {1, 2}
    assert len(converted.skipped['objects of classes that --classes leaves out']) == 4
    assert load_config(str(converted.config)).train_dataloader.dataset.metainfo.classes == (CLASSES[2], CLASSES[0])


def test_counts(polygons, tmp_path):
    converted = convert(polygons, tmp_path / 'out', val_share=0.4)
    for split, count in converted.splits.items():
        content = read_result(tmp_path / 'out', split)
        assert count.images == len(content['images'])
        assert count.empty == len(content['images']) - len({a['image_id'] for a in content['annotations']})
        assert count.masks == sum(count.objects.values()) == len(content['annotations'])
    assert list(converted.splits['train'].objects) == list(CLASSES)


@pytest.mark.parametrize('name', ['out', 'my data.v2', 'żaba', "bob's data", 'a "b\' {{ x }}', 'back\\slash\n'])
@pytest.mark.parametrize('kind', ['box', 'polygon'])
def test_the_config_fits_the_data(kind, name, tmp_path, monkeypatch):
    write_yolo(tmp_path / 'source', make_scenes(kind))
    monkeypatch.chdir(tmp_path)
    converted = convert('source', name)
    # Read from elsewhere.
    monkeypatch.chdir('/')
    config = load_config(str(converted.config))
    assert config.train_dataloader.dataset.data_root == str(tmp_path / name)
    # The copy that a run writes.
    config.dump(tmp_path / 'copy.py')
    assert load_config(str(tmp_path / 'copy.py')).to_dict() == config.to_dict()
    assert config.model.type == ('MaskRCNN' if kind == 'polygon' else 'RetinaNet')
    config.model.backbone.init_cfg = None
    model = build_model(config)
    if kind == 'polygon':
        assert model.roi_head.bbox_head.num_classes == model.roi_head.mask_head.num_classes == 3
    else:
        assert model.bbox_head.num_classes == 3


def test_another_config(polygons, tmp_path, monkeypatch):
    """A path of a config is relative to the working directory, not to the new config."""
    (tmp_path / 'base.py').write_text("_base_ = 'mmgrc::shapes/retinanet_grc_swin.py'\nrandomness = dict(seed=7)\n")
    monkeypatch.chdir(tmp_path)
    config = load_config(str(convert(polygons, tmp_path / 'out', base='base.py').config))
    assert config.randomness.seed == 7
    assert config.model.bbox_head.num_classes == 3
    with pytest.raises(InputError, match=r'is a list of heads\. Write the config by hand'):
        convert(polygons, tmp_path / 'cascade', base='mmgrc::more/cascade_mask_rcnn_grc_swin.py')
    with pytest.raises(InputError, match=r'there is no config .*nothing\.py'):
        convert(polygons, tmp_path / 'nothing', base='nothing.py')
    with pytest.raises(InputError, match='it lacks one of train_dataloader'):
        convert(polygons, tmp_path / 'part', base='mmgrc::_base_/schedule_shapes.py')
    assert not any((tmp_path / name).exists() for name in ('cascade', 'nothing', 'part'))


def rename_class(source, name):
    content = json.loads((source / 'data.yaml').read_text())
    (source / 'data.yaml').write_text(json.dumps({**content, 'names': {**content['names'], '0': name}}))


def test_odd_names_of_classes(polygons, tmp_path):
    name = """bob's "{{ x }}" {filename}\\ 日"""
    rename_class(polygons, name)
    config = load_config(str(convert(polygons, tmp_path / 'out').config))
    config.dump(tmp_path / 'copy.py')
    for path in (tmp_path / 'out' / 'out.py', tmp_path / 'copy.py'):
        assert load_config(str(path)).train_dataloader.dataset.metainfo.classes == (name, *CLASSES[1:])


@pytest.mark.parametrize(
    'odd', ['{{ fileDirname }}', '{{fileBasename}}', '{{ $HOME:x }}', '{{"$A:}}', '{{ _base_.model }}', 'half \ud800']
)
def test_what_a_config_would_replace(odd, polygons, tmp_path):
    """It is refused before anything is written."""
    words = 'has .*, and configs replace' if '{' in odd else 'is no character of Unicode'
    with pytest.raises(InputError, match=rf'^the path .*{words}.* Give another one'):
        convert(polygons, tmp_path / odd)
    rename_class(polygons, f'a {odd}')
    with pytest.raises(InputError, match=rf'^the class .*{words}.* Rename it, or leave it out with --classes'):
        convert(polygons, tmp_path / 'out')
    assert [path.name for path in tmp_path.iterdir()] == ['source']
    convert(polygons, tmp_path / 'out', classes=[CLASSES[1]])


def test_objects_without_a_mask(tmp_path):
    """Three images with masks, two with boxes alone, one without objects."""
    source = tmp_path / 'source'
    write_labelme(source / 'first', make_scenes('mask', number=4))
    write_labelme(source / 'second', make_scenes('box', number=3))
    kept = convert(source, tmp_path / 'keep')
    assert '6 of 15 objects have no mask, so the config is for a detector of boxes' in kept.notes[-1]
    assert load_config(str(kept.config)).model.type == 'RetinaNet'
    with pytest.raises(InputError, match='trains masks, and 6 of 15 objects have none'):
        convert(source, tmp_path / 'masks', base='mmgrc::mask_rcnn_grc_swin.py')

    box = convert(source, tmp_path / 'box', missing_masks='box')
    assert sum(count.masks for count in box.splits.values()) == 15
    assert load_config(str(box.config)).model.type == 'MaskRCNN'

    skip = convert(source, tmp_path / 'skip', missing_masks='skip')
    assert sum(count.masks for count in skip.splits.values()) == 9
    assert skip.skipped['images with an object that has no mask (--missing-masks skip)'] == [
        'second/0 image.png',
        'second/1 image.png',
    ]
    assert sum(count.empty for count in skip.splits.values()) == 2


@pytest.mark.parametrize('stated', ['as loaded', 'as stored'])
def test_images_that_exif_rotates(stated, tmp_path):
    """Annotations are for the image as it is loaded. Those of another program are left out, and the reason is given."""
    source = tmp_path / 'source'
    write_labelme(source, make_scenes('box'))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(source / 'a.jpg', exif=exif.tobytes())
    size = {'imageWidth': 30, 'imageHeight': 50} if stated == 'as loaded' else {'imageWidth': 50, 'imageHeight': 30}
    shape = {'label': 'x', 'shape_type': 'rectangle', 'points': [[5, 30], [25, 45]]}
    (source / 'a.json').write_text(json.dumps({'shapes': [shape], 'imagePath': 'a.jpg', **size}))
    converted = convert(source, tmp_path / 'out', val_share=0.5)
    records = [image for split in ('train', 'val') for image in read_result(tmp_path / 'out', split)['images']]
    rotated = [image for image in records if image['file_name'] == 'a.jpg']
    if stated == 'as stored':
        assert rotated == []
        (where,) = converted.skipped['images of another size than their annotations say']
        assert where == 'a.jpg (30x50, not 50x30, so its EXIF entry rotates it)'
        return
    loaded = LoadImageFromFile().transform({'img_path': str(source / 'a.jpg')})['img']
    assert (rotated[0]['height'], rotated[0]['width']) == loaded.shape[:2] == (50, 30)


def test_nothing_that_exists_is_overwritten(polygons, tmp_path):
    (tmp_path / 'out').mkdir()
    convert(polygons, tmp_path / 'out')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(InputError, match=r'out exists already and is not empty\. Give another folder, or remove it'):
        convert(polygons, tmp_path / 'out')
    with pytest.raises(InputError, match='is inside of the data set that is read'):
        convert(polygons, polygons / 'coco')
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='file exists already'):
        convert(polygons, tmp_path / 'file')
    assert sorted(path for path in tmp_path.rglob('*') if path.name != 'file') == before


def test_a_failure_leaves_nothing_behind(polygons, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr('mmgrc.conversion.dataset.read_datasets', fail)
    (tmp_path / 'empty').mkdir()
    for out in ('new', 'empty'):
        with pytest.raises(KeyboardInterrupt):
            convert(polygons, tmp_path / out)
    assert not (tmp_path / 'new').exists()
    assert list((tmp_path / 'empty').iterdir()) == []
    # The source is intact: links were removed, not what they lead to.
    assert len(list((polygons / 'images').iterdir())) == 5


def test_bad_input(polygons, tmp_path):
    out = tmp_path / 'out'
    for share in (0, 1, -1, float('nan')):
        with pytest.raises(InputError, match=r'--val-share .*: give a number between 0 and 1'):
            convert(polygons, out, val_share=share)
    with pytest.raises(InputError, match=r'--classes: the data set has no horse\. It has: cat, '):
        convert(polygons, out, classes=['cat', 'horse'])
    with pytest.raises(InputError, match="has 'cat' twice"):
        convert(polygons, out, classes=['cat', 'cat'])
    with pytest.raises(InputError, match='there is no folder'):
        convert(polygons, out, images=tmp_path / 'nothing')
    with pytest.raises(InputError, match='has no images for training, but none at all'):
        convert(polygons, out, format='labelme')
    shutil.rmtree(polygons / 'labels')
    with pytest.raises(InputError, match=r'nothing is left for train: 4 images, 0 objects\. The folder was read as'):
        convert(polygons, out)
    for path in list((polygons / 'images').iterdir())[1:]:
        path.unlink()
    with pytest.raises(InputError, match=r'has a single image\. Training and validation need one each'):
        convert(polygons, out)
    assert not out.exists()


def test_lists_of_other_images(tmp_path):
    """The error says what was left out."""
    pytest.importorskip('defusedxml', reason='to read XML, defusedxml is needed')
    write_voc(tmp_path / 'source', make_scenes('box'))
    (tmp_path / 'source' / 'ImageSets' / 'Main').mkdir(parents=True)
    (tmp_path / 'source' / 'ImageSets' / 'Main' / 'train.txt').write_text('other\n')
    with pytest.raises(
        InputError,
        match=r'but none at all\. The folder was read as voc\. Left out: 1 names in ImageSets/Main without an '
        r'annotation file \(such as other \(train\.txt\)\), 5 images in no list of ImageSets/Main '
        r'\(such as JPEGImages/0 image\.png\)',
    ):
        convert(tmp_path / 'source', tmp_path / 'out')


def test_validation_alone(polygons, tmp_path):
    content = json.loads((polygons / 'data.yaml').read_text())
    content['val'] = content.pop('train')
    (polygons / 'data.yaml').write_text(json.dumps(content))
    with pytest.raises(InputError, match='has no images for training, but 5 for val'):
        convert(polygons, tmp_path / 'out')


def test_several_formats_in_a_folder(polygons, tmp_path):
    write_labelme(polygons / 'more', make_scenes('box', number=3))
    with pytest.raises(InputError, match=r'has files of several formats: labelme, yolo\. Choose one with --format'):
        convert(polygons, tmp_path / 'out')
    converted = convert(polygons, tmp_path / 'out', format='labelme')
    assert sum(count.images for count in converted.splits.values()) == 3


def test_a_data_set_in_coco_s_format(polygons, tmp_path):
    convert(polygons, tmp_path / 'out')
    with pytest.raises(InputError, match="is in COCO's format already"):
        convert(tmp_path / 'out', tmp_path / 'again')
