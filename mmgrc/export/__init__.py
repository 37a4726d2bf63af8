"""Whole detectors as ONNX files of standard operators."""

from .onnx import check_libraries, export_onnx
from .supported import check_supported

__all__ = ['check_libraries', 'check_supported', 'export_onnx']
