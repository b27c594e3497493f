"""What is said of an x when a run ends."""

import io

import jax.numpy as jnp
from rich.console import Console

from metabilevel.commands.judgement import Judgement, numbers


def test_a_few_numbers_have_names_and_many_have_none():
    assert numbers(jnp.asarray(2.0)) == {"x": 2.0}
    x = {"head": {"bias": jnp.asarray(-1.5), "rates": jnp.asarray([[0.5, 2.0]])}}
    assert numbers(x) == {"x['head']['bias']": -1.5, "x['head']['rates'][0][0]": 0.5, "x['head']['rates'][0][1]": 2.0}
    assert len(numbers(jnp.zeros(8))) == 8
    assert numbers(jnp.zeros(9)) == {}


def test_x_and_the_protocol_stand_once_below_the_scores():
    rows = [{"steps": k, "metric": "loss", "mean": 1.0, "ci95": 0.1, "episodes": 9} for k in (0, 5)]
    judgement = Judgement(100, "test", 9, 0, "no batch statistics", rows, {"x['rate']": -6.90775})
    (console := Console(width=120, file=io.StringIO())).print(judgement.table("A title"))
    said = console.file.getvalue()
    assert said.count("no batch statistics") == 1
    assert "x['rate'] = -6.908" in said
    alone = Judgement(100, "test", 9, 0, None, rows)
    (console := Console(width=120, file=io.StringIO())).print(alone.table("A title"))
    assert "x" not in console.file.getvalue().replace("95% confidence", "")
