"""Checks of hypergradients: what is right is called right, and each way of being wrong by its name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import quadratic

import metabilevel as mb
from metabilevel.check.claims import directions_of
from metabilevel.differences import SIZES, central_differences, coordinate_directions, random_directions
from metabilevel.precision import double_precision

KEY = jax.random.key(3)
PROBLEM = quadratic(5)[0]
X = jnp.linspace(0.5, 1.0, 5)
SOLVED = mb.GradientDescent(optax.sgd(0.5), steps=120)


def descent(steps: int, rate: float = 0.1) -> mb.GradientDescent:
    return mb.GradientDescent(optax.sgd(rate), steps=steps)


def implicit(inverse: mb.AbstractInverse) -> mb.Implicit:
    return mb.Implicit(inverse)


def curved(loss=lambda x, y: jnp.sum((jnp.tanh(y) - 1) ** 2 * jnp.arange(1.0, 4.0)), outer=lambda x, y: jnp.sum(y**3)):
    """x = {w, r}: the start of the descent, and what else `loss` makes of it."""
    return mb.BilevelProblem(
        init=lambda x, task, key: x["w"],
        inner_loss=lambda x, y, task, key: loss(x, y),
        outer_loss=lambda x, y, task, key: outer(x, y),
    )


START = {"w": jnp.array([0.3, 0.4, 0.5])}
BOTH = {**START, "r": jnp.array(0.1)}
PENALISED = curved(lambda x, y: jnp.sum((y - 1) ** 2) + x["r"] * jnp.sum(y**2))


@jax.custom_jvp
def factor(value, c):
    return value


@factor.defjvp
def _(primals, tangents):
    return primals[0], primals[1] * tangents[0]


@jax.custom_jvp
def square(y):
    return y**2


@square.defjvp
def _(primals, tangents):
    return primals[0] ** 2, primals[0] * tangents[0]


def detached(x, y):
    """The same inner gradient as of `curved`, a constant to a second derivative."""
    gradient = jax.grad(lambda y: jnp.sum((jnp.tanh(y) - 1) ** 2 * jnp.arange(1.0, 4.0)))(y)
    return jnp.sum(jax.lax.stop_gradient(gradient) * y)


NEARLY_SINGULAR = jnp.array([[1.0, 1.0], [1.0, 1.000001]])
COARSE = mb.BilevelProblem(
    init=lambda x, task, key: jnp.zeros(2),
    inner_loss=lambda x, y, task, key: y @ NEARLY_SINGULAR @ y / 2 - y @ x,
    outer_loss=lambda x, y, task, key: jnp.sum(jnp.sin(1e-6 * y)),
)
FORMULA = mb.ClosedForm(lambda x, task: jnp.linalg.solve(NEARLY_SINGULAR.astype(x.dtype), x))


CASES = {
    "unroll": ("right", PROBLEM, X, descent(4), mb.Unroll()),
    "mixed mode": ("right", PROBLEM, X, descent(4), mb.Unroll(mixed_mode=True, checkpoint="sqrt")),
    "forward": ("right", PROBLEM, X, descent(4), mb.ForwardMode()),
    "implicit": ("right", PROBLEM, X, SOLVED, implicit(mb.ConjugateGradient(10))),
    "start": ("right", curved(), START, descent(3), mb.Unroll()),
    "start, converged": ("right", PENALISED, BOTH, descent(60, 0.3), implicit(mb.Dense())),
    "stopped early": ("inner solve not converged", PROBLEM, X, descent(3), implicit(mb.Dense())),
    "neumann": ("linear solve truncated", PROBLEM, X, SOLVED, implicit(mb.Neumann(2))),
    "diverging series": ("linear solve truncated", PROBLEM, X, SOLVED, implicit(mb.Neumann(20, scale=3.0))),
    "identity": ("linear solve truncated", PROBLEM, X, SOLVED, implicit(mb.Identity())),
    "two gradients": ("linear solve truncated", PROBLEM, X, SOLVED, implicit(mb.ConjugateGradient(2))),
    "damped": ("linear solve truncated", PROBLEM, X, SOLVED, implicit(mb.ConjugateGradient(10, damping=0.3))),
    "first order": ("second derivatives dropped", curved(), START, descent(3), mb.Unroll(first_order=True)),
    "last steps": ("inner solve differentiated in part", PROBLEM, X, descent(4), mb.Unroll(window=2)),
    "silently so": ("second derivatives dropped", curved(detached), START, descent(3), mb.Unroll()),
    "no solve": ("inner solve taken for a constant", PROBLEM, X, descent(3), mb.StopGradient()),
    "dead start": ("dead leaf", curved(), START, descent(3), implicit(mb.Dense())),
    "uphill": ("wrong sign", curved(outer=lambda x, y: factor(jnp.sum(y**3), -2.0)), START, descent(3), mb.Unroll()),
    "twice": ("wrong scale", curved(outer=lambda x, y: factor(jnp.sum(y**3), 2.0)), START, descent(3), mb.Unroll()),
    "one term": ("wrong", curved(outer=lambda x, y: jnp.sum(square(y)) + y[0] ** 3), START, descent(3), mb.Unroll()),
    "digits": ("float32 too coarse", COARSE, jnp.array([1.0, 0.7]), FORMULA, mb.Unroll()),
}


@pytest.mark.parametrize("case", CASES)
def test_every_verdict_has_its_cause(case):
    verdict, problem, x, solver, adjoint = CASES[case]
    found = mb.check_hypergradient(problem, x, None, key=KEY, solver=solver, adjoint=adjoint)
    assert (found.verdict, found.right) == (verdict, verdict == "right"), found.reason
    if found.right:
        assert found.error < 1e-6


def test_it_says_how_many_steps_and_terms_would_do():
    found = mb.check_hypergradient(PROBLEM, X, None, key=KEY, solver=descent(3, 0.5), adjoint=implicit(mb.Dense()))
    series = found.series
    assert series is not None
    assert series.of == "inner steps"
    assert series.numbers[-1] < 200
    assert f"gone after {series.numbers[-1]}" in found.reason
    assert series.errors[0] > 0.01 > 1e-3 > series.errors[-1]
    enough = descent(series.numbers[-1], 0.5)
    assert mb.check_hypergradient(PROBLEM, X, None, key=KEY, solver=enough, adjoint=implicit(mb.Dense())).right

    found = mb.check_hypergradient(PROBLEM, X, None, key=KEY, solver=SOLVED, adjoint=implicit(mb.Neumann(1)))
    assert found.series is not None
    terms = found.series.numbers[-1]
    assert f"{terms} terms would do" in found.reason
    adjoint = implicit(mb.Neumann(terms))
    assert mb.check_hypergradient(PROBLEM, X, None, key=KEY, solver=SOLVED, adjoint=adjoint).right


EVERY = {"a": jnp.array(0.5), "b": jnp.array(0.4), "c": jnp.array(0.3), "d": jnp.array(0.2), "e": jnp.array(0.1)}


@pytest.mark.parametrize("factor", [0.0, -1.0, 1.01])
def test_a_small_leaf_behind_many_is_judged_too(factor):
    problem = mb.BilevelProblem(
        init=lambda x, task, key: jnp.zeros(2),
        inner_loss=lambda x, y, task, key: (
            jnp.sum((y - 1) ** 2) + jnp.sin(x["a"] + x["b"] + x["c"] + x["d"]) * y[0] + 2e-4 * jnp.sin(x["e"]) * y[1]
        ),
        outer_loss=lambda x, y, task, key: jnp.sum(y**2),
    )
    tweaked = Tweaked(lambda g: {**g, "e": factor * g["e"]})
    found = mb.check_hypergradient(problem, EVERY, None, key=KEY, solver=descent(5), adjoint=tweaked)
    assert not found.right
    assert "x['e']" in found.reason
    assert "x['a']" not in found.reason


def test_a_small_entry_of_a_vector_is_judged_too():
    problem = mb.BilevelProblem(
        init=lambda x, task, key: jnp.zeros(2),
        inner_loss=lambda x, y, task, key: jnp.sum((y - 1) ** 2) + jnp.sin(x) @ (jnp.array([1.0, 3e-4]) * y),
        outer_loss=lambda x, y, task, key: jnp.sum(y**2),
    )
    x, honest, tweaked = jnp.full(2, 0.5), mb.Unroll(), Tweaked(lambda g: g * jnp.array([1.0, -1.0]))
    for adjoint, right in [(honest, True), (tweaked, False)]:
        found = mb.check_hypergradient(problem, x, None, key=KEY, solver=descent(5), adjoint=adjoint)
        assert found.right == right, found.reason


def test_leaves_of_other_scales_are_right_where_they_are():
    problem = mb.BilevelProblem(
        init=lambda x, task, key: jnp.zeros(2),
        inner_loss=lambda x, y, task, key: (
            jnp.sum((y - 1) ** 2) + jnp.sin(1e-6 * x["a"]) * y[0] + jnp.sin(1e6 * x["b"]) * y[1]
        ),
        outer_loss=lambda x, y, task, key: jnp.sum(y**2),
    )
    x = {"a": jnp.array(1e6), "b": jnp.array(1e-6)}
    found = mb.check_hypergradient(problem, x, None, key=KEY, solver=descent(5))
    assert found.right, found.reason


def test_a_zero_gradient_at_the_optimum_is_right(x64):
    problem, a, target = quadratic(5)
    found = mb.check_hypergradient(problem, jnp.asarray(a @ target), None, key=KEY, solver=SOLVED)
    assert found.right, found.reason


def test_dead_leaves_are_named_and_the_others_are_not():
    problem = curved(lambda x, y: jnp.sum((y - 1) ** 2), lambda x, y: jnp.sum(y**3) * jnp.exp(x["r"]))
    found = mb.check_hypergradient(problem, BOTH, None, key=KEY, solver=descent(8), adjoint=implicit(mb.Dense()))
    assert found.verdict == "dead leaf"
    assert "x['w'] is zero" in found.reason
    assert "x['r']" not in found.reason


class Elsewhere(mb.AbstractEstimator):
    """Draws its noise from another key than the loss that it reports."""

    nested: mb.Nested

    def init(self, x, tasks, key):
        return None

    def __call__(self, x, tasks, carry, key):
        direction = self.nested(x, tasks, None, jax.random.fold_in(key, 1))[0]
        return direction, None, self.nested(x, tasks, None, key)[2]


class Numbers(mb.TaskDistribution):
    subject: None = None

    def sample(self, key, split):
        return jax.random.normal(key, (3,))


def noisy() -> mb.Method:
    problem = mb.BilevelProblem(
        init=lambda x, task, key: jnp.zeros(3),
        inner_loss=lambda x, y, task, key: jnp.sum((y - x * task) ** 2),
        outer_loss=lambda x, y, task, key: jnp.sum((y - jax.random.normal(key, (3,))) ** 2),
    )
    solver = descent(5)
    return mb.Method(problem, lambda key: jnp.ones(3), Elsewhere(mb.Nested(problem, solver)), solver)


def test_another_key_is_noise_and_the_same_one_is_right():
    method = noisy()
    assert mb.check_method(method, method.init(KEY), Numbers(), key=KEY).verdict == "noise"
    plain = mb.Method(method.problem, method.init, method.estimator.nested, method.solver)
    assert mb.check_method(plain, plain.init(KEY), Numbers(), key=KEY).right


class Changed(mb.AbstractAdjoint):
    """An adjoint of somebody's own, whose gradient is not that of the value beside it."""

    factor: float
    rekey: bool
    unseen = "Nothing."

    def __call__(self, problem, solver, x, y0, task, key):
        return mb.Unroll()(problem, solver, x, y0, task, key)

    def hypergradient(self, problem, solver, x, task, key, begin=lambda y0: y0):
        other = jax.random.fold_in(key, 1) if self.rekey else key
        reached, _ = mb.Unroll().hypergradient(problem, solver, x, task, key, begin)
        gradient = mb.Unroll().hypergradient(problem, solver, x, task, other, begin)[1]
        return reached, jax.tree.map(lambda a: self.factor * a, gradient)


