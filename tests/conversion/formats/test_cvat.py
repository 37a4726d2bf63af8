"""CVAT: shapes, subsets, and what may be wrong."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mmgrc.conversion.folder import Folder
from mmgrc.conversion.formats import detect_format
from mmgrc.conversion.formats.cvat import _mask
from mmgrc.runs.error import InputError
from tests.helpers.foreign_formats import CLASSES, Scene, cvat_runs, cvat_xml, write_image
from tests.helpers.readers import read_source

pytest.importorskip('defusedxml', reason='to read XML, defusedxml is needed')


def put(root, *shapes, more=''):
    scene = Scene('1.png', 40, 30, [])
    write_image(root / 'images' / scene.name, scene)
    (root / 'annotations.xml').write_text(
        cvat_xml([scene], lambda _: shapes).replace('height="30"', f'height="30" {more}')
    )


def test_shapes(tmp_path):
    put(
        tmp_path,
        '<box label="cat" xtl="10" ytl="5" xbr="30" ybr="15" rotation="30.0"/>',
        '<ellipse label="cat" cx="20" cy="15" rx="10" ry="4" rotation="20"/>',
        '<polygon label="żaba" points="1,1;9,1;9.5,9" group_id="4"/>',
        '<polyline label="cat" points="1,1;9,1"/>',
        '<points label="cat" points="1,1"/>',
        '<tag label="cat"/>',
        '<tag label="cat"/>',
    )
    found, folder = read_source('cvat', tmp_path)
    assert detect_format(folder) == 'cvat'
    assert found.classes == list(CLASSES)
    box, ellipse, polygon = found.images[0].shapes
    other = cv2.boxPoints(((20, 10), (20, 10), 30))
    assert all(np.abs(other - corner).sum(axis=1).min() < 1e-3 for corner in box.corners)
    (x, y), axes, degrees = cv2.fitEllipse(ellipse.polygon.astype(np.float32))
    np.testing.assert_allclose([x, y, *sorted(axes)], [20, 15, 8, 20], atol=0.05)
    # OpenCV gives the angle of the other axis.
    assert degrees == pytest.approx(110, abs=0.5)
    assert polygon.polygon.tolist() == [[1, 1], [9, 1], [9.5, 9]]
    assert polygon.group == 4
    assert {reason: len(where) for reason, where in folder.skipped.items()} == {
        'shapes of type polyline': 1,
        'shapes of type points': 1,
        'shapes of type tag': 2,
    }


def test_subsets(tmp_path):
    """A project's export has its images in folders of the subsets, which may have the same names."""
    for subset in ('Train', 'Validation'):
        write_image(tmp_path / 'images' / subset / 'a.png', Scene('a.png', 40, 30, []))
    images = ''.join(
        f'<image id="{i}" name="a.png" subset="{subset}" width="40" height="30"/>'
        for i, subset in enumerate(('Train', 'Validation'))
    )
    labels = '<meta><project><labels><label><name>x</name></label></labels></project></meta>'
    (tmp_path / 'annotations.xml').write_text(f'<annotations>{labels}{images}</annotations>')
    found, _ = read_source('cvat', tmp_path)
    assert found.classes == ['x']
    assert {str(image.path.relative_to(tmp_path / 'images')): image.split for image in found.images} == {
        'Train/a.png': 'train',
        'Validation/a.png': 'val',
    }


@given(seed=st.integers(0, 2**31), share=st.floats(0, 1), height=st.integers(1, 12), width=st.integers(1, 12))
@settings(deadline=None)
def test_any_mask(seed, share, height, width):
    mask = np.random.default_rng(seed).random((height, width)) < share
    whole = np.zeros((20, 25), bool)
    whole[3 : 3 + height, 5 : 5 + width] = mask
    found = _mask(cvat_runs(mask), 5, 3, width, height, (25, 20))
    np.testing.assert_array_equal(coco_mask.decode(found), whole)


@pytest.mark.parametrize(
    ('bad', 'words'),
    [
        ('<box label="cat" xtl="10" ytl="5" xbr="30"/>', 'ybr is None'),
        ('<box label="cat" xtl="x" ytl="5" xbr="30" ybr="3"/>', 'could not convert'),
        ('<box xtl="1" ytl="5" xbr="30" ybr="9"/>', 'it has no label'),
        ('<polygon label="cat" points="1,1;9"/>', ''),
        ('<polygon label="cat"/>', ''),
        ('<polygon label="cat" points="1,1;nan,2;3,3"/>', 'its coordinates are .*with nan'),
        ('<polygon label="cat" points="1,1,2;3,3,4"/>', 'its points are'),
        ('<ellipse label="cat" cx="5" cy="5" rx="1e300" ry="2"/>', r'its coordinates are .*with 1e\+300'),
        ('<box label="cat" xtl="10" ytl="5" xbr="401" ybr="15"/>', 'at most 10 times the size of the image'),
        ('<box label="cat" xtl="10" ytl="5" xbr="30" ybr="15" rotation="inf"/>', 'rotation is inf'),
        ('<polygon label="cat" points="1,1;9,1;9,9" group_id="first"/>', 'invalid literal'),
        (
            '<mask label="cat" rle="3, 4" left="0" top="0" width="3" height="3"/>',
            'its counts have the sum 7, its box 9',
        ),
        ('<mask label="cat" rle="9, -3, 3" left="0" top="0" width="3" height="3"/>', 'its counts'),
        ('<mask label="cat" rle="3, 6" left="38" top="0" width="3" height="3"/>', 'it is outside of its image'),
    ],
)
def test_broken_shapes(bad, words, tmp_path):
    put(tmp_path, '<box label="cat" xtl="10" ytl="5" xbr="30" ybr="15"/>', bad)
    with pytest.raises(InputError, match=rf'annotations\.xml: shape 2 \(\w+\) of 1\.png cannot be read: .*{words}'):
        read_source('cvat', tmp_path)


def test_a_video(tmp_path):
    (tmp_path / 'annotations.xml').write_text('<annotations><track id="0" label="cat"/></annotations>')
    with pytest.raises(InputError, match=r'is "CVAT for video 1.1". Export the task as "CVAT for images 1.1"'):
        read_source('cvat', tmp_path)


def test_missing_images(tmp_path):
    put(tmp_path)
    (tmp_path / 'images' / '1.png').unlink()
    with pytest.raises(InputError, match=r'images missing in .* \(1\): 1\.png \(in annotations\.xml\)'):
        read_source('cvat', tmp_path / 'annotations.xml')


def test_not_xml(tmp_path):
    put(tmp_path)
    path = tmp_path / 'annotations.xml'
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match=r'annotations\.xml: it is not XML'):
        read_source('cvat', tmp_path)
    assert detect_format(Folder(tmp_path)) == 'cvat'
