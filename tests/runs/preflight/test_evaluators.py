"""An evaluator that would end a run after its first epoch is reported before the run."""

import json
from contextlib import nullcontext

import pytest

from mmgrc.runs.error import InputError
from mmgrc.runs.preflight import CocoFiles, check_evaluator, check_watched_metrics, read_datasets


def check(config, phase='val'):
    files = CocoFiles()
    loader = f'{phase}_dataloader'
    check_evaluator(config, phase, read_datasets(config, (loader,), files)[loader], files)


@pytest.mark.parametrize('phase', ['val', 'test'])
def test_good_evaluator_passes_without_a_word(config, said, phase, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob('*'))
    config[f'{phase}_evaluator'].update(outfile_prefix='out/results', classwise=True)
    check(config, phase)
    assert not said
    # The folder of the results, without results.
    assert set(tmp_path.rglob('*')) - before == {tmp_path / 'out'}


@pytest.mark.parametrize(
    ('metric', 'file'),
    [
        ({'outfile_prefix': 'file/results'}, 'file/results.bbox.json'),
        ({'outfile_prefix': 'file/results', 'format_only': True}, 'file/results.bbox.json'),
        ({'_delete_': True, 'type': 'DumpDetResults', 'out_file_path': 'file/all.pkl'}, 'file/all.pkl'),
    ],
)
def test_detections_that_cannot_be_written(config, tmp_path, monkeypatch, metric, file):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_text('')
    config.merge_from_dict({'test_evaluator': metric})
    with pytest.raises(InputError, match=rf'{file} cannot be written \(.*\): give another file'):
        check(config, 'test')


def test_boxes_need_no_masks(config, edit):
    """A detector of boxes is evaluated on annotations without segmentation."""
    edit(lambda c: [annotation.pop('segmentation') for annotation in c['annotations']], 'val')
    for step in config.val_dataloader.dataset.pipeline:
        if step.type == 'LoadAnnotations':
            step.with_mask = False
    with pytest.raises(InputError, match=r"COCO's evaluation of segm reads masks\. Remove .* only bbox: metric='bbox'"):
        check(config)
    config.val_evaluator.metric = 'bbox'
    check(config)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda c: c['annotations'].clear(), 'it has no annotations: val_evaluator has no ground truth'),
        (lambda c: [a.update(iscrowd=1) for a in c['annotations']], 'it has nothing but crowds: val_evaluator has no'),
    ],
)
def test_files_without_ground_truth(config, edit, said, change, words):
    edit(change, 'val')
    check(config)
    assert any(words in message and 'AP will be -1' in message for message in said)


def pop(name):
    return lambda c: [annotation.pop(name) for annotation in c['annotations'][-1:]]


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (pop('iscrowd'), r'val_evaluator: .*iscrowd of annotation \d+ is missing.*0 means a single object'),
        (lambda c: c['annotations'][0].update(iscrowd='no'), r"iscrowd of annotation 1 is 'no'"),
        (
            lambda c: c['annotations'][5].update(segmentation=[[1, 2, 9, 9, 1, 9], [1, 2]]),
            r'val_evaluator: .*annotation 6 has a polygon of 2 numbers.*needs 3 or more points',
        ),
        (lambda c: c['annotations'][5].update(segmentation=[[1, 2, 9, 9, 1, 9, 5]]), 'has a polygon of 7 numbers'),
        (lambda c: c['annotations'][5].update(segmentation=[[]]), 'has a polygon of 0 numbers'),
        (
            lambda c: c['annotations'][5].update(segmentation={'size': [64, 96], 'counts': [5]}),
            'with counts for all of its pixels',
        ),
    ],
)
def test_file_that_ends_an_evaluation(config, edit, change, words):
    edit(change, 'val')
    with pytest.raises(InputError, match=words):
        check(config)


def test_file_that_ends_an_evaluation_of_joined_sets(config, edit):
    """Wrappers around the data set, or a custom reader, do not hide the evaluator's file."""
    config.val_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [config.val_dataloader.dataset]}
    check(config)
    edit(pop('iscrowd'), 'val')
    with pytest.raises(InputError, match='iscrowd of annotation'):
        check(config)
    with pytest.raises(InputError, match='iscrowd of annotation'):
        check_evaluator(config, 'val', None, CocoFiles())


def test_file_of_another_set(config, data, edit):
    content = edit(lambda c: None, 'val')
    for image in content['images']:
        image['id'] += 5000
    for annotation in content['annotations']:
        annotation['image_id'] += 5000
    config.val_evaluator.ann_file = str(data / 'other.json')
    (data / 'other.json').write_text(json.dumps(content))
    with pytest.raises(InputError, match=r'other.json, which lacks 4 of the 4 images .*ann_file to .*instances_val'):
        check(config)


def test_file_that_is_not_there(config):
    config.val_evaluator.ann_file = '/nothing/val.json'
    with pytest.raises(InputError, match=r'/nothing/val.json'):
        check(config)


