"""The configuration of the nightly pipeline."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from headrace.pipelines.event_settings import Compression
from headrace.pipelines.nightly.local_days import find_zone
from headrace.pipelines.settings import about, check
from headrace.schemas.errors import ConfigError

if TYPE_CHECKING:
    from headrace.transforms.funnel_definitions import FunnelSteps

USER = "_user"
"""Column of a shard's rows, int32: the user's place among the shard's user ids in alphabetical order."""
LONGEST_GAP_SECONDS = 86_400


@dataclass(frozen=True, kw_only=True)
class FunnelConfig:
    """One funnel of ``funnel_daily``."""

    steps: dict[str, dict[str, Any]] = field(
        metadata=about(
            "Name of a step to conditions on the lake's columns, in order: column to value or list of values; `*` in a text "
            "stands for any characters."
        )
    )
    within_seconds: int = field(
        default=86_400, metadata=about("Longest time from a chain's first event to its last.", minimum=1)
    )
    order: Literal["loose", "strict"] = field(
        default="loose", metadata=about("strict: a chain's events follow each other directly.")
    )

    def __post_init__(self) -> None:
        check(self)

    def definition(self) -> "FunnelSteps":
        """Returns the funnel over a shard's rows.

        Raises:
            ConfigError: the steps are not possible.
        """
        from headrace.transforms.funnel_definitions import FunnelSteps

        return FunnelSteps(self.steps, timedelta(seconds=self.within_seconds), self.order, (USER,))


def _ready_funnels() -> dict[str, FunnelConfig]:
    types = ("page_view", "product_view", "add_to_cart", "purchase")
    return {"purchase": FunnelConfig(steps={t: {"event_type": t} for t in types})}


@dataclass(frozen=True, kw_only=True)
class NightlyConfig:
    """Everything that decides what a nightly run reads, does and writes, but the dates.

    Raises:
        ConfigError: a value has the wrong type or is out of range; the message names the setting and the fix.
    """

    lake: str = field(
        default="",
        metadata=about("Output folder of `headrace run batch` or `run stream`, with the Delta table `events`.", identity=False),
    )  # fmt: skip
    output: str = field(
        default="",
        metadata=about("Folder of the warehouse; made if it is missing. One made from another lake is refused.", identity=False),
    )  # fmt: skip
    timezone: str | None = field(
        default=None,
        metadata=about(
            "IANA zone whose calendar dates are meant. null takes the warehouse's own, UTC for a new one; another one than the "
            "warehouse's is refused."
        ),
    )
    gap_seconds: int | None = field(
        default=None,
        metadata=about(
            "Longest pause within a session. null takes the warehouse's own, 1800 for a new one; another one than the "
            "warehouse's is refused.",
            minimum=1,
        ),
    )
    funnels: dict[str, FunnelConfig] = field(
        default_factory=_ready_funnels,
        metadata=about("Funnels of `funnel_daily` by name. What you give replaces the default one."),
    )
    compression: Compression = field(
        default="zstd", metadata=about("Compression of the Parquet files written.")
    )
    shards: int | None = field(
        default=None,
        metadata=about(
            "Over how many parts users are spread; one part is in memory at once, and each has a file a table and date. null "
            "takes the warehouse's own, 16 for a new one; another number than the warehouse's is refused.",
            minimum=1,
        ),
    )
    split_bytes: int = field(
        default=64 * 2**20,
        metadata=about("Bytes of the lake that one task reads.", minimum=2**10, identity=False),
    )
    shared_paths: bool = field(
        default=False,
        metadata=about(
            "Says that every path here names the same file on all of the runner's workers (a network file system); "
            "without it a runner with workers elsewhere is refused.",
            identity=False,
        ),
    )

    def __post_init__(self) -> None:
        check(self)
        if self.timezone is not None:
            find_zone(self.timezone)
        if self.gap_seconds is not None and self.gap_seconds > LONGEST_GAP_SECONDS:
            raise ConfigError(
                f"gap_seconds is {self.gap_seconds}; sessions are cut at midnight, so give a day (86400) or less"
            )
        if self.shards is not None and self.shards > 1024:
            raise ConfigError(f"shards is {self.shards}; give 1024 or less")
        for name, funnel in self.funnels.items():
            if not name:
                raise ConfigError("funnels: a funnel's name is empty; name it")
            try:
                funnel.definition()
            except ConfigError as error:
                raise ConfigError(f"funnels.{name}: {error}") from None

    def require_paths(self) -> None:
        """Raises ConfigError if lake or output is not given."""
        if not self.lake:
            raise ConfigError(
                "no lake: name the output of a batch or stream run with --lake LAKE or `lake` in the configuration"
            )
        if not self.output:
            raise ConfigError(
                "no output: name a folder with --output WAREHOUSE or `output` in the configuration"
            )

    def local_paths(self) -> dict[str, str]:
        """Returns the paths that workers must reach, by the setting that names them."""
        return {"lake": self.lake, "output": self.output}
