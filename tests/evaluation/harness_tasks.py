"""Small tasks of lm-evaluation-harness over local files, as a user would write them."""

import json
from pathlib import Path

QUIZ, WORDS, ANSWERS = "loki_quiz", "loki_words", "loki_answers"
TASKS = (QUIZ, WORDS, ANSWERS)
QUESTIONS = [
    {"question": f"What is {number} and {number}?", "choices": [str(2 * number), "none", "many"], "answer": number % 3}
    for number in range(1, 11)
]

_TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
metadata:
  version: 1.0
"""
_QUIZ = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
_WORDS = """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{' ' + choices[0]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
_ANSWERS = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: never, filter: [{function: regex, regex_pattern: "(XYZ)"}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def write_tasks(folder: Path) -> Path:
    """A folder with a multiple-choice, a log-likelihood and a generation task over the same ten questions."""
    folder.mkdir()
    data = folder / "questions.jsonl"
    data.write_text("\n".join(map(json.dumps, QUESTIONS)))
    for name, body in zip(TASKS, (_QUIZ, _WORDS, _ANSWERS), strict=True):
        (folder / f"{name}.yaml").write_text(_TASK.format(name=name, data=data) + body)
    return folder
