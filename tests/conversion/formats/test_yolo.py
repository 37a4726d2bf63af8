"""Layouts of YOLO data sets, and what may be wrong in them."""

import math

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgrc.conversion.folder import Folder
from mmgrc.conversion.formats import detect_format
from mmgrc.conversion.formats.yolo import read
from mmgrc.runs.error import InputError
from tests.helpers.foreign_formats import Scene, write_image
from tests.helpers.readers import read_source


def put(root, *names, text='0 0.5 0.5 0.5 0.25\n', labels=True):
    """Images of 40 x 20 pixels, with labels below `labels/`, or beside them."""
    for name in names:
        write_image(root / name, Scene(name, 40, 20, []))
        label = (root / (name.replace('images', 'labels') if labels else name)).with_suffix('.txt')
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(text)


def put_yaml(root, **content):
    (root / 'data.yaml').write_text(yaml.safe_dump({'names': ['a', 'b'], **content}))


def splits(found, root):
    return {str(image.path.relative_to(root)): image.split for image in found.images}


def test_folders_of_splits(tmp_path):
    """As Roboflow writes it: `../train/images` means `train/images`."""
    put(tmp_path, 'train/images/1.png', 'valid/images/2.png', 'test/images/3.png')
    put_yaml(tmp_path, train='../train/images', val='../valid/images', test='../test/images', nc=2)
    found, folder = read_source('yolo', tmp_path)
    assert detect_format(folder) == 'yolo'
    assert splits(found, tmp_path) == {
        'train/images/1.png': 'train',
        'valid/images/2.png': 'val',
        'test/images/3.png': 'test',
    }
    (shape,) = found.images[0].shapes
    assert shape.label == 'a'
    np.testing.assert_allclose(shape.corners, [[10, 7.5], [30, 7.5], [30, 12.5], [10, 12.5]])


def test_lists_of_images(tmp_path):
    """As ultralytics' COCO: text files, here with the path of another machine, and a folder `path` that is not here."""
    put(tmp_path, 'images/train2017/1.png', 'images/val2017/1.png', 'images/val2017/2.png')
    (tmp_path / 'train.txt').write_text('./images/train2017/1.png\n')
    (tmp_path / 'val.txt').write_text('/content/coco/images/val2017/1.png\n\n/content/coco/images/val2017/2.png\n')
    put_yaml(tmp_path, path='/content/coco', train='train.txt', val=['val.txt'], names={1: 'b', 0: 'a'})
    found, _ = read_source('yolo', tmp_path)
    assert found.classes == ['a', 'b']
    assert splits(found, tmp_path) == {
        'images/train2017/1.png': 'train',
        'images/val2017/1.png': 'val',
        'images/val2017/2.png': 'val',
    }
    assert all(image.shapes for image in found.images)


@pytest.mark.parametrize('name', ['classes.txt', 'obj.names'])
def test_without_yaml(name, tmp_path):
    """As Label Studio and CVAT export it."""
    folder = 'obj_train_data' if name == 'obj.names' else 'images'
    put(tmp_path, f'{folder}/1.png', f'{folder}/2.png', labels=name == 'classes.txt')
    (tmp_path / name).write_text('a\nb\n')
    found, folder = read_source('yolo', tmp_path)
    assert detect_format(folder) == 'yolo'
    assert found.classes == ['a', 'b']
    assert {image.split for image in found.images} == {'train' if name == 'obj.names' else None}
    assert all(len(image.shapes) == 1 for image in found.images)


def test_images_in_another_folder(tmp_path):
    put(tmp_path, 'images/1.png')
    (tmp_path / 'images').rename(tmp_path / 'elsewhere')
    (tmp_path / 'source').mkdir()
    (tmp_path / 'labels').rename(tmp_path / 'source' / 'labels')
    (tmp_path / 'source' / 'classes.txt').write_text('a\n')
    found, _ = read_source('yolo', tmp_path / 'source', tmp_path / 'elsewhere')
    assert len(found.images[0].shapes) == 1


def test_the_yaml_file_itself_names_the_data_set(tmp_path):
    put(tmp_path, 'images/1.png')
    for name, classes in (('one.yaml', ['x', 'y']), ('two.yaml', ['p', 'q'])):
        (tmp_path / name).write_text(yaml.safe_dump({'names': classes, 'train': 'images'}))
    found, _ = read_source('yolo', tmp_path / 'two.yaml')
    assert found.classes == ['p', 'q']
    with pytest.raises(InputError, match=r'2 files in .* list classes: one\.yaml, two\.yaml'):
        read(Folder(tmp_path))


def test_keypoints_leave_the_boxes(tmp_path):
    put(tmp_path, 'images/1.png', text='1 0.5 0.5 0.5 0.25 0.1 0.1 2 0.4 0.4 1\n')
    put_yaml(tmp_path, train='images', kpt_shape=[2, 3])
    found, folder = read_source('yolo', tmp_path)
    np.testing.assert_allclose(found.images[0].shapes[0].corners[0], [10, 7.5])
    assert 'keypoints are left out' in folder.notes[0]


fractions = st.floats(0, 1, allow_subnormal=False)


