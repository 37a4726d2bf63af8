_base_ = 'grc_pvt.py'

model = dict(backbone=dict(num_layers=[3, 4, 18, 3], drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(_delete_=True, max_norm=1.0))
