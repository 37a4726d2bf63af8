_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

# mmdet's settings for Swin: AdamW, a longer warm-up, strong weight decay except on norms, positions and bias tables.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            'absolute_pos_embed': dict(decay_mult=0.0),
            'relative_position_bias_table': dict(decay_mult=0.0),
            'norm': dict(decay_mult=0.0),
            # λ is a logit. Weight decay would pull σ(λ) to 0.5.
            'grc.lam': dict(decay_mult=0.0),
        }))
