"""`python3 -m agent.daemon`, as fleet-agent.service runs it."""

import sys

from .agent import main

sys.exit(main())
