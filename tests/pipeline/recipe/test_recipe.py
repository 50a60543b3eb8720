"""Test the recipe: what is read, and that errors name the place, the value, and what would work."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.recipe.base import FitConfig
from pipeline.recipe.plugins import modules
from pipeline.recipe.reader import apply_override, as_written, escape, expand, parse_recipe, read_recipe
from pipeline.recipe.recipe import Recipe
from pipeline.steps.config_hash import masked

RECIPE = """
name: photos
data:
  street: {kind: masks, path: camvid}
  things: {kind: coco, path: "${THINGS:-coco256}"}
teachers:
  street: {kind: supervised, task: segmentation, data: street, require: {miou: 0.3}}
  things: {kind: supervised, task: detection, data: things, backbone: resnet10t, epochs: 2}
pool: [street, things]
student: {epochs: 3, thresholds: {detection: 0.6, street: 0.4}, loss_weights: {things: 0}}
"""


def refused(text: str, *overrides: str) -> str:
    """Return the error message for a recipe."""
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text, "photos.yaml", overrides)
    return str(caught.value)


def changed(*overrides: str) -> str:
    """Return the error message for RECIPE with overrides."""
    return refused(RECIPE, *overrides)


def test_read_recipe_returns_typed_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THINGS", raising=False)
    recipe = parse_recipe(RECIPE, "photos.yaml")
    assert (recipe.name, recipe.seed, recipe.pool) == ("photos", 0, ["street", "things"])
    assert (recipe.data["things"].kind, recipe.data["things"].path) == ("coco", "coco256")  # type: ignore[attr-defined]
    assert recipe.teachers["things"].backbone == "resnet10t"  # type: ignore[attr-defined]
    assert recipe.student.thresholds == {"detection": 0.6, "street": 0.4}
    assert recipe.teachers["street"].require == {"miou": 0.3}


def test_recipe_round_trip() -> None:
    recipe = parse_recipe(RECIPE, "photos.yaml").with_variables({})
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_recipe_is_frozen() -> None:
    recipe = parse_recipe(RECIPE, "photos.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.student.epochs = 5


def test_recipe_schema_bounds_amounts_of_labels() -> None:
    schema = Recipe.model_json_schema()
    for section in ("EvaluateConfig", "CompareConfig"):
        kinds = schema["$defs"][section]["properties"]["labels"]["items"]["anyOf"]
        assert [kind.get("const", kind.get("type")) for kind in kinds] == ["all", "integer", "number"]
        assert kinds[1]["minimum"] == 2
        assert (kinds[2]["exclusiveMinimum"], kinds[2]["exclusiveMaximum"]) == (0, 1)


def test_recipe_schema_is_json_schema() -> None:
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False


def test_recipe_unknown_key_is_refused_with_the_nearest() -> None:
    text = changed("student.epoch=4")
    assert text.startswith("photos.yaml: student.epoch: unknown key (value 4). Did you mean 'epochs'? Known keys: ")
    assert "image_size" in text
    assert "photos.yaml: nmae: unknown key (value 'x'). Did you mean 'name'?" in changed("nmae=x")


def test_recipe_unknown_key_of_a_kind_lists_its_keys() -> None:
    text = changed("data.street.mask=labels")
    assert "photos.yaml: data.street.mask: unknown key (value 'labels'). Did you mean 'masks'?" in text
    assert "annotations" not in text
    assert "hold_out" in text
    text = changed("teachers.things.learning_rate=1")
    assert "photos.yaml: teachers.things.learning_rate: unknown key (value 1)." in text
    assert "image_size" in text


def test_recipe_unknown_key_in_a_part_of_a_teacher_lists_the_parts_keys() -> None:
    text = changed("teachers.things.augment.flipp=0.5")
    assert "photos.yaml: teachers.things.augment.flipp: unknown key (value 0.5). Did you mean 'flip'?" in text
    assert "brightness" in text
    assert "image_size" not in text


def test_recipe_unknown_kind_is_refused_with_all_kinds() -> None:
    text = changed("data.street.kind=mask")
    assert "photos.yaml: data.street.kind: 'mask' is not a kind. Did you mean 'masks'? Known: " in text
    assert all(kind in text for kind in modules("pipeline.sources"))
    text = changed("teachers.things.kind=oracle")
    assert "photos.yaml: teachers.things.kind: 'oracle' is not a kind." in text
    assert all(kind in text for kind in modules("teachers"))


def test_recipe_missing_kind_is_refused_with_all_kinds() -> None:
    text = changed("data.more={path: x}")
    assert "photos.yaml: data.more.kind: None is not a kind. Known: " in text


def test_recipe_missing_key_is_named() -> None:
    assert "photos.yaml: data.more.path: missing" in changed("data.more={kind: coco}")
    assert "photos.yaml: student: missing" in refused("{name: n, data: {}, teachers: {}, pool: []}")


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("student.epochs=many", "student.epochs", "'many'"),
        ("student.batch=0", "student.batch", "0"),
        ("student.lr=-1", "student.lr", "-1"),
        ("student.image_size=100", "student.image_size", "100"),
        ("student.optimizer=adam", "student.optimizer", "'adam'"),
        ("student.thresholds.detection=1.5", "student.thresholds.detection", "1.5"),
        ("student.loss_weights.things=-0.5", "student.loss_weights.things", "-0.5"),
        ("teachers.things.batch=none", "teachers.things.batch", "'none'"),
        ("runtime.device=tpu", "runtime.device", "'tpu'"),
        ("pool=street", "pool", "'street'"),
        ("seed=-1", "seed", "-1"),
    ],
)
def test_recipe_wrong_value_is_quoted_with_its_place(override: str, where: str, value: str) -> None:
    text = changed(override)
    assert f"photos.yaml: {where}: " in text
    assert f"(value {value})" in text


def test_recipe_errors_are_reported_together() -> None:
    lines = changed("student.epoch=4", "student.lr=-1", "data.more={kind: coco}").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("photos.yaml: ") for line in lines)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("pool=[street, rooms]", "pool names 'rooms', not under data; there are street, things"),
        ("teachers.street.data=roads", "teachers.street.data names 'roads', not under data; there are street, things"),
        (
            "student.loss_weights.depth=1",
            "student.loss_weights names 'depth', not under teachers; there are street, th",
        ),
        ("student.truths.depth=[street]", "student.truths names 'depth', not under teachers; there are street, things"),
        (
            "student.truths.street=[things, fixed]",
            "student.truths.street names 'fixed', not under data; there are street, things",
        ),
        ("student.thresholds.depth=0.5", "student.thresholds names 'depth'; there are the teachers street, things"),
    ],
)
def test_recipe_unknown_reference_is_refused_with_known_names(override: str, says: str) -> None:
    assert says in changed(override)


@pytest.mark.parametrize(
    "override", ["student.weights=''", "data.street.path=''", "pool=[street, '']", "teachers.things.backbone=''"]
)
def test_recipe_empty_text_is_refused(override: str) -> None:
    where = override.partition("=")[0]
    assert f"photos.yaml: {where}: '' names nothing: write null, or leave the key out." in changed(override)


@pytest.mark.parametrize("override", ["student.steps=yes", "student.lr=true", "seed=false", "pool=[street, true]"])
def test_recipe_yes_and_no_are_no_numbers(override: str) -> None:
    assert "is neither a number nor a name" in changed(override)


def test_recipe_errors_name_places_as_they_are_written() -> None:
    text = changed("student.validate={every: often}", "compare.k={data: [street], methods: {9: {}}, labels: [0.5, x]}")
    assert "constrained" not in text
    assert "photos.yaml: student.validate.every: " in text


@pytest.mark.parametrize(
    "override", ["student.lr=.inf", "student.epochs=.nan", "student.loss_weights.street=.inf", "student.clip=.inf"]
)
def test_recipe_numbers_are_finite(override: str) -> None:
    assert "input should be a finite number" in changed(override)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("teachers.thing.steps=3", "-o 'teachers.thing.steps=3': teachers 'thing' is unknown. Did you mean 'things'?"),
        ("data.q.count=3", "-o 'data.q.count=3': data 'q' is unknown. Known: street, things."),
        ("stages.x.steps=1", "-o 'stages.x.steps=1': 'x' is unknown. Known: none."),
        ("stages.x=1", "-o 'stages.x=1': stages is a list: name the section to change."),
    ],
)
def test_override_of_an_unknown_name_is_refused_with_the_known_ones(override: str, says: str) -> None:
    assert says in changed(override)


@pytest.mark.parametrize("every", ["1.0", "0", "1.5", "true", "often"])
def test_validate_config_takes_steps_or_a_share(every: str) -> None:
    text = changed(f"student.validate={{every: {every}}}")
    assert "student.validate.every: " in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "name=a/b",
            "name: 'a/b' is no name of a run: letters, digits, '.', '_' and '-', the first one a letter or",
        ),
        (
            "data={Street: {}}",
            "data.Street: 'Street' is no name: lower-case letters, digits and '_', the first one a",
        ),
        ("pool=[]", "pool: list should have at least 1 item"),
        ("teachers={}", "teachers: dictionary should have at least 1 item"),
        ("pool=[street, street]", "pool: 'street' is there twice"),
        ("student.truths.street=[things, things]", "student.truths.street: 'things' is there twice"),
        ("student.loss_weights.street=0", "it learns from no teacher; give one of them a weight"),
        (f"name={'x' * 101}", "name: string should have at most 100 characters"),
        ("stages=[{name: s, method: simclr, data: [street], batch: 1}]", "batch (1): methods compare an image with"),
        ("stages=[{name: s, method: simclr, data: [street, street]}]", "data: 'street' is there twice"),
        ("compare.k={data: [street], methods: {m: {method: simclr, validate: {}}}}", "methods.m.validate: all rows"),
        (
            "compare.k={data: [street], methods: {m: {method: simclr}}, supervised: {validate: {}}}",
            "supervised.validate: all rows train on equally many images",
        ),
    ],
)
def test_recipe_that_leaves_nothing_to_learn_or_to_compare_is_refused(override: str, says: str) -> None:
    assert says in changed(override)


def test_fit_config_refuses_contradictions() -> None:
    assert "nesterov is true and momentum 0.0" in changed("student.nesterov=true", "student.momentum=0")
    assert "epochs (3.0) and steps (10) are both given: give one of them" in changed("student.steps=10")
    assert "batch (32) is not a multiple of accumulate (5)" in changed("student.accumulate=5")


@pytest.mark.parametrize(
    ("fields", "images", "steps"),
    [
        ({}, 100, 32),  # 10 epochs of 100 images are 31.25 batches of 32
        ({"epochs": 2, "batch": 10}, 100, 20),
        ({"epochs": 2.5, "batch": 10}, 101, 26),  # 252.5 images
        ({"epochs": 0.01, "batch": 32}, 100, 1),
        ({"steps": 7}, 100, 7),
    ],
)
def test_fit_config_total_steps_of_epochs(fields: dict[str, float], images: int, steps: int) -> None:
    assert FitConfig.model_validate(fields).total_steps(images) == steps


@pytest.mark.parametrize(("batch", "images", "most"), [(6001, 6, 6000), (10**8, 10**6, 10**6), (65537, 100, 65536)])
def test_fit_config_check_batch_refuses_one_far_above_the_images(batch: int, images: int, most: int) -> None:
    FitConfig(batch=most).check_batch(images)
    with pytest.raises(
        ConfigError, match=rf"batch \({batch}\) is far more than the {images} images .*: {most} or fewer"
    ):
        FitConfig(batch=batch).check_batch(images)


def test_overrides_are_yaml_at_a_path() -> None:
    data = {"student": {"epochs": 3}}
    for override in ("student.epochs=5", "student.augment.flip=0", "pool=[a, b]", "name=x=y", "seed="):
        apply_override(data, override)
    assert data == {
        "student": {"epochs": 5, "augment": {"flip": 0}},
        "pool": ["a", "b"],
        "name": "x=y",
        "seed": None,
    }


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("student.epochs", "-o 'student.epochs': write key.sub=value"),
        ("=3", "-o '=3': write key.sub=value"),
        ("name.first=x", "-o 'name.first=x': 'name' holds the value 'photos' and has no keys"),
        ("pool=[a", "-o 'pool=[a': not valid YAML"),
        (
            "student={epochs: 1, epochs: 2}",
            "not valid YAML: the key 'epochs' is there twice, in lines 1 and 1",
        ),
    ],
)
def test_override_that_does_not_parse_is_quoted(override: str, says: str) -> None:
    assert says in changed(override)


def test_recipe_reads_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "/data")
    monkeypatch.delenv("NOT_THERE", raising=False)
    given = {"a": ["${HERE}/x", 3, None], "b": "${NOT_THERE:-/other}/${HERE}", "c": "${NOT_THERE:-}", "d": "$HERE {x}"}
    assert expand(given, "r.yaml") == {"a": ["/data/x", 3, None], "b": "/other//data", "c": "", "d": "$HERE {x}"}


def test_override_of_an_alias_changes_one_place() -> None:
    text = RECIPE.replace("epochs: 2}", "epochs: 2, augment: &mild {flip: 0.2}}").replace(
        "student: {", "student: {augment: *mild, "
    )
    recipe = parse_recipe(text, "photos.yaml", ["student.augment.flip=0"])
    assert recipe.student.augment.flip == 0
    assert recipe.teachers["things"].augment.flip == 0.2  # type: ignore[attr-defined]


def test_override_reads_variables_and_may_replace_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "/data")
    monkeypatch.delenv("NOT_THERE", raising=False)
    text = RECIPE.replace("camvid", '"${NOT_THERE}/camvid"')
    recipe = parse_recipe(text, "photos.yaml", ["data.street.path=${HERE}/street"])
    assert recipe.data["street"].path == "/data/street"  # type: ignore[attr-defined]


def test_escape_keeps_expand_from_replacing_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "/data")
    for text in ("${HERE}", "$${HERE}", "$$", "$", "${", "$${", "${HERE:-x}", "plain"):
        assert expand(escape(text), "r.yaml") == text
    assert expand("$${HERE} ${HERE} $$${HERE}", "r.yaml") == "${HERE} /data $${HERE}"


def test_as_written_leaves_variables_in_place_and_reads_as_the_same_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "hunter2")
    monkeypatch.setenv("EPOCHS", "7e0")
    text = RECIPE.replace("camvid", '"https://me:${PASSWORD}@host/$${x}"').replace("epochs: 2", 'epochs: "${EPOCHS}"')
    recipe = parse_recipe(text, "photos.yaml")
    assert recipe.data["street"].path == "https://me:hunter2@host/${x}"  # type: ignore[attr-defined]
    written = yaml.safe_dump(masked(as_written(recipe)))
    assert "hunter2" not in written
    assert "${EPOCHS}" in written
    assert parse_recipe(written, "again.yaml") == recipe
    monkeypatch.setenv("PASSWORD", "other")
    assert parse_recipe(written, "again.yaml") != recipe
    changed = parse_recipe(text, "photos.yaml", ["data.street.path=${PASSWORD}/x"])
    assert "path: ${PASSWORD}/x" in yaml.safe_dump(as_written(changed))


def test_recipe_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    text = refused(RECIPE.replace("camvid", '"${NOT_THERE}/camvid"'))
    assert text == "photos.yaml: '${NOT_THERE}/camvid' needs the environment variable NOT_THERE, which is not set."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: [", "photos.yaml: not valid YAML"),
        ("- a\n- b", "photos.yaml: a recipe is a mapping with the keys name, seed"),
        ("", "photos.yaml: a recipe is a mapping"),
        ("!!python/object/apply:os.getcwd []", "photos.yaml: not valid YAML"),
    ],
)
def test_recipe_text_that_is_no_recipe_is_refused(text: str, says: str) -> None:
    assert refused(text).startswith(says)


def test_read_recipe_file_is_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "photos.yaml"
    with pytest.raises(ConfigError, match=r"photos\.yaml: can't be read \(No such file"):
        read_recipe(path)
    path.write_text(RECIPE)
    assert read_recipe(path, ["seed=4"]).seed == 4
    with pytest.raises(ConfigError, match=rf"{path}: student\.epoch: unknown key"):
        read_recipe(path, ["student.epoch=4"])


def test_plugin_files_are_found_as_kinds() -> None:
    assert modules("teachers")["supervised"] == "teachers.supervised"
    assert "labelling" not in modules("teachers")  # a package, not a kind
    assert "errors" not in modules("pipeline.sources")


def test_parse_recipe_refuses_overrides_that_are_one_text() -> None:
    with pytest.raises(ConfigError, match=r"overrides are a list of texts, as \['seed=1'\], and no text"):
        parse_recipe("name: x", "x.yaml", "seed=1")
