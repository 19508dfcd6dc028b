"""Publish versions and heads on the Hugging Face Hub."""
