"""Adjoints: how d y(x) / d x is had. The rest of a hypergradient is `jax.grad` of F(x, y(x))."""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.flatten_util import ravel_pytree

from .errors import InputError, count, kind
from .info import Certificate, Reached, Result, all_finite, norm
from .problem import BilevelProblem, Inner, Key, Metrics, Outer, Scalar, Task
from .solvers import AbstractInnerSolver, GradientDescent, Scan, inner_gradient, looped

KEPT = "kept"  # names what a checkpoint keeps
RECTIFIED = 8  # steps after which RAdam, the last to do so, divides by a second moment


class AbstractAdjoint(eqx.Module):
    """A differentiable inner solve, and the hypergradient through it.

    `unseen` is a sentence for outer variables whose hypergradient is zero: what this adjoint does not see of them.
    """

    unseen: ClassVar[str]

    @abc.abstractmethod
    def __call__(
        self, problem: BilevelProblem, solver: AbstractInnerSolver, x: Outer, y0: Inner, task: Task, key: Key
    ) -> Inner:
        """y for one task, with this adjoint's derivative in `x` and `y0`: what a problem of more levels calls."""

    @abc.abstractmethod
    def hypergradient(
        self,
        problem: BilevelProblem,
        solver: AbstractInnerSolver,
        x: Outer,
        task: Task,
        key: Key,
        begin: Callable[[Inner], Inner] = lambda y0: y0,
    ) -> tuple[Reached, Outer]:
        """F(x, y(x)) of one task with its certificate, and its derivative; `begin` replaces the y0 of the problem.

        By `backpropagated`, where there is nothing to do but to differentiate the call.
        """


class StopGradient(AbstractAdjoint):
    """y is a constant: only the direct term dF/dx is left (Reptile, stored heads)."""

    unseen: ClassVar[str] = "StopGradient sees what stands in the outer loss itself; Unroll() sees the inner solve too."

    def __call__(self, problem, solver, x, y0, task, key):
        return jax.lax.stop_gradient(solver.solve(problem, x, y0, task, key))

    def hypergradient(self, problem, solver, x, task, key, begin=lambda y0: y0):
        return backpropagated(self, problem, solver, x, task, key, begin)


class Unroll(AbstractAdjoint):
    """Reverse mode through the solver's own steps: exact for the y that is reached, however far from converged.

    **Arguments:**

    - `first_order`: takes every inner gradient for a constant, which drops the inner Hessians (FOMAML, Finn et al.
      2017, section 5.2; Andrychowicz et al. 2016, section 2.1).
    - `checkpoint`: what the backward pass keeps of K steps. None: all; `"step"`: y after each step, the rest of a
      step is computed again; `"sqrt"`: y after each of about sqrt(K) segments; an integer: segments of that many
      steps. Gradients are the same; memory falls and each step is computed about twice.
    - `offload`: what a `checkpoint` keeps of y goes to the memory of the host, and comes back for the backward pass:
      for an accelerator, whose own memory it then costs nothing; a CPU has but one memory.
    - `mixed_mode`: Hessian products by forward-over-reverse: a cotangent u of g(y) = dG/dy goes back as the
      directional derivative of (dG/dx, dG/dy) along u in y, by the symmetry of the Hessian, in place of reverse mode
      through reverse mode (Kemaev et al. 2025, arXiv:2505.00793). The same gradient in less memory. Data that
      reaches the inner loss through the task is a constant to it; forward mode is not defined.
    - `window`: only the last that many steps are differentiated, and y before them is a constant (Shaban et al. 2019,
      arXiv:1810.10667): time and memory of few steps, and a gradient without what came before. None: all.
    """

    first_order: bool = eqx.field(static=True, default=False)
    checkpoint: Literal["step", "sqrt"] | int | None = eqx.field(static=True, default=None)
    mixed_mode: bool = eqx.field(static=True, default=False)
    window: int | None = eqx.field(static=True, default=None)
    offload: bool = eqx.field(static=True, default=False)
    unseen: ClassVar[str] = (
        "Neither the outer loss nor the inner solve (its window, where it has one) depends on it: leave it out, or "
        "look for a mistake in them."
    )

    def __check_init__(self):
        allowed = self.checkpoint in (None, "step", "sqrt") or (
            isinstance(self.checkpoint, int) and not isinstance(self.checkpoint, bool) and self.checkpoint > 0
        )
        if not allowed:
            raise InputError(f"checkpoint = {self.checkpoint!r}: None, 'step', 'sqrt' or a positive integer is wanted.")
        if self.window is not None:
            count("window", self.window, 1)
        if self.offload and self.checkpoint is None:
            raise InputError("offload = True: a checkpoint is wanted, 'step' or 'sqrt' say, whose states are kept.")

    def __call__(self, problem, solver, x, y0, task, key):
        grad = self._grad if self.first_order or self.mixed_mode else inner_gradient
        scan = _checkpointed(self.checkpoint, self.offload)
        if self.window is not None:
            scan = _truncated(self.window, scan)
        return solver.solve(problem, x, y0, task, key, grad, scan)

    def hypergradient(self, problem, solver, x, task, key, begin=lambda y0: y0):
        return backpropagated(self, problem, solver, x, task, key, begin)

    def _grad(self, problem: BilevelProblem, x: Outer, y: Inner, task: Task, key: Key) -> Inner:
        if self.first_order:
            return jax.lax.stop_gradient(inner_gradient(problem, x, y, task, key))
        return (_mixed_gradient if self.mixed_mode else inner_gradient)(problem, x, y, task, key)


