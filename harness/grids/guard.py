"""Ends a sweep's launching process, and what it started, when the command that started it is gone."""

import os
import threading

import psutil

VARIABLE = "HARNESS_SWEEP_ENDS_WITH_STDIN"  # set by the command; a sweep started by hand may have no input at all


def end_with_stdin() -> None:
    """End this process and its children once its standard input is at its end, where `VARIABLE` asks for it.

    The command holds the pipe's other end and never writes: even after kill -9 the system closes it.
    """
    if os.environ.pop(VARIABLE, "") != "1":
        return
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    while os.read(0, 1024):  # not sys.stdin: a thread in the middle of reading that breaks the interpreter's own end
        continue
    end_children()
    os._exit(1)


def end_children() -> None:
    """End all processes below this one."""
    for child in psutil.Process().children(recursive=True):
        try:
            child.terminate()
        except psutil.NoSuchProcess:  # it ended by itself
            continue
