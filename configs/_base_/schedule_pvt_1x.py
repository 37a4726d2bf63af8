_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

# 12 epochs, the rate divided by 10 after 8 and 11, 500 iterations of linear warm-up: as the parent has them. PVT does not
# train with its SGD: AdamW at about 1/100 of the rate (PVT's authors' rule).
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4),
    # The mixing logit is a probability in disguise: decay would pull it to 0.5.
    paramwise_cfg=dict(custom_keys={'grc.lam': dict(decay_mult=0.0)}))
