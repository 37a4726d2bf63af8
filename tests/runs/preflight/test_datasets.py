"""Data that MMDetection would leave out, rename or fail on is reported before a run. Valid data passes."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from PIL import Image
from pycocotools.mask import encode

from mmgrc.runs.error import InputError
from mmgrc.runs.preflight import CocoFiles, check_datasets, read_datasets

LOADERS = ('train_dataloader', 'val_dataloader')


def read(config, loaders=LOADERS):
    return read_datasets(config, loaders, CocoFiles())


def test_good_data_passes_without_a_word(config, said):
    datasets = read(config)
    assert not said
    # They are what MMDetection reads.
    for loader in LOADERS:
        stock = DATASETS.build(config[loader].dataset)
        assert len(datasets[loader]) == len(stock) > 0
        assert datasets[loader].get_data_info(1) == {**stock.get_data_info(1), 'sample_idx': 1}


def small(content):
    for annotation in content['annotations']:
        annotation['bbox'] = [1, 1, 0.5, 0.5]


def wrong_mask_size(content):
    size = [content['images'][0]['width'], content['images'][0]['height']]
    content['annotations'][0]['segmentation'] = {'size': size, 'counts': [size[0] * size[1]]}


def mask(counts):
    def change(content):
        size = [content['images'][0]['height'], content['images'][0]['width']]
        content['annotations'][0]['segmentation'] = {'size': size, 'counts': counts}

    return change


def polygon(*values):
    """The outline of an object, of which one coordinate is wrong."""
    return lambda content: content['annotations'][1].update(segmentation=[[1, 2, 30, *values, 30, 30]])


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda c: c['images'].clear(), 'has no images: the data set is empty'),
        (lambda c: c['annotations'].clear(), 'the data set of train_dataloader is empty'),
        (small, 'has no usable annotation of its classes (circle, square, triangle)'),
        (lambda c: c.pop('categories'), "is not in COCO's format: it has no list of categories"),
        (lambda c: c.pop('annotations'), 'the data set of train_dataloader is empty'),
        (lambda c: c.update(annotations={}), "is not in COCO's format: it has no list of annotations"),
        (lambda c: c['categories'].pop(), 'lacks 1 of the 3 classes of the data set: triangle. It has: circle, square'),
        (lambda c: c['annotations'][1].update(bbox=[1, 2, 3]), 'bbox of annotation 2 is [1, 2, 3]. It must be four'),
        (lambda c: c['annotations'][1].update(bbox=[1, 2, 3, float('nan')]), 'is [1, 2, 3, nan]'),
        (lambda c: c['annotations'][1].pop('image_id'), 'image_id of annotation 2 is missing'),
        (lambda c: c['annotations'][1].update(area=None), 'area of annotation 2 is None. It must be a finite number'),
        (lambda c: c['annotations'][1].update(category_id=[1]), 'category_id of annotation 2 is [1]'),
        (lambda c: c['annotations'][1].pop('id'), 'id of entry 2 of annotations is missing'),
        (lambda c: c['annotations'].append(None), 'of annotations is None. It must be a dictionary'),
        (lambda c: c['annotations'][1].update(id=1), 'are not unique'),
        (lambda c: c['images'][0].update(width='96'), "width of image 1 is '96'. It must be a number above 0"),
        (lambda c: c['images'][0].update(height=-1), 'height of image 1 is -1'),
        (lambda c: c['images'][0].update(file_name=None), 'file_name of image 1 is None'),
        (lambda c: c['categories'].append({'id': 9}), 'name of category 9 is missing'),
        (lambda c: c.update(categories=['circle']), "entry 1 of categories is 'circle'"),
        (lambda c: c['annotations'][1].pop('segmentation'), 'annotation 2 has no segmentation'),
        (
            lambda c: c['annotations'][1].update(segmentation=[1, 2, 3, 4, 5, 6]),
            'segmentation of annotation 2 is [1, 2',
        ),
        (lambda c: c['annotations'][1].update(segmentation=[['a'] * 6]), 'It must be a list of polygons'),
        (polygon(float('nan')), 'each a list of finite numbers in pixels'),
        (polygon(float('-inf')), 'segmentation of annotation 2 is [[1, 2, 30, -inf'),
        (polygon(None), 'segmentation of annotation 2 is [[1, 2, 30, None'),
        (polygon([3]), 'each a list of finite numbers'),
        (polygon(1e7), 'each a list of finite numbers'),
        (polygon(-(10**400)), 'each a list of finite numbers'),
        (mask('abc'), "is {'counts': 'abc', 'size': [64, 96]}. It must be a list of polygons"),
        (mask('ü'), 'with counts for all of its pixels'),
        (mask(''), 'with counts for all of its pixels'),
        (mask('o' * 40), 'with counts for all of its pixels'),
        (mask([64 * 96 - 1]), 'with counts for all of its pixels'),
        (mask([-1, 64 * 96 + 1]), 'with counts for all of its pixels'),
        (mask([64.0 * 96]), 'with counts for all of its pixels'),
        (mask([None]), 'with counts for all of its pixels'),
        (mask(7), 'with counts for all of its pixels'),
        (wrong_mask_size, 'the mask of annotation 1 has 96 rows and 64 columns, its image has 64 and 96'),
        (lambda c: c['images'][3].update(file_name='gone.png'), '1 of the 16 images of'),
    ],
)
def test_data_that_cannot_be_trained_on(config, edit, change, words):
    edit(change)
    with pytest.raises(InputError) as error:
        read(config)
    assert words in str(error.value)
    assert 'train' in str(error.value)


@pytest.mark.parametrize('phase', ['train', 'val', 'test'])
def test_masks_are_required_where_they_are_loaded(config, edit, phase):
    """The loaders of a validation load them, too, and would fail at the first image without one."""
    edit(lambda c: c['annotations'][3].pop('segmentation'), 'train' if phase == 'train' else 'val')
    with pytest.raises(InputError, match=r'annotation 4 has no segmentation, but the data set loads masks.*with_m'):
        read(config, [f'{phase}_dataloader'])
    loader = config[f'{phase}_dataloader'].dataset
    loader.pipeline = [
        {**step, 'with_mask': False} if step.type == 'LoadAnnotations' else step for step in loader.pipeline
    ]
    read(config, [f'{phase}_dataloader'])


def test_masks_of_any_shape_pass(config, edit, said):
    """Run lengths as numbers, and compressed by pycocotools."""
    rng = np.random.default_rng(0)
    masks = [rng.random((64, 96)) < share for share in (0, 1, 0.001, 0.02, 0.5)]
    masks += [np.tri(64, 96, shift, dtype=bool) for shift in (-30, 0, 40)]

    def change(content):
        for number, (one, annotation) in enumerate(zip(masks, content['annotations'], strict=False)):
            encoded = encode(np.asfortranarray(one, np.uint8))
            counts = encoded['counts'].decode()
            if number % 2:
                flat = one.flatten('F')
                edges = np.flatnonzero(np.diff(flat)) + 1
                counts = np.diff([0, *edges, len(flat)]).tolist()
                counts = [0, *counts] if flat[0] else counts
            annotation['segmentation'] = {'size': encoded['size'], 'counts': counts}

    edit(change)
    read(config)
    assert not said


def test_corners_instead_of_boxes(config, edit, said):
    def change(content):
        for annotation in content['annotations']:
            x, y, width, height = annotation['bbox']
            annotation['bbox'] = [x, y, x + width, y + height]

    edit(change)
    read(config)
    (message,) = said
    assert 'boxes reach beyond their images. Are they corners? A bbox of COCO is left, top, width and height' in message


def test_folders_without_permission(config, data, monkeypatch):
    """Root may read everything, so that the system's answer is made up."""

    def refuse(path, *args):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr('os.listdir', refuse)
    with pytest.raises(InputError, match=r'the images of .*json cannot be read: .*train.*: Permission denied'):
        read(config, LOADERS[:1])
    monkeypatch.setattr(Path, 'iterdir', refuse)
    with pytest.raises(InputError, match=r'the data set of train_dataloader cannot be read: .*: Permission denied'):
        check_datasets(config, LOADERS[:1])


