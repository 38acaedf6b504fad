"""Where every command meets what is not ours: the user's code and files, signals, and the terminal.

Whatever goes wrong there ends in one line on stderr and an exit status, and never in a traceback.
"""

import codecs
import ctypes
import errno
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, redirect_stdout, suppress
from inspect import cleandoc
from io import TextIOWrapper
from typing import Any, NoReturn

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from typer.core import TyperGroup

from batchnorm.errors import BatchNormError, MissingExtraError
from batchnorm.outputs import CONTROLS, causes, printable, told

WRONG = 1
BAD_INPUT = 2
INTERRUPTED = 130
NOBODY_READS = 141  # as the shell says of a program that a closed pipe has ended
TERMINATED = 143
STDOUT, STDERR = 1, 2
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # click's, of which typer has brought its own copy since 0.26
PLAINLY = str.maketrans("×÷−–•…✓✗≠²→μσ", "x/--*.+x!2>us")  # for a terminal that has no such characters
LAST_ASCII = 126  # of those that show
_asked = {"to end": False}  # by SIGTERM, of which code that takes Ctrl-C for an early end must not lose sight


class UnprintedError(OSError):
    """An answer cannot be printed: the disk that stdout goes to is full, say."""


@contextmanager
def _printing() -> Generator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnprintedError(error.errno, error.strerror) from error


class Terminal(Console):
    """A console on which no text of the user's acts: names of columns and files, messages of exceptions."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render without escape sequences but rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Leave it to `in_a_line` that nobody reads any more, where rich would end the process with status 1."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and tell an answer that does not arrive from the other files that cannot be written."""
        with _printing():
            super().print(*objects, **options)

    def say(self, line: str) -> None:
        """Print a line as it is, wherever the terminal's lines end."""
        self.print(line, highlight=False, soft_wrap=True)


class Terminated(KeyboardInterrupt):
    """The process was asked to end, by SIGTERM: what Ctrl-C does, with another exit status."""


def _without_types(options: list[Any]) -> list[Any]:
    for option in options:
        if getattr(option, "is_flag", False):
            option.metavar = ""
    return options


class Commands(TyperGroup):
    """Ends every command in one line whatever goes wrong, and prints on any terminal."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the options ahead of the command."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which `python -m batchnorm` leaves to us
        _open_streams()
        codecs.register_error("plainly", _plainly)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="plainly")
        with in_a_line():
            return super().make_context(*args, **kwargs)

    def get_params(self, ctx: Any) -> Any:
        """Return the options ahead of the command, without a type beside those that take no value."""
        return _without_types(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; its help has no broken lines, and no type beside an option that takes no value."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            paragraphs = cleandoc(command.help or "").split("\n\n")
            command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
            _without_types(command.get_params(ctx))
        return command

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's own options, run it, and see that what it has printed arrives."""
        _asked["to end"] = False
        with in_a_line():
            try:
                return super().invoke(ctx)
            finally:
                with _printing():
                    sys.stdout.flush()


