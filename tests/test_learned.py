"""A learned optimizer in other people's hands: as an optax transformation, and as a file."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metabilevel as mb
from metabilevel.learned import FORMAT, plugin_of
from metabilevel.optimizing import unrolled
from metabilevel.registry import RULES, load
from metabilevel.storage.checkpoint import save as save_checkpoint
from metabilevel.storage.envelope import seal, unseal

KEY = jax.random.key(0)
PARAMS = {"w": jnp.linspace(-1, 1, 6).reshape(2, 3), "b": jnp.ones(2)}
PLUGINS = ("adafac-mlp", "hand-made", "learned-rate", "lstm", "mlp-optimizer", "rnnprop")


def learned(name: str = "lstm", params: Any = PARAMS, **options: Any) -> mb.LearnedOptimizer:
    rule = load(RULES, name)(**options)
    return mb.LearnedOptimizer(rule, rule.init(params, KEY))


def loss(params: Any) -> Any:
    return sum(jnp.sum((a - 2) ** 2) for a in jax.tree.leaves(params))


def walk(optimizer: optax.GradientTransformation, params: Any, steps: int = 5) -> Any:
    """The loop that optax is used in, as a scan, which refuses a state whose types change."""

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), updates

    return jax.lax.scan(step, (params, optimizer.init(params)), None, steps)


def types(tree: Any) -> list[str]:
    return [f"{a.dtype}{a.shape}" for a in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", PLUGINS)
def test_it_is_the_optimizer_that_was_trained(name: str):
    optimizer = learned(name)
    tasks = mb.from_function(lambda task, key: PARAMS, lambda y, task, key: loss(y))
    method = unrolled(optimizer.rule, tasks.subject, steps=5)
    y = method.adapt(optimizer.weights, tasks.sample(KEY, "test"), KEY)
    (params, _), _ = walk(mb.as_optax(optimizer), PARAMS)
    assert loss(params) != loss(PARAMS)
    for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert eqx.tree_equal(mb.LearnedOptimizer.of(method, optimizer.weights), optimizer)


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("float64", "float64")])
def test_updates_have_the_types_of_the_parameters(name: str, dtypes: tuple[str, str]):
    optimizer = learned(name)
    with jax.enable_x64("float64" in dtypes):
        params = {key: PARAMS[key].astype(dtype) for key, dtype in zip(PARAMS, dtypes, strict=True)}
        (moved, _), updates = walk(mb.as_optax(optimizer), params)
        assert types(moved) == types(params)
        assert [a.dtype for a in jax.tree.leaves(updates)] == [a.dtype for a in jax.tree.leaves(params)]
        assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(moved))


def test_bfloat16_parameters_are_computed_in_the_type_of_the_weights():
    transformation = mb.as_optax(learned())
    params = jax.tree.map(jnp.bfloat16, PARAMS)
    gradients = jax.tree.map(lambda a: a * jnp.bfloat16(1e-3), params)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (params, gradients))
    narrow = transformation.update(gradients, transformation.init(params), params)[0]
    exact = transformation.update(wide[1], transformation.init(wide[0]), wide[0])[0]
    assert eqx.tree_equal(narrow, jax.tree.map(lambda a: a.astype(jnp.bfloat16), exact))


def test_parameters_may_be_python_numbers():
    optimizer = mb.as_optax(learned("learned-rate", {"s": 1.0}, learning_rate=0.5))
    updates, _ = optimizer.update({"s": 0.5}, optimizer.init({"s": 1.0}), {"s": 1.0})
    assert updates["s"] == pytest.approx(-0.25)


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("params", [{"s": 1.0}, {}], ids=["number", "nothing"])
def test_a_state_keeps_its_types_in_double_precision(name: str, params: dict[str, float]):
    single = learned(name, params)
    with jax.enable_x64(True):
        optimizer = mb.as_optax(single)
        before = optimizer.init(params)
        updates, state = optimizer.update(params, before, params)
        after = optimizer.update(params, state, optax.apply_updates(params, updates))[1]
    assert types(before) == types(state) == types(after)


def test_whole_numbers_are_no_parameters():
    optimizer = mb.as_optax(learned("learned-rate", {"s": 1.0}))
    with pytest.raises(TypeError, match=r"params\['s'\] holds int32.* Convert it to float"):
        optimizer.init({"s": 1})


def test_jit_vmap_and_chain():
    transformation = mb.as_optax(learned())
    halved = optax.chain(optax.clip_by_global_norm(1.0), transformation, optax.scale(0.5))
    gradients = jax.grad(loss)(PARAMS)
    clipped = optax.clip_by_global_norm(1.0).update(gradients, optax.EmptyState())[0]
    alone = transformation.update(clipped, transformation.init(PARAMS), PARAMS)[0]
    chained = jax.jit(halved.update)(gradients, halved.init(PARAMS), PARAMS)[0]
    assert eqx.tree_equal(chained, jax.tree.map(lambda a: a / 2, alone), rtol=1e-5, atol=1e-8)
    many = jax.tree.map(lambda a: jnp.stack([a, 3 * a]), PARAMS)
    ends = jax.vmap(lambda params: walk(transformation, params)[0][0])(many)
    one = walk(transformation, jax.tree.map(lambda a: a[1], many))[0][0]
    assert eqx.tree_equal(jax.tree.map(lambda a: a[1], ends), one, rtol=1e-4, atol=1e-5)


def test_parameters_that_are_missing_and_weights_that_do_not_fit():
    optimizer = mb.as_optax(learned())
    with pytest.raises(mb.InputError, match=r"needs the parameters: update\(gradients, state, params\)"):
        optimizer.update(PARAMS, optimizer.init(PARAMS))
    cut = eqx.tree_at(lambda a: a.weights["out"]["bias"], learned(), jnp.zeros(3))
    with pytest.raises(mb.InputError, match=r"x\['out'\]\['bias'\] is of shape \(3,\), and of shape \(1,\) is wanted"):
        mb.as_optax(cut).init(PARAMS)
    per_leaf = mb.as_optax(learned("learned-rate", {"w": jnp.ones(3)}))
    with pytest.raises(mb.InputError, match=r"x\['log_rates'\]\['b'\] is none"):
        per_leaf.init(PARAMS)


def test_other_methods_are_no_learned_optimizers():
    method = mb.load_method("maml")(mb.load_tasks("sinusoid")().subject)
    with pytest.raises(mb.InputError, match="a RuleDescent and not a GradientDescent"):
        mb.LearnedOptimizer.of(method, {})


@pytest.mark.parametrize("name", PLUGINS)
def test_bits_come_back(tmp_path: Path, name: str):
    optimizer = learned(name)
    optimizer.save(tmp_path / "a")
    again = mb.load_optimizer(str(tmp_path / "a"))
    assert again.rule == optimizer.rule
    assert eqx.tree_equal(again, optimizer, typematch=True)
    again.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not list(tmp_path.glob("*.tmp.*"))


def test_other_types_and_options_come_back(tmp_path: Path):
    optimizer = learned(layers=1, units=3, preprocess=None, scale=1 / 3)
    odd = eqx.tree_at(lambda a: a.weights["out"]["bias"], optimizer, jnp.array([jnp.nan]))
    half = eqx.tree_at(lambda a: a.weights["layers"], odd, jax.tree.map(jnp.bfloat16, odd.weights["layers"]))
    half.save(tmp_path / "a")
    again = mb.load_optimizer(tmp_path / "a")
    assert plugin_of(again.rule).options == {"layers": 1, "units": 3, "preprocess": None, "scale": 1 / 3}
    assert types(again.weights) == types(half.weights)
    for a, b in zip(jax.tree.leaves(again.weights), jax.tree.leaves(half.weights), strict=True):
        assert a.tobytes() == b.tobytes()


def test_double_precision(tmp_path: Path):
    with jax.enable_x64(True):
        optimizer = learned("hand-made")
        optimizer.save(tmp_path / "a")
        assert eqx.tree_equal(mb.load_optimizer(tmp_path / "a"), optimizer, typematch=True)
    with pytest.raises(mb.InputError, match="weights of float64, which JAX has only by JAX_ENABLE_X64=1"):
        mb.load_optimizer(tmp_path / "a")


def test_every_flipped_bit_and_every_truncation_is_refused(tmp_path: Path):
    path = tmp_path / "a"
    learned("hand-made").save(path)
    content = bytearray(path.read_bytes())
    for place in range(len(content)):
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        content[place] ^= 1 << place % 8
        with pytest.raises(mb.InputError, match="a cannot be read as a learned optimizer: it"):
            mb.load_optimizer(path)
        path.write_bytes(content[:place])
        with pytest.raises(mb.InputError, match="a cannot be read as a learned optimizer: it"):
            mb.load_optimizer(path)
    path.write_bytes(content)
    assert mb.load_optimizer(path).rule == learned("hand-made").rule


def test_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a"
    learned().save(path)
    fields, body = unseal(path, *FORMAT)
    rule = fields["rule"]
    cases: dict[str, dict[str, Any]] = {
        r"a is of metabilevel 0\.1\.0: There is no rule 'metabilevel:lstn'": {"rule": rule | {"name": "lstn"}},
        "a is of elsewhere 3: There is no rule 'elsewhere:lstm'": {
            "rule": rule | {"distribution": "elsewhere", "version": "3"}
        },
        "There is no rule 'os:system'": {"rule": rule | {"distribution": "os", "name": "system"}},
        "has no option 'width'. Options: layers, units": {"rule": rule | {"options": {"width": 3}}},
        "units = 0": {"rule": rule | {"options": {"units": 0}}},
        "units = 4294967296: 2147483647 or less": {"rule": rule | {"options": {"units": 2**32}}},
        "header.rule is 'lstm'": {"rule": "lstm"},
        "header.weights hold 3, and must hold kinds": {"weights": [3]},
        r"header.weights hold 'int32\[4\]'": {"weights": ["int32[4]"]},
        r"header.weights hold 'float99\[4\]'": {"weights": ["float99[4]"]},
        "header.weights are of 4000000000000 bytes, and the body is of": {"weights": ["float32[1000000000000]"]},
        "header.weights are of 4 bytes": {"weights": ["float32[]"]},
    }
    for message, changed in cases.items():
        seal(path, *FORMAT, {**fields, **changed}, body)
        with pytest.raises(mb.InputError, match=message):
            mb.load_optimizer(path)
    seal(path, *FORMAT, {"rule": rule}, body)
    with pytest.raises(mb.InputError, match=r"header\.weights is missing"):
        mb.load_optimizer(path)
    seal(path, FORMAT[0], 2, fields, body)
    with pytest.raises(mb.InputError, match="of the format 'metabilevel optimizer 2', not 'metabilevel optimizer 1'"):
        mb.load_optimizer(path)
    with pytest.raises(mb.InputError, match="it does not begin as optimizer files do"):
        mb.load_optimizer(save_checkpoint(tmp_path, 3, {"a": 1.0}, {}))
    with pytest.raises(mb.InputError, match="none cannot be read: No such file"):
        mb.load_optimizer(tmp_path / "none")
    optimizer = learned()
    optimizer.save(path)
    monkeypatch.setenv("METABILEVEL_PLUGINS_OFF", "metabilevel:lstm")
    with pytest.raises(mb.InputError, match="is switched off"):
        mb.load_optimizer(path)
    with pytest.raises(mb.InputError, match=r"LSTM is no plugin: name it in the entry points 'metabilevel\.rules'"):
        optimizer.save(path)


def test_weights_that_have_no_place_in_a_file(tmp_path: Path):
    for weights, message in [(({"a": jnp.ones(2)},), "nested dictionaries"), ({1: jnp.ones(2)}, "nested dictionaries")]:
        with pytest.raises(mb.InputError, match=message):
            mb.LearnedOptimizer(learned().rule, weights).save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a"
    learned("hand-made").save(path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(mb.ComputationError, match="a could not be written: No space left on device"):
        learned("lstm").save(path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == {path: before}
