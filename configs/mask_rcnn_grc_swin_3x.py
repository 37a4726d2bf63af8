# mmdet's own 3x multi-scale recipe, with the memory.
_base_ = [
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py',
    '_base_/coco_root.py',
    '_base_/mmgrc_runtime.py',
]
globals().update(_base_.pop('coco_root'))
globals().update(_base_.pop('mmgrc_runtime'))

model = dict(
    backbone=dict(
        type='GRCSwinTransformer',
        # Beside stock weights this start was better than the random one (docs/finetune.md: Swin, five seeds).
        grc=dict(stages=(0, 1, 2, 3), cache_ratio=0.5, start='silent')))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'grc.lam': dict(decay_mult=0.0)}))
