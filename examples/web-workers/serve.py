"""serve.py PORT WORKERS: serve app.py from pre-forked workers, as `gunicorn --preload` does.

The application and its inbox are loaded once. Then each worker is forked, and accepts from the same socket.
"""

import os
import signal
import socket
import sys

import uvicorn
from app import app

STOP = {signal.SIGTERM, signal.SIGINT}


def fork_worker(listener: socket.socket) -> int:
    """Start a worker; return its process id. SIGTERM: it answers the requests that it has begun, and ends."""
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
        os._exit(0)
    return child


def main(port: int, count: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    listener = socket.create_server(("127.0.0.1", port))
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # kept until sigwait asks for them
    workers = [fork_worker(listener) for _ in range(count)]
    print(f"{count} workers listen on port {listener.getsockname()[1]}", flush=True)
    signal.sigwait(STOP)
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    for worker in workers:
        os.waitpid(worker, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
