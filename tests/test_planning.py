"""Memory plans: what is predicted, what is picked, and what is refused."""

import jax
import jax.numpy as jnp

from metabilevel.planning import Footprint, footprint


def test_a_footprint_counts_what_goes_in_what_comes_out_and_what_lies_between(optimised):
    n = 64
    x = jax.ShapeDtypeStruct((n, n), jnp.float32)
    ran = []

    def chain(x, power):
        jax.debug.callback(lambda: ran.append(1))
        for _ in range(power):
            x = jnp.tanh(x @ x)
        return {"last": x, "sum": x.sum()}

    found = footprint(chain, x, 3)
    assert not ran
    assert found.arguments == 4 * n * n
    assert 4 * n * n + 4 <= found.outputs <= 4 * n * n + 64
    assert 4 * n * n <= found.temporaries <= 3 * 4 * n * n
    assert found.total == found.arguments + found.added
    assert footprint(chain, jnp.ones((n, n)), 3) == found


def test_what_is_donated_counts_once():
    x = jnp.ones(1024)
    plain, donated = (
        Footprint.of(jax.jit(lambda x: 2 * x, donate_argnums=given).lower(x).compile()) for given in ((), 0)
    )
    assert plain.added == x.nbytes
    assert donated.aliased == x.nbytes
    assert donated.added == 0
