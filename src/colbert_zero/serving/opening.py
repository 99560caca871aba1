"""Open an index wherever it is: a folder on this machine, or a collection of Qdrant."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from colbert_zero.serving.index.opened import Index
from colbert_zero.serving.qdrant.collection import PREFIX, Address
from colbert_zero.serving.qdrant.opened import QdrantIndex

AnyIndex = Index | QdrantIndex


def open_index(
    place: str | Path | Address, model: str | None = None, tell: Callable[[str], None] = print, **options: Any
) -> AnyIndex:
    r"""Open an index to be read; both kinds answer `search`, `search_all`, `run` and `explain`.

    Args:
        place: A folder; or qdrant+http://HOST:6333/COLLECTION, qdrant+file:FOLDER/COLLECTION.
        model: Where its model is now; where it was when the index was made, without.
        tell: Told what is unusual.
        options: Of `Index.open` or `QdrantIndex.open`.

    Raises:
        ColbertZeroError: It is no index, or cannot be reached.

    Example:
        >>> from pathlib import Path
        >>> from colbert_zero.data.documents import documents_of
        >>> from colbert_zero.serving.qdrant.changing import QdrantSettings, build
        >>> from colbert_zero.serving.qdrant.collection import address_of
        >>> model.save_pretrained("my-model")
        >>> _ = Path("notes.jsonl").write_text('{"_id": "a", "text": "The lift of a wing."}\n')
        >>> place = "qdrant+file:kept/notes"
        >>> added = build("my-model", documents_of(["notes.jsonl"], "corpus"), address_of(place), QdrantSettings())
        >>> with open_index(place) as index:
        ...     [hit.id for hit in index.search("wing")]
        ['a']
    """
    if isinstance(place, Address) or str(place).startswith(PREFIX):
        return QdrantIndex.open(place if isinstance(place, Address) else str(place), model, tell=tell, **options)
    return Index.open(place, model, tell=tell, **options)
