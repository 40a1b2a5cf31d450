"""`python -m moonshard.attention --config FILE --rank NUMBER --router HOST:PORT`"""

import os

if __name__ == "__main__":
    # Before torch loads its thread pool: waiting threads must not spin where other processes need the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from moonshard.attention.worker import serve
    from moonshard.worker import main

    main("attention", serve)
