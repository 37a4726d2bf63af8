"""Videos: each frame gets the detections of the same image, and the drawn video has the frames of the first one."""

import json
import os
import re
import shutil
import struct
import weakref

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from pycocotools.coco import COCO

from mmgrc.inference import (
    detect,
    detect_video,
    drawn_video,
    find_images,
    find_objects,
    load_detector,
    open_video,
    video,
)
from mmgrc.runs.error import InputError
from tests.helpers.detectors import raise_in_third_step
from tests.helpers.videos import read_video, write_video

LABELS = [0, 1, 2]


@pytest.fixture(scope='module')
def model(trained):
    config = Config.fromfile(trained / 'mask_rcnn_grc_pvt.py')
    return load_detector(config, str(trained / 'epoch_2.pth'), 'cpu')


@pytest.fixture(scope='module')
def images(shapes):
    """Four images (64, 96)."""
    return [cv2.imread(str(path)) for path in find_images(str(shapes / 'val'))]


@pytest.fixture(scope='module')
def thr(model, images):
    """A threshold that leaves a few detections on each image."""
    return min(find_objects(model, image, 0.0, LABELS)[2].annotation['score'] for image in images)


def process(model, source, folder, score_thr, suffix=None):
    """The problems of each frame, the detections, and the drawn video."""
    source = open_video(str(source))
    out = drawn_video(source, folder, suffix)
    problems = [problem for _, problem in detect_video(model, source, out, score_thr, LABELS)]
    return problems, COCO(str(folder / 'detections.json')), out


@pytest.mark.parametrize(('codec', 'name'), [('FFV1', 'in.avi'), ('PNG ', 'in.MOV')])
def test_each_frame_has_the_detections_of_its_image(model, shapes, images, thr, tmp_path, codec, name):
    paths = find_images(str(shapes / 'val'))
    assert [problem for _, problem in detect(model, paths, tmp_path / 'images', thr, LABELS)] == [None] * 4
    wanted = json.loads((tmp_path / 'images' / 'detections.json').read_text())
    write_video(tmp_path / name, images, 30000 / 1001, codec)
    problems, coco, _ = process(model, tmp_path / name, tmp_path / 'out', thr)
    assert problems == [None] * 4
    found = coco.dataset
    assert len(found['annotations']) > 4
    assert found['annotations'] == wanted['annotations']
    assert found['categories'] == wanted['categories']
    for number, (frame, image) in enumerate(zip(found['images'], wanted['images'], strict=True)):
        assert frame == {**image, 'file_name': str(tmp_path / name), 'video_id': 1, 'frame_id': number}
    (about,) = found['videos']
    assert about['fps'] == pytest.approx(30000 / 1001, abs=1e-3)
    assert (about['id'], about['width'], about['height']) == (1, 96, 64)


@pytest.mark.parametrize('suffix', video.CODECS)
def test_the_drawn_video_has_count_rate_and_size(model, images, thr, tmp_path, suffix):
    write_video(tmp_path / 'in.avi', images, 12.5)
    problems, coco, out = process(model, tmp_path / 'in.avi', tmp_path / 'out', thr, suffix)
    assert problems == [None] * 4
    assert {annotation['image_id'] for annotation in coco.anns.values()} == {1, 2, 3, 4}
    assert out == tmp_path / 'out' / 'drawings' / f'in{suffix}'
    frames, fps = read_video(out)
    assert len(frames) == 4
    assert fps == 12.5
    assert {frame.shape for frame in frames} == {(64, 96, 3)}
    for frame, image in zip(frames, images, strict=True):
        assert np.abs(frame - image.astype(int)).max() > 60


def test_frames_without_detections_are_as_they_were(model, images, tmp_path):
    write_video(tmp_path / 'in.avi', images, 25)
    _, coco, out = process(model, tmp_path / 'in.avi', tmp_path / 'out', 1.0)
    assert coco.anns == {}
    assert len(coco.imgs) == 4
    for frame, image in zip(read_video(out)[0], images, strict=True):
        assert np.abs(frame - image.astype(int)).mean() < 8


