"""COCO's evaluation, by the fastest library that is installed."""

from .coco_metric import FastCocoMetric

__all__ = ['FastCocoMetric']
