"""The command line, which also says how training held parameters and optimiser. On CPUs, FSDP2 really shards."""

from typing import Any

from accelerate.utils import parse_flag_from_env
from transformers import trainer

from loki.cli import main
from tests.implanting.distributed.worker import Facts, shard_on_cpus


class PrintFacts(Facts):
    """Says it at the end."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            print(f"{self.noted['sharded']} of {self.noted['parameters']} sharded, {self.noted['optimizer']}")


if __name__ == "__main__":
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        shard_on_cpus()
    trainer.DEFAULT_CALLBACKS.append(PrintFacts)
    main()
