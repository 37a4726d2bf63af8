_base_ = [
    '../_base_/imagenet.py',
    '../_base_/imagenet_classifier.py',
    '../_base_/schedule_imagenet_pvt.py',
    '../_base_/pretrain_runtime.py',
]

model = dict(
    backbone=dict(
        type='GRCPyramidVisionTransformer',
        num_layers=[2, 2, 2, 2],
        drop_path_rate=0.1,
        out_indices=(3, ),
        grc=dict(stages=(0, 1, 2, 3), cache_ratio=0.5)),
    head=dict(in_channels=512))

# PVT's code draws each image of an epoch three times, with other augmentations, from a third of the images.
train_dataloader = dict(sampler=dict(type='RepeatAugSampler'))