class ForwardMode(AbstractAdjoint):
    """Forward mode through the solver's own steps: exact for the y that is reached, in memory that does not grow with
    the steps, and in time that grows with the entries of x, one tangent each (Franceschi et al. 2017,
    arXiv:1703.01785). For few hyperparameters.

    Inside another problem it leaves the mode to the derivative that is taken of that.
    """

    unseen: ClassVar[str] = Unroll.unseen

    def __call__(self, problem, solver, x, y0, task, key):
        return solver.solve(problem, x, y0, task, key)

    def hypergradient(self, problem, solver, x, task, key, begin=lambda y0: y0):
        flat, unravel = ravel_pytree(x)

        def loss(flat):
            value, aux = solved(problem, solver, self, unravel(flat), task, key, begin)
            return value, (value, aux)

        gradient, (value, (metrics, residual, y)) = jax.jacfwd(loss, has_aux=True)(flat)
        return Reached(value, metrics, y, certify(residual, all_finite(value, gradient))), unravel(gradient)


def check_parts(problem: object, solver: object, adjoint: object) -> None:
    """Raises an `InputError` that names the first which is not of its kind, such as a class in place of an instance."""
    for name, part, wanted, example in (
        ("problem", problem, BilevelProblem, "BilevelProblem(init, inner_loss, outer_loss)"),
        ("solver", solver, AbstractInnerSolver, "GradientDescent(optax.sgd(0.1), steps=10)"),
        ("adjoint", adjoint, AbstractAdjoint, "Unroll() or Implicit(ConjugateGradient(20))"),
    ):
        if not isinstance(part, wanted):
            raise InputError(f"{name} is {kind(part)}: an instance such as {example} is wanted.")


def optimizer_remedy(
    problem: BilevelProblem, solver: AbstractInnerSolver, adjoint: AbstractAdjoint, x: Outer, task: Task, key: Key
) -> str:
    """What to do about an inner optimizer through which `adjoint` differentiates, and which has no derivative: where an
    inner gradient is exactly zero (the root of Adam's second moment, a global norm), or anywhere (RAdam, the root of a
    negative number that is not used). Empty for all others."""
    through = isinstance(adjoint, ForwardMode) or (isinstance(adjoint, Unroll) and not adjoint.first_order)
    if not (through and isinstance(solver, GradientDescent)):
        return ""
    like = eqx.filter_eval_shape(problem.begin, x, task, key)[1]
    zero, one = (jax.tree.map(lambda a, fill=fill: fill(a.shape, a.dtype), like) for fill in (jnp.zeros, jnp.ones))

    @eqx.filter_jit
    def moved(g: Inner) -> Inner:
        def step(state: Any, _: None) -> Any:
            updates, state = solver.transformation.update(g, state, zero)
            return state, updates

        return jax.lax.scan(step, solver.transformation.init(zero), length=RECTIFIED)[1]

    differentiable = lambda at: bool(all_finite(jax.jvp(moved, (at,), (one,))[1]))
    if not differentiable(one):
        return " The inner optimizer has no derivative, as optax.radam has none: take optax.adam(1e-3, eps_root=1e-8)."
    if not differentiable(zero):
        return (
            " The inner optimizer has no derivative where an inner gradient is exactly zero, as that of a dead unit "
            "is: give it eps_root=1e-8, as in optax.adam(1e-3, eps_root=1e-8), or clip by value (optax.clip), not a "
            "norm."
        )
    return ""


