"""What the fork server imports once, so that nine workers do not import torch nine times."""

import moonshard.attention.worker
import moonshard.experts.worker  # noqa: F401