class Tweaked(mb.AbstractAdjoint):
    """The gradient of an unroll, after `tweak`."""

    tweak: Callable
    unseen = "Nothing."

    def __call__(self, problem, solver, x, y0, task, key):
        return mb.Unroll()(problem, solver, x, y0, task, key)

    def hypergradient(self, problem, solver, x, task, key, begin=lambda y0: y0):
        reached, gradient = mb.Unroll().hypergradient(problem, solver, x, task, key, begin)
        return reached, self.tweak(gradient)


@pytest.mark.parametrize(
    ("factor", "rekey", "verdict"),
    [(1.0, False, "right"), (-1.0, False, "wrong sign"), (3.0, False, "wrong scale"), (1.0, True, "noise")],
)
def test_adjoints_of_somebody_else_are_seen_through(factor, rekey, verdict):
    adjoint = Changed(factor, rekey)
    task = jnp.array([1.0, -0.5, 2.0])
    problem = noisy().problem
    found = mb.check_hypergradient(problem, jnp.ones(3), task, key=KEY, solver=descent(5), adjoint=adjoint)
    assert found.verdict == verdict, found.reason


@pytest.mark.parametrize(
    ("method", "tasks", "verdict"),
    [
        ("maml", "sinusoid", "right"),
        ("fomaml", "sinusoid", "second derivatives dropped"),
        ("r2d2", "sinusoid", "right"),
        ("learned-rate", "quadratics", "second derivatives dropped"),
        ("soba", "bilevel-quadratics", "right"),
    ],
)
def test_registered_methods(method, tasks, verdict):
    options = {"network": "tanh-64-64"} if tasks == "sinusoid" else {}
    options |= {"train": 64, "valid": 32, "inner_dimension": 6} if tasks == "bilevel-quadratics" else {}
    family = mb.load_tasks(tasks)(**options)
    built = mb.load_method(method)(family.subject)
    found = mb.check_method(built, built.init(KEY), family, key=KEY, tolerance=1e-2)
    assert found.verdict == verdict, found.reason


