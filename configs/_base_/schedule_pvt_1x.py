_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

# As in the parent: 12 epochs, a learning rate divided by 10 after 8 and 11, and 500 iterations of linear warm-up. PVT does
# not train with the parent's SGD. It uses AdamW at about 1/100 of the rate, the rule of PVT's authors.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4),
    # λ is a logit. Weight decay would pull σ(λ) to 0.5.
    paramwise_cfg=dict(custom_keys={'grc.lam': dict(decay_mult=0.0)}))
