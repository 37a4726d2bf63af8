_base_ = 'grc_pvt.py'

model = dict(backbone=dict(num_layers=[3, 4, 6, 3]))
