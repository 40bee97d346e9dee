"""The arithmetic of policy optimisation, one value per token.

Modules are the namespace: `from proxlm.policy import advantages, objectives, kl`.
"""
