"""Greedy generation with the plain forward: the yardstick the engine is held against. No batching, no paging."""

import torch

from glm_cluster.model.glm import GlmForCausalLM


@torch.inference_mode()
def generate(model: GlmForCausalLM, prompt: tuple[int, ...], *, max_new_tokens: int) -> tuple[int, ...]:
    """Continue `prompt` by the most likely token each time, up to and including an end-of-sequence id."""
    cache, fresh, output = None, list(prompt), []
    for _ in range(max_new_tokens):
        made = model(torch.tensor([fresh]), past_key_values=cache, use_cache=True)
        cache, token = made.past_key_values, int(made.logits[0, -1].argmax())
        output.append(token)
        if token in model.config.eos_token_ids:
            break
        fresh = [token]
    return tuple(output)
