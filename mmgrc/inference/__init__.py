"""Detectors on individual images."""

from mmgrc.datasets.images import read_image

from .detector import describe_failure, detect, find_images, load_detector, select_classes

__all__ = ['describe_failure', 'detect', 'find_images', 'load_detector', 'read_image', 'select_classes']