def test_losses_must_be_deterministic_given_the_key():
    rng = np.random.default_rng(0)
    good = lambda x, y, task, key: jnp.sum((y - x) ** 2)
    for name in ("inner_loss", "outer_loss", "init"):
        functions = {"init": lambda x, task, key: jnp.zeros(5), "inner_loss": good, "outer_loss": good}
        honest = functions[name]
        functions[name] = lambda *args, honest=honest: honest(*args) + rng.normal()
        with pytest.raises(mb.InputError, match=f"^{name} gives two results"):
            mb.check_hypergradient(mb.BilevelProblem(**functions), X, None, key=KEY, solver=descent(2))


def test_a_root_at_zero_is_named_with_its_mend():
    problem = mb.BilevelProblem(
        init=lambda x, task, key: jnp.zeros(3),
        inner_loss=lambda x, y, task, key: jnp.sum((y - x) ** 2 * jnp.array([1.0, 0.0, 1.0])),
        outer_loss=lambda x, y, task, key: jnp.sum((y - 1) ** 2),
    )
    x = jnp.full(3, 0.5)
    for optimizer, mended in [
        (optax.adam(0.1), optax.adam(0.1, eps_root=1e-8)),
        (optax.radam(0.1), optax.adam(0.1, eps_root=1e-8)),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)), optax.adamw(0.1, eps_root=1e-8)),
    ]:
        solver = mb.GradientDescent(optimizer, 7)
        found = mb.check_hypergradient(problem, x, None, key=KEY, solver=solver)
        assert found.verdict == "not finite"
        assert "eps_root" in found.reason
        with pytest.raises(mb.ComputationError, match="eps_root=1e-8"):
            mb.hypergradient(problem, x, None, key=KEY, solver=solver, strict=True)
        solver = mb.GradientDescent(mended, 7)
        assert jnp.isfinite(mb.hypergradient(problem, x, None, key=KEY, solver=solver)[1]).all()
        assert mb.check_hypergradient(problem, x, None, key=KEY, solver=solver).right


