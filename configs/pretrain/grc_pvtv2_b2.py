_base_ = 'grc_pvt.py'

model = dict(
    backbone=dict(type='GRCPyramidVisionTransformerV2', embed_dims=64, num_layers=[3, 4, 6, 3]))
