"""Templates of the model cards that are published: `encoder.md`, `head.md` and the parts they share.

The folder is at the top of the repository and is installed as `bioptimus_hf.model_card`.
"""