def solved(
    problem: BilevelProblem,
    solver: AbstractInnerSolver,
    adjoint: AbstractAdjoint,
    x: Outer,
    task: Task,
    key: Key,
    begin: Callable[[Inner], Inner] = lambda y0: y0,
) -> tuple[Scalar, tuple[Metrics, Scalar, Inner]]:
    """F(x, y(x)) for one task, and beside it the metrics, the norm of the inner residual, and y as a constant.

    `begin` replaces the y0 of the problem.
    """
    z, y0, k_solve = problem.begin(x, task, key)
    k_inner, k_outer = jax.random.split(k_solve)
    with jax.named_scope("inner_solve"):
        y = adjoint(problem, solver, z, begin(y0), task, k_inner)
    value, metrics = problem.objective(z, y, task, k_outer)
    at = jax.lax.stop_gradient((z, y))
    with jax.named_scope("certificate"):
        residual = norm(solver.residual(problem, *at, task, k_inner))
    return value, jax.lax.stop_gradient((metrics, residual, at[1]))


def backpropagated(
    adjoint: AbstractAdjoint,
    problem: BilevelProblem,
    solver: AbstractInnerSolver,
    x: Outer,
    task: Task,
    key: Key,
    begin: Callable[[Inner], Inner],
) -> tuple[Reached, Outer]:
    """The hypergradient by reverse mode through `adjoint`'s differentiable solve."""
    loss = lambda x: solved(problem, solver, adjoint, x, task, key, begin)
    (value, (metrics, residual, y)), gradient = jax.value_and_grad(loss, has_aux=True)(x)
    return Reached(value, metrics, y, certify(residual, all_finite(value, gradient))), gradient


def certify(residual: jax.Array, finite: jax.Array) -> Certificate:
    """The certificate of one direction that needed no linear solve."""
    return Certificate(residual, Result.where(finite, Result.success, Result.nonfinite))


def _mixed_gradient(problem: BilevelProblem, x: Outer, y: Inner, task: Task, key: Key) -> Inner:
    # What the loss closes over becomes an argument: a custom rule would leak the tracers among it.
    loss = eqx.filter_closure_convert(problem.inner_loss, x, y, task, key)
    return _forward_over_reverse((x, y), loss, task, key)


@eqx.filter_custom_vjp
def _forward_over_reverse(point: tuple[Outer, Inner], loss: Callable, task: Task, key: Key) -> Inner:
    return jax.grad(loss, 1)(*point, task, key)


@_forward_over_reverse.def_fwd
def _(perturbed, point, loss, task, key):
    return jax.grad(loss, 1)(*point, task, key), None


@_forward_over_reverse.def_bwd
def _(residuals, cotangent, perturbed, point, loss, task, key):
    x, y = point
    gradients = lambda y: jax.grad(loss, (0, 1))(x, y, task, key)
    return jax.jvp(gradients, (y,), (cotangent,))[1]


def _checkpointed(checkpoint: Literal["step", "sqrt"] | int | None, offload: bool) -> Scan:
    """A scan whose reverse mode keeps what `Unroll.checkpoint` says, where `Unroll.offload` says."""
    if checkpoint is None:
        return looped
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[KEPT],
        offload_src="device",
        offload_dst="pinned_host",
    )

    def again(f: Callable) -> Callable:
        named = lambda carry, xs: f(checkpoint_name(carry, KEPT), xs)
        # a scan's body is not subject to the elimination that prevent_cse prevents
        return jax.checkpoint(named if offload else f, prevent_cse=False, policy=policy if offload else None)

    def scan(body: Callable, init: Any, xs: Any) -> tuple[Any, Any]:
        body = again(body)
        length = len(jax.tree.leaves(xs)[0])
        size = (
            checkpoint if isinstance(checkpoint, int) else {"step": 1, "sqrt": max(1, math.isqrt(length))}[checkpoint]
        )
        if size == 1:
            return jax.lax.scan(body, init, xs)
        whole = length - length % size
        segments = jax.tree.map(lambda a: a[:whole].reshape(-1, size, *a.shape[1:]), xs)
        carry, head = jax.lax.scan(again(lambda c, part: jax.lax.scan(body, c, part)), init, segments)
        carry, tail = jax.lax.scan(body, carry, jax.tree.map(lambda a: a[whole:], xs))
        flat = lambda a, b: jnp.concatenate([a.reshape(-1, *a.shape[2:]), b])
        return carry, jax.tree.map(flat, head, tail)

    return scan


def _truncated(window: int, scan: Scan) -> Scan:
    """`scan`, of whose steps all but the last `window` are constants."""

    def last(body: Callable, init: Any, xs: Any) -> tuple[Any, Any]:
        split = max(0, len(jax.tree.leaves(xs)[0]) - window)
        early, late = jax.tree.map(lambda a: a[:split], xs), jax.tree.map(lambda a: a[split:], xs)
        step, closed = jax.closure_convert(body, init, jax.tree.map(lambda a: a[0], xs))
        closed, init = jax.lax.stop_gradient((closed, init)) if split else (closed, init)
        carry, head = jax.lax.scan(lambda carry, each: step(carry, each, *closed), init, early)
        carry, tail = scan(body, carry, late)
        return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), head, tail)

    return last
