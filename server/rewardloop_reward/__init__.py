"""The reward model in torch, which the trainer trains and the torch engine runs. It needs torch and transformers."""
