# Ten times the learning rate for all parameters of the memory.
_base_ = '../../configs/shapes/mask_rcnn_grc_pvt.py'

optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'grc.lam': dict(lr_mult=10.0), '.grc.': dict(lr_mult=10.0)}))
