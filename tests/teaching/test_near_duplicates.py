import pytest

from colbert_zero.teaching.near_duplicates import NEAR, containment, grams

TEXT = (
    "the lift of a thin wing in a slipstream grows with the angle of attack until the boundary layer separates "
    "from the upper surface and the flow becomes turbulent behind it"
)
WORDS = TEXT.split()


@pytest.mark.parametrize(
    "other",
    [
        TEXT.upper(),
        TEXT.replace(" ", "  \n"),
        TEXT.replace("wing", "wing,") + "!",
        " ".join(WORDS[:20]),
        "An abstract. " + TEXT,
        TEXT.replace("flow", "ﬂow"),
    ],
    ids=["cased", "spaced", "punctuated", "a part of it", "more than it", "a ligature"],
)
def test_texts_that_say_the_same_are_near_duplicates(other: str) -> None:
    assert containment(grams(TEXT), grams(other)) >= NEAR


@pytest.mark.parametrize(
    "other",
    ["", "?!", "the lift", " ".join(reversed(WORDS)), " ".join(WORDS[:15]) + " and so on, as others found before"],
    ids=["empty", "no words", "two words", "shuffled", "half of it"],
)
def test_others_are_not(other: str) -> None:
    assert containment(grams(TEXT), grams(other)) < NEAR


def test_short_texts_are_near_duplicates_only_if_their_words_are_equal() -> None:
    assert containment(grams("Sorting."), grams("sorting")) == 1
    assert containment(grams("Sorting."), grams("Sorting lists")) == 0
    assert containment(grams("?!"), grams("...")) == 0
