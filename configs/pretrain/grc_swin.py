_base_ = [
    '../_base_/imagenet.py',
    '../_base_/imagenet_classifier.py',
    '../_base_/schedule_imagenet_swin.py',
    '../_base_/pretrain_runtime.py',
]

model = dict(
    backbone=dict(
        type='GRCSwinTransformer',
        depths=[2, 2, 6, 2],
        drop_path_rate=0.2,
        out_indices=(3, ),
        # As the original Swin: the map of the last stage, 7 x 7 tokens, is one window. MMDetection's class masks parts of it.
        shift_single_window=False,
        grc=dict(stages=(0, 1, 2, 3), cache_ratio=0.5)),
    head=dict(in_channels=768))
