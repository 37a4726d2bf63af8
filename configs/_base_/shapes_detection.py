_base_ = 'shapes_instance.py'

# The same images. Detectors without a mask head ignore the masks.
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
