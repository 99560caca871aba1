"""phase.json of a phase that is not trained: cut, merged or adapted. docs/records.md is made from this."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from colbert_zero.training.record import LayersRecord


class UntrainedRecord(BaseModel):
    """phase.json of a phase that is not trained: what was asked, done and spent.

    What it is called is as in a training's; prompts, markers and lengths are its start's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    schema_version: int = 1
    """Written as `schema`."""
    kind: str
    """`compress`, `merge`, `adapt`."""
    name: str
    id: str
    parent: str | None
    """Id of the phase it starts from."""
    merged: dict[str, str]
    """Of `merge`: ids of the others, as the recipe names them."""
    chain: list[str]
    base: str | None
    base_commit: str | None
    representation: str | None
    """Null of a plain encoder."""
    prompts: dict[str, str]
    markers: dict[str, str]
    query_tokens: int | None
    document_tokens: int | None
    lengths: str
    skip_list: list[str]
    query_expansion: str
    pool: float
    asked: dict[str, Any]
    """The recipe's entry."""
    made: dict[str, Any]
    """Of `compress`: compress.json (docs/shrinking.md). Of `adapt`: `ridge`, `step`, `domains`, `difference`,
    `interval`, `helps` and `verdict`; where it does not help the model is its start's. Of `merge`: `models` and
    `weights`, in one order."""
    seed: int | None
    sources: dict[str, dict[str, int]]
    """Of each part read: its `rows`."""
    machine: dict[str, Any]
    """`device`, `host`, `torch`, `threads`; `precision` and `attention` of what is encoded on the way, of which a merge
    has none; of an adapter also `maxsim`. Older records have the first four alone."""
    processes: int
    """1: the main one alone makes it."""
    wall_seconds: float
    cpu_seconds: float
    threads: float
    device_seconds: float
    texts: int
    """Encoded, each as often as it was."""
    tokens: int
    padding_tokens: int
    second_pass_tokens: int = 0
    flops: float
    """Encoder parameters (token embeddings left out) × 2 for each token and each padding: nothing is trained. Where
    layers are tried, each trial counts as of the whole model."""
    padding_flops: float
    second_pass_flops: float = 0.0
    parameters_before: int
    parameters: int
    bytes_before: int
    """Of the files that its start is loaded from."""
    model_bytes: int
    zeros: dict[str, int] | None
    """In the layers' matrices, where they are to stay 0."""
    losses: list[dict[str, Any]] = []
    """None."""
    told: list[str]
    layers: LayersRecord | None
    """What the encoder's layers add, of what was cut or merged. Null as in a training, with several processes, and of
    `adapt`, whose encoder is its start's."""
    finished_at: str
    """UTC, ISO 8601."""
