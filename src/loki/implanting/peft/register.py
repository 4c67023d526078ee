"""Making LoKI known to PEFT, the one place that touches PEFT's private parts."""

from importlib.metadata import version

from peft import PeftType
from peft.utils import register_peft_method

from loki.errors import LokiError
from loki.implanting.peft.config import LoKIConfig
from loki.implanting.peft.model import LoKIModel

PEFT_TYPE = "LOKI"


def register_loki() -> None:
    """Register `LoKIConfig` and `LoKIModel` with PEFT as the method `loki`. A second call changes nothing.

    Raises:
        LokiError: if this release of PEFT cannot be extended.
    """
    if PEFT_TYPE in PeftType.__members__:
        return
    _add_peft_type()
    register_peft_method(name="loki", config_cls=LoKIConfig, model_cls=LoKIModel)


def _add_peft_type() -> None:
    # `register_peft_method` takes only members of `PeftType`, and Python's enums cannot be extended officially. These
    # are the tables that `enum` itself fills for a member; what PEFT does with them is checked right after.
    try:
        member = str.__new__(PeftType, PEFT_TYPE)
        member._name_ = PEFT_TYPE
        member._value_ = PEFT_TYPE
        setattr(PeftType, PEFT_TYPE, member)
        PeftType._member_names_.append(PEFT_TYPE)
        PeftType._member_map_[PEFT_TYPE] = member
        PeftType._value2member_map_[PEFT_TYPE] = member
        works = PeftType(PEFT_TYPE) is member is getattr(PeftType, PEFT_TYPE) and PEFT_TYPE in list(PeftType)
    except (AttributeError, TypeError, ValueError):
        works = False
    if not works:
        raise LokiError(
            f"peft {version('peft')} does not let LoKI register its method: use a release from 0.18.1 to 0.21.2"
        )
