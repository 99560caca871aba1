"""Which texts count as the same, and which do not."""

import itertools
import random

import numpy as np
import pytest

from colbert_zero.data import overlap
from colbert_zero.data.overlap import Index, blocks, compare, compare_inside, indexes, normalised, shingled

SEED = random.Random(7)
WORDS = ["".join(SEED.choices("abcdefghijklmnopqrstuvwxyz", k=SEED.randint(2, 9))) for _ in range(5000)]


def text(words, seed):
    return random.Random(seed).choices(WORDS, k=words)


def fifth(words, draw):
    count = round(len(words) / 5)
    start = draw.randrange(len(words) - count + 1)
    return [*words[:start], *draw.choices(WORDS, k=count), *words[start + count :]]


def tenth(words, draw):
    words = list(words)
    for place in draw.sample(range(len(words)), max(1, round(len(words) / 10))):
        words[place] = draw.choice(WORDS)
    return words


EDITS = {
    "equal": lambda words, draw: " ".join(words),
    "cased": lambda words, draw: " ".join(words).upper(),
    "re-spaced": lambda words, draw: "\n\t".join(words) + ".",
    "a fifth replaced": lambda words, draw: " ".join(fifth(words, draw)),
    "a tenth replaced": lambda words, draw: " ".join(tenth(words, draw)),
}


def found(originals, edited):
    """Which edited texts are found to be their originals, and the pairs that are not."""
    index = Index(blocks(originals))
    pairs, _ = compare(index, edited)
    met = set(zip(pairs.texts.tolist(), pairs.found.tolist(), strict=True))
    own = {(number, same) for number, same in enumerate(index.same.tolist())}
    return len(met & own) / len(originals), len(met - own)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("words", [8, 30, 150])
def test_a_copy_is_found_whatever_was_done_to_it(words, edit):
    draw = random.Random(words)
    originals = [text(words, words * 1000 + seed) for seed in range(200)]
    share, others = found([" ".join(t) for t in originals], [EDITS[edit](t, draw) for t in originals])
    assert share >= (0.95 if edit.startswith("a ") else 1)
    assert not others


@pytest.mark.parametrize("words", [8, 30, 150])
def test_a_text_whose_words_were_shuffled_is_another_text(words):
    draw = random.Random(words)
    originals = [text(words, words * 1000 + seed) for seed in range(200)]
    shuffled = []
    for words_of in originals:
        pairs, mixed = set(itertools.pairwise(words_of)), words_of
        while pairs & set(itertools.pairwise(mixed)):  # eight words may come out nearly as they were
            mixed = draw.sample(words_of, len(words_of))
        shuffled.append(" ".join(mixed))
    assert found([" ".join(t) for t in originals], shuffled) == (0, 0)


def test_long_words_that_two_short_texts_share_in_another_order_say_nothing():
    a = "thermodynamically characterised superconducting nanocrystalline heterostructures"
    b = " ".join(reversed(a.split()))
    assert found([a], [b]) == (0, 0)


def test_a_phrase_that_many_texts_have_makes_no_overlap():
    """Questions after one pattern are different questions, and what ends every page is no part of what it says."""
    questions = [f"what are the symptoms of {WORDS[n]} {WORDS[n + 1000]}" for n in range(200)]
    ending = " ".join(text(40, 1))
    pages = [" ".join(text(30, 10_000 + n)) + " " + ending for n in range(200)]
    assert len(compare_inside(Index(blocks(questions))).texts) == 0
    assert len(compare_inside(Index(blocks(pages))).texts) == 0
    pairs, _ = compare(Index(blocks(questions[:3])), questions[3:])
    assert len(pairs.texts) == 0


def test_a_passage_is_found_in_a_longer_text_but_a_short_query_is_not():
    page, passage, query = text(300, 3), text(300, 3)[100:160], text(300, 3)[100:108]
    assert found([" ".join(page)], [" ".join(passage)]) == (1, 0)
    assert found([" ".join(page)], [" ".join(query)]) == (0, 0)


def test_slices_of_an_index_and_blocks_of_texts_change_nothing(monkeypatch):
    originals = [" ".join(text(40, n)) for n in range(60)]
    edited = [" ".join(fifth(t.split(), random.Random(1))) for t in originals]
    whole, _ = compare(Index(blocks(originals)), edited)
    monkeypatch.setattr(overlap, "_BLOCK", 500)
    monkeypatch.setattr(overlap, "_HITS", 40)
    met, offset = set(), 0
    slices = list(indexes(originals, 300))
    assert len(slices) > 3
    for index in slices:
        pairs, _ = compare(index, edited)
        met |= {
            (a, int(np.flatnonzero(index.same == b)[0]) + offset) for a, b in zip(pairs.texts, pairs.found, strict=True)
        }
        offset += len(index.same)
    assert met == {(number, number) for number in range(60)}
    assert len(whole.texts) == 60


def test_more_grams_than_are_held_are_sampled_alike_in_all_texts():
    originals = [" ".join(text(100, n)) for n in range(50)]
    texts = originals + [" ".join(tenth(t.split(), random.Random(2))) for t in originals]
    index = Index(blocks(texts), 1)
    assert index.keep == 1  # one block is held whole
    index = Index((shingled([t]) for t in texts), 2000)
    assert index.keep > 1
    assert len(index.grams) < 4000
    pairs = compare_inside(index)
    assert len(pairs.texts) >= 40


@pytest.mark.parametrize("texts", [[], [""], ["?!", "..."], ["a"], ["word " * 3]], ids=str)
def test_texts_of_nothing_or_nearly_nothing_are_taken(texts):
    index = Index(blocks(texts))
    pairs, seen = compare(index, [*texts, "another text"])
    worded = {normalised(t) for t in texts} - {""}
    assert len(pairs.texts) == len(worded)
    assert len(seen.hashes) == len(texts) + 1
    assert len(compare_inside(index).texts) == 0


def test_scripts_without_blanks_are_compared_by_characters():
    a = "机器学习模型需要大量高质量的训练数据才能取得良好的效果"
    assert found([a], [a.replace("良好", "更好")]) == (1, 0)
    assert found([a], ["今天天气很好我们一起去公园散步吧然后回家吃饭看电影休息"]) == (0, 0)


@pytest.mark.parametrize(
    ("text", "same"), [("Ｗｉｎｇ–body", "wing body"), ("Straße", "strasse"), (" a\u00a0 b\n", "a b")]
)
def test_width_case_and_punctuation_are_no_difference(text, same):
    assert normalised(text) == same
