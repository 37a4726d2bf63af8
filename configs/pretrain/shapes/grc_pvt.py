_base_ = '../../_base_/pretrain_runtime.py'

# The backbone of mask_rcnn_grc_pvt.py on the data set that `tools/make_shapes.py data/shapes_classes --classification`
# writes: 3000 images of 64 x 64 pixels.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        num_classes=3, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(
        type='GRCPyramidVisionTransformer',
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
        drop_path_rate=0.0,
        out_indices=(3, ),
        pretrain_img_size=64,
        grc=dict(cache_ratio=0.5)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=256, loss=dict(type='CrossEntropyLoss'), topk=(1, )))

__loader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    dataset=dict(type='CustomDataset', data_root='{{$SHAPES_CLASSES_ROOT:data/shapes_classes}}'))
__load, __pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
train_dataloader = dict(
    **__loader, sampler=dict(type='DefaultSampler', shuffle=True))
train_dataloader['dataset'] = dict(
    **__loader['dataset'], data_prefix='train', pipeline=[__load, dict(type='RandomFlip', prob=0.5), __pack])
val_dataloader = dict(
    **__loader, sampler=dict(type='DefaultSampler', shuffle=False))
val_dataloader['dataset'] = dict(**__loader['dataset'], data_prefix='val', pipeline=[__load, __pack])
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator

# 3 epochs of 188 steps.
train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=1)
val_cfg = dict()
test_cfg = dict()
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=564, T_max=514, eta_min_ratio=0.02),
]
optim_wrapper = dict(
    type='OptimWrapper',
    # Fused: otherwise AdamW takes a quarter of each step on a CPU.
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05, fused=True),
    paramwise_cfg=dict(
        flat_decay_mult=0.0, custom_keys={'.pos_embed': dict(decay_mult=0.0), 'grc.lam': dict(decay_mult=0.0)}),
    clip_grad=dict(max_norm=1.0))

default_hooks = dict(logger=dict(interval=20))
# 1 process x 16 images.
auto_scale_lr = dict(enable=False, base_batch_size=16)
# Reproducible, as far as the machine allows.
randomness = dict(seed=0)