@pytest.mark.parametrize('content', [b'{"images": [', b'\xef\xbb\xbf{}', b'\xff\xfe'])
def test_file_that_is_no_json(config, data, content):
    """The second has a byte order mark, on which the COCO API fails too."""
    (data / 'annotations' / 'instances_val.json').write_bytes(content)
    with pytest.raises(InputError, match=r'instances_val.json is not JSON: .*truncated'):
        read(config)


def test_every_kind_of_annotation_that_is_left_out(config, edit, said):
    def change(content):
        content['annotations'][0]['bbox'][2] = 0.2
        content['annotations'][1]['bbox'][3] = -1
        content['annotations'][2]['segmentation'] = [[1, 1, 5, 5], [1, 1, 2, 2, 3]]
        content['annotations'][3]['image_id'] = 12345
        content['annotations'][4]['area'] = 0
        content['annotations'][5]['bbox'] = [-20, 3, 10, 10]
        content['annotations'][6]['category_id'] = 77
        content['annotations'][7]['category_id'] = '1'
        # As the annotator intended.
        content['annotations'][8]['ignore'] = 1

    total = len(edit(change)['annotations'])
    dataset = read(config)['train_dataloader']
    (message,) = said
    assert f'some of its {total} annotations are left out: ' in message
    for kind in (
        '2 with an empty box (less than a pixel) (annotation 1, 5)',
        '1 with an inverted box (annotation 2)',
        '1 with no polygon of 3 or more points (annotation 3)',
        '1 of an image that is not in the file (annotation 4)',
        '1 with a box outside of its image (annotation 6)',
        '2 with a category_id that no category has (annotation 7, 8)',
    ):
        assert kind in message
    # The polygon with few points is dropped when it is loaded.
    assert sum(len(info['instances']) for info in dataset.load_data_list()) == total - 8


