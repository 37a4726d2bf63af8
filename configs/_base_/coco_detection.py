_base_ = ['mmdet::_base_/datasets/coco_detection.py', 'coco_root.py']

globals().update(_base_.pop('coco_root'))
