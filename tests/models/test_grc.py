"""The GRC layer against a plain transcription of the method, and against finite differences."""

import re

import pytest
import torch

import mmgrc.models.grc as grc_module
from mmgrc.models.grc import GRC
from mmgrc.models.ops.folding import FoldedGRC, Unprojected
from mmgrc.models.options import GRCConfig
from mmgrc.models.resampling import make_resampling, valid_extent
from tests.helpers import reference

VARIANTS = ['code', 'paper']


def make_layer(variant='code', dtype=torch.float32, kind=GRC, **options):
    torch.manual_seed(0)
    options = {'embed_dims': 8, 'num_heads': 2, 'cache_size': (4, 6), 'sr_ratio': 2, **options}
    layer = kind(variant=variant, **options).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    layer.cache.normal_()
    return layer


def run(layer, x, attn_out, hw, extent=None):
    extent = torch.tensor([hw] * len(x), dtype=torch.float32) if extent is None else extent
    return layer(x, attn_out, hw, layer.cache.clone(), make_resampling(extent, hw, hw, layer.cache_size))


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('projection', ['done', 'to come', 'to come, without bias'])
@pytest.mark.parametrize(
    'options', [{}, {'sr_ratio': 1}, {'pos_conv': False}, {'cache_ratio': 1.0}, {'cache_ratio': 0.25}]
)
def test_equals_transcription(variant, training, projection, options):
    """Projection before the mix, and folded into it: two forms of the same sums."""
    kind = GRC if projection == 'done' else FoldedGRC
    layer = make_layer(variant, torch.float64, kind, **options).train(training)
    hw = (5, 7)
    x, heads = (torch.randn(3, 35, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    extents = [(5, 7), (3, 7), (4, 2.5)]
    proj = torch.nn.Linear(8, 8, projection != 'to come, without bias').double()
    attn_out = proj(heads) if projection == 'done' else Unprojected(heads, proj)
    out, new_cache = run(layer, x, attn_out, hw, torch.tensor(extents, dtype=torch.float64))
    expected, stored = reference.grc(layer, x, proj(heads), hw, extents, training)
    torch.testing.assert_close(out, expected)
    if training:
        torch.testing.assert_close(new_cache, stored)
        assert not new_cache.requires_grad
    else:
        assert new_cache is None

    wanted = [x, heads, *proj.parameters(), *layer.parameters()]
    weights = torch.randn_like(out)
    grads = torch.autograd.grad((out * weights).sum(), wanted, allow_unused=True)
    expected_grads = torch.autograd.grad((expected * weights).sum(), wanted, allow_unused=True)
    # The paper's variant does not use its gates in evaluation, so they have no gradient there.
    assert all(g is not None for g in grads) or (variant == 'paper' and not training)
    for got, reference_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, reference_grad)


@pytest.mark.parametrize('kind', [GRC, FoldedGRC])
@pytest.mark.parametrize('variant', VARIANTS)
def test_gradients_equal_finite_differences(variant, kind):
    layer = make_layer(variant, torch.float64, kind, embed_dims=4, cache_size=(2, 2))
    x, heads = (torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    proj = torch.nn.Linear(4, 4).double()
    names, values = zip(*layer.named_parameters(), strict=True)
    values = tuple(value.detach().requires_grad_() for value in values)

    def forward(x, heads, *parameters):
        resampling = make_resampling(torch.tensor([(2.0, 3.0), (2.0, 2.0)]).double(), (2, 3), (2, 3), (2, 2))
        state = dict(zip(names, parameters, strict=True))
        attn_out = proj(heads) if kind is GRC else Unprojected(heads, proj)
        arguments = (x, attn_out, (2, 3), layer.cache.clone(), resampling)
        return torch.func.functional_call(layer, state, arguments)[0]

    assert {'lam', 'update_gate.weight', 'candidate.weight', 'mem_attn.q.weight', 'pos_conv.weight'} <= set(names)
    assert torch.autograd.gradcheck(forward, (x, heads, *values))


def test_cache_is_a_constant_of_the_step():
    layer = make_layer()
    before = layer.cache.clone()
    cache = layer.cache.clone().requires_grad_()
    x = torch.randn(2, 24, 8)
    resampling = make_resampling(torch.tensor([(4.0, 6.0)] * 2), (4, 6), (4, 6), (4, 6))
    _, new_cache = layer(x, x, (4, 6), cache, resampling)
    assert not new_cache.requires_grad
    assert torch.equal(layer.cache, before)


def test_resampling_is_exact_on_the_caches_own_grid():
    grid = torch.randn(2, 7, 5, 3)
    resampling = make_resampling(torch.tensor([(224.0, 160.0)] * 2), (224, 160), (7, 5), (7, 5))
    assert torch.equal(resampling(grid), grid.flatten(1, 2))


@pytest.mark.parametrize('cache_size', [(2, 3), (4, 9), (13, 8)])
def test_resampling_equals_adaptive_pooling_where_cells_hold_whole_tokens(cache_size):
    hw = (cache_size[0] * 2, cache_size[1] * 3)
    grid = torch.randn(2, *hw, 3)
    resampling = make_resampling(torch.tensor([[4.0 * n for n in hw]] * 2), (4 * hw[0], 4 * hw[1]), hw, cache_size)
    pooled = torch.nn.functional.adaptive_avg_pool2d(grid.permute(0, 3, 1, 2), cache_size)
    torch.testing.assert_close(resampling(grid), pooled.flatten(2).transpose(1, 2))


def test_padding_stays_out_of_the_summary():
    image = torch.randn(1, 3, 64, 96)
    padded = torch.nn.functional.pad(image, (0, 64, 0, 32))
    assert valid_extent(padded).tolist() == [[64, 96]]
    grid = torch.randn(1, 16, 24, 5)
    around = torch.nn.functional.pad(grid, (0, 0, 0, 16, 0, 8), value=1e6)
    alone = make_resampling(valid_extent(image), (64, 96), (16, 24), (7, 7))(grid)
    in_batch = make_resampling(valid_extent(padded), (96, 160), (24, 40), (7, 7))(around)
    torch.testing.assert_close(in_batch, alone)


def test_extent_of_zeros_and_of_mixed_batches():
    images = torch.zeros(3, 3, 8, 10)
    images[1, 2, 4, 1] = -1
    images[2, 0, 0, 9] = float('nan')
    assert valid_extent(images).tolist() == [[8, 10], [5, 2], [1, 10]]


@pytest.mark.parametrize('kind', [GRC, FoldedGRC])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_keeps_gates_and_cache_in_float32(dtype, kind, monkeypatch):
    layer = make_layer(kind=kind)
    exact = layer.cache.clone()
    layer.to(dtype)
    assert layer.cache.dtype == torch.float32
    assert torch.equal(layer.cache, exact)
    seen = []
    sigmoid = torch.sigmoid
    monkeypatch.setattr(grc_module.torch, 'sigmoid', lambda t: seen.append(t.dtype) or sigmoid(t))
    x = torch.randn(2, 24, 8, dtype=dtype)
    attn_out = x if kind is GRC else Unprojected(x, torch.nn.Linear(8, 8).to(dtype))
    out, new_cache = run(layer, x, attn_out, (4, 6))
    assert seen == [torch.float32] * 2
    assert out.dtype == dtype
    assert new_cache.dtype == torch.float32


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'cache_ratio': 0}, 'grc.cache_ratio=0'),
        ({'cache_ratio': 1.5}, 'at most 1'),
        ({'cache_ratio': 'half'}, "grc.cache_ratio='half'"),
        ({'variant': 'published'}, "'code' and 'paper'"),
        ({'stages': (0, 4)}, 'from 0 to 3'),
        ({'stages': 2}, 'a sequence of stages'),
        ({'stages': (1, 1)}, 'twice'),
        ({'cache_sizes': (56, 28)}, '4 entries'),
        ({'cache_sizes': (56, 28, 14, 0)}, 'above 0'),
        ({'cache_sizes': ((56, 56, 1), 28, 14, 7)}, 'pair'),
        ({'lambda_init': 'x'}, "grc.lambda_init='x'"),
        ({'lambda_init': float('nan')}, 'from -100 to 100'),
        ({'sync': 1}, 'grc.sync=1'),
        ({'frozen': None}, 'grc.frozen=None'),
        ({'start': 'quiet'}, "grc.start='quiet': allowed are 'random' and 'silent'"),
        ({'start': None}, 'grc.start=None'),
        ({'start': 'silent', 'lambda_init': 11}, "grc.lambda_init=11: with grc.start='silent' give a number up to 10"),
        ({'ratio': 0.5}, "no option 'ratio'"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match='grc') as error:
        GRCConfig.parse(options, 4, (56, 28, 14, 7))
    assert words in str(error.value)


