"""Devices other than the CPU: nothing is computed on the CPU, and the host waits only for the check of the commit.

No GPU is needed: the meta device and fake CUDA tensors have shapes and types, but no values.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmgrc.models import GRCAttention, commit_caches
from tests.conftest import REPOSITORY
from tests.helpers.backbones import CHANNELS, SMALL, build, loss

family = pytest.mark.parametrize('family', SMALL)
IMAGES = (2, 3, 64, 96)
# A CUDA build of torch needs no GPU for fake tensors, from the version on that has this function.
FAKES_CUDA = torch.cuda.is_available() or (torch.version.cuda and hasattr(torch._C, '_ensureCUDADeviceGuardSet'))


class Operations(TorchDispatchMode):
    """Record on which devices operations compute, and count how often the host reads a value.

    There are no values, so each value that the host reads is True: all caches are finite.
    """

    def __init__(self):
        super().__init__()
        self.devices, self.reads = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.reads += 1
            return True
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            # Activation checkpointing makes tensors without elements on the CPU.
            if torch.is_tensor(tensor) and tensor.numel():
                self.devices.setdefault(tensor.device.type, set()).add(str(function))
        return out


class Constants(TorchFunctionMode):
    """Record functions that copy numbers of the host to a device, which no operation shows. The host waits for it."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.Tensor.new_tensor):
            self.calls.append(function.__name__)
        return function(*args, **(kwargs or {}))


@contextmanager
def counted(device, reads):
    """Everything inside is computed on ``device``, and the host reads ``reads`` values and sends none."""
    with Constants() as constants, Operations() as operations:
        yield
    assert constants.calls == []
    assert operations.devices.keys() == {device}, {k: v for k, v in operations.devices.items() if k != device}
    assert operations.reads == reads


def test_what_is_left_on_the_cpu_is_found():
    x = torch.empty(3, device='meta')
    with pytest.raises(AssertionError, match=r"'cpu': \{'aten.ones.default'\}"), counted('meta', reads=0):
        x + torch.ones(())
    with pytest.raises(AssertionError, match=r"\['tensor'\]"), counted('meta', reads=0):
        x + torch.tensor([1.0], device='meta')
    with pytest.raises(AssertionError, match='assert 1 == 0'), counted('meta', reads=0):
        assert x.sum() > 0


@family
@pytest.mark.parametrize('options', [{}, {'with_cp': True}, {'grc': {'variant': 'paper'}}, {'grc': {'stages': ()}}])
def test_a_training_step_stays_on_its_device(family, options):
    dropouts = {'drop_path_rate': 0.2, 'drop_rate': 0.1, 'attn_drop_rate': 0.1}
    backbone = build(family, **dropouts, **options).to('meta')
    x = torch.empty(IMAGES, device='meta')
    # One check for the caches of all layers.
    with counted('meta', reads=1 if backbone.grc.stages else 0):
        loss(backbone(x)).backward()
    assert all(parameter.grad.is_meta for parameter in backbone.parameters())
    assert all(layer.cache.is_meta for layer in backbone.grc_layers().values())


@family
def test_evaluation_stays_on_its_device(family):
    backbone = build(family).to('meta').eval()
    x = torch.empty(IMAGES, device='meta')
    with counted('meta', reads=0):
        outs = backbone(x)
    assert all(out.is_meta for out in outs)


def test_the_plain_layer_stays_on_its_device():
    layer = GRCAttention(embed_dims=16, num_heads=2, cache_size=(3, 4), auto_commit=False).to('meta')
    x = torch.empty(2, 48, 16, device='meta')
    with counted('meta', reads=0):
        layer(x, (6, 8)).sum().backward()
    with counted('meta', reads=1):
        assert commit_caches(layer)
    with counted('meta', reads=0):
        layer.eval()(x, (6, 8))


def to_fake_cuda(model, mode):
    with mode:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    fake = torch.empty(parameter.shape, dtype=parameter.dtype, device='cuda')
                    module._parameters[name] = torch.nn.Parameter(fake)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device='cuda')
    return model


@contextmanager
def cuda_autocast(dtype):
    """`torch.autocast` turns itself off if there is no GPU."""
    before = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
    torch.set_autocast_enabled('cuda', dtype != torch.float32)
    torch.set_autocast_dtype('cuda', dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled('cuda', before[0])
        torch.set_autocast_dtype('cuda', before[1])
        torch.clear_autocast_cache()


@pytest.mark.slow
@pytest.mark.skipif(not FAKES_CUDA, reason='this torch is built without CUDA, so it has no fake CUDA tensors')
@family
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_forwards_mix_neither_devices_nor_types(family, dtype):
    """Fake tensors refuse operands on two devices, and matrices of two types. Autocast is that of CUDA."""
    mode = FakeTensorMode()
    backbone = to_fake_cuda(build(family, drop_path_rate=0.2), mode)
    types = []
    layer = next(module for name, module in backbone.named_modules() if name.endswith('mem_attn.q'))
    layer.register_forward_hook(lambda module, args, out: types.append(out.dtype))
    # Without a GPU there are no properties from which the fused kernels could be chosen.
    with mode, sdpa_kernel(SDPBackend.MATH), torch.no_grad(), cuda_autocast(dtype):
        x = torch.empty(IMAGES, device='cuda')
        with counted('cuda', reads=1):
            backbone(x)
        with counted('cuda', reads=0):
            outs = backbone.eval()(x)
    assert types == [dtype, dtype]
    assert all(out.is_cuda for out in outs)
    assert all(layer.cache.is_cuda and layer.cache.dtype == torch.float32 for layer in backbone.grc_layers().values())


class DoublePrecision(TorchDispatchMode):
    """Record operations whose results are in double precision, which the GPU of a Mac does not have."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if any(torch.is_tensor(leaf) and leaf.dtype == torch.float64 for leaf in tree_leaves(out)):
            self.found.add(str(function))
        return out


def test_double_precision_is_found():
    with DoublePrecision() as double:
        torch.from_numpy(np.ones(2))
    assert double.found == {'aten.lift_fresh.default'}
    with DoublePrecision() as double:
        torch.ones(2) + torch.ones(2, dtype=torch.float64)
    assert 'aten.add.Tensor' in double.found


@pytest.mark.parametrize('name', ['mask_rcnn_grc_pvt', 'mask_rcnn_grc_swin', 'retinanet_grc_pvt'])
def test_neither_a_step_nor_inference_uses_double_precision(name):
    config = Config.fromfile(REPOSITORY / 'configs' / 'shapes' / f'{name}.py')
    family = 'swin' if 'swin' in name else 'pvt'
    for key, value in SMALL[family].items():
        config.model.backbone[key] = value
    config.model.backbone.init_cfg = None
    config.model.neck.in_channels = CHANNELS[family]
    init_default_scope('mmdet')
    model = MODELS.build(config.model)
    shapes = [(3, 64, 96), (3, 96, 64)]
    inputs = demo_mm_inputs(2, shapes, num_items=[2, 1], num_classes=3, with_mask='mask_rcnn' in name)
    for sample in inputs['data_samples']:
        # As the pipelines give them.
        sample.set_metainfo({'scale_factor': (1.1, 1.2)})
        if 'masks' in sample.gt_instances:
            sample.gt_instances.masks.masks = sample.gt_instances.masks.masks.astype(np.uint8)
    with DoublePrecision() as double:
        losses, _ = model.parse_losses(model(**model.data_preprocessor(inputs, True), mode='loss'))
        losses.backward()
        with torch.no_grad():
            (first, _) = model.eval().test_step(inputs)
    assert len(first.pred_instances.scores) > 0
    assert double.found == set()
