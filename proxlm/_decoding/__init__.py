"""The distribution that tokens are drawn from, and records of samples and scores, whatever the model.

`lm` and `policy` share these, so that any model's sampling and scoring agree by construction.
"""
