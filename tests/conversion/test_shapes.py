"""Geometry against OpenCV and pycocotools."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mmgrc.conversion.shapes import Shape, coco_annotation, coordinates, ellipse, encode, group_shapes, rectangle
from mmgrc.runs.preflight.coco_file import why_left_out

WIDTH, HEIGHT = 60, 44


def decoded(annotation):
    segmentation = annotation['segmentation']
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH))
    return coco_mask.decode(segmentation).astype(bool)


@pytest.mark.parametrize('radius', [1e4, 1e9, 1e15, 1e300])
def test_an_ellipse_larger_than_any_image_has_few_points(radius):
    points = ellipse(0, 0, radius, 1)
    assert len(points) <= 1000
    np.testing.assert_allclose(points.max(axis=0), [radius, 1], rtol=1e-4)


@pytest.mark.parametrize(
    'values', [[math.nan, 1], [-math.inf], [601, 0], [0, -601], [10**400], [[1, 2], [3]], None, 'far', [{}], {'x': 1}]
)
def test_coordinates_far_outside(values):
    with pytest.raises(ValueError, match=r'its coordinates are .* must be numbers, at most 10 times the size'):
        coordinates(values, (WIDTH, HEIGHT))


def test_coordinates_are_numbers_or_text():
    assert coordinates([['1', ' 2.5\n'], [-600, 600]], (WIDTH, HEIGHT)).tolist() == [[1, 2.5], [-600, 600]]
    assert coordinates([], (WIDTH, HEIGHT)).size == 0


@given(degrees=st.floats(-360, 360), size=st.tuples(st.floats(1, 50), st.floats(1, 50)))
@settings(deadline=None)
def test_rotated_rectangle_is_that_of_opencv(degrees, size):
    corners = rectangle(30 - size[0] / 2, 20 - size[1] / 2, 30 + size[0] / 2, 20 + size[1] / 2, degrees)
    other = cv2.boxPoints(((30, 20), size, degrees))
    # OpenCV starts at another corner.
    for corner in corners:
        assert np.abs(other - corner).sum(axis=1).min() < 1e-3


def test_rectangle_rotates_clockwise_around_a_pivot():
    """A quarter around the top left corner: the top side points down."""
    corners = rectangle(10, 10, 30, 15, 90, pivot=(10, 10))
    np.testing.assert_allclose(corners, [[10, 10], [10, 30], [5, 30], [5, 10]], atol=1e-9)


@pytest.mark.parametrize(('radii', 'degrees'), [((20, 8), 0), ((20, 8), 30), ((5, 15), -60), ((12, 12), 0)])
def test_ellipse_is_that_of_opencv(radii, degrees):
    scale = 8
    mask = np.zeros((HEIGHT * scale, WIDTH * scale), np.uint8)
    cv2.ellipse(mask, (30 * scale, 20 * scale), tuple(scale * r for r in radii), degrees, 0, 360, 1, -1)
    points = (ellipse(30, 20, *radii, degrees) * scale).round().astype(np.int32)
    ours = np.zeros_like(mask)
    cv2.fillPoly(ours, [points], 1)
    assert (ours & mask).sum() / (ours | mask).sum() > 0.97


points = st.lists(st.tuples(st.floats(-40, 100), st.floats(-40, 90)), min_size=1, max_size=9)


@given(points=points)
@settings(deadline=None, max_examples=200)
def test_any_polygon_is_cut_to_the_image_or_left_out(points):
    polygon = np.array(points)
    annotation = coco_annotation([Shape('a', polygon=polygon)], WIDTH, HEIGHT)
    # Drawn on a larger canvas, and cut.
    canvas = np.zeros((HEIGHT + 200, WIDTH + 200), np.uint8)
    shifted = [(polygon + 100).ravel().tolist()]
    if len(points) >= 3:
        canvas = coco_mask.merge(coco_mask.frPyObjects(shifted, *canvas.shape))
        canvas = coco_mask.decode(canvas)
    # pycocotools rounds at an outline, in a way that depends on the offset. So pixels on the outline may differ.
    outline = np.zeros(canvas.shape, np.uint8)
    cv2.polylines(outline, [(polygon + 100).round().astype(np.int32)], True, 1, thickness=5)
    inside, outline = (image[100 : 100 + HEIGHT, 100 : 100 + WIDTH].astype(bool) for image in (canvas, outline))
    if isinstance(annotation, str):
        assert not (inside & ~outline).any()
        assert annotation in ('a polygon with fewer than 3 points', 'outside of its image')
        return
    mask = decoded(annotation)
    border = np.zeros_like(mask)
    border[[0, -1]], border[:, [0, -1]] = True, True
    assert not ((mask != inside) & ~outline & ~border).any()
    x, y, width, height = annotation['bbox']
    assert x >= 0
    assert y >= 0
    assert x + width <= WIDTH + 0.01
    assert y + height <= HEIGHT + 0.01
    assert annotation['area'] == mask.sum()


@given(seed=st.integers(0, 2**31), share=st.floats(0.01, 0.99))
@settings(deadline=None)
def test_masks_keep_each_pixel(seed, share):
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < share
    mask[3, 4] = True
    annotation = coco_annotation([Shape('a', mask=encode(mask))], WIDTH, HEIGHT)
    np.testing.assert_array_equal(decoded(annotation), mask)
    rows, columns = np.nonzero(mask)
    low, high = (columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)
    assert annotation['bbox'] == [*low, high[0] - low[0], high[1] - low[1]]


def test_a_box_that_leaves_the_image_is_cut():
    annotation = coco_annotation([Shape('a', corners=rectangle(-5, 10, 20, 100))], WIDTH, HEIGHT)
    assert annotation == {'bbox': [0, 10, 20, 34], 'area': 680, 'iscrowd': 0}
    assert coco_annotation([Shape('a', corners=rectangle(70, 0, 80, 10))], WIDTH, HEIGHT) == 'outside of its image'


def test_a_box_as_mask():
    shape = Shape('a', corners=rectangle(10, 10, 30, 20), crowd=True)
    annotation = coco_annotation([shape], WIDTH, HEIGHT, box_as_mask=True)
    assert annotation['segmentation'] == [[10, 10, 30, 10, 30, 20, 10, 20]]
    assert annotation['area'] == 200
    assert annotation['iscrowd'] == 1


def test_parts_of_a_group_are_one_object():
    first, second = rectangle(2, 2, 10, 10), rectangle(20, 20, 30, 30)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[35:40, 40:50] = True
    shapes = [
        Shape('a', polygon=first, group=1),
        Shape('b', polygon=first, group=1),
        Shape('a', polygon=second, group=1),
        Shape('a', polygon=second),
        Shape('a', mask=encode(mask), group=1),
        # Boxes are objects by themselves.
        Shape('a', corners=first, group=1),
    ]
    objects = group_shapes(shapes)
    assert [len(parts) for parts in objects] == [3, 1, 1, 1]
    annotation = coco_annotation(objects[0], WIDTH, HEIGHT)
    assert annotation['area'] == 64 + 100 + 50
    assert annotation['bbox'] == [2, 2, 48, 38]
    two = coco_annotation([shapes[0], shapes[2]], WIDTH, HEIGHT)
    assert len(two['segmentation']) == 2
    assert two['area'] == 164


def test_a_point_less_than_a_pixel_outside_moves_to_the_border():
    polygon = np.array([[-0.4, 5], [20, 5], [20, HEIGHT + 0.7]])
    annotation = coco_annotation([Shape('a', polygon=polygon)], WIDTH, HEIGHT)
    assert annotation['segmentation'] == [[0, 5, 20, 5, 20, HEIGHT]]
    # Farther points would change the outline: the polygon is cut, as run lengths.
    far = coco_annotation([Shape('a', polygon=polygon * 2)], WIDTH, HEIGHT)
    assert isinstance(far['segmentation'], dict)


def test_what_is_less_than_a_pixel_is_what_training_leaves_out():
    annotation = coco_annotation([Shape('a', corners=rectangle(10, 10, 10.4, 20))], WIDTH, HEIGHT)
    image = {'width': WIDTH, 'height': HEIGHT}
    assert 'less than a pixel' in why_left_out({**annotation, 'category_id': 1}, image, {1: {}}, True)
