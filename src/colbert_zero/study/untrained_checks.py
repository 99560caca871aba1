"""What is refused of phases that are not trained, before anything is made or compared.

What they would be made of shows in the recipe, in configurations and in the queries of collections.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from colbert_zero.data.corpus import corpus_files
from colbert_zero.errors import ColbertZeroError, short
from colbert_zero.models.axes import table_of
from colbert_zero.models.merging import check_mergekit
from colbert_zero.models.shrinking import check_cuts, keep_layers
from colbert_zero.models.vocabulary import check_tokenizer
from colbert_zero.processes import is_main, wait
from colbert_zero.recipe.data import Mined
from colbert_zero.recipe.schema import Phase
from colbert_zero.recipe.untrained import Adapt, Compress, Merge, Untrained
from colbert_zero.study.graph import chain_to, root_of
from colbert_zero.study.untrained import MOST_ROWS, Chain, cuts_of, named, others_of
from colbert_zero.training.low_rank import check_no_zeros

if TYPE_CHECKING:
    from colbert_zero.study.study import Study


def check_untrained(study: "Study", chains: Iterable[Chain]) -> None:
    """Refuse what cannot be made, as far as that is known without data and before anything is trained.

    Raises:
        ColbertZeroError: An encoder that is not cut, or not so; a start that is not adapted; what is not merged; a
            pipeline that ends in a model without vectors to rank by; texts that are not there.
    """
    used = _used(study)
    for chain in chains:
        name, spec, recipe = chain[-1], study.recipe.phases[chain[-1]], study.recipe
        if isinstance(spec, Untrained) and chain in used and study.representation(chain) is None:
            raise ColbertZeroError(
                f"{used[chain]}: none of its phases is trained, and model.base is a plain encoder, "
                "without vectors to rank by; add a phase that is"
            )
        for key in ("vocabulary", "corpus") if isinstance(spec, Untrained) else ():
            if isinstance(texts := getattr(spec, key, None), str):
                corpus_files([texts], f"phases.{name}.{key}")
        match spec:
            case Compress():
                with named(name):
                    _check_cuts(study, chain, spec)
            case Phase() if spec.low_rank:
                cuts = [phase for before in chain[:-1] if isinstance(phase := recipe.phases[before], Compress)]
                check_no_zeros(any(cut.zeros for cut in cuts), f"phases.{name}")
            case Merge():
                check_mergekit(f"phases.{name}")
                _check_merge(study, chain, spec)
            case Adapt() if (kind := study.representation(chain)) != "multi-vector":
                raise ColbertZeroError(
                    f"phases.{name}: adapts a multi-vector model's queries, and model.base {recipe.model.base} is "
                    f"{kind or 'a plain encoder'}; put a multi-vector phase before it"
                )


def _used(study: "Study") -> dict[Chain, str]:
    """The chains whose last model ranks, teaches or mines, each with a key that says so."""
    recipe = study.recipe
    found = {tuple(teacher.pipeline): f"teachers.{name}.pipeline" for name, teacher in recipe.teachers.items()}
    for name, source in recipe.sources.items():
        if isinstance(source, Mined):
            found |= {chain_to(recipe, phase): f"sources.{name}.miners" for phase in source.phases}
    for name, ensemble in recipe.ensembles.items():
        found |= {chain: f"ensembles.{name}" for one in ensemble.names if (chain := recipe.system_chain(one))}
    return found | {tuple(chain): f"pipelines.{name}" for name, chain in recipe.pipelines.items()}


def _check_cuts(study: "Study", chain: Chain, spec: Compress) -> None:
    before = [study.recipe.phases[name] for name in chain[:-1]]
    model = study.recipe.model
    if spec.vocabulary is not None and model.architecture:
        raise ColbertZeroError(
            "vocabulary: a tokenizer trained from scratch is byte-level BPE, and only WordPiece's is cut; leave it out"
        )
    try:
        if model.architecture is not None:
            config = AutoConfig.for_model(**{"vocab_size": model.vocabulary, **model.architecture})
        else:
            start, options = study.start()
            hub = {"revision": options.get("revision"), "trust_remote_code": False}
            config = AutoConfig.from_pretrained(start, **hub)
            tokenizer = AutoTokenizer.from_pretrained(start, **hub) if spec.vocabulary is not None else None
        with torch.device("meta"):
            encoder = AutoModel.from_config(config)
            for phase in before:
                if isinstance(phase, Compress) and phase.layers is not None:
                    kept = phase.layers if isinstance(phase.layers, list) else range(phase.layers)
                    encoder = keep_layers(encoder, kept, "MODEL")
    except Exception:  # each architecture fails in its own way; it is told when the checkpoint is cut
        return
    table_of(encoder, "MODEL")
    check_cuts(encoder, cuts_of(spec), "MODEL")
    if spec.vocabulary is not None:
        check_tokenizer(tokenizer)


def _check_merge(study: "Study", chain: Chain, spec: Merge) -> None:
    """Refuse prompts, markers and lengths that differ between what is merged, and projections that began otherwise."""
    own, drawn = _alignment_after(study, chain[:-1]), _projection_of(study, chain[:-1])
    for other, found in others_of(study, spec).items():
        theirs = _alignment_after(study, found)
        for key in vars(own) if own and theirs else ():
            had, has = getattr(own, key), getattr(theirs, key)
            if had != has:
                raise ColbertZeroError(
                    f"phases.{chain[-1]}.with: {other} has {key} {has!r}, and its start {had!r}; only models that are "
                    "alike in everything but their weights are merged"
                )
        if (his := _projection_of(study, found)) and drawn and not _one_projection(study, drawn, his):
            raise ColbertZeroError(
                f"phases.{chain[-1]}.with: {other} has a projection that {his[0][-1]!r} began (seed {his[1]}), and its "
                f"start one that {drawn[0][-1]!r} began (seed {drawn[1]}): the mean of two that began otherwise is "
                "neither; let both pipelines begin with one phase, or give these one seed and no `start: pca`"
            )


def _projection_of(study: "Study", chain: Chain) -> tuple[Chain, int] | None:
    """The phases up to the one that began a chain's projection, and its seed; None where it is the base's own."""
    found, first = None, True
    for number, name in enumerate(chain, 1):
        spec = study.recipe.trained.get(name)
        if spec and spec.representation == "multi-vector":
            had = study.representation(chain[: number - 1]) == "multi-vector"
            if not had or study.resolved.head(spec, first).new:
                found = chain[:number], study.recipe.seed_of(spec)
        first = first and spec is None
    return found


def _one_projection(study: "Study", one: tuple[Chain, int], other: tuple[Chain, int]) -> bool:
    """Whether two projections began with the same weights."""
    return one[0] == other[0] or (one[1] == other[1] and study.recipe.model.start != "pca")


def _alignment_after(study: "Study", chain: Chain) -> Any:
    trained = [name for name in chain if name in study.recipe.trained]
    return study.alignment(study.recipe.trained[trained[-1]]) if trained else None


def check_untested(study: "Study", chains: Iterable[Chain]) -> None:
    """Refuse to fit to what is tested on: pairs whose query is one of a collection's; the main process looks.

    Raises:
        ColbertZeroError: Names the collection, and one of them.
    """
    phases = study.recipe.phases
    # Of one that is made too: the collection may be new.
    specs = {chain[-1]: spec for chain in chains if isinstance(spec := phases[chain[-1]], Adapt)}
    if specs and is_main():
        _check_untested(study, specs)
    wait()


def _check_untested(study: "Study", specs: Mapping[str, Adapt]) -> None:
    asked = {text.strip(): name for name, one in study.collections.items() for text in one.queries.values()}
    for name, spec in specs.items():
        for source in spec.sources:
            root = root_of(study.recipe, source)
            parts = study.sources[root].parts.values()
            queries = (query.strip() for part in parts for c in part.sample(MOST_ROWS) for query in c["query"])
            if seen := [query for query in queries if query in asked]:
                raise ColbertZeroError(
                    f"phases.{name}.sources: {len(seen):,} pairs of {source!r} have a query of the collection "
                    f"{asked[seen[0]]!r} (“{short(seen[0])}”), so how far queries are moved would be chosen by what is "
                    "tested on; `colbert-zero leaks` writes the source without them"
                )
