"""A worker process: calls the functions it is sent, and sends back what they return.

It is started by `workers.py`, which holds the other ends of its pipes, and ends when they are closed, which the end of
that process does too. What other modules need of PyTorch is imported once, before the process forks into several.
"""

import importlib
import os
import pickle
import queue
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, BinaryIO

from batchnorm.study.workers import Shared

PRELOADED = "batchnorm.study.training"

Pipe = tuple[int, int]  # file descriptors: to read requests from, to write answers to


def main(pairs: str) -> None:
    """Serve over standard input and output, and in a process of its own over each further pair of descriptors.

    Args:
        pairs: The further pairs: "5,6 7,8".
    """
    pipes: list[Pipe] = [(os.dup(0), os.dup(1))]
    for pair in pairs.split():
        reads, writes = map(int, pair.split(","))
        pipes.append((reads, writes))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # whatever the user's code prints is no answer
    importlib.import_module(PRELOADED)
    own, children = _divided(pipes)
    for descriptor in {d for pipe in pipes for d in pipe} - set(own):
        os.close(descriptor)  # or the death of another process would go unnoticed
    _serve(os.fdopen(own[0], "rb"), os.fdopen(own[1], "wb"), children)


def _divided(pipes: Sequence[Pipe]) -> tuple[Pipe, list[int]]:
    """Fork a process for each pipe but the first; return the pipe of the process that this is, and its children."""
    children: list[int] = []
    for pipe in pipes[1:]:
        child = os.fork()
        if child == 0:
            return pipe, []
        children.append(child)
    return pipes[0], children


def _serve(requests: BinaryIO, answers: BinaryIO, children: Sequence[int]) -> None:
    """Answer requests: ("share", name, value), which is kept for later calls, or ("call", function, arguments)."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, waiting, children), daemon=True).start()
    shared: dict[Any, Any] = {}
    while True:
        try:
            kind, *content = pickle.loads(waiting.get())
            if kind == "share":
                shared[content[0]] = content[1]
                continue
            function, arguments = content
            given = [shared[a] if isinstance(a, Shared) else a for a in arguments]
            answer = pickle.dumps((True, function(*given)))
        except BaseException as error:  # of whatever kind the user's code brings about, sys.exit among them
            answer = pickle.dumps((False, _portable(error)))
        pickle.dump(answer, answers)
        answers.flush()


def _receive(requests: BinaryIO, waiting: "queue.SimpleQueue[bytes]", children: Sequence[int]) -> None:
    """Take requests from the pipe; end this process, whatever it is doing, when there can be no more."""
    try:
        while True:
            waiting.put(pickle.load(requests))
    except (EOFError, OSError):
        for child in children:  # whose pipes are closed too
            with suppress(ChildProcessError):
                os.waitpid(child, 0)
        os._exit(0)


def _portable(error: BaseException) -> Exception:
    """Return an exception that another process can raise, with the traceback of this one as a note."""
    try:
        pickle.loads(pickle.dumps(error))
        portable = error if isinstance(error, Exception) else None
    except Exception:
        portable = None
    if portable is None:
        portable = RuntimeError(f"{type(error).__name__}: {error}")
    portable.add_note("".join(traceback.format_exception(error)))
    return portable


if __name__ == "__main__":
    main(sys.argv[1])
