"""``docs/configuration.md``, written from the declarations of the settings."""

from headrace.pipelines.config import BatchConfig
from headrace.pipelines.settings import dump, reference
from headrace.pipelines.stream_config import StreamConfig


def reference_page() -> str:
    """Returns ``docs/configuration.md``."""
    return f"""# Configuration

Written from the declarations in `pipelines/config.py`, `pipelines/stream_config.py` and `pipelines/event_settings.py`; change them
there and run `python -m headrace.pipelines.config_page > docs/configuration.md`.

`headrace run batch --config FILE` and `headrace run stream --config FILE` read YAML, JSON or TOML, told by the suffix. Options on
the command line go over the file. An unknown key, a wrong type or a key given twice is refused with its place. Relative paths
are relative to the working directory. `--print-config` prints the configuration in effect, ready to be saved and edited.

# Batch

{reference(BatchConfig)}

## Default configuration of a batch run

```yaml
{dump(BatchConfig()).rstrip()}
```

# Stream

{reference(StreamConfig)}

## Default configuration of a stream

```yaml
{dump(StreamConfig()).rstrip()}
```
"""


if __name__ == "__main__":
    print(reference_page(), end="")
