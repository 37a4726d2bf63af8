_base_ = 'grc_pvtv2_b3.py'

model = dict(backbone=dict(num_layers=[3, 8, 27, 3]))
