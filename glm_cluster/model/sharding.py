"""Which part of each tensor a rank holds. Pure arithmetic on shapes: no torch, no files, no processes.

q/k/v by heads (a KV head is held by several ranks when there are more ranks than KV heads), gate and up columns split
separately inside the packed `gate_up_proj`, `o_proj` and `down_proj` by input columns, embedding and `lm_head` by
vocabulary rows (the last rank's share is padded with zero rows), norms whole.
"""

from dataclasses import dataclass

from glm_cluster.model.config import GlmConfig
from glm_cluster.records import Task


@dataclass(frozen=True, slots=True)
class Shard:
    """A rank's part of one tensor: `ranges` of `dim`, concatenated, then zero rows up to `length`."""

    full: tuple[int, ...]  # shape in the checkpoint
    dim: int
    ranges: tuple[tuple[int, int], ...]
    length: int  # size of `dim` on this rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of this rank's tensor."""
        return (*self.full[: self.dim], self.length, *self.full[self.dim + 1 :])


@dataclass(frozen=True, slots=True)
class Sharding:
    """The shards of one rank. Construction refuses a size that does not divide the model."""

    config: GlmConfig
    rank: int
    size: int

    def __post_init__(self) -> None:
        self.config.check_tp(self.size)

    @property
    def num_heads(self) -> int:
        """Query heads on this rank."""
        return self.config.num_attention_heads // self.size

    @property
    def num_kv_heads(self) -> int:
        """KV heads on this rank; at least one, replicated when ranks outnumber them."""
        return max(1, self.config.num_key_value_heads // self.size)

    @property
    def intermediate_size(self) -> int:
        """MLP columns on this rank."""
        return self.config.intermediate_size // self.size

    @property
    def vocab_rows(self) -> int:
        """Vocabulary rows on each rank, padding included."""
        return -(-self.config.vocab_size // self.size)

    def tensors(self) -> dict[str, Shard]:
        """Every tensor of a language model by its name, with this rank's part of it."""
        out = self.decoder()
        if not self.config.tie_word_embeddings:
            out["lm_head.weight"] = self._vocab()
        return out

    def decoder(self) -> dict[str, Shard]:
        """Those of the decoder alone."""
        c = self.config
        out = {"model.embed_tokens.weight": self._vocab(), "model.norm.weight": _whole(c.hidden_size)}
        for index in range(c.num_hidden_layers):
            prefix = f"model.layers.{index}."
            out |= {prefix + name: shard for name, shard in self._layer().items()}
        return out

    def score(self, *, bias: bool) -> dict[str, Shard]:
        """Those of a classification head, whole on every rank."""
        c = self.config
        out = {"score.weight": _whole(c.num_labels, c.hidden_size)}
        return out | ({"score.bias": _whole(c.num_labels)} if bias else {})

    def of_task(self, task: Task) -> dict[str, Shard]:
        """Those of the model that serves a task."""
        match task:
            case "generate":
                return self.tensors()
            case "embed":
                return self.decoder()
            case "classify" | "classify-tokens":
                return self.decoder() | self.score(bias=task == "classify-tokens")

    def _layer(self) -> dict[str, Shard]:
        c = self.config
        heads, kv_heads = self._rows(c.num_attention_heads), self._kv_rows()
        columns = _span(self.rank, self.intermediate_size)
        up = (columns[0] + c.intermediate_size, columns[1] + c.intermediate_size)
        q_rows, kv_rows = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        out = {
            "input_layernorm.weight": _whole(c.hidden_size),
            "post_attention_layernorm.weight": _whole(c.hidden_size),
            "self_attn.o_proj.weight": _part((c.hidden_size, q_rows), 1, heads),
            "mlp.gate_up_proj.weight": _part((2 * c.intermediate_size, c.hidden_size), 0, columns, up),
            "mlp.down_proj.weight": _part((c.hidden_size, c.intermediate_size), 1, columns),
        }
        if c.has_sublayer_norms:
            out["post_self_attn_layernorm.weight"] = out["post_mlp_layernorm.weight"] = _whole(c.hidden_size)
        for name, rows, span in (("q", q_rows, heads), ("k", kv_rows, kv_heads), ("v", kv_rows, kv_heads)):
            out[f"self_attn.{name}_proj.weight"] = _part((rows, c.hidden_size), 0, span)
            if c.attention_bias:
                out[f"self_attn.{name}_proj.bias"] = _part((rows,), 0, span)
        return out

    def _rows(self, num_heads: int) -> tuple[int, int]:
        return _span(self.rank, num_heads // self.size * self.config.head_dim)

    def _kv_rows(self) -> tuple[int, int]:
        first = self.rank * self.config.num_key_value_heads // self.size
        return first * self.config.head_dim, (first + self.num_kv_heads) * self.config.head_dim

    def _vocab(self) -> Shard:
        start = min(self.rank * self.vocab_rows, self.config.vocab_size)
        stop = min(start + self.vocab_rows, self.config.vocab_size)
        full = (self.config.vocab_size, self.config.hidden_size)
        return Shard(full, 0, ((start, stop),), self.vocab_rows)


def _span(rank: int, length: int) -> tuple[int, int]:
    return rank * length, (rank + 1) * length


def _whole(*shape: int) -> Shard:
    return Shard(shape, 0, ((0, shape[0]),), shape[0])


def _part(full: tuple[int, ...], dim: int, *ranges: tuple[int, int]) -> Shard:
    return Shard(full, dim, ranges, sum(stop - start for start, stop in ranges))
