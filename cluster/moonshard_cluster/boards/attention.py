"""What do attention workers do, how full are they, what do they wait for?"""

from moonshard_cluster.boards.panels import Board, Kind, Panel, Query, Row, Variable, quantile, quantiles, rate, value

RANK = 'dp_rank=~"$dp_rank"'
COMBINE, SENDER = f'{RANK},phase="combine"', f'{RANK},role="attention"'
BY_WORKER = "worker {{dp_rank}}"

WORK = Row(
    "What do they do?",
    [
        Panel(
            "Tokens run per second",
            "Prompt tokens and sampled tokens of each worker.",
            [
                Query(rate("moonshard_engine_prompt_tokens_total", RANK), BY_WORKER + " prompt"),
                Query(rate("moonshard_engine_generation_tokens_total", RANK), BY_WORKER + " generated"),
            ],
            "short",
        ),
        Panel(
            "Iterations per second",
            "A worker with running requests and no iterations is stuck.",
            [Query(rate("moonshard_engine_steps_total", RANK), BY_WORKER)],
            "short",
        ),
        Panel(
            "Requests in the batch",
            "Sequences that each worker runs.",
            [Query(value("moonshard_engine_requests_running", RANK), BY_WORKER)],
            "short",
        ),
        Panel(
            "Tokens of an iteration",
            "Prompt chunks included.",
            quantiles("moonshard_step_tokens", labels=RANK),
            "short",
        ),
        Panel(
            "Time of an iteration",
            "All layers, experts included.",
            quantiles("moonshard_step_seconds", labels=RANK),
            "s",
        ),
    ],
)

CACHE = Row(
    "How full are they?",
    [
        Panel(
            "KV cache in use",
            "Share of the KV blocks that running sequences hold.",
            [Query(value("moonshard_kv_cache_usage_ratio", RANK), BY_WORKER)],
            "percentunit",
            max_value=1,
            thresholds=((0.9, "red"),),
        ),
        Panel(
            "Preemptions",
            "Sequences per second that lost their blocks and will be run again.",
            [Query(rate("moonshard_preemptions_total", RANK), BY_WORKER)],
            "short",
        ),
        Panel(
            "Prefix cache hits",
            "Share of the prompt tokens that came from the prefix cache.",
            [
                Query(
                    f"sum by (dp_rank) ({rate('moonshard_prefix_cache_hits_tokens_total', RANK)}) / "
                    f"clamp_min(sum by (dp_rank) ({rate('moonshard_prefix_cache_queries_tokens_total', RANK)}), 1e-9)",
                    BY_WORKER,
                )
            ],
            "percentunit",
            max_value=1,
        ),
        Panel(
            "Prefix cache blocks",
            "Blocks kept for later prompts.",
            [Query(value("moonshard_prefix_cache_blocks", RANK), BY_WORKER)],
            "short",
        ),
        Panel(
            "Shape of the KV cache",
            "Tokens of a block and number of blocks.",
            [Query(value("moonshard_cache_config_info", RANK))],
            "short",
            Kind.TABLE,
        ),
    ],
)

LINKS = Row(
    "What do they wait for?",
    [
        Panel(
            "Dispatch and combine",
            "Time of one layer's dispatch, and of its combine: what the shared expert did not hide.",
            [quantile(share, "moonshard_a2a_seconds", "phase", RANK) for share in (0.5, 0.99)],
            "s",
        ),
        Panel(
            "Share of an iteration spent in combine",
            "Above a third the shards, not attention, set the pace.",
            [
                Query(
                    f"sum by (dp_rank) ({rate('moonshard_a2a_seconds_sum', COMBINE)}) / "
                    f"sum by (dp_rank) ({rate('moonshard_step_seconds_sum', RANK)})",
                    BY_WORKER,
                )
            ],
            "percentunit",
        ),
        Panel(
            "Waiting for each shard",
            "Seconds per second until each shard had answered.",
            [Query(f"sum by (ep_rank) ({rate('moonshard_a2a_wait_seconds_total', RANK)})", "shard {{ep_rank}}")],
            "s",
        ),
        Panel(
            "Bytes sent and received",
            "By direction, as the workers count them.",
            [
                Query(
                    f"sum by (dp_rank, phase) ({rate('moonshard_a2a_bytes_total', SENDER)})",
                    BY_WORKER + " {{phase}}",
                )
            ],
            "Bps",
        ),
    ],
)

BOARD = Board(
    "moonshard-attention",
    "moonshard / attention",
    "Iterations, KV cache, prefix cache, and the data plane at the attention workers' side.",
    [WORK, CACHE, LINKS],
    [Variable("dp_rank", "moonshard_engine_steps_total")],
)
