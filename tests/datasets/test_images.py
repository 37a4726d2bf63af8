"""Images of many formats are read as MMDetection's own loader reads them."""

import io

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image, UnidentifiedImageError

from mmgrc.datasets.images import header_size, image_size, is_truncated_jpeg, read_image


def picture(height=12, width=17):
    """A smooth picture without rotational symmetry."""
    rows, cols = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, cols * 255 // width, (rows + cols) * 4], axis=2).astype(np.uint8)


def write(path, kind):
    """Write ``picture()`` as one kind of image."""
    image = Image.fromarray(picture())
    wide = picture()[..., ::-1].astype(np.uint16) * 257
    if kind in ('L', 'LA', 'RGBA', '1', 'CMYK'):
        image.convert(kind).save(path)
    elif kind == 'palette':
        image.convert('P').save(path)
    elif kind == 'palette with transparency':
        image.convert('P').save(path, transparency=3)
    elif kind == 'grey of 16 bits':
        cv2.imwrite(str(path), wide[..., 0])
    elif kind == 'colour of 16 bits':
        cv2.imwrite(str(path), wide)
    elif kind == 'transparent, of 16 bits':
        cv2.imwrite(str(path), np.dstack([wide, wide[..., :1]]))
    else:
        image.save(path)


@pytest.mark.parametrize(
    ('kind', 'suffix'),
    [
        *((kind, 'png') for kind in ('1', 'L', 'LA', 'RGB', 'RGBA', 'palette', 'palette with transparency')),
        *((kind, 'png') for kind in ('grey of 16 bits', 'colour of 16 bits', 'transparent, of 16 bits')),
        *((kind, 'tif') for kind in ('L', 'RGB', 'RGBA', 'grey of 16 bits', 'colour of 16 bits')),
        *((kind, 'jpg') for kind in ('L', 'RGB', 'CMYK')),
        *((kind, 'gif') for kind in ('L', 'palette')),
        *(('RGB', suffix) for suffix in ('webp', 'bmp', 'ppm')),
    ],
)
def test_reads_what_the_loader_reads(kind, suffix, tmp_path):
    path = tmp_path / f'image.{suffix}'
    write(path, kind)
    if not cv2.haveImageReader(str(path)):
        pytest.skip(f'this OpenCV ({cv2.__version__}) reads no {suffix}')
    image = read_image(path)
    np.testing.assert_array_equal(image, LoadImageFromFile().transform({'img_path': str(path)})['img'])
    assert image.shape == (12, 17, 3)
    assert image_size(path) == header_size(path) == (12, 17)
    assert image.dtype == np.uint8
    if kind not in ('1', 'palette with transparency', 'CMYK'):
        # Not inverted, and no channels swapped.
        expected = picture()[..., ::-1]
        if kind in ('L', 'LA'):
            expected = cv2.cvtColor(expected, cv2.COLOR_BGR2GRAY)[..., None].repeat(3, axis=2)
        elif kind == 'grey of 16 bits':
            expected = expected[..., :1].repeat(3, axis=2)
        assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > 0.9


@pytest.mark.parametrize('orientation', range(1, 9))
def test_is_turned_as_the_camera_says(orientation, tmp_path):
    path = tmp_path / 'image.jpg'
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(24, 40)).save(path, exif=exif.tobytes(), quality=100)
    image = read_image(path)
    np.testing.assert_array_equal(image, LoadImageFromFile().transform({'img_path': str(path)})['img'])
    assert image.shape[:2] == image_size(path) == header_size(path) == ((24, 40) if orientation < 5 else (40, 24))


def test_says_what_is_wrong(tmp_path, monkeypatch):
    whole = tmp_path / 'whole.png'
    write(whole, 'RGB')
    contents = {'empty.png': b'', 'text.jpg': b'no image', 'cut.png': whole.read_bytes()[:40]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        for read in (read_image, image_size):
            with pytest.raises(ValueError, match=rf'{name} is not an image, or is truncated'):
                read(tmp_path / name)
    with pytest.raises(ValueError, match=r'nothing\.png cannot be read: No such file'):
        read_image(tmp_path / 'nothing.png')
    with pytest.raises(ValueError, match='cannot be read: Is a directory'):
        read_image(tmp_path)

    def fail(error):
        def decode(*args, **kwargs):
            raise error

        monkeypatch.setattr('mmcv.imfrombytes', decode)

    fail(MemoryError())
    with pytest.raises(ValueError, match=r'whole\.png does not fit into memory'):
        read_image(whole)


def test_more_pixels_than_opencv_reads(tmp_path):
    """The size in the header of the file is enough for OpenCV to refuse it."""
    path = tmp_path / 'mosaic.bmp'
    write(path, 'RGB')
    content = bytearray(path.read_bytes())
    content[18:26] = np.array([40000, 40000], '<i4').tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'mosaic\.bmp cannot be decoded: it has more pixels than OpenCV reads'):
        read_image(path)


def jpeg(size=(120, 160), **options):
    """A JPEG file with a thumbnail in its header, which has an end marker of its own."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8))
    thumbnail, file = io.BytesIO(), io.BytesIO()
    image.resize((16, 12)).save(thumbnail, 'JPEG')
    image.save(file, 'JPEG', comment=thumbnail.getvalue(), **options)
    return file.getvalue()


@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'restart_marker_blocks': 3}])
@pytest.mark.parametrize('tail', ['nothing', 'zeros', 'junk', 'another'])
def test_a_jpeg_is_truncated_if_pillow_cannot_read_it_to_its_end(options, tail, tmp_path):
    content = jpeg(**options)
    end = {'nothing': b'', 'zeros': bytes(100000), 'junk': b'junk' * 50000, 'another': jpeg((8, 8))}[tail]
    path = tmp_path / 'image.jpg'
    path.write_bytes(content + end)
    assert not is_truncated_jpeg(path)
    # What another image appends has an end, and the first one then has wrong pixels.
    for cut in () if tail == 'another' else (1, 2, 3, 50, len(content) // 2, len(content) - 900):
        path.write_bytes(content[:-cut] + end)
        try:
            with Image.open(path) as image:
                image.load()
            complete = True
        except (OSError, UnidentifiedImageError):
            complete = False
        assert is_truncated_jpeg(path) is not complete
        if cut >= 50 and not end:
            with pytest.raises(ValueError, match=r'image\.jpg is truncated: the end of the image is missing'):
                image_size(path)


def test_what_is_no_jpeg_is_no_truncated_one(tmp_path):
    """Other checks name these."""
    write(tmp_path / 'image.png', 'RGB')
    (tmp_path / 'cut.jpg').write_bytes((tmp_path / 'image.png').read_bytes()[:40])
    (tmp_path / 'empty.jpg').touch()
    for name in ('image.png', 'cut.jpg', 'empty.jpg', 'nothing.jpg', '.'):
        assert not is_truncated_jpeg(tmp_path / name)
    (tmp_path / 'start.jpg').write_bytes(b'\xff\xd8')
    assert is_truncated_jpeg(str(tmp_path / 'start.jpg'))
