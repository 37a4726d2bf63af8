"""Layers have the same names, whatever the backbone."""

import pytest

from mmgrc.models import GRCPyramidVisionTransformer, GRCPyramidVisionTransformerV2, GRCSwinTransformer
from mmgrc.visualization.layers import number_layers

NARROW = {'embed_dims': 8, 'drop_path_rate': 0.0}
CASES = {
    'pvt': (GRCPyramidVisionTransformer, {'num_layers': [1, 2, 1, 1]}),
    'pvtv2': (GRCPyramidVisionTransformerV2, {'num_layers': [1, 2, 1, 1]}),
    'swin': (GRCSwinTransformer, {'depths': (1, 2, 1, 1), 'num_heads': (1, 2, 4, 8)}),
}


@pytest.mark.parametrize('case', CASES)
def test_blocks_are_counted_from_zero(case):
    backbone, options = CASES[case]
    names = list(backbone(**NARROW, **options).grc_layers())
    numbered = number_layers(f'backbone.{name}.lam' for name in reversed(names))
    assert list(numbered) == [f'backbone.{name}.lam' for name in names]
    assert [str(layer) for layer in numbered.values()] == ['0.0', '1.0', '1.1', '2.0', '3.0']


def test_other_names():
    with pytest.raises(ValueError, match=r'neck\.lam'):
        number_layers(['neck.lam'])
