"""Read images, and generate data sets."""

from .shapes import CLASSES, write_shapes

__all__ = ['CLASSES', 'write_shapes']