def _open_streams() -> None:
    """Open what the caller has closed of stdin, stdout and stderr, or the next file opened would take its place."""
    for descriptor in (0, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free: this one
    sys.stdout = sys.stdout or open(STDOUT, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(STDERR, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return for characters that a terminal cannot show others that look alike, and escapes for the rest."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAINLY)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def fail(error: BaseException, doing: str = "") -> NoReturn:
    """Print an error in one line, and end with the status of bad input.

    Args:
        error: What was raised.
        doing: What has failed with it, if it is none of our own errors, whose messages say so.
    """
    line = printable(" ".join(_reason(error, doing).split()))
    _say(f"[red]error:[/] {escape(line)}")
    raise typer.Exit(BAD_INPUT) from None


def _say(line: str) -> None:
    """Print a line on stderr, or nothing where the user's code has closed it or its disk is full."""
    try:
        Terminal(stderr=True).say(line)
    except (OSError, ValueError):
        _let_go(STDERR)


def _let_go(descriptor: int) -> None:
    """Send what is still to be written nowhere, or Python would try once more as it ends, and complain."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _reason(error: BaseException, doing: str) -> str:
    if isinstance(error, BatchNormError | MissingExtraError):
        return str(error)
    if isinstance(error, USAGE_ERROR):
        return _usage(error)
    failed = f"{doing} failed: " if doing else ""
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes | os.PathLike) and error.strerror:
        return f"{failed}{os.fsdecode(error.filename)}: {error.strerror}"
    return failed + told(error)


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    return f"{error.format_message().rstrip('.')}{hint}"


@contextmanager
def in_a_line(left: Callable[[], str] = lambda: "Interrupted.", doing: str = "") -> Generator[None]:
    """End in one line and a status whatever goes wrong; let SIGTERM interrupt as Ctrl-C does.

    Args:
        left: Says what an interruption leaves.
        doing: What the user's code is doing here, for the line that says that it failed.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        if main:
            signal.signal(signal.SIGTERM, _terminate)
        yield
    except typer.Exit:
        raise
    except BaseException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # which is no error to whoever asks for help
            raise
        if _is_interruption(error):
            _say(f"\n{escape(left())}")
            raise typer.Exit(stopped()) from None
        if _nobody_reads(error):
            _let_go(STDOUT)
            raise typer.Exit(NOBODY_READS) from None
        if isinstance(error, UnprintedError):
            _let_go(STDOUT)
            fail(BatchNormError(f"the answer cannot be printed: {error.strerror}; send it elsewhere"))
        fail(error, doing)
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _is_interruption(error: BaseException) -> bool:
    """Whether an error is Ctrl-C, or what a library has made of it: while it was imported, or wrote a file."""
    return any(isinstance(one, KeyboardInterrupt) for one in causes(error, handled=True))


def _nobody_reads(error: BaseException) -> bool:
    """Whether an error is that stdout is a pipe whose reader has gone."""
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):  # by rich, for a page of help
        return True
    if not isinstance(error, BrokenPipeError):
        return False
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(STDOUT, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def stopped() -> int:
    """Return the exit status of a command that Ctrl-C or SIGTERM has stopped."""
    return TERMINATED if _asked["to end"] else INTERRUPTED


def _terminate(*_: object) -> NoReturn:
    _asked["to end"] = True
    raise Terminated


@contextmanager
def only_results(wanted: bool = True) -> Generator[None]:
    """Send what is printed meanwhile, by the user's code and by what that starts, to stderr: stdout is for results."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    own, stdout = sys.stdout, os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout = own  # whatever the user's code has put there
        _flush(own)
        os.dup2(stdout, STDOUT)
        os.close(stdout)


def _flush(stream: Any) -> None:
    """Write what Python and C still hold of stdout to where it goes now."""
    with suppress(OSError, ValueError):
        stream.flush()
    with suppress(OSError, AttributeError, TypeError):  # on a system whose C library is not found this way
        ctypes.CDLL(None).fflush(None)


@contextmanager
def printed(printing: Callable[[], None]) -> Generator[None]:
    """Print an answer, then write its files: neither a full disk nor a reader who has gone takes away the other."""
    unread: OSError | None = None
    try:
        printing()
        with _printing():
            sys.stdout.flush()
    except OSError as error:
        unread = error
    yield
    if unread is not None:
        raise unread


@contextmanager
def shown(answer: Any, console: Console, *, as_json: bool) -> Generator[None]:
    """Print an answer as JSON or as it shows itself, then write its files."""
    with printed(lambda: echo_json(answer.to_json()) if as_json else console.print(answer)):
        yield


def echo_json(text: str) -> None:
    """Print JSON, as escapes what the terminal cannot show and what would act on it."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(json.loads(text), indent=1) + "\n"
    for character in {c for c in text if ord(c) > LAST_ASCII and CONTROLS.match(c)}:
        text = text.replace(character, f"\\u{ord(character):04x}")
    with _printing():
        typer.echo(text if text.endswith("\n") else f"{text}\n", nl=False)
