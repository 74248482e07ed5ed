"""What the model store holds beside the files of its versions: each model's pointer, and claims of version numbers."""
