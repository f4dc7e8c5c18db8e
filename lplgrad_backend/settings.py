"""The environment, read once into a frozen `Settings`.

Every field is one environment variable; its description is the text of the README's settings table, which a test
compares with this file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from pydantic import (
    AnyHttpUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from lplgrad_backend.errors import SettingsError

ENV_FILE = Path(".env")
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """What a person may set. Field aliases are the environment variables' names."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    label_studio_url: AnyHttpUrl | None = Field(
        None, alias="LABEL_STUDIO_URL", description="Address of Label Studio as this program reaches it."
    )
    label_studio_api_key: SecretStr | None = Field(
        None,
        alias="LABEL_STUDIO_API_KEY",
        description="Personal access token or legacy token of a Label Studio user who sees the projects.",
    )
    public_url: AnyHttpUrl | None = Field(
        None,
        alias="LABEL_STUDIO_PUBLIC_URL",
        description="Address of Label Studio as people's browsers reach it, for links on the status page; "
        "empty: LABEL_STUDIO_URL.",
    )
    model_dir: Path = Field(
        Path("lplgrad-data"), alias="MODEL_DIR", description="Folder of versions, cached images and the queue."
    )
    backend_url: AnyHttpUrl | None = Field(
        None,
        alias="LPLGRAD_BACKEND_URL",
        description="Address of this backend as Label Studio reaches it, for `connect` "
        "(the host name needs a dot, or Label Studio creates no webhook).",
    )
    basic_auth_user: str | None = Field(
        None, alias="BASIC_AUTH_USER", description="User name that callers must give; empty: no authentication."
    )
    basic_auth_pass: SecretStr | None = Field(
        None, alias="BASIC_AUTH_PASS", description="The password that goes with the user name."
    )
    updates_per_round: Count = Field(
        10,
        alias="START_TRAINING_EACH_N_UPDATES",
        description="A round is due after this many annotations were added, changed or removed.",
    )
    preset: Annotated[
        Literal["auto", "frozen", "finetune", "scratch", "paper"],
        BeforeValidator(lambda value: "auto" if value == "default" else value),
    ] = Field(
        "auto",
        alias="LPLGRAD_PRESET",
        description="Training recipe: `frozen` (the last layer on pretrained features), `finetune` (the last stage), "
        "`scratch`, `paper` (as published, 200 epochs), or `auto`: what suits weights, images and device.",
    )
    strategy: Literal[
        "auto", "lplgrad", "lplgrad-ladder", "lplgrad-coverage", "lplgrad-screened", "lplgrad-head", "entropy",
        "margin", "least-confidence", "predicted-loss", "badge", "coreset", "random",
    ] = Field(
        "auto",
        alias="LPLGRAD_STRATEGY",
        description="What orders the queue, one of the strategies that `simulate` compares; `auto`: `lplgrad-coverage`, "
        "and with the preset `paper` plain `lplgrad`.",
    )  # fmt: skip
    coverage: Annotated[float, Field(gt=0, le=1000)] | Literal["off"] = Field(
        1.0,
        alias="LPLGRAD_COVERAGE",
        description="How alike images must be to cover each other: the larger, the more; `off`: the paper's pure order.",
    )
    strict: bool = Field(
        False,
        alias="LPLGRAD_STRICT",
        description="`true` keeps the strategy also where its order looks unhealthy; else such a round is ordered by "
        "`badge` and says so.",
    )
    cold_start: bool = Field(
        True,
        alias="LPLGRAD_COLD_START",
        description="`true`: typical images come first before there is a version, and with frozen features and the default "
        "strategy below three labels a class (not with the preset `paper` or the strategy `random`); `false`: Label "
        "Studio's own order until there is a version.",
    )
    random_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05,
        alias="LPLGRAD_RANDOM_SHARE",
        description="Share of each version's queue that is drawn at random, for an unbiased accuracy and a comparison of "
        "active with random on the status page.",
    )
    backbone: str = Field(
        "resnet18",
        alias="LPLGRAD_BACKBONE",
        pattern=r"^[a-z][a-z0-9_]*$",
        description="Any torchvision classifier, by its function's name.",
    )
    weights: str = Field(
        "auto",
        alias="LPLGRAD_WEIGHTS",
        description="`imagenet` (through torchvision), a local .pth or .safetensors file, `none`, "
        "or `auto`: imagenet for images above 64 px, none for smaller ones.",
    )
    backbone_options: Annotated[dict[str, float | int | bool], BeforeValidator(lambda value: _parsed(value))] = Field(
        {},
        alias="LPLGRAD_BACKBONE_OPTIONS",
        description='Further arguments of that function, as JSON, such as `{"width_mult": 0.35}`.',
    )
    pixels: Literal["imagenet", "half"] = Field(
        "imagenet",
        alias="LPLGRAD_PIXELS",
        description="Pixels that a local weights file was trained on: `imagenet` (ImageNet's mean and deviation) "
        "or `half` (0.5 and 0.5).",
    )
    image_size: int = Field(
        0,
        alias="LPLGRAD_IMAGE_SIZE",
        ge=0,
        le=1024,
        description="Side in pixels that images are resized to; 0 chooses by the project's images.",
    )
    pool_limit: Count = Field(
        10_000,
        alias="LPLGRAD_POOL_LIMIT",
        description="Unlabelled tasks scored per round; beyond that a fresh random subset, as in the paper.",
    )
    publish_limit: Count = Field(
        10_000,
        alias="LPLGRAD_PUBLISH_LIMIT",
        description="Of a larger pool only the head of the queue is published, this many tasks; Label Studio serves those "
        "without a prediction after it.",
    )
    keep_versions: Count = Field(
        3, alias="LPLGRAD_KEEP_VERSIONS", description="Newest versions kept, on disk and as predictions."
    )
    always_publish: bool = Field(
        False,
        alias="LPLGRAD_ALWAYS_PUBLISH",
        description="`true` publishes a round also when its network did clearly worse on held-out labels.",
    )
    preannotate: bool = Field(
        True, alias="LPLGRAD_PREANNOTATE", description="`false` publishes scores without showing a class."
    )
    manage_project: bool = Field(
        True,
        alias="LPLGRAD_MANAGE_PROJECT",
        description="`false` leaves the project's sampling and model version alone and says what to do by hand.",
    )
    seed: int = Field(0, alias="LPLGRAD_SEED", ge=0, lt=2**31, description="Makes a round repeatable on one machine.")
    device: str = Field(
        "auto",
        alias="LPLGRAD_DEVICE",
        pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$",
        description="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.",
    )
    threads: int = Field(
        0, alias="LPLGRAD_THREADS", ge=0, description="Processor threads a round uses; 0: one per core that it may use."
    )
    processes: Annotated[int, Field(ge=0, le=64)] = Field(
        0,
        alias="LPLGRAD_PROCESSES",
        description="Processes that train one network together, unless only its last layer is trained; 0: one per visible "
        "graphics card, or one.",
    )
    worker: Literal["embedded", "external"] = Field(
        "embedded",
        alias="LPLGRAD_WORKER",
        description="`embedded`: the web process keeps a worker running; `external`: you start `worker` yourself.",
    )
    queue_url: str | None = Field(
        None,
        alias="LPLGRAD_QUEUE_URL",
        repr=False,  # a password may stand in it
        pattern=r"^(rediss?|unix)://",
        description="`redis://…` shares the queue; empty: a file in MODEL_DIR.",
    )
    lock_seconds: Annotated[int, Field(ge=2, le=3600)] = Field(
        30,
        alias="LPLGRAD_LOCK_SECONDS",
        description="On a shared queue: after how long a worker that is cut off or gone loses its project to another.",
    )
    shard_size: Count = Field(
        640,
        alias="LPLGRAD_SHARD_SIZE",
        description="On a shared queue: a pool with more tasks is scored in shards of this many, which idle workers take.",
    )
    sweep_seconds: Count = Field(
        120, alias="LPLGRAD_SWEEP_SECONDS", description="How often every known project is looked at without an event."
    )
    cache_gigabytes: float = Field(
        10.0,
        alias="LPLGRAD_CACHE_GB",
        gt=0,
        le=1e6,
        description="Disk that cached images, and what frozen networks said of them, may take; the oldest go first.",
    )
    allow_private_images: bool = Field(
        False,
        alias="LPLGRAD_ALLOW_PRIVATE_IMAGES",
        description="`true` reads images from loopback and private addresses too "
        "(Label Studio's own address is always allowed).",
    )
    body_megabytes: Count = Field(
        64, alias="LPLGRAD_MAX_BODY_MB", description="Larger request bodies are answered 413."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", alias="LOG_LEVEL", description="`DEBUG`, `INFO`, `WARNING` or `ERROR`."
    )
    log_format: Literal["text", "json"] = Field(
        "text",
        alias="LOG_FORMAT",
        description="`json`: one object a line, with project, job and version in each; `text`: for people.",
    )

    @field_validator("label_studio_url", "public_url", "backend_url")
    @classmethod
    def _names_nobody(cls, url: AnyHttpUrl | None) -> AnyHttpUrl | None:
        if url is not None and (url.username or url.password):
            raise ValueError("an address without user and password, which would end up in logs and pages")
        return url

    @model_validator(mode="after")
    def _authentication_is_whole(self) -> Settings:
        if (self.basic_auth_user is None) != (self.basic_auth_pass is None):
            raise ValueError("BASIC_AUTH_USER and BASIC_AUTH_PASS go together: set both or neither")
        return self

    @property
    def label_studio_is_known(self) -> bool:
        """Whether both address and token of Label Studio are set."""
        return self.label_studio_url is not None and self.label_studio_api_key is not None

    @property
    def basic_auth(self) -> tuple[str, str] | None:
        """User and password that callers must give, or None."""
        if self.basic_auth_user is None or self.basic_auth_pass is None:
            return None
        return self.basic_auth_user, self.basic_auth_pass.get_secret_value()

    def environ(self) -> dict[str, str]:
        """The environment that reads as these settings, secrets in clear: for a child's pipe, never for a log."""
        values = {
            str(field.alias): getattr(self, name)
            for name, field in type(self).model_fields.items()
            if getattr(self, name) is not None
        }
        return {
            key: value.get_secret_value() if isinstance(value, SecretStr) else as_text(value)
            for key, value in values.items()
        }


