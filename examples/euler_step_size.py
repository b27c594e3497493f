"""Gradient descent is Euler's method for the gradient flow y' = -f'(y); its step size can be learned.

On f(y) = h y^2 / 2 a step of size r multiplies y by 1 - r h. Small steps follow the flow, r = 1 / h reaches the minimum
at once, and from r = 2 / h on Euler's method diverges. Of two curvatures mu < L and one step size, the larger of
|1 - r mu| and |1 - r L| is least at r = 2 / (mu + L); with a step size for each array, r = 1 / mu and 1 / L are best.
"""

import jax
import jax.numpy as jnp
import optax

import metabilevel as mb

MU, L, STEPS = 1.0, 9.0, 20
START = {"flat": jnp.array(1 / MU), "steep": jnp.array(1 / L)}  # the slowest start: both slopes are 1
loss = lambda y: MU * y["flat"] ** 2 / 2 + L * y["steep"] ** 2 / 2


def learned(start, loss):
    """The step sizes of `learned-rate` for the arrays of y, by the loss after one step."""
    tasks = mb.from_function(lambda task, key: start, lambda y, task, key: loss(y))
    method = mb.load_method("learned-rate")(tasks.subject, steps=1, window=1, second_order=True)
    adam = optax.adam(optax.cosine_decay_schedule(0.1, 300))
    x, _ = mb.fit(method, tasks, adam, key=jax.random.key(0), steps=300, meta_batch=1, progress=False)
    return jax.tree.map(jnp.exp, x["log_rates"])


one = learned(jnp.array([1 / MU, 1 / L]), lambda y: loss({"flat": y[0], "steep": y[1]}))
each = learned(START, loss)
sizes = {"small": 0.02, "1 / L": 1 / L, f"learned (2 / (mu + L) = {2 / (MU + L):.4f})": one, "2 / L, the edge": 2 / L}
rows = [(f"r = {float(r):.4f}, {name}", {"flat": r, "steep": r}) for name, r in sizes.items()]
rows += [(f"r = {each['flat']:.4f} and {each['steep']:.4f}, learned (1 / mu and 1 / L)", each)]
for name, rates in rows:
    step = lambda _, y: jax.tree.map(lambda a, r, g: a - r * g, y, rates, jax.grad(loss)(y))  # noqa: B023
    descended = loss(jax.lax.fori_loop(0, STEPS, step, START))
    flow = loss({k: START[k] * jnp.exp(-STEPS * rates[k] * h) for k, h in {"flat": MU, "steep": L}.items()})
    print(f"{name:62} loss {descended:.2e}, the flow's {flow:.2e}")  # noqa: T201
