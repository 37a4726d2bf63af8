"""Individual images: how they are found, read and written, against MMDetection's own inference."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmgrc.inference import detect, detector, find_images, load_detector, select_classes
from mmgrc.runs.error import InputError
from tests.helpers.detectors import raise_in_third_step


@pytest.fixture(scope='module')
def config(trained):
    return Config.fromfile(trained / 'mask_rcnn_grc_pvt.py')


@pytest.fixture(scope='module')
def model(trained, config):
    return load_detector(config, str(trained / 'epoch_2.pth'), 'cpu')


def test_checkpoint_brings_classes_and_palette(model, config):
    meta = torch.load(model.cfg.work_dir + '/epoch_2.pth')['meta']['dataset_meta']
    assert model.dataset_meta['classes'] == meta['classes'] == config.metainfo.classes
    assert [tuple(c) for c in model.dataset_meta['palette']] == [tuple(c) for c in meta['palette']]


def test_a_checkpoint_without_names(model, trained, tmp_path, recwarn):
    """It gets the classes of the config, and not those of COCO."""
    content = torch.load(trained / 'epoch_2.pth', weights_only=False)
    torch.save({'state_dict': content['state_dict']}, tmp_path / 'weights.pth')
    config = Config.fromfile(trained / 'mask_rcnn_grc_pvt.py')
    found = load_detector(config, str(tmp_path / 'weights.pth'), 'cpu').dataset_meta
    assert tuple(found['classes']) == tuple(model.dataset_meta['classes'])
    assert not any('COCO classes' in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize('named', [True, False])
def test_data_sets_are_not_read(named, model, trained, tmp_path):
    """Detection needs no data set, though the config has a wrapped one whose files are elsewhere."""
    content = torch.load(trained / 'epoch_2.pth', weights_only=False)
    torch.save(
        {'state_dict': content['state_dict'], **({'meta': content['meta']} if named else {})}, tmp_path / 'w.pth'
    )
    config = Config.fromfile(trained / 'mask_rcnn_grc_pvt.py')
    one = dict(config.test_dataloader.dataset, data_root=str(tmp_path / 'elsewhere'))
    config.test_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [one, one]}
    loaded = load_detector(config, str(tmp_path / 'w.pth'), 'cpu')
    assert {key: [*loaded.dataset_meta[key]] for key in ('classes', 'palette')} == {
        key: [*model.dataset_meta[key]] for key in ('classes', 'palette')
    }
    image = np.random.default_rng(0).integers(256, size=(128, 160, 3), dtype=np.uint8)
    found = [detector.find_objects(each, image, 0.05, [0, 1, 2]) for each in (loaded, model)]
    assert [one.annotation for one in found[0]] == [one.annotation for one in found[1]] != []
    assert config.test_dataloader.dataset.type == 'ConcatDataset'


def test_a_config_without_a_test_set(trained):
    config = Config.fromfile(trained / 'mask_rcnn_grc_pvt.py')
    config.test_dataloader = None
    with pytest.raises(InputError, match=r'mask_rcnn_grc_pvt\.py has no test_dataloader\.dataset\.pipeline'):
        load_detector(config, str(trained / 'epoch_2.pth'), 'cpu')


def test_writes_what_mmdetections_inferencer_finds(model, trained, shapes, tmp_path):
    """`DetInferencer` takes config and checkpoint after `import mmgrc`, and gives the same detections as the file."""
    images = sorted((shapes / 'val').glob('*.png'))[:2]
    config, checkpoint = str(trained / 'mask_rcnn_grc_pvt.py'), str(trained / 'epoch_2.pth')
    inferencer = DetInferencer(model=config, weights=checkpoint, device='cpu', show_progress=False)
    expected = inferencer([str(path) for path in images], batch_size=2)['predictions']

    assert [problem for _, problem in detect(model, images, tmp_path, 0.0, [0, 1, 2])] == [None] * 2
    coco = COCO(str(tmp_path / 'detections.json'))
    assert [record['file_name'] for record in coco.imgs.values()] == [str(path) for path in images]
    assert [category['name'] for category in coco.cats.values()] == ['circle', 'square', 'triangle']
    for image_id, wanted in enumerate(expected, start=1):
        found = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        assert len(found) == len(wanted['scores']) > 0
        assert [a['category_id'] - 1 for a in found] == wanted['labels']
        np.testing.assert_allclose([a['score'] for a in found], wanted['scores'], atol=1e-4)
        boxes = np.array(wanted['bboxes'])
        boxes[:, 2:] -= boxes[:, :2]
        np.testing.assert_allclose([a['bbox'] for a in found], boxes, atol=0.02)
        for annotation, mask in zip(found, wanted['masks'], strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation), coco_mask.decode(mask))
    assert len(list((tmp_path / 'drawings').glob('*.jpg'))) == 2


def test_threshold_and_classes(model, shapes, tmp_path):
    images = [shapes / 'val' / '000001.png']
    list(detect(model, images, tmp_path, 0.0, [0, 1, 2]))
    everything = json.loads((tmp_path / 'detections.json').read_text())['annotations']
    # Between two scores, as those of the file are rounded.
    scores = sorted({a['score'] for a in everything})
    threshold = float(np.mean(scores[len(scores) // 2 - 1 : len(scores) // 2 + 1]))
    list(detect(model, images, tmp_path, threshold, select_classes(model, ['square', 'circle'])))
    kept = json.loads((tmp_path / 'detections.json').read_text())['annotations']
    strip = ('bbox', 'category_id', 'score')
    assert [[a[key] for key in strip] for a in kept] == [
        [a[key] for key in strip] for a in everything if a['score'] >= threshold and a['category_id'] in (1, 2)
    ]
    with pytest.raises(InputError, match=r"no class 'sqare'; did you mean one of these\? square"):
        select_classes(model, ['sqare'])


def test_bad_images_are_skipped(model, shapes, tmp_path):
    folder = tmp_path / 'images'
    (folder / 'inner').mkdir(parents=True)
    image = (shapes / 'val' / '000001.png').read_bytes()
    for name, content in {
        '1.png': image,
        '2.jpg': b'no image',
        '3.png': b'',
        '4.png': image[:200],
        'inner/1.PNG': image,
        'notes.txt': b'ignored',
    }.items():
        (folder / name).write_bytes(content)
    images = find_images(str(folder))
    assert [path.name for path in images] == ['1.png', '2.jpg', '3.png', '4.png', '1.PNG']
    problems = dict(detect(model, images, tmp_path / 'out', 0.0, [0, 1, 2]))
    assert [path.name for path, problem in problems.items() if problem] == ['2.jpg', '3.png', '4.png']
    assert '2.jpg is not an image' in problems[folder / '2.jpg']
    # Two images of the same name have separate drawings.
    assert sorted(path.name for path in (tmp_path / 'out' / 'drawings').iterdir()) == ['1.jpg', '1_2.jpg']
    assert [record['id'] for record in json.loads((tmp_path / 'out' / 'detections.json').read_text())['images']] == [
        1,
        2,
    ]


def test_whatever_fails_is_of_its_image(model, shapes, tmp_path, monkeypatch):
    """If an image fails in the pipeline, detector or drawing, it is named, and the others are processed."""
    image = cv2.imread(str(shapes / 'val' / '000001.png'))
    sizes = {'a.png': (64, 96), 'line.png': (1, 3000), 'm.png': (32, 48), 'n.png': (128, 192), 'z.png': (64, 96)}
    for name, (height, width) in sizes.items():
        cv2.imwrite(str(tmp_path / name), cv2.resize(image, (width, height)))
    step, draw = model.test_step, detector.draw_detections
    # Resizes a line to a height of 0 pixels.
    config = model.cfg.copy()
    config.test_dataloader.dataset.pipeline.insert(1, {'type': 'Resize', 'scale': (96, 64), 'keep_ratio': True})
    monkeypatch.setattr(model, 'cfg', config)

    def test_step(data):
        if data['data_samples'][0].ori_shape == sizes['m.png']:
            raise RuntimeError('CUDA out of memory.\nTried to allocate 20 GiB')
        return step(data)

    def draw_detections(image, *args):
        if image.shape[:2] == sizes['n.png']:
            raise MemoryError
        draw(image, *args)

    monkeypatch.setattr(model, 'test_step', test_step)
    monkeypatch.setattr(detector, 'draw_detections', draw_detections)
    problems = dict(detect(model, find_images(f'{tmp_path}/*.png'), tmp_path / 'out', 0.0, [0, 1, 2]))
    assert [path.name for path, problem in problems.items() if problem] == ['line.png', 'm.png', 'n.png']
    assert re.search(
        r'line\.png: cv2\.error: .*Assertion failed.* \(\w+\.py, line \d+\)', problems[tmp_path / 'line.png']
    )
    assert 'RuntimeError: CUDA out of memory. Tried to allocate 20 GiB (test_detector' in problems[tmp_path / 'm.png']
    assert 'MemoryError:' in problems[tmp_path / 'n.png']
    assert 'its detections are stored' in problems[tmp_path / 'n.png']
    assert sorted(path.name for path in (tmp_path / 'out' / 'drawings').iterdir()) == ['a.jpg', 'z.jpg']
    coco = COCO(str(tmp_path / 'out' / 'detections.json'))
    assert [Path(record['file_name']).name for record in coco.imgs.values()] == ['a.png', 'n.png', 'z.png']
    assert len(coco.anns) == len(coco.dataset['annotations'])
    assert len(coco.getAnnIds(imgIds=[1])) == len(coco.getAnnIds(imgIds=[3])) > 0


@pytest.mark.parametrize('error', [KeyboardInterrupt, SystemExit])
def test_what_is_done_is_written_when_interrupted(model, shapes, tmp_path, monkeypatch, error):
    images = find_images(str(shapes / 'val'))
    raise_in_third_step(monkeypatch, model, error)
    with pytest.raises(error):
        list(detect(model, images, tmp_path, 0.0, [0, 1, 2]))
    content = json.loads((tmp_path / 'detections.json').read_text())
    assert [record['file_name'] for record in content['images']] == [str(path) for path in images[:2]]
    # Also if the caller leaves the loop.
    for _ in (results := detect(model, images[:2], tmp_path, 0.0, [0])):
        break
    results.close()
    assert len(json.loads((tmp_path / 'detections.json').read_text())['images']) == 1
    assert [path.name for path in tmp_path.iterdir()].count('detections.json') == 1
    assert not list(tmp_path.glob('.*'))


@pytest.mark.parametrize('palette', [((0, 0, 255), (9, 9, 9), (1, 2, 3)), [(0, 0, 255)], 'coco', 'random'])
def test_palettes(model, shapes, tmp_path, monkeypatch, palette):
    monkeypatch.setitem(model.dataset_meta, 'palette', palette)
    results = detect(model, [shapes / 'val' / '000001.png'], tmp_path, 0.0, [0, 1, 2])
    assert [problem for _, problem in results] == [None]


def test_images_of_a_folder(tmp_path):
    """Linked folders are followed once, hidden files and the drawings of an earlier call are left out."""
    folder, linked = tmp_path / 'images', tmp_path / 'linked'
    for path in (folder / 'a.png', folder / '._a.png', folder / '.hidden' / 'b.png', linked / 'c.jpg'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')
    (folder / 'link').symlink_to(linked)
    (linked / 'loop').symlink_to(folder)
    out_dir = folder / 'detections'
    for name in ('drawings/a.jpg', 'other.jpg'):
        (out_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (out_dir / name).write_bytes(b'')

    def found(source, out_dir=None):
        return [str(path.relative_to(folder)) for path in find_images(str(source), out_dir)]

    assert found(folder, out_dir) == ['a.png', 'detections/other.jpg', 'link/c.jpg']
    assert found(f'{folder}/*/*.jpg', out_dir) == ['detections/other.jpg', 'link/c.jpg']
    assert found(folder) == ['a.png', 'detections/drawings/a.jpg', 'detections/other.jpg', 'link/c.jpg']
    # They may be the images that are meant, but are not replaced.
    for source in (out_dir / 'drawings', out_dir / 'drawings' / 'a.jpg'):
        with pytest.raises(InputError, match=r'drawings/a\.jpg is one of the images, and a drawing would replace it'):
            find_images(str(source), out_dir)
    (out_dir / 'drawings' / 'a.jpg').rename(out_dir / 'drawings' / 'a.png')
    assert found(out_dir / 'drawings', out_dir) == ['detections/drawings/a.png']


def test_patterns(tmp_path):
    for name in ('a1.jpg', 'a2.jpg', 'b1.jpg'):
        (tmp_path / name).write_bytes(b'')
    assert [path.name for path in find_images(f'{tmp_path}/a*.jpg')] == ['a1.jpg', 'a2.jpg']
    with pytest.raises(InputError, match='no match of a pattern'):
        find_images(f'{tmp_path}/c*.jpg')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='has no images'):
        find_images(str(tmp_path / 'empty'))


def test_unknown_device(config, trained):
    with pytest.raises(InputError, match="the device 'cuda:77' cannot be used"):
        load_detector(config, str(trained / 'epoch_2.pth'), 'cuda:77')
