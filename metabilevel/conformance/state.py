"""Checks of state: all that the next call needs is in the carry, and nothing in Python."""

import re

import jax
import jax.numpy as jnp
import optax

from .outcome import Nonconformity, NotApplicable
from .trees import kinds, other_kind, unequal
from .trial import Trial


def compiles_once(trial: Trial) -> None:
    """Two outer steps, from the x that `Method.init` gives, are one compilation."""
    bench, seed = trial.bench, trial.seeds[0]
    before, first = bench.traces, bench.start(seed)._replace(x=bench.raw(seed))
    found = bench(first)
    with bench.precision():
        step = jax.tree.map(lambda d: -0.01 * d, found.direction)
        second = first._replace(x=optax.apply_updates(first.x, step), carry=found.carry)
    bench(second)
    if bench.traces > before:
        weak = [f"x{path} is {kind}" for path, kind in kinds(first.x).items() if "weakly" in kind]
        said = "; ".join(weak) or other_kind(second, first, "the second call's ") or "it is traced anew"
        raise Nonconformity(
            f"the second outer step compiles again: {said}. A value made of Python numbers, such as jnp.log(0.02), is "
            "weakly typed, and what an update gives is not: write jnp.asarray(..., float)."
        )


def no_hidden_state(trial: Trial) -> None:
    """A second trace, and one of a method built anew, give the same program: nothing is kept in Python."""
    bench = trial.bench
    for method, what in ((bench.method, "traced a second time"), (bench.rebuilt, "built anew")):
        estimate = bench.compiled(method)
        if bench.program_of(estimate) == bench.program:
            continue
        for seed in trial.seeds:
            with bench.precision():
                again = estimate(bench.start(seed))
            if said := unequal(again, bench.first(seed), "", 1e-12):
                raise Nonconformity(
                    f"the method gives other numbers when it is {what}: {said} (seed {seed}). Something in Python "
                    "changes from one trace to the next, as np.random, a counter, a list or a global variable does. "
                    "Draw from `key`, and keep what the next call needs in the carry."
                )


def pure(trial: Trial) -> None:
    """The same arguments give the same result, bit for bit, in whatever order calls are made."""
    bench = trial.bench
    before = {seed: bench.first(seed) for seed in trial.seeds}
    for seed in reversed(trial.seeds):
        if said := unequal(bench(bench.start(seed)), before[seed], ""):
            raise Nonconformity(
                f"a second call with the same arguments gives something else: {said} (seed {seed}). "
                "A callback, or state outside of the carry, has a part in it: keep it in the carry."
            )


def resumes(trial: Trial) -> None:
    """From a carry that was saved and read again, a method built anew goes on bit for bit."""
    bench = trial.bench
    for path, kind in kinds(bench.first(trial.seeds[0]).carry).items():
        if kind.startswith("the "):
            raise Nonconformity(f"carry{path} is {kind}: only arrays can be saved.")
    estimate = bench.compiled(bench.rebuilt)
    same = bench.program_of(estimate) == bench.program and not re.search("(io|pure)_callback", bench.program.text)
    for seed in trial.seeds:
        point = bench.start(seed)._replace(carry=bench.first(seed).carry)
        went_on = bench(point)
        with bench.precision():
            restored = point._replace(carry=_saved_and_read(point.carry))
            resumed = bench(restored) if same else estimate(restored)
        if said := unequal(resumed, went_on, ""):
            raise Nonconformity(
                f"a run that is resumed from its carry goes another way: {said} (seed {seed}). Something that the "
                "second call needs is not in the carry, but in Python; put it there."
            )


def _saved_and_read(carry: object) -> object:
    """As a checkpoint does it: to the host, and back."""

    def leaf(a):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jax.device_get(jax.random.key_data(a)))
        return jnp.asarray(jax.device_get(a).copy())

    return jax.tree.map(leaf, carry)


def no_leaked_tracer(trial: Trial) -> None:
    """No value of one trace is used in another, or kept in Python."""
    bench = trial.chosen[1]
    try:
        bench.first(trial.seeds[0])
    except jax.errors.UnexpectedTracerError as error:
        raise Nonconformity(
            "a tracer leaks: a function with a derivative of its own (custom_vjp, custom_jvp), a closure or an object "
            "keeps a value of one trace, as of the vmap over the tasks, and uses it in another. Pass x, the task and "
            "the key as arguments (eqx.filter_custom_vjp, eqx.filter_closure_convert), and keep nothing but the carry. "
            f"JAX says: {' '.join(str(error).split())[:300]}"
        ) from error
    except Exception as error:
        raise NotApplicable("the estimator raises: see `runs`") from error
    if bench.outliving():
        jax.clear_caches()  # which hold some, of no harm
    if kept := bench.outliving():
        raise Nonconformity(
            f"a tracer leaks: {len(kept)} of the arrays that the estimator was given outlive its trace, the first a "
            f"{kept[0]}. Something in Python, a list or an attribute, keeps them, or what was computed from them: what "
            "the next call needs belongs in the carry."
        )


CHECKS = (compiles_once, no_hidden_state, pure, resumes, no_leaked_tracer)
