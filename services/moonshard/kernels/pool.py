"""The threads that kernels run on."""

import weakref

from moonshard.kernels.library import native


class Pool:
    """`num_threads` threads, the caller's included; 1 runs everything in the calling thread. None spins for long.

    Also owns the kernels' scratch memory. Calls from several threads take turns. `isa` forces an instruction set
    ("avx512", "avx512_vnni", "avx_vnni", "avx2", "portable"); ValueError when this processor lacks it.
    """

    def __init__(self, num_threads: int, isa: str | None = None) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads: expected at least 1, found {num_threads}")
        library = native()
        name = library.ms_isa(isa.encode() if isa else None)
        if name is None:
            raise ValueError(f"isa: this processor cannot run {isa!r}")
        handle = library.ms_pool_new(num_threads, name)
        if not handle:
            raise MemoryError(f"no threads or memory for a pool of {num_threads}")
        self.isa: str = name.decode()
        self.num_threads = num_threads
        self._handle: int = handle
        self._close = weakref.finalize(self, library.ms_pool_free, handle)

    @property
    def handle(self) -> int:
        """Address of the native pool; RuntimeError once closed."""
        if not self._close.alive:
            raise RuntimeError("the pool is closed")
        return self._handle

    def close(self) -> None:
        """End the threads and free the scratch memory; more than once is fine."""
        self._close()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
