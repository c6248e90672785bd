"""GLM in torch. Knows ranks; has never heard of a request."""
