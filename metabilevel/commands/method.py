"""The command of one method, `metabilevel run METHOD`."""

import inspect
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..config import Config, Environment, Plugin
from ..errors import OptionError
from ..experiment import EPISODES, OPTIMIZERS, Experiment
from ..interrupts import Interrupted, Interrupts
from ..judgement import Judgement
from ..plots import curves
from ..registry import TASKS, Entry, load_method, load_tasks
from ..runs import Run, require_unused
from ..schema import Option, configure, options
from .output import json_option, note, show
from .types import Assignment, Count, PluginName, PluginValue, Positive

OWN = "method_"  # begins the parameters that are the method's
PICTURE = "curves.png"

_COMMON: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
    click.option("--tasks", type=PluginName(TASKS), required=True, is_eager=True, help="The task family."),
    click.option("--task-option", type=Assignment(), multiple=True, help="An option of the tasks, as in shots=5; repeatable."),
    click.option("--steps", type=Count(1), default=1000, show_default=True, help="Outer steps."),
    click.option("--meta-batch", type=Count(1), default=25, show_default=True, help="Tasks of an outer step."),
    click.option("--outer-optimizer", type=click.Choice(list(OPTIMIZERS)), default="adam", show_default=True, help="Of the outer steps."),
    click.option("--outer-learning-rate", type=Positive(), default=0.001, show_default=True, help="Of the outer optimizer."),
    click.option("--seed", type=Count(0, 2**32 - 1), default=0, show_default=True, help="All randomness."),
    click.option("--every", type=Count(1), help="Outer steps from report to report. [default: a twentieth of all]"),
    click.option("--on-nonfinite", type=click.Choice(["raise", "mask"]), default="raise", show_default=True,
                 help="At a task whose loss or gradient is not finite: stop, or leave it out and count it."),
    click.option("--task-chunk", type=Count(1), help="Tasks computed at once. [default: chosen for the machine]"),
    click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="The run directory. [default: runs/METHOD-TASKS-SEED]"),
    click.option("--resume", is_flag=True, help="Go on with the run in the directory, with the same options or more --steps."),
    json_option,
]  # fmt: skip
