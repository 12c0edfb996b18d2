"""`python3 -m agent`, as fleet-agent.service runs it."""

import sys

from .agent import main

sys.exit(main())
