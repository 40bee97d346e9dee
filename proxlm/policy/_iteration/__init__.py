"""The parts of one iteration: prompts, what is learnt from samples and rewards, and the updates."""
