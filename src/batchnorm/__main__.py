"""`python -m batchnorm` is the command `batchnorm`."""

import signal
import sys


def main() -> None:
    """Run the command; a Ctrl-C ahead of it, while it is loaded, ends the process without a traceback."""
    heard = signal.getsignal(signal.SIGINT)
    if heard is signal.default_int_handler:  # ahead of the command there is nothing to tell: end, without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from batchnorm.cli import app

    try:
        app(prog_name="batchnorm")
    finally:
        if heard is signal.default_int_handler:  # nor behind it
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory, whose files are not to stand in for modules of others
    main()
