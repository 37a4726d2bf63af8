"""Convert data sets of other formats to COCO's."""

from .dataset import MISSING_MASKS, Converted, convert
from .formats import READERS
from .summary import print_summary

__all__ = ['MISSING_MASKS', 'READERS', 'Converted', 'convert', 'print_summary']
