"""Code shared by the experiments or too long for one of them."""
