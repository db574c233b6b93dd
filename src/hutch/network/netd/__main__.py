"""`python -m hutch.network.netd`: see `hutch.network.netd.process`."""

import sys

from hutch.network.netd.process import main

sys.exit(main(sys.argv[1:]))
