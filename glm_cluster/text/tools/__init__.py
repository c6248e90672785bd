"""Tools and reasoning: what a conversation says of them to a model, and what the model's text says back. No torch."""
