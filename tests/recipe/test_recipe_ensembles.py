"""What is told of ensembles that cannot be, word by word."""

import copy

import pytest

from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.reading import check_recipe

SYSTEMS = "(there are: bm25, full, half, full@first, full@second, half@first, first)"


def valid():
    contrastive = {
        "objective": "contrastive", "sources": ["pairs"], "global_batch_size": 8, "learning_rate": 1e-3, "steps": 3,
    }  # fmt: skip
    held = {"kind": "held-out", "source": "pairs", "documents": 10}
    return {
        "name": "tiny",
        "model": {"architecture": {"model_type": "bert"}},
        "sources": {"pairs": {"kind": "jsonl", "path": "pairs.jsonl"}},
        "collections": {"test": held, "dev": held, "files": {"kind": "beir", "path": "a"}},
        "teachers": {"blend": {"bm25_weight": 1}},
        "phases": {
            "first": {**contrastive, "representation": "dense"},
            "second": {**contrastive, "representation": "multi-vector"},
            "third": {**contrastive, "representation": "multi-vector"},
        },
        "pipelines": {"full": ["first", "second", "third"], "half": ["first", "second"]},
        "ensembles": {
            "both": {"members": {"bm25": 1, "full": 0.5, "full@second": 2, "first": 1}},
            "best": {"of": ["bm25", "full", "half"], "choose": "greedy", "on": "dev"},
        },
    }


def told_of(**ensembles):
    recipe = valid()
    recipe["ensembles"] = copy.deepcopy(ensembles)
    with pytest.raises(ColbertZeroError) as caught:
        check_recipe(recipe, "r.yaml")
    return [line.removeprefix("  ") for line in str(caught.value).splitlines()[1:]]


GREEDY = {"of": ["bm25", "full"], "choose": "greedy", "on": "dev"}


def test_members_are_bm25_pipelines_checkpoints_on_the_way_and_dense_baselines():
    recipe = check_recipe(valid())
    assert recipe.for_choosing == {"dev"}
    assert recipe.system_chain("full@second") == ("first", "second")
    assert recipe.system_chain("first") == ("first",)
    assert recipe.system_chain("bm25") is None
    assert recipe.ensembles["best"].names == ["bm25", "full", "half"]
    assert check_recipe(recipe.model_dump()) == recipe


