_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/shapes_instance.py',
    '../_base_/schedule_shapes.py',
]

# Small heads, so that the run takes minutes on two cores, from scratch. Without pre-trained weights, PVT's maps are large
# and uneven at first. GN in neck and mask head helps, as in mmdet's own from-scratch configs.
norm_cfg = dict(type='GN', num_groups=16, requires_grad=True)
model = dict(
    backbone=dict(
        _delete_=True,
        type='GRCPyramidVisionTransformer',
        num_layers=[2, 2, 2, 2],
        drop_path_rate=0.0,
        # The grids of the stages for an image with 128 rows and 160 columns: 1/4, 1/8, 1/16 and 1/32.
        grc=dict(cache_ratio=0.5, cache_sizes=((32, 40), (16, 20), (8, 10), (4, 5)))),
    neck=dict(in_channels=[64, 128, 320, 512], out_channels=96, norm_cfg=norm_cfg),
    # Anchors of 4 x stride: 16 pixels at the finest level, about the smallest shapes.
    rpn_head=dict(in_channels=96, feat_channels=96, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=96),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=96,
            conv_out_channels=64,
            fc_out_channels=256,
            norm_cfg=norm_cfg,
            num_classes=3,
            reg_class_agnostic=True),
        mask_roi_extractor=dict(out_channels=96),
        mask_head=dict(num_convs=2, in_channels=96, conv_out_channels=64, num_classes=3, norm_cfg=norm_cfg)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=100), rcnn=dict(sampler=dict(num=48, pos_fraction=0.5))),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)))
