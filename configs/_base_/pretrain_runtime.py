_base_ = ['mmpretrain::_base_/default_runtime.py', 'mmgrc_runtime.py']

globals().update(_base_.pop('mmgrc_runtime'))
# There are 300 epochs.
default_hooks['checkpoint'].update(max_keep_ckpts=3)
