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
    ],
)

BOARD = Board(
    "moonshard-router",
    "moonshard / router",
    "Requests, refusals, latency and the queue.",
    [CALLERS, WAITING],
)
