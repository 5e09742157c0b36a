"""Lines of ``mmprefix inspect`` for parts at no position, as a person reads them."""

from __future__ import annotations

from mmprefix.cli.inspection.side_table import side_lines
from mmprefix.inspection.side_report import BesidePositions, SideLayer, SideReport


def test_a_term_has_a_line_for_each_of_its_layers() -> None:
    layers = [
        SideLayer(2, [0.0, -0.25], {"keys": 1.0, "values": 12.3456}, 0.0312),
        SideLayer(11, [], {"k": 0.5}, None),
    ]
    parts = BesidePositions([SideReport("GatedTokens", "the attention's length", layers)], [], [])
    assert side_lines(parts) == [
        "beside the cache: GatedTokens, share of the attention's length",
        "  layer  2    3.1 %  gates 0 -0.25; norm of keys 1, norm of values 12.3",
        "  layer 11  norm of k 0.5",
    ]


def test_terms_follow_each_other_and_may_have_no_layer() -> None:
    parts = BesidePositions([SideReport("A", "x", []), SideReport("B", "y", [SideLayer(0, [1.0], {}, 1.0)])], [], [])
    assert side_lines(parts) == [
        "beside the cache: A, share of x",
        "beside the cache: B, share of y",
        "  layer  0  100.0 %  gates 1",
    ]


def test_gates_of_positions_have_a_line_a_layer() -> None:
    assert side_lines(BesidePositions([], [(0.5, 1.25), (1.0, 0.0)], [])) == [
        "gates of the positions: mean factor, mean norm of the shift",
        "  layer  0  0.5, 1.25",
        "  layer  1  1, 0",
    ]


def test_updates_are_told_together() -> None:
    assert side_lines(BesidePositions([], [], [1.0, 3.0])) == [
        "updates of the first 2 tokens' embeddings: norm 2 in the mean, 3 at most"
    ]
    assert side_lines(BesidePositions([], [], [])) == []
