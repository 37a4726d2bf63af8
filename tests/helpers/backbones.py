"""Small backbones of each family, for tests that all families share."""

import torch
from mmengine.registry import MODELS

SMALL = {
    'pvt': {
        'type': 'GRCPyramidVisionTransformer',
        'embed_dims': 8,
        'num_layers': [1, 1, 1, 1],
        'mlp_ratios': [2, 2, 2, 2],
        'pretrain_img_size': 64,
    },
    'pvtv2': {
        'type': 'GRCPyramidVisionTransformerV2',
        'embed_dims': 8,
        'num_layers': [1, 1, 1, 1],
        'mlp_ratios': [2, 2, 2, 2],
        'pretrain_img_size': 64,
    },
    # Two blocks in the first stage: one with windows and one with shifted windows.
    'swin': {
        'type': 'GRCSwinTransformer',
        'embed_dims': 8,
        'depths': (2, 1, 1, 1),
        'num_heads': (1, 2, 4, 8),
        'mlp_ratio': 2,
    },
}
# Slow tests use two stages.
TWO_STAGES = {
    'pvt': {
        'num_stages': 2,
        'num_layers': [1, 1],
        'num_heads': [1, 2],
        'mlp_ratios': [2, 2],
        'patch_sizes': [4, 2],
        'strides': [4, 2],
        'paddings': [0, 0],
        'sr_ratios': [8, 4],
        'out_indices': (0, 1),
    },
    'swin': {'depths': (2, 1), 'num_heads': (1, 2), 'strides': (4, 2), 'out_indices': (0, 1)},
}
CHANNELS = {'pvt': [8, 16, 40, 64], 'pvtv2': [8, 16, 40, 64], 'swin': [8, 16, 32, 64]}
FAMILIES = ['pvt', 'swin']


def build(family, drop_path_rate=0.0, **options):
    """Build a backbone in training mode with random weights and empty caches. Each call gives the same one."""
    torch.manual_seed(0)
    backbone = MODELS.build({**SMALL[family], 'drop_path_rate': drop_path_rate, **options})
    backbone.init_weights()
    return backbone


def caches(backbone):
    """Return copies of the caches by the names of their layers."""
    return {name: branch.cache.clone() for name, branch in backbone.grc_layers().items()}


def loss(outs):
    """Return a number that depends differently on each element of the outputs."""
    return sum((out * torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)).sum() for out in outs)


def assert_same(left, right, tolerance=0.0):
    """Compare sequences or dictionaries of tensors. Without a tolerance, they must be equal bit for bit."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        left, right = left.values(), right.values()
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
