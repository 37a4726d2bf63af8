# COCO is in data/coco/, or in the folder that the environment variable COCO_ROOT names.
#
# MMEngine refuses two bases with a common key, and the MMDetection bases that this changes have their own data loaders.
# So everything is under one key. A config with this base unpacks that key, as if it had the entries itself:
#     globals().update(_base_.pop('coco_root'))
# MMEngine drops variables with two underscores.
__root = '{{$COCO_ROOT:data/coco}}'
__loader = dict(dataset=dict(data_root=__root))
__evaluator = dict(type='FastCocoMetric', ann_file=f'{__root}/annotations/instances_val2017.json')
coco_root = dict(
    data_root=__root,
    train_dataloader=__loader,
    val_dataloader=__loader,
    test_dataloader=__loader,
    val_evaluator=__evaluator,
    test_evaluator=__evaluator)
