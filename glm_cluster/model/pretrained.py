"""What the model classes share with HF's of the same names: fresh weights, loading, saving, resizing, tying.

Source: HF `PreTrainedModel` (transformers 5.0.0rc1 and 5.23), for the methods that a GLM user calls.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from glm_cluster.errors import ConfigError
from glm_cluster.model.checkpoints import weights
from glm_cluster.model.checkpoints.checkpoint import Checkpoint
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.layers import RMSNorm, VocabEmbedding
from glm_cluster.model.outputs import ModelOutput
from glm_cluster.model.ranks import Ranks, choose_device
from glm_cluster.model.sharding import Shard

_NEW_ROW_SCALE = 1e-9  # of the covariance that new embedding rows are drawn with


class PretrainedModel(nn.Module, ABC):
    """A GLM with or without a head. `ranks` is the group it is sharded over; alone it is one rank."""

    kind: ClassVar[str]  # the end of HF's class name
    prefix: ClassVar[str] = "model."  # of the decoder's tensors in `state_dict`

    def __init__(self, config: GlmConfig, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.config = config
        self.ranks = ranks or Ranks.single()

    @property
    @abstractmethod
    def decoder(self) -> "PretrainedModel":
        """The `GlmModel` within."""

    @abstractmethod
    def shards(self) -> dict[str, Shard]:
        """This rank's part of each tensor, by the name it has in a whole checkpoint."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(
        cls,
        name_or_directory: str | Path,
        *,
        config: GlmConfig | None = None,
        dtype: str | torch.dtype = "auto",
        torch_dtype: str | torch.dtype | None = None,
        device_map: object = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        low_cpu_mem_usage: bool | None = None,
        use_safetensors: bool | None = None,
        **changes: Any,
    ) -> Self:
        """Load a checkpoint directory, or a hub repository where `huggingface_hub` is installed, ready for inference.

        `dtype` "auto" is the stored one. `device_map` places the whole model ("auto": CUDA if it has room, else the
        CPU). `changes` are config keys (`num_labels=3`, `attn_implementation="eager"`). A head that the checkpoint
        has not is made anew, with a warning. `trust_remote_code=True` is accepted, and no code of a checkpoint is ever
        run. `revision`, `cache_dir`, `token` and `local_files_only` are the hub library's; `low_cpu_mem_usage` and
        `use_safetensors=True` ask for what is always done.
        """
        from glm_cluster.model.checkpoints.hub import resolve

        note_trust(trust_remote_code)
        if use_safetensors is False:
            raise ConfigError("use_safetensors=False asks for pickles, which are never read; leave it out")
        directory = resolve(
            name_or_directory, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
        )
        config = changed(config or GlmConfig.from_pretrained(directory), changes)
        as_stored = Checkpoint.open(directory, config).with_stored_dtype(config)
        to = _torch_dtype(dtype if torch_dtype is None else torch_dtype, as_stored)
        with torch.device("meta"):
            model = cls(config)
        num_bytes = sum(parameter.numel() for parameter in model.parameters()) * to.itemsize
        weights.fill_or_make(model, directory, dtype=to, device=choose_device(device_map, num_bytes))
        model.after_loading(directory)
        return model.eval()

    def after_loading(self, directory: Path) -> None:
        """Take what else the directory holds for this class."""

    def save_pretrained(self, directory: str | Path, *, max_shard_size: int | str = "50GB") -> None:
        """Write config.json and safetensors (with an index where one file is not enough); transformers reads them."""
        if self.ranks.size > 1:
            raise ConfigError("a rank holds only a part of the model; save it from an unsharded one")
        directory = Path(directory)
        name = str(self.dtype).removeprefix("torch.")
        self.config.replace(dtype=name, architectures=[self.config.architecture(self.kind)]).save_pretrained(directory)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        if self.config.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        for stale in (*directory.glob("model*.safetensors"), directory / "model.safetensors.index.json"):
            stale.unlink(missing_ok=True)
        weights.write_shards(directory, list(weights.groups(tensors, weights.num_bytes(max_shard_size))))

    def init_weights(self) -> None:
        """HF's fresh weights: N(0, initializer_range), biases and the padding row 0, norms 1. Nothing on `meta`."""
        self.tie_weights()
        if self.device.type == "meta":
            return
        std = self.config.initializer_range
        for module in self.modules():
            match module:
                case RMSNorm():
                    nn.init.ones_(module.weight)
                case nn.Linear():
                    nn.init.normal_(module.weight, std=std)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        for module in self.modules():  # last: a tied head must not refill the padding row
            if isinstance(module, VocabEmbedding):
                nn.init.normal_(module.weight, std=std)
                if module.padding_idx is not None:
                    nn.init.zeros_(module.weight[module.padding_idx])

    def tie_weights(self) -> None:
        """Share matrices as the config says; only a language-model head has one to share."""

    def get_input_embeddings(self) -> VocabEmbedding:
        """The token embedding."""
        return self.decoder.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Linear | None:
        """The language-model head; None where there is none."""
        return None

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> VocabEmbedding:
        """Give the vocabulary `new_num_tokens` rows, rounded up to `pad_to_multiple_of`; head and config follow.

        New rows are drawn about the mean of the old ones with their covariance (times 1e-9), so that they change no
        probability noticeably, or fresh with `mean_resizing=False`.
        """
        embedding = self.get_input_embeddings()
        if new_num_tokens is None and pad_to_multiple_of is None:
            return embedding
        if self.ranks.size > 1:
            raise ConfigError("a rank holds only a part of the vocabulary; resize an unsharded model")
        size = embedding.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size == embedding.num_embeddings:
            return embedding
        head = self.get_output_embeddings()
        tied = head is not None and head.weight is embedding.weight
        embedding.weight = self._resized(embedding.weight, size, mean_resizing)
        embedding.num_embeddings = embedding._rows = size
        if embedding.padding_idx is not None and embedding.padding_idx >= size:
            embedding.padding_idx = None
        if head is not None:
            head.weight = embedding.weight if tied else self._resized(head.weight, size, mean_resizing)
            head.out_features = size
        self.config = self.decoder.config = self.config.replace(vocab_size=size)
        return embedding

    def _resized(self, weight: Tensor, size: int, mean_resizing: bool) -> nn.Parameter:
        """The first `size` rows, with new ones below where there were fewer."""
        old_VH = weight.detach()
        kept_VH = old_VH[:size].clone()
        if (missing := size - kept_VH.shape[0]) > 0:
            std = self.config.initializer_range
            fresh_VH = old_VH.new_empty(missing, old_VH.shape[1])
            new_VH = _like(old_VH, missing) if mean_resizing else fresh_VH.normal_(0, std)
            kept_VH = torch.cat([kept_VH, new_VH])
        return nn.Parameter(kept_VH, requires_grad=weight.requires_grad)

    def as_asked(self, output: ModelOutput, return_dict: bool | None) -> Any:
        """`output`, or its tuple where `return_dict` (or the config) says so."""
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()