def test_defaults_depend_on_the_variant():
    assert GRCConfig.parse(None, 4, (56, 28, 14, 7)) == GRCConfig(
        cache_sizes=((56, 56), (28, 28), (14, 14), (7, 7)), lambda_init=-1.0
    )
    assert GRCConfig.parse({'variant': 'paper'}, 4, (56, 28, 14, 7)).lambda_init == 0.0


def test_uneven_ratio_names_those_that_work():
    with pytest.raises(ValueError, match=r'0.5, 1\b'):
        GRC(embed_dims=8, num_heads=4, cache_size=(4, 4), cache_ratio=0.75)
    GRC(embed_dims=8, num_heads=4, cache_size=(4, 4), cache_ratio=0.5)


def test_cache_smaller_than_the_reduction():
    with pytest.raises(ValueError, match='at least 8 x 8'):
        GRC(embed_dims=8, num_heads=2, cache_size=(7, 7), sr_ratio=8)


def test_cache_of_another_size_is_refused():
    state = make_layer().state_dict()
    other = make_layer(cache_size=(4, 4))
    with pytest.raises(ValueError, match=r'\(1, 24, 4\).*\(1, 16, 4\)'):
        other.load_state_dict(state, strict=False)


@pytest.mark.parametrize('options', [False, True, 5, (), [], 'code'])
def test_options_that_are_no_dictionary(options):
    with pytest.raises(ValueError, match=re.escape(f'grc={options!r}: give a dictionary of options, or None')):
        GRCConfig.parse(options, 4, [1, 1, 1, 1])
