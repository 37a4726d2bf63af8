"""Pre-train a backbone on images with classes: mmpretrain's own train.py with all its options, after a validation of the
inputs.
"""

import sys

from mmgrc.runs.mmpretrain_tools import main

if __name__ == '__main__':
    sys.exit(main('pretrain'))