@pytest.mark.parametrize(
    ("ensemble", "told"),
    [
        ({"members": {"bm25": 1, "ful": 1}}, "x.members: no system 'ful', did you mean full?"),
        (
            {"members": {"bm25": 1, "full@zeroth": 1}},
            "x.members: no system 'full@zeroth' " + SYSTEMS,
        ),
        ({"members": {"bm25": 1, "teacher-blend": 1}},
         "x.members: no system 'teacher-blend' " + SYSTEMS),
        (GREEDY | {"of": ["bm25", "halff"]}, "x.of: no system 'halff', did you mean half?"),
        ({"members": {"bm25": 1, "full": 0}}, "x.members.full: should be greater than 0, found 0"),
        ({"members": {"bm25": -1, "full": 1}}, "x.members.bm25: should be greater than 0, found -1"),
        ({"members": {"bm25": "much", "full": 1}}, 'x.members.bm25: should be a number, found "much"'),
        ({"members": {"full": 1}}, "x.members: an ensemble of one is that system itself; name two or more"),
        (GREEDY | {"of": ["full"]}, "x.of: an ensemble of one is that system itself; name two or more"),
        (
            {"members": {"half": 1, "full@second": 1}},
            "x.members: 'half' and 'full@second' are the same checkpoint; name one of them",
        ),
        (GREEDY | {"of": ["full", "bm25", "full"]},
         "x.of: 'full' stands twice; a choice takes it as often as it helps"),
        ({}, ": give either `members` with their weights, or `of`, `choose` and `on`"),
        (
            GREEDY | {"members": {"bm25": 1, "full": 1}},
            ": give either `members` with their weights, or `of`, `choose` and `on`",
        ),
        ({"of": ["bm25", "full"], "on": "dev"}, "x.choose: missing; how to choose (`choose: greedy`)"),
        (
            {"of": ["bm25", "full"], "choose": "greedy"},
            "x.on: missing; name a collection to choose on, which is then for choosing alone",
        ),
        (GREEDY | {"choose": "gready"}, 'x.choose: should be one of greedy, found "gready", did you mean greedy?'),
        (GREEDY | {"on": "devs"}, "x.on: no collection 'devs', did you mean dev?"),
        (GREEDY | {"temperature": 0}, "x.temperature: should be greater than 0, found 0"),
        (GREEDY | {"rounds": 0}, "x.rounds: should be at least 1, found 0"),
        ({"members": {"bm25": 1, "full": 1}, "on": "dev"}, "x.on: only of a choice (`of`); leave it out"),
        ({"members": {"bm25": 1, "full": 1}, "rounds": 3}, "x.rounds: only of a choice (`of`); leave it out"),
        ({"member": {"bm25": 1}, "of": ["bm25", "full"], "choose": "greedy", "on": "dev"},
         "x.member: unknown key, did you mean members?"),
        ({"members": ["bm25", "full"]}, "x.members: should be a mapping of keys, found a list"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_in_the_users_words(ensemble, told):
    place = "ensembles.x" if told.startswith(":") else "ensembles."
    assert told_of(x=ensemble) == [f"{place}{told}"]


@pytest.mark.parametrize(
    ("name", "whose"),
    [("full", "a pipeline"), ("bm25", "the lexical baseline"), ("first", "a dense baseline"),
     ("teacher-blend", "a teacher")],
)  # fmt: skip
def test_an_ensemble_has_a_name_of_its_own(name, whose):
    found = told_of(**{name: {"members": {"bm25": 1, "half": 1}}})
    assert found == [f"ensembles.{name}: the name of {whose}; choose another"]


def test_an_ensemble_of_ensembles_is_refused():
    found = told_of(one={"members": {"bm25": 1, "full": 1}}, two={"members": {"one": 1, "half": 1}})
    assert found == ["ensembles.two.members: 'one' is an ensemble itself; name its members"]


def test_a_collection_to_choose_on_leaves_others_to_compare_on():
    recipe = valid()
    recipe["collections"] = {"dev": recipe["collections"]["dev"]}
    with pytest.raises(
        ColbertZeroError, match=r"ensembles\.best\.on: 'dev' is for choosing then, and no collection is left"
    ):
        check_recipe(recipe)


def test_what_is_compared_under_another_name_cannot_be_chosen_on():
    recipe = valid()
    recipe["collections"]["again"] = recipe["collections"]["files"]
    recipe["ensembles"]["best"]["on"] = "again"
    with pytest.raises(ColbertZeroError) as caught:
        check_recipe(recipe)
    told = "  ensembles.best.on: 'again' is 'files' under another name, which is compared; name other queries"
    assert str(caught.value).splitlines()[1:] == [told]


def test_a_group_of_collections_cannot_be_chosen_on():
    recipe = valid()
    recipe["collections"]["cqa"] = {"kind": "named", "name": "beir/cqadupstack"}
    recipe["ensembles"]["best"]["on"] = "cqa"
    with pytest.raises(ColbertZeroError) as caught:
        check_recipe(recipe)
    told = "  ensembles.best.on: 'cqa' is 12 collections; name one of your own, which no mean needs"
    assert str(caught.value).splitlines()[1:] == [told]


def test_a_part_of_a_compared_collection_cannot_be_chosen_on():
    recipe = valid()
    recipe["collections"] = {
        "cqa": {"kind": "named", "name": "beir/cqadupstack"},
        "test": recipe["collections"]["test"],
    }
    names = list(check_recipe({**recipe, "ensembles": {}}).collections)
    recipe["ensembles"]["best"]["on"] = names[0]
    with pytest.raises(ColbertZeroError) as caught:
        check_recipe(recipe)
    told = f"  ensembles.best.on: '{names[0]}' is a part of cqa, which is compared; name a collection of its own"
    assert str(caught.value).splitlines()[1:] == [told]