def test_reader_that_drops_for_a_reason_of_its_own(config, edit, said, monkeypatch):
    """The comparison is with MMDetection's reader itself, not with rules that repeat it."""
    stock = CocoDataset.parse_data_info

    def parse(self, raw):
        info = stock(self, raw)
        info['instances'] = [one for one in info['instances'] if one['bbox_label'] != 2]
        return info

    monkeypatch.setattr(CocoDataset, 'parse_data_info', parse)
    content = edit(lambda c: None)
    lost = [a['id'] for a in content['annotations'] if a['category_id'] == content['categories'][2]['id']]
    read(config, LOADERS[:1])
    # Masks are loaded: only if the count differs is the reader called for each annotation.
    assert f"{len(lost)} that MMDetection's reader does not take (annotation {lost[0]}" in said[0]


def test_images_of_one_id(config, edit, said):
    edit(lambda c: c['images'].append({**c['images'][0], 'file_name': c['images'][1]['file_name']}))
    read(config)
    assert '1 images are lost, since others have the same id (1)' in said[0]


# Names and labels.


def test_classes_in_another_order_than_in_the_file(config, said):
    for loader in LOADERS:
        config[loader].dataset.metainfo.classes = ('triangle', 'circle', 'square')
    dataset = read(config)['train_dataloader']
    assert len(said) == 2
    for words in ('in another order than the classes', "label 0 is 'circle' in the file and 'triangle' in the"):
        assert words in said[0]
    assert "classes=('circle', 'square', 'triangle')" in said[0]
    # The message is right.
    content = json.loads(Path(dataset.ann_file).read_text())
    names = {category['id']: category['name'] for category in content['categories']}
    first = next(info for info in dataset.load_data_list() if info['instances'])
    truth = next(a for a in content['annotations'] if a['image_id'] == first['img_id'])
    shown = dataset.metainfo['classes'][first['instances'][0]['bbox_label']]
    assert shown != names[truth['category_id']]


def test_files_whose_categories_stand_in_different_orders(config, edit):
    edit(lambda c: c['categories'].reverse(), 'val')
    with pytest.raises(InputError, match=r'instances_val.json \(val_dataloader\) and of .*different orders'):
        read(config)


def test_part_of_the_classes_is_no_fault(config, said):
    for loader in LOADERS:
        config[loader].dataset.metainfo = {'classes': ('square', 'triangle'), 'palette': [(1, 2, 3), (4, 5, 6)]}
    for head in (config.model.roi_head.bbox_head, config.model.roi_head.mask_head):
        head.num_classes = 2
    read(config)
    assert not said


@pytest.mark.parametrize(('root_first', 'works'), [(True, False), (False, True)])
def test_two_categories_of_one_name(config, edit, said, root_first, works):
    def change(content):
        root, one = {'id': 50, 'name': 'shape'}, {'id': 7, 'name': 'shape'}
        content['categories'] = [root, one] if root_first else [one, root]
        for annotation in content['annotations']:
            annotation['category_id'] = 7

    for split in ('train', 'val'):
        edit(change, split)
    for loader in LOADERS:
        config[loader].dataset.metainfo = {'classes': ('shape',), 'palette': [(1, 2, 3)]}
    for head in (config.model.roi_head.bbox_head, config.model.roi_head.mask_head):
        head.num_classes = 1
    if works:
        read(config)
        assert "2 categories have the same name 'shape' (ids 7, 50)" in said[0]
    else:
        with pytest.raises(InputError, match=r"2 categories have the same name 'shape' \(ids 50, 7\)"):
            read(config)


