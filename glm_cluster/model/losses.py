"""The losses of the model heads.

Source: HF `ForCausalLMLoss`, `ForSequenceClassificationLoss`, `ForTokenClassification` (transformers 5.23).
Shape legend: B batch, T tokens, V vocabulary, L labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def causal_lm_loss(logits_BTV: Tensor, labels_BT: Tensor, num_items_in_batch: int | Tensor | None = None) -> Tensor:
    """Cross-entropy in fp32 of each next token; labels of -100 do not count. Mean, or sum over `num_items_in_batch`."""
    logits_BTV = logits_BTV.float()
    shifted_BT = F.pad(labels_BT, (0, 1), value=IGNORED)[..., 1:].contiguous()
    return _cross_entropy(
        logits_BTV.view(-1, logits_BTV.shape[-1]), shifted_BT.view(-1).to(logits_BTV.device), num_items_in_batch
    )


def token_loss(logits_BTL: Tensor, labels_BT: Tensor, num_items_in_batch: int | Tensor | None = None) -> Tensor:
    """Cross-entropy in fp32 of every token whose label is not -100."""
    num_labels = logits_BTL.shape[-1]
    flat = logits_BTL.view(-1, num_labels).float()
    return _cross_entropy(flat, labels_BT.view(-1).to(flat.device), num_items_in_batch)


def problem_type_of(labels: Tensor, num_labels: int) -> str:
    """What the labels show a sequence classifier is for, where its config does not say."""
    if num_labels == 1:
        return "regression"
    whole = labels.dtype in (torch.long, torch.int)
    return "single_label_classification" if whole else "multi_label_classification"


def sequence_loss(logits_BL: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """MSE (regression), cross-entropy of labels [B] (single) or binary cross-entropy of labels [B, L] (multi)."""
    labels = labels.to(logits_BL.device)
    match problem_type:
        case "regression" if logits_BL.shape[-1] == 1:
            return F.mse_loss(logits_BL.squeeze(), labels.squeeze())
        case "regression":
            return F.mse_loss(logits_BL, labels)
        case "single_label_classification":
            return F.cross_entropy(logits_BL.view(-1, logits_BL.shape[-1]), labels.view(-1), ignore_index=IGNORED)
        case "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits_BL, labels)
        case _:
            raise RuntimeError(f"Invalid problem type: {problem_type}")


def _cross_entropy(logits: Tensor, labels: Tensor, num_items: int | Tensor | None) -> Tensor:
    if num_items is None:
        return F.cross_entropy(logits, labels, ignore_index=IGNORED)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (num_items.to(total.device) if isinstance(num_items, Tensor) else num_items)
