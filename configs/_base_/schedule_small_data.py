# For tens to hundreds of images (docs/small_data.md). It counts steps, since a number of epochs says little about a training
# on few images.
#
# MMEngine refuses two bases with a common key, so everything is under one key. A config with this base unpacks it:
#     globals().update(_base_.pop('small_data'))
small_data = dict(
    train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=400, val_interval=100),
    train_dataloader=dict(sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True)),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
        dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=400, T_max=370, eta_min_ratio=0.02),
    ],
    optim_wrapper=dict(clip_grad=dict(max_norm=1.0, norm_type=2)),
    default_hooks=dict(
        logger=dict(interval=10),
        checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=2)),
    log_processor=dict(by_epoch=False),
    # 1 process x 2 images.
    auto_scale_lr=dict(base_batch_size=2))
