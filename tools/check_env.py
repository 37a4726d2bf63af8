"""Check the machine (versions, compiled ops, registries, a forward, COCO), and print how to fix each problem."""

import subprocess
import sys

if __name__ == '__main__':
    # As a module: the package itself cannot be imported if a package that it needs is broken.
    sys.exit(subprocess.call([sys.executable, '-m', 'mmgrc.check_env', *sys.argv[1:]]))
