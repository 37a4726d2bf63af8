_base_ = '../grc_pvt_medium.py'

# The same without a memory. A difference from the parent is due to the memory alone.
model = dict(backbone=dict(grc=dict(stages=())))