@pytest.mark.parametrize(
    ('classes', 'words'),
    [
        ('circle', r"metainfo.classes='circle' .* is a string, whose letters.*classes=\('circle',\)"),
        ((), r'metainfo.classes=.*give a tuple of names'),
        ((1, 2), r'metainfo.classes=.*give a tuple of names'),
        (('circle', 'circle'), r"names 'circle' twice"),
    ],
)
def test_classes_that_are_none(config, classes, words):
    config.train_dataloader.dataset.metainfo.classes = classes
    with pytest.raises(InputError, match=words):
        read(config)


def test_classes_in_a_file(config, tmp_path, said):
    (tmp_path / 'names.txt').write_text('circle\nsquare\ntriangle\n')
    config.train_dataloader.dataset.metainfo.classes = str(tmp_path / 'names.txt')
    read(config)
    assert not said


def test_heads_of_fewer_classes_than_the_data(config):
    config.model.roi_head.mask_head.num_classes = 2
    with pytest.raises(InputError, match=r'model.roi_head.mask_head.num_classes=2, but the data set of train_data'):
        read(config)


# Images.


def turn(data, split, edit, orientation):
    """Store the images rotated, with an EXIF orientation. The file states the stored size."""

    def change(content):
        for entry in content['images']:
            source = data / split / entry['file_name']
            image = Image.open(source).convert('RGB')
            entry['file_name'] = f'{source.stem}.jpg'
            exif = Image.Exif()
            exif[0x0112] = orientation
            image.transpose(Image.Transpose.ROTATE_90).save(source.with_suffix('.jpg'), exif=exif)
            entry['width'], entry['height'] = entry['height'], entry['width']

    edit(change, split)


@pytest.mark.parametrize(('orientation', 'differs'), [(6, True), (5, True), (1, False), (3, False)])
def test_images_turned_by_exif(config, data, edit, said, orientation, differs):
    turn(data, 'val', edit, orientation)
    # Boxes may be outside a rotated image. Only the images are checked here.
    read(config, ('val_dataloader',))
    assert any('have another size than the file says' in message for message in said) == differs
    if differs:
        path = next((data / 'val').glob('*.jpg'))
        rows, columns = cv2.imread(str(path)).shape[:2]
        assert f'is loaded with {rows} rows and {columns} columns' in said[0]
        assert said[0].count('4 of its images') == 1


def test_swapped_width_and_height(config, edit, said):
    edit(lambda c: [i.update(width=i['height'], height=i['width']) for i in c['images'][:2]], 'val')
    read(config)
    assert '2 of its images have another size than the file says' in said[0]


def test_images_that_cannot_be_decoded(config, data):
    images = sorted((data / 'train').iterdir())
    images[0].write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(100))
    images[1].write_bytes(b'')
    with pytest.raises(InputError, match=rf'2 images of .* cannot be decoded: .*{images[0].name}, .*{images[1].name}'):
        read(config)
    # A config that tolerates them continues.
    config.train_dataloader.dataset.pipeline[0].ignore_empty = True
    read(config)


def test_unreadable_images_beside_images_of_another_size(config, data, edit, said):
    """Each image without a header is tried, however many others have another size."""
    for step in config.train_dataloader.dataset.pipeline:
        if step.type == 'LoadAnnotations':
            # A mask of another size than its image would be an error.
            step.with_mask = False
    content = edit(lambda c: [image.update(width=95) for image in c['images'][:-1]])
    path, number = data / 'train' / content['images'][-1]['file_name'], len(content['images']) - 1
    assert number > 5  # as many are decoded to see their size
    path.write_bytes(b'')
    with pytest.raises(InputError, match=r'1 images of .* cannot be decoded: '):
        read(config, LOADERS[:1])
    cv2.imwrite(str(path), np.zeros((64, 96, 3), np.uint8))
    read(config, LOADERS[:1])
    (message,) = said
    assert f'json: {number} of its images have another size' in message


