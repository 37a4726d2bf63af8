"""Reading of images, and the generated data set."""

from .shapes import CLASSES, write_shapes

__all__ = ['CLASSES', 'write_shapes']
