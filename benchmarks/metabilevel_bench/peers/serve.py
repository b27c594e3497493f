"""PyTorch's candidates of `metabilevel bench`, in a Python of their own; README.md says what they are asked.

PYTHON serve.py --list
PYTHON serve.py WORKLOAD PEER FILE.npz
"""

import importlib
import json
import os
import resource
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

FIRST_ORDER = ("loop", "torch.func", "torch.func + compile", "higher", "learn2learn")
DESCENT = (*FIRST_ORDER, "torchopt")
EAGER = tuple(peer for peer in DESCENT if "compile" not in peer)  # many steps of a large net take too long to compile
LOGISTIC = ("loop", "torch.func", "torchopt")
WORKLOADS = {  # the module, and the peers
    "sinusoid-1": ("few_shot", DESCENT),
    "sinusoid-5": ("few_shot", DESCENT),
    "conv-maml-1": ("few_shot", DESCENT),
    "conv-maml-5": ("few_shot", EAGER),
    "conv-maml-pool-1": ("few_shot", DESCENT),
    "conv-fomaml-1": ("few_shot", FIRST_ORDER),  # TorchOpt has no first-order switch
    "anil-5": ("few_shot", DESCENT),
    "ridge-head": ("heads", ("loop", "torch.func", "torch.func + compile")),
    "svm-head": ("heads", ("qpth",)),
    "imaml": ("implicit", ("loop", "torch.func", "torchopt")),
    "logistic-cg": ("implicit", LOGISTIC),  # Betty's conjugate gradients step along the old residual: another result
    "logistic-neumann": ("implicit", (*LOGISTIC, "betty")),
    "lstm-mlp": ("learned_optimizers", ("loop", "torch.compile")),
    "lstm-quadratics": ("learned_optimizers", ("loop", "torch.compile")),
    "transformer": ("few_shot", EAGER),
}
PACKAGES = {"betty": "betty-ml"}  # the others are called as their peers, or are torch
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)
ABSENT = (ImportError, OSError, RuntimeError, AttributeError)  # as what does not suit this torch raises on import


def wrong(message):
    sys.stderr.write(f"{message}\n")
    sys.exit(2)


def asked(arguments):
    """Workload, peer and file."""
    if len(arguments) != 3:
        wrong("Say --list, or a workload, a peer and a file.")
    workload, peer, file = arguments
    if workload not in WORKLOADS:
        wrong(f"There is no workload {workload!r}, but {', '.join(WORKLOADS)}.")
    if peer not in WORKLOADS[workload][1]:
        wrong(f"{workload} has no peer {peer!r}, but {', '.join(WORKLOADS[workload][1])}.")
    if not Path(file).is_file():
        wrong(f"There is no file {file!r}.")
    if not zipfile.is_zipfile(file):
        wrong(f"{file} is no file of arrays.")
    return workload, peer, file


def versions(peer):
    package = "torch" if peer == "loop" or peer.startswith("torch.") else PACKAGES.get(peer, peer)
    return {name: version(name) for name in ("torch", "numpy", package)}


def peak():
    """Bytes of resident memory; on Linux not by `getrusage`, which counts what started this process too."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(arguments):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print do so where nobody reads answers

    def answer(**fields):
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    if arguments == ["--list"]:
        answer(**{workload: list(peers) for workload, (_, peers) in WORKLOADS.items()})
        return
    workload, peer, file = asked(arguments)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no workers that would outlive this process
    try:
        import numpy as np
        import torch
        from given import load

        family = importlib.import_module(WORKLOADS[workload][0])
    except ABSENT as error:
        answer(missing=f"{type(error).__name__}: {error}")
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        given = load(file)
    except UNREADABLE as error:
        wrong(f"{file} cannot be read: {error}")
    try:
        call, restore = family.make(workload, peer, given)
    except KeyError as error:
        wrong(f"{file} lacks {error}, which {workload} is given.")
    except (ValueError, TypeError, IndexError) as error:
        wrong(f"{file} does not fit {workload}: {error}")
    except ABSENT as error:
        answer(missing=f"{type(error).__name__}: {error}")
        return
    answer(ready=True, versions=versions(peer))
    for calls, _ in enumerate(sys.stdin):
        value, gradient = call()
        if calls == 0:
            leaves = {f"g.{i}": restore(g.detach()).numpy() for i, g in enumerate(gradient)}
            np.savez(f"{file}.{peer}.npz", value=torch.as_tensor(value).detach().numpy(), **leaves)
        answer(processor=time.process_time(), peak=peak())


if __name__ == "__main__":
    main(sys.argv[1:])
