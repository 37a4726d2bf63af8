"""A `python` that starts this project's tools without import time, as forks of a process that has imported their needs.

The imports of PyTorch and MMDetection take most of the time of a short command. The process that forks is
`python -m tests.helpers.forked_python SOCKET`. :data:`CLIENT` is the program that replaces `python`. It runs
`tools/*.py` and `-c` in a fork, which gets its standard streams, folder, environment and signals. If the client or the
fork ends, so does the other. Other commands run in the real interpreter. Each fork imports mmgrc itself, in the order
of its tool.
"""

import gc
import importlib.util
import json
import multiprocessing
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import quick_configs

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys

arguments = [argument for argument in sys.argv[1:2] if argument != '-u'] + sys.argv[2:]
if arguments[:1] != ['-c'] and not any('tools/' in argument for argument in arguments[:1]):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
server.sendall(len(request).to_bytes(4, 'big'))
socket.send_fds(server, [b'.'], [0, 1, 2])
server.sendall(request)
sent = []
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: (sent.append(number), server.sendall(bytes([number]))))
answer = server.recv(1)
if not answer and sent:
    signal.signal(sent[-1], signal.SIG_DFL)
    os.kill(os.getpid(), sent[-1])
sys.exit(answer[0] if answer else 'python: the process has died')
"""

IMPORTS = [
    *('matplotlib.pyplot', 'pycocotools.cocoeval', 'rich.progress', 'torch._dynamo', 'torch.utils.flop_counter'),
    *('mmengine.hooks', 'mmengine.runner', 'mmengine.visualization'),
    *('mmdet.apis', 'mmdet.datasets', 'mmdet.evaluation', 'mmdet.models', 'mmdet.testing', 'mmdet.visualization'),
]


def follow(connection, ended):
    """Receive the signals of the client, and end when it ends."""
    while number := connection.recv(1):
        os.kill(os.getpid(), number[0])
    if not ended.is_set():
        os.kill(os.getpid(), signal.SIGKILL)


def run(connection):
    """Run the command of the client in this process."""
    import numpy as np

    size = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), 'big')
    for number, descriptor in enumerate(socket.recv_fds(connection, 1, 3)[1]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    arguments, folder, environment = json.loads(connection.recv(size, socket.MSG_WAITALL))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A new process starts with its own random numbers.
    random.seed()
    np.random.seed()
    ended = threading.Event()
    threading.Thread(target=follow, args=(connection, ended), daemon=True).start()
    code = 0
    try:
        if arguments[0] == '-c':
            sys.argv = ['-c', *arguments[2:]]
            exec(compile(arguments[1], '<string>', 'exec'), {'__name__': '__main__'})
        else:
            sys.argv = sys.orig_argv = arguments
            runpy.run_path(arguments[0], run_name='__main__')
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    ended.set()
    connection.sendall(bytes([code]))


def provide_ops():
    """Provide what MMDetection imports: mmcv's ops, and torchvision for mmpretrain. Import nothing else of mmgrc."""
    package = types.ModuleType('mmgrc')
    package.__path__ = ['mmgrc']
    sys.modules['mmgrc'] = package
    importlib.import_module('mmgrc.env.mmcv_ops').provide_ops()
    if importlib.util.find_spec('mmpretrain') is not None:
        importlib.import_module('mmgrc.env.torchvision_ops').provide_torchvision()
    del sys.modules['mmgrc']


def serve(path):
    provide_ops()
    for name in IMPORTS:
        importlib.import_module(name)
    quick_configs.remember()
    # As in tests/conftest.py. The forks then also share more memory.
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print('ready', flush=True)
    while True:
        connection, _ = listener.accept()
        # Not os.fork(): workers of a data loader must end with their parent.
        multiprocessing.get_context('fork').Process(target=run, args=(connection,)).start()
        connection.close()


@contextmanager
def forked_python(repository, name='python'):
    """Yield the path of a `python` for the tools of a clone. It uses one thread and has the name `name`."""
    environment = {**os.environ, 'PYTHONPATH': str(repository), 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix='mmgrc-') as folder:
        path, address = Path(folder, name), str(Path(folder, 'socket'))
        path.write_text(CLIENT.format(python=sys.executable, socket=address))
        path.chmod(0o755)
        with subprocess.Popen(
            [sys.executable, '-m', __name__, address],
            cwd=repository,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as server:
            try:
                # The maintained fork of MMDetection prints lines as it is imported.
                assert 'ready\n' in iter(server.stdout.readline, '')
                yield path
            finally:
                # Also ends the processes that it has forked.
                os.killpg(server.pid, signal.SIGKILL)


if __name__ == '__main__':
    serve(sys.argv[1])
