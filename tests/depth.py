"""How far tests go: `make test-deep` sets the profile, `make test` has five minutes."""

import os

IS_DEEP = os.environ.get("MADANG_HYPOTHESIS_PROFILE") == "deep"


def depth(quick, deep):
    """Return how often something is repeated: `quick` in `make test`, `deep` in `make test-deep`."""
    return deep if IS_DEEP else quick
