_base_ = '../grc_swin.py'

# The same without a memory. A difference from the parent is due to the memory alone.
model = dict(backbone=dict(grc=dict(stages=())))
