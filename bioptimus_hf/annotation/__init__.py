"""Find entities in text with NER heads."""
