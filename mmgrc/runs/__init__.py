"""Runs: their configs, the checks before them, MMDetection's tools, checkpoints, and the benchmark."""
