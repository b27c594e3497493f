"""Sinusoid regression (Finn et al. 2017, section 5.1; Nichol et al. 2018, section 4)."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from metabilevel import MLP, Data, Episode, InputError, Learner, TaskDistribution, pooled, regression


class Sinusoid(TaskDistribution):
    """y = amplitude sin(x - phase); amplitude, phase and x are uniform. All splits are one distribution."""

    subject: Learner
    shots: int = eqx.field(static=True)
    queries: int = eqx.field(static=True)
    amplitude: tuple[float, float] = eqx.field(static=True)
    phase: float = eqx.field(static=True)
    grid: bool = eqx.field(static=True)

    def sample(self, key, split):
        number, k_task, k_examples = pooled(key, self.subject.pool, split)
        # One draw: a draw for each quantity takes three times as long, to compile and to run.
        draws = jax.random.uniform(k_examples, (2 + self.shots + self.queries,))
        truth = draws if k_task is k_examples else jax.random.uniform(k_task, (2,))
        low, high = self.amplitude
        amplitude, phase = low + (high - low) * truth[0], self.phase * truth[1]
        inputs = 10.0 * draws[2:, None] - 5.0
        support, query = inputs[: self.shots], inputs[self.shots :]
        if self.grid and split == "test":
            query = jnp.linspace(-5.0, 5.0, 50)[:, None]
        label = lambda x: Data(x, amplitude * jnp.sin(x - phase))
        return Episode(label(support), label(query), {"amplitude": amplitude, "phase": phase}, number)


def sinusoid(
    *,
    shots: int = 10,
    queries: int = 10,
    min_amplitude: float = 0.1,
    max_amplitude: float = 5.0,
    max_phase: float = jnp.pi,
    grid: bool = False,
    network: Literal["relu-40-40", "tanh-64-64"] = "relu-40-40",
    init: Literal["fan-in", "truncated-normal"] = "fan-in",
    pool: int | None = None,
) -> Sinusoid:
    """Sinusoids with amplitude U[.1, 5], phase U[0, pi] and inputs U[-5, 5] by default; mean squared error.

    **Arguments:**

    - `shots`, `queries`: support and query points of a task.
    - `min_amplitude`, `max_amplitude`, `max_phase`: ranges (Nichol et al.: phases up to 2 pi).
    - `grid`: judge on 50 equispaced points of [-5, 5] at test, in place of random ones (Nichol et al.).
    - `network`: Finn et al.'s ReLU net with two layers of 40, or Nichol et al.'s tanh net with two of 64.
    - `init`: of the weights: standard deviation 1/sqrt(inputs), or .01 as in Finn et al.'s code.
    - `pool`: training has so many sinusoids, visited again and again with other points; if none, ever new ones.

    **Raises:** `InputError` for a count below 1 or an empty range.
    """
    if shots < 1 or queries < 1:
        raise InputError(f"shots = {shots}, queries = {queries}: at least one point of each is wanted.")
    if pool is not None and pool < 1:
        raise InputError(f"pool = {pool}: at least one training task is wanted, or none for ever new ones.")
    if not min_amplitude <= max_amplitude:
        raise InputError(f"min_amplitude = {min_amplitude} is above max_amplitude = {max_amplitude}.")
    net = MLP(1, (40, 40), 1, "relu", init) if network == "relu-40-40" else MLP(1, (64, 64), 1, "tanh", init)
    oracle = lambda task, x: task.truth["amplitude"] * jnp.sin(x - task.truth["phase"])
    learner = regression(net, oracle=oracle, pool=pool)
    return Sinusoid(learner, shots, queries, (min_amplitude, max_amplitude), max_phase, grid)
