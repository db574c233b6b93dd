"""`python -m hutch.network.gateway`."""

from hutch.network.gateway.process import main

raise SystemExit(main())
