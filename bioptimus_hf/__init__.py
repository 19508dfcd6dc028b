"""Adapt a BERT encoder to a domain: vocabulary, distilled embeddings, masking curriculum, NER heads."""

__version__ = "0.1.0"
