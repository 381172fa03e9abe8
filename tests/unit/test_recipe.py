"""Recipes: one number changed by its path, everything else as it was; there and back through JSON."""

from __future__ import annotations

import json

import pytest

from octavo.models.mtcnn.recipe import RECIPES, Recipe
from octavo.recipe import Schedule, change, from_dict, to_dict

RECIPE = RECIPES["mtcnn-relu"]


def test_change_touches_one_number() -> None:
    changed = change(RECIPE, "stages.pnet.schedule.epochs=8")
    assert changed.stages["pnet"].schedule.epochs == 8
    before, after = to_dict(RECIPE), to_dict(changed)
    before["stages"]["pnet"]["schedule"]["epochs"] = 8
    assert before == after


def test_whole_numbers_become_floats_and_lists_tuples() -> None:
    changed = change(change(RECIPE, "stages.onet.weights.focal=2"), "stages.onet.sampling.ratio=[1,2,3,4]")
    assert changed.stages["onet"].weights.focal == 2.0
    assert isinstance(changed.stages["onet"].weights.focal, float)
    assert changed.stages["onet"].sampling.ratio == (1, 2, 3, 4)


def test_numbers_as_people_write_them() -> None:
    assert change(RECIPE, "qat.learning_rate=.002").qat.learning_rate == 0.002


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("stages.pnet.schedule.epoch=8", "did you mean epochs"),
        ("stages.pnett.schedule.epochs=8", "did you mean pnet"),
        ("stages.pnet.schedule.epochs=fast", "type"),
        ("stages.pnet.schedule.epochs=0", "at least 1"),
        ("stages.pnet.schedule=3", "group"),
        ("stages.pnet.schedule.epochs", "path.to.number=value"),
    ],
)
def test_wrong_changes_are_explained(assignment: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        change(RECIPE, assignment)


@pytest.mark.parametrize("variant", RECIPES)
def test_recipes_survive_json(variant: str) -> None:
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(RECIPES[variant])))) == RECIPES[variant]


@pytest.mark.parametrize(("name", "value"), [("ema", 1.0), ("steps", 0), ("batch_size", -1)])
def test_schedule_refuses(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Schedule(**({"epochs": 1, "steps": 1, "batch_size": 1, "learning_rate": 0.1} | {name: value}))
