"""The generated data set: readable by pycocotools, the same for the same seed, with masks of the visible parts."""

import hashlib

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmgrc.datasets import CLASSES, write_shapes
from mmgrc.datasets.hard_shapes import HardShapes


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


@pytest.fixture(scope='module')
def hard(tmp_path_factory):
    """A hard set, and of each image its pixels, the classes and the masks."""
    root = tmp_path_factory.mktemp('hard')
    write_shapes(root, images=60, val=5, size=(160, 128), seed=2, hard=True)
    coco = COCO(root / 'annotations' / 'instances_train.json')
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    images = []
    for image in coco.loadImgs(coco.getImgIds()):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image['id']))
        pixels = cv2.imread(str(root / 'train' / image['file_name']))
        masks = np.stack([coco.annToMask(a).astype(bool) for a in annotations])
        images.append((pixels, [a['category_id'] for a in annotations], masks))
    return images


def test_hard_images_are_those_of_their_seed(tmp_path):
    for name, images, seed in (('a', 2, 5), ('b', 3, 5), ('c', 2, 6)):
        write_shapes(tmp_path / name, images=images, val=1, size=(64, 48), seed=seed, hard=True)
    first, more, other = (digests(tmp_path / name) for name in 'abc')
    names = [name for name in first if name.endswith('.png')]
    assert all(first[name] == more[name] for name in names)
    assert all(first[name] != other[name] for name in names)
    write_shapes(tmp_path / 'easy', images=2, val=1, size=(64, 48), seed=5)
    assert all(first[name] != digests(tmp_path / 'easy')[name] for name in names)


def test_hard_masks_are_of_what_is_visible(hard):
    """Each has the two colours of a texture and nothing else: no bar, no other object."""
    cut = 0
    for pixels, _, masks in hard:
        assert masks.sum(axis=0).max() == 1
        for mask in masks:
            values = pixels[mask].astype(np.float32)
            criteria = (cv2.TERM_CRITERIA_MAX_ITER, 20, 0)
            compactness, _, _ = cv2.kmeans(values, 2, None, criteria, 3, cv2.KMEANS_PP_CENTERS)
            # The noise has a standard deviation of 8 in each of three channels.
            assert compactness / len(values) < 3 * 8.0**2 * 1.5
            contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            hull = np.zeros(mask.shape, np.uint8)
            cv2.fillConvexPoly(hull, cv2.convexHull(np.concatenate(contours)), 1)
            cut += mask.sum() < 0.85 * hull.sum()
    objects = sum(len(masks) for _, _, masks in hard)
    assert 0.1 * objects < cut < 0.6 * objects, 'some are occluded, most are not'


def test_hard_objects_are_small(hard):
    areas = np.array([mask.sum() for *_, masks in hard for mask in masks])
    # COCO's small objects.
    assert np.median(areas) < 32**2
    assert areas.min() >= 20


def test_colour_does_not_tell_hard_classes_apart(hard):
    colours = {1: [], 2: [], 3: []}
    for pixels, labels, masks in hard:
        for label, mask in zip(labels, masks, strict=True):
            colours[label].append(pixels[mask].mean(axis=0))
    means = [np.mean(values, axis=0) for values in colours.values()]
    errors = [np.std(values, axis=0) / np.sqrt(len(values)) for values in colours.values()]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.all(np.abs(means[i] - means[j]) < 4 * np.hypot(errors[i], errors[j]))


def test_hidden_rules_are_those_of_the_seed():
    first, again, other = HardShapes(3), HardShapes(3), HardShapes(4)
    assert first.textures == again.textures != other.textures
    used = [texture for textures in [*first.textures, first.foreign] for texture in textures]
    assert len(set(used)) == len(used), 'no texture has two meanings'
    for scenes in (first.scenes, again.scenes):
        assert np.allclose([scene.frequencies.sum() for scene in scenes], 1)
    assert all(np.array_equal(a.frequencies, b.frequencies) for a, b in zip(first.scenes, again.scenes, strict=True))
    assert len({scene.patches for scene in first.scenes}) == 4
