"""The errors this package raises. Each message names the argument, the rule, the value received and the way out."""


class BatchNormError(ValueError):
    """A value that batch normalization cannot work with. Whatever call raised it has changed no state."""


class ArgumentError(BatchNormError):
    """An option outside what it may be: a momentum of 1.5, an epsilon below zero, an unknown estimator."""


class ShapeError(BatchNormError, RuntimeError):
    """An array whose rank or feature count does not fit. Also a `RuntimeError`, which torch raises for these."""


class DtypeError(BatchNormError, TypeError):
    """An array whose dtype cannot be normalised, such as integers."""


class NonFiniteError(BatchNormError, FloatingPointError):
    """A batch that holds inf or NaN, where `nonfinite="raise"`."""


class MissingExtraError(ImportError):
    """A framework or library that an optional part of this package needs is not installed."""

    def __init__(self, part: str, needs: str, extra: str) -> None:
        """Say which `part` needs what, and which extra installs it."""
        super().__init__(f"`{part}` needs {needs}, which is not installed: pip install 'batchnorm[{extra}]'")
