"""Data sets made by the project."""

from .shapes import CLASSES, write_shapes

__all__ = ['CLASSES', 'write_shapes']
