"""Detect objects on the frames of a video, one after the other, and write the drawn video. By OpenCV's FFmpeg."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from torch import nn

from mmgrc.runs.error import InputError
from mmgrc.visualization.detections import paint_detections
from mmgrc.visualization.predictions import class_colours

from .detections_file import DetectionsFile
from .detector import VIDEO_SUFFIXES, describe_failure, find_objects, free_memory

__all__ = ['CODECS', 'Video', 'detect_video', 'drawn_video', 'is_video', 'open_video']

# MPEG-4, and JPEG images. Every FFmpeg can write them, also on machines without codecs under patents.
CODECS = {'.mp4': 'mp4v', '.m4v': 'mp4v', '.mov': 'mp4v', '.mkv': 'mp4v', '.avi': 'MJPG'}
"""The suffixes of videos that can be written, and their codecs."""
_SLACK = 0.2
"""A complete video may end so many seconds early: where frames vary in duration, the announced end is an estimate."""


@dataclass(frozen=True)
class Video:
    """A video file whose first frame can be read."""

    path: Path
    fps: float
    """Frames per second."""
    size: tuple[int, int]
    """Width and height of the first frame, upright, in pixels."""
    frames: int | None
    """How many frames the file announces. For some formats this is an estimate. None: it does not say."""


def is_video(source: str) -> bool:
    """Whether a path is that of a file with the suffix of a video."""
    path = Path(source).expanduser()
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def open_video(source: str) -> Video:
    """Read the first frame of a video, and what the file says about the others.

    Raises:
        InputError: The file is no video, has no frames or no frame rate.
    """
    path = Path(source).expanduser()
    with closing(_Capture(path)) as capture:
        frame = capture.read()
        fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    if frame is None:
        raise InputError(f'{source} has no frame that can be read: it is empty, truncated, or of an unknown codec')
    if not 0 < fps < float('inf'):
        raise InputError(
            f'{source} has no frame rate; convert it, such as with: ffmpeg -i {path.name} -r 25 {path.stem}.mp4'
        )
    return Video(path, fps, (frame.shape[1], frame.shape[0]), int(count) if count > 0 else None)


def drawn_video(video: Video, out_dir: str | Path, suffix: str | None = None) -> Path:
    """Choose the file for the drawn video, and check that it can be written.

    Args:
        video: What :func:`open_video` gave.
        out_dir: Folder for the results.
        suffix: Suffix of the drawn video, one of :data:`CODECS`. None: that of the video.

    Returns:
        ``OUT_DIR/drawings/NAME.SUFFIX``.

    Raises:
        InputError: There are results already, or there is no codec for the suffix, size and frame rate.
    """
    suffix = suffix or video.path.suffix.lower()
    if suffix not in CODECS:
        raise InputError(f'{suffix} videos cannot be written: choose with --video-suffix one of {", ".join(CODECS)}')
    out = Path(out_dir) / 'drawings' / f'{video.path.stem}{suffix}'
    for path in (out, Path(out_dir) / 'detections.json'):
        if path.exists():
            raise InputError(f'{path} exists already: remove it, or choose another folder with --out-dir')
    with tempfile.TemporaryDirectory(prefix='mmgrc-') as folder:
        try:
            _Writer(Path(folder) / out.name, video).close()
        except OSError as error:
            raise InputError(
                f'{suffix} videos of {video.size[0]} x {video.size[1]} pixels and {video.fps:g} frames/s cannot be '
                f'written: choose with --video-suffix another one of {", ".join(CODECS)}'
            ) from error
    return out


def detect_video(
    model: nn.Module, video: Video, out: Path, score_thr: float = 0.3, labels: Sequence[int] = ()
) -> Iterator[tuple[int, str | None]]:
    """Detect objects on the frames of a video; write a video of their drawings and one file of all detections.

    Each frame is treated as an image is by :func:`~mmgrc.inference.detect`. One frame at a time is in memory. In
    ``OUT_DIR/detections.json`` each frame is an image, with ``video_id``, and ``frame_id`` from 0. It is written,
    and the drawn video is completed, at the end, or when the generator is closed early.

    Args:
        model: What :func:`~mmgrc.inference.load_detector` gave.
        video: What :func:`open_video` gave.
        out: What :func:`drawn_video` gave.
        score_thr: Minimum score of a detection, in [0, 1].
        labels: The labels to keep.

    Yields:
        The number of each frame, from 0, after it is processed, with None or the reason why it failed. The drawn video
        has such a frame as it was.

    Raises:
        InputError: Reading ended before the end that the file announces. What was read is written.
        OSError: The folder or a file cannot be written. OpenCV does not say so before the end of the video.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    classes = model.dataset_meta['classes']
    palette = class_colours(model.dataset_meta['palette'], len(classes))
    about = {'id': 1, 'name': str(video.path), 'fps': video.fps, 'width': video.size[0], 'height': video.size[1]}
    with (
        DetectionsFile(out.parent.parent / 'detections.json', classes, [about]) as file,
        closing(_Writer(out, video)) as writer,
        closing(_Capture(video.path)) as capture,
    ):
        number = 0
        while (frame := capture.read()) is not None:
            problem, drawing = None, frame
            try:
                found = find_objects(model, frame, score_thr, labels)
            except Exception as error:
                # Whatever fails for one frame, the others are still processed.
                problem = describe_failure(f'{video.path}, frame {number}', error)
                free_memory()
            else:
                record = {'file_name': str(video.path), 'video_id': 1, 'frame_id': number}
                file.add(
                    {**record, 'height': frame.shape[0], 'width': frame.shape[1]},
                    [annotation for annotation, _ in found],
                )
                try:
                    objects = [one.drawn() for one in found]
                    drawing = paint_detections(frame[..., ::-1], objects, classes, palette)[..., ::-1]
                except Exception as error:
                    problem = describe_failure(f'{video.path}, frame {number}', error)
                    problem += '; it is not drawn, but its detections are stored'
            writer.write(drawing)
            yield number, problem
            number += 1
        if capture.ended_early(number, video):
            raise InputError(
                f'{video.path}: reading ended after {number} of {video.frames} frames: it is truncated or damaged. '
                'What was read is processed'
            )


