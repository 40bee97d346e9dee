"""Parts of experiments.finetune alone."""
