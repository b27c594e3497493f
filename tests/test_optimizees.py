"""A user's own optimizee: what is refused, and the lines of the README."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metabilevel as mb

EXAMPLE = """
sample = lambda key: jax.random.normal(key, (20, 3))  # a task: 20 points
init = lambda points, key: {"centre": jnp.zeros(3), "radius": jnp.ones(())}  # where every optimizer starts

def loss(y, points, key):  # the sphere nearest to the points
    return jnp.mean((jnp.linalg.norm(points - y["centre"], axis=1) - y["radius"]) ** 2)

tasks = mb.from_function(init, loss, sample)
method = mb.load_method("lstm")(tasks.subject, steps=20)
x, history = mb.fit(method, tasks, optax.adam(1e-2), key=jax.random.key(0), steps=60, meta_batch=8)
scores = mb.evaluate(method, x, tasks, key=jax.random.key(1), episodes=100, steps=[0, 5, 20])
"""


def test_the_example_trains_an_optimizer_that_lowers_the_loss_of_new_tasks():
    found = {"jax": jax, "jnp": jnp, "mb": mb, "optax": optax}
    exec(EXAMPLE, found)
    start, early, late = (found["scores"][steps]["loss"] for steps in (0, 5, 20))
    assert early.mean + early.ci95 < start.mean - start.ci95
    points = mb.sample_batch(found["tasks"], jax.random.key(2), "test", 100)
    best = jax.vmap(lambda p: least(found["loss"], p))(points).mean()
    assert late.mean < best + 0.5 * (start.mean - best)


def least(loss, points):
    """The smallest loss that 500 steps of gradient descent reach."""
    y = {"centre": jnp.zeros(3), "radius": jnp.ones(())}
    step = lambda y, _: (jax.tree.map(lambda a, g: a - 0.2 * g, y, jax.grad(loss)(y, points, None)), None)
    return loss(jax.lax.scan(step, y, None, 500)[0], points, None)


start = lambda task, key: {"a": jnp.zeros(2), "b": 1.0}
square = lambda y, task, key: jnp.sum(y["a"] ** 2) + y["b"] ** 2


def test_a_function_becomes_a_family(key):
    tasks = mb.from_function(start, lambda y, task, key: task * square(y, task, key), jax.random.uniform)
    task = tasks.sample(key, "test")
    assert task == jax.random.uniform(key) == tasks.sample(key, "train")
    y = tasks.subject.init(task, key)
    assert jax.tree.map(jnp.shape, y) == jax.tree.map(lambda a: a.shape, tasks.subject.shapes) == {"a": (2,), "b": ()}
    value, metrics = tasks.subject.judge(y, task, key)
    np.testing.assert_allclose(value, task)
    assert value == tasks.subject.loss(y, task, key)
    assert metrics == {}


@pytest.mark.parametrize(
    ("init", "loss", "said"),
    [
        (start, lambda y, task, key: None, "loss gives None: one floating scalar is wanted.$"),
        (start, lambda y, task, key: y["a"] ** 2, r"loss gives float32\[2\]: .* Take the mean"),
        (start, lambda y, task, key: (square(y, task, key), {}), "one floating scalar"),
        (start, lambda y, task, key: jnp.int32(3), "loss gives .*int32.* one floating scalar"),
        (start, lambda y, task, key: jnp.log(y["a"].sum() - 1), "^loss is not finite .* start elsewhere"),
        (start, lambda y, task, key: jnp.linalg.norm(y["a"]), "^the gradient of loss is not finite"),
        (lambda task, key: {"a": jnp.full(2, jnp.nan), "b": 1.0}, square, "^y0 is not finite"),
        (lambda task, key: {"a": jnp.arange(2)}, square, r"init: y0\['a'\] holds int32.* Convert it to float"),
        (lambda task, key: {"a": "text", "b": 1.0}, square, r"init: y0\['a'\] is str"),
    ],
)
def test_what_cannot_be_descended_is_refused_in_one_line(init, loss, said):
    with pytest.raises(mb.InputError, match=said) as caught:
        mb.from_function(init, loss)
    assert "\n" not in str(caught.value)


def test_functions_in_the_wrong_order_are_named():
    def distance(y, task, key):
        return square(y, task, key)

    with pytest.raises(mb.InputError, match=r"init is distance, which cannot be called as init\(task, key\): .* order"):
        mb.from_function(distance, start)
    with pytest.raises(mb.InputError, match=r"sample is distance, which cannot be called as sample\(key\)"):
        mb.from_function(start, distance, distance)
