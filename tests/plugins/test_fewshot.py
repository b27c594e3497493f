"""The few-shot methods: exact gradients, and the equalities of the theory."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, directional, dot, like

import metabilevel as mb


def setting(name: str, n: int = 4, **options):
    """A method on sinusoids, its initial x, and a batch of tasks."""
    tasks = mb.load_tasks("sinusoid")(shots=5, queries=5, network="tanh-64-64")
    method = mb.load_method(name)(tasks.subject, **options)
    return method, method.init(jax.random.key(1)), mb.sample_batch(tasks, jax.random.key(2), "train", n)


@eqx.filter_jit
def estimate(method, x, batch):
    key = jax.random.key(3)
    return method.estimator(x, batch, method.estimator.init(x, batch, key), key)


def direction(name: str, **options):
    return estimate(*setting(name, **options))[0]


@pytest.mark.parametrize(
    ("name", "options"), [("maml", {"steps": 2}), ("maml", {"mixed_mode": True}), ("anil", {}), ("union", {})]
)
def test_the_direction_is_the_gradient_of_the_reported_loss(name, options, x64):
    method, x, batch = setting(name, **options)
    if name != "union":
        method, x, batch = setting(name, learning_rate=0.05, **options)
    v = like(x, jax.random.key(5))
    slope = directional(lambda x: estimate(method, x, batch)[2].loss.mean(), x, v)
    np.testing.assert_allclose(dot(estimate(method, x, batch)[0], v), slope, rtol=1e-6)


def test_fomaml_is_not_maml(x64):
    second, first = (direction(name, learning_rate=0.05) for name in ("maml", "fomaml"))
    difference = jax.tree.map(jnp.subtract, second, first)
    assert jnp.sqrt(dot(difference, difference) / dot(second, second)) > 1e-3
    assert_close(first, direction("maml", learning_rate=0.05, first_order=True), 0.0)


def test_fomaml_is_the_query_gradient_at_the_adapted_weights(x64):
    method, x, batch = setting("fomaml", n=1, learning_rate=0.05)
    task = jax.tree.map(lambda a: a[0], batch)
    y = method.adapt(x, task, jax.random.key(0))
    at_y = jax.grad(lambda y: method.problem.objective(x, y, task, jax.random.key(0))[0])(y)
    assert_close(estimate(method, x, batch)[0], at_y, 1e-12)


def test_maml_without_steps_is_union(x64):
    assert_close(direction("maml", steps=0), direction("union"), 1e-12)


def test_anil_is_maml_under_a_head_mask(x64):
    options = {"learning_rate": 0.05, "steps": 3}
    method, x, batch = setting("maml", **options)
    head_only = optax.chain(
        optax.sgd(options["learning_rate"]),
        optax.stateless(lambda updates, _: {**updates, "body": jax.tree.map(jnp.zeros_like, updates["body"])}),
    )
    solver = mb.GradientDescent(head_only, options["steps"])
    masked = dataclasses.replace(method, solver=solver, estimator=mb.Nested(method.problem, solver))
    assert_close(direction("anil", **options), estimate(masked, x, batch)[0], 1e-12)


@pytest.mark.parametrize("name", ["maml", "anil", "union", "oracle"])  # the others draw from the key of each task
def test_vmap_over_tasks_is_a_loop(name, x64):
    method, x, batch = setting(name, n=3)
    whole, info = estimate(method, x, batch)[::2]
    each = [estimate(method, x, jax.tree.map(lambda a, i=i: a[i : i + 1], batch)) for i in range(3)]
    np.testing.assert_allclose(info.loss, [e[2].loss[0] for e in each], rtol=1e-10)
    assert_close(whole, jax.tree.map(lambda *a: sum(a) / 3, *[e[0] for e in each]), 1e-10)


def test_reptile_moves_towards_the_adapted_weights(x64):
    method, x, batch = setting("reptile", n=1, batch=100, steps=3)
    task = jax.tree.map(lambda a: a[0], batch)
    everything = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), task.support, task.query)
    y, loss = x, lambda y: jnp.mean((predict(y, everything.inputs) - everything.targets) ** 2)
    for _ in range(3):
        y = jax.tree.map(lambda a, g: a - 0.02 * g, y, jax.grad(loss)(y))
    assert_close(estimate(method, x, batch)[0], jax.tree.map(jnp.subtract, x, y), 1e-12)


def predict(params, inputs):
    for layer in params["body"]:
        inputs = jnp.tanh(inputs @ layer["weights"] + layer["bias"])
    return inputs @ params["head"]["weights"] + params["head"]["bias"]


def test_the_learning_rate_may_be_negative(x64):
    method, x, batch = setting("maml", n=1, learning_rate=-0.01)
    task = jax.tree.map(lambda a: a[0], batch)
    at = lambda y: method.problem.inner_loss(x, y, task, jax.random.key(0))
    assert at(method.adapt(x, task, jax.random.key(0))) > at(x)


def test_scratch_and_oracle_have_nothing_to_train(key):
    tasks = mb.load_tasks("sinusoid")()
    for name in ("scratch", "oracle"):
        method = mb.load_method(name)(tasks.subject)
        x, history = mb.fit(method, tasks, optax.adam(1e-3), key=key, steps=2, meta_batch=3, every=1)
        assert x == {}
        assert np.isfinite(history[-1]["loss"])


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"steps": -3, "learning_rate": 0.1}])
@pytest.mark.parametrize("name", ["maml", "fomaml", "reptile", "anil", "union", "scratch"])
def test_negative_steps_are_refused(name, wrong):
    with pytest.raises(mb.InputError, match=r"steps = -\d: an integer of 0 or more"):
        setting(name, **wrong)


def test_a_family_without_truth_has_no_oracle():
    with pytest.raises(mb.InputError, match="nobody knows the best prediction"):
        mb.load_method("oracle")(mb.classification(mb.MLP(4, (8,), 3)))


def test_a_method_built_on_the_tasks_says_what_it_wants():
    tasks = mb.load_tasks("sinusoid")()
    with pytest.raises(
        mb.InputError, match=r"maml is built on a Learner, and was given a Sinusoid. Give tasks.subject"
    ):
        mb.load_method("maml")(tasks)
