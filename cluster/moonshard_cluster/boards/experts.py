"""Which experts are hot, what does that cost, who waits for whom?"""

from moonshard_cluster.boards.panels import (
    Board,
    Kind,
    Panel,
    Query,
    Row,
    Variable,
    mean,
    quantile,
    quantiles,
    rate,
    value,
)

LAYER, RANK = 'layer=~"$layer"', 'ep_rank=~"$ep_rank"'
SHARD = f'{RANK},role="expert"'
RANKS = rate("moonshard_expert_rank_tokens_total")
PER_EXPERT = rate("moonshard_expert_tokens_total")
BY_LAYER_AND_RANK = f"sum by (layer, ep_rank) ({RANKS})"

LOAD = Row(
    "Who is hot?",
    [
        Panel(
            "Load of every expert in layer $layer",
            "Rows per second by expert over time. A bright line is a hot expert. Counts come window by window "
            "(metrics.load_window_s), so short peaks are spread.",
            [Query(f"sum by (expert) ({rate('moonshard_expert_tokens_total', LAYER)})", "{{expert}}")],
            "short",
            Kind.HEATMAP,
            width=16,
            height=12,
        ),
        Panel(
            "Hottest experts",
            "The twenty experts of any layer with the most rows per second.",
            [Query(f"topk(20, sum by (layer, expert) ({PER_EXPERT}))")],
            "short",
            Kind.TABLE,
            width=8,
            height=12,
        ),
        Panel(
            "Share of the hottest expert",
            "Rows of each layer's busiest expert, of all rows of the layer.",
            [
                Query(
                    f"max by (layer) (sum by (layer, expert) ({PER_EXPERT})) / sum by (layer) ({PER_EXPERT})",
                    "layer {{layer}}",
                )
            ],
            "percentunit",
        ),
    ],
)

BALANCE = Row(
    "Is the load balanced?",
    [
        Panel(
            "Balancedness by layer",
            "Mean by maximum of the shards' rows: 1 is perfect, 0.5 means that the busiest shard does twice its share.",
            [Query(f"avg by (layer) ({BY_LAYER_AND_RANK}) / max by (layer) ({BY_LAYER_AND_RANK})", "layer {{layer}}")],
            "percentunit",
            max_value=1,
        ),
        Panel(
            "Balancedness, as the router sees it",
            "The same over the last minute's windows: what the balancer decides by.",
            [Query(value("moonshard_expert_balancedness_ratio"), "layer {{layer}}")],
            "percentunit",
            max_value=1,
        ),
        Panel(
            "Load by shard",
            "Rows times experts per second of each shard, all layers together.",
            [Query(f"sum by (ep_rank) ({RANKS})", "shard {{ep_rank}}")],
            "short",
            Kind.BARS,
        ),
        Panel(
            "Active experts per batch",
            "Experts of a shard that had any row, on average over its batches of a layer: what decoding pays for.",
            [
                Query(
                    f"sum by (ep_rank) ({rate('moonshard_expert_rank_active_total', RANK)}) / "
                    f"sum by (ep_rank) ({rate('moonshard_expert_rank_batches_total', RANK)})",
                    "shard {{ep_rank}}",
                )
            ],
            "short",
        ),
        Panel(
            "Rows of an expert in a batch",
            "Of the experts that had any. Small numbers mean that weights are read for few rows.",
            quantiles("moonshard_expert_batch_tokens", (0.5, 0.9, 0.99), RANK),
            "short",
        ),
        Panel(
            "Rows of a batch",
            "Rows that a shard computed at once in one layer.",
            quantiles("moonshard_expert_batch_rows", (0.5, 0.9, 0.99), RANK),
            "short",
        ),
    ],
)

MOVES = Row(
    "What did the balancer do?",
    [
        Panel(
            "Placement",
            "Number of the committed placement, 0 is contiguous blocks; every copy that moves makes one or two.",
            [Query(value("moonshard_placement_generation"), "generation")],
            "short",
        ),
        Panel(
            "Layers placed anew",
            "Rebalances, layer by layer.",
            [Query(rate("moonshard_placement_rebalances_total"), "layers per second")],
            "short",
        ),
        Panel(
            "Copies loaded",
            "By running shards, and the share of their time that it took.",
            [
                Query(rate("moonshard_placement_copies_loaded_total"), "copies per second"),
                Query(rate("moonshard_placement_loading_seconds_total"), "seconds per second"),
            ],
            "short",
        ),
        Panel(
            "Redundant copies",
            "Beyond one of each expert, over all layers.",
            [Query(value("moonshard_placement_extra_copies"), "copies")],
            "short",
        ),
    ],
)

COST = Row(
    "What does it cost?",
    [
        Panel(
            "Computing a batch",
            "Time of a shard for one batch of one layer.",
            [
                quantile(0.5, "moonshard_expert_compute_seconds", "ep_rank", RANK),
                quantile(0.99, "moonshard_expert_compute_seconds", "ep_rank", RANK),
            ],
            "s",
        ),
        Panel(
            "Computing a batch, on average",
            "The same as a mean: a shard above the others is a slow machine or holds hot experts.",
            [mean("moonshard_expert_compute_seconds", "ep_rank")],
            "s",
        ),
        Panel(
            "Idle share of each shard",
            "Time in which a shard computes nothing.",
            [
                Query(
                    f"1 - sum by (ep_rank) ({rate('moonshard_expert_compute_seconds_sum', RANK)})", "shard {{ep_rank}}"
                )
            ],
            "percentunit",
            max_value=1,
        ),
        Panel(
            "Waiting for each shard",
            "Seconds per second that attention workers wait in combine for this shard. The straggler is on top.",
            [Query(f"sum by (ep_rank) ({rate('moonshard_a2a_wait_seconds_total', RANK)})", "shard {{ep_rank}}")],
            "s",
        ),
        Panel(
            "Bytes of the links",
            "Between attention workers and each shard, by direction, as the shards count them.",
            [
                Query(
                    f"sum by (ep_rank, phase) ({rate('moonshard_a2a_bytes_total', SHARD)})",
                    "shard {{ep_rank}} {{phase}}",
                )
            ],
            "Bps",
        ),
    ],
)

BOARD = Board(
    "moonshard-experts",
    "moonshard / experts",
    "The load of every expert of every layer, how even it is over the shards, and what unevenness costs.",
    [LOAD, BALANCE, MOVES, COST],
    [
        Variable("layer", "moonshard_expert_rank_tokens_total", multi=False),
        Variable("ep_rank", "moonshard_expert_rank_tokens_total"),
    ],
)
