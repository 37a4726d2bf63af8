_base_ = 'mask_rcnn_grc_pvt.py'

# Half of Tiny's width, and two blocks a stage: a window and its shift.
model = dict(
    backbone=dict(
        _delete_=True,
        type='GRCSwinTransformer',
        embed_dims=48,
        depths=[2, 2, 2, 2],
        drop_path_rate=0.0,
        # The stages' grids for an image of 128 rows and 160 columns, pooled by 4 and 2 in the first two.
        grc=dict(cache_ratio=0.5, cache_sizes=((8, 10), (8, 10), (8, 10), (4, 5)))),
    neck=dict(in_channels=[48, 96, 192, 384]))
