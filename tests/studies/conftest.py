"""Tables and results for tests that do not train."""

import json

import pytest
import yaml


@pytest.fixture
def write_table(tmp_path):
    """Write a table of two arms and two seeds, with other entries if given, and return its path.

    Its config is small and cannot be trained.
    """
    config = tmp_path / 'config.py'
    config.write_text(
        """
model = dict(type='MaskRCNN', backbone=dict(type='GRCSwinTransformer'))
val_evaluator = dict(type='mmdet.CocoMetric', metric=['bbox', 'segm'])
"""
    )

    def write(**entries):
        content = {
            'config': str(config),
            'arms': [{'name': 'plain', 'cfg_options': {'model.backbone.grc.stages': '()'}}, {'name': 'both'}],
            'seeds': [0, 1],
            'reference': 'plain',
            **entries,
        }
        path = tmp_path / 'table.yml'
        content = {key: value for key, value in content.items() if value is not ...}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture
def write_result():
    """Write the result of a run, with a mask AP that is 0.2 above the box AP."""

    def write(run, value, best=None, **entries):
        content = {
            'status': 'finished',
            'final': {'coco/bbox_mAP': value, 'coco/segm_mAP': value + 0.2},
            'best': {'coco/bbox_mAP': best or value, 'coco/segm_mAP': (best or value) + 0.2},
            'steps_per_second': 2.0,
            'peak_memory': 1000.0,
            'wall_time': 60.0,
            'message': '',
        }
        run.work_dir.mkdir(parents=True)
        (run.work_dir / 'result.json').write_text(json.dumps({**content, **entries}))

    return write
