"""Templates of the model cards: `pretrained` and `ner` for folders of a run, `encoder` and `head` for the Hub.

They stand at the top of the checkout and are installed as bioptimus_hf.model_card.
"""
