# mmdet's own 3x multi-scale recipe, with the memory.
_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py'

# As in _base_/default_runtime.py.
custom_imports = dict(imports=['mmgrc'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(type='AtomicCheckpointHook'),
    data_error=dict(type='DataErrorHook'),
    exact_resume=dict(type='ExactResumeHook'),
    stop_signal=dict(type='StopSignalHook'),
    grc_monitor=dict(type='GRCMonitorHook', interval=50))

model = dict(backbone=dict(type='GRCSwinTransformer', grc=dict(stages=(0, 1, 2, 3), cache_ratio=0.5)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'grc.lam': dict(decay_mult=0.0)}))

# COCO as in _base_/coco_instance.py.
data_root = '{{$COCO_ROOT:data/coco}}'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}/annotations/instances_val2017.json')
test_evaluator = val_evaluator
