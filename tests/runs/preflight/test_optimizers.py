"""Invalid optimizers give one clear error before the run, and settings that reach no parameter a warning."""

import re

import pytest

from mmgrc.runs.config import build_model, load_config
from mmgrc.runs.error import InputError
from mmgrc.runs.preflight import check_optimizer


def test_optimizer_is_built(config):
    assert check_optimizer(config, build_model(config)).optimizer.defaults['lr'] == config.optim_wrapper.optimizer.lr


@pytest.mark.parametrize(
    ('options', 'arguments', 'words'),
    [
        ({'optim_wrapper.type': 'AmpOptimWrapper'}, {}, 'optim_wrapper.type=AmpOptimWrapper needs a GPU'),
        ({}, {'amp': True}, '--amp needs a GPU'),
        ({'auto_scale_lr': None}, {'auto_scale_lr': True}, '--auto-scale-lr needs auto_scale_lr='),
        (
            {'optim_wrapper.optimizer.type': 'AdamWW'},
            {},
            r"optimizer.type='AdamWW': there is no such optimizer, but AdamW",
        ),
        ({'optim_wrapper.optimizer.lrr': 1}, {}, 'optim_wrapper of .* cannot be built: .*lrr'),
        ({'optim_wrapper': None}, {}, 'has no optim_wrapper'),
        (
            {'optim_wrapper.paramwise_cfg.custom_keys.grc.lam.lr_mult': 0},
            {},
            "below 'grc' there is an entry 'lam', which nothing reads. .*custom_keys={'grc.lam': ",
        ),
        (
            {'optim_wrapper.paramwise_cfg.custom_keys.grc': 5},
            {},
            r'custom_keys.grc=5: give a dictionary such as dict\(lr_mult=0.1\)',
        ),
    ],
)
def test_optimizer_that_cannot_be_built(config, options, arguments, words, monkeypatch):
    monkeypatch.setattr('mmgrc.runs.preflight.optimizers.get_device', lambda: 'cpu')
    config.merge_from_dict(options)
    with pytest.raises(InputError, match=words):
        check_optimizer(config, build_model(config), **arguments)


def test_mixed_precision_on_a_mac(config, monkeypatch):
    monkeypatch.setattr('mmgrc.runs.preflight.optimizers.get_device', lambda: 'mps')
    with pytest.raises(InputError, match='no mixed precision on CPUs and on Macs'):
        check_optimizer(config, build_model(config), amp=True)


def rates(optimizer, model):
    """The learning rate of each parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group['lr'] for group in optimizer.optimizer.param_groups for p in group['params']}


@pytest.mark.parametrize(
    ('keys', 'words'),
    [
        ({'backbone': {'lr_mult': 0.1}}, []),
        # The longer key is an exception of the user's.
        ({'backbone': {'lr_mult': 0.1}, 'backbone.layers.0': {'lr_mult': 1.0}}, []),
        (
            {'neck': {'lr_mult': 0.1}, 'neck.lateral_convs': {'decay_mult': 0.0}},
            [
                "'neck' has lr_mult=0.1, which does not apply to 12 parameters, such as neck.lateral_convs.*here "
                "'neck.lateral_convs', which has no lr_mult"
            ],
        ),
        (
            {'backbone': {'lr_mult': 0.1}, 'grc': {'lr_mult': 5}},
            ["'grc' has no effect: the longer key 'backbone' applies to what it matches"],
        ),
        ({'bakbone': {'lr_mult': 0.1}}, ["'bakbone' has no effect: .*Did you mean 'backbone'"]),
        # As in MMDetection's recipe for Swin, whose key is for a variant with this embedding.
        ({'absolute_pos_embed': {'decay_mult': 0.0}}, []),
    ],
)
def test_settings_that_do_not_apply(config, said, keys, words):
    config.optim_wrapper.paramwise_cfg = {'custom_keys': keys}
    model = build_model(config)
    optimizer = check_optimizer(config, model)
    assert len(said) == len(words)
    for message, word in zip(said, words, strict=True):
        assert re.search(word, message)
    found = rates(optimizer, model)
    base = config.optim_wrapper.optimizer.lr
    if 'neck' in keys:
        wrong = [name for name, rate in found.items() if name.startswith('neck') and rate == base]
        assert len(wrong) == 12
    if 'grc' in keys:
        assert all(rate == pytest.approx(0.1 * base) for name, rate in found.items() if '.grc.' in name)


def test_settings_of_another_constructor(config, said):
    config.optim_wrapper.update(
        constructor='mmdet.LearningRateDecayOptimizerConstructor', paramwise_cfg={'custom_keys': {'bakbone': {}}}
    )
    with pytest.raises(InputError, match='cannot be built'):
        check_optimizer(config, build_model(config))
    assert not said


# One for each set of keys: sizes and baselines have those of their base.
RECIPES = (
    'mask_rcnn_grc_pvt',
    'mask_rcnn_grc_swin',
    'mask_rcnn_grc_swin_3x',
    'more/dino_grc_swin',
    'retinanet_grc_pvtv2_b1',
)


@pytest.mark.parametrize('recipe', RECIPES)
def test_settings_of_the_recipes_apply(recipe, said):
    config = load_config(f'configs/{recipe}.py')
    check_optimizer(config, build_model(config))
    assert not said


@pytest.mark.parametrize('backbone', ['pvt', 'swin'])
def test_frozen_backbone(backbone, said):
    """docs/small_data.md: two keys freeze any backbone of these recipes."""
    config = load_config(
        f'configs/small_data/mask_rcnn_grc_{backbone}.py',
        {
            f'optim_wrapper.paramwise_cfg.custom_keys.{key}.lr_mult': 0
            for key in ('backbone', 'relative_position_bias_table')
        },
    )
    model = build_model(config)
    found = rates(check_optimizer(config, model), model)
    assert {name.split('.')[0] for name, rate in found.items() if rate} == {'neck', 'rpn_head', 'roi_head'}
    assert not any(rate for name, rate in found.items() if name.startswith('backbone'))
    assert not any('lr_mult' in message for message in said)
