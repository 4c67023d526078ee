"""What adapter_config.json of a LoKI adapter must look like, before PEFT reads it."""

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from loki.inputs import Strict

Name = Annotated[str, Field(min_length=1, max_length=4096)]
Row = Annotated[int, Field(ge=0, lt=2**31)]
Number = Annotated[int, Field(ge=1, lt=2**31)]


class Mask(Strict):
    """Positions as a bitmask, see `loki.implanting.peft.old_positions`."""

    layers: Annotated[int, Field(ge=1, le=100_000)]
    rows: Annotated[int, Field(ge=1, le=2**24)]
    bitmask: str


class AdapterConfiguration(Strict):
    """The fields of `LoKIConfig`, and those of every PEFT configuration that are read."""

    peft_type: Literal["LOKI"]
    task_type: Name | None = None
    base_model_name_or_path: Name | Literal[""] | None = None  # older releases of PEFT write "" where there is none
    revision: Name | None = None
    inference_mode: bool | None = None
    auto_mapping: dict[str, Any] | None = None
    peft_version: str | None = None
    positions: Mask | list[list[Row]]
    rank: Number | None = None
    rows_per_layer: Number | None = None
    protect: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = None
    directions_shape: Annotated[list[Number], Field(min_length=3, max_length=3)] | None = None
    directions_digests: list[Name | None] | None = None
    experts: Name | None = None
    target_modules: list[Name] | Name | None = None
    base_fingerprint: Name | None = None
    base_values: Name | None = None
    base_parts: dict[Name, Name] | None = None
