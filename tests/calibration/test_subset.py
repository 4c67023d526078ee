import pytest
from hypothesis import given
from hypothesis import strategies as st

from loki.calibration.records import Record
from loki.calibration.subset import choose_samples, choose_subjects
from loki.errors import LokiError

SUBJECTS = ("college_physics", "law", "high_school_physics", "Moral disputes", "")
RECORDS = [Record(f"{subject}/{index}", subject, "text") for index in range(5) for subject in SUBJECTS]


def test_subjects_keep_the_order_of_the_data() -> None:
    chosen = choose_subjects(RECORDS, ["law", "college_physics"])
    assert chosen == [record for record in RECORDS if record.subject in ("law", "college_physics")]


@pytest.mark.parametrize("name", ["moral_disputes", "MORAL DISPUTES", " Moral disputes "])
def test_case_and_spaces_do_not_matter(name: str) -> None:
    assert {record.subject for record in choose_subjects(RECORDS, [name])} == {"Moral disputes"}


def test_unknown_subject_lists_near_matches() -> None:
    with pytest.raises(LokiError, match=r"'colege_physics' .*mean college_physics"):
        choose_subjects(RECORDS, ["law", "colege_physics"])


def test_unknown_subject_unlike_any_lists_what_there_is() -> None:
    with pytest.raises(LokiError, match=r" Moral disputes, college_physics, high_school_physics, law$"):
        choose_subjects(RECORDS, ["xyz"])
    many = [Record(str(index), f"subject_{index}", "text") for index in range(9)]
    with pytest.raises(LokiError, match=r" subject_0, .*subject_4 and 4 more$"):
        choose_subjects(many, ["xyz"])
    with pytest.raises(LokiError, match=r"no subjects$"):
        choose_subjects([Record("1", "", "text")], ["xyz"])


@given(st.integers(1, 6), st.integers(0, 100))
def test_samples_are_seeded_in_order_and_as_many_of_every_subject(per_subject: int, seed: int) -> None:
    chosen = choose_samples(RECORDS, per_subject, seed)
    assert chosen == choose_samples(RECORDS, per_subject, seed)
    assert chosen == [record for record in RECORDS if record in chosen]
    assert all(sum(record.subject == name for record in chosen) == min(per_subject, 5) for name in SUBJECTS)


def test_another_seed_draws_others() -> None:
    assert choose_samples(RECORDS, 2, seed=0) != choose_samples(RECORDS, 2, seed=1)


def test_a_draw_does_not_depend_on_the_other_subjects() -> None:
    alone = choose_samples(choose_subjects(RECORDS, ["law"]), 2, seed=3)
    assert alone == choose_subjects(choose_samples(RECORDS, 2, seed=3), ["law"])


@pytest.mark.parametrize("per_subject", [0, -1])
def test_samples_per_subject_out_of_range(per_subject: int) -> None:
    with pytest.raises(LokiError, match=f"samples per subject is {per_subject}"):
        choose_samples(RECORDS, per_subject, seed=0)
