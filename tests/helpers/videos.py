"""Videos by OpenCV alone."""

import cv2


def write_video(path, frames, fps, codec='FFV1', size=None):
    """Write frames (H, W, 3), BGR. FFV1 and PNG lose nothing."""
    size = size or frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, size)
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()


def read_video(path):
    """The frames of a video, and its frames per second."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    fps = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return frames, fps
