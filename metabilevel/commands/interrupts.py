"""SIGINT and SIGTERM: the first stops the work in good order, the second at once."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The work was stopped by a signal."""

    def __init__(self, signum: int, message: str = "Interrupted."):
        super().__init__(message)
        self.signum = signum


class Interrupts:
    """While this is entered, a signal raises `Interrupted`, or waits in `asked` where the block is `held`.

    A second one ends the process, even in the midst of compiled code: Python's own handlers run when that comes back,
    and so a thread reads the signals as they arrive.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._held = False

    def __enter__(self) -> "Interrupts":
        self._outlet, self._inlet = socket.socketpair()
        self._inlet.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._inlet.fileno(), warn_on_full_buffer=False)
        self._handlers = {each: signal.signal(each, self._handle) for each in SIGNALS}
        threading.Thread(target=self._watch, args=(self._outlet,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._handlers.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._inlet.close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal that comes in this block is only noted."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _handle(self, signum: int, frame: Any) -> None:
        self.asked = signum
        if not self._held:
            raise Interrupted(signum)

    def _watch(self, outlet: socket.socket) -> None:
        seen = 0
        with outlet:
            while byte := outlet.recv(1):
                seen += byte[0] in SIGNALS
                if seen > 1:
                    Console(stderr=True).show_cursor()
                    os._exit(128 + byte[0])
                click.echo("Stopping as soon as this step is done; once more to stop at once.", err=True)
