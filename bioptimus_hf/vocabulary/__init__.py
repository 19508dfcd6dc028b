"""Train WordPiece vocabularies, build tokenizers, and measure how they split text."""
