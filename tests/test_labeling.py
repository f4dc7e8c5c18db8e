"""Label configs, annotations and predictions: what is understood, what is refused, what nothing may break."""

from __future__ import annotations

import json
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lplgrad_backend.errors import ImageError, LabelConfigError, RequestError
from lplgrad_backend.labeling import (
    LARGEST_CONFIG,
    Example,
    Labeling,
    count_changes,
    image_uri,
    named_control,
    parse_label_config,
    prediction,
    project_number,
    read_annotations,
)

IMAGE = '<Image name="image" value="$picture"/>'
PETS = Labeling("kind", "image", "picture", ("cat", "dog"), False)


def choices(*values: str, name: str = "kind", attributes: str = "", to: str = "image") -> str:
    listed = "".join(f"<Choice value={quoteattr(value)}/>" for value in values)
    return f'<Choices name="{name}" toName="{to}" {attributes}>{listed}</Choices>'


def view(*tags: str) -> str:
    return f"<View>{''.join(tags)}</View>"


def region(*labels: str, name: str = "kind") -> dict[str, Any]:
    return {"from_name": name, "to_name": "image", "type": "choices", "value": {"choices": list(labels)}}


def annotation(number: int, *labels: str, **fields: Any) -> dict[str, Any]:
    return {"id": number, "was_cancelled": False, "ground_truth": False, "result": [region(*labels)]} | fields


def task(number: int, *annotations: object, **fields: Any) -> dict[str, Any]:
    return {"id": number, "data": {"picture": f"/{number}.png"}, "annotations": list(annotations)} | fields


