"""Tools that change models which already exist."""

from batchnorm.surgery.insert import insert

__all__ = ["insert"]
