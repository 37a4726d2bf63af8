"""Pre-train a backbone in a classifier: mmpretrain's own train.py with all its options, after a check of the inputs."""

import sys

from mmgrc.runs.mmpretrain_tools import main

if __name__ == '__main__':
    sys.exit(main('pretrain'))
