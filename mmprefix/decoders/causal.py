"""Any Hugging Face causal language model as a decoder; ``mmprefix.kv_cache.state`` tells what texts and beams share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerBase

from mmprefix.decoders.base import Decoder, TextLoss
from mmprefix.decoders.language_model import copy_head, refuse_scaled_logits
from mmprefix.decoders.lora import add_lora
from mmprefix.errors import InputError
from mmprefix.fast import last_layer, small_batch_linear
from mmprefix.fast.activation_checkpointing import checkpoint_layers
from mmprefix.fast.chunked_nll import chunked_nll
from mmprefix.fast.gelu import fuse_gelu
from mmprefix.generation.constraints import LogitsProcessor, processors_for
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.search import search
from mmprefix.generation.strategies import Hypothesis
from mmprefix.generation.tree import open_tree
from mmprefix.kv_cache import cache as caches
from mmprefix.kv_cache.masks import additive_mask
from mmprefix.kv_cache.packing import pack_texts, plan_targets
from mmprefix.kv_cache.state import Memory, State
from mmprefix.kv_cache.trie import build_trie
from mmprefix.types import AnyPrefix, Candidate, DeepPrefix, Features, MixedPrefix
from mmprefix.weights import dry_run, transformers
from mmprefix.weights import source as sources
from mmprefix.weights.transformers import load_tokenizer

SPELT = 1 << 17  # texts whose tokens are remembered


class CausalDecoder(Decoder):
    """Any Hugging Face causal language model with a ``DynamicCache``: GPT-2, OPT, LLaMA, Qwen ...

    ``model``: a folder, ``mmprefix:NAME`` or a hub name, with ``revision``. ``stop``: a text that ends a caption
    (kept in it), such as "."; without one, captions are trained to end, and end, with the model's end-of-text token.
    ``frozen=False`` trains the language model too; it is then part of what is saved. ``train_head`` trains an output
    head of its own, which starts as the model's. ``noisy`` leaves the dropout of a frozen model on in training.
    ``dropout`` is that of a model which is trained or noisy; None: its configuration's. ``lora_rank`` above 0 trains
    low-rank additions (see ``mmprefix.decoders.lora``) of ``lora_alpha`` to the layers whose names end in one of
    ``lora_targets`` (None: those that are usual for the model) beside the prefix.

    On a CPU a frozen float32 model of up to 1 GiB is copied when it is first used, into a form that multiplies the few
    rows of a search faster (``mmprefix.fast.small_batch_linear``).
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        stop: str | None = None,
        frozen: bool = True,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        train_head: bool = False,
        noisy: bool = False,
        lora_rank: int = 0,
        lora_alpha: float = 32.0,
        lora_targets: list[str] | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        folder = sources.resolve_folder(model, revision, weights=not dry_run.sizes_only())
        self.identity = sources.provenance_of(model, folder)
        self.stop, self.frozen, self.noisy = stop, frozen, noisy
        self.lm, self.tokenizer = self.load(model, folder, dtype)
        fuse_gelu(self.lm)
        self.width = self.lm.get_input_embeddings().embedding_dim
        self.layers, self.heads, self.head_width, self.max_positions = self.sizes(self.lm.config.get_text_config())
        self.eos = cast(int | None, self.tokenizer.eos_token_id)
        if stop is None and self.eos is None:
            raise InputError(f"decoder {model!r}: its tokenizer has no end-of-text token; give stop='.' or the like")
        self._stops: Tensor | None = None
        self._spelt: dict[str, list[int]] = {}
        self._narrows = last_layer.install(self.stack, self.layers)
        if frozen:
            self.requires_grad_(False)
        if dropout is not None:
            for module in self.lm.modules():
                if isinstance(module, nn.Dropout):
                    module.p = dropout
        self.lora: tuple[str, ...] = ()
        if lora_rank:
            if not frozen:
                raise InputError(f"decoder: lora_rank {lora_rank} is for a frozen model; leave out one of the two")
            self.lora = add_lora(self.lm, lora_rank, lora_alpha, lora_targets)
        self.own_head: nn.Linear | None = None
        if train_head:
            self.own_head = copy_head(self.lm.get_output_embeddings())
        if frozen:
            small_batch_linear.patch_linears(self.lm)
        self.train()  # in what ``train`` makes of it: a trainer leaves each part in the mode that it finds it in

    def load(self, name: str, folder: Path, dtype: str) -> tuple[Any, PreTrainedTokenizerBase]:
        """The language model and its tokenizer from ``folder``; InputError where they are not there or of no use."""
        lm, _ = transformers.load_model(AutoModelForCausalLM, name, folder, dtype)
        refuse_scaled_logits(name, lm.config.get_text_config())
        return lm, load_tokenizer(lm, name, folder)

    def sizes(self, config: Any) -> tuple[int, int, int, int]:
        """L, H, K, and how many positions there are (0: no limit known)."""
        heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        head_width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        return int(config.num_hidden_layers), heads, head_width, int(getattr(config, "max_position_embeddings", 0) or 0)

    @property
    def stack(self) -> nn.Module:
        """The layers, in a module that has no others."""
        return self.lm.base_model

    @property
    def trained(self) -> tuple[str, ...]:
        """A head of its own, and low-rank additions, are trained beside a frozen model too."""
        beside = tuple(f"lm.{name}" for name in self.lora)
        return super().trained or (*(("own_head.",) if self.own_head is not None else ()), *beside)

    def train(self, mode: bool = True) -> Self:
        """A frozen model stays in evaluation mode whatever ``mode`` says, unless it is to be noisy."""
        return super().train(mode and (self.noisy or not self.frozen))

    def prefill(self, prefix: AnyPrefix, memory: Features | None = None) -> State:
        """Embeddings (B P E) are run through the model once; keys and values (L B H P K) are taken as they are."""
        if memory is not None:
            raise InputError(f"decoder {self.identity.source!r}: has no cross-attention, so it can look at no frames")
        return self._prefill(prefix, None)

    def _prefill(self, prefix: AnyPrefix, memory: Memory | None) -> State:
        """The same, where what is looked at beside the prefix is known."""
        if isinstance(prefix, MixedPrefix):
            return self._extend(self._prefill(prefix.deep, memory), prefix.soft.embeds, prefix.soft.mask)
        if isinstance(prefix, DeepPrefix):
            layers = zip(prefix.keys.to(self._dtype), prefix.values.to(self._dtype), strict=True)
            return State(tuple(layers), prefix.mask, None, memory)
        return self._extend(State((), prefix.mask[:, :0], None, memory), prefix.embeds, prefix.mask)

    def text_loss(
        self, state: State, prompts: list[str], targets: list[list[str]], questions: list[list[str]] | None = None
    ) -> TextLoss:
        """All targets of an input are run in one row behind its trunk; logits exist only where a target token is.

        With ``questions`` a branch is a question and its target: the prompt is read once for all questions.
        """
        if not questions or not any(questions):
            ids = [[self._target_ids(p, t) for t in texts] for p, texts in zip(prompts, targets, strict=True)]
            return self.token_loss(self.append(state, prompts), ids)
        state = self.append_prompts(state, prompts)
        asked = [[self._ask(p, q) for q in row] for p, row in zip(prompts, questions, strict=True)]
        ids = [
            [before + self._target_ids(q or p, t) for before, q, t in zip(some, row, texts, strict=True)]
            for p, some, row, texts in zip(prompts, asked, questions, targets, strict=True)
        ]
        return self.token_loss(state, ids, [[len(before) for before in some] for some in asked])

    def token_loss(self, state: State, ids: list[list[list[int]]], asked: list[list[int]] | None = None) -> TextLoss:
        """The same for targets given as token ids, behind a state that a token can follow (see ``read``).

        ``asked`` is the number of tokens of each that are given, not predicted.
        """
        rows = [[tokens[:-1] for tokens in texts] for texts in ids]  # the last token of a text predicts nothing
        device, here = state.mask.device, pack_texts(rows)
        self._check_room(state, max((len(tokens) for texts in rows for tokens in texts), default=0) + 1)
        hidden = self._last(state)
        if here.numel():
            packed, branch, offset = here.to(device, non_blocking=True).unbind()
            sees = (branch[:, :, None] == branch[:, None]) & (offset[:, :, None] >= offset[:, None])  # (B N N)
            found = self.forward_tokens(
                state, self._cache(state), self.embed(packed), sees, self.position_ids(state, offset)
            )
            real = (here[1].flatten() >= 0).nonzero()[:, 0].to(device, non_blocking=True)
            hidden = torch.cat([hidden, found.flatten(0, 1).index_select(0, real)])  # (R E)
        row, target, text = plan_targets(ids, asked)
        if asked:
            used, row = row.unique(return_inverse=True)
            hidden = hidden[used.to(device, non_blocking=True)]
        nll = self._nll(hidden, row, target)
        texts = [len(tokens) for group in ids for tokens in group]
        if asked:
            texts = [n - given for n, given in zip(texts, (n for row in asked for n in row), strict=True)]
        owner = [b for b, group in enumerate(ids) for _ in group]
        total = nll.new_zeros(len(texts)).index_add(0, text.to(device, non_blocking=True), nll)
        counts = torch.tensor([texts, owner], dtype=torch.long).view(2, -1).to(device, non_blocking=True)
        return TextLoss(total, counts[0], counts[1])

    def _nll(self, hidden: Tensor, row: Tensor, target: Tensor) -> Tensor:
        """Of target tokens (C,), each predicted by one of the rows of hidden states (R E); both are on the CPU."""
        head = self.output_matrix()
        if head is not None:
            return chunked_nll(hidden, head, row, target)
        return -self.logits(hidden).float().log_softmax(-1)[row.to(hidden.device), target.to(hidden.device)]

    @torch.no_grad()
    def generate_from(self, state: State, options: GenerateOptions) -> list[list[Candidate]]:
        """Texts behind a closed trunk; see ``GenerateOptions``."""
        lines = self.search_tokens(state, options, self.stop_ids(exactly=options.ranking == "clipcap"))
        return [[Candidate(self._text(ids), score) for ids, score in group] for group in lines]

    @torch.no_grad()
    def search_tokens(self, state: State, options: GenerateOptions, stops: Tensor) -> list[list[Hypothesis]]:
        """The same in token ids, stop token included; ``stops`` (any number) are the ids that end a line."""
        assert state.last_hidden is not None
        self._check_room(state, options.max_new_tokens)
        with open_tree(self, state, options.width, options.max_new_tokens - 1) as tree:
            return search(self.logits(state.last_hidden), tree, options, stops, self.logits_processors(options, stops))

    def logits_processors(self, options: GenerateOptions, stops: Tensor) -> list[LogitsProcessor]:
        """What no line of ``search`` may go on with."""
        return processors_for(options, stops)

    @torch.no_grad()
    def choice_log_probs(self, state: State, choices: list[str], after: str) -> Tensor:
        """The choices are one trie behind the trunk, run in one pass; (B C) float32.

        Raises InputError where two choices are the same tokens.
        """
        ids = [self._target_ids(after, text) + ([] if self.stop is None else self._ids(self.stop)) for text in choices]
        if len({tuple(tokens) for tokens in ids}) < len(ids):
            raise InputError(f"two of the choices are the same to this decoder: {', '.join(sorted(choices))}")
        tree = build_trie(ids, state.mask.device)
        self._check_room(state, int(tree.depth.max()) + 1 if len(tree.depth) else 1)
        hidden, count = self._last(state)[:, None], len(state.mask)
        if len(tree.tokens):
            nodes, depth = (part.expand(count, -1) for part in (tree.tokens, tree.depth))
            sees = tree.visible.expand(count, -1, -1)
            found = self.forward_tokens(
                state, self._cache(state), self.embed(nodes), sees, self.position_ids(state, depth)
            )
            hidden = torch.cat([hidden, found], dim=1)  # (B 1+M E)
        edges = [self.logits(row).float().log_softmax(-1)[tree.node, tree.token] for row in hidden]  # a row at a time:
        total = torch.zeros(count, len(choices), device=hidden.device)  # the vocabulary is wide
        return total.index_add(1, tree.text_of_use, torch.stack(edges)[:, tree.edge_of_use])

    def append_prompts(self, state: State, prompts: list[str]) -> State:
        """Where nothing was run yet (no prefix, or a deep one) an empty prompt is the begin-of-text token."""
        if all(prompts):
            begun = [True] * len(prompts)
        else:
            begun = [False] * len(prompts) if state.last_hidden is None else state.last_hidden.any(1).tolist()
        return self._append(state, [self._lead(prompt, not some) for prompt, some in zip(prompts, begun, strict=True)])

    def append_questions(self, state: State, prompts: list[str], questions: list[str]) -> State:
        """Behind an opened trunk, each input's question."""
        return self._append(state, [self._ask(p, q) for p, q in zip(prompts, questions, strict=True)])

    def _append(self, state: State, ids: list[list[int]]) -> State:
        if not any(ids):
            return state
        width = max(map(len, ids))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids], device=state.mask.device)
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in ids], device=padded.device)
        return self._extend(state, self._embed(padded), mask)

    def _lead(self, prompt: str, first: bool) -> list[int]:
        """What a prompt is read as, ``first`` where nothing was read before."""
        begin = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.eos
        return self._ids(prompt) or ([cast(int, begin)] if first and begin is not None else [])

    def _ask(self, prompt: str, question: str) -> list[int]:
        """What stands between a prompt and a text."""
        return self._ids(question)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (... E') → logits (... V)."""
        head = self.lm.get_output_embeddings() if self.own_head is None else self.own_head
        return head(hidden)

    def output_matrix(self) -> nn.Linear | None:
        """The output matrix where it alone makes the logits and is not trained; else None."""
        head = self.lm.get_output_embeddings() if self.own_head is None else self.own_head
        return head if type(head) is nn.Linear and not head.weight.requires_grad else None

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens of texts (B N) → what the model reads (B N E)."""
        return self._embed(ids)

    def stop_ids(self, exactly: bool = False) -> Tensor:
        """The token ids that end a text: end-of-text, or every token that completes the ``stop`` text.

        ``exactly``: only the token that is the ``stop`` text and nothing more, as the published code has it.
        """
        if exactly and self.stop is not None:
            ids = self._ids(self.stop)
            if len(ids) != 1:
                raise InputError(f"stop={self.stop!r}: is {len(ids)} tokens, and ranking='clipcap' stops at one token")
            return torch.tensor(ids, device=self._device)
        if self._stops is None:
            ids = [] if self.eos is None else [self.eos]
            if self.stop is not None:
                words = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
                ids += [i for i, word in enumerate(words) if self.stop in word]
                if len(ids) <= (self.eos is not None):
                    raise InputError(
                        f"stop={self.stop!r}: no single token of the decoder holds it; choose a shorter one"
                    )
            self._stops = torch.tensor(sorted(set(ids)))
        return self._stops.to(self._device)

    def _extend(self, state: State, embeds: Tensor, mask: Tensor) -> State:
        """The trunk and N more positions (B N E), real where ``mask`` (B N) says so."""
        n = mask.shape[1]
        if not n:
            return state
        self._check_room(state, n, mask)
        causal = torch.ones(n, n, dtype=torch.bool, device=mask.device).tril()
        own = torch.eye(n, dtype=torch.bool, device=mask.device)
        sees = causal & mask[:, None] | own  # padding sees itself, so that no row of the attention is empty
        place = self.position_ids(state, (mask.cumsum(1) - 1).clamp(min=0))
        end = torch.where(mask, torch.arange(1, n + 1, device=mask.device), 0).amax(1)  # 0: nothing real
        ending = (end - 1).clamp(min=0)
        cache = last_layer.cache_for(state.cache, self.layers) if self._narrows else self._cache(state)
        with last_layer.only_at((ending, n) if self._narrows else None):
            hidden = self.forward_tokens(state, cache, embeds.to(self._dtype), sees, place)
        last = hidden[torch.arange(len(end), device=end.device), ending]
        last = torch.where((end > 0)[:, None], last, 0.0 if state.last_hidden is None else state.last_hidden)
        layers = tuple((layer.keys, layer.values) for layer in cast(list[Any], cache.layers))
        return State(layers, torch.cat([state.mask, mask], dim=1), last, state.memory)

    def forward_tokens(self, state: State, cache: DynamicCache, embeds: Tensor, sees: Tensor, places: Tensor) -> Tensor:
        """N tokens (B N E) behind the cache of a trunk, which grows by them → hidden states (B N E').

        ``sees`` (B N M) says which of the tokens behind the trunk each looks at; all look at the trunk.
        """
        visible = torch.cat([state.mask[:, None].expand(-1, sees.shape[1], -1), sees], dim=-1)  # (B N T+M)
        with self.own_precision():
            out = self.lm.base_model(
                inputs_embeds=embeds,
                attention_mask=additive_mask(visible, embeds.dtype),
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
            )
        return out.last_hidden_state

    def own_precision(self) -> AbstractContextManager[Any]:
        """A model in half precision is left alone by autocast, whose copies would all be for nothing."""
        return nullcontext() if self._dtype == torch.float32 else torch.autocast(self._device.type, enabled=False)

    def _last(self, state: State) -> Tensor:
        """The hidden state (B E) after the trunk; zeros where nothing was run, for what nobody will read."""
        if state.last_hidden is not None:
            return state.last_hidden
        width = self.lm.get_output_embeddings().in_features
        return torch.zeros(len(state.mask), width, dtype=self._dtype, device=self._device)

    def position_ids(self, state: State, offset: Tensor) -> Tensor:
        """Position numbers (B N) of tokens that stand ``offset`` (B N) behind the trunk's real positions."""
        return state.mask.sum(1, keepdim=True) + offset

    def _cache(self, state: State) -> DynamicCache:
        """A cache of its own for one run: the model lengthens it in place, the state stays as it was."""
        return caches.cache_over(state.cache)

    def _embed(self, ids: Tensor) -> Tensor:
        return self.lm.get_input_embeddings()(ids)

    def _ids(self, text: str) -> list[int]:
        """The tokens of a text, which comes again every epoch."""
        known = self._spelt.get(text)
        if known is None:
            known = cast(list[int], self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
            if len(self._spelt) >= SPELT:
                self._spelt.clear()
            self._spelt[text] = known
        return [*known]

    def _target_ids(self, prompt: str, text: str) -> list[int]:
        apart = " " if prompt and not prompt[-1].isspace() and not text[:1].isspace() else ""
        ids = self._ids(apart + text)
        return ids if self.stop is not None else [*ids, cast(int, self.eos)]

    def compile_layers(self, backend: str = "inductor") -> None:
        """Each layer by itself, for inputs of any length."""
        for layer in last_layer.decoder_layers(self.stack, self.layers):
            layer.compile(dynamic=True, backend=backend)

    def recompute_layers(self) -> None:
        """All but the last, of which little is kept anyway."""
        checkpoint_layers(last_layer.decoder_layers(self.stack, self.layers)[:-1])

    def count_tokens(self, texts: list[str]) -> list[int]:
        """How many tokens each text is written with, its end included."""
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [len(some) + (self.stop is None) for some in cast(list[list[int]], ids)]

    def _text(self, ids: list[int]) -> str:
        return cast(str, self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _check_room(self, state: State, more: int, real: Tensor | None = None) -> None:
        """``more`` positions, of which ``real`` (B N) says which are; padding takes none."""
        if (
            not self.max_positions or state.mask.shape[1] + more <= self.max_positions
        ):  # a GPU need not be asked for the masks
            return
        used = int(state.mask.sum(1).max()) if state.mask.numel() else 0
        more = more if real is None else int(real.sum(1).max())
        if used + more > self.max_positions:
            raise InputError(
                f"the decoder {self.identity.source!r} has {self.max_positions} positions, "
                f"but {more} more are needed after the {used} that prefix and prompt take; shorten one of them"
            )

    @property
    def _dtype(self) -> torch.dtype:
        return self.lm.get_input_embeddings().weight.dtype

    @property
    def _device(self) -> torch.device:
        return self.lm.get_input_embeddings().weight.device
