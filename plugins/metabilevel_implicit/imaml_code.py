"""What the authors' code of iMAML does where it departs from their text (arXiv:1909.04630)."""

import equinox as eqx
import jax
import jax.numpy as jnp

from metabilevel import AbstractInverse, AbstractIterativeSolver, ConjugateGradient


class LatePull(AbstractIterativeSolver):
    """Gradient descent as in the authors' code: every step on the support loss alone, but the last on the pull."""

    learning_rate: float
    strength: float

    @property
    def symmetric(self) -> bool:
        return True

    def init(self, x, y):
        return jnp.zeros((), jnp.int32)

    def step(self, x, gradient_fn, y, state):
        def move(y, x, gradient):
            pull = self.strength * (y - x)
            return y - self.learning_rate * jnp.where(state == self.steps - 1, pull, gradient - pull)

        return jax.tree.map(move, y, x, gradient_fn(y)), state + 1

    def residual(self, problem, x, y, task, key):
        return jax.grad(problem.inner_loss, 1)(x, y, task, key)


class CodeInverse(AbstractInverse):
    """u / strength for (1 + damping) u + H u / (strength + 10) = b, of the system with A = H + strength I; of v, the
    pull's derivative -strength in x makes u."""

    steps: int = eqx.field(static=True)
    strength: float
    damping: float

    def __call__(self, system):
        scale = self.strength + 10
        cg = ConjugateGradient(self.steps, (1 + self.damping) * scale - self.strength)
        v, iterations, result = cg(system)
        return scale / self.strength * v, iterations, result
