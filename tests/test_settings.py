"""Settings: read once from a mapping, frozen, every mistake named."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from lplgrad_backend.errors import SettingsError
from lplgrad_backend.settings import SECRETS, Settings, read_settings, without_secrets


def test_nothing_set_gives_the_defaults() -> None:
    settings = read_settings({}, None)
    assert settings.updates_per_round == 10
    assert settings.pool_limit == 10_000
    assert settings.basic_auth is None
    assert not settings.label_studio_is_known


def test_empty_values_count_as_not_set() -> None:
    assert read_settings({"LABEL_STUDIO_URL": "", "LPLGRAD_SEED": ""}, None) == read_settings({}, None)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("LPLGRAD_SEED=1\nLPLGRAD_BACKBONE=resnet50\nUNRELATED=x\n")
    settings = read_settings({"LPLGRAD_SEED": "2"}, file)
    assert (settings.seed, settings.backbone) == (2, "resnet50")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"LPLGRAD_SEED=\xff\xfe")
    with pytest.raises(SettingsError, match=r"\.env"):
        read_settings({}, file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("START_TRAINING_EACH_N_UPDATES", "0"),
        ("LABEL_STUDIO_URL", "label-studio"),
        ("LPLGRAD_PRESET", "fast"),
        ("LPLGRAD_DEVICE", "gpu"),
        ("LPLGRAD_BACKBONE", "../../etc"),
        ("LPLGRAD_MANAGE_PROJECT", "perhaps"),
        ("LPLGRAD_QUEUE_URL", "localhost:6379"),
        ("LPLGRAD_CACHE_GB", "inf"),
        ("LPLGRAD_CACHE_GB", "nan"),
        ("LPLGRAD_BACKBONE_OPTIONS", "width_mult=0.35"),
    ],
)
def test_a_bad_value_is_named(key: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({key: value}, None)
    assert key in str(caught.value)
    assert value in str(caught.value)


def test_half_of_basic_auth_is_refused_without_showing_it() -> None:
    with pytest.raises(SettingsError, match="set both or neither") as caught:
        read_settings({"BASIC_AUTH_PASS": "hunter2"}, None)
    assert "hunter2" not in str(caught.value)


def test_secrets_do_not_show() -> None:
    settings = read_settings(
        {"LABEL_STUDIO_API_KEY": "s3cret", "BASIC_AUTH_USER": "u", "BASIC_AUTH_PASS": "pa55"}, None
    )
    assert "s3cret" not in repr(settings)
    assert "pa55" not in repr(settings)
    assert settings.basic_auth == ("u", "pa55")


@pytest.mark.parametrize("name", ["LABEL_STUDIO_URL", "LABEL_STUDIO_PUBLIC_URL", "LPLGRAD_BACKEND_URL"])
def test_an_address_with_a_password_is_refused_without_showing_it(name: str) -> None:
    with pytest.raises(SettingsError, match="without user and password") as caught:
        read_settings({name: "http://ann:pa55@ls.example"}, None)
    assert name in str(caught.value)
    assert "pa55" not in str(caught.value)


def test_the_password_of_a_queue_does_not_show() -> None:
    settings = read_settings({"LPLGRAD_QUEUE_URL": "redis://:pa55@host/0"}, None)
    assert settings.queue_url == "redis://:pa55@host/0"
    assert "pa55" not in repr(settings)
    with pytest.raises(SettingsError, match="LPLGRAD_QUEUE_URL") as caught:
        read_settings({"LPLGRAD_QUEUE_URL": "amqp://:pa55@host/0"}, None)
    assert "pa55" not in str(caught.value)


def test_an_environment_for_children_holds_no_secret() -> None:
    fields = Settings.model_fields.values()
    hidden = {field.alias for field in fields if not field.repr or "Secret" in str(field.annotation)}
    assert hidden == SECRETS
    assert without_secrets({"PATH": "/bin", **dict.fromkeys(SECRETS, "x")}) == {"PATH": "/bin"}


def test_settings_survive_the_way_to_a_child() -> None:
    given = {
        "LABEL_STUDIO_URL": "http://ls.example:8080",
        "LABEL_STUDIO_API_KEY": "key",
        "LPLGRAD_PREANNOTATE": "false",
        "LPLGRAD_CACHE_GB": "0.5",
        "LPLGRAD_BACKBONE_OPTIONS": '{"width_mult": 0.35, "transform_input": false}',
    }
    settings = read_settings(given, None)
    assert read_settings(settings.environ(), None) == settings


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        read_settings({}, None).seed = 3  # type: ignore[misc]


def test_every_setting_has_a_name_and_a_description() -> None:
    for name, field in Settings.model_fields.items():
        assert field.alias and field.alias.isupper(), name
        assert field.description and len(field.description) > 15, name
