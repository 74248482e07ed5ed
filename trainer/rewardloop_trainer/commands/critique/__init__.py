"""The command `critique`: a model criticises and revises answers by a constitution."""
