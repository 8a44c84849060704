"""Recipes: those that ship, and one clear error for each way to be wrong."""

import re

import pytest

from sparsify.errors import RecipeError
from sparsify.recipe import folder, load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid_and_say_what_to_expect(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    header = re.match(r"(#.*\n)+", (folder() / f"{name}.toml").read_text())
    assert header is not None
    for line in ("Command:", "Cost:", "Accuracy:"):
        assert line in header[0], f"the header of {name} lacks '{line}'"
    assert f"sparsify train {name}" in header[0] or "sparsify train\n" in header[0]


def test_toml_round_trip():
    recipe = load_recipe("wrn-22-2-cifar10", ["training.seed=7"])
    import tomllib

    from sparsify.recipe import parse_recipe

    assert parse_recipe(tomllib.loads(recipe.to_toml())) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.lrr=0.1", r"no key in \[optimizer\] called 'lrr'. Did you mean 'lr'"),
        ("optimzer.lr=0.1", r"no key or section in the recipe called 'optimzer'. Did you mean 'optimizer'"),
        ("topology.method=rugl", r"no method called 'rugl'. Did you mean 'rigl'.*Known: .*static"),
        ("topology.distribution=erk", r"no distribution called 'erk'"),
        ("model.name=lennet", r"no architecture called 'lennet'. Did you mean 'lenet'"),
        ("data.name=mnits", r"no data set called 'mnits'. Did you mean 'mnist'"),
        ("topology.sparsity=1.2", r"'topology.sparsity' = 1.2 is not possible: input should be less than 1"),
        ("topology.sparsity=nan", r"'topology.sparsity' = nan is not possible"),
        ("optimizer.lr='fast'", r"'optimizer.lr' = 'fast' is not possible: input should be a valid number"),
        ("optimizer.lr=-1", r"'optimizer.lr' = -1 is not possible: input should be greater than 0"),
        ("training.batch_size=0", r"'training.batch_size' = 0 is not possible"),
        ("training.accumulate=3", r"\[training\]: training.batch_size must be a multiple"),
        ("optimizer", r"'optimizer' is not of the form section.key=value"),
        ("name.x=1", r"'name' is a value and not a section"),
    ],
)
def test_one_error_names_the_key_and_the_nearest_known(change, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(None, [change])


def test_several_findings_come_together():
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, ["optimizer.lrr=1", "training.batch_size=0"])
    assert len(str(caught.value).splitlines()) == 2


def test_steps_take_the_place_of_epochs():
    recipe = load_recipe(None, ["training.steps=5"])
    assert recipe.training.epochs is None and recipe.steps(samples=10**6) == 5


def test_epochs_become_whole_steps():
    assert load_recipe("wrn-22-2-cifar10", ["training.epochs=250"]).steps(50_000) == 97_656


def test_unknown_recipe_and_missing_file():
    with pytest.raises(RecipeError, match="Did you mean 'wrn-22-2-cifar10'"):
        load_recipe("wrn-22-cifar10")
    with pytest.raises(RecipeError, match=r"There is no recipe file nowhere\.toml"):
        load_recipe("nowhere.toml")


def test_broken_toml_is_said_with_its_place(tmp_path):
    (tmp_path / "broken.toml").write_text("[model\n")
    with pytest.raises(RecipeError, match=r"not valid TOML: .*line 1"):
        load_recipe(tmp_path / "broken.toml")
