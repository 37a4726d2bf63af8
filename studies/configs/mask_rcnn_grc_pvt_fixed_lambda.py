# λ keeps its initial value.
_base_ = '../../configs/shapes/mask_rcnn_grc_pvt.py'

optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'grc.lam': dict(lr_mult=0.0)}))
