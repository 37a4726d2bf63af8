_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

# ImageNet-1k is in data/imagenet/, or in the folder that the environment variable IMAGENET_ROOT names: train/ and val/,
# each with a folder for each class. The augmentation is the parent's, that of Swin and of PVT's code: RandAugment
# (m9-mstd0.5-inc1) and random erasing. timm's colour jitter of 0.4 has no effect beside RandAugment.
# MMEngine drops variables with two underscores.
__root = '{{$IMAGENET_ROOT:data/imagenet}}'
__loader = dict(batch_size=128, num_workers=8, persistent_workers=True, dataset=dict(data_root=__root))
train_dataloader = __loader
val_dataloader = __loader
test_dataloader = __loader
