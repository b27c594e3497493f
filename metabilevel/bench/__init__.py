"""Benchmarks: candidates that compute the same thing, timed in turns.

A workload is a `Race` or a `Study`, and is registered by an entry point:

    [project.entry-points."metabilevel.benchmarks"]
    my-workload = "my_package.my_module:MY_WORKLOAD"

`metabilevel bench` runs those that are installed, whosever they are.
"""

from ..operations import operations as operations
from .timing import alternate as alternate
from .workload import Candidate as Candidate
from .workload import Case as Case
from .workload import Race as Race
from .workload import Study as Study
from .workload import compiled as compiled
