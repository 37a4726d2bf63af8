"""The same objects give the same annotations in each format. They are compared with pycocotools and OpenCV."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmgrc.conversion import convert
from tests.helpers.foreign_formats import CLASSES, KINDS, WRITERS, extent, make_scenes, read_result

CASES = [(name, kind) for name, kinds in KINDS.items() for kind in kinds]


@pytest.fixture(autouse=True)
def _xml_reader(request):
    if request.node.callspec.params.get('name') in ('voc', 'cvat'):
        pytest.importorskip('defusedxml', reason='to read XML, defusedxml is needed')


def expected(thing, height, width):
    """Box and pixels of an object, by OpenCV and pycocotools. No pixels: it has only a box."""
    if thing.box is not None:
        left, top, right, bottom = thing.box
        return [left, top, right - left, bottom - top], None
    if thing.mask is not None:
        left, top, right, bottom = extent(thing.mask)
        return [left, top, right - left, bottom - top], thing.mask
    low, high = thing.polygon.min(axis=0), thing.polygon.max(axis=0)
    rle = coco_mask.frPyObjects([thing.polygon.ravel().tolist()], height, width)
    return [*low, *(high - low)], coco_mask.decode(rle)[..., 0].astype(bool)


@pytest.mark.parametrize(('name', 'kind'), CASES)
def test_gives_the_objects_that_were_written(name, kind, tmp_path):
    scenes = make_scenes(kind)
    WRITERS[name](tmp_path / 'source', scenes)
    converted = convert(tmp_path / 'source', tmp_path / 'out', val_share=0.4, seed=3)
    assert converted.format == name
    assert converted.skipped == {}
    by_name = {scene.name: scene for scene in scenes}
    seen = []
    for split, number in (('train', 3), ('val', 2)):
        coco = COCO(tmp_path / 'out' / 'annotations' / f'instances_{split}.json')
        assert len(coco.imgs) == number
        # A list of classes keeps its order; names without one are sorted.
        listed = CLASSES if name in ('yolo', 'cvat') else sorted(CLASSES)
        assert [category['name'] for category in coco.dataset['categories']] == list(listed)
        assert [category['id'] for category in coco.dataset['categories']] == [1, 2, 3]
        for image in coco.dataset['images']:
            scene = by_name[image['file_name']]
            seen.append(scene.name)
            assert (image['width'], image['height']) == (scene.width, scene.height)
            assert cv2.imread(str(tmp_path / 'out' / split / image['file_name'])).shape[:2] == (
                scene.height,
                scene.width,
            )
            annotations = coco.imgToAnns[image['id']]
            assert len(annotations) == len(scene.things)
            for annotation, thing in zip(annotations, scene.things, strict=True):
                box, mask = expected(thing, scene.height, scene.width)
                assert coco.cats[annotation['category_id']]['name'] == thing.label
                np.testing.assert_allclose(annotation['bbox'], box, atol=0.011)
                assert annotation['iscrowd'] == 0
                if mask is None:
                    assert 'segmentation' not in annotation
                    assert annotation['area'] == pytest.approx(box[2] * box[3], abs=0.1)
                else:
                    found = coco.annToMask(annotation).astype(bool)
                    # Two decimals of a coordinate may move a pixel at the outline of a polygon.
                    assert (found != mask).sum() <= (2 if kind == 'polygon' else 0)
                    assert annotation['area'] == found.sum()
    assert sorted(seen) == sorted(by_name)


@pytest.mark.parametrize(('name', 'kind'), [(name, kinds[-1]) for name, kinds in KINDS.items()])
def test_the_same_source_gives_the_same_bytes(name, kind, tmp_path):
    WRITERS[name](tmp_path / 'source', make_scenes(kind))
    for out in ('first', 'second'):
        convert(tmp_path / 'source', tmp_path / out, seed=1)
    for split in ('train', 'val'):
        first, second = (tmp_path / out / 'annotations' / f'instances_{split}.json' for out in ('first', 'second'))
        assert first.read_bytes() == second.read_bytes()
    convert(tmp_path / 'source', tmp_path / 'other', seed=2)
    assert read_result(tmp_path / 'other', 'val')['images'] != read_result(tmp_path / 'first', 'val')['images']


@pytest.mark.parametrize(('name', 'kind'), [('yolo', 'box'), ('yolo', 'polygon'), ('voc', 'box')])
def test_supervision_reads_the_same(name, kind, tmp_path):
    supervision = pytest.importorskip('supervision', reason='supervision is another reader of YOLO and VOC')
    source = tmp_path / 'source'
    WRITERS[name](source, make_scenes(kind))
    convert(source, tmp_path / 'out')
    if name == 'yolo':
        folders = source / 'images', source / 'labels', source / 'data.yaml'
        theirs = supervision.DetectionDataset.from_yolo(*map(str, folders))
    else:
        folders = source / 'JPEGImages', source / 'Annotations'
        theirs = supervision.DetectionDataset.from_pascal_voc(*map(str, folders))
    number = 0
    for split in ('train', 'val'):
        coco = COCO(tmp_path / 'out' / 'annotations' / f'instances_{split}.json')
        for image in coco.dataset['images']:
            path = next(path for path in theirs.annotations if path.endswith(image['file_name']))
            ours = coco.imgToAnns[image['id']]
            other = theirs.annotations[path]
            assert len(ours) == len(other)
            for annotation, box, label in zip(ours, other.xyxy, other.class_id, strict=True):
                x, y, width, height = annotation['bbox']
                # supervision moves all sides of VOC's boxes by a pixel, and cuts polygons to whole pixels.
                np.testing.assert_allclose([x, y, x + width, y + height], box, atol=1.001)
                assert coco.cats[annotation['category_id']]['name'] == theirs.classes[label]
                number += 1
            if other.mask is not None:
                for annotation, mask in zip(ours, other.mask, strict=True):
                    found, other_mask = coco.annToMask(annotation), mask.astype(np.uint8)
                    # Truncated coordinates, and a narrow tip that OpenCV draws and pycocotools does not.
                    thick = np.ones((5, 5), np.uint8)
                    assert not (other_mask & ~cv2.dilate(found, thick)).any()
                    assert not (found & ~cv2.dilate(other_mask, thick)).any()
    assert number == 12
