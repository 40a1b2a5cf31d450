"""`python -m moonshard.attention --config FILE --rank NUMBER --router HOST:PORT`"""

import sys

from moonshard.attention.worker import serve
from moonshard.worker import main

if __name__ == "__main__":
    sys.exit(main("attention", serve))
