"""MMEngine's configs without repeated work.

For each `mmdet::` base of a config, MMEngine reloads pkg_resources and reads the 100 metafiles of MMDetection. A run
formats its config six times. The results are the same each time, so each process of the tests computes them once.
"""

import functools
import warnings

from mmengine.config import Config, config, utils
from yapf.yapflib import yapf_api


def once_per_text(format_code):
    """Cache the results by text alone, since MMEngine always passes the same style."""
    texts = {}

    @functools.wraps(format_code)
    def remembered(text, **style):
        if text not in texts:
            texts[text] = format_code(text, **style)
        return texts[text]

    return remembered


def remember():
    """Cache the installed packages, the metafiles, and the text of each formatted config."""
    if hasattr(yapf_api.FormatCode, '__wrapped__'):
        return
    # The maintained fork imports it where it is called.
    yapf_api.FormatCode = config.FormatCode = once_per_text(yapf_api.FormatCode)
    config.is_installed = functools.cache(config.is_installed)
    config.get_installed_path = functools.cache(config.get_installed_path)
    utils.load = functools.cache(utils.load)
    # Forks of this process then have these cached.
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
        Config._get_cfg_path('mmdet::_base_/default_runtime.py', '')
    assert Config({'key': 1}).pretty_text == 'key = 1\n'
