_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/shapes_detection.py',
    '../_base_/schedule_shapes.py',
]

# A small head, and GN everywhere: mask_rcnn_grc_pvt.py gives the reasons.
norm_cfg = dict(type='GN', num_groups=16, requires_grad=True)
model = dict(
    backbone=dict(
        _delete_=True,
        type='GRCPyramidVisionTransformer',
        num_layers=[2, 2, 2, 2],
        drop_path_rate=0.0,
        # The grids of the stages for an image with 128 rows and 160 columns: 1/4, 1/8, 1/16 and 1/32.
        grc=dict(cache_ratio=0.5, cache_sizes=((32, 40), (16, 20), (8, 10), (4, 5)))),
    # Strides of 8, 16 and 32: anchors from 32 to 203 pixels.
    neck=dict(in_channels=[64, 128, 320, 512], out_channels=96, num_outs=3, norm_cfg=norm_cfg),
    bbox_head=dict(
        in_channels=96,
        feat_channels=96,
        stacked_convs=2,
        num_classes=3,
        norm_cfg=norm_cfg,
        anchor_generator=dict(strides=[8, 16, 32])),
    test_cfg=dict(nms_pre=300))
