_base_ = ['mmpretrain::_base_/default_runtime.py', 'mmgrc_runtime.py']

globals().update(_base_.pop('mmgrc_runtime'))
