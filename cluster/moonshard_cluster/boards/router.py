"""What do callers see, and what waits?"""

from moonshard_cluster.boards.panels import Board, Panel, Query, Row, quantiles, rate, value

CALLERS = Row(
    "What do callers see?",
    [
        Panel(
            "Requests ended",
            "Per second, by what ended them.",
            [Query(f"sum by (finish_reason) ({rate('moonshard_requests_total')})", "{{finish_reason}}")],
            "reqps",
        ),
        Panel(
            "Requests refused",
            "Per second, by reason, before they were queued.",
            [Query(f"sum by (reason) ({rate('moonshard_router_rejected_total')})", "{{reason}}")],
            "reqps",
        ),
        Panel(
            "Whole requests",
            "From arrival to the last token.",
            quantiles("moonshard_e2e_request_latency_seconds"),
            "s",
        ),
        Panel(
            "Time to first token",
            "From arrival to the first token.",
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

WAITING = Row(
    "What waits?",
    [
        Panel(
            "Requests",
            "In the router's queue, and in attention workers' batches.",
            [
                Query(f"sum({value('moonshard_requests_waiting')})", "waiting"),
                Query(f"sum({value('moonshard_requests_running')})", "running"),
            ],
            "short",
        ),
        Panel(
            "Time in the queue",
            "From arrival to admission by an attention worker.",
            quantiles("moonshard_request_queue_time_seconds"),
            "s",
        ),
        Panel(
            "Queue by tenant",
            "Of the tenants that the operator named; all others together.",
            [Query(f"sum by (tenant) ({value('moonshard_router_tenant_waiting')})", "{{tenant}}")],
            "short",
        ),
    ],
)

WORK = Row(
    "What do requests ask for?",
    [
        Panel(
            "Prompts",
            "Tokens of finished requests' prompts.",
            quantiles("moonshard_request_prompt_tokens"),
            "short",
        ),
        Panel(
            "Answers",
            "Tokens generated for finished requests.",
            quantiles("moonshard_request_generation_tokens"),
            "short",
        ),
        Panel(
            "Cached prompt tokens",
            "Share of the prompt tokens that workers found in their prefix caches.",
            [
                Query(
                    f"sum({rate('moonshard_router_cached_prompt_tokens_total')}) / "
                    f"clamp_min(sum({rate('moonshard_prompt_tokens_total')}), 1e-9)"
                )
            ],
            "percentunit",
        ),
        Panel(
            "Prefill",
            "From admission to the first token.",
            quantiles("moonshard_request_prefill_time_seconds"),
            "s",
        ),
        Panel(
            "Decode",
            "From the first token to the last.",
            quantiles("moonshard_request_decode_time_seconds"),
            "s",
        ),
        Panel(
            "Time per token",
            "A request's mean time between tokens.",
            quantiles("moonshard_request_time_per_output_token_seconds"),
            "s",
        ),
        Panel(
            "Batch",
            "Sequences that had news in one iteration of a worker.",
            quantiles("moonshard_router_batch_size"),
            "short",
        ),
        Panel(
            "Queued again",
            "Sequences per second that a worker gave back.",
            [Query(f"sum({rate('moonshard_router_readmissions_total')})")],
            "short",
        ),
    ],
)

BOARD = Board(
    "moonshard-router",
    "moonshard / router",
    "Requests, refusals, latency and the queue.",
    [CALLERS, WAITING, WORK],
)
