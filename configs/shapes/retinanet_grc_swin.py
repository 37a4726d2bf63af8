_base_ = 'retinanet_grc_pvt.py'

# Half of Tiny's width, and two blocks per stage: one plain and one shifted.
model = dict(
    backbone=dict(
        _delete_=True,
        type='GRCSwinTransformer',
        embed_dims=48,
        depths=[2, 2, 2, 2],
        drop_path_rate=0.0,
        # The stages that the neck uses. The norm of another stage would get no gradient.
        out_indices=(1, 2, 3),
        # The grids of the stages for an image with 128 rows and 160 columns, pooled by 4 and 2 in the first two.
        grc=dict(cache_ratio=0.5, cache_sizes=((8, 10), (8, 10), (8, 10), (4, 5)))),
    neck=dict(in_channels=[96, 192, 384], start_level=0))
