"""Many devices: the tasks of a batch are shared out among those of the mesh that is set, if one is.

A mesh is ambient, as `jax.set_mesh` makes it: what computes many tasks asks here, and nothing else knows of it. A
device computes its share of the tasks by itself, derivatives, solves and loops of its own length included; then the
sums of all devices are added by one all-reduce. On one device, or without a mesh, the functions below do nothing.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from .errors import InputError, count, did_you_mean

TASKS, RUNS = "tasks", "runs"
AXES = {TASKS: "shares out the tasks of a batch", RUNS: "shares out the members of a population"}


def mesh(**axes: int) -> Any:
    """Sets the mesh of this process, as `jax.set_mesh`: for a `with` block, or for good if called by itself.

        with mb.mesh(tasks=8):
            x, history = mb.fit(...)

    **Arguments:** a number of devices for each axis: `tasks` shares out the tasks of a batch, `runs` the members of a
    population. The first devices of the process are taken, of all processes where these are many.

    **Raises:** `InputError` for an axis of another name, and for more devices than there are.
    """
    return jax.set_mesh(made(axes))


def made(axes: Mapping[str, int]) -> jax.sharding.Mesh:
    """The mesh that `mesh(**axes)` sets."""
    for name, size in axes.items():
        if name not in AXES:
            known = ", ".join(f"{name!r} ({what})" for name, what in AXES.items())
            raise InputError(f"The mesh has an axis {name!r}.{did_you_mean(name, AXES)} Known: {known}.")
        count(name, size, 1)
    # Several CPU devices that wait for one another within queued programs may wait for ever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    devices, needed = jax.devices(), math.prod(axes.values())
    if jax.process_count() > 1 and needed < len(devices):
        raise InputError(
            f"A mesh of {needed} devices leaves some of the {len(devices)} of all processes idle: use all."
        )
    if needed > len(devices):
        kind = devices[0].platform
        more = f" The variable JAX_NUM_CPU_DEVICES={needed} makes as many of one." if kind == "cpu" else ""
        shape = ",".join(f"{name}={size}" for name, size in axes.items())
        raise InputError(f"A mesh {shape} needs {needed} devices, and there are {len(devices)} ({kind}).{more}")
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), types, devices=devices[:needed])


def meet() -> None:
    """A first all-reduce of the mesh, of nothing, while all processes are at the same place: they wait but half a
    minute for one another's addresses, and one may compile for longer than another."""
    add = jax.shard_map(lambda a: jax.lax.psum(a, TASKS), in_specs=P(), out_specs=P(), check_vma=False)
    jax.block_until_ready(jax.jit(add)(jnp.zeros(())))


def sharing() -> int:
    """How many devices share the tasks of a batch.

    **Raises:** `InputError` for a mesh that shards explicitly, by the types of arrays.
    """
    ambient = jax.sharding.get_abstract_mesh()
    if TASKS not in ambient.axis_names or TASKS in ambient.manual_axes:
        return 1
    if TASKS in ambient.explicit_axes:
        raise InputError(
            f"The axis {TASKS!r} of the mesh is explicit: make it by metabilevel.mesh, or of AxisType.Auto."
        )
    return ambient.shape[TASKS]


def require_even(name: str, tasks: int) -> None:
    """Raises an `InputError` where the tasks of a batch, which the user calls `name`, cannot be shared out evenly."""
    n = sharing()
    if tasks % n and tasks == 1:
        raise InputError(f"{name} = 1: one task cannot be shared out among {n} devices. Compute it on one.")
    if tasks % n:
        below, above = tasks - tasks % n, tasks + -tasks % n
        near = f"{below} or {above}" if below else str(above)
        raise InputError(f"{name} = {tasks}: {n} devices cannot share that evenly. Take {near}, or fewer devices.")


def even(tasks: int) -> int:
    """The least number from `tasks` on that can be shared out evenly."""
    return tasks + -tasks % sharing()


def spread(fn: Callable[..., Any], whole: PyTree, *batch: PyTree) -> Any:
    """`fn(whole, *batch)`, where `fn` gives one entry for each of the batch: each on the device whose share it is in.

    Every device has all of `whole`. A batch that cannot be shared out evenly is filled up by copies of its last entry,
    which are cut off again.
    """
    n, size = sharing(), len(jax.tree.leaves(batch)[0])
    if n == 1:
        return fn(whole, *batch)
    if size % n:
        rows = jnp.minimum(jnp.arange(even(size)), size - 1)
        batch = jax.tree.map(lambda a: a[rows], batch)
    found = _shared(fn, whole, batch, P(TASKS))
    return jax.tree.map(lambda a: a[:size], found) if size % n else found


def summed(fn: Callable[..., tuple[Any, Any]], whole: PyTree, *batch: PyTree) -> tuple[Any, Any]:
    """`fn(whole, *batch) -> (total, stacked)`: totals are added over the devices, stacked results put together.

    The numbers among the latter, one a task, travel with the sum, so that every device knows the losses: what else is
    computed of a step then needs no word between them. Larger results stay where their tasks are. A batch of one is
    computed whole by every device.

    **Raises:** `InputError` for a batch that cannot be shared out evenly.
    """
    n, size = sharing(), len(jax.tree.leaves(batch)[0])
    if n == 1 or size == 1:
        return fn(whole, *batch)
    require_even("tasks", size)

    def local(whole: PyTree, *share: PyTree) -> tuple[Any, Any, Any]:
        total, stacked = fn(whole, *share)
        place = jax.lax.axis_index(TASKS)
        small, large = eqx.partition(stacked, _is_number)
        rows = jax.tree.map(lambda a: jnp.zeros((n, *a.shape), jnp.result_type(a, float)).at[place].set(a), small)
        total, rows = _all_reduce((total, rows))
        return total, jax.tree.map(lambda row, a: row.reshape(-1).astype(a.dtype), rows, small), large

    total, small, large = _shared(local, whole, batch, (P(), P(), P(TASKS)))
    return total, eqx.combine(small, large)


