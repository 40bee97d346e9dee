"""Scripts of a page each, to be copied from.

- a model of your own, taught by `ppo.make_step`: `nnx_model`, `equinox_model`, `haiku_model`, `plain_jax`,
  `cartpole`
- weights removed in groups: `nnx_heads`, `equinox_heads`, `prune_and_export`
- folders of transformers: `finetune_folder`, `grpo_folder`
- a tool that answers between turns: `calculator`
- many runs, many devices: `sweep`, `several_devices`
- other libraries: `nemos_solver`

`make docs` shows them all, and makes notebooks of `sweep`, `nnx_heads` and `nnx_model`.
"""
