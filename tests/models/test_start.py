"""With `grc.start='silent'` stock weights keep their function, however they are loaded, and the whole memory learns."""

import copy

import pytest
import torch
from mmdet.models import backbones as stock_backbones
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

from mmgrc.models.convert import convert_checkpoint
from tests.conftest import REPOSITORY, SHAPES_CONFIG
from tests.helpers.backbones import SMALL, assert_same, build, caches, loss
from tests.helpers.published import original_pvt

family = pytest.mark.parametrize('family', ['pvt', 'pvtv2', 'swin'])
variant = pytest.mark.parametrize('variant', ['code', 'paper'])
DROP_PATH = 0.3


def build_stock(family, **options):
    """MMDetection's own backbone, with weights as varied as trained ones."""
    torch.manual_seed(1)
    options = {'drop_path_rate': DROP_PATH, **SMALL[family], **options}
    stock = getattr(stock_backbones, options.pop('type').removeprefix('GRC'))(**options)
    return make_uneven(stock)


def make_uneven(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1) / 2, std=0.3)
    return model


def build_silent(family, variant='code', grc=None, **options):
    return build(family, DROP_PATH, grc={'start': 'silent', 'variant': variant, **(grc or {})}, **options)


def padded_images():
    torch.manual_seed(2)
    images = torch.randn(3, 3, 96, 128)
    images[1, :, 64:] = 0
    images[2, :, :, 90:] = 0
    return images


def relative_difference(left, right):
    """The largest difference of the stages' outputs, relative to the largest value."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(left, right, strict=True))


def assert_computes_as_stock(model, stock, tolerance=1e-5):
    images = padded_images()
    for training in (False, True, False):
        outs = []
        for each in (model, stock):
            # MMDetection's Swin does not return itself.
            each.train(training)
            torch.manual_seed(3)
            with torch.no_grad():
                outs.append(each(images))
        assert relative_difference(*outs) < tolerance


class Detector(nn.Module):
    """A backbone under the name that it has in a detector."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Linear(1, 1)

    def forward(self, images):
        return self.backbone(images)


def load(way, family, stock, folder, **options):
    """A silent backbone with the weights of ``stock``."""
    file, state = str(folder / 'stock.pth'), stock.state_dict()
    init_cfg = {'type': 'Pretrained', 'checkpoint': file}
    if way == 'init_cfg':
        torch.save({'state_dict': {f'module.backbone.{key}': value for key, value in state.items()}}, file)
        return build_silent(family, init_cfg=init_cfg, **options)
    if way == 'converted':
        # The output of tools/convert_checkpoint.py, from the original PVT's keys if there is one.
        source = original_pvt(state) if family == 'pvt' else {'state_dict': state}
        converted, _ = convert_checkpoint(source)
        assert_same(converted, dict(state))  # nothing is divided in the file
        torch.save({'state_dict': converted}, file)
        return build_silent(family, init_cfg=init_cfg, **options)
    backbone = build_silent(family, **options)
    if way == 'load_from':
        torch.save({'state_dict': Detector(stock).state_dict()}, file)
        load_checkpoint(Detector(backbone), file)
    else:
        backbone.load_state_dict(state, strict=False)
    return backbone


WAYS = [
    (way, family)
    for way in ('init_cfg', 'load_from', 'load_state_dict', 'converted')
    for family in ('pvt', 'pvtv2', 'swin')
    if (way, family) != ('converted', 'swin')  # the tool is for PVT
]


@variant
@pytest.mark.parametrize(('way', 'family'), WAYS)
def test_stock_weights_compute_as_in_stock(way, family, variant, tmp_path):
    # The tool assumes a PVT of the usual pre-training size.
    size = {'pretrain_img_size': 224} if way == 'converted' else {}
    stock = build_stock(family, **size)
    backbone = load(way, family, stock, tmp_path, variant=variant, **size)
    initial = -1.0 if variant == 'code' else 0.0
    assert all((branch.lam == initial).all() for branch in backbone.grc_layers().values())
    assert not any(cache.any() for cache in caches(backbone).values())
    assert_computes_as_stock(backbone, stock)
    # It was trained there, so its caches are no longer empty, but they still have no effect.
    assert all(cache.any() for cache in caches(backbone).values())


@pytest.mark.parametrize(
    ('family', 'options', 'grc'),
    [
        ('pvt', {'qkv_bias': False}, {}),
        ('pvt', {}, {'pos_conv': False, 'lambda_init': 3}),
        ('pvtv2', {}, {'stages': (1, 3), 'cache_ratio': 0.25}),
        ('swin', {'with_cp': True}, {'stages': (0, 2)}),
        ('swin', {'frozen_stages': 2}, {'lambda_init': 10}),
        ('swin', {}, {'stages': ()}),
    ],
)
def test_options_of_the_backbone_and_of_the_memory(family, options, grc):
    stock_options = {key: value for key, value in options.items() if key != 'with_cp'}
    stock = build_stock(family, **stock_options)
    backbone = build_silent(family, grc=grc, **options)
    backbone.load_state_dict(stock.state_dict(), strict=False)
    assert_computes_as_stock(backbone, stock)


