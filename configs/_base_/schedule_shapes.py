_base_ = 'default_runtime.py'

# 5 epochs of 120 steps: 240 images, 2 at a time.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=5, val_interval=3)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=600, T_max=570, eta_min_ratio=0.02),
]
optim_wrapper = dict(
    type='OptimWrapper',
    # Fused: otherwise AdamW takes a quarter of each step on a CPU.
    optimizer=dict(type='AdamW', lr=7e-4, weight_decay=1e-4, fused=True),
    paramwise_cfg=dict(custom_keys={'grc.lam': dict(decay_mult=0.0)}),
    # From scratch, the first updates would otherwise be too large.
    clip_grad=dict(max_norm=1.0, norm_type=2))

default_hooks = dict(logger=dict(interval=10))
# 1 process x 2 images.
auto_scale_lr = dict(enable=False, base_batch_size=2)
# Reproducible, as far as the machine allows.
randomness = dict(seed=0)