@pytest.mark.parametrize('kind', ['truncated', 'float'])
def test_images_whose_header_is_good(config, data, edit, kind):
    """OpenCV reads no JPEG that is truncated, and mmcv no image of floating-point numbers, whatever their size says."""
    name = {'truncated': 'a.jpg', 'float': 'a.gif'}[kind]
    edit(lambda c: c['images'][3].update(file_name=name))
    path = data / 'train' / name
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    if kind == 'truncated':
        # A good one of this kind before it.
        edit(lambda c: c['images'][2].update(file_name='b.jpg'))
        cv2.imwrite(str(data / 'train' / 'b.jpg'), image)
        cv2.imwrite(str(path), image)
        path.write_bytes(path.read_bytes()[:600])
    else:
        Image.fromarray(image).save(path)
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=rf'1 images of .* cannot be decoded: .*{name}'):
        read(config)


def test_sixteen_bits_and_palettes_are_sizes_too(config, data, said):
    images = sorted((data / 'train').iterdir())
    cv2.imwrite(str(images[0]), cv2.imread(str(images[0])).astype(np.uint16) * 257)
    Image.open(images[1]).convert('P').save(images[1])
    read(config)
    assert not said


# What MMDetection trains with passes.


def test_images_without_objects_beside_others(config, data, edit, said):
    content = edit(lambda c: None)
    (data / 'annotations' / 'background.json').write_text(json.dumps({**content, 'annotations': []}))
    one = config.train_dataloader.dataset
    two = {**one, 'ann_file': 'annotations/background.json', 'filter_cfg': {'filter_empty_gt': False}}
    config.train_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [one, two]}
    dataset = read(config)['train_dataloader']
    assert len(dataset) == len(DATASETS.build(config.train_dataloader.dataset))
    assert not said
    # Alone they give nothing to learn, whatever wrappers they have.
    config.train_dataloader.dataset = {'type': 'RepeatDataset', 'times': 2, 'dataset': two}
    with pytest.raises(InputError, match=r'is empty: .*background.json has no usable annotation'):
        read(config)


def test_set_without_annotations_for_a_test(config, edit, said):
    edit(lambda c: c.pop('annotations'), 'val')
    assert len(read(config, ('test_dataloader',))['test_dataloader']) == 4
    assert not said


def test_unlabelled_images_beside_others(config, data, edit, said):
    """As in MMDetection's semi-supervised recipes: a file without annotations, in training."""
    content = edit(lambda c: None)
    content.pop('annotations')
    (data / 'annotations' / 'unlabelled.json').write_text(json.dumps(content))
    one = config.train_dataloader.dataset
    two = {**one, 'ann_file': 'annotations/unlabelled.json', 'filter_cfg': {'filter_empty_gt': False}}
    config.train_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [one, two]}
    assert len(read(config)['train_dataloader']) == 16 + len(DATASETS.build(one))
    assert not said


@DATASETS.register_module()
class OwnReader(CocoDataset):
    """A data set of a plug-in, with a file in an unknown format."""

    def load_data_list(self):
        raise AssertionError('it is read by the run alone')


def test_reader_of_its_own_is_left_to_it(config, data, said):
    (data / 'annotations' / 'instances_train.json').write_text('[1, 2]')
    config.train_dataloader.dataset.type = 'OwnReader'
    assert read(config)['train_dataloader'] is None
    assert not said


def test_files_elsewhere_are_left_to_their_backend(config, said):
    config.train_dataloader.dataset.update(data_root='', ann_file='s3://bucket/train.json')
    assert read(config)['train_dataloader'] is None
    assert not said


# Loaders.


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'num_workers': 0}, r'num_workers=0 with persistent_workers=True .*train_dataloader.persistent_workers=False'),
        ({'batch_sise': 3}, r'train_dataloader cannot be built: TypeError: .*batch_sise'),
        ({'sampler': {'type': 'DefaultSampeler'}}, r'train_dataloader cannot be built: KeyError: .*DefaultSampeler'),
        ({'batch_size': 0}, r'train_dataloader cannot be built: ValueError'),
    ],
)
def test_loader_that_cannot_be_built(config, options, words):
    config.train_dataloader.update(options)
    with pytest.raises(InputError, match=words):
        read(config)


def test_transform_that_is_misspelt(config):
    config.train_dataloader.dataset.pipeline[2] = {'type': 'RandomFlipp', 'prob': 0.5}
    with pytest.raises(InputError, match=r'the data set of train_dataloader cannot be built: .*RandomFlipp'):
        read(config)
