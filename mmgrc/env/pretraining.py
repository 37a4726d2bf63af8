"""What pre-training needs in addition: mmpretrain and torchvision's transforms, from the extra ``pretrain``."""

from __future__ import annotations

import importlib

from .versions import Requirement, installed_version, version_problem

__all__ = ['INSTALL', 'REQUIREMENTS', 'PretrainingError', 'check_pretraining', 'is_installed']

INSTALL = 'make env-pretrain (in an environment of your own: pip install mmpretrain model-index torchvision)'
"""What installs the packages."""
REQUIREMENTS = (
    Requirement('mmpretrain', '1.2.0', '1.2.0', '2.0', 'pip install mmpretrain==1.2.0'),
    Requirement('torchvision', '0.28.0', '0.21', None, 'pip install torchvision'),
    # mmpretrain asks pip for another package, which has this name and is empty.
    Requirement('model-index', '0.1.11', '0.1.11', None, 'pip install model-index==0.1.11'),
)
_PARTS = ('datasets', 'engine', 'evaluation', 'models', 'visualization')


class PretrainingError(ImportError):
    """Packages for pre-training are missing or do not work."""


def is_installed() -> bool:
    """Whether mmpretrain is installed, in whatever version."""
    return installed_version('mmpretrain') is not None


def check_pretraining() -> None:
    """Check the versions of the packages, and import mmpretrain.

    Raises:
        PretrainingError: A package is missing, does not have a version that works, or cannot be imported. The message
            says what to type.
    """
    if not is_installed():
        raise PretrainingError(f'pre-training needs mmpretrain, which is not installed. Type: {INSTALL}')
    problems = [(version_problem(need, installed_version(need.package)), need.remedy) for need in REQUIREMENTS]
    if found := [f'{problem}. Type: {remedy}' for problem, remedy in problems if problem]:
        raise PretrainingError('pre-training cannot run with what is installed: ' + '; '.join(found))
    try:
        for part in _PARTS:
            importlib.import_module(f'mmpretrain.{part}')
    except Exception as error:
        # Third-party code. It imports further packages where they are installed.
        raise PretrainingError(
            f'mmpretrain cannot be imported: {type(error).__name__}: {error}. If this comes from transformers, which '
            f'it uses where that is installed, type: pip install "transformers<5". Otherwise: {INSTALL}'
        ) from error
