"""Configs by name: the package's own, also as bases of other configs, and those of other packages."""

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from mmgrc.runs.config import config_path


def test_own_configs_are_base_configs_elsewhere(tmp_path):
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'mmgrc::mask_rcnn_grc_pvt.py'\nmodel = dict(backbone=dict(num_layers=[1] * 4))\n"
    )
    config = Config.fromfile(tmp_path / 'mine.py')
    assert config.model.backbone.num_layers == [1, 1, 1, 1]
    assert config.model.backbone.type == 'GRCPyramidVisionTransformer'
    init_default_scope('mmdet')
    assert type(MODELS.build(config.model)).__name__ == 'MaskRCNN'


def test_other_packages_resolve_as_before():
    config = get_config('mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py')
    assert config.model.backbone.type == 'PyramidVisionTransformer'
    with pytest.raises(FileNotFoundError, match=r'mmgrc::shapes/mask_rcnn_grc_pvt\.py'):
        config_path('mmgrc::nothing.py')
    assert config_path('a/b.py') == 'a/b.py'
