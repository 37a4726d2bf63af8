_base_ = '../grc_pvtv2_b3.py'

# The same without a memory. A difference from the parent is due to the memory alone.
model = dict(backbone=dict(grc=dict(stages=())))