def test_training_names_the_mend_too():
    problem = mb.BilevelProblem(
        init=lambda x, task, key: x,
        inner_loss=lambda x, y, task, key: jnp.sum((y - task) ** 2 * jnp.array([1.0, 0.0, 1.0])),
        outer_loss=lambda x, y, task, key: jnp.sum((y - task) ** 2),
    )
    train = lambda solver: mb.fit(
        mb.Method(problem, lambda key: jnp.zeros(3), mb.Nested(problem, solver), solver),
        Numbers(), optax.sgd(0.1), key=KEY, steps=2, meta_batch=2,
    )  # fmt: skip
    with pytest.raises(mb.NonFiniteError, match="eps_root=1e-8"):
        train(mb.GradientDescent(optax.adam(0.1), 3))
    train(mb.GradientDescent(optax.adam(0.1, eps_root=1e-8), 3))
    with pytest.raises(mb.NonFiniteError) as other:
        train(mb.GradientDescent(optax.sgd(1e30), 3))
    assert "eps_root" not in str(other.value)


def test_what_computes_in_single_precision_alone_is_checked_in_it():
    def inner_loss(x, y, task, key):
        return jax.lax.scan(lambda total, a: (total + a**2, None), jnp.zeros((), jnp.float32), y - x)[0]

    problem = mb.BilevelProblem(lambda x, task, key: jnp.zeros(3), inner_loss, lambda x, y, task, key: jnp.sum(y**2))
    for adjoint, verdict in [(mb.Unroll(), "right"), (Tweaked(lambda g: -g), "wrong sign")]:
        found = mb.check_hypergradient(problem, jnp.ones(3), None, key=KEY, solver=descent(3), adjoint=adjoint)
        assert found.verdict == verdict, found.reason
        assert "does not compute (TypeError)" in found.reason


