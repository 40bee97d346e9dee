"""Starting an experiment from Python, as its command line does."""

from experiments.support.run import cli, runs


def start(experiment, config=None, options=runs.Options()):
    """Runs the main of an experiment's module; returns its numbers."""
    return cli.start(experiment.main, config, options)
