"""Deliberately broken methods: the defects of published code, and others that outsiders may think of.

Each is a factory on a learner, but for those that say otherwise, and is to be caught by the check beside it, in a
message that has the words beside it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metabilevel as mb

RATE, STEPS = 0.3, 2


class Defect(NamedTuple):
    """`gradient` is what `direction_is_the_gradient` is given."""

    factory: Callable[[Any], mb.Method]
    check: str
    words: str
    gradient: bool | None = None


DEFECTS: dict[str, Defect] = {}


def caught_by(check: str, words: str, gradient: bool | None = None) -> Callable[[Any], Any]:
    def register(factory: Any) -> Any:
        DEFECTS[factory.__name__.replace("_", "-")] = Defect(factory, check, words, gradient)
        return factory

    return register


# What is right, to be broken below.


def problem(learner: mb.Learner) -> mb.BilevelProblem:
    return mb.BilevelProblem(
        init=lambda x, task, key: x,
        inner_loss=lambda x, y, task, key: learner.fit(y, task.support),
        outer_loss=lambda x, y, task, key: learner.test(y, task.query, task.support),
    )


def maml(learner: mb.Learner, optimizer: Any = None, steps: int = STEPS, **parts: Callable[..., Any]) -> mb.Method:
    """MAML, with functions of its problem in place of the right ones."""
    posed = dataclasses.replace(problem(learner), **parts)
    solver = mb.GradientDescent(optax.sgd(RATE) if optimizer is None else optimizer, steps)
    return mb.Method(posed, learner.init, mb.Nested(posed, solver), solver)


def weight_decay(learner: mb.Learner, adjoint: mb.AbstractAdjoint) -> mb.Method:
    """x is the logarithm of a weight decay; and a shift of the outer loss, so that there is a direct term."""

    def inner_loss(x, y, task, key):
        square = sum(jnp.sum(a**2) for a in jax.tree.leaves(y))
        return learner.fit(y, task.support) + jnp.exp(x["decay"]) * square / 2

    def outer_loss(x, y, task, key):
        return learner.test(y, task.query, task.support)[0] + (x["shift"] - 1) ** 2

    posed = mb.BilevelProblem(lambda x, task, key: learner.init(key), inner_loss, outer_loss)
    solver = mb.GradientDescent(optax.sgd(RATE), 150)
    start = lambda key: {"decay": jnp.asarray(-1.0, float), "shift": jnp.zeros(())}
    return mb.Method(posed, start, mb.Nested(posed, solver, adjoint), solver)


class Around(mb.AbstractEstimator):
    """A right estimator, and what is done to its result."""

    right: mb.AbstractEstimator
    change: Callable[..., Any]  # (direction, carry, info, x, tasks, carry before, key) -> (direction, carry, info)

    def init(self, x, tasks, key):
        return self.right.init(x, tasks, key)

    def __call__(self, x, tasks, carry, key):
        return self.change(*self.right(x, tasks, carry, key), x, tasks, carry, key)


def around(method: mb.Method, change: Callable[..., Any]) -> mb.Method:
    return dataclasses.replace(method, estimator=Around(method.estimator, change))


def turned(method: mb.Method, change: Callable[[Any], Any]) -> mb.Method:
    """The direction alone is changed."""
    return around(method, lambda direction, carry, info, *given: (change(direction), carry, info))


# Linear systems.


class OldResidual(mb.AbstractInverse):
    """Conjugate gradients whose new direction is made of the old residual."""

    def __call__(self, system):
        v, r = jnp.zeros_like(system.b), system.b
        p = r
        for _ in range(10):
            q = system.matvec(p)
            alpha = r @ r / jnp.maximum(p @ q, 1e-30)
            later = r - alpha * q
            v, p = v + alpha * p, r + later @ later / jnp.maximum(r @ r, 1e-30) * p
            r = later
        return v, jnp.int32(10), mb.Result.success


class Explosive(mb.AbstractInverse):
    """A Neumann series of a scale above 2 / (the largest eigenvalue)."""

    def __call__(self, system):
        v = p = system.b
        for _ in range(40):
            p = p - 4.0 * system.matvec(p)
            v = v + p
        return 4.0 * v, jnp.int32(40), mb.Result.success


class ZeroWhereItConverged(mb.AbstractInverse):
    """Conjugate gradients that, converged after one step, give back the start."""

    def __call__(self, system):
        v, iterations, result = mb.ConjugateGradient(10)(system)
        once = system.b * (system.b @ system.b) / (system.b @ system.matvec(system.b))
        done = jnp.linalg.norm(system.matvec(once) - system.b) < 1e-6 * jnp.linalg.norm(system.b)
        return jnp.where(done, 0, v), iterations, result


@caught_by("inverse-quadratic", "residual")
def cg_with_the_old_residual(learner: mb.Learner) -> mb.Method:
    return weight_decay(learner, mb.Implicit(OldResidual()))


@caught_by("inverse-quadratic", "diverge")
def diverging_neumann_series(learner: mb.Learner) -> mb.Method:
    return weight_decay(learner, mb.Implicit(Explosive()))


@caught_by("inverse-isotropic", "v = 0")
def cg_that_is_zero_for_an_isotropic_hessian(learner: mb.Learner) -> mb.Method:
    return weight_decay(learner, mb.Implicit(ZeroWhereItConverged()))


class Handmade(mb.AbstractAdjoint):
    """An implicit adjoint written out, on few dimensions; `factor` of the mixed derivative, `direct` that of dF/dx."""

    factor: float = 1.0
    direct: float = 1.0
    unseen = "the path"

    def __call__(self, problem, solver, x, y0, task, key):
        return mb.Implicit(mb.Dense())(problem, solver, x, y0, task, key)

    def hypergradient(self, problem, solver, x, task, key, begin=lambda y0: y0):
        reached, right = mb.Implicit(mb.Dense()).hypergradient(problem, solver, x, task, key, begin)
        z, _, k = problem.begin(x, task, key)
        direct = jax.grad(lambda x: problem.objective(x, reached.inner, task, k)[0])(z)
        through = jax.tree.map(jnp.subtract, right, direct)
        found = jax.tree.map(lambda a, b: self.direct * a + self.factor * b, direct, through)
        return reached, found


@caught_by("gradient-quadratic", "differences")
def hessian_product_by_differences_with_a_factor_2_misplaced(learner: mb.Learner) -> mb.Method:
    return weight_decay(learner, Handmade(factor=2.0))


@caught_by("gradient-quadratic", "x['shift']")
def direct_term_dropped(learner: mb.Learner) -> mb.Method:
    return weight_decay(learner, Handmade(direct=0.0))


@caught_by("gradient-quadratic", "x['decay']")
def mixed_derivative_dropped(learner: mb.Learner) -> mb.Method:
    return weight_decay(learner, Handmade(factor=0.0))


# Derivatives of unrolled steps.


@caught_by("gradient", "second derivative")
def maml_silently_first_order(learner: mb.Learner) -> mb.Method:
    fit = lambda x, y, task, key: learner.fit(y, task.support)
    constant = lambda x, y, task, key: sum(
        jnp.vdot(jax.lax.stop_gradient(g), a)
        for g, a in zip(jax.tree.leaves(jax.grad(fit, 1)(x, y, task, key)), jax.tree.leaves(y), strict=True)
    )
    return maml(learner, inner_loss=constant)


@caught_by("gradient-quadratic", "second derivative", gradient=True)
def first_order_maml_that_says_it_is_the_gradient(learner: mb.Learner) -> mb.Method:
    right = maml(learner)
    return dataclasses.replace(right, estimator=mb.Nested(right.problem, right.solver, mb.Unroll(first_order=True)))


@caught_by("gradient", "wrong sign")
def wrong_sign(learner: mb.Learner) -> mb.Method:
    return turned(maml(learner), lambda direction: jax.tree.map(jnp.negative, direction))


@caught_by("uphill", "downhill")
def wrong_sign_of_a_method_that_claims_nothing(learner: mb.Learner) -> mb.Method:
    right = maml(learner)
    estimator = mb.Nested(right.problem, right.solver, mb.Unroll(first_order=True))
    away = lambda direction: jax.tree.map(jnp.negative, direction)
    return turned(dataclasses.replace(right, estimator=estimator), away)


@caught_by("gradient", "too large")
def learning_rate_applied_already(learner: mb.Learner) -> mb.Method:
    return turned(maml(learner), lambda direction: jax.tree.map(lambda a: 0.1 * a, direction))


@caught_by("gradient-large", "a large inner loss")
def entries_clipped_at_50(learner: mb.Learner) -> mb.Method:
    return turned(maml(learner), lambda direction: jax.tree.map(lambda a: jnp.clip(a, -50, 50), direction))


@caught_by("gradient", "wrong in x['body']")
def leaf_forgotten(learner: mb.Learner) -> mb.Method:
    return turned(maml(learner), lambda d: {**d, "body": jax.tree.map(jnp.zeros_like, d["body"])})


@caught_by("zero-gradient", "eps_root")
def adam_at_a_zero_gradient(learner: mb.Learner) -> mb.Method:
    return maml(learner, optax.adam(0.01))


# Batches of tasks.


@caught_by("mean-over-tasks", "sum")
def sum_over_the_tasks(learner: mb.Learner) -> mb.Method:
    def change(direction, carry, info, *given):
        return jax.tree.map(lambda a: a * jnp.sum(info.finite), direction), carry, info

    return around(maml(learner), change)


class Poisonable(mb.AbstractEstimator):
    """The gradient of the mean loss over tasks with the weights `of(n)`."""

    method: mb.Method
    weights: Callable[[int], Any] = lambda n: jnp.ones(n) / n
    hide: bool = False

    def init(self, x, tasks, key):
        return None

    def __call__(self, x, tasks, carry, key):
        _, _, info = mb.Nested(self.method.problem, self.method.solver)(x, tasks, None, key)

        def mean(x):
            def loss(task):
                y = self.method.adapt(x, task, key)
                return self.method.problem.objective(x, y, task, key)[0]

            losses = jax.vmap(loss)(tasks)
            return self.weights(len(losses)) @ losses

        direction = jax.grad(mean)(x)
        if self.hide:
            direction = jax.tree.map(jnp.nan_to_num, direction)
            info = dataclasses.replace(info, loss=jnp.nan_to_num(info.loss), finite=jnp.ones_like(info.finite))
        return direction, None, info


def poisonable(learner: mb.Learner, **given: Any) -> mb.Method:
    right = maml(learner)
    return dataclasses.replace(right, estimator=Poisonable(right, **given))


@caught_by("bad-task-left-out", "poisons the mean")
def one_bad_task_poisons_the_mean(learner: mb.Learner) -> mb.Method:
    return poisonable(learner)


@caught_by("bad-task-left-out", "never make a number of a NaN")
def nan_made_zero(learner: mb.Learner) -> mb.Method:
    return poisonable(learner, hide=True)


@caught_by("mean-over-tasks", "weights by their place")
def weights_by_the_order_of_the_tasks(learner: mb.Learner) -> mb.Method:
    return poisonable(learner, weights=lambda n: jnp.arange(1, n + 1) / (n * (n + 1) / 2))


# Traces, types and the carry.


@caught_by("no-leaked-tracer", "custom_vjp")
def custom_vjp_that_closes_over_a_task(learner: mb.Learner) -> mb.Method:
    kept: list[Any] = []

    def outer_loss(x, y, task, key):
        kept.append(task.query.inputs)  # of the vmap over the tasks, and used again in the next trace
        return outer_loss_of(learner, y, task, kept[0])

    return maml(learner, outer_loss=outer_loss)


def outer_loss_of(learner: mb.Learner, y: Any, task: Any, inputs: Any) -> Any:
    @jax.custom_vjp
    def loss(y):
        return learner.fit(y, mb.Data(inputs, task.query.targets))

    loss.defvjp(
        lambda y: (loss(y), y),
        lambda y, g: (jax.tree.map(lambda a: g * a, jax.grad(loss.fun)(y)),),
    )
    return loss(y)


@caught_by("no-leaked-tracer", "outlive")
def kept_in_a_list(learner: mb.Learner) -> mb.Method:
    kept: list[Any] = []

    def change(direction, carry, info, x, *given):
        kept.append(x)
        return direction, carry, info

    return around(maml(learner), change)


@caught_by("compiles-once", "weakly typed")
def weakly_typed_x(learner: mb.Learner) -> mb.Method:
    right = weight_decay(learner, mb.Unroll())
    return dataclasses.replace(right, init=lambda key: {"decay": jnp.log(0.02), "shift": jnp.zeros(())})


class Counting(mb.AbstractEstimator):
    """A right estimator, with a carry of its own: `begin` and `later(carry before, x)`; the direction is
    `seen(direction, x, carry)`."""

    right: mb.AbstractEstimator
    begin: Callable[[Any], Any]
    later: Callable[[Any, Any], Any]
    at: Callable[[Any, Any], Any] = lambda x, carry: x

    def init(self, x, tasks, key):
        return self.begin(x)

    def __call__(self, x, tasks, carry, key):
        direction, _, info = self.right(self.at(x, carry), tasks, None, key)
        return direction, self.later(carry, x), info


def counting(learner: mb.Learner, *given: Any) -> mb.Method:
    right = maml(learner)
    return dataclasses.replace(right, estimator=Counting(right.estimator, *given))


@caught_by("carry-stable", "carry")
def carry_that_grows(learner: mb.Learner) -> mb.Method:
    return counting(learner, lambda x: jnp.zeros(1), lambda carry, x: jnp.append(carry, 0.0))


@caught_by("carry-stable", "int")
def carry_that_changes_its_type(learner: mb.Learner) -> mb.Method:
    return counting(learner, lambda x: jnp.zeros((), jnp.int32), lambda carry, x: carry + 1.0)


@caught_by("sees-x", "remembers")
def x_of_the_step_before(learner: mb.Learner) -> mb.Method:
    return counting(learner, lambda x: x, lambda carry, x: x, lambda x, carry: carry)


class Late(mb.AbstractEstimator):
    """A right estimator, whose direction is `change(direction)` from the fourth call on."""

    right: mb.AbstractEstimator
    change: Callable[[Any], Any]

    def init(self, x, tasks, key):
        return jnp.zeros((), jnp.int32)

    def __call__(self, x, tasks, carry, key):
        direction, _, info = self.right(x, tasks, None, key)
        late = lambda a: jnp.where(carry < 3, a, self.change(a))
        return jax.tree.map(late, direction), carry + 1, info


@caught_by("gradient", "call after 10 others")
def gradient_for_three_calls(learner: mb.Learner) -> mb.Method:
    right = maml(learner)
    return dataclasses.replace(right, estimator=Late(right.estimator, lambda a: 3 * a))


@caught_by("gradient-quadratic", "too large")
def implicit_gradient_for_three_calls(learner: mb.Learner) -> mb.Method:
    right = weight_decay(learner, mb.Implicit(mb.Dense()))
    return dataclasses.replace(right, estimator=Late(right.estimator, lambda a: 3 * a))


@caught_by("uphill", "downhill")
def uphill_for_three_calls(learner: mb.Learner) -> mb.Method:
    right = maml(learner)
    first_order = mb.Nested(right.problem, right.solver, mb.Unroll(first_order=True))
    return dataclasses.replace(right, estimator=Late(first_order, jnp.negative))


@caught_by("recovers", "call 3 on good ones")
def nan_from_the_fourth_call(learner: mb.Learner) -> mb.Method:
    right = maml(learner)
    return dataclasses.replace(right, estimator=Late(right.estimator, lambda a: a * jnp.nan))


@caught_by("bad-part-marked", "nan_to_num")
def nan_of_the_support_made_zero(learner: mb.Learner) -> mb.Method:
    clean = lambda data: mb.Data(jnp.nan_to_num(data.inputs), jnp.nan_to_num(data.targets))
    return maml(learner, inner_loss=lambda x, y, task, key: learner.fit(y, clean(task.support)))


@caught_by("bad-part-marked", "query of task 0")
def nan_of_the_query_made_zero(learner: mb.Learner) -> mb.Method:
    clean = lambda data: mb.Data(jnp.nan_to_num(data.inputs), jnp.nan_to_num(data.targets))
    return maml(learner, outer_loss=lambda x, y, task, key: learner.test(y, clean(task.query), task.support))


@caught_by("recovers", "keeps the NaN")
def slot_that_keeps_its_nan(learner: mb.Learner) -> mb.Method:
    right = maml(learner)
    near = lambda carry: lambda x, task, key: jax.tree.map(lambda a, c: a + 0.1 * c, x, carry)

    class Warm(mb.AbstractEstimator):
        def init(self, x, tasks, key):
            return jax.tree.map(jnp.zeros_like, x)

        def __call__(self, x, tasks, carry, key):
            warm = dataclasses.replace(right, problem=dataclasses.replace(right.problem, init=near(carry)))
            direction, _, info = mb.Nested(warm.problem, warm.solver)(x, tasks, None, key)
            reached = jax.vmap(lambda task: warm.adapt(x, task, key))(tasks)
            return direction, jax.tree.map(lambda a: a.mean(0), reached), info

    return dataclasses.replace(right, estimator=Warm())


@caught_by("no-hidden-state", "np.random")
def noise_of_numpy(learner: mb.Learner) -> mb.Method:
    return turned(maml(learner), lambda d: jax.tree.map(lambda a: a + 0.01 * np.random.normal(), d))  # noqa: NPY002


@caught_by("no-hidden-state", "Python")
def counter_in_python(learner: mb.Learner) -> mb.Method:
    calls = [0]

    def change(direction, carry, info, *given):
        calls[0] += 1
        return jax.tree.map(lambda a: a / calls[0], direction), carry, info

    return around(maml(learner), change)


@caught_by("pure", "callback")
def state_behind_a_callback(learner: mb.Learner) -> mb.Method:
    calls = [0]

    def count(_):
        calls[0] += 1
        return np.float32(calls[0])

    def change(direction, carry, info, *given):
        number = jax.pure_callback(count, jax.ShapeDtypeStruct((), jnp.float32), info.loss[0])
        return jax.tree.map(lambda a: a * (1 + number.astype(a.dtype)), direction), carry, info

    return around(maml(learner), change)


@caught_by("key", "key of its own")
def key_ignored(learner: mb.Learner) -> mb.Method:
    start = lambda x, task, key: jax.tree.map(lambda a: a + jax.random.normal(jax.random.key(0), a.shape), x)
    return maml(learner, init=start)


@caught_by("key", "Split the key")
def one_key_for_all_tasks(learner: mb.Learner) -> mb.Method:
    start = lambda x, task, key: jax.tree.map(lambda a: a + jax.random.normal(key, a.shape), x)
    right = maml(learner, init=start)

    class OneKey(mb.AbstractEstimator):
        def init(self, x, tasks, key):
            return None

        def __call__(self, x, tasks, carry, key):
            nested = mb.Nested(right.problem, right.solver)
            each = lambda task: nested(x, jax.tree.map(lambda a: a[None], task), None, key)
            directions, _, infos = jax.vmap(each)(tasks)
            info = jax.tree.map(lambda a: a[:, 0], infos)
            return jax.tree.map(lambda a: a.mean(0), directions), None, info

    return dataclasses.replace(right, estimator=OneKey())


@caught_by("float64", "single")
def computed_in_single_precision(learner: mb.Learner) -> mb.Method:
    return turned(maml(learner), lambda d: jax.tree.map(lambda a: a.astype(jnp.float32).astype(a.dtype), d))


@caught_by("direction-like-x", "float32")
def direction_of_single_precision(learner: mb.Learner) -> mb.Method:
    return turned(maml(learner), lambda d: jax.tree.map(lambda a: a.astype(jnp.float32), d))


@caught_by("direction-like-x", "missing")
def direction_without_a_leaf(learner: mb.Learner) -> mb.Method:
    return turned(maml(learner), lambda d: {"body": d["body"]})


@caught_by("info-complete", "info's size")
def metric_of_the_batch(learner: mb.Learner) -> mb.Method:
    def change(direction, carry, info, *given):
        return direction, carry, dataclasses.replace(info, metrics={"size": info.loss.mean()})

    return around(maml(learner), change)


# What a test does.


@caught_by("adapts", "queries")
def adaptation_on_the_queries(learner: mb.Learner) -> mb.Method:
    return maml(learner, inner_loss=lambda x, y, task, key: learner.fit(y, task.query))


@caught_by("adapts-as-trained", "steps")
def one_step_more_at_test(learner: mb.Learner) -> mb.Method:
    return dataclasses.replace(maml(learner), solver=mb.GradientDescent(optax.sgd(RATE), STEPS + 1))


@caught_by("adapts-as-trained", "learning rate")
def another_rate_at_test(learner: mb.Learner) -> mb.Method:
    return dataclasses.replace(maml(learner), solver=mb.GradientDescent(optax.sgd(RATE / 100), STEPS))


@caught_by("adapts-as-trained", "another inner loss")
def away_from_the_support_at_test(learner: mb.Learner) -> mb.Method:
    right = maml(learner)
    away = lambda x, y, task, key: -learner.fit(y, task.support)
    return dataclasses.replace(right, problem=dataclasses.replace(right.problem, inner_loss=away))


def told(learner: mb.Learner, change: Callable[[mb.Info], mb.Info]) -> mb.Method:
    return around(maml(learner), lambda direction, carry, info, *given: (direction, carry, change(info)))


@caught_by("adapts-as-trained", "residual 0 where")
def certificate_of_zero(learner: mb.Learner) -> mb.Method:
    nothing = lambda info: jax.tree.map(jnp.zeros_like, info.certificate)
    return told(learner, lambda info: dataclasses.replace(info, certificate=nothing(info)))


def scored(method: mb.Method, change: Callable[[Any], Any]) -> mb.Method:
    """With a metric in test and training, which training reports as `change` of it."""

    def outer_loss(x, y, task, key):
        value, metrics = method.problem.objective(x, y, task, key)
        return value, {**metrics, "double": 2 * value}

    posed = dataclasses.replace(method.problem, outer_loss=outer_loss)
    changed = lambda info: dataclasses.replace(info, metrics={**info.metrics, "double": change(info.metrics["double"])})
    right = mb.Method(posed, method.init, mb.Nested(posed, method.solver), method.solver)
    return around(right, lambda direction, carry, info, *given: (direction, carry, changed(info)))


@caught_by("adapts-as-trained", "the double")
def metric_on_another_scale(learner: mb.Learner) -> mb.Method:
    return scored(maml(learner), lambda a: 2 * a + 1)


@caught_by("mean-over-tasks", "change places")
def metric_of_the_next_task(learner: mb.Learner) -> mb.Method:
    return scored(maml(learner), lambda a: jnp.roll(a, 1))


@caught_by("adapts", "judged on examples")
def judged_on_the_support(learner: mb.Learner) -> mb.Method:
    return maml(learner, outer_loss=lambda x, y, task, key: learner.test(y, task.support, task.support))


@caught_by("builds", "annotation")
def option_without_a_type(learner: mb.Learner, *, steps=3) -> mb.Method:
    return maml(learner)


@caught_by("runs", "dot_general")
def shapes_that_do_not_fit(learner: mb.Learner) -> mb.Method:
    return turned(maml(learner), lambda d: jax.tree.map(lambda a: a @ jnp.ones((7, 7)), d))
