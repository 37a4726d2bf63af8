"""Configs of the installed package by the name ``mmgrc::PATH``, as MMEngine has it for ``mmdet::PATH``."""

from __future__ import annotations

import functools
from pathlib import Path

from mmengine.config import Config

__all__ = ['config_path', 'register_config_prefix']

PREFIX = 'mmgrc::'
# A link to the repository's configs/ in a checkout, a folder in a wheel.
CONFIG_DIR = Path(__file__).parent / '.mim' / 'configs'


def config_path(name: str) -> str:
    """The file that ``name`` stands for.

    ``mmgrc::mask_rcnn_grc_pvt.py`` is one of the package's own configs, ``mmdet::swin/NAME.py`` one of MMDetection's;
    anything else is a path already.

    Raises:
        FileNotFoundError: The package has no such config. The message lists those that mmgrc has.
        ValueError: The name has no folder, which MMEngine asks for with packages other than mmgrc.
        ModuleNotFoundError: The package is not installed.
    """
    if '::' not in name:
        return name
    if not name.startswith(PREFIX):
        try:
            return Config._get_cfg_path(name, '')[0]
        except ValueError as error:
            raise ValueError(
                f'{name!r} names no config: write PACKAGE::FOLDER/NAME.py, as in '
                'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
            ) from error
    path = CONFIG_DIR / name.removeprefix(PREFIX)
    if not path.is_file():
        names = sorted(str(p.relative_to(CONFIG_DIR)) for p in CONFIG_DIR.rglob('*.py') if '_base_' not in p.parts)
        raise FileNotFoundError(f'mmgrc has no config {name!r}. It has: ' + ', '.join(PREFIX + n for n in names))
    return str(path)


def register_config_prefix() -> None:
    """Let ``_base_`` entries and ``Config.fromfile`` name the package's configs.

    MMEngine has a fixed table of packages and asks for a folder in the path, so its look-up is extended for this one
    prefix and left alone for all others.
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
