"""The model index: metafiles in `mim`'s format, and the tables of the documentation that are generated from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from mmengine.config import Config

from mmgrc.models.ops import use_ops
from mmgrc.runs.benchmark import Options, count_flops
from mmgrc.runs.config import build_model, load_config
from mmgrc.runs.error import InputError

__all__ = ['count_backbone_flops', 'count_parameters', 'model_table', 'read_models', 'update_metafiles', 'write_tables']

# A page marks where a table goes. The text between the two lines is rewritten.
_MARK = re.compile(r'(<!-- models of (\S+), by `make tables` -->\n).*?(<!-- end of models -->)', re.S)
FLOPS_SIZE = (800, 1344)
"""Rows and columns of the image for which FLOPs are counted."""
_NOT_TRAINED = 'not trained here'


def _metafiles(root: Path) -> list[Path]:
    index = root / 'model-index.yml'
    if not index.is_file():
        raise InputError(f'there is no {index}: give the root of the repository')
    return [root / name for name in yaml.safe_load(index.read_text())['Import']]


def read_models(root: str | Path) -> list[dict]:
    """Read the models of all metafiles.

    Args:
        root: The repository, or the package's ``.mim`` folder.

    Returns:
        The entries, in the order of the files.

    Raises:
        InputError: There is no index.
    """
    return [model for path in _metafiles(Path(root)) for model in yaml.safe_load(path.read_text())['Models']]


def count_backbone_flops(config: Config) -> int:
    """Count the operations of a forward pass on an image of :data:`FLOPS_SIZE`, with the fast operations.

    The plain ones take a little less: the folded projections multiply with zeros.
    """
    with use_ops('fast'):
        return count_flops(config, Options(size=FLOPS_SIZE))


def count_parameters(config: Config) -> int:
    """Build the model of a config and count its parameters. Buffers, such as the caches, do not count."""
    return sum(parameter.numel() for parameter in build_model(config).parameters())


def update_metafiles(root: str | Path) -> list[Path]:
    """Update the metafiles from the configs: epochs, parameters and FLOPs.

    Args:
        root: The repository.

    Returns:
        The files that changed.

    Raises:
        InputError: A config is missing, or its model cannot be built.
    """
    root, changed = Path(root), []
    for path in _metafiles(root):
        old = path.read_text()
        content = yaml.safe_load(old)
        for model in content['Models']:
            config = load_config(str(root / model['Config']))
            model['Metadata'].update(
                {
                    'Epochs': config.train_cfg.max_epochs,
                    'Parameters': count_parameters(config),
                    'Backbone FLOPs': count_backbone_flops(config),
                }
            )
        comment = ''.join(line for line in old.splitlines(keepends=True) if line.startswith('#'))
        new = comment + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
        if new != old:
            path.write_text(new)
            changed.append(path)
    return changed


def model_table(models: Sequence[dict]) -> str:
    """A Markdown table of models of one detector.

    The paper's numbers have their own columns. If a model was trained here, the last column has its ``Results``.
    """
    metrics = list(dict.fromkeys(name for model in models for name in model['Metadata']['Paper']))
    head = ['config', 'parameters', 'backbone, GFLOP', *(f"{name}, paper's" for name in metrics), 'trained here']
    rows = []
    for model in models:
        paper = model['Metadata']['Paper']
        results = model.get('Results') or []
        own = ', '.join(f'{k} {v}' for result in results for k, v in result['Metrics'].items()) or _NOT_TRAINED
        rows.append(
            [
                f'`{model["Config"]}`',
                f'{model["Metadata"]["Parameters"] / 1e6:.1f} M',
                f'{model["Metadata"]["Backbone FLOPs"] / 1e9:.0f}',
                *(f'{paper[name]:.1f}' if name in paper else '-' for name in metrics),
                own,
            ]
        )
    rule = ['---', *['---:'] * (len(metrics) + 2), '---']
    return ''.join(f'| {" | ".join(row)} |\n' for row in (head, rule, *rows))


def write_tables(pages: Iterable[Path], models: Sequence[dict]) -> list[Path]:
    """Write the tables into pages, between ``<!-- models of COLLECTION, by `make tables` -->`` and its end.

    Args:
        pages: Markdown files. Those without such lines do not change.
        models: The result of :func:`read_models`.

    Returns:
        The pages that changed.

    Raises:
        ValueError: A page names a collection that has no models.
    """
    changed = []
    for page in pages:
        old = page.read_text()

        def table(match: re.Match, page: Path = page) -> str:
            chosen = [model for model in models if model['In Collection'] == match[2]]
            if not chosen:
                names = sorted({model['In Collection'] for model in models})
                raise ValueError(f'{page}: there are no models of {match[2]}; there are {", ".join(names)}')
            return match[1] + model_table(chosen) + match[3]

        new = _MARK.sub(table, old)
        if new != old:
            page.write_text(new)
            changed.append(page)
    return changed
