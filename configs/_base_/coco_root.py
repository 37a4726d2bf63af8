# COCO lies in data/coco/, or where the environment variable COCO_ROOT says.
#
# MMEngine refuses two bases with a key in common, and the bases of MMDetection that this changes have data loaders of their
# own. So all of it stands under one key; a config with this base takes that out, as if the entries were written there:
#     globals().update(_base_.pop('coco_root'))
# MMEngine drops variables with two underscores.
__root = '{{$COCO_ROOT:data/coco}}'
__loader = dict(dataset=dict(data_root=__root))
__evaluator = dict(ann_file=f'{__root}/annotations/instances_val2017.json')
coco_root = dict(
    data_root=__root,
    train_dataloader=__loader,
    val_dataloader=__loader,
    test_dataloader=__loader,
    val_evaluator=__evaluator,
    test_evaluator=__evaluator)
