"""Ctrl-C and SIGTERM at any moment of a command: it ends soon, with status 130 and one line.

`watch` is called before anything else is imported, and sets handlers before it imports what else it needs. Until the
command runs, and after it has ended, there is nothing to clean up, so an interrupt ends the process on the spot. While
it runs, the first interrupt raises KeyboardInterrupt, so that what was begun is cleared away, and another one, or
`PATIENCE_S` seconds, end it on the spot. What is on disk is whole at any moment, so nothing is lost by that. Worker
processes end with their parent, which alone speaks. An interrupt that a library swallowed or turned into another error
counts all the same.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing these takes as long as everything else here
    from collections.abc import Callable
    from types import FrameType
    from typing import ClassVar, NoReturn

STATUS = 130

PATIENCE_S = 6.0
"""How long an interrupted command may take to clean up; another interrupt ends it at once."""

MESSAGE = b"cloudem: interrupted; run the same command again to resume\n"

SHOW_CURSOR = b"\x1b[?25h"

_STOPPING = (signal.SIGINT, signal.SIGTERM)


class _Interrupts:
    """What is known of them."""

    came = False
    """Whether one has come."""
    raises = False
    """Whether the first one raises KeyboardInterrupt instead of ending the process."""
    unsaid: ClassVar[list[bytes]] = [MESSAGE]
    """The line, until one thread takes it to say it."""
    errors = 2
    """Where to say it."""
    watched = False


def guarded(command: Callable[[], int]) -> int:
    """Run a command and return its exit status, `STATUS` if it was interrupted.

    Parameters
    ----------
    command
        Returns its exit status, or raises SystemExit. It imports what it needs itself.
    """
    watch()
    status = 1
    try:
        try:
            _Interrupts.raises = True
            status = command()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            _Interrupts.raises = False
    except KeyboardInterrupt:
        _Interrupts.came = True
    except BaseException:
        if not _Interrupts.came:  # else it is what a library made of the interrupt
            raise
    if not _Interrupts.came:
        return status
    _say()
    # Python ends by the signal instead if the interrupt met code made from text, as a named tuple's, and nothing else
    # was run from text since
    eval("0")  # noqa: S307
    return STATUS


def advise(text: str) -> None:
    """Say in the line what to do after an interrupt, where that is not to run the same command again."""
    if _Interrupts.unsaid:
        _Interrupts.unsaid[:] = [f"cloudem: interrupted; {text}\n".encode()]


def interrupted() -> bool:
    """Return whether an interrupt has come."""
    return _Interrupts.came


def watch() -> None:
    """Handle signals from now on.

    Handlers in Python run only between two steps of Python, which takes minutes where the main thread waits for a
    server that does not answer. A thread hears of a signal at once.
    """
    if _Interrupts.watched:
        return
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
            signal.signal(signal.SIGINT, _handle)
        signal.signal(signal.SIGTERM, _handle)
    except ValueError:  # handlers can be set in the main thread alone
        return
    _Interrupts.watched = True
    import atexit
    import select
    import threading

    heard, said = os.pipe()
    os.set_blocking(said, False)
    signal.set_wakeup_fd(said, warn_on_full_buffer=False)

    def wait() -> None:
        while os.read(heard, 1)[0] not in _STOPPING:
            pass
        select.select([heard], [], [], PATIENCE_S)
        _leave()

    threading.Thread(target=wait, name="cloudem-signals", daemon=True).start()
    atexit.register(_ignore)  # the first to be registered is the last to be run
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):  # of that, `guarded` will speak
            before(unraisable)

    sys.unraisablehook = hook


def keep_from_children() -> None:
    """Have processes that this thread starts from now on, or threads begun by it, hear nothing of Ctrl-C.

    A terminal sends it to all of them, and each would speak of it, from its first moment on, if only in a traceback of
    Python's start. Whoever started them ends them. A signal that this thread no longer takes goes to another one, so in
    the main thread nothing changes before `watch` has begun one.
    """
    import threading
    from multiprocessing import resource_tracker

    if _Interrupts.watched or threading.current_thread() is not threading.main_thread():
        quiet = "ignore:resource_tracker:UserWarning"  # of semaphores that it clears away after who left on the spot
        sys.warnoptions.append(quiet)
        try:
            resource_tracker.ensure_running()  # which lets SIGINT through to the thread that starts it
        finally:
            sys.warnoptions.remove(quiet)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


def _handle(number: int, frame: FrameType | None) -> None:
    if _Interrupts.came or not _Interrupts.raises:
        _leave()
    _Interrupts.came = True
    _hush()
    raise KeyboardInterrupt


def _ignore() -> None:
    """Leave signals alone while the interpreter is taken down: all is done, and the status is settled."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _leave() -> NoReturn:
    if sys.stdout is not None and os.isatty(1):
        os.write(1, SHOW_CURSOR)
    _say()
    os._exit(STATUS)


def _hush() -> None:
    """From now on there is one line to say: what libraries complain about while they are torn down concerns nobody."""
    try:
        kept = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        _Interrupts.errors = kept
    except OSError:
        pass


def _say() -> None:
    """Say it once, as the last line."""
    try:
        line = _Interrupts.unsaid.pop()
    except IndexError:
        return
    try:
        os.write(_Interrupts.errors, line)  # not through Python's buffer, whose lock the main thread may hold
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    except OSError:
        pass
