_base_ = '../../shapes/mask_rcnn_grc_pvt.py'

# The detector that the backbone of grc_pvt.py is for: half as wide as the parent, and trained for a fifth of its steps, 120.
model = dict(backbone=dict(embed_dims=32), neck=dict(in_channels=[32, 64, 160, 256]))

train_cfg = dict(max_epochs=1, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=120, T_max=90, eta_min_ratio=0.02),
]
