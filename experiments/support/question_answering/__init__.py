"""Support of experiments/question_answering.py."""