def test_what_cannot_be_checked_is_refused():
    empty = mb.BilevelProblem(
        lambda x, task, key: jnp.zeros(2), PENALISED.outer_loss, lambda x, y, task, key: jnp.sum(y)
    )
    with pytest.raises(mb.InputError, match="x holds no entry"):
        mb.check_hypergradient(empty, jnp.zeros(0), None, key=KEY, solver=descent(2))
    with pytest.raises(mb.InputError, match="tolerance = 0"):
        mb.check_hypergradient(PROBLEM, X, None, key=KEY, solver=descent(2), tolerance=0.0)


@pytest.mark.parametrize("double", [False, True])
def test_differences_stand_on_their_plateau(double, key):
    with jax.enable_x64(double):
        x = {"a": jnp.linspace(0.1, 1.0, 5), "b": jnp.full(2, 2.0)}
        fn = lambda x, t: jnp.sum(jnp.sin(x["a"]) * t) + jnp.prod(x["b"]) ** 2
        flat = jnp.concatenate(list(x.values()))
        directions = jnp.concatenate([random_directions(x, 3, key), coordinate_directions(flat, [0, 6])])
        found = central_differences(fn, x, directions, jnp.asarray(1.7))
        gradient = jnp.concatenate(list(jax.grad(fn)(x, 1.7).values()))
        assert found.table.shape == found.steps.shape == (5, SIZES)
        away = np.abs(found.value - np.asarray(directions @ gradient))
        assert (away <= found.error + 1e-10).all()
        assert away.max() < (1e-8 if double else 1e-3)


def test_directions_are_named_after_what_they_move():
    x = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(()), "c": jnp.zeros(4)}
    gradient = np.zeros(11)
    gradient[[5, 6]] = 3, 2
    names, leaves, directions = directions_of(x, gradient, KEY)
    entries = [*(f"x['a'][{i}][{j}]" for i in (0, 1) for j in (0, 1, 2)), "x['b']", *(f"x['c'][{i}]" for i in range(4))]
    assert names == (*(f"random {i}" for i in (1, 2, 3, 4)), "x['a']", "x['c']", *entries)
    assert leaves == (None, None, None, None, 0, 2, *[0] * 6, 1, *[2] * 4)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-6)
    inside = np.asarray(directions) != 0
    assert not inside[4, 6:].any()
    assert inside[4, :6].all()
    assert inside[5].nonzero()[0].tolist() == [7, 8, 9, 10]
    np.testing.assert_array_equal(directions[6:], np.eye(11))

    names, leaves, directions = directions_of({"a": jnp.zeros(30), "b": jnp.zeros(())}, np.eye(31)[17], KEY)
    assert names[4:7] == ("x['a']", "x['b']", "x['a'][17]")
    assert len(names) == len(set(names)) == 9


def test_double_precision_leaves_no_constant_behind():
    target = np.arange(3.0)
    loss = lambda x: jnp.sum((x - target) ** 2)
    gradient = jax.jit(jax.grad(loss))
    narrow = gradient(jnp.ones(3))
    with double_precision(loss, jnp.ones(3)):
        wide = jax.jit(jax.value_and_grad(loss))(jnp.ones(3))[1]
        assert wide.dtype == np.float64
    again = jax.jit(jax.value_and_grad(loss))(jnp.ones(3))[1]
    assert narrow.dtype == again.dtype == np.float32
    np.testing.assert_allclose(wide, again)
