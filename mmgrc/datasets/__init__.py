"""Read images, and generate data sets."""

from .shapes import CLASSES, write_shape_classes, write_shapes

__all__ = ['CLASSES', 'write_shape_classes', 'write_shapes']
