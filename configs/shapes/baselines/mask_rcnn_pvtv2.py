_base_ = '../mask_rcnn_grc_pvtv2.py'

# Without a memory, the rest as it is: a difference to the parent is the memory's alone.
model = dict(backbone=dict(grc=dict(stages=())))
