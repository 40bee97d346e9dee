"""Laws of proximal operators, tried on a penalty."""