class TestLabelConfig:
    def test_one_class_per_image(self) -> None:
        for kind in ("", 'choice="single"', 'choice="single-radio"'):
            assert parse_label_config(view(IMAGE, choices("cat", "dog", attributes=kind))) == PETS

    def test_any_number_of_classes_per_image(self) -> None:
        assert parse_label_config(view(IMAGE, choices("cat", "dog", attributes='choice="multiple"'))).multiple

    def test_tags_may_stand_anywhere(self) -> None:
        inner = view(choices("cat", "dog"))
        config = f'<?xml version="1.0" encoding="utf-8"?><View><!-- pets -->{inner}{IMAGE}</View>'
        for text in (config, "\ufeff" + config, f"\n  {config}\n"):
            assert parse_label_config(text) == PETS

    def test_of_several_controls_the_first_suitable_one_is_learned(self) -> None:
        config = view(
            '<Text name="text" value="$text"/>',
            IMAGE,
            choices("good", "bad", name="mood", to="text"),
            choices("left", "right", name="side", attributes='perRegion="true"'),
            choices("cat", "dog"),
            choices("day", "night", name="time"),
        )
        assert parse_label_config(config).from_name == "kind"

    def test_a_control_may_be_named(self) -> None:
        config = view(IMAGE, choices("cat", "dog"), choices("day", "night", name="time"))
        assert parse_label_config(config, "time").classes == ("day", "night")
        with pytest.raises(LabelConfigError, match=r"'weather'.*kind, time"):
            parse_label_config(config, "weather")

    def test_of_several_images_the_one_asked_about_counts(self) -> None:
        other = '<Image name="other" value="$other"/>'
        assert parse_label_config(view(other, IMAGE, choices("cat", "dog"))).data_key == "picture"
        assert parse_label_config(view(IMAGE, other, choices("cat", "dog", to="other,image"))).data_key == "other"

    def test_an_alias_is_the_class_and_the_value_another_word_for_it(self) -> None:
        cat, dog = '<Choice value="a cat" alias="cat"/>', '<Choice value="dog"/>'
        labeling = parse_label_config(view(IMAGE, f'<Choices name="kind" toName="image">{cat}{dog}</Choices>'))
        assert labeling.classes == ("cat", "dog")
        assert [labeling.named(text) for text in ("cat", "a cat", "dog", "a dog", None)] == [
            "cat", "cat", "dog", None, None
        ]  # fmt: skip

    def test_an_alias_is_meant_before_another_choice_s_value(self) -> None:
        swapped = '<Choice value="cat" alias="dog"/><Choice value="dog" alias="cat"/>'
        labeling = parse_label_config(view(IMAGE, f'<Choices name="kind" toName="image">{swapped}</Choices>'))
        assert labeling.named("cat") == "cat"

    def test_renaming_what_is_shown_changes_nothing_that_is_learned(self) -> None:
        def aliased(value: str) -> Labeling:
            listed = f'<Choice value="{value}" alias="cat"/><Choice value="dog"/>'
            return parse_label_config(view(IMAGE, f'<Choices name="kind" toName="image">{listed}</Choices>'))

        assert aliased("Katze") == aliased("chat") == PETS

    @pytest.mark.parametrize(
        ("config", "says"),
        [
            (view(choices("cat", "dog")), "no Image"),
            (view('<Image name="image" value="http://x/1.png"/>', choices("cat", "dog")), "no Image"),
            (view('<Image name="image" valueList="$pictures"/>', choices("cat", "dog")), "no Image"),
            (view(IMAGE), "no Choices"),
            (view(IMAGE, '<RectangleLabels name="box" toName="image"><Label value="cat"/></RectangleLabels>'), "Choices"),
            (view(IMAGE, choices("cat", "dog", to="text")), "toName"),
            (view(IMAGE, choices("cat", "dog", attributes='perRegion="true"')), "per region"),
            (view(IMAGE, choices("cat", "dog", attributes='perItem="true"')), "per region"),
            (view(IMAGE, choices("cat", "dog", attributes='choice="ranked"')), "single or multiple"),
            (view(IMAGE, choices("cat", "dog", attributes='value="$options"')), "task data"),
            (view(IMAGE, choices()), "0 class"),
            (view(IMAGE, choices("cat")), "at least two"),
            (view(IMAGE, choices("cat", "cat", "")), "1 class"),
            (view(IMAGE, choices("a", "b").replace('"a"/>', '"a"><Choice value="c"/></Choice>')), "flat"),
            ("", "not valid XML"),
            ("<View>", "not valid XML"),
            ("{}", "not valid XML"),
            ("<View>\x00</View>", "not valid XML"),
            ("<View>\ud800</View>", "not valid XML"),
            ("<View>" * 5000, "not valid XML"),
            ("<View/>" + " " * LARGEST_CONFIG + "<", "longer than"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_learned_is_refused_with_a_sentence(self, config: str, says: str) -> None:
        with pytest.raises(LabelConfigError, match=says) as caught:
            parse_label_config(config)
        assert str(caught.value).endswith(".")
        assert len(str(caught.value)) < 300

    def test_entities_are_refused(self, tmp_path: Any) -> None:
        secret = tmp_path / "secret"
        secret.write_text("hunter2")
        laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
        external = f'<!DOCTYPE View [<!ENTITY x SYSTEM "file://{secret}">]>'
        for config in (
            external + view(IMAGE, choices("cat", "dog"), "<Header>&x;</Header>"),
            external.replace("SYSTEM", "PUBLIC 'x'") + view(IMAGE, choices("cat", "dog")),
            f'<!DOCTYPE View SYSTEM "file://{secret}">' + view(IMAGE, choices("cat", "dog")),
            f'<!DOCTYPE View [<!ENTITY l0 "ha">{laughs}]>'
            + view(IMAGE, choices("cat", "dog"), "<Header>&l11;</Header>"),
            f'<!DOCTYPE View [<!ENTITY l0 "ha">{laughs}]>'
            + view(IMAGE, choices("cat", "dog")).replace('"cat"', '"&l11;"'),
        ):
            with pytest.raises(LabelConfigError) as caught:
                parse_label_config(config)
            assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("given", ["kind", " kind ", '"kind"', '{"control": "kind"}', {"control": " kind"}])
def test_extra_params_name_a_control_in_any_form(given: object) -> None:
    assert named_control(given) == "kind"


@pytest.mark.parametrize("given", [None, "", "  ", "null", "{}", {}, {"control": None}, {"control": 7}, [], 7, True])
def test_extra_params_that_name_none(given: object) -> None:
    assert named_control(given) is None


def test_a_control_may_be_called_like_a_number() -> None:
    assert named_control("7") == "7"


@pytest.mark.parametrize("given", [2, "2", "2.1795340157", {"id": 2, "title": "x"}, {"id": "2"}])
def test_project_number(given: object) -> None:
    assert project_number(given) == 2


@pytest.mark.parametrize(
    "given", [None, "", "x", "../2", 0, -2, "-2", True, 2.5, [2], {}, 10**30, "²", {"id": {"id": 2}}]
)
def test_what_is_no_project_number_is_refused(given: object) -> None:
    with pytest.raises(RequestError, match="project"):
        project_number(given)


@pytest.mark.parametrize(
    "data", [None, [], {}, {"picture": None}, {"picture": 7}, {"picture": " "}, {"image": "/1.png"}]
)
def test_a_task_without_an_image_address_is_named(data: object) -> None:
    with pytest.raises(ImageError, match=r"task 12.*'picture'"):
        image_uri(PETS, {"id": 12, "data": data})


class TestAnnotations:
    def test_a_choice_becomes_a_target(self) -> None:
        found = read_annotations(PETS, [task(1, annotation(10, "dog")), task(2, annotation(11, "cat"))])
        assert found.examples == (Example(1, "/1.png", (0.0, 1.0)), Example(2, "/2.png", (1.0, 0.0)))
        assert set(found.digests) == {"10", "11"}

    def test_several_classes_per_image(self) -> None:
        labeling = Labeling("kind", "image", "picture", ("cat", "dog", "eel"), True)
        found = read_annotations(labeling, [task(1, annotation(10, "dog", "eel"), annotation(11, "dog"))])
        assert found.examples[0].target == (0.0, 1.0, 0.5)

    def test_several_annotators_make_a_soft_target(self) -> None:
        found = read_annotations(PETS, [task(1, *(annotation(n, "cat" if n else "dog") for n in range(4)))])
        assert found.examples == (Example(1, "/1.png", (0.75, 0.25)),)
        assert len(found.digests) == 4

    def test_several_choices_of_a_single_class_question_share_it(self) -> None:
        assert read_annotations(PETS, [task(1, annotation(10, "dog", "cat"))]).examples[0].target == (0.5, 0.5)

    @pytest.mark.parametrize(
        "unusable",
        [
            annotation(10, "cat", was_cancelled=True),
            annotation(10, result=[]),
            annotation(10, "wolf"),
            annotation(10, result=[region("cat", name="other")]),
            annotation(10, result=None),
            {"id": 10},
        ],
    )
    def test_skipped_empty_and_unknown_labels_do_not_train(self, unusable: dict[str, Any]) -> None:
        assert read_annotations(PETS, [task(1, unusable)]) == read_annotations(PETS, [])
        beside = read_annotations(PETS, [task(1, unusable, annotation(11, "dog"))])
        assert beside.examples == (Example(1, "/1.png", (0.0, 1.0)),)

    def test_imported_annotations_and_ground_truth_count(self) -> None:
        imported = annotation(10, "cat", ground_truth=True, completed_by=None, import_id=3)
        assert read_annotations(PETS, [task(1, imported)]).examples[0].target == (1.0, 0.0)

    def test_both_spellings_of_an_aliased_choice_count(self) -> None:
        labeling = Labeling("kind", "image", "picture", ("cat", "dog"), False, (("a cat", "cat"),))
        by_value, by_alias = (read_annotations(labeling, [task(1, annotation(10, text))]) for text in ("a cat", "cat"))
        assert by_value == by_alias
        assert by_value.examples[0].target == (1.0, 0.0)

    def test_a_bare_text_is_one_choice(self) -> None:
        bare = annotation(10, result=[region() | {"value": {"choices": "cat"}}])
        assert read_annotations(PETS, [task(1, bare)]).examples[0].target == (1.0, 0.0)

    def test_a_task_without_an_image_has_no_example_but_its_annotation_is_noted(self) -> None:
        found = read_annotations(PETS, [task(1, annotation(10, "cat"), data={})])
        assert found.examples == ()
        assert set(found.digests) == {"10"}

    def test_changes_are_additions_removals_and_other_choices(self) -> None:
        before = read_annotations(PETS, [task(n, annotation(10 + n, "cat")) for n in range(4)]).digests
        reworded = [annotation(10, "cat", lead_time=99.0), annotation(11, "dog"), annotation(12, was_cancelled=True)]
        after = read_annotations(PETS, [task(5, *reworded, annotation(99, "cat"))]).digests
        assert count_changes(before, before) == 0
        assert count_changes(before, after) == 4  # 11 changed, 12 and 13 gone, 99 new
        assert count_changes({}, before) == 4


class TestPrediction:
    def test_the_likeliest_class_with_its_confidence(self) -> None:
        found = prediction(PETS, probabilities=[0.25, 0.75], score=0.1, version="v3")
        assert found == {"result": [region("dog") | {"score": 0.75}], "score": 0.1, "model_version": "v3"}

    def test_all_classes_that_hold(self) -> None:
        labeling = Labeling("kind", "image", "picture", ("cat", "dog", "eel"), True)
        shown = prediction(labeling, probabilities=[0.9, 0.2, 0.5], score=0.1, version="v3")["result"]
        assert shown == [region("cat", "eel") | {"score": 0.5}]
        assert prediction(labeling, probabilities=[0.1, 0.2, 0.3], score=0.1, version="v3")["result"] == []

    def test_without_probabilities_only_the_score(self) -> None:
        found = prediction(PETS, probabilities=None, score=1.0, version="v3")
        assert found == {"result": [], "score": 1.0, "model_version": "v3"}


# Properties. What comes from outside may be anything that JSON or XML can say.

NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"), min_size=1, max_size=8
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
CONFIG = view(IMAGE, choices("cat", "dog", attributes='choice="multiple"').replace('"cat"', '"cat" alias="c"'))


@given(st.lists(NAMES, min_size=2, max_size=6, unique=True), st.booleans())
def test_any_class_names_are_read_back_in_order(classes: list[str], multiple: bool) -> None:
    attributes = f'choice="{"multiple" if multiple else "single"}"'
    labeling = parse_label_config(view(IMAGE, choices(*classes, attributes=attributes)))
    assert labeling == Labeling("kind", "image", "picture", tuple(classes), multiple)


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_label_config_is_read_or_refused(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(CONFIG)))
    end = data.draw(st.integers(start, min(len(CONFIG), start + 30)))
    config = CONFIG[:start] + data.draw(st.text(max_size=6) | st.sampled_from(CONFIG.split())) + CONFIG[end:]
    control = data.draw(st.none() | st.sampled_from(["kind", "image", "nothing"]) | st.text(max_size=3))
    try:
        labeling = parse_label_config(config, control)
    except LabelConfigError as error:
        assert len(str(error)) > 20
    else:
        assert len(set(labeling.classes)) == len(labeling.classes) >= 2
        assert labeling.from_name and labeling.to_name and labeling.data_key


@given(st.text())
def test_any_text_as_label_config_or_extra_params(text: str) -> None:
    with pytest.raises(LabelConfigError):
        parse_label_config(text)
    named_control(text)


@given(JSON)
@example("[" * 100_000)
@example("9" * 5_000)
def test_any_json_as_extra_params_and_project(value: object) -> None:
    assert named_control(value) is None or isinstance(named_control(value), str)
    try:
        assert project_number(value) > 0
    except RequestError as error:
        assert "project" in str(error)


@given(st.data())
def test_any_json_among_annotations_costs_itself_alone(data: st.DataObject) -> None:
    odd_choices = JSON | st.lists(st.sampled_from(["cat", "dog", "wolf", 7, None, ["cat"], {"cat": 1}]))
    odd_region = JSON | st.builds(
        lambda value: region() | {"value": value}, JSON | odd_choices.map(lambda c: {"choices": c})
    )
    odd_annotation = JSON | st.builds(
        lambda result: annotation(5, result=result), JSON | st.lists(odd_region, max_size=3)
    )
    odd_task = JSON | st.builds(lambda found, number: task(1, annotations=found) | {"id": number},
                                JSON | st.lists(odd_annotation, max_size=3), JSON | st.integers(1, 9))  # fmt: skip
    found = read_annotations(PETS, [data.draw(odd_task), task(77, annotation(78, "dog"))])
    assert Example(77, "/77.png", (0.0, 1.0)) in found.examples
    assert "78" in found.digests
    for one in found.examples:
        assert sum(one.target) == pytest.approx(1.0)
        assert min(one.target) >= 0.0


PROBABILITIES = st.floats(0, 1, width=32)


@given(st.lists(PROBABILITIES, min_size=2, max_size=6), st.booleans(), st.floats(0, 1))
def test_a_prediction_says_what_the_probabilities_say(values: list[float], multiple: bool, score: float) -> None:
    classes = tuple(f"class {at}" for at in range(len(values)))
    labeling = Labeling("kind", "image", "picture", classes, multiple)
    found = json.loads(
        json.dumps(prediction(labeling, probabilities=values, score=score, version="v1"), allow_nan=False)
    )
    shown = found["result"][0]["value"]["choices"] if found["result"] else []
    if multiple:
        assert shown == [name for name, value in zip(classes, values, strict=True) if value >= 0.5]
    else:
        assert len(shown) == 1
        assert values[classes.index(shown[0])] == max(values)
    if shown:
        assert found["result"][0]["score"] == min(values[classes.index(name)] for name in shown)
        accepted = read_annotations(labeling, [task(1, {"id": 2, "result": found["result"]})]).examples[0]
        assert {name for name, share in zip(classes, accepted.target, strict=True) if share} == set(shown)
    assert found["score"] == score
