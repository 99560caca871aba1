"""Numbers in words."""

import pytest

from colbert_zero.report.words import duration, fraction, operations, percent, size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (9.94, "9.9 s"), (42, "42 s"), (186, "3.1 min"), (9000, "2.5 h"), (408 * 3600, "17 days")],
)
def test_durations_read_in_their_natural_unit(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (0.1, "a tenth"),
        (0.34, "about a third"),
        (0.5, "half"),
        (0.42, "42 %"),
        (0.08, "8 %"),
        (0.997, "nearly all"),
        (1.7, "1.7 times"),
    ],
)
def test_shares_are_words_where_a_word_is_close(ratio, words):
    assert fraction(ratio) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 FLOP"), (3.1e15, "3.1 PFLOP"), (31e15, "31 PFLOP"), (2e21, "2.0 ZFLOP"), (999e9, "999 GFLOP")],
)
def test_operations_read_in_their_natural_unit(count, words):
    assert operations(count) == words


@pytest.mark.parametrize(("ratio", "words"), [(0.9, "90 %"), (0.89999, "89.9 %"), (0.58, "58 %"), (1.3, "130 %")])
def test_a_percentage_below_a_border_is_seen_to_be(ratio, words):
    assert percent(ratio) == words


@pytest.mark.parametrize(("count", "said"), [(None, "–"), (967_258, "967,258 B"), (6_302_077, "6.30 MB")])
def test_bytes_are_said_with_their_unit(count, said):
    assert size(count) == said
