"""Trials: drive a client through real faults, and count what it lost. Needs the extras ``wire`` and ``brokers``."""

from labkit.trials.manager import EIGHT, Report, Result, run_trials
from labkit.trials.not_yet import NotYet
from labkit.trials.stand import Manager

__all__ = ["EIGHT", "Manager", "NotYet", "Report", "Result", "run_trials"]
