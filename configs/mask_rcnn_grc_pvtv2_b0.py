_base_ = 'mask_rcnn_grc_pvt.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='GRCPyramidVisionTransformerV2',
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
        grc=dict(stages=(0, 1, 2, 3), cache_ratio=0.5),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b0.pth')),
    # 32 channels per head: 1, 2, 5 and 8 heads.
    neck=dict(in_channels=[32, 64, 160, 256]))