@family
@variant
def test_whole_branch_learns_within_two_steps(family, variant):
    backbone = build_silent(family, variant)
    backbone.load_state_dict(build_stock(family).state_dict(), strict=False)
    branch_parameters = {name: p for name, p in backbone.named_parameters() if '.grc.' in name}
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-3)
    with_gradient = []
    for _ in range(2):
        optimizer.zero_grad()
        loss(backbone(padded_images())).backward()
        with_gradient.append({name for name, parameter in branch_parameters.items() if parameter.grad.any()})
        optimizer.step()
    ends = ('.lam', '.mem_attn.proj.weight', '.mem_attn.proj.bias', '.pos_conv.weight', '.pos_conv.bias')
    assert with_gradient[0] == {name for name in branch_parameters if name.endswith(ends)}
    assert with_gradient[1] == set(branch_parameters)

    outs = backbone.eval()(padded_images())
    for branch in backbone.grc_layers().values():
        nn.init.zeros_(branch.mem_attn.proj.weight)
    assert relative_difference(backbone(padded_images()), outs) > 1e-5


def build_detector(grc=None):
    """A small Mask R-CNN. Without options of the memory, on MMDetection's own PVT."""
    config = Config.fromfile(REPOSITORY / SHAPES_CONFIG).model
    backbone = {**SMALL['pvt'], 'pretrain_img_size': 64, 'drop_path_rate': DROP_PATH}
    backbone.update({'type': 'PyramidVisionTransformer'} if grc is None else {'grc': grc})
    neck = {**config.neck, 'in_channels': [8, 16, 40, 64]}
    return MODELS.build({**config, 'backbone': backbone, 'neck': neck, '_scope_': 'mmdet'})


def test_stock_detector_predicts_as_before(tmp_path):
    stock = build_detector()
    make_uneven(stock.backbone)
    torch.save({'state_dict': stock.state_dict()}, tmp_path / 'stock.pth')
    detector = build_detector({'start': 'silent'})
    detector.init_weights()
    load_checkpoint(detector, str(tmp_path / 'stock.pth'))
    assert_computes_as_stock(detector.backbone, stock.backbone)
    images = padded_images()
    with torch.no_grad():
        scores, expected = (model.eval().rpn_head(model.extract_feat(images))[0] for model in (detector, stock))
    assert relative_difference(scores, expected) < 1e-5


@family
@pytest.mark.parametrize('grc', [{}, {'memory': False}, {'stages': (1, 3), 'variant': 'paper'}])
def test_training_from_scratch_starts_as_stock(family, grc):
    stock = build_stock(family)
    published = build(family, DROP_PATH, grc=grc).state_dict()
    stock.load_state_dict({key: value for key, value in published.items() if '.grc.' not in key})
    backbone = build_silent(family, grc=grc)
    assert_computes_as_stock(backbone, stock)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-2)
    loss(backbone.train()(padded_images())).backward()
    optimizer.step()
    assert all(layer.pos_conv.weight.any() for layer in backbone.added_layers().values())


# What does not change.


@family
@pytest.mark.parametrize('way', ['init_cfg', 'load_state_dict'])
def test_default_start_leaves_stock_weights_and_branch_alone(family, way, tmp_path):
    stock, fresh = build_stock(family).state_dict(), build(family).state_dict()
    torch.save({'state_dict': stock}, tmp_path / 'stock.pth')
    if way == 'init_cfg':
        backbone = build(family, init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'stock.pth')})
    else:
        backbone = build(family)
        backbone.load_state_dict(stock, strict=False)
    state = backbone.state_dict()
    assert_same({key: state[key] for key in stock}, dict(stock))
    if way == 'load_state_dict':
        memory = [key for key in state if '.grc.' in key]
        assert_same([state[key] for key in memory], [fresh[key] for key in memory])


def trained_state(family):
    backbone = make_uneven(build(family))
    backbone(padded_images())
    return backbone.state_dict()


@family
def test_weights_with_a_memory_load_bit_for_bit(family, tmp_path):
    state = trained_state(family)
    backbone = build_silent(family)
    backbone.load_state_dict(state)
    assert_same(backbone.state_dict(), state)

    torch.save({'state_dict': state}, tmp_path / 'grc.pth')
    backbone = build_silent(family, init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'grc.pth')})
    assert_same(dict(backbone.named_parameters()), {key: state[key] for key, _ in backbone.named_parameters()})


