"""How alike a network's representations are before and after adaptation."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..evaluation import interval
from ..figures import Curve, Panel
from ..method import Method
from ..problem import Key, Outer, Scalar, Task, canonical
from ..tasks import TaskDistribution
from .adapted import activations, adaptation, block_names, network
from .diagnosis import Diagnosis, learner_of, over_tasks

_MEASURES = {"cka": "linear CKA", "cca": "mean canonical correlation"}


def similarity(
    method: Method, x: PyTree, tasks: TaskDistribution, *, key: Key, episodes: int = 100, split: str = "test"
) -> Diagnosis:
    """Linear CKA and mean CCA of every block's activations on the query inputs, before against after adaptation.

    The comparison of Raghu, Raghu, Bengio & Vinyals 2020 (arXiv:1909.09157, section 3.2 and figure 2), where MAML's
    body stays above .9 and its head falls below .5. A map is one vector an example to CKA (Kornblith et al. 2019),
    and to CCA every pixel is an example (Raghu et al. 2017). The last block is the head, its outputs.

    `chance` is the same measure where the examples of one side are shuffled: with few examples and many features even
    unrelated activations are alike, and CCA of fewer examples than features is 1 whatever they are.

    **Returns:** a row for each block and measure: the mean over tasks, half its 95% confidence interval, `chance`.

    **Raises:** `NotApplicable` for tasks of no learner, or where y holds no parameters of the network.
    """
    learner = learner_of(tasks, "similarity")
    found = over_tasks(partial(_compare, learner), method, canonical(x, "x"), tasks, key, episodes, split)
    names = [*block_names(len(found) - 1), "head"]
    rows = []
    for name, block in zip(names, found, strict=True):
        for measure in _MEASURES:
            alike, chance = (interval(values) for values in block[measure])
            rows.append({"block": name, "measure": measure, "mean": alike.mean, "ci95": alike.ci95,
                         "chance": chance.mean, "chance_ci95": chance.ci95})  # fmt: skip
    caption = f"before against after adaptation, on the queries of {episodes} {split} tasks; chance: examples shuffled"
    panels = [_panel(title, [row for row in rows if row["measure"] == m], names) for m, title in _MEASURES.items()]
    return Diagnosis("similarity", caption, tuple(rows), tuple(panels))


def _compare(learner, method: Method, x: Outer, task: Task, key: Key) -> list[dict[str, tuple[Scalar, Scalar]]]:
    """For each block and measure the similarity, and that of shuffled examples."""
    k_adapt, k_shuffle = jax.random.split(key)
    z, start, end = adaptation(method, x, task, k_adapt)
    order = jax.random.permutation(k_shuffle, task.query.inputs.shape[0])

    def blocks(y: PyTree) -> list[Array]:
        params = network(learner, y, z, x, what="similarity")
        maps = activations(learner, params["body"], task.query.inputs, task.support.inputs)
        features = learner.features(params["body"], task.query.inputs, task.support.inputs)
        return [*maps, learner.network.head(params["head"], features)]

    flat, pixels = (lambda a: a.reshape(len(a), -1)), (lambda a: a.reshape(-1, a.shape[-1]))
    return [
        {
            "cka": (cka(flat(a), flat(b)), cka(flat(a)[order], flat(b))),
            "cca": (cca(pixels(a), pixels(b)), cca(pixels(a[order]), pixels(b))),
        }
        for a, b in zip(blocks(start), blocks(end), strict=True)
    ]


def cka(a: Float[Array, "n d"], b: Float[Array, "n e"]) -> Scalar:
    """Linear centred kernel alignment of features of the same n examples, with their means taken off:

        |A^T B|_F^2 / (|A^T A|_F |B^T B|_F)

    between 0 and 1; the same for rotated and for rescaled features. NaN for constant ones. Kornblith, Norouzi, Lee &
    Hinton 2019, arXiv:1905.00414, section 3.
    """
    a, b = (_unit_scale(each) for each in (a, b))
    k, l = a @ a.T, b @ b.T  # noqa: E741 - the paper's letters; Gram matrices, since n is smaller than d for maps
    return jnp.sum(k * l) / jnp.sqrt(jnp.sum(k * k) * jnp.sum(l * l))


def cca(a: Float[Array, "n d"], b: Float[Array, "n e"], tolerance: float = 1e-4) -> Scalar:
    """Mean canonical correlation of features of the same n examples, with their means taken off.

    The canonical correlations are the singular values of U_a^T U_b, where the columns of U are the left singular
    vectors whose singular values exceed `tolerance` times the largest; as many count as the smaller of the two ranks.
    The same for any invertible linear map of the features. NaN for constant ones. Raghu, Gilmer, Yosinski &
    Sohl-Dickstein 2017 (arXiv:1706.05806, section 2), without its first step, the cut to the largest directions.
    """
    (u, rank_a), (v, rank_b) = (_directions(each, tolerance) for each in (a, b))
    correlations = jnp.linalg.svd(u.T @ v, compute_uv=False)
    return jnp.sum(jnp.minimum(correlations, 1)) / jnp.minimum(rank_a, rank_b)


def _directions(a: Float[Array, "n d"], tolerance: float) -> tuple[Array, Array]:
    """Left singular vectors, zero where the singular value is too small, and how many are not."""
    u, s, _ = jnp.linalg.svd(_unit_scale(a), full_matrices=False)
    kept = s > tolerance * s[0]
    return jnp.where(kept, u, 0), jnp.sum(kept, dtype=a.dtype)


def _unit_scale(a: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Centred, with a largest entry of 1, so that no square overflows."""
    a = a - a.mean(0)
    return a / jnp.abs(a).max()


def _panel(title: str, rows: list[dict], names: list[str]) -> Panel:
    at = list(range(len(names)))
    curves = [
        Curve("before against after", at, [row["mean"] for row in rows], [row["ci95"] for row in rows]),
        Curve("chance", at, [row["chance"] for row in rows], [row["chance_ci95"] for row in rows]),
    ]
    return Panel(title, "", "", curves, ticks=names, within=(0.0, 1.0))
