"""Operations that are counted off a trace."""

import jax
import jax.numpy as jnp

from metabilevel.operations import Operations, operations

A, B = jnp.ones((8, 16)), jnp.ones((16, 4))


def test_products_and_others_are_counted():
    assert operations(jnp.matmul, A, B) == Operations(2 * 8 * 16 * 4, 0)
    assert operations(lambda a, b: jnp.tanh(a @ b).sum(), A, B) == Operations(2 * 8 * 16 * 4, 8 * 4 + 8 * 4)
    assert operations(lambda a: a.T.reshape(4, 32)[:2].astype(int), A).total == 0


def test_a_convolution_counts_as_the_product_of_its_patches():
    images, weights = jnp.ones((2, 28, 28, 3)), jnp.ones((3, 3, 3, 8))
    convolve = lambda w: jax.lax.conv_general_dilated(
        images, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert operations(convolve, weights).products == 2 * (2 * 28 * 28) * (3 * 3 * 3) * 8


def test_loops_count_as_often_as_they_run_and_conditionals_by_their_cheapest_branch():
    scanned = lambda a: jax.lax.scan(lambda c, _: (jnp.sin(c), None), a, length=5)[0]
    assert operations(scanned, A).total == 5 * A.size
    products = lambda a: jax.lax.scan(lambda c, _: (c @ (A.T @ A), None), a, length=7)[0]
    assert operations(products, jnp.ones((2, 16))).products == 7 * (2 * 16 * 8 * 16 + 2 * 2 * 16 * 16)
    assert operations(jax.vmap(scanned), jnp.stack([A, A])).total == 2 * 5 * A.size
    either = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: scanned(a), lambda: jnp.sin(a))
    assert operations(either, A).total == A.size


def test_a_gradient_of_a_product_costs_two_more():
    loss = lambda a, b: jnp.sum(a @ b)
    assert operations(jax.grad(loss, (0, 1)), A, B).products == 2 * operations(loss, A, B).products
