"""The command ``python -m mmgrc.check_env``, see :mod:`mmgrc.env.check`."""

import sys

from .env.check import main

if __name__ == '__main__':
    sys.exit(main())
