"""What an output must match as a whole, and which tokens may come next so that it does."""
