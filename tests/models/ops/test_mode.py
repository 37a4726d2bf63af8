"""Which processors get oneDNN's matrix products."""

import pytest
import torch

from mmgrc.models.ops import mode

# As in /proc/cpuinfo, which has tabs, and as platform.processor() gives it on Windows.
ZEN_3 = 'vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\n'
ZEN_4 = 'vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n'
ZEN_5 = 'vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n'
ZEN_5_ON_WINDOWS = 'AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD'
INTEL = 'vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n'
NEWER_INTEL = 'vendor_id\t: GenuineIntel\ncpu family\t: 26\n'
ARM = 'CPU implementer\t: 0x41\nCPU architecture: 8\n'


@pytest.mark.parametrize(
    ('processor', 'capability', 'onednn'),
    [
        (ZEN_5, 'AVX512', True),
        (ZEN_5_ON_WINDOWS, 'AVX512', True),
        (ZEN_5, 'AVX2', False),  # ATEN_CPU_CAPABILITY=avx2, or a virtual machine without AVX-512
        (ZEN_4, 'AVX512', False),
        (ZEN_3, 'AVX2', False),
        (INTEL, 'AVX512', False),
        (NEWER_INTEL, 'AVX512', False),
        (ARM, 'DEFAULT', False),
        ('', 'AVX512', False),
    ],
)
def test_onednn_only_where_mkl_is_held_back(monkeypatch, processor, capability, onednn):
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    monkeypatch.setattr(mode, '_HELD_BACK', mode._is_held_back(processor))
    with mode.use_ops('fast'):
        assert mode.onednn_is_faster() is onednn
        assert f'products of {"oneDNN" if onednn else "MKL"}' in mode.describe_ops()
    with mode.use_ops('fast-onednn'):
        assert mode.onednn_is_faster()
    with mode.use_ops('fast-mkl'):
        assert not mode.onednn_is_faster()
