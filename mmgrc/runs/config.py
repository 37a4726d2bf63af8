"""Find configs by name, load them for a run, and build their models.

The configs of the installed package have the name ``mmgrc::PATH``, like MMEngine's ``mmdet::PATH``.
"""

from __future__ import annotations

import difflib
import functools
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

from mmdet.registry import MODELS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from torch import nn

from mmgrc.env.mmcv_ops import missing_ops
from mmgrc.env.versions import compile_mmcv_command

from .error import InputError, as_input_error
from .options import unused_options

__all__ = ['CONFIG_DIR', 'build_model', 'config_path', 'get_test_pipeline', 'load_config', 'register_config_prefix']

PREFIX = 'mmgrc::'
# A link to the repository's configs/ in a checkout, a folder in a wheel.
CONFIG_DIR = Path(__file__).parent.parent / '.mim' / 'configs'


def config_path(name: str) -> str:
    """Return the file of a config name.

    ``mmgrc::mask_rcnn_grc_pvt.py`` is one of the package's own configs, ``mmdet::swin/NAME.py`` is one of
    MMDetection's. Anything else is a path already.

    Raises:
        FileNotFoundError: The package has no such config. The message lists those that mmgrc has.
        ValueError: The name has no folder, which MMEngine needs for packages other than mmgrc.
        ModuleNotFoundError: The package is not installed.
    """
    if '::' not in name:
        return name
    if not name.startswith(PREFIX):
        try:
            return Config._get_cfg_path(name, '')[0]
        except ValueError as error:
            raise ValueError(
                f'{name!r} is not the name of a config: write PACKAGE::FOLDER/NAME.py, as in '
                'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
            ) from error
    path = CONFIG_DIR / name.removeprefix(PREFIX)
    if not path.is_file():
        own = ', '.join(PREFIX + config for config in _own_configs())
        raise FileNotFoundError(f'mmgrc has no config {name!r}. It has: {own}')
    return str(path)


def _own_configs() -> list[str]:
    """The configs of the package, by their path below :data:`CONFIG_DIR`."""
    return sorted(p.relative_to(CONFIG_DIR).as_posix() for p in CONFIG_DIR.rglob('*.py') if '_base_' not in p.parts)


def register_config_prefix() -> None:
    """Let ``_base_`` entries and ``Config.fromfile`` name the package's configs.

    MMEngine has a fixed table of packages and needs a folder in the path. Its look-up is therefore extended for this
    one prefix. For all others it does not change.
    """
    if getattr(Config._get_cfg_path, 'knows_mmgrc', False):
        return
    stock_base, stock_fromfile = Config._get_cfg_path, Config.fromfile

    @functools.wraps(stock_base)
    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        return (config_path(cfg_path), None) if cfg_path.startswith(PREFIX) else stock_base(cfg_path, filename)

    @functools.wraps(stock_fromfile)
    def fromfile(filename, *args, **kwargs) -> Config:
        own = str(filename).startswith(PREFIX)
        return stock_fromfile(config_path(filename) if own else filename, *args, **kwargs)

    get_cfg_path.knows_mmgrc = True
    Config._get_cfg_path = staticmethod(get_cfg_path)
    Config.fromfile = staticmethod(fromfile)


def load_config(path: str, options: Mapping | None = None) -> Config:
    """Read a config and merge the command line's options into it. A warning names options that nothing would use.

    Args:
        path: A file, or ``mmgrc::NAME``, or ``mmdet::FOLDER/NAME``.
        options: The options of ``--cfg-options``.

    Raises:
        InputError: There is no such config, or it cannot be read.
    """
    try:
        resolved = Path(config_path(path))
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise InputError(str(error)) from error
    if not resolved.is_file():
        # In a checkout, by their path. The names work in every folder.
        start = 'configs/' if Path('configs').resolve() == CONFIG_DIR.resolve() else PREFIX
        own = _own_configs()
        near = difflib.get_close_matches(path.removeprefix('configs/'), own, n=3, cutoff=0.5) or own
        near = [start + name for name in near]
        raise InputError(f'there is no config {path}. Did you mean one of these? {", ".join(near)}')
    # mmengine prints it for each base config. requirements.txt pins setuptools, which is the remedy.
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    with as_input_error(f'the config {path} cannot be read'):
        config = Config.fromfile(str(resolved))
        before = config.to_dict()
        config.merge_from_dict(dict(options or {}))
    for message in unused_options(before, config.to_dict(), options or {}):
        print_log(message, logger='current', level=logging.WARNING)
    return config


def build_model(config: Config) -> nn.Module:
    """Build the model of a config, without its pre-trained weights.

    Raises:
        InputError: The model of the config cannot be built, or it needs an op of mmcv that is not installed.
    """
    init_default_scope(config.get('default_scope') or 'mmdet')
    try:
        model = MODELS.build(config.model)
    except Exception as error:
        # The registry wraps a constructor's error and prepends its own text.
        raise InputError(f'the model of {config.filename} cannot be built: {error}') from error
    for name, layer in missing_ops(model):
        raise InputError(
            f'model.{name} is a {type(layer).__name__}. Its op needs compiled mmcv. Type: make env-full (in an '
            f'environment of your own: {compile_mmcv_command()})'
        )
    return model


def get_test_pipeline(config: Config) -> list[dict]:
    """The steps that prepare an image for the detector of a config.

    Raises:
        InputError: The config has none.
    """
    try:
        return get_test_pipeline_cfg(config)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise InputError(
            f'the config {config.filename} has no test_dataloader.dataset.pipeline, which says how images are resized: '
            'add it'
        ) from error
