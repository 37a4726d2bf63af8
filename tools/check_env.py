"""Check the machine: versions, compiled ops, registries, a forward, COCO; each problem with what mends it."""

import subprocess
import sys

if __name__ == '__main__':
    # As a module: the package itself cannot be imported where the stack is broken.
    sys.exit(subprocess.call([sys.executable, '-m', 'mmgrc.check_env', *sys.argv[1:]]))
