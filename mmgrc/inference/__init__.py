"""Detectors on individual images and on videos."""

from mmgrc.datasets.images import read_image

from .detector import describe_failure, detect, find_images, find_objects, load_detector, select_classes
from .video import CODECS, Video, detect_video, drawn_video, is_video, open_video

__all__ = [
    'CODECS',
    'Video',
    'describe_failure',
    'detect',
    'detect_video',
    'drawn_video',
    'find_images',
    'find_objects',
    'is_video',
    'load_detector',
    'open_video',
    'read_image',
    'select_classes',
]
