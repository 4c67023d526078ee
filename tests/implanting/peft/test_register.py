import pickle

import peft
import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from loki.errors import LokiError
from loki.implanting.peft import LoKIConfig, LoKIModel, register
from loki.implanting.peft.register import register_loki


def test_the_peft_type_is_a_full_member_of_the_enum():
    member = PeftType("LOKI")
    assert member is PeftType["LOKI"] is PeftType.LOKI
    assert member in list(PeftType)
    assert isinstance(member, PeftType)
    assert (member.name, member.value, str.__str__(member)) == ("LOKI", "LOKI", "LOKI")
    assert pickle.loads(pickle.dumps(member)) is member
    assert len({member, PeftType.LORA}) == 2


def test_registration_is_complete_and_happens_once():
    register_loki()
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LOKI] is LoKIConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LOKI] is LoKIModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.LOKI] == "loki_"
    assert [member.value for member in PeftType].count("LOKI") == 1


def test_a_peft_that_cannot_be_extended_is_refused_by_version(monkeypatch):
    class Closed(str):
        __members__ = ()

        def __new__(cls, value):
            raise ValueError(value)

    monkeypatch.setattr(register, "PeftType", Closed)
    with pytest.raises(LokiError, match=rf"peft {peft.__version__} "):
        register_loki()