@family
@pytest.mark.parametrize('kept', [0, 1])
def test_layers_are_decided_one_by_one(family, kept):
    state = trained_state(family)
    name = list(build(family).grc_layers())[1]
    lost = [key for key in state if key.startswith(f'{name}.')][kept:]
    state = {key: value for key, value in state.items() if key not in lost}
    backbone = make_uneven(build_silent(family))
    before = copy.deepcopy(backbone.state_dict())
    backbone.load_state_dict(state, strict=False)
    after = backbone.state_dict()

    projection = name.removesuffix('grc') + ('w_msa.proj.' if family == 'swin' else 'attn.out_proj.')
    changed = {key for key, value in {**before, **state}.items() if not torch.equal(after[key], value)}
    if kept:
        assert not changed
    else:
        ends = ('mem_attn.proj.weight', 'mem_attn.proj.bias', 'pos_conv.weight', 'pos_conv.bias')
        zeroed = {f'{name}.{end}' for end in ends}
        assert changed == {f'{projection}weight', f'{projection}bias', *zeroed}
        assert not any(after[key].any() for key in zeroed)


@family
def test_state_of_the_caller_stays_and_loads_again(family):
    stock = build_stock(family)
    state = stock.state_dict()
    before = copy.deepcopy(state)
    backbone = build_silent(family)
    backbone.load_state_dict(state, strict=False)
    once = copy.deepcopy(backbone.state_dict())
    backbone.load_state_dict(state, strict=False)
    assert_same(backbone.state_dict(), once)
    assert_same(dict(state), dict(before))

    # After training too, with the trained λ.
    make_uneven(backbone)
    backbone.load_state_dict(state, strict=False)
    assert all((branch.lam != -1).all() for branch in backbone.grc_layers().values())
    assert_computes_as_stock(backbone, stock)


def test_half_precision_weights_lose_nothing_more():
    stock = build_stock('pvt').half().float()
    backbone = build_silent('pvt')
    backbone.load_state_dict({key: value.half() for key, value in stock.state_dict().items()}, strict=False)
    assert_computes_as_stock(backbone, stock)


def test_checkpoint_of_another_size_is_refused_as_before():
    backbone = build_silent('pvt')
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(RuntimeError, match=r'size mismatch for layers.0.1.1.attn.attn.out_proj.weight'):
        backbone.load_state_dict(build_stock('pvt', embed_dims=16).state_dict(), strict=False)
    branch = {key: value for key, value in before.items() if '.grc.' in key}
    assert_same({key: backbone.state_dict()[key] for key in branch}, branch)


@family
def test_log_says_how_many_start_silent(family, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmgrc.models.convert.print_log', lambda message, **_: said.append(message))
    stock = build_stock(family)
    total = len(build(family).grc_layers())
    silent = f'{SMALL[family]["type"]}: {total} of {total} GRC layers start silent'
    # From scratch, and again with the stock weights. A report of what init_cfg loads follows.
    for way, starts, others in (('load_from', 2, 0), ('init_cfg', 1, 1)):
        said.clear()
        load(way, family, stock, tmp_path)
        assert [line.startswith(silent) for line in said] == [True] * starts + [False] * others
    backbone = build_silent(family)
    said.clear()
    backbone.load_state_dict(trained_state(family))
    assert not said


@pytest.mark.parametrize('way', ['init_cfg', 'load_from'])
@pytest.mark.parametrize(
    ('frozen_stages', 'grc', 'warned'),
    [
        (2, {}, 3),
        (2, {'memory': False}, 3),
        (2, {'start': 'silent'}, 0),
        (2, {'stages': (2, 3)}, 0),
        (0, {}, 0),
    ],
)
def test_frozen_random_memories_are_reported(way, frozen_stages, grc, warned, tmp_path, monkeypatch):
    """A frozen stage with a new memory would change its stock maps for good."""
    said = []
    monkeypatch.setattr('mmgrc.models.convert.print_log', lambda message, **_: said.append(message))
    stock, file = build_stock('swin'), str(tmp_path / 'stock.pth')
    torch.save(stock.state_dict(), file)
    init_cfg = {'type': 'Pretrained', 'checkpoint': file} if way == 'init_cfg' else None
    backbone = build('swin', grc=grc, frozen_stages=frozen_stages, init_cfg=init_cfg)
    if way == 'load_from':
        load_checkpoint(backbone, file)
    total = len(backbone.added_layers())
    found = [line for line in said if 'frozen' in line]
    wanted = [f'GRCSwinTransformer: {warned} of {total} GRC layers are new, and frozen'] if warned else []
    assert [line.split(' with random')[0] for line in found] == wanted
    # With its own memory, everything is as it should be.
    said.clear()
    torch.save(trained_state('swin'), file)
    load_checkpoint(build('swin', frozen_stages=2), file)
    assert not said
