"""Tools that change models which already exist: each returns a report of what it has done."""

from batchnorm.surgery.adapt import Adapted, adapt
from batchnorm.surgery.convert import convert
from batchnorm.surgery.fold import fold
from batchnorm.surgery.insert import insert
from batchnorm.surgery.recalibrate import recalibrate
from batchnorm.surgery.report import Change, Left, Report

__all__ = ["Adapted", "Change", "Left", "Report", "adapt", "convert", "fold", "insert", "recalibrate"]
