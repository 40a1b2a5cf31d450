"""`python -m moonshard.experts --config FILE --rank SHARD --router HOST:PORT`"""

import sys

from moonshard.experts.worker import serve
from moonshard.worker import main

if __name__ == "__main__":
    sys.exit(main("expert", serve))
