"""Ridge regression with a penalty for each group of features, which validation data choose.

The inner problem fits weights y to the training rows, with a penalty 3 sigmoid(x_j) on the weights of group j; the
outer one is the error of those weights on the validation rows. Only the first of the three groups has to do with the
targets.
Nothing but the names below is needed by the commands that take such a file:

    metabilevel solve examples/ridge_penalty.py --steps 200 --outer-learning-rate 0.1
    metabilevel advise examples/ridge_penalty.py
"""

import jax
import jax.numpy as jnp
import optax

import metabilevel as mb

GROUPS, EACH, STRONGEST = 3, 6, 3.0
k_inputs, k_noise = jax.random.split(jax.random.key(0))
inputs = jax.random.normal(k_inputs, (2, 40, GROUPS * EACH))  # rows of training, and of validation
truth = jnp.concatenate([jnp.ones(EACH), jnp.zeros((GROUPS - 1) * EACH)])
targets = inputs @ truth + jax.random.normal(k_noise, (2, 40))


def error(y, part):
    """Mean squared error on the training rows (0) or the validation rows (1)."""
    return jnp.mean((inputs[part] @ y - targets[part]) ** 2)


def inner_loss(x, y, task, key):
    """What the weights y are fitted to."""
    return error(y, 0) + jnp.repeat(STRONGEST * jax.nn.sigmoid(x), EACH) @ y**2


problem = mb.BilevelProblem(
    init=lambda x, task, key: jnp.zeros(GROUPS * EACH),
    inner_loss=inner_loss,
    outer_loss=lambda x, y, task, key: error(y, 1),
)
x = jnp.full(GROUPS, -3.0)
solver = mb.GradientDescent(optax.sgd(0.05), steps=200)