SECRETS = frozenset({"LABEL_STUDIO_API_KEY", "BASIC_AUTH_PASS", "LPLGRAD_QUEUE_URL"})


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for children: what is secret reaches them by a pipe, since environments can be looked at from
    outside for as long as a process lives."""
    return {name: value for name, value in environ.items() if name not in SECRETS}


def read_settings(environ: Mapping[str, str], env_file: Path | None = ENV_FILE) -> Settings:
    """Read settings from `environ`, and from `env_file` what is not there; empty values count as not set.

    Raises:
        SettingsError: naming the first variable that cannot be used.
    """
    values = {key: value for key, value in {**_read_file(env_file), **environ}.items() if value}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _translated(error, values) from error


def _read_file(env_file: Path | None) -> dict[str, str | None]:
    try:
        return dotenv_values(env_file) if env_file is not None and env_file.is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(str(env_file), "something unreadable", f"lines NAME=value in UTF-8 ({error})") from error


def as_text(value: object) -> str:
    """A setting's value as it stands in the environment."""
    return json.dumps(value) if isinstance(value, dict | bool) else str(value)


def _parsed(value: object) -> object:
    """JSON text as it stands in the environment."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError("not JSON") from error


def _translated(error: ValidationError, values: Mapping[str, str | None]) -> SettingsError:
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else "BASIC_AUTH_USER"
    hidden = key in {"LABEL_STUDIO_API_KEY", "BASIC_AUTH_PASS"} or "@" in str(values.get(key))  # user and password
    return SettingsError(key, "***" if hidden else values.get(key), f"something else: {first['msg']}")