def changed(config: GlmConfig, changes: Mapping[str, Any]) -> GlmConfig:
    """The config with the keys that `from_pretrained` was given; a name that is no key is a TypeError."""
    if unknown := changes.keys() - {*GlmConfig.__dataclass_fields__, "num_labels", "rope_theta"}:
        raise TypeError(f"from_pretrained does not know {', '.join(sorted(unknown))}")
    return config.replace(**changes)


def note_trust(trust_remote_code: bool) -> None:
    """Say, once in a process, that a checkpoint's own code is not run whatever is asked."""
    if trust_remote_code:
        warn_of_trust()


@cache  # and not the warnings module's own memory, which `catch_warnings` forgets
def warn_of_trust() -> None:
    """Warn, the first time it is called."""
    warnings.warn("trust_remote_code=True changes nothing: no code of a checkpoint is ever run here", stacklevel=1)


def _torch_dtype(dtype: str | torch.dtype | None, config: GlmConfig) -> torch.dtype:
    name = config.dtype or "float32" if dtype in ("auto", None) else str(dtype).removeprefix("torch.")
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype must be a floating-point torch dtype or its name, not {dtype!r}")
    return found


def _like(old_VH: Tensor, count: int) -> Tensor:
    """Rows about the mean of the old ones; the mean itself where their covariance is not positive definite."""
    wide_VH = old_VH.float()
    mean_H = wide_VH.mean(0)
    centred_VH = wide_VH - mean_H
    covariance_HH = _NEW_ROW_SCALE * (centred_VH.T @ centred_VH / wide_VH.shape[0])
    if not bool(torch.distributions.constraints.positive_definite.check(covariance_HH).all()):
        return mean_H.expand(count, -1).to(old_VH.dtype)
    drawn = torch.distributions.MultivariateNormal(mean_H, covariance_matrix=covariance_HH).sample((count,))
    return drawn.to(old_VH.dtype)
