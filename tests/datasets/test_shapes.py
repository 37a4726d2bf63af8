"""The generated data set: readable by pycocotools, the same for the same seed, with masks of the visible parts."""

import hashlib

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmgrc.datasets import CLASSES, write_shapes


def digests(root):
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob('*.*')}


def test_same_seed_same_bytes(tmp_path):
    for name, seed in (('a', 5), ('b', 5), ('c', 6)):
        write_shapes(tmp_path / name, images=3, val=2, size=(64, 48), seed=seed)
    assert digests(tmp_path / 'a') == digests(tmp_path / 'b')
    assert digests(tmp_path / 'a') != digests(tmp_path / 'c')


def test_more_images_keep_the_first(tmp_path):
    write_shapes(tmp_path / 'few', images=2, val=1, size=(64, 48))
    write_shapes(tmp_path / 'many', images=4, val=1, size=(64, 48))
    few, many = digests(tmp_path / 'few'), digests(tmp_path / 'many')
    images = [name for name in few if name.endswith('.png')]
    assert len(images) == 3
    assert all(few[name] == many[name] for name in images)


def test_annotations_are_of_what_is_visible(tmp_path):
    write_shapes(tmp_path, images=30, val=5, size=(160, 128))
    coco = COCO(tmp_path / 'annotations' / 'instances_train.json')
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    areas, crowded = [], 0
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = cv2.imread(str(tmp_path / 'train' / image['file_name'])).astype(float)
        assert pixels.shape == (128, 160, 3)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image['id']))
        assert annotations
        masks = np.stack([coco.annToMask(a) for a in annotations])
        assert masks.sum(axis=0).max() == 1, 'a pixel belongs to the one shape that is seen there'
        for annotation, mask in zip(annotations, masks, strict=True):
            ys, xs = np.nonzero(mask)
            x, y, w, h = annotation['bbox']
            assert (x, y, x + w, y + h) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert annotation['area'] == mask.sum()
            areas.append(mask.sum())
            # One colour with little noise; otherwise the mask would belong to something else.
            assert pixels[mask.astype(bool)].std(axis=0).max() < 16
        crowded += len(annotations) > 1
    assert crowded > 10
    assert max(areas) > 5 * min(areas)


@pytest.mark.parametrize('wrong', [{'images': 0}, {'val': 0}, {'size': (16, 64)}, {'seed': -1}])
def test_numbers_too_small(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        write_shapes(tmp_path, **{'images': 1, 'val': 1, **wrong})
