_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '_base_/coco_detection.py',
    '_base_/schedule_swin_1x.py',
    '_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='GRCSwinTransformer',
        depths=[2, 2, 6, 2],
        drop_path_rate=0.2,
        # The stages that the neck uses. The norm of another stage would get no gradient.
        out_indices=(1, 2, 3),
        convert_weights=True,
        # Beside stock weights this start was better than the random one (docs/finetune.md: Swin, five seeds).
        grc=dict(stages=(0, 1, 2, 3), cache_ratio=0.5, start='silent'),
        # Swin's ImageNet weights. The memory is new, since no GRC weights were ever published.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth')),
    # 32 channels per head: 6, 12 and 24 heads.
    neck=dict(in_channels=[192, 384, 768], start_level=0, num_outs=5))

# 8 GPUs x 2 images.
auto_scale_lr = dict(base_batch_size=16)
