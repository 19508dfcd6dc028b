"""Templates of the model cards. They stand at the top of the checkout and are installed as bioptimus_hf.model_card."""
