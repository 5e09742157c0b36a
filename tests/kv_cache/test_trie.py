"""Trie of allowed answers: shared nodes, ancestors, and edges whose log-probabilities add up to those of the texts."""

from __future__ import annotations

import pytest
import torch

from mmprefix.kv_cache.trie import Trie, build_trie

CPU = torch.device("cpu")


def spelled(trie: Trie, count: int) -> list[list[int]]:
    """Token ids of each of ``count`` texts, read off the edges that they use."""
    texts: list[list[int]] = [[] for _ in range(count)]
    for edge, text in zip(trie.edge_of_use.tolist(), trie.text_of_use.tolist(), strict=True):
        texts[text].append(int(trie.token[edge]))
    return texts


def random_texts(seed: int) -> list[list[int]]:
    """Different texts over three tokens, so that many share a beginning; 0 ends a text."""
    random = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(12):
        length = int(torch.randint(0, 5, (1,), generator=random))
        texts.append((*torch.randint(1, 4, (length,), generator=random).tolist(), 0))
    return [list(text) for text in dict.fromkeys(texts)]


def test_a_shared_beginning_is_one_path() -> None:
    texts = [[5, 6, 0], [5, 7, 0], [5, 0], [8, 0]]
    trie = build_trie(texts, CPU)
    assert trie.tokens.tolist() == [5, 6, 7, 8]
    assert trie.depth.tolist() == [0, 1, 1, 0]
    assert trie.visible.long().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert spelled(trie, len(texts)) == texts
    assert len(trie.token) == len(set(zip(trie.node.tolist(), trie.token.tolist(), strict=True))) == 8


def test_texts_of_one_token_need_no_node() -> None:
    trie = build_trie([[3], [4]], CPU)
    assert trie.tokens.shape == trie.depth.shape == (0,)
    assert trie.visible.shape == (0, 0)
    assert trie.node.tolist() == [0, 0]  # both are predicted at the root
    assert trie.token.tolist() == [3, 4]


def test_one_text_is_a_chain() -> None:
    trie = build_trie([[7, 8, 9]], CPU)
    assert trie.tokens.tolist() == [7, 8]  # the last token predicts nothing
    assert trie.node.tolist() == [0, 1, 2]
    assert trie.token.tolist() == [7, 8, 9]
    assert torch.equal(trie.visible, torch.ones(2, 2, dtype=torch.bool).tril())


@pytest.mark.parametrize("seed", range(5))
def test_each_node_is_one_beginning_and_sees_its_ancestors(seed: int) -> None:
    texts = random_texts(seed)
    trie = build_trie(texts, CPU)
    beginnings = {tuple(text[:length]) for text in texts for length in range(1, len(text))}
    paths = [tuple(trie.tokens[row].tolist()) for row in trie.visible]  # nodes come after their ancestors
    assert set(paths) == beginnings
    assert len(paths) == len(beginnings)
    assert trie.depth.tolist() == [len(path) - 1 for path in paths]


@pytest.mark.parametrize("seed", range(5))
def test_edges_add_up_to_the_texts(seed: int) -> None:
    """Random scores of a token after a beginning, summed over the edges of a text, equal the sum along the text."""
    texts = random_texts(seed)
    trie = build_trie(texts, CPU)
    assert spelled(trie, len(texts)) == texts
    scores = torch.randn(len(trie.tokens) + 1, 4, generator=torch.Generator().manual_seed(seed))  # root first
    node_of = {tuple(trie.tokens[row].tolist()): m + 1 for m, row in enumerate(trie.visible)}
    edges = scores[trie.node, trie.token]
    totals = torch.zeros(len(texts)).index_add(0, trie.text_of_use, edges[trie.edge_of_use])
    for text, total in zip(texts, totals, strict=True):
        along = sum(scores[node_of.get(tuple(text[:n]), 0), token] for n, token in enumerate(text))
        assert torch.allclose(total, torch.as_tensor(along), atol=1e-5)
