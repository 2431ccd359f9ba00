"""`steer.traits`: the built-in traits, a user's own, and errors that name the field."""

import copy
import dataclasses
import re

import pytest
import yaml

from steer.errors import TraitError
from steer.resources import data_dir
from steer.traits import Pole, Trait, load_traits, pole_names, read_trait

GOOD = {
    "name": "calm",
    "description": "How calm an answer is.",
    "positive": {"pole": "calm", "instructions": ["Answer calmly.", "Be at ease."]},
    "negative": {"pole": "frantic", "instructions": ["Answer in a panic."]},
}
FILES = sorted((data_dir() / "traits").glob("*.yaml"))


def write(folder, content, name="trait.yaml"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(path, value):
    """GOOD with the field at a dotted path set, or deleted where value is `...`."""
    content = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    target = content
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return content


# --- The built-in traits -------------------------------------------------------------------------


def test_all_built_in_traits_load():
    traits = load_traits()
    assert len(FILES) >= 10
    assert set(traits) == {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_built_in_trait_is_what_its_file_says(path):
    trait, content = read_trait(path), yaml.safe_load(path.read_text())
    assert trait.name == content["name"] == path.stem
    assert trait.description == content["description"] != ""
    assert trait.pictographs is content.get("pictographs", True)
    for pole, given in [
        (trait.positive, content["positive"]),
        (trait.negative, content["negative"]),
    ]:
        assert pole.pole == given["pole"]
        assert list(pole.instructions) == given["instructions"]
        assert len(set(pole.instructions)) == len(pole.instructions) > 1
    assert trait.positive.pole != trait.negative.pole


# --- A user's own --------------------------------------------------------------------------------


def test_a_trait_from_a_file(tmp_path):
    trait = read_trait(write(tmp_path, GOOD))
    assert trait == Trait(
        "calm",
        Pole("calm", ("Answer calmly.", "Be at ease.")),
        Pole("frantic", ("Answer in a panic.",)),
        "How calm an answer is.",
    )


def test_a_file_may_be_brief(tmp_path):
    content = {"name": "calm", "positive": "Answer calmly.", "negative": ["Panic.", "Shout."]}
    trait = read_trait(str(write(tmp_path, content)))
    assert trait == Trait("calm", "Answer calmly.", ["Panic.", "Shout."])
    assert trait.description == "" and trait.pictographs
    plain = read_trait(str(write(tmp_path, {**content, "pictographs": False})))
    assert plain == Trait("calm", "Answer calmly.", ["Panic.", "Shout."], pictographs=False)
    assert plain != trait and not plain.pictographs


def test_a_trait_in_code():
    trait = Trait("calm", positive="Answer calmly.", negative=("Panic.", "Shout."))
    assert trait.positive.instructions == ("Answer calmly.",)
    assert trait.negative.instructions == ("Panic.", "Shout.")
    assert trait == Trait("calm", ["Answer calmly."], ["Panic.", "Shout."])
    assert trait != Trait("calm", ["Answer calmly!"], ["Panic.", "Shout."])
    assert len({trait, Trait("calm", ["Answer calmly."], ["Panic.", "Shout."])}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        trait.name = "other"


def test_poles_without_names_are_called_by_the_trait():
    trait = Trait("very-calm", "Answer calmly.", ["Panic.", "Shout."])
    assert (trait.positive.pole, trait.negative.pole) == ("very calm", "not very calm")
    assert Trait("calm", {"instructions": ["Be at ease."]}, "Panic.").positive.pole == "calm"


@pytest.mark.parametrize(
    ("name", "stored", "called"),
    [
        ("very-calm", ("positive", "negative"), ("very calm", "not very calm")),
        ("calm", ("at ease", "negative"), ("at ease", "not calm")),
        ("calm", ("at ease", "frantic"), ("at ease", "frantic")),
        ("positivity", ("positive", "negative"), ("positive", "negative")),
    ],
)
def test_poles_of_earlier_bundles(name, stored, called):
    assert pole_names(name, *stored) == called


def test_a_folder_of_traits(tmp_path):
    write(tmp_path, GOOD, "a.yaml")
    write(tmp_path, changed("name", "other"), "b.yaml")
    write(tmp_path, "not a trait", "notes.txt")
    assert list(load_traits(tmp_path)) == ["calm", "other"]
    write(tmp_path, GOOD, "c.yaml")
    with pytest.raises(TraitError, match=r"c\.yaml.*'name'.*twice"):
        load_traits(tmp_path)
    with pytest.raises(TraitError, match="missing"):
        load_traits(tmp_path / "missing")


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("name", ..., "name"),
        ("positive", ..., "positive"),
        ("negative", ..., "negative"),
        ("name", "", "name"),
        ("name", "Calm", "name"),
        ("name", "very calm", "name"),
        ("name", "-calm", "name"),
        ("name", "calm-", "name"),
        ("name", "calm\n", "name"),
        ("name", 7, "name"),
        ("name", None, "name"),
        ("description", 7, "description"),
        ("description", None, "description"),
        ("positive", 7, "positive"),
        ("positive", None, "positive"),
        ("negative", [], "negative.instructions"),
        ("negative", [""], "negative.instructions"),
        ("negative", [7], "negative.instructions"),
        ("positive.pole", "", "positive.pole"),
        ("positive.pole", " ", "positive.pole"),
        ("negative.pole", 7, "negative.pole"),
        ("positive.instructions", ..., "positive.instructions"),
        ("positive.instructions", [], "positive.instructions"),
        ("positive.instructions", "Answer calmly.", "positive.instructions"),
        ("positive.instructions", ["Fine.", " "], "positive.instructions"),
        ("negative.instructions", ["Fine.", None], "negative.instructions"),
        ("negative.instructions", ["Be at ease."], "negative.instructions"),
        ("positive.instruction", ["Typo."], "instruction"),
        ("postive", "Typo.", "postive"),
        ("7", "Not a name.", "7"),
        ("pictographs", "no", "pictographs"),
        ("pictographs", None, "pictographs"),
        ("pictographs", 0, "pictographs"),
    ],
)
def test_the_file_and_the_field_are_named(tmp_path, path, value, field):
    file = write(tmp_path, changed(path, value))
    with pytest.raises(TraitError) as error:
        read_trait(file)
    message = str(error.value)
    assert str(file) in message
    assert re.search(rf"'{re.escape(field)}'", message), message
    if path.startswith(("positive.", "negative.")):
        assert path.split(".")[0] in message


@pytest.mark.parametrize(
    "content",
    [
        "",
        "- a\n- b\n",
        "just text",
        "a: [",
        "\x00",
        "name: 2023-99-99",
        "name: !!int x",
        "name: " + "[" * 5000,
    ],
)
def test_files_that_are_not_traits(tmp_path, content):
    with pytest.raises(TraitError, match="trait.yaml"):
        read_trait(write(tmp_path, content))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(TraitError, match="missing.yaml"):
        read_trait(tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(TraitError, match="latin.yaml"):
        read_trait(tmp_path / "latin.yaml")


@pytest.mark.parametrize("field", ["name", "description", "pictographs", "positive", "negative"])
def test_a_value_of_many_aliases_makes_no_long_message(tmp_path, field):
    value = "[" + ", ".join(["&a [" + "ha, " * 9 + "ha]", *["*a"] * 9]) + "]"
    for alias in "bcde":
        value = f"[&{alias} {value}, {', '.join([f'*{alias}'] * 9)}]"
    fields = {"name": "calm", "positive": "a", "negative": "b", field: value}
    content = "".join(f"{key}: {one}\n" for key, one in fields.items())
    with pytest.raises(TraitError, match=field) as caught:
        read_trait(write(tmp_path, content))
    assert len(str(caught.value)) < 400


def test_yaml_runs_no_code(tmp_path):
    path = write(tmp_path, "name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(TraitError):
        read_trait(path)


def test_errors_in_code_name_the_field():
    for arguments, field in [
        (("Calm", "a", "b"), "name"),
        (("calm", "", "b"), "positive.instructions"),
        (("calm", "a", ["b", ""]), "negative.instructions"),
        (("calm", "a", 7), "negative"),
        (("calm", "a", "a"), "negative.instructions"),
        (("calm", "a", "b", 7), "description"),
    ]:
        with pytest.raises(TraitError, match=f"'{re.escape(field)}'"):
            Trait(*arguments)
