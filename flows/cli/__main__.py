"""`python -m flows.cli`: the command `opd`."""
import sys

from flows.cli.main import main

sys.exit(main())
