"""Test and evaluate a detector: MMDetection's own test.py with all its options, after a validation of the inputs."""

import sys

from mmgrc.runs.mmdet_tools import main

if __name__ == '__main__':
    sys.exit(main('test'))
