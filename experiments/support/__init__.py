"""Code that experiments share, and a folder for each experiment that needs more than its own file."""


class Refusal(ValueError):
    """An input that an experiment cannot use, in words for its user.

    The command line shows it as one line, without a traceback.
    """
