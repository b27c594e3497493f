"""Checks of the direction against central differences in double precision."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..adjoints import AbstractAdjoint, ForwardMode, StopGradient, Unroll
from ..implicit import Implicit
from ..problem import Outer
from .bench import Bench, Point
from .families import CASES
from .outcome import Nonconformity, NotApplicable
from .trees import flat, parts
from .trial import LATER, Trial

Claim: TypeAlias = Literal["path", "solution", "either"]

STEP = 1e-5
FINE = 1e-8  # a second step, where a kink (of a ReLU, say) lies within the first
EXACT = 1e-5  # relative error of a directional derivative by central differences, generously


def claim(trial: Trial) -> Claim:
    """Of what the direction claims to be the derivative: of the loss along the inner path that was walked, of the loss
    at the inner solution, or of either of them.

    **Raises:** `NotApplicable` where it claims to be none.
    """
    if trial.direction_is_the_gradient is not None:
        if not trial.direction_is_the_gradient:
            raise NotApplicable("direction_is_the_gradient = False")
        return "either"
    adjoints = parts(trial.bench.method.estimator, AbstractAdjoint)
    claims: set[Claim] = set()
    for adjoint in adjoints:
        match adjoint:
            case StopGradient() | Unroll(first_order=True) | Unroll(window=int()):
                raise NotApplicable(f"{type(adjoint).__name__} drops derivatives, and says so")
            case Unroll() | ForwardMode():
                claims.add("path")
            case Implicit():
                claims.add("solution")
            case _:
                claims.add("either")
    if len(claims) != 1:
        raise NotApplicable("the estimator does not say that its direction is a gradient (direction_is_the_gradient)")
    return claims.pop()


def gradient(trial: Trial) -> None:
    """The direction is the derivative of the reported loss, with the carry held, where it claims so."""
    if claim(trial) != "path":
        raise NotApplicable("the direction claims to be the derivative at a solution: the analytic cases look at it")
    bench = trial.bench
    for seed in trial.seeds:
        _require_slope(bench, bench.start(seed), seed, "first call")
        _require_slope(bench, bench.after(1, seed), seed, "second call")
        _require_slope(bench, bench.after(LATER, seed), seed, f"call after {LATER} others")


def _require_slope(bench: Bench, point: Point, seed: int, call: str) -> None:
    found = bench(point)
    if said := mismatch(found.direction, along_path(bench, point), point.x, seed):
        raise Nonconformity(f"{said} of the loss that the estimator reports (seed {seed}, {call}).")


def along_path(bench: Bench, point: Point) -> Callable[[Outer], float]:
    """The mean loss that is reported, as a function of x."""
    return lambda x: float(np.mean(np.asarray(bench(point._replace(x=x)).info.loss)))


def slope(loss: Callable[[Outer], float], x: Outer, along: PyTree, step: float = STEP) -> float:
    """The central difference of `loss` at x."""
    at = lambda h: loss(jax.tree.map(lambda a, b: jnp.asarray(np.asarray(a) + h * b), x, along))
    with jax.enable_x64(True):
        return (at(step) - at(-step)) / (2 * step)


def probes(x: Outer, seed: int, number: int = 2) -> list[PyTree]:
    """Random directions of length 1."""
    rng = np.random.default_rng(seed)
    found = [jax.tree.map(lambda a: rng.normal(size=a.shape), x) for _ in range(number)]
    return [jax.tree.map(lambda a: a / np.linalg.norm(flat(each)), each) for each in found]  # noqa: B023 - used at once


def mismatch(direction: PyTree, loss: Callable[[Outer], float], x: Outer, seed: int) -> str | None:
    """What is wrong with `direction` as the derivative of `loss` at x; None where it is right."""
    if not flat(x).size:
        raise NotApplicable("x is empty: there is nothing to train")
    along = probes(x, seed)
    got = np.array([flat(direction) @ flat(each) for each in along])
    want = np.array([slope(loss, x, each) for each in along])
    size = np.linalg.norm(flat(direction)) + np.abs(want).max()
    agree = lambda want: bool(np.all(np.abs(got - want) <= EXACT * size + 1e-9))
    if agree(want) or agree(np.array([slope(loss, x, each, FINE) for each in along])):
        return None
    numbers = f"along {len(along)} random unit vectors the direction has the slopes {_words(got)}, and central "
    numbers += f"differences say {_words(want)}"
    ratio = (got @ want) / (want @ want) if np.any(want) else np.inf
    if np.isfinite(ratio) and np.allclose(got, ratio * want, rtol=1e-4):
        what = "of the wrong sign" if np.isclose(ratio, -1) else f"{ratio:.4g} times too large"
        return f"the direction is {what}: {numbers}, {_hint(float(ratio))}. They are the slopes"
    wrong = _wrong_leaves(direction, loss, x, seed)
    return (
        f"the direction is not the gradient: {numbers}; wrong in {wrong}. Is a second derivative dropped, the direct "
        "term dF/dx or the mixed derivative left out, x taken from another step, a leaf confused with another? If the "
        "method is an approximation on purpose, say so: direction_is_the_gradient=False. They are the slopes"
    )


def _hint(ratio: float) -> str:
    if ratio < 0:
        return "as is a minus that was forgotten, or put twice"
    return "as is a sum for a mean, a factor 2 that is misplaced, or a learning rate that is applied already"


def _words(numbers: np.ndarray) -> str:
    return ", ".join(f"{a:.6g}" for a in numbers)


def _wrong_leaves(direction: PyTree, loss: Callable[[Outer], float], x: Outer, seed: int) -> str:
    """The leaves of x in which the slopes differ."""
    rng = np.random.default_rng(seed)
    leaves = jax.tree_util.tree_leaves_with_path(x)
    wrong = []
    for i, (path, leaf) in enumerate(leaves[:8]):
        move = [rng.normal(size=a.shape) if i == j else np.zeros(a.shape) for j, (_, a) in enumerate(leaves)]
        along = jax.tree.unflatten(jax.tree.structure(x), move)
        got, want = flat(direction) @ flat(along), slope(loss, x, along)
        if abs(got - want) > 1e-4 * (abs(got) + abs(want)) + 1e-8:
            wrong.append(f"x{jax.tree_util.keystr(path)} ({got:.4g}, differences say {want:.4g})")
        del leaf
    return ", ".join(wrong) or "several leaves together"


def gradient_quadratic(trial: Trial) -> None:
    """On a quadratic inner loss the direction is the exact hypergradient, where it claims so."""
    _exact(trial, "quadratic")


def gradient_isotropic(trial: Trial) -> None:
    """Likewise, where the inner Hessian is a multiple of the identity."""
    _exact(trial, "isotropic")


def gradient_one_dimension(trial: Trial) -> None:
    """Likewise, where x and y are of one dimension."""
    _exact(trial, "one-dimension")


def gradient_ill_conditioned(trial: Trial) -> None:
    """Likewise, where the condition number of the inner Hessian is 100."""
    _exact(trial, "ill-conditioned")


def gradient_large(trial: Trial) -> None:
    """Likewise, where targets and the gradient are a thousand times larger: nothing is clipped."""
    _exact(trial, "large")


def _exact(trial: Trial, name: str) -> None:
    claimed = claim(trial)
    for seed in trial.seeds:
        bench, point = trial.quadratic(name, seed)
        said = None
        if claimed in ("path", "either"):
            said = mismatch(bench(point).direction, along_path(bench, point), point.x, seed)
        if said and claimed == "path":
            raise Nonconformity(f"{said} of the loss that the estimator reports, on a {name} inner loss (seed {seed}).")
        if said or claimed == "solution":
            _at_the_solution(trial, name, seed, said)


def _at_the_solution(trial: Trial, name: str, seed: int, along: str | None) -> None:
    """`along` is what is wrong with the direction as a derivative along the path, where it may be that too."""
    point, found = trial.settled(name, seed)
    bench = trial.quadratic_bench(len(CASES[name]))
    loss = at_solution(bench, point)
    reported, exact = float(found.info.loss[0]), loss(point.x)
    left = found.info.certificate.linear_residual
    truncated = 0.0 if left is None else float(left[0])
    if abs(reported - exact) > 1e-9 * (1 + abs(exact)) or truncated > 1e-5:
        if along and trial.direction_is_the_gradient:
            raise Nonconformity(
                f"{along} of the loss that the estimator reports, on a {name} inner loss (seed {seed})."
            )
        if truncated > 1e-5:
            raise NotApplicable(f"the linear system is solved to {truncated:.1g} only, as the certificate says")
        raise NotApplicable(f"too few inner steps: the loss is {reported:.6g}, and {exact:.6g} at the inner solution")
    if said := mismatch(found.direction, loss, point.x, seed):
        raise Nonconformity(f"{said} of F(x, y(x)) at the inner solution y(x), on a {name} inner loss (seed {seed}).")


def at_solution(bench: Bench, point: Point) -> Callable[[Outer], float]:
    """F(x, y(x)) of the one task, with y(x) the inner solution, as a function of x."""

    def loss(x: Outer) -> float:
        with bench.precision():
            return float(bench.value_at_solution(x, jax.tree.map(lambda a: a[0], point.tasks), point.key))

    return loss


def uphill(trial: Trial) -> None:
    """Along the direction the outer loss rises, so that a step against it is a descent, on inner losses without a
    preferred axis; true of approximations too."""
    for name in ("isotropic", "one-dimension"):
        for seed in trial.seeds:
            point, found = trial.settled(name, seed)
            bench, size = trial.quadratic_bench(len(CASES[name])), np.linalg.norm(flat(found.direction))
            if not size:
                continue
            along = jax.tree.map(lambda a: np.asarray(a) / size, found.direction)  # noqa: B023 - used at once
            reported = slope(along_path(bench, point), point.x, along)
            if reported > 1e-7:
                continue
            exact = slope(at_solution(bench, point), point.x, along)
            if exact <= 1e-7 and min(reported, exact) < -1e-7:
                raise Nonconformity(
                    f"on the kit's {name} quadratic the direction leads downhill (seed {seed}): along it the loss that "
                    f"is reported rises by {reported:.4g} a unit, and that at the inner solution by {exact:.4g}. Its "
                    "sign is wrong: optimizers go against the direction."
                )


CHECKS = (
    uphill,
    gradient,
    gradient_quadratic,
    gradient_isotropic,
    gradient_one_dimension,
    gradient_ill_conditioned,
    gradient_large,
)