class _Capture:
    """OpenCV's reader of a video. Frames are rotated as the file says."""

    def __init__(self, path: Path) -> None:
        with _without_messages():
            self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise InputError(f'{path} is not a video, or is truncated, or of a format that OpenCV does not know')
        self._last = 0.0

    def get(self, prop: int) -> float:
        return self._capture.get(prop)

    def read(self) -> np.ndarray | None:
        """The next frame (H, W, 3), BGR, uint8. None: there is none."""
        done, frame = self._capture.read()
        if not done:
            return None
        self._last = self.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return frame

    def ended_early(self, frames: int, video: Video) -> bool:
        """Whether these frames are fewer than announced, and the last one is not that of the announced end."""
        if video.frames is None or frames >= video.frames:
            return False
        return (video.frames - 1) / video.fps - self._last > max(_SLACK, 1.5 / video.fps)

    def close(self) -> None:
        self._capture.release()


class _Writer:
    """OpenCV's writer of a video. Closed, it can be played."""

    def __init__(self, path: Path, video: Video) -> None:
        self._path, self._size, self._count = path, video.size, 0
        with _without_messages():
            codec = cv2.VideoWriter.fourcc(*CODECS[path.suffix])
            self._writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, video.fps, video.size)
        if not self._writer.isOpened():
            raise OSError(f'{path} cannot be written')

    def write(self, frame: np.ndarray) -> None:
        """Append a frame (H, W, 3), BGR, uint8."""
        # OpenCV would leave out a frame of another size.
        if frame.shape[1::-1] != self._size:
            frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA)
        with _without_messages():
            self._writer.write(np.ascontiguousarray(frame))
        self._count += 1

    def close(self) -> None:
        with _without_messages():
            self._writer.release()
        if not self._count:
            self._path.unlink(missing_ok=True)
        elif _frames(self._path) != self._count:
            # The writer does not say what it could not write.
            raise OSError(f'{self._path} is incomplete: it could not be written. Is the disk full?')


def _frames(path: Path) -> int:
    """How many frames a video announces."""
    try:
        with closing(_Capture(path)) as capture:
            return int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    except InputError:
        return 0


@contextmanager
def _without_messages() -> Iterator[None]:
    """Without the messages of OpenCV and FFmpeg, which our errors say better."""
    # Read when FFmpeg is first used.
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
