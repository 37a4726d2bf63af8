_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '_base_/coco_detection.py',
    '_base_/schedule_pvt_1x.py',
    '_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='GRCPyramidVisionTransformer',
        num_layers=[2, 2, 2, 2],
        # The published start: in PVT neither start was better beside stock weights (docs/finetune.md).
        grc=dict(stages=(0, 1, 2, 3), cache_ratio=0.5),
        # PVT's ImageNet weights. The memory is new, since no GRC weights were ever published.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth')),
    # 64 channels per head: 1, 2, 5 and 8 heads.
    neck=dict(in_channels=[64, 128, 320, 512]))

# 8 GPUs x 2 images.
auto_scale_lr = dict(base_batch_size=16)
