"""The packages that mmgrc needs: the tested versions, and a check of the installed ones."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

__all__ = [
    'REBUILD_MMCV',
    'REQUIREMENTS',
    'Requirement',
    'StackError',
    'check_stack',
    'installed_version',
    'version_problem',
]


class StackError(ImportError):
    """A package is missing, too old or too new."""


class Requirement(NamedTuple):
    """A package with the versions that work."""

    package: str
    tested: str
    """The version that the tests run with."""
    minimum: str
    below: str | None
    """The first version that does not work, if one is known."""
    remedy: str
    """The command that installs a version that works."""

    @property
    def allowed(self) -> str:
        """The versions that work, in words."""
        return f'{self.minimum} or newer' + (f', below {self.below}' if self.below else '')


_MMCV = 'pip install --no-build-isolation mmcv==2.1.0'
REBUILD_MMCV = f'pip uninstall -y mmcv; pip cache remove mmcv; {_MMCV}'
"""The command that recompiles mmcv's ops against the installed torch."""
REQUIREMENTS = (
    Requirement('torch', '2.13.0', '2.1', None, 'pip install torch==2.13.0'),
    Requirement('mmengine', '0.10.7', '0.10.3', '1.0', 'pip install mmengine==0.10.7'),
    Requirement('mmcv', '2.1.0', '2.0.0', '2.2.0', _MMCV),
    Requirement('mmdet', '3.3.0', '3.3.0', '4.0', 'pip install mmdet==3.3.0'),
    # mmengine reads its `mmdet::` base configs through pkg_resources, which setuptools 81 no longer has.
    Requirement('setuptools', '80.10.2', '60.0', '81', 'pip install "setuptools<81"'),
)


def installed_version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def version_problem(need: Requirement, found: str | None) -> str | None:
    """What is wrong with an installed version, without the remedy. None if it works."""
    if found is None:
        return f'{need.package} is not installed (needed: {need.allowed})'
    if find_spec('packaging') is None:
        # It comes with the other packages. The relevant problem is that those are missing.
        return None
    from packaging.version import Version

    if Version(found) < Version(need.minimum) or (need.below and Version(found) >= Version(need.below)):
        return f'{need.package} {found} is installed (needed: {need.allowed})'
    return None


def check_stack() -> None:
    """Check that every package of :data:`REQUIREMENTS` is installed in a version that works, mmcv with compiled ops.

    Raises:
        StackError: A package does not pass. The message names all of them, and what to type.
    """
    problems = []
    for need in REQUIREMENTS:
        if problem := version_problem(need, installed_version(need.package)):
            problems.append(f'{problem}. Type: {need.remedy}')
    if not problems:
        try:
            import mmcv.ops  # noqa: F401
        except ImportError as error:
            problems.append(f'mmcv has no compiled ops that fit the installed torch ({error}). Type: {REBUILD_MMCV}')
    if problems:
        raise StackError('mmgrc cannot run with what is installed:\n  ' + '\n  '.join(problems))