@given(rows=st.lists(st.tuples(st.integers(0, 1), st.lists(st.tuples(fractions, fractions), min_size=3, max_size=8))))
@settings(deadline=None, max_examples=30)
def test_any_polygons(rows, tmp_path_factory):
    root = tmp_path_factory.mktemp('yolo')
    lines = [' '.join(map(str, [label, *np.ravel(points)])) for label, points in rows]
    put(root, 'images/1.png', text='\n'.join(lines))
    put_yaml(root, train='images')
    found, _ = read_source('yolo', root)
    assert [shape.label for shape in found.images[0].shapes] == ['ab'[label] for label, _ in rows]
    for shape, (_, points) in zip(found.images[0].shapes, rows, strict=True):
        np.testing.assert_allclose(shape.polygon, np.array(points) * [40, 20])


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('2 0.5 0.5 0.1 0.1', 'line 2 has the class 2, and the list of classes has 2 names from 0'),
        ('0.5 0.5 0.5 0.1 0.1', r'line 2 has the class 0\.5'),
        ('cat 0.5 0.5 0.1 0.1', r"line 2 is 'cat 0\.5 0\.5 0\.1 0\.1', not numbers"),
        ('0 0.5 0.5 0.1', 'line 2 has 3 numbers after the class. A box has 4'),
        ('0 0.5 0.5 0.1 0.1 0.9', 'line 2 has 5 numbers after the class'),
        ('0 20 10 8 4', 'line 2 has numbers that are no fractions of the image'),
        ('0 nan 0.5 0.1 0.1', 'line 2 has numbers that are no fractions of the image'),
    ],
)
def test_broken_lines(line, words, tmp_path):
    put(tmp_path, 'images/1.png', 'images/2.png', text=f'0 0.5 0.5 0.1 0.1\n{line}\n')
    put_yaml(tmp_path, train='images')
    with pytest.raises(InputError, match=rf'^broken annotation files \(2\): labels/1\.txt: {words}'):
        read_source('yolo', tmp_path)


def test_binary_labels(tmp_path):
    put(tmp_path, 'images/1.png')
    (tmp_path / 'labels' / '1.txt').write_bytes(b'\xff\xfe\x00')
    put_yaml(tmp_path, train='images')
    with pytest.raises(InputError, match=r'labels/1\.txt: it is not a text file in UTF-8 \(byte 0 is 0xff\)'):
        read_source('yolo', tmp_path)


def test_classes_in_another_encoding(tmp_path):
    put(tmp_path, 'images/1.png')
    (tmp_path / 'classes.txt').write_bytes('a\nTür\n'.encode('latin-1'))
    with pytest.raises(
        InputError, match=r'classes\.txt: it is not a text file in UTF-8 \(byte 3 is 0xfc\)\. Save it as'
    ):
        read_source('yolo', tmp_path)


def test_labels_without_an_image(tmp_path):
    put(tmp_path, *(f'images/{i}.png' for i in range(9)))
    put_yaml(tmp_path, train='images')
    for i in range(1, 9):
        (tmp_path / 'images' / f'{i}.png').unlink()
    with pytest.raises(InputError, match=r'images missing in .* \(8\): 1\.\* \(for labels/1\.txt\); .*; \.\.\.\. Put'):
        read_source('yolo', tmp_path)


def test_paths_that_lead_out(tmp_path):
    put(tmp_path, 'other/images/1.png', 'mine/images/1.png')
    put_yaml(tmp_path / 'mine', train='../other/images')
    with pytest.raises(
        InputError, match=r'^paths that lead out of .* \(1\): \.\./other/images \(in data\.yaml\)\. Give a folder'
    ):
        read_source('yolo', tmp_path / 'mine')
    put_yaml(tmp_path / 'mine', train='train.txt')
    (tmp_path / 'mine' / 'train.txt').write_text('../other/images/1.png\n' * 7)
    with pytest.raises(InputError, match=r'^paths that lead out of .* \(7\): .*; \.\.\.'):
        read_source('yolo', tmp_path / 'mine')


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ({'names': 3, 'train': 'images'}, r'data\.yaml: names is 3. It must be a list of names'),
        ({'names': [], 'train': 'images'}, r'names is \{\}'),
        ({'names': ['a', None], 'train': 'images'}, r"names is \{0: 'a', 1: None\}"),
        ({'names': {math.inf: 'a'}, 'train': 'images'}, 'names is {inf'),
        ({'names': ['a'], 'train': 'x' * 300}, 'it names xxx'),
        ({'names': ['a']}, 'names no images: it has none of train, val'),
        ({'names': ['a'], 'train': 'nothing'}, 'it names nothing, which is neither a folder nor a text file'),
        ({'names': ['a'], 'train': 'labels'}, 'the folder labels has no images'),
    ],
)
def test_broken_yaml(content, words, tmp_path):
    put(tmp_path, 'images/1.png')
    (tmp_path / 'data.yaml').write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=words):
        read_source('yolo', tmp_path)


def test_no_yaml_at_all(tmp_path):
    put(tmp_path, 'images/1.png')
    with pytest.raises(InputError, match=r'has no list of classes: no YAML file with names, and none of classes\.txt'):
        read_source('yolo', tmp_path)
    (tmp_path / 'data.yaml').write_text('names: [a, b\ntrain: x')
    with pytest.raises(InputError, match=r'data\.yaml cannot be read as YAML: while parsing'):
        detect_format(Folder(tmp_path))
