"""How trained heads of a Hugging Face base become the score heads of a reward model."""
