_base_ = ['../mask_rcnn_grc_pvt.py', '../_base_/schedule_small_data.py']

globals().update(_base_.pop('small_data'))
