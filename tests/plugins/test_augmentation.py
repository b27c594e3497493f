"""A learned augmentation: its hypergradient against differences, its noise, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_implicit.augmentation import UNet
from problems import directional, dot, like

import metabilevel as mb

LEARNER = mb.classification(mb.MLP(5 * 4 * 2, (), 3, init_weights="zeros"))
augmentation = mb.load_method("augmentation")


class Brightened(mb.TaskDistribution):
    """Classes are patterns; the training images have a constant added, which the others do not have."""

    subject: mb.Learner = LEARNER
    added: float = 0.0

    def sample(self, key, split):
        def images(key, added):
            patterns = jax.random.normal(jax.random.key(1), (3, 5, 4, 2))
            labels = jnp.arange(30) % 3
            noise = jax.random.normal(key, (30, 5, 4, 2))
            return mb.Data(patterns[labels] + noise + added * patterns[(labels + 1) % 3], labels)

        support, query = jax.random.split(jax.random.key(2))
        return mb.Episode(images(support, self.added), images(query, 0.0))


def test_the_hypergradient_agrees_with_differences(x64, key):
    """The solver and the residual get one key, and so see the same images and noise."""
    method = augmentation(LEARNER, channels=2, width=2, depth=1, batch=20, decay=0.1)
    k_x, k_direction, k_solve = jax.random.split(key, 3)
    x = jax.tree.map(lambda a: a / 3, like(method.init(k_x), k_x))
    task, direction = Brightened().sample(key, "valid"), like(x, k_direction)
    solver = mb.JaxoptSolver("LBFGS", maxiter=500, tol=1e-11)
    adjoint = mb.Implicit(mb.ConjugateGradient(200))
    settings = {"key": k_solve, "solver": solver, "adjoint": adjoint}
    gradient = mb.hypergradient(method.problem, x, task, **settings, strict=True)[1]
    solved = jax.jit(mb.reduced(method.problem, solver, adjoint))
    expected = directional(lambda x: solved(x, task, k_solve), x, direction, 1e-4)
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(dot(gradient, direction), expected, rtol=1e-5)


def test_it_is_the_identity_at_first_and_noise_later(key):
    net = UNet(3, 4, 2)
    x, images = net.init(key), jax.random.normal(key, (2, 7, 6, 3))
    np.testing.assert_array_equal(net(x, images, key), images)
    x = like(x, key)
    np.testing.assert_array_equal(net(x, images, key), net(x, images, key))
    assert (net(x, images, key) != net(x, images, jax.random.key(8))).all()


def test_it_has_more_than_a_hundred_thousand_weights_by_default(key):
    shapes = jax.eval_shape(augmentation(LEARNER).init, key)
    assert sum(a.size for a in jax.tree.leaves(shapes)) == 131_355


def test_it_takes_away_what_only_the_training_images_have(key):
    tasks = Brightened(added=2.0)
    method = augmentation(LEARNER, channels=2, width=4, depth=1, batch=30, learning_rate=0.01, test_steps=100)
    x, _ = mb.fit(method, tasks, optax.adam(1e-2), key=key, steps=100, meta_batch=1, progress=False)
    task = tasks.sample(key, "test")
    before, after = (jax.jit(method.test)(a, task, key)["loss"] for a in (method.init(key), x))
    assert after < 0.5 * before


def test_images_of_other_channels_are_refused(key):
    with pytest.raises(mb.InputError, match=r"channels = 3: the inputs are of shape \(30, 5, 4, 2\)"):
        mb.fit(augmentation(LEARNER), Brightened(), optax.sgd(1.0), key=key, steps=1, meta_batch=1, progress=False)


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"width": -1}, {"depth": -1}, {"batch": 0}, {"decay": -1.0}])
def test_sizes_out_of_range_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(mb.InputError, match=f"{name} = {value}: "):
        augmentation(LEARNER, **wrong)
