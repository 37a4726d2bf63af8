"""Interpreters that see only some of the installed packages."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mmengine

from tests.conftest import REPOSITORY

SITE = Path(mmengine.__file__).parent.parent


def run_with_packages(
    arguments: list,
    folder: Path,
    keep: Callable[[str], bool],
    prepare: Callable[[Path], None] = lambda site: None,
    **env,
) -> subprocess.CompletedProcess:
    """Run Python in ``folder`` with this repository and the packages whose names ``keep`` accepts. `-S` hides the rest.

    ``prepare`` may change the links to the packages. Its argument is the folder of the links.
    """
    site = folder / 'site'
    site.mkdir()
    for entry in SITE.iterdir():
        if keep(entry.name):
            (site / entry.name).symlink_to(entry)
    prepare(site)
    paths = {'PYTHONPATH': f'{REPOSITORY}{os.pathsep}{site}', 'CUDA_VISIBLE_DEVICES': ''}
    return subprocess.run(
        [sys.executable, '-S', *arguments],
        cwd=folder,
        env={**os.environ, **paths, **env},
        capture_output=True,
        text=True,
        timeout=200,
    )
