"""Drawings of detections, and plots and reports of runs."""
