"""Questions are read once, twins stay together, and answers are what they should be."""

import json
import re
import time

import numpy as np
import pytest

from experiments.support.question_answering import report, tasks
from experiments.support.question_answering.tasks import Exercise
from tests.experiments.test_corpora import make_wheel


def test_every_made_up_exercise_is_right_and_no_pair_is_on_both_sides():
    task = tasks.arithmetic(seed=3, train=400, held_out=100)

    def pair_of(exercise):
        a, b = map(int, re.findall(r"\d+", exercise.question))
        is_sum = any(word in exercise.question for word in ("+", "plus", "got", "made"))
        assert exercise.answer == str(a + b if is_sum else a - b)
        return frozenset((a, b))

    seen, judged = ({pair_of(e) for e in part} for part in (task.train, task.held_out))
    assert len(judged) > 50 and not seen & judged
    encoded = task.encode(task.held_out)
    answers = [task.words.decode(row) for row in encoded.answers]
    assert answers == [e.answer for e in task.held_out]
    assert not (encoded.prompts == task.words.index[tasks.UNKNOWN]).any()


def test_numbers_are_read_units_first_and_prompts_end_in_the_last_column():
    words = tasks.vocabulary_of(["12 + 7 ="])
    assert words.vocabulary == ["<pad>", "<end>", "<unknown>", "+", "0", "1", "2", "7", "="]
    encoded = tasks.encode([Exercise("12 + 7 =", "9"), Exercise("7 =", "127")], words, 7, 4)
    assert encoded.prompts.tolist() == [[0, 6, 5, 3, 7, 4, 8], [0, 0, 0, 0, 7, 4, 8]]
    assert encoded.answers.tolist() == [[2, 4, 1, 0], [7, 6, 5, 1]]
    np.testing.assert_array_equal(encoded.prompt_mask, encoded.prompts > 0)
    np.testing.assert_array_equal(encoded.answer_mask, encoded.answers > 0)
    assert words.decode([7, 6, 5, 1]) == "127" and words.decode([7, 4, 1, 5]) == "7"
    assert words.unknown("13 - 7") == ["3", "-"]


STEMS = (
    "Ron adds more resistors to his series circuit. The current will",
    "Ron removes some resistors to his series circuit. The current will",
    "Seals have a thick layer of blubber. Their bodies stay",
    "A planet far from its star is",
)


def wheel_of(folder, rows):
    chat = lambda stem, a, b: [
        {"role": "system", "content": "Choose."},
        {"role": "user", "content": f"{stem}\n\n A: {a}\n B: {b}"},
    ]
    lines = [json.dumps({"input": chat(*row[:3]), "ideal": row[3]}) for row in rows]
    name = "evals/registry/data/quartz/samples.jsonl"
    return make_wheel(folder, "evals", {name: "\n".join(lines)})[1]


def test_quartz_comes_once_with_its_twins_on_one_side_and_both_orders_to_learn(tmp_path):
    rows = [(stem, "low", "high", "B") for stem in STEMS]
    rows += [(STEMS[2], "High", "low", "A"), (STEMS[3], "cold", "hot", "A")]
    requirements = wheel_of(tmp_path, rows)
    sides = []
    for seed in range(4):
        task = tasks.quartz(seed, tmp_path, requirements, held_out=0.34)
        stems = [{tasks.choices(e.question)[0] for e in part} for part in (task.train, task.held_out)]
        assert not stems[0] & stems[1] and stems[0] | stems[1] == set(STEMS)
        assert len({*STEMS[:2]} & stems[0]) in (0, 2)
        own = [e for e in task.train if tasks.choices(e.question)[0] == min(stems[0])]
        assert sorted(e.answer for e in own) in (["A", "B"], ["A", "A", "B", "B"])
        sides.append(len({*STEMS[:2]} & stems[0]))
    assert {*sides} == {0, 2}


def test_a_question_without_two_choices_is_refused(tmp_path):
    requirements = wheel_of(tmp_path, [("Why?", "yes", "no", "C")])
    with pytest.raises(ValueError, match=r"'Why\?.*answer 'C': expected choices A and B"):
        tasks.quartz(0, tmp_path, requirements)


def test_tf_idf_gives_unit_vectors_and_no_weight_to_words_that_are_everywhere():
    vectors = tasks.tf_idf([["a", "b"], ["a", "b", "b"], ["a", "c"]])
    np.testing.assert_allclose(vectors, [[0, 1, 0], [0, 1, 0], [0, 0, 1]], atol=1e-6)


TRAIN = [
    Exercise("more heat A: warm B: cold", "A"),
    Exercise("less heat A: warm B: cold", "B"),
    Exercise("more heat A: cold B: warm", "B"),
    Exercise("less heat A: cold B: warm", "B"),
]


def test_the_baselines_answer_as_a_hand_would():
    judged = [Exercise("much less A: warm B: cold", "B"), Exercise("more A: warm B: cold", "A")]
    assert report.majority(TRAIN, judged) == 0.5
    assert report.retrieval(TRAIN, judged) == 1.0
    assert report.naive_bayes(TRAIN, judged) == 1.0
    # ln p(B) > ln p(A), and "heat" alone says little: both are then taken for B
    assert report.naive_bayes(TRAIN, [Exercise("unseen A: so B: so", "B")]) == 1.0


def test_choices_are_found_in_linear_time():
    began = time.process_time()
    assert tasks.choices(200_000 * "A " + "A : x") is None
    assert tasks.choices("q A:" + 200_000 * " B ") is None
    assert time.process_time() - began < 1.0
