"""The decoder and its language-model head. The same modules run unsharded and sharded, offline and in
the engine, which may put faster forms of them in their place (`backend`).

Source: HF `GlmModel`, `GlmForCausalLM`, `Glm4Model`, `Glm4ForCausalLM` (transformers 5.0.0rc1 and 5.23).
Parameter names are HF's.
Shape legend: B batch, T tokens (any leading dimensions before it), H hidden width, V vocabulary, R rows to sample.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from glm_cluster.model.attention import Attend
from glm_cluster.model.cache import Cache, DynamicCache
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.generation.config import GenerationConfig
from glm_cluster.model.generation.generate import generate
from glm_cluster.model.layers import DecoderLayer, RMSNorm, VocabEmbedding
from glm_cluster.model.losses import causal_lm_loss
from glm_cluster.model.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from glm_cluster.model.pretrained import PretrainedModel
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.reference import ReferenceAttention, causal_mask
from glm_cluster.model.rope import RotaryEmbedding
from glm_cluster.model.sharding import Shard, Sharding


class GlmModel(PretrainedModel):
    """Embedding, decoder layers, final norm."""

    kind: ClassVar[str] = "Model"
    prefix: ClassVar[str] = ""

    def __init__(self, config: GlmConfig, ranks: Ranks | None = None) -> None:
        super().__init__(config, ranks)
        self.embed_tokens = VocabEmbedding(config, self.ranks)
        self.layers = nn.ModuleList(DecoderLayer(config, self.ranks, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)
        self.init_weights()

    @property
    def decoder(self) -> "GlmModel":
        """Itself."""
        return self

    def get_input_embeddings(self) -> VocabEmbedding:
        """The token embedding."""
        return self.embed_tokens

    def shards(self) -> dict[str, Shard]:
        """This rank's part of each tensor, by the name it has in a whole checkpoint."""
        return Sharding(self.config, self.ranks.rank, self.ranks.size).decoder()

    def hidden(self, ids_T: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        """The engine's way: hidden states [..., T, H] of tokens at `positions_T`; `attend` keeps keys and values.

        There may be more positions than tokens where whoever attends takes the first ones alone.
        """
        return self._run(self.embed_tokens(ids_T), positions_T, attend)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        cache_position: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """HF's forward: ids [B, T] or embeddings [B, T, H] in, `BaseModelOutputWithPast` (or a tuple) out.

        `attention_mask` is [B, tokens seen so far] (1 sees, 0 is padding) or a ready 4-D mask; positions count from
        what the cache holds unless given. Raises ValueError unless exactly one of ids and embeddings is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        config = self.config
        x_BTH: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is None and _either(use_cache, config.use_cache):
            past_key_values = DynamicCache(config=config)
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        stands_1T = torch.arange(x_BTH.shape[1], device=x_BTH.device).unsqueeze(0) + seen
        _check_cache_position(cache_position, stands_1T)
        positions_BT = stands_1T if position_ids is None else position_ids
        keep_weights = _either(output_attentions, config.output_attentions)
        eager = keep_weights or config.attn_implementation == "eager"
        mask = causal_mask(
            attention_mask,
            cache=past_key_values,
            positions_BT=positions_BT,
            num_rows=x_BTH.shape[0],
            dtype=x_BTH.dtype,
            eager=eager,
        )
        attend = ReferenceAttention(
            cache=past_key_values,
            mask=mask,
            eager=eager,
            dropout=config.attention_dropout if self.training else 0.0,
            keep_weights=keep_weights,
        )
        states: list[Tensor] = []
        keep_states = _either(output_hidden_states, config.output_hidden_states)
        out_BTH = self._run(x_BTH, positions_BT, attend, states.append if keep_states else None)
        output = BaseModelOutputWithPast(
            last_hidden_state=out_BTH,
            past_key_values=past_key_values,
            hidden_states=(*states, out_BTH) if keep_states else None,
            attentions=tuple(attend.weights) if keep_weights else None,
        )
        return self.as_asked(output, return_dict)

    def _run(
        self, x_TH: Tensor, positions_T: Tensor, attend: Attend, watch: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        """The layers and the final norm; `watch` sees what goes into each layer."""
        cos_TR, sin_TR = self.rotary(positions_T, x_TH.dtype)
        for layer in self.layers:
            if watch is not None:
                watch(x_TH)
            x_TH = layer(x_TH, cos_TR, sin_TR, attend)
        return self.norm(x_TH)  # type: ignore[no-any-return]


class GlmForCausalLM(PretrainedModel):
    """`GlmModel` and the head over this rank's vocabulary rows; tied to the embedding where the config says so."""

    kind: ClassVar[str] = "ForCausalLM"

    def __init__(self, config: GlmConfig, ranks: Ranks | None = None) -> None:
        super().__init__(config, ranks)
        rows = Sharding(config, self.ranks.rank, self.ranks.size).vocab_rows
        self.model = GlmModel(config, self.ranks)
        self.lm_head = nn.Linear(config.hidden_size, rows, bias=False)
        self.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
        self.init_weights()

    @property
    def decoder(self) -> GlmModel:
        """The model under the head."""
        return self.model

    def shards(self) -> dict[str, Shard]:
        """This rank's part of each tensor, by the name it has in a whole checkpoint; a tied head has none."""
        return Sharding(self.config, self.ranks.rank, self.ranks.size).tensors()

    def tie_weights(self) -> None:
        """Make the head's matrix the embedding's where the config ties them."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """HF's forward: `CausalLMOutputWithPast` with logits [B, kept, V] and, given labels [B, T], the loss.

        `logits_to_keep` is how many last positions (0: all), or a tensor of positions [kept] or [B, kept], or a bool
        mask [B, T]. In a group of ranks only rank 0 has logits.
        """
        output = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            cache_position,
            use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.sampled_logits(_kept(output.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None and logits is not None:
            loss = causal_lm_loss(logits, labels, num_items_in_batch)
        made = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self.as_asked(made, return_dict)

    def sampled_logits(self, x_RH: Tensor) -> Tensor | None:
        """Logits [R, V] of the given hidden rows on rank 0, None on the others: the one gather of a step."""
        logits = self.ranks.gather(self.lm_head(x_RH))
        return None if logits is None else logits[..., : self.config.vocab_size]

    def generate(self, inputs: Tensor | None = None, *places: Any, **options: Any) -> Any:
        """Continue prompts [B, T]; see `generation.generate` for the options, which are HF's."""
        return generate(self, inputs, *places, **options)

    def after_loading(self, directory: Path) -> None:
        """Take generation_config.json."""
        self.generation_config = GenerationConfig.from_directory(directory, self.config)

    def save_pretrained(self, directory: str | Path, *, max_shard_size: int | str = "50GB") -> None:
        """Write config.json, safetensors and generation_config.json; transformers reads them."""
        super().save_pretrained(directory, max_shard_size=max_shard_size)
        self.generation_config.save(Path(directory))


def _either(asked: bool | None, default: bool) -> bool:
    return default if asked is None else asked


def _check_cache_position(cache_position: Tensor | None, stands_1T: Tensor) -> None:
    """5.0.0rc1 lets a caller say where its tokens go in the cache; here they go behind what is held, nowhere else."""
    if cache_position is not None and not torch.equal(cache_position.reshape(1, -1).to(stands_1T), stands_1T):
        raise ValueError(
            f"cache_position must count on from what the cache holds ({int(stands_1T[0, 0])}, ...); leave it out, "
            "and give position_ids to say which positions the tokens have"
        )


def _kept(x_BTH: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    if isinstance(logits_to_keep, int):
        return x_BTH[:, -logits_to_keep:, :]
    if logits_to_keep.dim() == 2:
        if logits_to_keep.dtype == torch.bool:
            return x_BTH[logits_to_keep]
        return torch.take_along_dim(x_BTH, logits_to_keep[..., None], dim=1)
    return x_BTH[:, logits_to_keep, :]