def test_categories_in_another_order_than_in_the_data_set(config, data, edit):
    content = edit(lambda c: None, 'val')
    content['categories'].reverse()
    config.val_evaluator.ann_file = str(data / 'other.json')
    (data / 'other.json').write_text(json.dumps(content))
    with pytest.raises(InputError, match=r'other.json \(val_evaluator\) .*different orders'):
        check(config)


def test_annotation_0_and_images_that_are_not_evaluated(config, edit, said):
    edit(lambda c: c['annotations'][0].update(id=0), 'val')
    check(config)
    assert "annotation 0: COCO's evaluation reads the id 0 as no match" in said[0]
    said.clear()
    edit(lambda c: c['annotations'][0].update(id=1), 'val')
    config.val_dataloader.dataset.indices = 3
    check(config)
    assert (
        'val_evaluator evaluates 4 images, the data set gives 3: the objects of the other 1 count as missed' in said[0]
    )


def test_more_labels_than_classes(config):
    config.model.roi_head.bbox_head.num_classes = 80
    with pytest.raises(InputError, match=r'bbox_head.num_classes=80, but the data set has 3 classes'):
        check(config)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'metric': 'box'}, r'val_evaluator cannot be built: .*box'),
        ({'type': 'CocoMetrics'}, r'val_evaluator cannot be built: .*CocoMetrics'),
        ({'library': 'fast'}, r"val_evaluator cannot be built: .*library='fast': give one of 'auto', 'hotcoco'"),
        ({'iou_thr': 0.5}, r'val_evaluator cannot be built: .*iou_thr'),
        ({'metric_items': ['mAP_60']}, r'val_evaluator fails on made-up detections .*mAP_60'),
    ],
)
def test_evaluator_that_cannot_work(config, options, words):
    config.val_evaluator.update(options)
    with pytest.raises(InputError, match=words):
        check(config)


def test_several_metrics(config, edit):
    config.val_evaluator = [dict(config.val_evaluator, metric='bbox'), dict(config.val_evaluator, prefix='again')]
    check(config)
    config.val_evaluator = {'type': 'Evaluator', 'metrics': config.val_evaluator}
    check(config)
    config.val_evaluator['metrics'][1]['metric'] = 'box'
    with pytest.raises(InputError, match='val_evaluator cannot be built'):
        check(config)


def test_truth_from_the_data_set_itself(config, said):
    """Without a file the metric uses the loader's annotations."""
    config.val_evaluator.ann_file = None
    config.val_dataloader.dataset.pipeline[-1].meta_keys = (
        *config.val_dataloader.dataset.pipeline[-1].meta_keys,
        'instances',
    )
    check(config)
    assert not said


def test_set_without_annotations(config, edit, said):
    edit(lambda c: c.pop('annotations'), 'val')
    check(config, 'test')
    assert 'AP will be -1' in said[0]
    said.clear()
    config.test_evaluator.update(format_only=True, outfile_prefix='out/results')
    check(config, 'test')
    assert not said
    config.test_evaluator.outfile_prefix = None
    with pytest.raises(InputError, match='test_evaluator cannot be built'):
        check(config, 'test')


def test_parts_that_are_missing(config):
    config.val_evaluator = None
    with pytest.raises(InputError, match='val_evaluator of the config is not set, val_dataloader and val_cfg are'):
        check(config)
    config.val_cfg = config.val_dataloader = None
    check_evaluator(config, 'val', None, CocoFiles())


def test_image_that_the_pipeline_cannot_use(config):
    config.val_dataloader.dataset.pipeline[1] = {'type': 'Resize', 'scale_factor': 0.001}
    with pytest.raises(InputError, match=r'the image .*\.png cannot be used: '):
        check(config)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (
            {'default_hooks.checkpoint.save_best': 'coco/box_mAP'},
            r'default_hooks.checkpoint.save_best: validations have no coco/box_mAP. Did you mean coco/bbox_mAP\?',
        ),
        (
            {'default_hooks.checkpoint.save_best': ['coco/segm_mAP', 'segm_mAP']},
            r'validations have no segm_mAP. Did you mean coco/segm_mAP\? val_evaluator gives: coco/bbox_mAP',
        ),
        (
            {'custom_hooks': [{'type': 'EarlyStoppingHook', 'monitor': 'coco/bbox_mAP', 'rule': 'greater'}]},
            None,
        ),
        (
            {'custom_hooks': [{'type': 'EarlyStoppingHook', 'monitor': 'mAP', 'rule': 'greater'}]},
            r'custom_hooks.0.monitor: validations have no mAP.',
        ),
        ({'default_hooks.checkpoint.save_best': 'auto'}, None),
        ({'default_hooks.checkpoint.save_best': ['coco/bbox_mAP_50', 'coco/segm_mAP_s']}, None),
        # The names of other metrics are not known before a validation.
        (
            {'default_hooks.checkpoint.save_best': 'mine', 'val_evaluator': {'type': 'VOCMetric', '_delete_': True}},
            None,
        ),
    ],
)
def test_values_that_hooks_wait_for(config, options, words):
    config.merge_from_dict(options)
    with nullcontext() if words is None else pytest.raises(InputError, match=words):
        check_watched_metrics(config)
