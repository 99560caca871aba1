"""Tables and pictures of what a model was cut to, of its record alone."""

import pytest

from colbert_zero.report.shrinking import combination, curve_lines, curve_plot, heads_plot, layer_lines, layers_plot

MB = 1_000_000
POINT = {
    "interval": [-0.02, 0.01], "documents_per_second": 41.6, "times_faster": 1.5, "times_faster_interval": [1.4, 1.6],
}  # fmt: skip
RECORD = {
    "target": "2x", "target_bytes": 45 * MB, "measure": "agreement", "best": 1,
    "tried": [
        {**POINT, "layers": 6, "neurons": 1.0, "vocabulary": False, "bytes": 92 * MB, "score": 1.0, "difference": 0.0},
        {**POINT, "layers": 4, "neurons": 0.5, "vocabulary": True, "bytes": 44 * MB, "score": 0.8, "difference": -0.2},
        {**POINT, "layers": 1, "neurons": 1.0, "vocabulary": False, "bytes": 60 * MB, "score": 0.3, "difference": -0.7},
    ],
}  # fmt: skip
REMOVALS = [
    {"layer": 2, "cosine": 0.9, "others": {"0": 0.5, "1": 0.8}},
    {"layer": 1, "cosine": 0.7, "others": {"0": 0.4}},
]


def test_a_combination_is_named_by_what_is_left():
    assert [combination(point) for point in RECORD["tried"]] == [
        "6 layers", "4 layers, 0.5 of the neurons, vocabulary cut", "1 layer",
    ]  # fmt: skip


def test_the_curve_is_a_line_a_combination_fewest_bytes_last_and_shows_which_is_written():
    head, *lines = curve_lines(RECORD)
    assert "agreement × 100" in head
    assert [line.split("MB")[0].split()[-1] for line in lines] == ["92.00", "60.00", "44.00"]
    assert [line.startswith("→") for line in lines] == [False, False, True]
    assert lines[2].split("MB")[1].split() == [
        "80.00",
        "−20.00",
        "(−2.00",
        "to",
        "+1.00)",
        "42",
        "1.50",
        "(1.40",
        "to",
        "1.60)",
    ]
    assert "nDCG@10 × 100" in curve_lines(RECORD | {"measure": "nDCG@10"})[0]


def test_each_step_of_leaving_layers_out_is_a_line():
    assert layer_lines(REMOVALS) == [
        "cosine of token vectors without layer 0 0.500, 1 0.800, 2 0.900; out goes 2",
        "cosine of token vectors without layer 0 0.400, 1 0.700; out goes 1",
    ]
    tried = {"layer": None, "cosine": 1.0, "others": {0: 0.5}}
    assert layer_lines([tried]) == ["cosine of token vectors without layer 0 0.500"]


@pytest.mark.parametrize("only_tried", [False, True])
def test_the_pictures_say_what_they_show(only_tried):
    curve = curve_plot(RECORD)
    assert curve.png.startswith(b"\x89PNG")
    assert "4 layers × 0.5" in curve.svg
    assert curve.shows.endswith(
        "the dashed line is the target, 45.00 MB, and the ring is what was written: 4 layers, 0.5 of the neurons, "
        "vocabulary cut, 80.00 at 44.00 MB."
    )
    removals = [{"layer": None, "cosine": 1.0, "others": {0: 0.5, 1: 0.8, 2: 0.9}}] if only_tried else REMOVALS
    layers = layers_plot(removals)
    assert layers.shows == "Layer 2 changes token vectors least when it is left out: 0.100."
    assert "layer 1" in layers.svg


@pytest.mark.parametrize("heads", [3, 20])
def test_the_picture_of_heads_has_a_row_a_layer_and_says_which_does_least_and_most(heads):
    rows = [[0.01 * (layer + 1) + 0.001 * head for head in range(heads)] for layer in range(2)]
    parts = {"attention": [0.1, 0.3], "neurons": [0.2, 0.4], "layers": [None, 0.5]}
    plot = heads_plot({"heads": rows, "texts": 8, **parts})
    assert plot.png.startswith(b"\x89PNG")
    assert plot.shows.endswith(
        f"Head 0 of layer 0 does least (0.0100), head {heads - 1} of layer 1 most ({rows[1][-1]:.4f})."
    )
    for words in ("layer 1", ">–<", ">.40<", ">.50<"):
        assert words in plot.svg
    # Numbers stand in the squares where these are wide enough.
    assert (">.012<" in plot.svg) == (heads == 3)
