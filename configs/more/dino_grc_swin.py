# mmdet's own DINO recipe, with another backbone: 12 epochs of 8 GPUs x 2 images.
_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../_base_/coco_root.py',
    '../_base_/mmgrc_runtime.py',
]
globals().update(_base_.pop('coco_root'))
globals().update(_base_.pop('mmgrc_runtime'))

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
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth')),
    neck=dict(in_channels=[192, 384, 768]))
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            # The memory starts from scratch and gets the full rate. Pre-trained layers of the backbone get a tenth.
            # (The longest key that matches a name wins: these keys are longer than 'backbone'.)
            'attn.grc.': dict(lr_mult=1.0),
            'attn.grc.lam': dict(lr_mult=1.0, decay_mult=0.0),
        }))

# For --auto-scale-lr.
auto_scale_lr = dict(enable=False)
