"""What hard negatives are mined with: BM25, models, phases, random documents, or a mix of these by shares."""

import re

from pydantic_core import PydanticCustomError

BM25, RANDOM = "bm25", "random"


def shares_of(mix: str) -> dict[str, int]:
    """The share of a query's negatives that each miner gives, in percent.

    Args:
        mix: `bm25`, a checkpoint's folder or Hub id, `random`; or several with their shares.

    Raises:
        PydanticCustomError: The shares do not sum to 100, or one is missing or stands twice.

    Example:
        >>> shares_of("bm25:50,my/model:35,random:15")
        {'bm25': 50, 'my/model': 35, 'random': 15}
        >>> shares_of("my/model")
        {'my/model': 100}
    """
    words = [word.strip() for word in mix.split(",")]
    shares: dict[str, int] = {}
    for word in words:
        name, colon, share = word.rpartition(":")
        if not colon and len(words) == 1:
            name, share = word, "100"
        if not name or not share.isdecimal() or not int(share):
            raise PydanticCustomError("miners", _told(f"{word!r} is not a miner and its share"))
        if name in shares:
            raise PydanticCustomError("miners", _told(f"{name!r} stands twice"))
        shares[name] = int(share)
    if (total := sum(shares.values())) != 100:
        raise PydanticCustomError("miners", _told(f"these sum to {total}"))
    return shares


def is_phase(name: str) -> bool:
    """Whether a miner is a phase of the recipe, `@PHASE` or `PIPELINE@PHASE`, and no folder or Hub id.

    Example:
        >>> is_phase("@unsupervised"), is_phase("full@unsupervised"), is_phase("./full@unsupervised")
        (True, True, False)
    """
    return re.fullmatch(r"[A-Za-z0-9_-]*@[A-Za-z0-9_-]+", name) is not None


def _told(wrong: str) -> str:
    example = "miners with shares that sum to 100, as bm25:50,my/model:35,random:15"
    return f"{example} ({wrong.replace('{', '').replace('}', '')})"


def judge_of(mix: dict[str, int], judge: str | None) -> str:
    """What scores candidates and positives: the judge that is named, else the mix's first model, else BM25."""
    return judge or next((name for name in mix if name not in (BM25, RANDOM)), BM25)
