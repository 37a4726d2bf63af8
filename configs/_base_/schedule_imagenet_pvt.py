_base_ = 'schedule_imagenet_swin.py'

# PVT's recipe has a shorter warm-up from 1e-6, and no clipping for the small models.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
optim_wrapper = dict(clip_grad=None)
