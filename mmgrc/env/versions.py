"""The packages that mmgrc needs: the tested versions, and a check of the installed ones."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from typing import NamedTuple

__all__ = [
    'REQUIREMENTS',
    'Requirement',
    'StackError',
    'check_stack',
    'compile_mmcv_command',
    'distribution_version',
    'installed_version',
    'rebuild_mmcv_command',
    'requirements',
    'version_problem',
]


class StackError(ImportError):
    """A package is missing, too old or too new."""


class Requirement(NamedTuple):
    """A package with the versions that work."""

    package: str
    """Its import name. Several distributions may contain it."""
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


REQUIREMENTS = (
    Requirement('torch', '2.13.0', '2.6', None, 'pip install torch==2.13.0'),
    Requirement('mmengine', '0.10.7', '0.10.7', '1.0', 'pip install mmengine==0.10.7'),
    Requirement('mmcv', '2.1.0', '2.1.0', '2.2.0', 'pip install mmcv-lite==2.1.0'),
    Requirement('mmdet', '3.3.0', '3.3.0', '4.0', 'pip install mmdet==3.3.0'),
    # mmengine reads its `mmdet::` base configs through pkg_resources, which setuptools 81 no longer has.
    Requirement('setuptools', '80.10.2', '77.0', '81', 'pip install "setuptools<81"'),
)
# The maintained fork has the import names of OpenMMLab's packages, and its own version numbers.
_FORK = {
    'mmengine': Requirement('mmengine', '0.10.12', '0.10.12', '1.0', 'pip install onedl-mmengine==0.10.12'),
    'mmcv': Requirement('mmcv', '2.3.6', '2.3.6', '3.0', 'pip install onedl-mmcv==2.3.6'),
    'mmdet': Requirement('mmdet', '3.5.1', '3.5.1', '4.0', 'pip install onedl-mmdetection==3.5.1'),
}
# They are looked up first, because finding the distribution of an import name takes half a second.
_DISTRIBUTIONS = {
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
}


def _is_fork() -> bool:
    return distribution_version('onedl-mmdetection') is not None and distribution_version('mmdet') is None


def requirements() -> tuple[Requirement, ...]:
    """:data:`REQUIREMENTS`, or those of the maintained fork if its mmdet is installed."""
    fork = _is_fork()
    return tuple(_FORK.get(need.package, need) if fork else need for need in REQUIREMENTS)


def compile_mmcv_command() -> str:
    """The command that replaces mmcv-lite with mmcv and its ops, as ``make env-full`` does. It needs a compiler."""
    if _is_fork():
        return rebuild_mmcv_command()
    return 'pip uninstall -y mmcv-lite; pip install wheel ninja; pip install --no-build-isolation mmcv==2.1.0'


def rebuild_mmcv_command() -> str:
    """The command that recompiles mmcv's ops against the installed torch."""
    if _is_fork():
        # Its only distribution gets ops where it is built beside torch, so pip may have cached a wheel without them.
        return (
            'pip uninstall -y onedl-mmcv; pip cache remove onedl-mmcv; pip install wheel ninja; '
            'pip install --no-build-isolation onedl-mmcv==2.3.6'
        )
    return 'pip uninstall -y mmcv; pip cache remove mmcv; pip install --no-build-isolation mmcv==2.1.0'


def distribution_version(distribution: str) -> str | None:
    """The installed version of a distribution, which has the name that pip uses, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def installed_version(package: str) -> str | None:
    """The version of the installed distribution that contains an import name, or None."""
    for distribution in _DISTRIBUTIONS.get(package, (package,)):
        if found := distribution_version(distribution):
            return found
    return next((version(name) for name in packages_distributions().get(package, ())), None)


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
    """Check that every package is installed in a version that works, and that mmcv's ops can be imported.

    If mmcv has no compiled ops, those of :mod:`mmgrc.env.mmcv_ops` are used instead.

    Raises:
        StackError: A package does not pass, or the compiled ops do not fit the installed torch. The message names all
            problems, and what to type.
    """
    problems = []
    for need in requirements():
        if problem := version_problem(need, installed_version(need.package)):
            problems.append(f'{problem}. Type: {need.remedy}')
    if not problems:
        from .mmcv_ops import provide_ops
        from .torchvision_ops import provide_torchvision

        provide_ops()
        if find_spec('mmpretrain') is not None:
            # MMDetection imports it, and it imports torchvision.
            provide_torchvision()
        try:
            import mmcv.ops  # noqa: F401
        except ImportError as error:
            problems.append(
                f'the compiled ops of mmcv do not fit the installed torch ({error}). Type: {rebuild_mmcv_command()}'
            )
    if problems:
        raise StackError('mmgrc cannot run with what is installed:\n  ' + '\n  '.join(problems))
