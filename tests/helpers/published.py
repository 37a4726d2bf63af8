"""State dicts with the key names of other code, made from ours, to test the converters."""

import re

import torch

GRC_NAMES = {
    'update_gate': 'linear_update',
    'reset_gate': 'linear_reset',
    'candidate': 'linear_add',
    'candidate_norm': 'Norm1',
    'mem_attn': 'attn_mem',
    'pos_conv': 'pos_emb',
    'lam': 'lam',
    'cache': 'gr_cache',
}


def original_pvt(state):
    """Convert to PVT's own names: separate q and kv, linear layers for 1x1 convolutions, last-stage class token."""
    out = {}
    last = max(int(key.split('.')[1]) for key in state)
    for key, value in state.items():
        _, stage, part, *rest = key.split('.')
        stage = int(stage) + 1
        if part == '0':
            out[f'patch_embed{stage}.' + '.'.join(rest).replace('projection', 'proj')] = value
        elif rest[-1] == 'pos_embed':
            if stage == last + 1:
                value = torch.cat([torch.randn(1, 1, value.shape[2]), value], dim=1)
            out[f'pos_embed{stage}'] = value
        else:
            name = f'block{stage}.{int(rest[0]) - 1}.' + '.'.join(rest[1:])
            if 'in_proj' in name:
                dims = value.shape[0] // 3
                out[name.replace('attn.in_proj_', 'q.')] = value[:dims]
                out[name.replace('attn.in_proj_', 'kv.')] = value[dims:]
                continue
            name = name.replace('attn.attn.out_proj', 'attn.proj')
            name = name.replace('ffn.layers.0', 'mlp.fc1').replace('ffn.layers.3', 'mlp.fc2')
            if 'mlp' in name and name.endswith('weight'):
                value = value.flatten(1)
            out[name] = value
    dims = max(value.shape[0] for value in state.values())
    return {**out, 'cls_token': torch.zeros(1, 1, dims), 'norm.weight': torch.ones(dims), 'head.bias': torch.ones(9)}


def published_grc(state):
    """Convert to the names of the published GRC module. The cache of the last stage begins with the class token."""
    stock = {key: value for key, value in state.items() if '.grc.' not in key}
    out = {
        re.sub(r'(block\d+\.\d+\.attn)\.', r'\1.attn_self_func.', key): value
        for key, value in original_pvt(stock).items()
    }
    last = max(int(key.split('.')[1]) for key in state)
    for key, value in state.items():
        if '.grc.' in key:
            head, tail = key.split('.attn.grc.')
            _, stage, _, block = head.split('.')
            name, *rest = tail.split('.')
            if name == 'cache' and int(stage) == last:
                value = torch.cat([torch.randn(1, 1, value.shape[2]), value], dim=1)
            out['.'.join([f'block{int(stage) + 1}', str(int(block) - 1), 'attn', GRC_NAMES[name], *rest])] = value
    return out
