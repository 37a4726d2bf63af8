_base_ = 'shapes_instance.py'

# The same images; detectors without a mask head leave the masks alone.
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
