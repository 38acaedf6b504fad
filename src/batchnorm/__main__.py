"""`python -m batchnorm` is the command `batchnorm`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory, whose files are not to stand in for modules of others
    from batchnorm.cli import app

    app(prog_name="batchnorm")
