"""Numbers in words."""

import pytest

from colbert_zero.report.words import duration, fraction


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (9.94, "9.9 s"), (42, "42 s"), (186, "3.1 min"), (9000, "2.5 h"), (408 * 3600, "17 days")],
)
def test_durations_read_in_their_natural_unit(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(0.1, "a tenth"), (0.34, "about a third"), (0.5, "half"), (0.42, "42 %"), (0.08, "8 %")],
)
def test_shares_are_words_where_a_word_is_close(ratio, words):
    assert fraction(ratio) == words
