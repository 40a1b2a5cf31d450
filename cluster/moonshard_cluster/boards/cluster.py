"""Is the whole thing well?"""

from moonshard_cluster.boards.panels import SCOPE, Board, Kind, Panel, Query, Row, quantile, quantiles, rate, value

ENDED = rate("moonshard_requests_total")
FAILED = rate("moonshard_requests_total", 'finish_reason="error"')
PROCESS = 'namespace=~"$namespace"'

WELL = Row(
    "Is it well?",
    [
        Panel(
            "Experts covered",
            "Logical experts with at least one live copy, of all. Below 1 no request can be served.",
            [Query(f"sum({value('moonshard_experts_covered')}) / sum({value('moonshard_experts_logical')})")],
            "percentunit",
            Kind.STAT,
            width=4,
            height=5,
            max_value=1,
        ),
        Panel(
            "Workers",
            "Attention workers and shards that the router holds a control stream to.",
            [Query(f"count({value('moonshard_worker_resident_bytes')})")],
            "short",
            Kind.STAT,
            width=4,
            height=5,
        ),
        Panel(
            "Requests", "Requests ended per second.", [Query(f"sum({ENDED})")], "reqps", Kind.STAT, width=4, height=5
        ),
        Panel(
            "Failed",
            "Share of the requests that ended with an error.",
            [Query(f"sum({FAILED}) / clamp_min(sum({ENDED}), 1e-9)")],
            "percentunit",
            Kind.STAT,
            width=4,
            height=5,
            thresholds=((0.01, "orange"), (0.05, "red")),
        ),
        Panel(
            "Tokens",
            "Tokens generated per second.",
            [Query(f"sum({rate('moonshard_generation_tokens_total')})")],
            "short",
            Kind.STAT,
            width=4,
            height=5,
        ),
        Panel(
            "First token, p99",
            "From a request's arrival to its first token.",
            [quantile(0.99, "moonshard_time_to_first_token_seconds")],
            "s",
            Kind.STAT,
            width=4,
            height=5,
        ),
    ],
)

SPEED = Row(
    "How fast is it?",
    [
        Panel(
            "Tokens per second",
            "Prompt tokens of admitted requests, and tokens generated.",
            [
                Query(f"sum({rate('moonshard_prompt_tokens_total')})", "prompt"),
                Query(f"sum({rate('moonshard_generation_tokens_total')})", "generated"),
            ],
            "short",
        ),
        Panel(
            "Time to first token",
            "From a request's arrival to its first token.",
            quantiles("moonshard_time_to_first_token_seconds"),
            "s",
        ),
        Panel(
            "Between tokens",
            "Between two tokens of one request.",
            quantiles("moonshard_inter_token_latency_seconds"),
            "s",
        ),
    ],
)

FAILURES = Row(
    "What failed, and what it cost",
    [
        Panel(
            "Workers lost and back",
            "Workers that were lost, and that became ready again, since the cell was whole for the first time.",
            [
                Query(value("moonshard_worker_losses_total"), "{{role}} lost"),
                Query(value("moonshard_worker_returns_total"), "{{role}} back"),
            ],
            "short",
        ),
        Panel(
            "Copies of the rarest expert",
            "Live copies. 0: requests wait for a shard. The epoch grows with every loss and return.",
            [
                Query(value("moonshard_expert_copies_min"), "copies"),
                Query(value("moonshard_membership_epoch"), "epoch"),
            ],
            "short",
        ),
        Panel(
            "Asked again",
            "Layers whose rows were sent again, because a shard was lost, slow or wrong, per second.",
            [
                Query(f"sum({rate('moonshard_failover_redispatches_total')})", "lost"),
                Query(f"sum({rate('moonshard_failover_hedges_total')})", "slow, to a replica"),
                Query(f"sum({rate('moonshard_failover_hedges_refused_total')})", "slow, not sent again"),
                Query(f"sum({rate('moonshard_failover_suspicions_total')})", "suspicions"),
            ],
            "short",
        ),
        Panel(
            "Time paused",
            "Share of the time in which an attention worker waited for a shard that was lost or slow.",
            [Query(rate("moonshard_failover_pause_seconds_sum"), "attention-{{dp_rank}}")],
            "percentunit",
        ),
        Panel(
            "Sequences that moved",
            "Sequences of lost and of drained attention workers that went on elsewhere.",
            [
                Query(value("moonshard_sequences_readmitted_total"), "lost"),
                Query(value("moonshard_sequences_handed_over_total"), "drained"),
            ],
            "short",
        ),
        Panel(
            "Degraded tokens",
            "Tokens a second that ran without all of their experts, which only timeouts.degraded_after_s allows.",
            [Query(rate("moonshard_degraded_tokens_total"), "attention-{{dp_rank}}")],
            "short",
        ),
        Panel(
            "Sentinels",
            "Experts whose weights in memory were not what was loaded, and rows that two copies of a shard answered "
            "differently, of so many rechecked. Any at all means a failing machine.",
            [
                Query(value("moonshard_damaged_weights_total"), "damaged experts"),
                Query(value("moonshard_recheck_disagreements_total"), "disagreements, attention-{{dp_rank}}"),
                Query(value("moonshard_rechecks_total"), "rechecks, attention-{{dp_rank}}"),
            ],
            "short",
        ),
    ],
)

PROCESSES = Row(
    "Processes",
    [
        Panel(
            "Memory",
            "Resident bytes of each worker, as its heartbeat told.",
            [Query(value("moonshard_worker_resident_bytes"), "{{worker}}")],
            "bytes",
        ),
        Panel(
            "Memory by process",
            "Resident and virtual bytes of every process, the router included.",
            [
                Query(f"process_resident_memory_bytes{{{PROCESS}}}", "{{instance}}"),
                Query(f"process_virtual_memory_bytes{{{PROCESS}}}", "{{instance}} virtual"),
            ],
            "bytes",
        ),
        Panel(
            "CPU",
            "Cores that each process keeps busy.",
            [Query(f"rate(process_cpu_seconds_total{{{PROCESS}}}[$__rate_interval])", "{{instance}}")],
            "short",
        ),
        Panel(
            "Open files",
            "Descriptors in use, of those allowed. A leak grows.",
            [Query(f"process_open_fds{{{PROCESS}}} / process_max_fds{{{PROCESS}}}", "{{instance}}")],
            "percentunit",
        ),
        Panel(
            "Running for",
            "Time since each process started.",
            [Query(f"time() - process_start_time_seconds{{{PROCESS}}}", "{{instance}}")],
            "s",
        ),
    ],
)

assert SCOPE.startswith(PROCESS), "processes have no model"

BOARD = Board(
    "moonshard-cluster",
    "moonshard / cluster",
    "One look at a cell: coverage, requests, tokens, latency, processes.",
    [WELL, SPEED, FAILURES, PROCESSES],
)
