"""The reference of GRC attention for the tests, transcribed from the paper with loops and PyTorch's own ops."""

import torch
import torch.nn.functional as F


def resample(tokens, hw, cache_size, extent=None):
    """Average the tokens (T, C) that each cell of the cache covers, weighted by the shared area, cell by cell."""
    grid = tokens.unflatten(0, hw)
    height, width = extent or hw
    cells = []
    for i in range(cache_size[0]):
        for j in range(cache_size[1]):
            top, bottom = i * height / cache_size[0], (i + 1) * height / cache_size[0]
            left, right = j * width / cache_size[1], (j + 1) * width / cache_size[1]
            total, area = 0, 0
            for y in range(hw[0]):
                for x in range(hw[1]):
                    share = max(min(bottom, y + 1) - max(top, y), 0) * max(min(right, x + 1) - max(left, x), 0)
                    if share > 0:
                        total, area = total + share * grid[y, x], area + share
            cells.append(total / area)
    return torch.stack(cells)


def attention(query, memory, module, num_heads, cache_size):
    """Compute softmax attention with an explicit map, and PVT's reduction of the memory."""
    if module.sr is not None:
        grid = memory.transpose(1, 2).reshape(len(memory), -1, *cache_size)
        memory = module.norm(module.sr(grid).flatten(2).transpose(1, 2))
    q = module.q(query)
    k, v = module.kv(memory).chunk(2, dim=2)
    outs = []
    for qh, kh, vh in zip(q.chunk(num_heads, 2), k.chunk(num_heads, 2), v.chunk(num_heads, 2), strict=True):
        scores = qh @ kh.transpose(1, 2) / qh.shape[2] ** 0.5
        outs.append(scores.softmax(dim=2) @ vh)
    return module.proj(torch.cat(outs, dim=2))


def grc(branch, x, o_self, hw, extents=None, training=True):
    """Return the output of a `mmgrc.models.grc.GRC` layer and the cache that it would store (None in evaluation)."""
    heads, dims, size = branch.num_heads, branch.dims, branch.cache_size
    code = branch.variant == 'code'
    cache = branch.cache
    stored = None
    if code or training:
        updated = []
        for b in range(len(x)):
            source = o_self[b] if code else x[b]
            summary = resample(source[:, :dims], hw, size, extents and extents[b])
            gates = torch.cat([cache[0], summary], dim=1)
            z = torch.sigmoid(gates @ branch.update_gate.weight.T + branch.update_gate.bias)
            g = torch.sigmoid(gates @ branch.reset_gate.weight.T + branch.reset_gate.bias)
            parts = [g * cache[0], summary] if code else [summary, g * cache[0]]
            candidate = torch.cat(parts, dim=1) @ branch.candidate.weight.T + branch.candidate.bias
            if code:
                candidate = branch.candidate_norm(F.gelu(candidate))
            updated.append(z * candidate + (1 - z) * cache[0])
        memory = torch.stack(updated)
        if training:
            stored = memory.mean(dim=0, keepdim=True).detach()
        if not code:
            memory = memory.mean(dim=0, keepdim=True).expand_as(memory)
    else:
        memory = cache.expand(len(x), -1, -1)
    o_mem = attention(x[:, :, :dims], memory, branch.mem_attn, heads, size)
    outs = []
    for h in range(heads):
        alpha = torch.sigmoid(branch.lam[h])
        mem = o_mem.chunk(heads, dim=2)[h]
        own = o_self.chunk(heads, dim=2)[h]
        padded = torch.cat([mem, mem.new_zeros(*mem.shape[:2], own.shape[2] - mem.shape[2])], dim=2)
        outs.append(alpha * padded + (1 - alpha) * own)
    out = torch.cat(outs, dim=2)
    if branch.pos_conv is not None:
        grid = x.transpose(1, 2).reshape(len(x), -1, *hw)
        out = out + branch.pos_conv(grid).flatten(2).transpose(1, 2)
    return out, stored
