_base_ = 'mask_rcnn_grc_pvt.py'

# Half of Tiny's width, and two blocks per stage: one plain and one shifted.
model = dict(
    backbone=dict(
        _delete_=True,
        type='GRCSwinTransformer',
        embed_dims=48,
        depths=[2, 2, 2, 2],
        drop_path_rate=0.0,
        # The grids of the stages for an image with 128 rows and 160 columns, pooled by 4 and 2 in the first two.
        grc=dict(cache_ratio=0.5, cache_sizes=((8, 10), (8, 10), (8, 10), (4, 5)))),
    neck=dict(in_channels=[48, 96, 192, 384]))

# Swin takes longer to learn from scratch: 7 epochs of 120 steps.
train_cfg = dict(max_epochs=7)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=840, T_max=810, eta_min_ratio=0.02),
]
