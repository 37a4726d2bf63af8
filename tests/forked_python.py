"""A `python` that runs this project's tools at once: a fork of one process which has imported MMDetection.

The imports take 4 seconds, most of what many short commands take. `python -m tests.forked_python SOCKET` waits for
clients; :func:`forked_python` starts it, and writes the program that stands in for `python`.
"""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, socket, sys

if not sys.argv[1:] or not sys.argv[1].startswith('tools/'):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
server.sendall(len(request).to_bytes(4, 'big'))
socket.send_fds(server, [b'.'], [0, 1, 2])
server.sendall(request)
answer = server.recv(1)
sys.exit(answer[0] if answer else 'python: the process has died')
"""


def run(connection):
    """Be the process that the client stands for."""
    size = int.from_bytes(connection.recv(4), 'big')
    for number, descriptor in enumerate(socket.recv_fds(connection, 1, 3)[1]):
        os.dup2(descriptor, number)
    arguments, folder, environment = json.loads(connection.recv(size, socket.MSG_WAITALL))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    code = 0
    try:
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
    connection.sendall(bytes([code]))


def serve(path):
    import mmgrc.mmdet_tools
    import mmgrc.visualization.report

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print(Path(mmgrc.__file__).parent.parent, flush=True)
    while True:
        connection, _ = listener.accept()
        # Not a bare fork: workers of a data loader end with their parent.
        multiprocessing.get_context('fork').Process(target=run, args=(connection,)).start()
        connection.close()


@contextmanager
def forked_python(python, socket_path, repository, environment):
    """Write a stand-in for `python`, which works until the end of the block.

    The path of a socket must be short.
    """
    python.write_text(CLIENT.format(python=sys.executable, socket=str(socket_path)))
    python.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, '-m', 'tests.forked_python', socket_path],
        cwd=repository,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as server:
        try:
            assert server.stdout.readline() == f'{repository}\n'
            yield
        finally:
            # With what it has forked.
            os.killpg(server.pid, signal.SIGKILL)


if __name__ == '__main__':
    serve(sys.argv[1])
