# mmdet's own DINO recipe, with another backbone: 12 epochs of 8 GPUs x 2 images.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

# As in _base_/default_runtime.py.
custom_imports = dict(imports=['mmgrc'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(type='AtomicCheckpointHook'),
    data_error=dict(type='DataErrorHook'),
    exact_resume=dict(type='ExactResumeHook'),
    stop_signal=dict(type='StopSignalHook'),
    grc_monitor=dict(type='GRCMonitorHook', interval=50))

model = dict(
    backbone=dict(
        _delete_=True,
        type='GRCSwinTransformer',
        depths=[2, 2, 6, 2],
        drop_path_rate=0.2,
        # Those that the neck takes: the norm of another would get no gradient.
        out_indices=(1, 2, 3),
        convert_weights=True,
        grc=dict(stages=(0, 1, 2, 3), cache_ratio=0.5),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth')),
    neck=dict(in_channels=[192, 384, 768]))
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            # The memory starts from nothing: the full rate, where pre-trained layers of the backbone get a tenth.
            # (The longest key that fits a name wins: these are longer than 'backbone'.)
            'attn.grc.': dict(lr_mult=1.0),
            'attn.grc.lam': dict(lr_mult=1.0, decay_mult=0.0),
        }))

# COCO as in _base_/coco_detection.py.
data_root = '{{$COCO_ROOT:data/coco}}'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}/annotations/instances_val2017.json')
test_evaluator = val_evaluator

# With it, --auto-scale-lr works.
auto_scale_lr = dict(enable=False)