def test_odd_sizes_lose_a_line(model, images, thr, tmp_path):
    """OpenCV writes even sizes only."""
    write_video(tmp_path / 'in.avi', [cv2.resize(image, (98, 66)) for image in images], 25)
    odd = open_video(str(tmp_path / 'in.avi'))
    odd = video.Video(odd.path, odd.fps, (97, 65), odd.frames)
    out = drawn_video(odd, tmp_path / 'out')
    list(detect_video(model, odd, out, thr, LABELS))
    assert {frame.shape for frame in read_video(out)[0]} == {(64, 96, 3)}


def test_frames_are_rotated_as_the_file_says(model, images, thr, tmp_path):
    write_video(tmp_path / 'in.mp4', images, 25, 'mp4v')
    content = (tmp_path / 'in.mp4').read_bytes()
    # The matrix in the header of the track, here a quarter of a turn to the right.
    place = content.index(b'tkhd') + 44
    matrix = struct.pack('>9i', 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    (tmp_path / 'turned.mp4').write_bytes(content[:place] + matrix + content[place + len(matrix) :])
    assert open_video(str(tmp_path / 'turned.mp4')).size == (64, 96)
    _, coco, out = process(model, tmp_path / 'turned.mp4', tmp_path / 'out', 1.0)
    assert {(record['height'], record['width']) for record in coco.imgs.values()} == {(96, 64)}
    for frame, image in zip(read_video(out)[0], images, strict=True):
        assert np.abs(frame - np.rot90(image, -1).astype(int)).mean() < 8


def test_a_truncated_video(model, images, thr, tmp_path):
    whole, cut = tmp_path / 'whole.avi', tmp_path / 'cut.avi'
    write_video(whole, images * 3, 5)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    source = open_video(str(cut))
    assert source.frames == 12
    out = drawn_video(source, tmp_path / 'out')
    with pytest.raises(InputError, match=r'cut\.avi: reading ended after \d+ of 12 frames') as raised:
        list(detect_video(model, source, out, thr, LABELS))
    count = int(re.search(r'after (\d+) of', str(raised.value))[1])
    assert 3 < count < 9
    assert len(json.loads((tmp_path / 'out' / 'detections.json').read_text())['images']) == count
    assert len(read_video(out)[0]) == count


def test_an_estimated_count_is_no_truncation(images, tmp_path):
    """Where the announced number of frames is an estimate, the time of the last frame decides."""
    write_video(tmp_path / 'in.avi', images * 5, 25)
    source = open_video(str(tmp_path / 'in.avi'))
    capture = video._Capture(source.path)
    while capture.read() is not None:
        pass
    capture.close()
    for frames, fps, early in ((20, 25, False), (40, 25, True), (None, 25, False), (800, 1000, False)):
        assert capture.ended_early(20, video.Video(source.path, fps, source.size, frames)) is early


def test_bad_videos(images, tmp_path):
    write_video(tmp_path / 'whole.mp4', images, 25, 'mp4v')
    (tmp_path / 'cut.mp4').write_bytes((tmp_path / 'whole.mp4').read_bytes()[:200])
    (tmp_path / 'text.mp4').write_text('no video')
    (tmp_path / 'empty.avi').touch()
    for name in ('cut.mp4', 'text.mp4', 'empty.avi'):
        with pytest.raises(InputError, match=rf'{name} is not a video, or is truncated'):
            open_video(str(tmp_path / name))
    write_video(tmp_path / 'none.avi', [], 25, size=(96, 64))
    with pytest.raises(InputError, match=r'none\.avi has no frame that can be read'):
        open_video(str(tmp_path / 'none.avi'))


def test_bad_outputs(images, tmp_path):
    write_video(tmp_path / 'in.mkv', images, 25)
    shutil.copy(tmp_path / 'in.mkv', tmp_path / 'in.webm')
    with pytest.raises(InputError, match=r'\.webm videos cannot be written: choose with --video-suffix one of \.mp4'):
        drawn_video(open_video(str(tmp_path / 'in.webm')), tmp_path / 'out')
    source = open_video(str(tmp_path / 'in.mkv'))
    # More than MPEG-4 has.
    with pytest.raises(InputError, match=r'96 x 64 pixels and 90000 frames/s cannot be written'):
        drawn_video(video.Video(source.path, 90000, source.size, 4), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    for name in ('drawings/in.mkv', 'detections.json'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('kept')
        with pytest.raises(InputError, match=rf'{name} exists already: remove it, or choose another folder'):
            drawn_video(source, tmp_path)
        (tmp_path / name).unlink()


def test_videos_among_images(shapes, images, tmp_path):
    shutil.copy(shapes / 'val' / '000001.png', tmp_path)
    write_video(tmp_path / 'clip.avi', images, 25)
    for source in (tmp_path, tmp_path / '*'):
        with pytest.raises(InputError, match=r'has videos \(.*clip\.avi\): give each video in a command of its own'):
            find_images(str(source))
    assert [path.name for path in find_images(f'{tmp_path}/*.png')] == ['000001.png']


def test_whatever_fails_is_of_its_frame(model, images, thr, tmp_path, monkeypatch):
    write_video(tmp_path / 'in.avi', images, 25)
    step, paint = model.test_step, video.paint_detections
    steps, drawings = iter(range(10)), iter(range(10))

    def test_step(data):
        if next(steps) == 1:
            raise RuntimeError('CUDA out of memory.\nTried to allocate 20 GiB')
        return step(data)

    def paint_detections(*args):
        if next(drawings) == 1:
            raise MemoryError
        return paint(*args)

    monkeypatch.setattr(model, 'test_step', test_step)
    monkeypatch.setattr(video, 'paint_detections', paint_detections)
    problems, coco, out = process(model, tmp_path / 'in.avi', tmp_path / 'out', thr)
    assert [bool(problem) for problem in problems] == [False, True, True, False]
    assert 'in.avi, frame 1: RuntimeError: CUDA out of memory. Tried to allocate 20 GiB (test_video' in problems[1]
    assert re.search(r'frame 2: MemoryError: .*its detections are stored', problems[2])
    assert [record['frame_id'] for record in coco.imgs.values()] == [0, 2, 3]
    assert len(read_video(out)[0]) == 4


@pytest.mark.parametrize('error', [KeyboardInterrupt, SystemExit])
def test_what_is_done_is_written_when_interrupted(model, images, thr, tmp_path, monkeypatch, error):
    write_video(tmp_path / 'in.mp4', images, 25, 'mp4v')
    source = open_video(str(tmp_path / 'in.mp4'))
    raise_in_third_step(monkeypatch, model, error)
    with pytest.raises(error):
        list(detect_video(model, source, out := drawn_video(source, tmp_path / 'out'), thr, LABELS))
    assert len(json.loads((tmp_path / 'out' / 'detections.json').read_text())['images']) == 2
    assert len(read_video(out)[0]) == 2
    assert sorted(os.listdir(tmp_path / 'out')) == ['detections.json', 'drawings']


def test_one_frame_at_a_time_is_in_memory(model, images, thr, tmp_path, monkeypatch):
    write_video(tmp_path / 'in.avi', images, 25)
    alive, most, read = weakref.WeakSet(), 0, video._Capture.read

    class Frame(np.ndarray):
        __hash__ = object.__hash__

    def counted(capture):
        frame = read(capture)
        if frame is not None:
            frame = frame.view(Frame)
            alive.add(frame)
        return frame

    source = open_video(str(tmp_path / 'in.avi'))
    out = drawn_video(source, tmp_path / 'out')
    monkeypatch.setattr(video._Capture, 'read', counted)
    for _ in detect_video(model, source, out, thr, LABELS):
        most = max(most, len(alive))
    # The variable has the last frame while the next one is read.
    assert 1 <= most <= 2


def test_a_full_disk_is_an_error(model, images, thr, tmp_path, monkeypatch):
    """OpenCV's writer does not say that it could not write. It is closed here before the end."""
    write_video(tmp_path / 'in.avi', images, 25)
    source = open_video(str(tmp_path / 'in.avi'))
    out = drawn_video(source, tmp_path / 'out')
    write, count = video._Writer.write, iter(range(10))

    def full(writer, frame):
        if next(count) == 2:
            writer._writer.release()
        write(writer, frame)

    monkeypatch.setattr(video._Writer, 'write', full)
    with pytest.raises(OSError, match=r'is incomplete: it could not be written\. Is the disk full'):
        list(detect_video(model, source, out, thr, LABELS))
    assert len(json.loads((tmp_path / 'out' / 'detections.json').read_text())['images']) == 4
