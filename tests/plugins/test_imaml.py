"""Implicit MAML: closed forms, finite differences, and inner solvers that agree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from metabilevel_implicit.hessian_free import HessianFree
from problems import assert_close, directional, dot, like

import metabilevel as mb
from metabilevel import InputError, Result

FEATURES = 4
LINEAR = mb.regression(mb.MLP(FEATURES, (), 1))
TANH = mb.classification(mb.MLP(FEATURES, (5,), 3, "tanh"))
imaml = mb.load_method("imaml")


class Points(mb.TaskDistribution):
    """Normal inputs; targets are normal too, or labels drawn by the inputs."""

    subject: mb.Learner

    def sample(self, key, split):
        k_truth, k_inputs = jax.random.split(key)
        inputs = jax.random.normal(k_inputs, (12, FEATURES))
        outputs = inputs @ jax.random.normal(k_truth, (FEATURES, 3)) + jnp.sin(3 * inputs[:, :3])
        targets = outputs[:, :1] if self.subject is LINEAR else outputs.argmax(-1)
        return mb.Episode(mb.Data(inputs[:6], targets[:6]), mb.Data(inputs[6:], targets[6:]))


def setting(learner, n: int = 3, **options):
    """A method, its x at the start, and a batch of tasks."""
    method = imaml(learner, **options)
    return method, method.init(jax.random.key(0)), mb.sample_batch(Points(learner), jax.random.key(1), "train", n)


def estimate(method, x, batch):
    direction, _, info = jax.jit(method.estimator)(x, batch, None, jax.random.key(2))
    return direction, info


def only(batch, i: int = 0):
    return jax.tree.map(lambda a: a[i], batch)


def flattened(method, x, batch):
    """Support and query loss of the first task as functions of flat weights, and x flat."""
    at, unravel = ravel_pytree(x)
    support, query, *_ = only(batch)
    return (lambda y: LINEAR.fit(unravel(y), support)), (lambda y: LINEAR.fit(unravel(y), query)), at


CONVERGED = [
    {"inner": "gd", "learning_rate": 0.1, "steps": 600},
    {"inner": "hessian-free", "steps": 12},
]


@pytest.mark.parametrize("options", CONVERGED)
def test_the_hypergradient_of_a_linear_regression_is_the_closed_form(options, x64):
    method, x, batch = setting(LINEAR, 1, strength=0.7, cg_steps=8, **options)
    support, query, at = flattened(method, x, batch)
    system = jax.hessian(support)(at) + 0.7 * np.eye(len(at))
    y = at - np.linalg.solve(system, jax.grad(support)(at))
    wanted = 0.7 * np.linalg.solve(system, jax.grad(query)(y))
    found, info = estimate(method, x, batch)
    np.testing.assert_allclose(ravel_pytree(found)[0], wanted, rtol=0, atol=1e-6 * np.linalg.norm(wanted))
    np.testing.assert_allclose(info.loss, query(y), rtol=1e-6)
    assert info.certificate.result == Result.success


@pytest.mark.parametrize("options", CONVERGED)
def test_the_direction_is_the_slope_of_the_loss_of_a_deep_net(options, x64):
    method, x, batch = setting(TANH, strength=1.0, cg_steps=40, **options)
    v = like(x, jax.random.key(3))
    slope = directional(lambda x: estimate(method, x, batch)[1].loss.mean(), x, v)
    np.testing.assert_allclose(dot(estimate(method, x, batch)[0], v), slope, rtol=1e-6)


def test_both_inner_solvers_reach_the_same_minimum(x64):
    _, x, batch = setting(TANH)
    methods = [imaml(TANH, strength=1.0, **options) for options in CONVERGED]
    assert_close(*[method.adapt(x, only(batch), jax.random.key(0)) for method in methods], 1e-8)


@pytest.mark.parametrize(
    ("loss", "begin"),
    [(lambda y: jnp.sqrt(1 + y**2), 3.0), (lambda y: y**2 / (1 + y**2), 2.0), (lambda y: jnp.exp(y**2), 2.0)],
    ids=["overshoots", "curves downwards", "steep"],
)
def test_the_line_search_descends_where_newtons_step_does_not(loss, begin, x64):
    problem = mb.BilevelProblem(
        init=lambda x, task, key: {"y": jnp.array([begin])},
        inner_loss=lambda x, y, task, key: loss(y["y"]).sum(),
        outer_loss=lambda x, y, task, key: y["y"].sum(),
    )
    y = begin
    for _ in range(4):
        y -= float(jax.grad(loss)(y) / jax.grad(jax.grad(loss))(y))
    newton = abs(y)
    path = []
    for steps in (0, 1, 2, 4, 30):
        y = HessianFree(steps=steps).solve(problem, None, {"y": jnp.array([begin])}, None, jax.random.key(0))
        path.append(float(loss(y["y"][0])))
    assert all(np.diff(path) < 0)
    assert abs(y["y"][0]) < 1e-6
    assert newton > 1e-3


def test_without_conjugate_gradients_it_is_the_query_gradient_at_the_adapted_weights(x64):
    method, x, batch = setting(TANH, 1, cg_steps=0)
    task = only(batch)
    y = method.adapt(x, task, jax.random.key(0))
    assert_close(estimate(method, x, batch)[0], jax.grad(TANH.fit)(y, task.query), 1e-12)
    few, many = (estimate(setting(TANH, 1, cg_steps=steps)[0], x, batch)[0] for steps in (1, 40))
    assert dot(few, many) > 0


@pytest.mark.parametrize("options", [{}, {"variant": "code"}, {"inner": "hessian-free", "steps": 2}])
def test_a_batch_is_the_mean_of_its_tasks(options, x64):
    method, x, batch = setting(TANH, **options)
    found = estimate(method, x, batch)[0]
    each = [estimate(method, x, jax.tree.map(lambda a: a[i : i + 1], batch))[0] for i in range(3)]  # noqa: B023
    assert_close(found, jax.tree.map(lambda *a: sum(a) / 3, *each), 1e-12)


def test_the_certificate_tells_one_step_from_a_solve():
    results = [
        estimate(*setting(TANH, 1, steps=steps, learning_rate=0.1, cg_steps=20))[1].certificate.result
        for steps in (1, 300)
    ]
    assert results[0] == Result.inner_not_stationary
    assert results[1] == Result.success


def test_the_code_pulls_once_and_solves_another_system(x64):
    method, x, batch = setting(LINEAR, 1, variant="code", steps=3, learning_rate=0.05, cg_steps=10)
    support, query, at = flattened(method, x, batch)
    y = at
    for _ in range(3):
        y = y - 0.05 * jax.grad(support)(y)
    y = y - 0.05 * 2.0 * (y - at)
    np.testing.assert_allclose(ravel_pytree(method.adapt(x, only(batch), jax.random.key(0)))[0], y, rtol=1e-10)
    wanted = np.linalg.solve(2 * np.eye(len(at)) + jax.hessian(support)(y) / 12, jax.grad(query)(y))
    np.testing.assert_allclose(ravel_pytree(estimate(method, x, batch)[0])[0], wanted, rtol=1e-8)


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_damping_is_added_to_the_identity(damping, x64):
    method, x, batch = setting(LINEAR, 1, strength=2.0, steps=400, cg_steps=10, damping=damping)
    support, query, at = flattened(method, x, batch)
    y = ravel_pytree(method.adapt(x, only(batch), jax.random.key(0)))[0]
    wanted = np.linalg.solve((1 + damping) * np.eye(len(at)) + jax.hessian(support)(at) / 2, jax.grad(query)(y))
    np.testing.assert_allclose(ravel_pytree(estimate(method, x, batch)[0])[0], wanted, rtol=1e-8)


def test_a_test_has_its_own_strength_and_steps(x64):
    method, x, batch = setting(TANH, 1, test_strength=0.0, test_steps=7, learning_rate=0.3)
    y, task = x, only(batch)
    for _ in range(7):
        y = optax.apply_updates(y, jax.tree.map(lambda g: -0.3 * g, jax.grad(TANH.fit)(y, task.support)))
    assert_close(method.adapt(x, task, jax.random.key(0)), y, 1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, "strength = 0"),
        ({"test_strength": -1.0}, "test_strength = -1"),
        ({"damping": -1.0}, "damping = -1"),
        ({"inner": "hessian-free", "variant": "code"}, "variant = 'code'"),
        ({"cg_steps": -1}, "steps = -1"),
        ({"steps": -1}, "steps = -1"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        imaml(TANH, **options)


def test_tasks_of_other_ways_at_test_are_refused():
    with pytest.raises(InputError, match="train_ways = 5 and ways = 3"):
        imaml(mb.classification(mb.MLP(FEATURES, (), 5), ways=(5, 3)))


def test_sinusoids_do_not_diverge_at_the_default_rate():
    tasks = mb.load_tasks("sinusoid")()
    _, rows = mb.fit(
        imaml(tasks.subject), tasks, optax.adam(1e-3), key=jax.random.key(0), steps=10, meta_batch=25, progress=False
    )
    assert max(row["loss"] for row in rows) < 10
