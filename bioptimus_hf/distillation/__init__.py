"""Initialise the embeddings of new tokens from their contexts, and give a model its new vocabulary."""
