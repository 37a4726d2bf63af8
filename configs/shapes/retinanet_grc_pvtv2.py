_base_ = 'retinanet_grc_pvt.py'

# B0, the smallest.
model = dict(
    backbone=dict(type='GRCPyramidVisionTransformerV2', embed_dims=32),
    neck=dict(in_channels=[32, 64, 160, 256]))
