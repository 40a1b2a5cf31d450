"""The hardware table that is published for Kimi K2.5, row by row against this module's own arithmetic."""

from dataclasses import dataclass

from moonshard_cluster.plan.costs import Costs

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Row:
    """A published claim in GB, our figure for the same thing, and what the difference is."""

    claim: str
    published_gb: float
    computed_gb: float
    verdict: str

    @property
    def ratio(self) -> float:
        return self.computed_gb / self.published_gb


def rows(int4: Costs, bf16: Costs, vision_bytes: int) -> list[Row]:
    """For K2.5. `vision_bytes`: tower and projector, which the checkpoint holds and the text model does not need."""
    disk = (int4.total_bytes + vision_bytes) / 1e9
    full = (bf16.total_bytes + vision_bytes) / 1e9
    cards, card = 8, 80.0
    replicated = int4.attention_bytes / 1e9 + int4.all_experts_bytes / cards / 1e9
    free = cards * card * 0.9 - disk
    return [
        Row("FP16 weights, about 2 TB", 2000, full, "agrees: 2 bytes for each of 1 026.5 B parameters"),
        Row("INT4 weights, about 630 GB", 630, disk, "high by 6 %: experts alone are INT4, 4.5 bits with scales"),
        Row("checkpoint on disk, about 595 GB", 595, disk, "agrees"),
        Row(
            "8 x 80 GB hold the INT4 weights",
            cards * card,
            disk,
            f"only if every tensor is cut in eight, and then {_left(free)} of the usable 90 % for KV cache; "
            f"with attention weights on every card one needs {replicated:.0f} GB of its 80. moonshard: the eight cards "
            f"hold experts ({int4.all_experts_bytes / cards / 1e9:.1f} GB each), attention has cards of its own",
        ),
        Row(
            "vLLM: 714 GB of GPU memory for INT4",
            714,
            disk / 0.9 + 8 * 5,
            "agrees: weights at 90 % use, 5 GB a card to work",
        ),
        Row(
            "KTransformers: 600 GB of RAM and 2 x 48 GB",
            600,
            int4.all_experts_bytes / 1e9,
            "experts fit, with 5 % to spare",
        ),
        Row(
            "KV cache of 256K tokens, 17.2 GiB",
            17.2 * GIB / 1e9,
            262144 * int4.kv_bytes / 1e9,
            "agrees: latents in BF16",
        ),
    ]


def _left(free_gb: float) -> str:
    return f"{free_gb:.0f} GB remain" if free_gb > 0 else f"{-free_gb:.0f} GB are missing"