def sharing_runs() -> int:
    """How many devices, or groups of such that share tasks, share the members of a population."""
    return jax.sharding.get_abstract_mesh().shape.get(RUNS, 1)


def vmapped_runs(fn: Callable[..., Any], *members: PyTree) -> Any:
    """`jax.vmap(fn)(*members)` over the members of a population, each where its share lies.

    Members that cannot be shared out evenly are filled up by copies of the last one, which are cut off again.
    """
    n, size = sharing_runs(), len(jax.tree.leaves(members)[0])
    if n == 1:
        return jax.vmap(fn)(*members)
    rows = jnp.minimum(jnp.arange(size + -size % n), size - 1)
    split = lambda a: jax.lax.with_sharding_constraint(a[rows], P(RUNS))
    found = jax.vmap(fn, spmd_axis_name=RUNS)(*jax.tree.map(split, members))
    return jax.tree.map(lambda a: a[:size], found)


def everywhere(tree: PyTree) -> PyTree:
    """The arrays of `tree` as every device of the mesh is to have them, where a program ends: whole."""
    return tree if _alone() else jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, P()), tree)


def placed(*trees: PyTree) -> Any:
    """`trees` with their arrays on every device of the mesh, before a program begins; once for all its calls."""
    return trees if _alone() else jax.tree.map(lambda a: _whole(a) if eqx.is_array(a) else a, trees)


def of_leader(tell: Callable[[], Any]) -> Any:
    """What `tell()` gives in process 0, in the types of JSON; it is called nowhere else.

    Whatever depends on clocks, files or signals must be the same everywhere before it decides what is computed.
    """
    if jax.process_count() == 1:
        return tell()
    text = json.dumps(tell()).encode() if jax.process_index() == 0 else b""
    size = int(_broadcast(np.int32(len(text))))
    return json.loads(_broadcast(np.frombuffer(text.ljust(size), np.uint8)).tobytes())


def largest(value: int) -> int:
    """The largest that any process gives."""
    return value if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int32(value)).max())


def as_leader(tree: PyTree) -> PyTree:
    """The arrays of `tree` as they are in process 0, bit for bit; other processes give a tree of the same shapes."""
    if jax.process_count() == 1:
        return tree

    def heard(a: Array) -> Array:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(heard(jax.random.key_data(a)), impl=jax.random.key_impl(a))
        data = _broadcast(np.frombuffer(np.asarray(a).tobytes(), np.uint8))
        return _whole(np.frombuffer(data.tobytes(), a.dtype).reshape(a.shape))

    return jax.tree.map(heard, tree)


def leads() -> bool:
    """Whether this process is the one that writes and speaks: process 0, or the only one."""
    return jax.process_index() == 0


def _broadcast(a: Any) -> np.ndarray:
    return np.asarray(multihost_utils.broadcast_one_to_all(a))


def _whole(a: Any) -> Array:
    """`a` on every device of the mesh; in every process its own `a`, which must be the same."""
    everywhere = NamedSharding(jax.sharding.get_mesh(), P())
    if jax.process_count() == 1 or getattr(a, "sharding", None) == everywhere:
        return jax.device_put(a, everywhere)
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_whole(jax.random.key_data(a)), impl=jax.random.key_impl(a))
    return jax.make_array_from_process_local_data(everywhere, np.asarray(a), a.shape)


def _alone() -> bool:
    return jax.sharding.get_abstract_mesh().size <= 1


def _shared(fn: Callable[..., Any], whole: PyTree, batch: tuple, out_specs: Any) -> Any:
    """`fn(whole, *share)` of each device's share.

    Derivatives are taken within, never through it, where `check_vma` would have a sum over the devices slip in. What
    they are taken in must be an argument: what is closed over has the type of an array outside.
    """
    arrays, rest = eqx.partition(whole, eqx.is_array)
    local = lambda arrays, *share: fn(eqx.combine(arrays, rest), *share)
    specs = (P(), *[P(TASKS)] * len(batch))
    return jax.shard_map(local, in_specs=specs, out_specs=out_specs, check_vma=False)(arrays, *batch)


def _is_number(a: Array) -> bool:
    return a.ndim == 1 and (a.dtype == bool or jnp.issubdtype(a.dtype, jnp.floating))


def _all_reduce(tree: PyTree) -> PyTree:
    """The sum over the devices of every leaf, in one message for each type."""
    leaves, structure = jax.tree.flatten(tree)
    for dtype in dict.fromkeys(a.dtype for a in leaves):
        of_type = [i for i, a in enumerate(leaves) if a.dtype == dtype]
        flat, unravel = ravel_pytree([leaves[i] for i in of_type])
        for i, whole in zip(of_type, unravel(jax.lax.psum(flat, TASKS)), strict=True):
            leaves[i] = whole
    return structure.unflatten(leaves)
