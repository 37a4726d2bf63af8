# The generated set with the schedule for small data.
_base_ = ['../../configs/shapes/mask_rcnn_grc_pvt.py', '../../configs/_base_/schedule_small_data.py']

globals().update(_base_.pop('small_data'))
