"""Fine-tune, score and compare NER heads."""
