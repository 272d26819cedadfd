from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FakeJob:
    shared_paths: bool = False
    paths: Mapping[str, str] = field(
        default_factory=lambda: {"input[0]": "in/*.jsonl", "output": "/data/out"}
    )

    def local_paths(self) -> Mapping[str, str]:
        return self.paths
