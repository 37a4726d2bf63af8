"""A `python` that runs this project's tools without delay, by forking a process that has imported MMDetection.

The imports take 4 seconds, most of the time of many short commands. `python -m tests.helpers.forked_python SOCKET`
waits for clients. :data:`CLIENT` is the source of the program that replaces `python`.
"""

import json
import multiprocessing
import os
import runpy
import socket
import sys
import traceback
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
    """Become the process of the client."""
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
    import mmgrc.runs.mmdet_tools
    import mmgrc.visualization.report

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print(Path(mmgrc.__file__).parent.parent, flush=True)
    while True:
        connection, _ = listener.accept()
        # Not os.fork(): workers of a data loader must end with their parent.
        multiprocessing.get_context('fork').Process(target=run, args=(connection,)).start()
        connection.close()


if __name__ == '__main__':
    serve(sys.argv[1])
