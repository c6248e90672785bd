"""GLM with a classification head: over a sequence's last token, or over every token.

Source: HF `GenericForSequenceClassification` and `GenericForTokenClassification` (transformers 5.23), which
`GlmForSequenceClassification` and `GlmForTokenClassification` are. The head is small, so every rank holds it whole.
Shape legend: B batch, T tokens, H hidden width, L labels.
"""

import logging
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from glm_cluster.model.cache import Cache
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.glm import GlmModel
from glm_cluster.model.losses import problem_type_of, sequence_loss, token_loss
from glm_cluster.model.outputs import SequenceClassifierOutputWithPast, TokenClassifierOutput
from glm_cluster.model.pretrained import PretrainedModel
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.sharding import Shard, Sharding

logger = logging.getLogger(__name__)

_DROPOUT = 0.1  # of a token classifier whose config does not say


class _Classifier(PretrainedModel):
    """A decoder under one linear layer, `score`."""

    has_bias: ClassVar[bool]

    def __init__(self, config: GlmConfig, ranks: Ranks | None = None) -> None:
        super().__init__(config, ranks)
        self.model = GlmModel(config, self.ranks)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=self.has_bias)
        self.init_weights()

    @property
    def decoder(self) -> GlmModel:
        """The model under the head."""
        return self.model

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return self.config.num_labels

    def shards(self) -> dict[str, Shard]:
        """This rank's part of each tensor, by the name it has in a whole checkpoint."""
        sharding = Sharding(self.config, self.ranks.rank, self.ranks.size)
        return sharding.decoder() | sharding.score(bias=self.has_bias)


class GlmForSequenceClassification(_Classifier):
    """Label logits of each row's rightmost token that is not padding, whichever side the padding is on."""

    kind: ClassVar[str] = "ForSequenceClassification"
    has_bias: ClassVar[bool] = False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        cache_position: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """HF's forward: `SequenceClassifierOutputWithPast` with logits [B, L].

        The loss follows `config.problem_type`; where that is None, the labels decide, and it is noted in the config.
        Raises ValueError for more than one row without a padding id.
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
        logits_BTL = self.score(output.last_hidden_state)
        rows_B = torch.arange(logits_BTL.shape[0], device=logits_BTL.device)
        logits_BL = logits_BTL[rows_B, self._last_tokens(input_ids, logits_BTL)]
        made = SequenceClassifierOutputWithPast(
            loss=None if labels is None else self._loss(logits_BL, labels),
            logits=logits_BL,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self.as_asked(made, return_dict)

    def _last_tokens(self, input_ids: Tensor | None, logits_BTL: Tensor) -> Tensor | int:
        pad = self.config.pad_token_id
        if pad is None:
            if logits_BTL.shape[0] != 1:
                raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
            return -1
        if input_ids is None:
            logger.warning("padding cannot be seen in inputs_embeds: every row's last position is classified")
            return -1
        shown_BT = (input_ids != pad).to(logits_BTL.device, torch.int32)
        stands_T = torch.arange(input_ids.shape[-1], device=logits_BTL.device, dtype=torch.int32)
        return (stands_T * shown_BT).argmax(-1)

    def _loss(self, logits_BL: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type is None:
            self.config = self.config.replace(problem_type=problem_type_of(labels, self.num_labels))
        return sequence_loss(logits_BL, labels, str(self.config.problem_type))


class GlmForTokenClassification(_Classifier):
    """Label logits of every token."""

    kind: ClassVar[str] = "ForTokenClassification"
    has_bias: ClassVar[bool] = True

    def __init__(self, config: GlmConfig, ranks: Ranks | None = None) -> None:
        super().__init__(config, ranks)
        chosen = (config.classifier_dropout, config.hidden_dropout, _DROPOUT)
        self.dropout = nn.Dropout(next(p for p in chosen if p is not None))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        cache_position: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """HF's forward: `TokenClassifierOutput` with logits [B, T, L]; labels [B, T] of -100 do not count."""
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
        logits_BTL = self.score(self.dropout(output.last_hidden_state))
        made = TokenClassifierOutput(
            loss=None if labels is None else token_loss(logits_BTL, labels),
            logits=logits_BTL,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self.as_asked(made, return_dict)
